"""Which values stay split, and which collectives a whole graph pays: the patterns of Megatron-LM and others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xdsl.dialects.builtin import TensorType, bf16, i32
from xdsl.ir import Operation, SSAValue

from dialects.operators import OPERATORS, Tensor
from dialects.structure import GraphOp, InputOp, OutputOp
from passes.costs.layout import Placed, place
from passes.costs.reading import Reader
from passes.costs.table import collectives

KINDS = {cls.kind(): cls for cls in OPERATORS}
K = 4


class Builder:
    """Writes a graph operator by operator and tells what each communicates on K accelerators."""

    def __init__(self) -> None:
        self.ops: list[Operation] = []

    def input(self, *shape: int, element: Any = bf16) -> SSAValue:
        self.ops.append(InputOp.create(result_types=[TensorType(element, shape)]))
        return self.ops[-1].results[0]

    def add(self, kind: str, *operands: SSAValue, **given: Any) -> SSAValue:
        return self.add_many(kind, *operands, **given)[0]

    def add_many(self, kind: str, *operands: SSAValue, **given: Any) -> Sequence[SSAValue]:
        cls = KINDS[kind]
        arguments = {name: given.get(name, default) for name, (_, default, _) in cls.signature().items()}
        types: list[Any] = [v.type for v in operands]
        inferred = cls.infer(types, arguments)
        self.ops.append(cls.make(operands, given, inferred.results, inferred.params))
        return self.ops[-1].results

    def opaque(self, *operands: SSAValue, result: Tensor) -> SSAValue:
        self.ops.append(KINDS["op"].make(operands, {}, [result], 0))
        return self.ops[-1].results[0]

    def placed(self, *outputs: SSAValue) -> list[Placed]:
        graph = GraphOp.make("g", [*self.ops, OutputOp.make(outputs)])
        return place(Reader().nodes(graph), graph.outputs.operands)

    def talks(self, *outputs: SSAValue) -> list[tuple[int, str]]:
        """(position of the operator, pattern) of every collective of the graph."""
        return [(i, c.pattern) for i, placed in enumerate(self.placed(*outputs)) for c in collectives(placed, K)]


def test_a_gpt_layer_has_one_all_reduce_after_attention_and_one_after_the_mlp():
    g = Builder()
    x = g.input(1, 64, 32)
    n = g.add("layer_norm", x)  # 0
    q, k, v = (g.add("linear", n, features=32, bias=True) for _ in range(3))  # 1, 2, 3
    a = g.add("attention", q, k, v, heads=4, causal=True)  # 4
    o = g.add("linear", a, features=32, bias=True, split="row")  # 5
    r = g.add("residual", x, o)  # 6
    up = g.add("linear", g.add("layer_norm", r), features=128)  # 7, 8
    y = g.add("linear", g.add("gelu", up), features=32, split="row")  # 9, 10
    out = g.add("residual", r, y)  # 11
    assert g.talks(out) == [(5, "all_reduce"), (10, "all_reduce")]


def test_a_llama_layer_likewise_with_rotary_and_a_gate():
    g = Builder()
    x = g.input(1, 64, 32)
    n = g.add("rms_norm", x)
    q, k = g.add("rotary", g.add("linear", n, features=32)), g.add("rotary", g.add("linear", n, features=16))
    a = g.add("attention", q, k, g.add("linear", n, features=16), heads=8, kv_heads=4, causal=True)
    r = g.add("residual", x, g.add("linear", a, features=32, split="row"))
    m = g.add("rms_norm", r)
    h = g.add("mul", g.add("silu", g.add("linear", m, features=96)), g.add("linear", m, features=96))
    out = g.add("residual", r, g.add("linear", h, features=32, split="row"))
    placed = g.placed(out)
    assert [(p.call.kind, c.pattern) for p in placed for c in collectives(p, K)] == [("linear", "all_reduce")] * 2
    whole = {"rms_norm", "residual"}
    for p in placed:
        assert p.plan.splits == (p.call.kind not in whole)


def test_a_lone_column_linear_gathers_its_output():
    g = Builder()
    logits = g.add("linear", g.input(1, 64, 32), features=128)
    assert g.talks(logits) == [(0, "all_gather")]


def test_a_head_into_a_loss_stays_split_by_vocabulary():
    g = Builder()
    logits = g.add("linear", g.input(1, 64, 32), features=128)
    loss = g.add("cross_entropy", logits, g.input(1, 64, element=i32))
    assert g.talks(loss) == [(1, "all_reduce")] * 3


def test_logits_that_are_also_an_output_are_gathered_by_the_head():
    g = Builder()
    logits = g.add("linear", g.input(1, 64, 32), features=128)
    loss = g.add("cross_entropy", logits, g.input(1, 64, element=i32))
    assert g.talks(loss, logits) == [(0, "all_gather"), *[(1, "all_reduce")] * 3]


def test_one_gather_serves_all_consumers_and_comes_as_late_as_possible():
    g = Builder()
    h = g.add("gelu", g.add("linear", g.input(1, 64, 32), features=32))
    out = g.add("add", g.add("layer_norm", h), g.add("softmax", h))
    assert g.talks(out) == [(1, "all_gather")]


def test_a_consumer_that_needs_it_whole_makes_the_producer_gather():
    g = Builder()
    h = g.add("linear", g.input(1, 64, 32), features=32)
    out = g.add("linear", g.add("gelu", h), features=32, split="row")
    other = g.add("layer_norm", h)
    assert g.talks(out, other) == [(0, "all_gather"), (2, "all_reduce")]


def test_two_row_linears_in_a_row_reduce_scatter_in_between():
    g = Builder()
    h = g.add("gelu", g.add("linear", g.input(1, 64, 32), features=64, split="row"))
    out = g.add("linear", h, features=32, split="row")
    assert g.talks(out) == [(0, "reduce_scatter"), (2, "all_reduce")]


def test_an_opaque_operator_takes_and_gives_whole_values():
    g = Builder()
    h = g.add("linear", g.input(1, 64, 32), features=32)
    c = g.opaque(h, result=TensorType(bf16, (1, 64, 32)))
    out = g.add("linear", c, features=32, split="row")
    assert g.talks(out) == [(0, "all_gather"), (2, "all_reduce")]


def test_attention_written_out_in_heads_stays_split():
    g = Builder()
    x = g.input(2, 64, 32)
    qkv = g.add_many("split", g.add("linear", x, features=96), parts=3, axis=-1)
    q, k, v = (g.add("transpose", g.add("reshape", p, shape=(2, 64, 8, 4)), order=(0, 2, 1, 3)) for p in qkv)
    scores = g.add("softmax", g.add("matmul", q, k, transpose_b=True))
    mixed = g.add("transpose", g.add("matmul", scores, v), order=(0, 2, 1, 3))
    out = g.add("linear", g.add("reshape", mixed, shape=(2, 64, 32)), features=32, split="row")
    last = len(g.ops) - 2  # operators only: the input is not counted
    assert g.talks(out) == [(last, "all_reduce")]


def test_convolutions_gather_their_channels_after_the_element_wise_chain():
    g = Builder()
    x = g.input(1, 8, 16, 16)
    for _ in range(2):
        x = g.add("relu", g.add("batch_norm", g.add("conv2d", x, channels=8, kernel=3, padding=1)))
    assert g.talks(x) == [(2, "all_gather"), (5, "all_gather")]


def test_a_depthwise_convolution_keeps_its_channels():
    g = Builder()
    a = g.add("conv2d", g.input(1, 8, 16, 16), channels=16, kernel=1)
    b = g.add("conv2d", a, channels=16, kernel=3, padding=1, groups=16)
    pooled = g.add("global_avg_pool", b)
    out = g.add("linear", pooled, features=8)
    assert g.talks(out) == [(2, "all_gather"), (3, "all_gather")]


def test_experts_all_reduce_once():
    g = Builder()
    x = g.input(1, 64, 32)
    routes = g.add("router", x, experts=8, top_k=2)
    out = g.add("residual", x, g.add("experts", x, routes, experts=8, top_k=2, hidden=64))
    assert g.talks(out) == [(1, "all_reduce")]


def test_equal_operators_are_one_call():
    g = Builder()
    x = g.input(1, 64, 32)
    for _ in range(5):
        x = g.add("gelu", x)
    assert len({id(p.call) for p in g.placed(x)}) == 1
