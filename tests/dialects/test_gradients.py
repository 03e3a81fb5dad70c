"""Gradients in the IR: what the operator they are of must be, and what they read and give."""

from __future__ import annotations

import pytest
from xdsl.utils.exceptions import ParseError, VerifyException

from compiler.ir_input import parse_ir
from compiler.output import print_ir
from compiler.pipeline import new_context
from dialects.diagnostics import TaktError
from dialects.levels import verify_level

X, Y = "tensor<4x2xbf16>", "tensor<4x8xbf16>"
OF = f'<"linear" {{features = 8 : i64}} ({X}) -> {Y}, gradients [0] to [0]>'


def message(of: str = OF, kind: str = "input_gradient", reads: str = "%y", types: str = f"({Y}) -> {X}") -> str:
    """The first complaint about a graph of one gradient; empty when it is good."""
    text = (
        f"takt.graph @g model training <none, mixed> {{\n  %x = takt.input : {X}\n  %y = takt.input : {Y}\n"
        f"  %d = takt.{kind}({reads}) of {of} params 32 : {types}\n  takt.output %d : {types.split('-> ')[1]}\n}}\n"
    )
    try:
        verify_level(parse_ir(new_context(), text, "g.mlir"))
    except (TaktError, ParseError, VerifyException) as error:
        return str(error)
    return ""


def test_good_ones() -> None:
    assert message() == ""
    weight = message(OF.replace("to [0]", "to []"), "weight_gradient", "%y, %x", f"({Y}, {X}) -> tensor<0xi8>")
    assert weight == ""
    none = OF.replace("gradients [0] to [0]", "gradients [] to []")
    assert message(none, "recompute", "%x", f"({X}) -> {Y}") == ""
    assert message(none, "recompute", "%x, %y", f"({X}, {Y}) -> {Y}") == ""


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"of": OF.replace('"linear"', '"lineal"')}, "there is no operator 'lineal'"),
        ({"of": OF.replace("features", "columns")}, "'linear' has no argument 'columns'"),
        ({"of": OF.replace("{features = 8 : i64} ", "")}, "'linear' needs the argument 'features'"),
        ({"of": OF.replace("8 : i64", '"8"')}, "expected an integer of at least 1"),
        ({"of": OF.replace("to [0]", "to [1]")}, "gradients are listed by increasing numbers, got [1]"),
        ({"of": OF.replace("[0] to", "[0, 0] to")}, "gradients are listed by increasing numbers, got [0, 0]"),
        ({"of": OF.replace(f"({X})", "(i8)")}, "expected a tensor, got i8"),
        ({"of": OF.replace(f"({X})", f"({X}, {X})")}, "'linear' does not take 2 operands"),
        ({"of": OF.replace("features = 8", "features = 4")}, "'linear' gives (tensor<4x4xbf16>), not"),
        ({"reads": "%x", "types": f"({X}) -> {X}"}, "'input_gradient' reads (tensor<4x8xbf16>), got"),
        ({"types": f"({Y}) -> {Y}"}, "'input_gradient' gives (tensor<4x2xbf16>), got"),
    ],
)
def test_what_does_not_fit(changes: dict[str, str], expected: str) -> None:
    assert expected in message(**changes)


def forward(training: str) -> str:
    return f"takt.graph @g model training <{training}> {{\n  %x = takt.input : {X}\n  takt.output\n}}\n"


def test_how_often_parameters_are_updated_is_written_and_read() -> None:
    module = parse_ir(new_context(), forward("adam, mixed, asynchronous 4"), "g.mlir")
    for generic in (False, True):
        printed = print_ir(module, generic=generic)
        assert "<adam, mixed, asynchronous 4>" in printed
        assert print_ir(parse_ir(new_context(), printed, "g.mlir"), generic=generic) == printed


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ("adam, mixed, 4", "asynchronous"),
        ("sgd, full, asynchronous -1", "asynchronous"),
        ("none, full, asynchronous 1", "without an optimizer nothing is updated"),
    ],
)
def test_how_often_parameters_cannot_be_updated(training: str, expected: str) -> None:
    with pytest.raises(TaktError, match=expected):
        parse_ir(new_context(), forward(training), "g.mlir")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"of": OF}, "'recompute' makes no gradients"),
        ({"reads": "%y", "types": f"({Y}) -> {Y}"}, "'recompute' reads (tensor<4x2xbf16>) first, got"),
        ({"types": f"({X}) -> {X}"}, "'recompute' gives (tensor<4x8xbf16>), got"),
    ],
)
def test_what_is_no_copy_of_the_forward_operator(changes: dict[str, str], expected: str) -> None:
    given = {"of": OF.replace("[0] to [0]", "[] to []"), "reads": "%x", "types": f"({X}) -> {Y}"}
    assert expected in message(kind="recompute", **given | changes)


def test_optimizers_and_precisions_are_known_words() -> None:
    text = f"takt.graph @g model training <lion, mixed> {{\n  %x = takt.input : {X}\n  takt.output\n}}\n"
    with pytest.raises(TaktError, match="expected one of none, sgd, momentum, adam"):
        parse_ir(new_context(), text, "g.mlir")
