"""States, which carry values from one micro-batch to a later one: their text, and the rules they keep."""

from __future__ import annotations

import pytest
from xdsl.utils.exceptions import ParseError

from dialects.levels import RULES, check_level
from dialects.structure import LEVELS, find_graph

BODY = """\
takt.graph @g model {
  %c = takt.state @cache distance 2 : tensor<4xi8>
  %d = takt.state @"of layer 3" distance 1 {note} : tensor<2x2xbf16>
  %a, %b = takt.op(%c, %d) cost <[1] time [9]> : (tensor<4xi8>, tensor<2x2xbf16>) -> (tensor<4xi8>, tensor<2x2xbf16>)
  takt.next @cache, %a : tensor<4xi8>
  takt.next @"of layer 3", %b {note} : tensor<2x2xbf16>
  takt.output %a : tensor<4xi8>
}
"""


def found(text, source: str) -> list[tuple[str | None, str]]:
    return [(d.rule, d.message) for d in check_level(text.parse(source))]


def test_states_print_as_they_were_read(text):
    module = text.parse(BODY)
    shown = text.show(module)
    assert BODY.splitlines() == [line[2:] for line in shown.splitlines()[1:-1]]
    generic = text.show(module, generic=True)
    assert '"takt.state"() <{state = "cache", distance = 2 : i64}>' in generic
    assert text.show(text.parse(generic)) == shown
    assert check_level(module) == []


def test_a_state_is_read_where_it_was_left(text):
    graph = find_graph(text.parse(BODY))
    (op,) = graph.operators()
    c, d = graph.states()
    assert graph.carried() == {c.output: (op.results[0], 2), d.output: (op.results[1], 1)}


@pytest.mark.mlir
def test_mlir_reads_states(text):
    pytest.importorskip("jaxlib.mlir")
    from jaxlib.mlir import ir

    with ir.Context() as context:
        context.allow_unregistered_dialects = True
        assert ir.Module.parse(text.show(text.parse(BODY), generic=True)).operation.verify()


@pytest.mark.parametrize("distance", [0, -1, 4097])
def test_distances_are_positive_and_not_absurd(distance: int, text):
    ((rule, message),) = found(text, BODY.replace("distance 2", f"distance {distance}"))
    assert rule == "well-formed"
    assert f"the distance of a state lies between 1 and 4096, got {distance}" in message


@pytest.mark.parametrize(
    ("old", "new", "rule", "message"),
    [
        ('@"of layer 3" distance', "@cache distance", "state-unique", "state 'cache' is declared twice"),
        ("takt.next @cache, %a : tensor<4xi8>\n", "", "state-left-once", "state 'cache' is never left a value"),
        ('@"of layer 3", %b', "@cache, %b", "state-left-once", "state 'cache' is left two values"),
        ("takt.next @cache", "takt.next @cash", "state-left-once", "there is no state 'cash' to leave a value in"),
        (
            "@cache, %a : tensor<4xi8>",
            "@cache, %b : tensor<2x2xbf16>",
            "state-type",
            "state 'cache' holds a tensor<4xi8>, but a tensor<2x2xbf16> is left in it",
        ),
        ("@cache, %a", "@cache, %c", "state-computed", "'c' is left in state 'cache', but no operator computes it"),
        ("output %a", "output %c", "state-readers", "state 'cache' is an output, but no operator computes it"),
    ],
)
def test_rules_of_states(old: str, new: str, rule: str, message: str, text):
    assert old in BODY
    assert (rule, message) in found(text, BODY.replace(old, new))


def test_every_rule_of_states_is_broken_above():
    rules = {r.name for level in LEVELS for r in RULES[level] if r.name.startswith("state-")}
    parameters = test_rules_of_states.pytestmark[0].args[1]  # pyright: ignore[reportFunctionMemberAccess]
    assert rules == {case[2] for case in parameters}


@pytest.mark.parametrize(
    "line",
    ["%c = takt.state cache distance 1 : tensor<4xi8>", "%c = takt.state @cache : tensor<4xi8>", "takt.next @cache"],
)
def test_malformed_states(line: str, text):
    with pytest.raises(ParseError):
        text.parse(f"takt.graph @g model {{ {line} takt.output }}")
