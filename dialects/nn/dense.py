"""Matrix products, attention, embeddings and mixtures of experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from xdsl.dialects.builtin import IntegerAttr, StringAttr, TensorType
from xdsl.irdl import irdl_op_definition, opt_prop_def, prop_def

from dialects.arguments import BoolArg, ChoiceArg, IntArg
from dialects.nn.base import ELEMENT_TYPES, Inference, OperatorOp, ShapeError, Tensor, element_bytes, show
from dialects.nn.shapes import need_exact_rank, need_float, need_integer, need_rank

FALSE = IntegerAttr.from_bool(False)
TRUE = IntegerAttr.from_bool(True)


@irdl_op_definition
class LinearOp(OperatorOp):
    """Product with a weight of shape ``in x features``: ``[..., in] -> [..., features]``.

    ``split`` says how several accelerators share it: by columns of the weight (the result comes out
    split) or by rows (partial sums are all-reduced). Parameters: the weight and, with ``bias``, one
    number per feature, in the operand's element type.
    """

    name = "takt.linear"

    features = prop_def(IntArg())
    bias = prop_def(BoolArg(), default_value=FALSE)
    split = prop_def(ChoiceArg(("column", "row")), default_value=StringAttr("column"))

    @classmethod
    def infer(cls, operands: Sequence[Tensor], arguments: Mapping[str, Any]) -> Inference:
        (x,) = operands
        shape = need_rank(x, 1)
        features: int = arguments["features"]
        weights = (shape[-1] + (1 if arguments["bias"] else 0)) * features
        result = TensorType(x.element_type, (*shape[:-1], features))
        return Inference((result,), weights * element_bytes(x.element_type))


@irdl_op_definition
class MatmulOp(OperatorOp):
    """Product of two values: ``[..., m, k], [..., k, n] -> [..., m, n]``.

    With ``transpose_b`` the second operand is ``[..., n, k]``. The leading dimensions of both are
    equal, or the second operand is a plain matrix.
    """

    name = "takt.matmul"
    ARITY: ClassVar[tuple[int, int | None]] = (2, 2)

    transpose_b = prop_def(BoolArg(), default_value=FALSE)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], arguments: Mapping[str, Any]) -> Inference:
        a, b = operands
        left, right = need_rank(a, 2), need_rank(b, 2)
        both = f"{show(a)} and {show(b)}"
        if a.element_type != b.element_type:
            raise ShapeError(f"element types differ: {both}")
        rows, columns = right[-2], right[-1]
        if len(right) > 2 and left[:-2] != right[:-2]:
            raise ShapeError(f"leading dimensions differ: {both}")
        inner, columns = (columns, rows) if arguments["transpose_b"] else (rows, columns)
        if left[-1] != inner:
            transposed = " (the second transposed)" if arguments["transpose_b"] else ""
            raise ShapeError(f"inner dimensions {left[-1]} and {inner} differ: {both}{transposed}")
        return Inference((TensorType(a.element_type, (*left[:-1], columns)),))


@irdl_op_definition
class AttentionOp(OperatorOp):
    """Scaled dot-product attention.

    ``q [b, s, heads*hd], k [b, t, kv_heads*hd], v [b, t, kv_heads*hd] -> [b, s, heads*hd]``.
    Fewer ``kv_heads`` than ``heads`` is grouped-query attention; left out, they are equal.
    With ``causal``, a position sees itself and those before it.
    """

    name = "takt.attention"
    ARITY: ClassVar[tuple[int, int | None]] = (3, 3)

    heads = prop_def(IntArg())
    kv_heads = opt_prop_def(IntArg())
    causal = prop_def(BoolArg(), default_value=FALSE)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], arguments: Mapping[str, Any]) -> Inference:
        q, k, v = operands
        heads: int = arguments["heads"]
        kv_heads: int = arguments["kv_heads"] or heads
        batch, _, width = need_exact_rank(q, 3, "batch, sequence, heads * head size", "query")
        kv_batch, _, kv_width = need_exact_rank(k, 3, "batch, sequence, kv_heads * head size", "key")
        need_float(q, "query")
        if k != v:
            raise ShapeError(f"key and value differ: {show(k)} and {show(v)}")
        if batch != kv_batch or q.element_type != k.element_type:
            raise ShapeError(f"query and key differ in batch or element type: {show(q)} and {show(k)}")
        if heads % kv_heads:
            raise ShapeError(f"heads = {heads} is not a multiple of kv_heads = {kv_heads}")
        if width % heads:
            raise ShapeError(f"query {show(q)} does not split into {heads} heads")
        if kv_width != width // heads * kv_heads:
            raise ShapeError(
                f"{kv_heads} key heads of size {width // heads} need a last dimension of "
                f"{width // heads * kv_heads}: query {show(q)} and key {show(k)}"
            )
        return Inference((q,))


@irdl_op_definition
class EmbeddingOp(OperatorOp):
    """Rows of a learned table of ``vocab x dim``: ids ``[...] -> [..., dim]`` of element type ``dtype``."""

    name = "takt.embedding"

    vocab = prop_def(IntArg())
    dim = prop_def(IntArg())
    dtype = prop_def(ChoiceArg(("bf16", "f16", "f32", "f64")), default_value=StringAttr("bf16"))

    @classmethod
    def infer(cls, operands: Sequence[Tensor], arguments: Mapping[str, Any]) -> Inference:
        (ids,) = operands
        need_integer(ids, "ids")
        element = ELEMENT_TYPES[arguments["dtype"]]
        table = arguments["vocab"] * arguments["dim"] * element_bytes(element)
        return Inference((TensorType(element, (*ids.get_shape(), arguments["dim"])),), table)


@irdl_op_definition
class PositionEmbeddingOp(OperatorOp):
    """Adds a learned table of ``s x d`` to ``[..., s, d]``; same type."""

    name = "takt.position_embedding"

    @classmethod
    def infer(cls, operands: Sequence[Tensor], arguments: Mapping[str, Any]) -> Inference:
        (x,) = operands
        shape = need_rank(x, 2)
        need_float(x)
        return Inference((x,), shape[-2] * shape[-1] * element_bytes(x.element_type))


@irdl_op_definition
class RotaryOp(OperatorOp):
    """Rotary position embedding of ``[..., s, d]``: rotates pairs of numbers, so ``d`` is even; same type."""

    name = "takt.rotary"

    @classmethod
    def infer(cls, operands: Sequence[Tensor], arguments: Mapping[str, Any]) -> Inference:
        (x,) = operands
        need_float(x)
        if need_rank(x, 2)[-1] % 2:
            raise ShapeError(f"the last dimension must be even, got {show(x)}")
        return Inference((x,))


def _check_top_k(arguments: Mapping[str, Any]) -> None:
    if arguments["top_k"] > arguments["experts"]:
        raise ShapeError(f"top_k = {arguments['top_k']} exceeds experts = {arguments['experts']}")


@irdl_op_definition
class RouterOp(OperatorOp):
    """Weights of the ``top_k`` experts chosen for each token: ``[..., d] -> [..., experts]``.

    Parameters: a matrix of ``d x experts``.
    """

    name = "takt.router"

    experts = prop_def(IntArg())
    top_k = prop_def(IntArg())

    @classmethod
    def infer(cls, operands: Sequence[Tensor], arguments: Mapping[str, Any]) -> Inference:
        (x,) = operands
        shape = need_rank(x, 1)
        need_float(x)
        _check_top_k(arguments)
        experts: int = arguments["experts"]
        result = TensorType(x.element_type, (*shape[:-1], experts))
        return Inference((result,), shape[-1] * experts * element_bytes(x.element_type))


@irdl_op_definition
class ExpertsOp(OperatorOp):
    """Each token through its ``top_k`` of ``experts`` two-layer networks, results mixed by ``routes``.

    ``x [..., d], routes [..., experts] -> [..., d]``. An expert has a ``d x hidden`` and a
    ``hidden x d`` matrix, and with ``gated`` a second ``d x hidden`` one.
    """

    name = "takt.experts"
    ARITY: ClassVar[tuple[int, int | None]] = (2, 2)

    experts = prop_def(IntArg())
    top_k = prop_def(IntArg())
    hidden = prop_def(IntArg())
    gated = prop_def(BoolArg(), default_value=TRUE)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], arguments: Mapping[str, Any]) -> Inference:
        x, routes = operands
        shape = need_rank(x, 1)
        need_float(x)
        _check_top_k(arguments)
        wanted = TensorType(routes.element_type, (*shape[:-1], arguments["experts"]))
        if routes != wanted:
            raise ShapeError(f"routes of {show(x)} must be {show(wanted)}, got {show(routes)}")
        matrices = 3 if arguments["gated"] else 2
        weights = arguments["experts"] * matrices * shape[-1] * arguments["hidden"]
        return Inference((x,), weights * element_bytes(x.element_type))
