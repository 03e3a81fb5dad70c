"""States: what they become in the IR, and every mistake one can make with them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dialects.diagnostics import TaktError
from dialects.levels import check_level
from dialects.structure import GraphOp
from frontend import Source, load, parse
from frontend.dump import show_ast

Graphs = Callable[..., GraphOp]


def model(body: str) -> str:
    return "model m {\n input x: tensor<4 x 8, bf16>\n" + body + "\n}\n"


GOOD = model(" state h: tensor<4 x 8, bf16>\n y = add(x, h)\n next h = y\n output y")


def test_a_state_is_read_and_left(graph_of: Graphs) -> None:
    graph = graph_of(GOOD)
    (state,), (left,), (op,) = graph.states(), graph.nexts(), graph.operators()
    assert (state.state.data, state.distance.value.data, state.output.name_hint) == ("h", 1, "h")
    assert graph.carried() == {state.output: (op.results[0], 1)}
    assert (state.location.line.data, left.location.line.data) == (3, 5)  # pyright: ignore
    assert check_level(load(Source("f", GOOD)), "model") == []


def test_every_expansion_has_a_state_of_its_own(graph_of: Graphs) -> None:
    graph = graph_of(
        "block delay(a: tensor<s x d, t>; by = 1) -> b {\n state kept: tensor<s x d, t> distance by\n"
        " b = add(a, kept)\n next kept = b\n}\n"
        + model(
            " param groups = 3\n repeat 2 carry x {\n state cache: tensor<4 x 8, bf16> distance groups + 1\n"
            " x = add(x, cache)\n next cache = x\n}\n y = delay(x)\n z = delay(y, by = 7)\n output z"
        )
    )
    assert {s.state.data: s.distance.value.data for s in graph.states()} == {
        "cache.0": 4,
        "cache.1": 4,
        "delay.0.kept": 1,
        "delay.1.kept": 7,
    }
    left = {left.name_hint: state.name_hint for state, (left, _) in graph.carried().items()}
    assert left == {"x.0": "cache.0", "x.1": "cache.1", "delay.0.b": "delay.0.kept", "delay.1.b": "delay.1.kept"}


def test_a_state_may_be_carried_through_a_repetition(graph_of: Graphs) -> None:
    graph = graph_of(
        model(" state h: tensor<4 x 8, bf16>\n repeat 3 carry h { h = add(h, x) }\n next h = h\n output h")
    )
    assert [left.name_hint for left, _ in graph.carried().values()] == ["h.2"]


def test_words_are_names_where_no_statement_starts(graph_of: Graphs) -> None:
    text = " state = gelu(x)\n next = gelu(state)\n state s: tensor<4 x 8, bf16>\n distance = add(next, s)\n"
    graph = graph_of(model(text + " next s = distance\n output distance"))
    assert [op.results[0].name_hint for op in graph.operators()] == ["state", "next", "distance"]


def test_the_syntax_tree_shows_states() -> None:
    shown = show_ast(parse(Source("f", GOOD)))
    assert "State @3:2" in shown
    assert "Next @5:2" in shown


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        (" next h = y\n", "", 3, "state 'h' is never left a value"),
        (" next h = y\n", " next h = y\n next h = y\n", 6, "state 'h' is left two values"),
        ("next h", "next g", 5, "unknown state 'g'"),
        ("next h", "next y", 5, "'y' is no state"),
        ("h = y", "h = z", 5, "unknown name 'z'"),
        ("h = y", "h = x", 5, "what is left in a state is computed by an operator, 'x' is an input"),
        ("h = y", "h = h", 5, "what is left in a state is computed by an operator, 'h' is a state"),
        ("h = y", "h = gelu(y)", 5, "what is left in a state must be the name of a tensor, found a call"),
        ("next h = y", "w = linear(y, features = 9)\n next h = w", 6,
         "state 'h' holds tensor<4 x 8, bf16>, but 'w' is tensor<4 x 9, bf16>"),
        ("next h = y", "repeat 2 { next h = y }", 5, "state 'h' is left a value inside a repetition"),
        ("output y", "output h", 6, "'h' is a state: what an earlier micro-batch left is no output of this one"),
        (", bf16>\n y", ", bf16> distance 0\n y", 3, "the distance of a state must be at least 1"),
        (", bf16>\n y", ", bf16> distance 5000\n y", 3, "the distance of a state is at most 4096, got 5,000"),
        (", bf16>\n y", ", bf16> distance 1.5\n y", 3, "the distance of a state must be"),
        (", bf16>\n y", ", bf16> distance far\n y", 3, "unknown name 'far'"),
        ("state h", "state x", 3, "'x' is already defined"),
        (" state h: tensor<4 x 8, bf16>\n", "", 3, "unknown name 'h'"),
    ],
)  # fmt: skip
def test_mistakes(old: str, new: str, line: int, message: str) -> None:
    assert GOOD.count(old) == 1
    with pytest.raises(TaktError) as error:
        load(Source("f", GOOD.replace(old, new)))
    found = [(d.location and d.location.line, d.message) for d in error.value.diagnostics]
    assert any(at == line and message in text for at, text in found), found
