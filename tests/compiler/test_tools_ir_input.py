"""Reading IR text: positions, the identity of print and parse, clean errors for whatever is in the file."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.ir_input import decode, parse_ir
from compiler.output import print_ir
from compiler.pipeline import new_context
from dialects.diagnostics import Diagnostic, TaktError, location_of
from dialects.structure import find_graph

TEXT = """\
builtin.module {
  takt.graph @g model {
    %a = takt.input : tensor<2x4xf32>
    %b = takt.gelu(%a) : (tensor<2x4xf32>) -> tensor<2x4xf32> loc("m.takt":7:3)
    %c = takt.relu(%b) : (tensor<2x4xf32>) -> tensor<2x4xf32> loc(unknown)
    takt.output %c : tensor<2x4xf32>
  }
}
"""


def errors(text: str) -> list[str]:
    with pytest.raises(TaktError) as caught:
        parse_ir(new_context(), text, "t.mlir")
    return [f"{d.location}: {d.message}" for d in caught.value.diagnostics]


def test_operations_get_the_position_they_stand_at() -> None:
    graph = find_graph(parse_ir(new_context(), TEXT, "t.mlir"))
    assert graph is not None
    places = [str(location_of(op)) for op in graph.body.block.ops]
    assert places == ["t.mlir:3:5", "m.takt:7:3", "None", "t.mlir:6:5"]
    assert str(location_of(graph)) == "t.mlir:2:3"


@pytest.mark.parametrize("locations", [False, True])
@pytest.mark.parametrize("generic", [False, True])
def test_print_parse_print_is_the_identity(locations: bool, generic: bool) -> None:
    once = print_ir(parse_ir(new_context(), TEXT, "t.mlir"), generic=generic, locations=locations)
    again = print_ir(parse_ir(new_context(), once, "u.mlir"), generic=generic, locations=locations)
    assert once == again


def test_locations_survive_a_text_that_states_them() -> None:
    once = print_ir(parse_ir(new_context(), TEXT, "t.mlir"), locations=True)
    assert 'loc("t.mlir":3:5)' in once
    assert "u.mlir" not in print_ir(parse_ir(new_context(), once, "u.mlir"), locations=True)


def test_undefined_value_is_reported_where_it_is_used() -> None:
    text = TEXT.replace("gelu(%a)", "gelu(%aa)").replace("output %c", "output %cc")
    assert errors(text) == ["t.mlir:4:20: value '%aa' is not defined", "t.mlir:6:17: value '%cc' is not defined"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "t.mlir:1:1: the file is empty"),
        ("  \n // only a comment\n", "t.mlir:3:1: expected an operation"),
        ("takt.graf @x {}", "t.mlir:1:1: there is no operation 'takt.graf'"),
        ('builtin.module { "takt.nope"() : () -> () }', "t.mlir:1:19: there is no operation 'takt.nope'"),
        ("builtin.module {", "t.mlir:1:17: "),
        ("#a = " + "9" * 5000 + " : i64", "t.mlir:1:5007: cannot be read as IR here"),
        ("builtin.module {" * 5000, "nested too deeply"),
        ("#a = 1 : i99999999999", "t.mlir:1:10: an integer type is less than 10000000 bits wide"),
        ("#a = dense<1> : tensor<999999999999999999xi32>", "needs more memory than there is"),
        ('%x = "a', "t.mlir:1:6: end of file reached"),
        ("\x00", "t.mlir:1:1: unexpected character"),
    ],
)
def test_bad_text_has_a_place_and_a_message(text: str, message: str) -> None:
    (error,) = errors(text)
    assert message in error


def test_an_open_string_takes_linear_time() -> None:
    started = time.process_time()
    assert errors('"' + "a b" * 30_000) == ["t.mlir:1:1: end of file reached before closing string literal"]
    assert time.process_time() - started < 5


def test_strings_with_escapes_are_read() -> None:
    text = 'builtin.module attributes {a = "x\\22\\0A\\\\", b = ""} {\n}\n'
    assert print_ir(parse_ir(new_context(), text, "t.mlir")) == text


def test_bytes_that_are_not_text() -> None:
    with pytest.raises(TaktError) as caught:
        decode(b"builtin.module {\n \xff}", "t.mlir")
    (diagnostic,) = caught.value.diagnostics
    assert str(diagnostic.location) == "t.mlir:2:2"
    assert "0xff" in diagnostic.message


def outcome(text: str) -> list[Diagnostic]:
    """What is wrong with ``text``; anything but a TaktError goes through."""
    try:
        parse_ir(new_context(), text, "t.mlir")
    except TaktError as error:
        return list(error.diagnostics)
    return []


@given(st.lists(st.sampled_from([*TEXT.split(" "), "%", '"', "<", "#takt.cost<", "[", "-1", "\n", "}"]), max_size=40))
def test_any_tokens_parse_or_fail_with_a_place(tokens: list[str]) -> None:
    assert all(d.location is not None for d in outcome(" ".join(tokens)))


@given(st.integers(0, len(TEXT) - 1), st.text(max_size=3))
def test_any_damage_parses_or_fails_with_a_place(position: int, inserted: str) -> None:
    assert all(d.location is not None for d in outcome(TEXT[:position] + inserted + TEXT[position + 2 :]))


def test_line_ends_of_windows() -> None:
    graph = find_graph(parse_ir(new_context(), TEXT.replace("\n", "\r\n"), "t.mlir"))
    assert graph is not None
    assert str(location_of(graph)) == "t.mlir:2:3"
