"""Work of every kind of operator on k accelerators, computed by hand for one shape each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xdsl.dialects.builtin import TensorType

from dialects.operators import ELEMENT_TYPES, OPERATORS, element_bytes
from dialects.operators import Tensor as TensorAttr
from passes.costs.call import Call, Layout, Tensor
from passes.costs.collectives import Collective
from passes.costs.kinds import RULES, rule_of
from passes.costs.layout import Placed
from passes.costs.machine import Link, Machine
from passes.costs.table import collectives, cost_row, cost_table

MACHINE = Machine(64, 10**12, 1000, {"bf16": 10**14}, links=(Link("all", 64, 30_000, 10**11),))
KINDS = {cls.kind(): cls for cls in OPERATORS}


def plain(type_: TensorAttr) -> Tensor:
    return Tensor(type_.get_shape(), str(type_.element_type), element_bytes(type_.element_type))


def make_call(kind: str, *shapes: tuple[int, ...], dtypes: tuple[str, ...] = (), **given: Any) -> Call:
    """A call of operator ``kind`` on operands of these shapes (bf16 unless ``dtypes`` says else)."""
    cls = KINDS[kind]
    names = dtypes or ("bf16",) * len(shapes)
    operands = [TensorType(ELEMENT_TYPES[n], s) for n, s in zip(names, shapes, strict=True)]
    arguments = {name: given.get(name, default) for name, (_, default, _) in cls.signature().items()}
    inferred = cls.infer(operands, arguments)
    return Call(kind, tuple(map(plain, operands)), tuple(map(plain, inferred.results)), arguments, inferred.params)


def placed(call: Call, *arriving: Layout, stays: bool = True, wanted: Layout = None) -> Placed:
    """``call`` with operands arriving as given (whole by default); results stay as made, or else leave whole."""
    here = arriving or (None,) * len(call.operands)
    plan = rule_of(call).plan(call, here, (wanted,) * len(call.results))
    return Placed(call, plan, here, plan.makes if stays else (None,) * len(call.results))


def work(at: Placed, k: int) -> tuple[int, int, int]:
    """FLOPs, bytes moved, parameter bytes on each of k accelerators."""
    rule = rule_of(at.call)
    return rule.flops(at.call, at.plan, k), rule.moved(at.call, at.plan, k), rule.params(at.call, at.plan, k)


def admissible(at: Placed, most: int = 64) -> list[int]:
    return list(cost_table(MACHINE, at, range(1, most + 1)))


def test_every_operator_has_a_rule():
    assert {"linear", *RULES} == set(KINDS)


# --- linear ----------------------------------------------------------------------------------


def test_column_linear():
    at = placed(make_call("linear", (2, 8, 16), features=32, bias=True))
    flops, weight = 2 * 16 * 16 * 32, 2 * 17 * 32
    assert work(at, 1) == (flops, 2 * 16 * 16 + 2 * 16 * 32 + weight, weight)
    assert work(at, 4) == (flops // 4, 2 * 16 * 16 + 2 * 16 * 8 + weight // 4, weight // 4)
    assert at.leaving == (2,)
    assert collectives(at, 4) == ()
    assert admissible(at) == [1, 2, 4, 8, 16, 32]


def test_column_linear_that_must_leave_whole_is_gathered():
    at = placed(make_call("linear", (2, 8, 16), features=32), stays=False)
    assert collectives(at, 4) == (Collective("all_gather", 2 * 16 * 32, 4),)
    row = cost_row(MACHINE, at, 4)
    assert row is not None
    assert row.output == 2 * 16 * 32
    # 3/4 of 1024 bytes at 100 GB/s after 30 us
    assert row.communication == pytest.approx(30_000 + 7.68)


def test_row_linear():
    at = placed(make_call("linear", (2, 8, 16), features=32, bias=True, split="row"), 2)
    flops, weight, bias = 2 * 16 * 16 * 32, 2 * 16 * 32, 2 * 32
    assert work(at, 1) == (flops, 2 * 16 * 16 + 2 * 16 * 32 + weight + bias, weight + bias)
    assert work(at, 4) == (flops // 4, 2 * 16 * 4 + 2 * 16 * 32 + weight // 4 + bias, weight // 4 + bias)
    assert collectives(at, 4) == (Collective("all_reduce", 2 * 16 * 32, 4),)
    assert admissible(at) == [1, 2, 4, 8, 16]


def test_row_linear_cuts_a_whole_operand_for_free():
    call = make_call("linear", (2, 8, 16), features=32, split="row")
    assert work(placed(call), 4) == work(placed(call, 2), 4)
    assert collectives(placed(call), 4) == collectives(placed(call, 2), 4)


def test_row_linear_whose_consumers_want_a_split_result_is_reduce_scattered():
    at = placed(make_call("linear", (2, 8, 16), features=32, split="row"), 2, wanted=2)
    assert collectives(at, 4) == (Collective("reduce_scatter", 2 * 16 * 32, 4),)
    assert at.leaving == (2,)


# --- other products --------------------------------------------------------------------------


def test_matmul_splits_heads():
    at = placed(make_call("matmul", (1, 12, 64, 8), (1, 12, 8, 32)))
    assert work(at, 3) == (2 * 12 * 64 * 8 * 32 // 3, 2 * 4 * (64 * 8 + 8 * 32 + 64 * 32), 0)
    assert at.leaving == (1,)
    assert admissible(at) == [1, 2, 3, 4, 6, 12]


def test_matmul_of_matrices_splits_columns():
    at = placed(make_call("matmul", (64, 8), (32, 8), transpose_b=True))
    assert work(at, 4) == (2 * 64 * 8 * 32 // 4, 2 * (64 * 8 + 8 * 8 + 64 * 8), 0)
    assert at.plan.uses == (None, 0)


def test_matmul_keeps_the_split_of_its_operand():
    call = make_call("matmul", (1, 12, 64, 8), (1, 12, 8, 32))
    assert placed(call, 2, None).leaving == (2,)
    assert not rule_of(call).accepts(call, 0, 3)
    assert not rule_of(call).accepts(call, 1, 2)
    both = placed(call, 2, 3)
    assert collectives(both, 4) == (Collective("all_gather", 2 * 12 * 8 * 32, 4),)


def test_attention():
    at = placed(make_call("attention", (2, 64, 16), (2, 128, 16), (2, 128, 16), heads=4), 2, 2, 2)
    # for each of 2 * 64 * 128 pairs: two products of width 16, four exponentials of 256 operations
    flops, q, kv = 2 * 64 * 128 * (4 * 16 + 4 * 256), 2 * 2 * 64 * 16, 2 * 2 * 128 * 16
    assert work(at, 1) == (flops, 2 * q + 2 * kv, 0)
    assert work(at, 4) == (flops // 4, (2 * q + 2 * kv) // 4, 0)
    assert rule_of(at.call).workspace(at.call, at.plan, 4) == 4 * 2 * 64
    assert collectives(at, 4) == ()
    assert admissible(at) == [1, 2, 4]


def test_causal_attention_sees_half_the_pairs():
    whole, causal = (placed(make_call("attention", *[(1, 64, 16)] * 3, heads=4, causal=c)) for c in (False, True))
    assert work(whole, 1)[0] * 65 == work(causal, 1)[0] * 128


def test_grouped_query_attention_repeats_key_heads_beyond_their_number():
    at = placed(make_call("attention", (1, 64, 96), (1, 64, 16), (1, 64, 16), heads=12, kv_heads=2), 2, 2, 2)
    q, kv = 2 * 64 * 96, 2 * 64 * 16
    assert work(at, 2)[1] == q + kv
    assert work(at, 4)[1] == q // 2 + kv
    head = Collective("all_gather", kv // 2, 2)
    assert collectives(at, 2) == ()
    assert collectives(at, 4) == (head, head)
    # 3 divides the 12 heads but not the 2 key heads, nor do these divide 3
    assert admissible(at) == [1, 2, 4, 6, 12]


def test_embedding():
    at = placed(make_call("embedding", (2, 8), dtypes=("i32",), vocab=100, dim=16))
    rows, table = 2 * 16 * 16, 2 * 100 * 16
    assert work(at, 1) == (0, 4 * 16 + 2 * rows, table)
    assert work(at, 4) == (0, 4 * 16 + rows // 4 + rows, table // 4)
    assert collectives(at, 4) == (Collective("all_reduce", rows, 4),)
    assert admissible(at, 20) == [1, 2, 4, 5, 10, 20]


def test_router_stays_whole():
    at = placed(make_call("router", (2, 8, 16), experts=4, top_k=2))
    assert work(at, 1) == work(at, 7) == (2 * 16 * 16 * 4, 2 * 16 * 16 + 2 * 16 * 4 + 2 * 16 * 4, 2 * 16 * 4)
    assert admissible(at, 5) == [1, 2, 3, 4, 5]


def test_experts():
    at = placed(make_call("experts", (2, 8, 16), (2, 8, 4), experts=4, top_k=2, hidden=32))
    flops, weight, x, routes = 2 * 16 * 2 * 3 * 16 * 32, 2 * 4 * 3 * 16 * 32, 2 * 32 * 16, 2 * 16 * 4
    assert work(at, 1) == (flops, routes + 2 * x + weight, weight)
    assert work(at, 4) == (flops // 4, routes + 2 * x // 4 + weight // 4, weight // 4)
    # 8 accelerators: two for each expert, each with half the hidden layer and all tokens of the expert
    assert work(at, 8) == (flops // 8, routes + 2 * x // 4 + weight // 8, weight // 8)
    assert rule_of(at.call).workspace(at.call, at.plan, 8) == 2 * 8 * (16 + 2 * 16)
    assert collectives(at, 4) == (Collective("all_reduce", 2 * 16 * 16, 4),)
    assert admissible(at) == [1, 2, 4, 8, 16, 32, 64]


def test_experts_that_no_token_visits_are_not_read():
    at = placed(make_call("experts", (1, 1, 16), (1, 1, 8), experts=8, top_k=2, hidden=32, gated=False))
    weight = 2 * 8 * 2 * 16 * 32
    assert work(at, 1)[1] == 2 * 8 + 2 * 2 * 2 * 16 + weight // 4


def test_conv2d():
    at = placed(make_call("conv2d", (2, 8, 10, 10), channels=16, kernel=3, padding=1, bias=True))
    flops, weight = 2 * 2 * 16 * 100 * 8 * 9, 2 * 16 * (8 * 9 + 1)
    assert work(at, 1) == (flops, 2 * 2 * 8 * 100 + 2 * 2 * 16 * 100 + weight, weight)
    assert work(at, 4) == (flops // 4, 2 * 2 * 8 * 100 + 2 * 2 * 4 * 100 + weight // 4, weight // 4)
    assert at.leaving == (1,)
    assert admissible(at) == [1, 2, 4, 8, 16]


def test_grouped_conv2d_needs_only_the_channels_of_its_groups():
    at = placed(make_call("conv2d", (2, 8, 10, 10), channels=16, kernel=3, padding=1, groups=4), 1)
    weight = 2 * 16 * 2 * 9
    assert work(at, 4) == (
        2 * 2 * 16 * 100 * 2 * 9 // 4,
        (2 * 2 * 8 * 100 + 2 * 2 * 16 * 100 + weight) // 4,
        weight // 4,
    )
    assert collectives(at, 4) == ()
    assert admissible(at) == [1, 2, 4]


# --- operators that keep a split -------------------------------------------------------------

X = (2, 8, 16)
SIZE = 2 * 2 * 8 * 16


@pytest.mark.parametrize("kind", ["gelu", "relu", "silu", "tanh", "sigmoid", "rotary"])
def test_unary_operators(kind: str):
    call = make_call(kind, X)
    assert work(placed(call), 4) == (0, 2 * SIZE, 0)
    assert work(placed(call, 2), 4) == (0, 2 * SIZE // 4, 0)
    assert admissible(placed(call), 3) == [1, 2, 3]
    assert admissible(placed(call, 2)) == [1, 2, 4, 8, 16]


@pytest.mark.parametrize("kind", ["add", "sub", "mul", "residual"])
def test_binary_operators(kind: str):
    call = make_call(kind, X, X)
    assert work(placed(call), 4) == (0, 3 * SIZE, 0)
    mixed = placed(call, None, 2)
    assert work(mixed, 4) == (0, 3 * SIZE // 4, 0)
    assert mixed.leaving == (2,)
    assert collectives(mixed, 4) == ()


def test_operands_split_along_different_dimensions_are_exchanged():
    at = placed(make_call("add", X, X), 1, 2)
    assert collectives(at, 4) == (Collective("all_to_all", SIZE, 4),)


def test_an_element_wise_operator_splits_a_whole_operand_when_that_is_wanted():
    at = placed(make_call("gelu", X), wanted=2)
    assert work(at, 4) == (0, 2 * SIZE // 4, 0)


@pytest.mark.parametrize(("kind", "params"), [("layer_norm", 64), ("rms_norm", 32)])
def test_norms_read_twice_and_need_whole_rows(kind: str, params: int):
    call = make_call(kind, X)
    assert work(placed(call), 4) == (0, 3 * SIZE + params, params)
    assert [rule_of(call).accepts(call, 0, d) for d in range(3)] == [True, True, False]


def test_batch_norm_splits_channels():
    call = make_call("batch_norm", (2, 8, 4, 4))
    assert work(placed(call, 1), 4) == (0, 2 * 2 * 256 // 4 + 2 * 8, 2 * 8)
    assert [rule_of(call).accepts(call, 0, d) for d in range(4)] == [False, True, False, False]


def test_position_embedding_splits_its_table_with_the_operand():
    call = make_call("position_embedding", X)
    table = 2 * 8 * 16
    assert work(placed(call), 4) == (0, 2 * SIZE + table, table)
    assert work(placed(call, 2), 4) == (0, (2 * SIZE + table) // 4, table // 4)
    assert work(placed(call, 0), 2) == (0, SIZE + table, table)


def test_softmax():
    call = make_call("softmax", X)
    assert work(placed(call), 4) == (0, 4 * SIZE, 0)
    assert [rule_of(call).accepts(call, 0, d) for d in range(3)] == [True, True, False]


@pytest.mark.parametrize("kind", ["max_pool", "avg_pool"])
def test_pools_split_channels(kind: str):
    call = make_call(kind, (2, 8, 4, 4), kernel=2, stride=2)
    assert work(placed(call, 1), 4) == (0, 2 * (256 + 64) // 4, 0)
    assert not rule_of(call).accepts(call, 0, 2)


def test_global_avg_pool():
    at = placed(make_call("global_avg_pool", (2, 8, 4, 4)), 1)
    assert work(at, 4) == (0, 2 * (256 + 16) // 4, 0)
    assert at.leaving == (1,)


def test_concat_copies_and_needs_its_axis_whole():
    call = make_call("concat", X, X, axis=-1)
    assert work(placed(call, 1, None), 4) == (0, 4 * SIZE // 4, 0)
    assert not rule_of(call).accepts(call, 0, 2)


def test_transpose_copies_and_moves_the_split():
    at = placed(make_call("transpose", X, order=(0, 2, 1)), 2)
    assert work(at, 4) == (0, 2 * SIZE // 4, 0)
    assert at.leaving == (1,)


@pytest.mark.parametrize(
    ("call", "arriving", "leaving"),
    [
        (make_call("reshape", X, shape=(2, 8, 4, 4)), 2, (2,)),
        (make_call("reshape", (2, 8, 4, 4), shape=X), 2, (2,)),
        (make_call("reshape", (1, 8, 16), shape=(8, 16)), 1, (0,)),
        (make_call("reshape", (8, 16), shape=(1, 8, 16)), 0, (1,)),
        (make_call("split", X, parts=2, axis=-1), 2, (2, 2)),
        (make_call("slice", X, axis=1, start=0, length=4), 2, (2,)),
    ],
)
def test_views_take_no_time_and_keep_the_split(call: Call, arriving: int, leaving: tuple[int, ...]):
    at = placed(call, arriving)
    assert at.leaving == leaving
    row = cost_row(MACHINE, at, 2)
    assert row is not None
    assert row.time == 0


def test_a_reshape_across_the_split_dimension_is_refused():
    call = make_call("reshape", (2, 8, 4, 4), shape=X)
    assert not rule_of(call).accepts(call, 0, 3)


def test_reduce():
    call = make_call("reduce", X, axis=1)
    small = 2 * 2 * 16
    assert work(placed(call), 4) == (0, SIZE + small, 0)
    kept = placed(call, 2)
    assert kept.leaving == (1,)
    assert collectives(kept, 4) == ()
    partial = placed(call, 1)
    assert work(partial, 4) == (0, SIZE // 4 + small, 0)
    assert collectives(partial, 4) == (Collective("all_reduce", small, 4),)


def test_cross_entropy_is_vocabulary_parallel():
    at = placed(make_call("cross_entropy", X, (2, 8), dtypes=("bf16", "i32")), 2, None)
    assert work(at, 4) == (0, 2 * (SIZE // 4 + 4 * 16) + 4, 0)
    assert collectives(at, 4) == (Collective("all_reduce", 4 * 16, 4),) * 3
    assert rule_of(at.call).workspace(at.call, at.plan, 4) == 3 * 4 * 16


def test_mse_loss():
    call = make_call("mse_loss", X, X)
    assert work(placed(call), 4) == (0, 2 * SIZE + 4, 0)
    assert collectives(placed(call), 4) == ()
    assert work(placed(call, 2, 2), 4) == (0, 2 * SIZE // 4 + 4, 0)
    assert collectives(placed(call, 2, 2), 4) == (Collective("all_reduce", 4, 4),)


# --- of all kinds ----------------------------------------------------------------------------

Sizes = tuple[int, int, int]
SAMPLES: dict[str, Callable[[Sizes, bool], Call]] = {
    "linear": lambda n, s: make_call("linear", n, features=n[1] * 3, bias=s, split="row" if s else "column"),
    "matmul": lambda n, s: make_call("matmul", n, (n[0], n[1], n[2]) if s else (n[2], n[1]), transpose_b=s),
    "attention": lambda n, s: make_call(
        "attention", (1, n[1], 8 * n[0] * n[2]), *[(1, n[1], n[0] * n[2])] * 2, heads=8 * n[0], kv_heads=n[0], causal=s
    ),
    "embedding": lambda n, s: make_call("embedding", n, dtypes=("i32",), vocab=n[1], dim=n[2]),
    "experts": lambda n, s: make_call("experts", n, (*n[:2], n[1]), experts=n[1], top_k=1, hidden=n[0], gated=s),
    "conv2d": lambda n, s: make_call("conv2d", (1, n[0], n[1], n[1]), channels=n[0] * n[2], kernel=1, groups=n[0] ** s),
    "gelu": lambda n, s: make_call("gelu", n),
    "position_embedding": lambda n, s: make_call("position_embedding", n),
    "layer_norm": lambda n, s: make_call("layer_norm", n),
    "cross_entropy": lambda n, s: make_call("cross_entropy", n, n[:2], dtypes=("bf16", "i64")),
    "reduce": lambda n, s: make_call("reduce", n, axis=-1),
}


@given(
    st.sampled_from(sorted(SAMPLES)),
    st.tuples(*[st.integers(1, 48)] * 3),
    st.booleans(),
    st.sampled_from([None, 0, 1, 2]),
    st.booleans(),
)
def test_costs_of_any_operator_are_sane(kind: str, sizes: Sizes, switch: bool, arriving: Layout, stays: bool):
    call = SAMPLES[kind](sizes, switch)
    rule = rule_of(call)
    here = tuple(arriving if arriving is not None and rule.accepts(call, i, arriving) else None for i in (0, 1, 2))
    at = placed(call, *here[: len(call.operands)], stays=stays)
    table = cost_table(MACHINE, at, range(1, 65))
    assert 1 in table
    for k, row in table.items():
        assert row.time >= MACHINE.launch
        assert row.params * k >= call.params
        assert row.params <= call.params
        assert row.output * k >= sum(t.size for t in call.results)
        assert rule.flops(call, at.plan, k) * k >= rule.flops(call, at.plan, 1)
        for tensor, dim in zip(call.results, at.plan.makes, strict=True):
            assert dim is None or tensor.shape[dim] % k == 0
