"""``docs/language.md`` says what is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dialects.operators import ELEMENT_TYPES, OPERATORS
from frontend import Source, load, lower, parse, parser, program, source, types, units
from frontend.reference import operator_table

PAGE = (Path(__file__).parents[2] / "docs" / "language.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```takt\n(.*?)```", PAGE, re.DOTALL)


def test_every_operator_is_in_the_table() -> None:
    table = PAGE.split("<!-- operators: python -m frontend.reference -->\n")[1].split("<!-- end -->")[0]
    assert table == operator_table(), "put the output of 'python -m frontend.reference' into docs/language.md"
    for operator in OPERATORS:
        assert f"| `{operator.kind()}(" in table


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_every_example_parses(example: str) -> None:
    top = re.match(r"import|const|model|block|accelerator|platform", example)
    parse(Source("example.takt", example if top else f"model m {{\n{example}\n}}\n"))


def test_the_first_example_compiles() -> None:
    assert "@tiny" in str(load(Source("example.takt", EXAMPLES[0]), overrides={"batch": "1"}))


def test_limits_units_and_element_types() -> None:
    limits = PAGE.split("## Limits")[1].split("## Grammar")[0].replace(" ", "")
    for value in (lower.MAX_ITERATIONS, lower.MAX_OPERATORS, lower.MAX_DEPTH, parser.MAX_NESTING, types.MAX_RANK):
        assert str(value) in limits
    assert f"{source.MAX_BYTES // 2**20}MiB" in limits
    assert f"nestedarithmetic;chainedimports|64;100;{program.MAX_IMPORT_DEPTH}" in limits
    assert types.MAX_DIM == 2**40
    for unit in units.UNITS:
        assert re.search(rf"\b{unit.removesuffix('/s')}\b", PAGE), unit
    for element in ELEMENT_TYPES:
        assert re.search(rf"`[a-z0-9 ]*\b{element}\b[a-z0-9 ]*`", PAGE), element
