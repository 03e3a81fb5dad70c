"""Pipelines as text, and the descriptions of passes."""

from dataclasses import dataclass
from typing import Literal

import pytest
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import ModulePass

from compiler.command_line import UsageError
from compiler.pass_text import list_passes, own_passes, parse_passes, pass_help
from compiler.targets.registry import MpmdTarget, make_target


@dataclass(frozen=True)
class ProbePass(ModulePass):
    """Do nothing, in several ways.

    More about it.

    options:
      count: how often,
        in words
    """

    name = "probe"

    count: int = 1
    real: float | None = None
    """A factor."""
    kind: Literal["one", "two"] = "one"
    flag: bool = False
    several_words: str = ""
    sizes: tuple[int, ...] = ()

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        del ctx, op


PROBE = {"probe": lambda: ProbePass}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("probe", [ProbePass()]),
        ("probe{count=3 kind=two flag=true},probe", [ProbePass(3, kind="two", flag=True), ProbePass()]),
        ("probe{real=2}", [ProbePass(real=2.0)]),
        ('probe{several-words="a b" sizes=1,2}', [ProbePass(several_words="a b", sizes=(1, 2))]),
    ],
)
def test_pipelines_are_read(text: str, expected: list[ModulePass]) -> None:
    assert list(parse_passes(text, PROBE)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prob", "there is no pass 'prob' (did you mean 'probe'?)"),
        ("zzz", "there is no pass 'zzz'; --list-passes names all"),
        ("probe{conut=1}", "pass 'probe' has no option 'conut' (did you mean 'count'?)"),
        ("probe{several-word=a}", "pass 'probe' has no option 'several-word' (did you mean 'several-words'?)"),
        ("probe{count=x}", "option 'count' of pass 'probe' takes an integer, not 'x'"),
        ("probe{count}", "option 'count' of pass 'probe' takes an integer, and got no value"),
        ("probe{kind=three}", "option 'kind' of pass 'probe' takes one of one, two, not 'three'"),
        ("probe{flag=1}", "option 'flag' of pass 'probe' takes true or false, not '1'"),
        ("probe{real=x}", "option 'real' of pass 'probe' takes a number, not 'x'"),
        ("probe{count=1, real=2}", "bad pipeline 'probe{count=1, real=2}', at character 15"),
        ("probe{", "bad pipeline 'probe{', at character 7"),
        ("probe probe", "bad pipeline 'probe probe', at character 6"),
        ("probe{real=.5}", "bad pipeline 'probe{real=.5}', at character 12"),
        ("{", "bad pipeline '{', at character 1"),
    ],
)
def test_mistakes_name_pass_and_option(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_passes(text, PROBE)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mpdm", "there is no target 'mpdm' (did you mean 'mpmd'?)"),
        ("", "there is no target ''"),
        ("mpmd,json", "there is no target 'mpmd,json'"),
        ("svg{widht=1}", "target 'svg' has no option 'widht' (did you mean 'width'?)"),
        ("mpmd{form=x}", "option 'form' of target 'mpmd' takes one of fragments, calls, not 'x'"),
        ("mpmd{microbatches=1.5}", "option 'microbatches' of target 'mpmd' takes an integer, not '1.5'"),
        ("mpmd{form=calls}x", "bad target 'mpmd{form=calls}x', at character 17"),
        ("mpmd{form", "bad target 'mpmd{form', at character 10"),
    ],
)
def test_mistakes_name_target_and_option(text: str, message: str) -> None:
    assert make_target("mpmd{form=calls microbatches=2}") == MpmdTarget(2, "calls")
    with pytest.raises(UsageError) as caught:
        make_target(text)
    assert message in str(caught.value)


def test_help_has_description_types_defaults_and_documentation() -> None:
    text = pass_help(ProbePass)
    assert "Do nothing, in several ways.\n" in text
    assert "  count=an integer  [default: 1]\n      how often, in words\n" in text
    assert "  real=a number  [optional]\n      A factor.\n" in text
    assert "  kind=one of one, two  [default: one]\n" in text
    assert "  several-words=a text" in text
    assert text.count("options:") == 1


def test_every_pass_of_ours_describes_itself_and_its_options() -> None:
    listed = list_passes(own_passes())
    for name, factory in own_passes().items():
        assert f"  {name}" in listed
        assert "no description" not in listed
        lines = pass_help(factory()).split("\noptions:\n")[-1].splitlines()
        for option, below in zip(lines, [*lines[1:], ""], strict=True):
            if option.startswith("  ") and not option.startswith("   ") and "=" in option:
                assert below.startswith("      "), f"option '{option.strip()}' of {name} is not documented"
