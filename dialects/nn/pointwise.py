"""Element-wise operators, normalisation, softmax, reduction and losses."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from xdsl.dialects.builtin import IntegerAttr, StringAttr, TensorType, f32, i64
from xdsl.irdl import irdl_op_definition, prop_def

from dialects.arguments import ChoiceArg, IntArg
from dialects.nn.base import Inference, OperatorOp, ShapeError, Tensor, element_bytes, show
from dialects.nn.shapes import need_float, need_integer, need_rank, resolve_axis

# --- two operands ----------------------------------------------------------------------------


class BinaryOp(OperatorOp, ABC):
    """Two operands of one type; the result has it too."""

    ARITY: ClassVar[tuple[int, int | None]] = (2, 2)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], arguments: Mapping[str, Any]) -> Inference:
        a, b = operands
        if a != b:
            raise ShapeError(f"operands differ: {show(a)} and {show(b)}")
        return Inference((a,))


@irdl_op_definition
class AddOp(BinaryOp):
    """Sum of two tensors of one type."""

    name = "takt.add"


@irdl_op_definition
class SubOp(BinaryOp):
    """Difference of two tensors of one type."""

    name = "takt.sub"


@irdl_op_definition
class MulOp(BinaryOp):
    """Element-wise product of two tensors of one type."""

    name = "takt.mul"


@irdl_op_definition
class ResidualOp(BinaryOp):
    """Sum of a value and the branch computed from it; an addition that a person recognises in a dump."""

    name = "takt.residual"


# --- one operand -----------------------------------------------------------------------------


class UnaryOp(OperatorOp, ABC):
    """One operand; the result has its type."""

    @classmethod
    def infer(cls, operands: Sequence[Tensor], arguments: Mapping[str, Any]) -> Inference:
        return Inference((operands[0],))


class ActivationOp(UnaryOp, ABC):
    """One operand of floating-point numbers; the result has its type."""

    @classmethod
    def infer(cls, operands: Sequence[Tensor], arguments: Mapping[str, Any]) -> Inference:
        need_float(operands[0])
        return Inference((operands[0],))


@irdl_op_definition
class GeluOp(ActivationOp):
    """Gaussian error linear unit."""

    name = "takt.gelu"


@irdl_op_definition
class ReluOp(UnaryOp):
    """The positive part."""

    name = "takt.relu"


@irdl_op_definition
class SiluOp(ActivationOp):
    """Sigmoid linear unit, ``x * sigmoid(x)``."""

    name = "takt.silu"


@irdl_op_definition
class TanhOp(ActivationOp):
    """Hyperbolic tangent."""

    name = "takt.tanh"


@irdl_op_definition
class SigmoidOp(ActivationOp):
    """Logistic function."""

    name = "takt.sigmoid"


# --- normalisation ---------------------------------------------------------------------------


@irdl_op_definition
class LayerNormOp(OperatorOp):
    """Normalises the last dimension ``d`` of ``[..., d]``; same type. Parameters: scale and shift, ``2d``."""

    name = "takt.layer_norm"

    @classmethod
    def infer(cls, operands: Sequence[Tensor], arguments: Mapping[str, Any]) -> Inference:
        (x,) = operands
        need_float(x)
        return Inference((x,), 2 * need_rank(x, 1)[-1] * element_bytes(x.element_type))


@irdl_op_definition
class RmsNormOp(OperatorOp):
    """Divides by the root mean square over the last dimension ``d``; same type. Parameters: scale, ``d``."""

    name = "takt.rms_norm"

    @classmethod
    def infer(cls, operands: Sequence[Tensor], arguments: Mapping[str, Any]) -> Inference:
        (x,) = operands
        need_float(x)
        return Inference((x,), need_rank(x, 1)[-1] * element_bytes(x.element_type))


@irdl_op_definition
class BatchNormOp(OperatorOp):
    """Normalises each channel of ``[n, c, ...]``; same type.

    Parameters: scale, shift, running mean and running variance, ``4c``.
    """

    name = "takt.batch_norm"

    @classmethod
    def infer(cls, operands: Sequence[Tensor], arguments: Mapping[str, Any]) -> Inference:
        (x,) = operands
        need_float(x)
        return Inference((x,), 4 * need_rank(x, 2)[1] * element_bytes(x.element_type))


@irdl_op_definition
class SoftmaxOp(OperatorOp):
    """Exponentials along ``axis``, scaled to sum to one; same type."""

    name = "takt.softmax"

    axis = prop_def(IntArg(None), default_value=IntegerAttr(-1, i64))

    @classmethod
    def infer(cls, operands: Sequence[Tensor], arguments: Mapping[str, Any]) -> Inference:
        (x,) = operands
        need_float(x)
        resolve_axis(x, arguments["axis"])
        return Inference((x,))


# --- reduction -------------------------------------------------------------------------------


@irdl_op_definition
class ReduceOp(OperatorOp):
    """Sum, mean or maximum along ``axis``, which disappears from the shape."""

    name = "takt.reduce"

    axis = prop_def(IntArg(None))
    kind_ = prop_def(ChoiceArg(("sum", "mean", "max")), default_value=StringAttr("sum"), prop_name="kind")

    @classmethod
    def infer(cls, operands: Sequence[Tensor], arguments: Mapping[str, Any]) -> Inference:
        (x,) = operands
        axis = resolve_axis(x, arguments["axis"])
        shape = x.get_shape()
        return Inference((TensorType(x.element_type, (*shape[:axis], *shape[axis + 1 :])),))


@irdl_op_definition
class CrossEntropyOp(OperatorOp):
    """Mean cross entropy: ``logits [..., classes], labels [...] -> tensor<f32>``; labels are integers."""

    name = "takt.cross_entropy"
    ARITY: ClassVar[tuple[int, int | None]] = (2, 2)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], arguments: Mapping[str, Any]) -> Inference:
        logits, labels = operands
        shape = need_rank(logits, 1, "logits")
        need_float(logits, "logits")
        need_integer(labels, "labels")
        if labels.get_shape() != shape[:-1]:
            raise ShapeError(
                f"labels must have the shape of the logits without the classes: {show(logits)} and {show(labels)}"
            )
        return Inference((TensorType(f32, ()),))


@irdl_op_definition
class MseLossOp(OperatorOp):
    """Mean squared difference of two tensors of one type: ``-> tensor<f32>``."""

    name = "takt.mse_loss"
    ARITY: ClassVar[tuple[int, int | None]] = (2, 2)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], arguments: Mapping[str, Any]) -> Inference:
        a, b = operands
        need_float(a)
        if a != b:
            raise ShapeError(f"operands differ: {show(a)} and {show(b)}")
        return Inference((TensorType(f32, ()),))
