"""Shapes, parameters and arguments of every operator: one case that fits, one that does not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from xdsl.dialects import test as xdsl_test
from xdsl.dialects.builtin import IndexType, TensorType, bf16, f32, i1, i8, i32, i64
from xdsl.ir import Attribute
from xdsl.utils.exceptions import VerifyException

from dialects.operators import OPERATORS, OperatorOp, ShapeError, Tensor, check_tensor, element_bytes, show

BY_KIND: dict[str, type[OperatorOp]] = {cls.kind(): cls for cls in OPERATORS}


def t(*shape: int, of: Attribute = bf16) -> Tensor:
    return TensorType(of, shape)


def infer(kind: str, operands: list[Tensor], arguments: dict[str, Any]):
    signature = BY_KIND[kind].signature()
    given = {name: arguments.get(name, default) for name, (_, default, _) in signature.items()}
    return BY_KIND[kind].infer(operands, given)


@dataclass
class Accept:
    kind: str
    operands: list[Tensor]
    results: list[Tensor]
    params: int = 0
    arguments: dict[str, Any] = field(default_factory=dict)


X = t(2, 8, 6)

ACCEPT = [
    Accept("linear", [X], [t(2, 8, 10)], 2 * 6 * 10, {"features": 10}),
    Accept("linear", [X], [t(2, 8, 10)], 2 * 7 * 10, {"features": 10, "bias": True, "split": "row"}),
    Accept("matmul", [X, t(2, 6, 5)], [t(2, 8, 5)]),
    Accept("matmul", [X, t(6, 5)], [t(2, 8, 5)]),
    Accept("matmul", [X, t(2, 5, 6)], [t(2, 8, 5)], 0, {"transpose_b": True}),
    Accept("attention", [X, t(2, 9, 6), t(2, 9, 6)], [X], 0, {"heads": 3}),
    Accept("attention", [t(2, 8, 12), t(2, 9, 6), t(2, 9, 6)], [t(2, 8, 12)], 0, {"heads": 4, "kv_heads": 2}),
    Accept("layer_norm", [X], [X], 2 * 6 * 2),
    Accept("rms_norm", [X], [X], 6 * 2),
    Accept("batch_norm", [t(2, 3, 5, 5, of=f32)], [t(2, 3, 5, 5, of=f32)], 4 * 3 * 4),
    Accept("softmax", [X], [X]),
    Accept("softmax", [X], [X], 0, {"axis": 1}),
    Accept("embedding", [t(2, 8, of=i32)], [t(2, 8, 4)], 100 * 4 * 2, {"vocab": 100, "dim": 4}),
    Accept("embedding", [t(2, of=i64)], [t(2, 4, of=f32)], 100 * 4 * 4, {"vocab": 100, "dim": 4, "dtype": "f32"}),
    Accept("position_embedding", [X], [X], 8 * 6 * 2),
    Accept("rotary", [X], [X]),
    *(Accept(kind, [X, X], [X]) for kind in ("add", "sub", "mul", "residual")),
    *(Accept(kind, [X], [X]) for kind in ("gelu", "relu", "silu", "tanh", "sigmoid")),
    Accept("router", [X], [t(2, 8, 4)], 6 * 4 * 2, {"experts": 4, "top_k": 2}),
    Accept("experts", [X, t(2, 8, 4)], [X], 4 * 3 * 6 * 9 * 2, {"experts": 4, "top_k": 2, "hidden": 9}),
    Accept("experts", [X, t(2, 8, 4)], [X], 4 * 2 * 6 * 9 * 2, {"experts": 4, "top_k": 4, "hidden": 9, "gated": False}),
    Accept("conv2d", [t(1, 3, 8, 9)], [t(1, 4, 6, 7)], 4 * 3 * 9 * 2, {"channels": 4, "kernel": 3}),
    Accept(
        "conv2d",
        [t(1, 4, 8, 9)],
        [t(1, 6, 4, 5)],
        (6 * 2 * 9 + 6) * 2,
        {"channels": 6, "kernel": 3, "stride": 2, "padding": 1, "groups": 2, "bias": True},
    ),
    Accept("max_pool", [t(1, 3, 8, 8)], [t(1, 3, 4, 4)], 0, {"kernel": 3, "stride": 2, "padding": 1}),
    Accept("avg_pool", [t(1, 3, 8, 8)], [t(1, 3, 4, 4)], 0, {"kernel": 2, "stride": 2}),
    Accept("global_avg_pool", [t(1, 3, 8, 8)], [t(1, 3)]),
    Accept("concat", [X, t(2, 3, 6)], [t(2, 11, 6)], 0, {"axis": 1}),
    Accept("concat", [X], [X], 0, {"axis": -1}),
    Accept("split", [X], [t(2, 8, 2)] * 3, 0, {"parts": 3, "axis": -1}),
    Accept("reshape", [X], [t(16, 6)], 0, {"shape": (16, 6)}),
    Accept("transpose", [X], [t(6, 2, 8)], 0, {"order": (2, 0, 1)}),
    Accept("slice", [X], [t(2, 3, 6)], 0, {"axis": 1, "start": 5, "length": 3}),
    Accept("reduce", [X], [t(2, 6)], 0, {"axis": 1, "kind": "mean"}),
    Accept("reduce", [t(5)], [t()], 0, {"axis": -1}),
    Accept("cross_entropy", [X, t(2, 8, of=i32)], [t(of=f32)]),
    Accept("mse_loss", [X, X], [t(of=f32)]),
]


@pytest.mark.parametrize("case", ACCEPT, ids=lambda c: c.kind)
def test_infers_and_verifies(case: Accept):
    inferred = infer(case.kind, case.operands, case.arguments)
    assert list(inferred.results) == case.results
    assert inferred.params == case.params
    operands = xdsl_test.TestOp(result_types=case.operands).results
    op = BY_KIND[case.kind].make(operands, case.arguments, inferred.results, inferred.params)
    op.verify()
    for name, value in case.arguments.items():
        assert op.arguments()[name] == value


S = "tensor<2 x 8 x 6, bf16>"

REJECT = [
    ("linear", [t()], {"features": 3}, "at least 1 dimension, got tensor<bf16>"),
    ("matmul", [X, t(2, 7, 5)], {}, f"inner dimensions 6 and 7 differ: {S} and tensor<2 x 7 x 5, bf16>"),
    ("matmul", [X, t(3, 6, 5)], {}, f"leading dimensions differ: {S} and tensor<3 x 6 x 5, bf16>"),
    ("matmul", [X, t(6)], {}, "at least 2 dimensions, got tensor<6, bf16>"),
    ("matmul", [X, t(2, 6, 5, of=f32)], {}, f"element types differ: {S} and tensor<2 x 6 x 5, f32>"),
    ("attention", [X, X, t(2, 9, 6)], {"heads": 3}, f"key and value differ: {S} and tensor<2 x 9 x 6, bf16>"),
    ("attention", [X, X, X], {"heads": 4}, "does not split into 4 heads"),
    ("attention", [X, X, X], {"heads": 3, "kv_heads": 2}, "heads = 3 is not a multiple of kv_heads = 2"),
    ("attention", [t(2, 8, 12), X, X], {"heads": 4}, f"query tensor<2 x 8 x 12, bf16> and key {S}"),
    ("attention", [t(3, 8, 6), X, X], {"heads": 3}, f"tensor<3 x 8 x 6, bf16> and {S}"),
    ("layer_norm", [t(2, 8, of=i32)], {}, "floating-point numbers, got tensor<2 x 8, i32>"),
    ("rms_norm", [t()], {}, "at least 1 dimension"),
    ("batch_norm", [t(4)], {}, "at least 2 dimensions, got tensor<4, bf16>"),
    ("softmax", [X], {"axis": 3}, f"axis 3 is outside {S}, which has 3 dimensions"),
    ("embedding", [X], {"vocab": 3, "dim": 4}, f"ids must hold integers, got {S}"),
    ("embedding", [t(2, of=i1)], {"vocab": 3, "dim": 4}, "ids must hold integers"),
    ("position_embedding", [t(6)], {}, "at least 2 dimensions"),
    ("rotary", [t(2, 7)], {}, "even, got tensor<2 x 7, bf16>"),
    *((kind, [X, t(2, 8)], {}, f"{S} and tensor<2 x 8, bf16>") for kind in ("add", "sub", "mul", "residual")),
    *((kind, [t(2, of=i32)], {}, "got tensor<2, i32>") for kind in ("gelu", "silu", "tanh", "sigmoid")),
    ("router", [X], {"experts": 2, "top_k": 3}, "top_k = 3 exceeds experts = 2"),
    (
        "experts",
        [X, t(2, 8, 5)],
        {"experts": 4, "top_k": 2, "hidden": 9},
        f"routes of {S} must be tensor<2 x 8 x 4, bf16>, got tensor<2 x 8 x 5, bf16>",
    ),
    ("conv2d", [X], {"channels": 3, "kernel": 1}, f"[batch, channels, height, width], got {S}"),
    ("conv2d", [t(1, 3, 2, 2)], {"channels": 3, "kernel": 3}, "does not fit in tensor<1 x 3 x 2 x 2, bf16>"),
    ("conv2d", [t(1, 3, 2, 2)], {"channels": 4, "kernel": 1, "groups": 2}, "groups = 2"),
    ("max_pool", [t(1, 3, 8, 8)], {"kernel": 3, "stride": 1, "padding": 2}, "exceeds half of kernel = 3"),
    ("avg_pool", [X], {"kernel": 3, "stride": 1}, f"got {S}"),
    ("global_avg_pool", [X], {}, f"got {S}"),
    ("concat", [X, t(2, 8)], {"axis": 1}, f"differ outside axis 1: {S} and tensor<2 x 8, bf16>"),
    ("split", [X], {"parts": 4, "axis": 2}, f"dimension 2 of {S} does not split into 4 equal parts"),
    ("reshape", [X], {"shape": (5, 5)}, f"number of elements differs: {S} and tensor<5 x 5, bf16>"),
    ("transpose", [X], {"order": (0, 1, 1)}, f"no permutation of the 3 dimensions of {S}"),
    ("slice", [X], {"axis": 1, "start": 6, "length": 3}, f"elements 6 to 9 of axis 1 are outside {S}"),
    ("reduce", [X], {"axis": -4}, f"axis -4 is outside {S}"),
    ("cross_entropy", [X, t(2, 9, of=i32)], {}, f"{S} and tensor<2 x 9, i32>"),
    ("cross_entropy", [X, t(2, 8)], {}, "labels must hold integers"),
    ("mse_loss", [X, t(2, 8)], {}, f"operands differ: {S} and tensor<2 x 8, bf16>"),
]


@pytest.mark.parametrize(("kind", "operands", "arguments", "message"), REJECT)
def test_names_the_shapes_that_do_not_fit(kind: str, operands: list[Tensor], arguments: dict[str, Any], message: str):
    with pytest.raises(ShapeError) as error:
        infer(kind, operands, arguments)
    assert message in str(error.value)


def test_every_operator_has_a_case():
    stated = {"op"}  # its results are stated, not inferred
    # relu takes any numbers: nothing about its one operand can be wrong
    assert {c.kind for c in ACCEPT} | stated == set(BY_KIND)
    assert {kind for kind, *_ in REJECT} | stated | {"relu"} == set(BY_KIND)


@pytest.mark.parametrize("cls", OPERATORS, ids=lambda c: c.kind())
def test_wrong_number_of_operands_is_refused(cls: type[OperatorOp]):
    least, most = cls.ARITY
    wrong = most + 1 if most is not None else least - 1
    if wrong < 0:
        pytest.skip("takes any number of operands")
    arguments = {"features": 1, "heads": 1, "vocab": 1, "dim": 1, "experts": 1, "top_k": 1, "hidden": 1, "channels": 1}
    arguments |= {"kernel": 1, "stride": 1, "axis": 0, "parts": 1, "start": 0, "length": 1}
    listed: dict[str, Any] = {**arguments, "shape": [1], "order": [0]}
    used = {name: listed[name] for name, (_, _, required) in cls.signature().items() if required}
    op = cls.make(xdsl_test.TestOp(result_types=[X] * wrong).results, used, [X], 0)
    with pytest.raises(VerifyException, match=rf"takes {least}.* operands?, got {wrong}"):
        op.verify()


def test_result_must_be_the_inferred_one():
    op = BY_KIND["gelu"].make(xdsl_test.TestOp(result_types=[X]).results, {}, [t(2, 8)], 0)
    with pytest.raises(VerifyException, match=r"gives tensor<2 x 8 x 6, bf16>, but the result is tensor<2 x 8, bf16>"):
        op.verify()


def test_dynamic_shapes_and_foreign_elements_are_refused():
    for bad, message in ((t(-1, 8), "must be known"), (t(2, of=IndexType()), "element type index")):
        op = BY_KIND["op"].make(xdsl_test.TestOp(result_types=[bad]).results, {}, [t(0, of=i8)], 0)
        with pytest.raises(VerifyException, match=message):
            op.verify()
    with pytest.raises(ShapeError, match="64 bits"):
        check_tensor(t(2**40, 2**40))
    with pytest.raises(ShapeError, match="64 bits"):
        infer("linear", [t(2**33)], {"features": 2**33})


def test_arguments_outside_their_range_are_refused():
    signature = BY_KIND["linear"].signature()
    for name, bad in (("features", 0), ("features", True), ("features", 2**63), ("bias", 1), ("split", "rows")):
        constraint, _, _ = signature[name]
        with pytest.raises(ValueError, match=r"an integer|true or false|one of"):
            constraint.encode(bad)
    assert signature["bias"][1:] == (False, False)
    assert signature["features"][1:] == (None, True)
    assert BY_KIND["attention"].signature()["kv_heads"][1:] == (None, False)
    assert BY_KIND["linear"].signature() is signature


def test_element_sizes_and_source_notation():
    assert [element_bytes(e) for e in (bf16, f32, i1, i8, i64)] == [2, 4, 1, 1, 8]
    assert show(t(2, 3)) == "tensor<2 x 3, bf16>"
    assert show(t()) == "tensor<bf16>"
