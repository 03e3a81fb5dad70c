"""Small checks that the shape rules of the operators share; all raise :class:`ShapeError`."""

from __future__ import annotations

from xdsl.dialects.builtin import AnyFloatConstr, i8, i32, i64

from dialects.nn.base import ShapeError, Tensor, show


def need_rank(x: Tensor, least: int, what: str = "operand") -> tuple[int, ...]:
    """The shape of ``x``, which must have at least ``least`` dimensions."""
    shape = x.get_shape()
    if len(shape) < least:
        dimensions = "dimension" if least == 1 else "dimensions"
        raise ShapeError(f"{what} needs at least {least} {dimensions}, got {show(x)}")
    return shape


def need_exact_rank(x: Tensor, rank: int, layout: str, what: str = "operand") -> tuple[int, ...]:
    """The shape of ``x``, which must have exactly ``rank`` dimensions, laid out as ``layout`` says."""
    shape = x.get_shape()
    if len(shape) != rank:
        raise ShapeError(f"{what} must be [{layout}], got {show(x)}")
    return shape


def need_float(x: Tensor, what: str = "operand") -> None:
    """``x`` must hold floating-point numbers."""
    if not AnyFloatConstr.verifies(x.element_type):
        raise ShapeError(f"{what} must hold floating-point numbers, got {show(x)}")


def need_integer(x: Tensor, what: str) -> None:
    """``x`` must hold integers that can index something: i8, i32 or i64."""
    if x.element_type not in (i8, i32, i64):
        raise ShapeError(f"{what} must hold integers, got {show(x)}")


def resolve_axis(x: Tensor, axis: int) -> int:
    """``axis`` counted from the front; a negative one counts from the back."""
    rank = len(x.get_shape())
    if not -rank <= axis < rank:
        raise ShapeError(f"axis {axis} is outside {show(x)}, which has {rank} dimensions")
    return axis % rank
