"""Convolution and pooling, and the operators that only rearrange a tensor."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, ClassVar

from xdsl.dialects.builtin import IntegerAttr, TensorType, i64
from xdsl.irdl import irdl_op_definition, prop_def

from dialects.arguments import BoolArg, IntArg, IntListArg
from dialects.nn.base import Inference, OperatorOp, ShapeError, Tensor, element_bytes, show
from dialects.nn.shapes import need_exact_rank, need_float, resolve_axis

LAYOUT = "batch, channels, height, width"

# --- images ----------------------------------------------------------------------------------


def _window(x: Tensor, arguments: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width after a square window of ``kernel`` slides by ``stride`` over ``x`` with ``padding``."""
    kernel, stride, padding = arguments["kernel"], arguments["stride"], arguments["padding"]
    _, _, height, width = x.get_shape()
    if min(height, width) + 2 * padding < kernel:
        raise ShapeError(f"a window of {kernel} x {kernel} with padding {padding} does not fit in {show(x)}")
    return (height + 2 * padding - kernel) // stride + 1, (width + 2 * padding - kernel) // stride + 1


@irdl_op_definition
class Conv2dOp(OperatorOp):
    """Two-dimensional convolution with a square window: ``[n, c, h, w] -> [n, channels, h', w']``.

    ``h' = (h + 2 * padding - kernel) // stride + 1``, likewise ``w'``. Parameters:
    ``channels * (c / groups) * kernel^2`` and, with ``bias``, one number per channel.
    """

    name = "takt.conv2d"

    channels = prop_def(IntArg())
    kernel = prop_def(IntArg())
    stride = prop_def(IntArg(), default_value=IntegerAttr(1, i64))
    padding = prop_def(IntArg(0), default_value=IntegerAttr(0, i64))
    groups = prop_def(IntArg(), default_value=IntegerAttr(1, i64))
    bias = prop_def(BoolArg(), default_value=IntegerAttr.from_bool(False))

    @classmethod
    def infer(cls, operands: Sequence[Tensor], arguments: Mapping[str, Any]) -> Inference:
        (x,) = operands
        batch, depth, _, _ = need_exact_rank(x, 4, LAYOUT)
        channels, groups, kernel = arguments["channels"], arguments["groups"], arguments["kernel"]
        if depth % groups or channels % groups:
            raise ShapeError(f"groups = {groups} divides not both channels = {channels} and those of {show(x)}")
        weights = channels * (depth // groups * kernel * kernel + (1 if arguments["bias"] else 0))
        result = TensorType(x.element_type, (batch, channels, *_window(x, arguments)))
        return Inference((result,), weights * element_bytes(x.element_type))


class PoolOp(OperatorOp, ABC):
    """A square window over each channel: ``[n, c, h, w] -> [n, c, h', w']``, sizes as in a convolution."""

    kernel = prop_def(IntArg())
    stride = prop_def(IntArg())
    padding = prop_def(IntArg(0), default_value=IntegerAttr(0, i64))

    @classmethod
    def infer(cls, operands: Sequence[Tensor], arguments: Mapping[str, Any]) -> Inference:
        (x,) = operands
        batch, depth, _, _ = need_exact_rank(x, 4, LAYOUT)
        if 2 * arguments["padding"] > arguments["kernel"]:
            # A wider margin would leave windows without a single element of x.
            raise ShapeError(f"padding = {arguments['padding']} exceeds half of kernel = {arguments['kernel']}")
        return Inference((TensorType(x.element_type, (batch, depth, *_window(x, arguments))),))


@irdl_op_definition
class MaxPoolOp(PoolOp):
    """Largest element of each window."""

    name = "takt.max_pool"


@irdl_op_definition
class AvgPoolOp(PoolOp):
    """Mean of each window."""

    name = "takt.avg_pool"


@irdl_op_definition
class GlobalAvgPoolOp(OperatorOp):
    """Mean of each channel: ``[n, c, h, w] -> [n, c]``."""

    name = "takt.global_avg_pool"

    @classmethod
    def infer(cls, operands: Sequence[Tensor], arguments: Mapping[str, Any]) -> Inference:
        (x,) = operands
        need_float(x)
        batch, depth, _, _ = need_exact_rank(x, 4, LAYOUT)
        return Inference((TensorType(x.element_type, (batch, depth)),))


# --- layout ----------------------------------------------------------------------------------


@irdl_op_definition
class ConcatOp(OperatorOp):
    """Joins tensors along ``axis``; their types agree in everything else."""

    name = "takt.concat"
    ARITY: ClassVar[tuple[int, int | None]] = (1, None)

    axis = prop_def(IntArg(None))

    @classmethod
    def infer(cls, operands: Sequence[Tensor], arguments: Mapping[str, Any]) -> Inference:
        first = operands[0]
        axis = resolve_axis(first, arguments["axis"])
        shape = first.get_shape()
        for other in operands[1:]:
            there = other.get_shape()
            same = len(there) == len(shape) and there[:axis] == shape[:axis] and there[axis + 1 :] == shape[axis + 1 :]
            if not same or other.element_type != first.element_type:
                raise ShapeError(f"operands differ outside axis {axis}: {show(first)} and {show(other)}")
        total = sum(x.get_shape()[axis] for x in operands)
        return Inference((TensorType(first.element_type, (*shape[:axis], total, *shape[axis + 1 :])),))


@irdl_op_definition
class SplitOp(OperatorOp):
    """Cuts a tensor into ``parts`` equal parts along ``axis``: that many results."""

    name = "takt.split"

    parts = prop_def(IntArg())
    axis = prop_def(IntArg(None))

    @classmethod
    def infer(cls, operands: Sequence[Tensor], arguments: Mapping[str, Any]) -> Inference:
        (x,) = operands
        parts: int = arguments["parts"]
        axis = resolve_axis(x, arguments["axis"])
        shape = x.get_shape()
        if shape[axis] % parts:
            raise ShapeError(f"dimension {axis} of {show(x)} does not split into {parts} equal parts")
        if parts > max(1, shape[axis]):
            raise ShapeError(f"dimension {axis} of {show(x)} has fewer than {parts} elements")
        part = TensorType(x.element_type, (*shape[:axis], shape[axis] // parts, *shape[axis + 1 :]))
        return Inference((part,) * parts)


@irdl_op_definition
class ReshapeOp(OperatorOp):
    """The same elements in another shape of as many."""

    name = "takt.reshape"

    shape = prop_def(IntListArg(1))

    @classmethod
    def infer(cls, operands: Sequence[Tensor], arguments: Mapping[str, Any]) -> Inference:
        (x,) = operands
        result = TensorType(x.element_type, arguments["shape"])
        if prod(arguments["shape"]) != prod(x.get_shape()):
            raise ShapeError(f"number of elements differs: {show(x)} and {show(result)}")
        return Inference((result,))


@irdl_op_definition
class TransposeOp(OperatorOp):
    """Dimensions in a new order: dimension ``i`` of the result is dimension ``order[i]`` of the operand."""

    name = "takt.transpose"

    order = prop_def(IntListArg(0))

    @classmethod
    def infer(cls, operands: Sequence[Tensor], arguments: Mapping[str, Any]) -> Inference:
        (x,) = operands
        order: tuple[int, ...] = arguments["order"]
        shape = x.get_shape()
        if sorted(order) != list(range(len(shape))):
            raise ShapeError(f"order {list(order)} is no permutation of the {len(shape)} dimensions of {show(x)}")
        return Inference((TensorType(x.element_type, [shape[i] for i in order]),))


@irdl_op_definition
class SliceOp(OperatorOp):
    """``length`` consecutive elements along ``axis``, from ``start``."""

    name = "takt.slice"

    axis = prop_def(IntArg(None))
    start = prop_def(IntArg(0))
    length = prop_def(IntArg())

    @classmethod
    def infer(cls, operands: Sequence[Tensor], arguments: Mapping[str, Any]) -> Inference:
        (x,) = operands
        axis = resolve_axis(x, arguments["axis"])
        shape = x.get_shape()
        start, length = arguments["start"], arguments["length"]
        if start + length > shape[axis]:
            raise ShapeError(f"elements {start} to {start + length} of axis {axis} are outside {show(x)}")
        return Inference((TensorType(x.element_type, (*shape[:axis], length, *shape[axis + 1 :])),))
