"""docs/ir.md states every rule as the code does, and its examples are what they claim to be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dialects.attributes import BracketedAttribute
from dialects.levels import RULES, check_level
from dialects.structure import LEVELS, find_graph
from dialects.takt import Takt

PAGE = (Path(__file__).parents[2] / "docs" / "ir.md").read_text()
BLOCKS = re.findall(r"```mlir\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("level", LEVELS)
def test_every_rule_is_stated(level: str):
    section = PAGE.split(f"## Level `{level}`")[1].split("\n## ")[0]
    stated = dict(re.findall(r"^\| `([a-z-]+)` \| (.*) \|$", section, re.MULTILINE))
    assert stated == {rule.name: rule.statement for rule in RULES[level]}


@pytest.mark.parametrize("number", range(len(LEVELS)), ids=LEVELS)
def test_examples_are_at_their_level(number: int, text):
    platform, *graphs = BLOCKS
    assert len(graphs) == len(LEVELS)
    module = text.parse(platform + graphs[number])
    assert find_graph(module).level.data == LEVELS[number]
    assert check_level(module) == []
    assert graphs[number] in re.sub(r"^  ", "", text.show(module), flags=re.MULTILINE)


def test_every_attribute_is_in_the_table(text):
    attributes = [a for a in Takt.attributes if issubclass(a, BracketedAttribute)]
    assert attributes
    for attribute in attributes:
        (example,) = re.findall(rf"^\| `#{attribute.name}` \| `(.*?)` \|", PAGE, re.MULTILINE)
        source = f"takt.graph @g model {{ takt.output {{a = #{attribute.name}{example}}} }}"
        assert f"#{attribute.name}{example}" in text.show(text.parse(source))
