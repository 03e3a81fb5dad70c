"""expand-training: structure of backward graphs of every kind and of random ones, costs, bytes, refusals."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import OpResult

from compiler.ir_input import parse_ir
from compiler.output import print_ir
from compiler.pipeline import Options, new_context, run_pipeline
from compiler.simulate import time_triggered
from compiler.view import view_of
from dialects.attributes import SlotAttr, values
from dialects.diagnostics import TaktError
from dialects.gradients import ACCUMULATED, GradientOp, InputGradientOp, OptimizerStepOp, WeightGradientOp
from dialects.levels import verify_level
from dialects.network import Link, Network
from dialects.operators import OPERATORS, OperatorOp, operator_names
from dialects.placement import Placement
from dialects.schedule_rules import peak_memory
from dialects.structure import GraphOp, find_graph, find_platform
from dialects.updates import exchange_time
from frontend import Source, load
from passes.annotate_costs import AnnotateCostsPass
from passes.costs.kinds import rule_of
from passes.costs.layout import place
from passes.costs.reading import Reader
from passes.costs.updates import held_whole
from passes.expand_training import ExpandTrainingPass
from passes.restrict_allotments import RestrictAllotmentsPass
from passes.training.held import Held

PLATFORM = """
accelerator a {
  memory = 1 GiB  bandwidth = 1 TB/s  launch = 1 us
  peak bf16 = 100 TFLOP/s
}
platform p {
  accelerators = 8 of a
  link node = 4 { latency = 5 us  bandwidth = 100 GB/s }
  link cluster { latency = 50 us  bandwidth = 10 GB/s }
}
"""

X = "linear(x, features = 32)"
KINDS: Mapping[str, tuple[str, list[str] | None, list[str] | None]] = {
    "op": ("y = op(h, x) time [9us, 5us] params 4 KiB output 64 B", ["h", "x"], ["h", "x"]),
    "linear": ("y = linear(h, features = 16)", [], ["h"]),
    "matmul": ("y = matmul(h, h, transpose_b = true)", ["h", "h"], None),
    "attention": ("y = attention(h, h, h, heads = 4)", ["h", "h", "h"], None),
    "layer_norm": ("y = layer_norm(h)", ["h"], ["h"]),
    "rms_norm": ("y = rms_norm(h)", ["h"], ["h"]),
    "batch_norm": ("y = batch_norm(h)", ["h"], ["h"]),
    "softmax": ("y = softmax(h)", ["y"], None),
    "embedding": ("y = embedding(i, vocab = 64, dim = 32)", None, ["i"]),
    "position_embedding": ("y = position_embedding(h)", None, []),
    "rotary": ("y = rotary(h)", [], None),
    "add": ("y = add(h, x)", None, None),
    "sub": ("y = sub(h, x)", [], None),
    "mul": ("y = mul(h, x)", ["h", "x"], None),
    "residual": ("y = residual(h, h)", None, None),
    "gelu": ("y = gelu(h)", ["h"], None),
    "relu": ("y = relu(h)", ["y"], None),
    "silu": ("y = silu(h)", ["h"], None),
    "tanh": ("y = tanh(h)", ["y"], None),
    "sigmoid": ("y = sigmoid(h)", ["y"], None),
    "router": ("y = router(h, experts = 4, top_k = 2)", ["y"], ["h", "y"]),
    "experts": (
        "r = router(h, experts = 4, top_k = 2)\n y = experts(h, r, experts = 4, top_k = 2, hidden = 64)",
        ["h", "r"],
        ["h", "r", "y.I.v3"],
    ),
    "conv2d": ("c = reshape(h, shape = [2, 4, 8, 8])\n y = conv2d(c, channels = 8, kernel = 3)", [], ["c"]),
    "max_pool": ("c = reshape(h, shape = [2, 4, 8, 8])\n y = max_pool(c, kernel = 2, stride = 2)", ["c"], None),
    "avg_pool": ("c = reshape(h, shape = [2, 4, 8, 8])\n y = avg_pool(c, kernel = 2, stride = 2)", [], None),
    "global_avg_pool": ("c = reshape(h, shape = [2, 4, 8, 8])\n y = global_avg_pool(c)", [], None),
    "concat": ("y = concat(h, x, h, axis = 1)", [], None),
    "split": ("y, z = split(h, parts = 2, axis = 1)", [], None),
    "reshape": ("y = reshape(h, shape = [512])", [], None),
    "transpose": ("y = transpose(h, order = [0, 2, 1])", [], None),
    "slice": ("y = slice(h, axis = 1, start = 2, length = 4)", [], None),
    "reduce": ("y = reduce(h, axis = 1)", [], None),
    "cross_entropy": ("y = cross_entropy(h, i)", ["h", "i"], None),
    "mse_loss": ("y = mse_loss(h, x)", ["h", "x"], None),
}
"""A model of each kind; the forward values that its I and its W read; None where there is none."""


def model(body: str, output: str = "y") -> str:
    inputs = " input x: tensor<2 x 8 x 32, bf16>\n input i: tensor<2 x 8, i32>\n"
    return f"model m {{\n{inputs} {body}\n output {output}\n}}\n"


def expanded(text: str, **options: Any) -> GraphOp:
    module = load(Source("m.takt", text))
    ExpandTrainingPass(**options).apply(Context(), module)
    verify_level(module)
    return graph_of(module)


def graph_of(module: ModuleOp) -> GraphOp:
    graph = find_graph(module)
    assert graph is not None
    return graph


def named(graph: GraphOp) -> dict[str, OperatorOp]:
    return {name: op for op, name in operator_names(graph).items()}


def costed(text: str, train: bool, **options: Any) -> dict[str, OperatorOp]:
    module = load(Source("m.takt", text + PLATFORM))
    if train:
        ExpandTrainingPass(**options).apply(Context(), module)
    AnnotateCostsPass().apply(Context(), module)
    verify_level(module)
    return named(graph_of(module))


def updates_of(op: OperatorOp) -> dict[str | None, OptimizerStepOp]:
    """The optimizer's steps of the graph that an operator is in, by name."""
    graph = op.parent_op()
    assert isinstance(graph, GraphOp)
    return {step.outputs[0].name_hint: step for step in graph.updates()}


def reads(op: OperatorOp) -> list[str | None]:
    assert isinstance(op, GradientOp)
    return [v.name_hint for v in op.inputs][len(values(op.of.arriving)) :]


def test_a_model_of_every_kind_is_here() -> None:
    assert set(KINDS) == {cls.kind() for cls in OPERATORS}


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_every_kind(kind: str) -> None:
    body, input_reads, weight_reads = KINDS[kind]
    graph = expanded(model(f"h = {X}\n {body}"))
    found = named(graph)
    y, gradients = found["y"], [op for op in found.values() if isinstance(op, GradientOp)]
    assert y.kind() == kind
    assert (reads(found["y.I"]) if "y.I" in found else None) == input_reads
    assert (reads(found["y.W"]) if "y.W" in found else None) == weight_reads
    for op in gradients:
        forward = found[operator_names(graph)[op][: -len(".I")]]
        assert (op.of.operands, op.of.results) == (tuple(forward.operand_types), tuple(forward.result_types))
        assert op.of.values_of_arguments() == forward.arguments()
        assert op.group == forward.group
        assert op.group is not None
        if isinstance(op, InputGradientOp):
            made = [forward.inputs[i] for i in values(op.of.made)]
            assert [v.type for v in made] == list(op.result_types)[: len(made)]
            # Everything but the inputs of the graph depends on the parameters of `h`.
            assert made == [v for v in forward.inputs if isinstance(v.owner, OperatorOp)]
        else:
            assert list(op.result_types) == [ACCUMULATED]
    trained = [op for op in found.values() if op.params.value.data and not isinstance(op, GradientOp)]
    alive = trained if kind != "embedding" else [y]
    assert sum(isinstance(op, WeightGradientOp) for op in gradients) == len(alive)
    text = print_ir(graph.parent_op(), generic=False)  # pyright: ignore[reportArgumentType]
    assert print_ir(parse_ir(new_context(), text, "again.mlir")) == text


def test_what_selects_has_no_gradient_whatever_makes_it() -> None:
    ids = "a = op(x) time [3us] params 4 KiB output 8 B\n e = embedding(a, vocab = 64, dim = 16)"
    found = named(expanded(model(f"{ids}\n h = linear(e, features = 16)\n y = cross_entropy(h, a)")))
    assert [name for name in found if name[-2:] in (".I", ".W")] == ["y.I", "h.I", "h.W", "e.W"]
    assert [len(found[name].outputs) for name in ("y.I", "h.I")] == [1, 1]


def test_what_selects_elements_reads_what_it_selected() -> None:
    found = named(expanded(model(f'h = {X}\n y = reduce(h, axis = 1, kind = "max")')))
    assert reads(found["y.I"]) == ["h", "y"]


def test_outputs_without_a_loss_get_gradients_from_outside() -> None:
    graph = expanded(model(f"h = {X}\n a = gelu(h)\n b = relu(h)", "a, b, i"))
    assert [op.output.name_hint for op in graph.inputs()] == ["a.gradient", "b.gradient", "x", "i"]
    assert [v.name_hint for v in named(graph)["a.I"].inputs] == ["a.gradient", "h"]
    with_loss = expanded(model(f"h = {X}\n a = gelu(h)\n b = mse_loss(h, x)", "a, b"))
    assert "a.I" not in named(with_loss)
    assert len(list(with_loss.inputs())) == 2


def test_a_sum_of_losses_is_a_loss() -> None:
    found = named(expanded(model(f"h = {X}\n a = cross_entropy(h, i)\n b = mse_loss(h, x)\n y = add(a, b)")))
    assert [v.name_hint for v in found["h.sum"].inputs] == ["b.I", "a.I"]
    assert [v.name_hint for v in found["a.I"].inputs] == ["h", "i"]


TIED = (
    'e = embedding(i, vocab = 64, dim = 32) group "tied"\n h = linear(e, features = 64) group "tied"\n'
    " y = cross_entropy(h, i)"
)


def test_tied_operators_have_copies_or_stay_one_group() -> None:
    for options in ({"tie": "colocate"}, {"optimizer": "none"}):
        found = named(expanded(model(TIED), **options))
        tied = {name for name, op in found.items() if op.group is not None and op.group.data == "tied"}
        assert tied == {"e", "h", "h.I", "h.W", "e.W"}
    found = named(expanded(model(TIED)))
    assert {name: op.group.data for name, op in found.items() if op.group is not None} == {
        "e": "e", "e.W": "e", "h": "h", "h.I": "h", "h.W": "h", "y": "y", "y.I": "y"
    }  # fmt: skip
    steps = updates_of(found["e"])
    assert {n: [v.name_hint for v in op.inputs] for n, op in steps.items()} == {
        "e.step": ["e.W", "h.W"], "h.step": ["h.W", "e.W"]
    }  # fmt: skip
    assert all(op.params.value.data == 64 * 32 * 2 for op in steps.values())
    # One that no loss depends on would keep old parameters: they stay together, whatever is asked for.
    unused = f'u = linear(x, features = 64) group "tied"\n {TIED}'
    groups = {op.group.data for op in named(expanded(model(unused))).values() if op.group is not None}
    assert groups == {"tied", "y"}


def test_copies_cost_a_gradient_more_to_read_and_an_exchange_between_their_sets() -> None:
    together, apart = costed(model(TIED), True, tie="colocate"), costed(model(TIED), True)
    (one,), two = updates_of(together["e"]).values(), updates_of(apart["e"])
    size = 64 * 32 * 2
    for k, time in times_of(one).items():
        assert abs(times_of(two["e.step"])[k] - time - size / k / 1000) <= 1
    graph = apart["e"].parent_op()
    assert isinstance(graph, GraphOp)
    placement = Placement(graph)
    own = times_of(two["e.step"])

    def place(e: Sequence[int], h: Sequence[int]) -> int | None:
        for name, members in (("e", e), ("h", h)):
            for op in apart.values():
                if op.group is not None and op.group.data == name:
                    op.slot = SlotAttr.make([members], 0)
        return placement.update_time(two["e.step"])

    assert placement.update_time(two["e.step"]) is None
    assert place([0], [0]) == own[1]  # summed where they are
    assert place([0], [1]) == own[1] + 5000 + 41  # 4 KiB at 100 GB/s inside a node
    assert place([0], [4]) == own[1] + 50000 + 410  # at 10 GB/s between nodes
    assert place([0, 1], [2]) == own[2] + 5000 + 41  # all of it leaves from one
    assert place([0, 1], [4, 5]) == own[2] + 50000 + 205
    assert place([0, 1, 2], [4]) is None  # no time on three


def test_groups_of_three_copies_exchange_twice_and_sums_of_one_set_once() -> None:
    links = (Link("node", 8, 1000, 1_000_000_000),)
    assert exchange_time(Network(links), 4000, (0,), [(1,), (2,)]) == 2 * (1000 + 4000)
    assert exchange_time(Network(links), 4000, (0,), [(1,), (1,), (0,)]) == 1000 + 4000
    assert exchange_time(Network(()), 4000, (0,), [(1,)]) == 0


def test_a_group_is_not_called_like_one_that_is_there() -> None:
    found = named(expanded(model(f'g = {X} group "y"\n y = gelu(g)')))
    assert found["y"].group != found["g"].group


@st.composite
def graphs(draw: Any) -> tuple[str, nx.DiGraph[str], set[str]]:
    """A random model, its graph of operators, and those with parameters."""
    n = draw(st.integers(1, 9))
    graph: nx.DiGraph[str] = nx.DiGraph()
    lines: list[str] = []
    trained: set[str] = set()
    for v in range(n):
        known = ["x", *(f"v{u}" for u in range(v))]
        kind = draw(st.sampled_from(["linear", "layer_norm", "gelu", "relu", "add", "mul", "sub"]))
        operands = [draw(st.sampled_from(known)) for _ in range(2 if kind in ("add", "mul", "sub") else 1)]
        extra = ", features = 32" if kind == "linear" else ""
        name = f"v{v}"
        graph.add_node(name)
        graph.add_edges_from((u, name) for u in operands)
        if kind in ("linear", "layer_norm"):
            trained.add(name)
        lines.append(f"{name} = {kind}({', '.join(operands)}{extra})")
    out = draw(st.sampled_from([f"v{v}" for v in range(n)]))
    return model("\n ".join(lines), out), graph, trained & (nx.ancestors(graph, out) | {out})


@given(graphs())
@settings(max_examples=40, deadline=None)
def test_random_graphs(drawn: tuple[str, nx.DiGraph[str], set[str]]) -> None:
    text, forward, alive = drawn
    if not alive:
        with pytest.raises(TaktError, match="nothing to train"):
            expanded(text)
        return
    graph = expanded(text)
    found = named(graph)
    weights = {name.removesuffix(".W") for name, op in found.items() if isinstance(op, WeightGradientOp)}
    assert weights == alive
    (out,) = (v.name_hint for v in graph.outputs.operands)
    assert out is not None
    used = nx.ancestors(forward, out) | {out}
    below = set[str]().union(*(nx.descendants(forward, v) | {v} for v in alive))
    for name in set(forward) - {"x"}:
        depends = any(u in below for u in forward.predecessors(name)) and name in used
        assert (f"{name}.I" in found) == (depends and found[name].kind() != "add")
    # Every gradient that is made is read.
    for op in found.values():
        if isinstance(op, InputGradientOp):
            assert all(any(True for _ in r.uses) for r in op.outputs)


def test_products_of_a_transformer_are_three_times_the_forward_pass(examples: Path) -> None:
    for name, sets in (("gpt2_xl", {"layers": "2"}), ("llama3_8b", {"layers": "1"})):
        forward, training = (_flops(examples, name, sets, train) for train in (False, True))
        assert forward > 0
        assert training == 3 * forward


def _flops(examples: Path, name: str, sets: Mapping[str, str], train: bool) -> int:
    module = load(Source.read(examples / f"{name}.takt"), overrides=sets)
    if train:
        ExpandTrainingPass().apply(Context(), module)
    graph = graph_of(module)
    placed = place(Reader().nodes(graph), list(graph.outputs.operands))
    return sum(rule_of(p.call).flops(p.call, p.plan, 1) for p in placed)


def test_experts_compute_their_hidden_layer_again() -> None:
    flops: dict[str, int] = {}
    graph = expanded(model(f"h = {X}\n {KINDS['experts'][0]}"))
    for name, p in zip(named(graph), place(Reader().nodes(graph), []), strict=True):
        flops[name] = rule_of(p.call).flops(p.call, p.plan, 1)
    assert flops["y.I"] * 3 == flops["y"] * 5
    assert flops["y.W"] == flops["y"]


def test_forward_operators_cost_what_they_cost_without_gradients(examples: Path) -> None:
    platform = Source.read(examples / "dgx_a100_16.takt")
    for name, sets in (
        ("llama3_8b", {"layers": "1"}),
        ("mixtral_8x7b", {"layers": "1"}),
        ("encoder_decoder", {"encoder_layers": "1", "decoder_layers": "1"}),
    ):
        source = Source.read(examples / f"{name}.takt")
        plain, trained = (
            named(graph_of(run_pipeline(new_context(), load(source, platform=platform, overrides=sets), to="moldable",
                                        options=options)))
            for options in (Options(), Options(training="adam"))
        )  # fmt: skip
        for label, op in plain.items():
            assert (op.cost, trained[label].cost) != (None, None)
            assert op.sharded == trained[label].sharded
            ours, theirs = (o.cost.table() for o in (op, trained[label]) if o.cost is not None)
            assert {k: (c.time, c.output, c.workspace) for k, c in ours.items()} == {
                k: (c.time, c.output, c.workspace) for k, c in theirs.items()
            }


SIDE = 1024
MLP = (
    f"model m {{\n input x: tensor<1 x {SIDE} x {SIDE}, bf16>\n"
    f" n = rms_norm(x)\n a = linear(n, features = {SIDE})\n g = gelu(a)\n"
    f' y = linear(g, features = {SIDE}, split = "row")\n output y\n}}\n'
)


def test_times_computed_by_hand() -> None:
    found = costed(MLP, True)
    product, reduced = 21475, 36457  # 2 * 1024^3 at 100 TFLOP/s; all-reduce of 2 MiB on 4: test_costs_pass.py
    times = {name: {k: c.time for k, c in op.cost.table().items()} for name, op in found.items() if op.cost is not None}
    for name in ("y", "a.I"):  # conjugates: both add parts up
        assert times[name][1] == 1000 + product
        assert times[name][4] == 1000 + 5369 + reduced
    for name in ("a", "y.I", "a.W", "y.W"):
        assert times[name][1] == 1000 + product
        assert times[name][4] == 1000 + 5369
    # dy and x of 2 MiB each are read and dx written, a quarter of each on 4: at 1 TB/s
    assert times["g.I"] == {k: 1000 + round(3 * 2**21 / k / 1000) for k in (1, 2, 4, 8)}
    assert [name for name, op in found.items() if op.sharded is not None] == ["a", "g", "y.I", "g.I"]


def times_of(op: OperatorOp) -> dict[int, int]:
    assert op.cost is not None
    return {k: c.time for k, c in op.cost.table().items()}


ROWS = (
    f"model m {{\n input x: tensor<1 x {SIDE} x {SIDE}, bf16>\n"
    f' n = rms_norm(x)\n a = linear(n, features = {SIDE}, split = "row")\n g = gelu(a)\n'
    f' y = linear(g, features = {SIDE}, split = "row")\n output y\n}}\n'
)


def test_rows_add_up_forward_and_read_whole_gradients_backward() -> None:
    plain, found = costed(ROWS, False), costed(ROWS, True)
    for name, op in plain.items():  # `a` is reduce-scattered, though its gradient keeps it
        assert (times_of(op), op.sharded) == (times_of(found[name]), found[name].sharded)
    gathered = 5000 + 15729  # half of the all-reduce is the all-gather of 2 MiB on 4
    assert times_of(found["a"])[4] == pytest.approx(1000 + 5369 + gathered, abs=1)
    assert found["a"].sharded is not None
    # gelu's gradient arrives split; it gathers what it makes, for the rows before it read it whole.
    assert times_of(found["g.I"])[4] == pytest.approx(1000 + 3 * 2**21 / 4000 + gathered, abs=1)
    assert times_of(found["a.I"])[4] == pytest.approx(1000 + 5369 + gathered, abs=1)  # a norm reads it
    for name in ("y.I", "a.W", "y.W"):
        assert times_of(found[name])[4] == 1000 + 5369


def test_heads_held_twice_and_losses_communicate_backward() -> None:
    body = (
        "h = linear(x, features = 32)\n k = linear(x, features = 8)\n"
        " a = attention(h, k, k, heads = 4, kv_heads = 1)\n y = cross_entropy(a, i)"
    )
    found = costed(model(body), True)
    whole = {name: times_of(found[name]) for name in ("a", "a.I", "y", "y.I")}
    # Three all-reduces of next to nothing, 5 us each; a reduce-scatter for key and value; all else is below 1 us.
    assert [round((whole["y.I"][k] - whole["y.I"][1]) / 1000) for k in (1, 2, 4)] == [0, 15, 15]
    assert [round((whole["a.I"][k] - whole["a.I"][1]) / 1000) for k in (1, 2, 4)] == [0, 10, 10]


def test_bytes_of_every_optimizer() -> None:
    found = [[Held(name, mixed).each(2) for name in ("adam", "momentum", "sgd", "none")] for mixed in (True, False)]
    assert found == [[16, 12, 8, 4], [8, 6, 4, 4]]
    assert [Held("adam", mixed).each(4) for mixed in (True, False)] == [16, 16]
    assert Held("adam", True).bytes(5, 2) == 3 * 16


@pytest.mark.parametrize(("optimizer", "times"), [("adam", 8), ("momentum", 6), ("sgd", 4), ("none", 2)])
def test_bytes_lie_with_the_parameters(optimizer: str, times: int) -> None:
    plain, trained = costed(MLP, False), costed(MLP, True, optimizer=optimizer)
    for name, op in plain.items():
        assert op.cost is not None
        cost, gradient = trained[name].cost, trained.get(f"{name}.W")
        assert cost is not None
        for k, c in op.cost.table().items():
            assert cost.table()[k].params == times * c.params
            if gradient is not None and gradient.cost is not None:
                assert gradient.cost.table()[k].params == c.params


@pytest.mark.parametrize(
    ("optimizer", "mixed", "each"),
    [("adam", True, 28), ("momentum", True, 20), ("sgd", True, 12), ("adam", False, 14), ("sgd", False, 6)],
)
def test_what_a_step_of_the_optimizer_takes(optimizer: str, mixed: bool, each: int) -> None:
    assert Held(optimizer, mixed).moved(2, 2) == each
    found = costed(MLP, True, optimizer=optimizer, precision="mixed" if mixed else "full")
    steps = updates_of(found["n"])
    assert list(steps) == ["n.step", "a.step", "y.step"]
    weight, norm = SIDE * SIDE, SIDE
    for name in ("a", "y"):
        step, own = steps[f"{name}.step"], found[name]
        assert [v.owner for v in step.inputs] == [found[f"{name}.W"]]
        assert (step.group, step.params, set(times_of(step))) == (own.group, own.params, set(times_of(own)))
        assert times_of(step) == {k: 1000 + round(each * weight / k / 1000) for k in times_of(own)}
    # All hold the whole norm: its gradient, 2 KiB, is all-reduced at 100 GB/s inside a node, at 10 GB/s beyond.
    whole = {1: 0.0, 2: 5000 + 2 * norm / 100, 4: 5000 + 3 * norm / 100}
    assert {k: times_of(steps["n.step"])[k] for k in whole} == {
        k: round(1000 + each * norm / 1000 + t) for k, t in whole.items()
    }


def test_parameters_that_all_hold_follow_from_what_each_holds() -> None:
    for whole, parts, k in product((0, 2, 7), (0, 8, 9, 1001), (1, 2, 3, 8)):
        found = held_whole(whole + parts, whole + -(-parts // k), k)
        assert found - (whole if k > 1 else 0) in ((0,) if parts % k == 0 else (0, 1))


def test_steps_of_the_optimizer_are_written_and_read_and_no_part_of_a_micro_batch() -> None:
    tied = (
        'a = linear(x, features = 32) group "t"\n b = linear(a, features = 32) group "t"\n y = linear(b, features = 8)'
    )
    graph = expanded(model(tied), tie="colocate")
    steps = {op.outputs[0].name_hint: op for op in graph.updates()}
    assert {n: [v.name_hint for v in op.inputs] for n, op in steps.items()} == {
        "a.step": ["b.W", "a.W"], "y.step": ["y.W"]
    }  # fmt: skip
    assert not any(isinstance(op, OptimizerStepOp) for op in graph.operators())
    module = graph.parent_op()
    assert isinstance(module, ModuleOp)
    for generic in (False, True):
        text = print_ir(module, generic=generic)
        assert print_ir(parse_ir(new_context(), text, "again.mlir"), generic=generic) == text
    assert not list(expanded(model(tied), optimizer="none").updates())


def test_nothing_lies_beside_parameters_that_no_loss_depends_on() -> None:
    heads = (
        'h = linear(x, features = 32)\n a = linear(h, features = 32)\n b = linear(h, features = 32) group "t"\n'
        ' c = linear(h, features = 32) group "t"\n y = mse_loss(b, x)'
    )
    plain, trained = costed(model(heads), False), costed(model(heads), True)
    times = {}
    for name in ("h", "a", "b", "c"):
        ours, theirs = trained[name].cost, plain[name].cost
        assert ours is not None
        assert theirs is not None
        times[name] = ours.table()[1].params // theirs.table()[1].params
    assert times == {"h": 8, "a": 1, "b": 8, "c": 8}


def test_a_group_holds_its_bytes_once() -> None:
    module = run_pipeline(
        new_context(), load(Source("m.takt", MLP + PLATFORM)), options=Options(training="adam", stages=1, effort=0.1)
    )
    graph, platform = graph_of(module), find_platform(module)
    assert platform is not None
    params = sum(o.params.value.data for o in graph.operators() if not isinstance(o, GradientOp))
    widths = {len(o.slot.copies()[0]) for o in graph.operators() if o.slot is not None and o.params.value.data}
    norm = 2 * SIDE
    held = max(p for p, _ in peak_memory(graph, platform).values())
    assert held in {8 * ((params - norm) // k + norm) for k in widths}


WRITTEN = (
    "a = op(x) time [9us, 5us] params 4 KiB output 8 B memory 100 B\n"
    " b = op(a) time [9us] params 4 KiB output 6 B backward {ratio}\n y = op(b) time [8us] output 2 B {last}"
)


def written(ratio: str = "1.5x", last: str = "", **options: Any) -> dict[str, dict[int, int]]:
    found = named(expanded(model(WRITTEN.format(ratio=ratio, last=last)), **options))
    tables = {name: op.cost.table() for name, op in found.items() if op.cost is not None}
    assert tables["a.W"][2].workspace == 100
    assert tables["b.I"][1].output == 8
    return {name: {k: c.time for k, c in t.items()} for name, t in tables.items() if name[-2:] in (".I", ".W")}


def test_written_tables() -> None:
    half = {"a.W": {1: 9000, 2: 5000}, "b.I": {1: 6750}, "b.W": {1: 6750}, "y.I": {1: 16000}}
    assert written() == half
    assert written(backward=1.0) == half | {"a.W": {1: 4500, 2: 2500}, "y.I": {1: 8000}}
    assert written(ratio="0x", last="backward 3 x") == half | {"b.I": {1: 0}, "b.W": {1: 0}, "y.I": {1: 24000}}
    times = half | {"b.I": {1: 5500}, "b.W": {1: 1500}, "y.I": {1: 9000}}
    assert written(ratio="[7us] weights [1.5us]", last="backward {1: 9us}") == times
    assert written(ratio="[7us]") == half | {"b.I": {1: 3500}, "b.W": {1: 3500}}


def test_written_times_of_gradients_are_read_again_and_left_out_with_their_allotments() -> None:
    text = "y = op(x) time [9us, 5us] params 4 KiB output 8 B backward [9us, 7us] weights [4us, 2us]"
    module = load(Source("m.takt", model(text) + PLATFORM))
    for generic in (False, True):
        printed = print_ir(module, generic=generic)
        assert print_ir(parse_ir(new_context(), printed, "m.mlir"), generic=generic) == printed
    assert "backward [9000, 7000] weights [4000, 2000]" in print_ir(module)
    AnnotateCostsPass().apply(Context(), module)
    RestrictAllotmentsPass(to=2).apply(Context(), module)
    verify_level(module)
    assert "backward" not in print_ir(module)


@pytest.mark.parametrize(
    ("clause", "expected"),
    [
        ("backward [9, 7, 5]", "there are 3 times of gradients for 2 allotments"),
        ("backward [9, 7] weights [4]", "there are 2 times of gradients for 2 allotments"),
        ("backward [9, 7] weights [4, 8]", "those of weights are a part of them"),
        ("backward [9, -7]", "times of gradients are not negative"),
        ("weights [9, 7]", "'weights' is a part of the times of 'backward', which are missing"),
    ],
)
def test_times_of_gradients_that_do_not_fit(clause: str, expected: str) -> None:
    text = print_ir(load(Source("m.takt", model("y = op(x) time [9us, 5us] backward [9us, 7us]") + PLATFORM)))
    broken = text.replace("backward [9000, 7000]", clause)
    assert broken != text
    module = parse_ir(new_context(), broken, "m.mlir")
    with pytest.raises(TaktError, match=re.escape(expected)):
        verify_level(module)


def test_a_sum_runs_where_a_written_table_has_no_time_on_one() -> None:
    three = "a = op(x) time {3: 3us} params 4 KiB output 64 B\n b = op(a) time [3us]\n y = op(a, b) time [3us]"
    found = costed(model(three), True)
    assert (times_of(found["a.W"]), 3 in times_of(found["a.sum"])) == ({3: 3000}, False)
    assert found["a.sum"].group is None
    assert found["a.W"].group == found["a"].group


def refusal(text: str, **options: Any) -> str:
    with pytest.raises(TaktError) as caught:
        expanded(text, **options)
    (found,) = caught.value.diagnostics
    assert found.hint or "already" in found.message or "between" in found.message
    return found.message


def test_refusals() -> None:
    assert "nothing to train" in refusal(model("y = gelu(x)"))
    state = "state s: tensor<2 x 8 x 32, bf16>\n y = linear(s, features = 32)\n next s = y"
    assert "state 's'" in refusal(model(state))
    assert "between 0 and 1000" in refusal(model(f"y = {X}"), backward=-1.0)
    long = "y = op(x) time [9000000000 s] params 4 KiB"
    assert "2^63 ns or more" in refusal(model(long), backward=1000.0)
    with pytest.raises(TaktError, match=r"beside them have 2\^63 bytes or more"):
        costed(model("y = op(x) time [9us] params 8000 PiB"), True)


END_TO_END: Mapping[str, tuple[str, Sequence[str], float]] = {
    "gpt2_xl": ("dgx_a100_16", ("layers=2",), 3.2),
    "llama3_8b": ("dgx_a100_16", ("layers=1", "seq=1024"), 3.2),
    "mixtral_8x7b": ("dgx_a100_16", ("layers=1", "seq=1024"), 3.67),
    "encoder_decoder": ("dgx_a100_16", ("encoder_layers=1", "decoder_layers=1", "hidden=4096"), 4),
    "resnet50": ("tiny_board", ("batch=4",), 4),
    "research_dag": ("tiny_board", (), 3.2),
}


@pytest.mark.parametrize("name", END_TO_END)
def test_a_training_schedule_of_every_example(name: str, examples: Path) -> None:
    board, sets, most = END_TO_END[name]
    overrides = dict(text.split("=") for text in sets)
    views = []
    for training in (None, "sgd"):
        module = load(
            Source.read(examples / f"{name}.takt"),
            platform=Source.read(examples / f"{board}.takt"),
            overrides=overrides,
        )
        module = run_pipeline(new_context(), module, options=Options(training=training, effort=0.3))
        views.append(view_of(module))
    forward, trained = views
    assert 2 * forward.period <= trained.period <= most * forward.period
    measured = time_triggered(trained, trained.in_flight + 4)
    assert (measured.period, measured.latency_max) == (trained.period, trained.latency)
    graph, platform = graph_of(module), find_platform(module)
    assert platform is not None
    assert max(measured.peak_memory.values()) == max(sum(v) for v in peak_memory(graph, platform).values())


def test_values_of_a_forward_pass_live_until_their_gradients(examples: Path) -> None:
    module = load(Source("m.takt", MLP + PLATFORM))
    module = run_pipeline(new_context(), module, options=Options(training="adam", effort=0.1))
    found = named(graph_of(module))
    for name, reader in (("g", "y.W"), ("a", "g.I"), ("n", "a.W")):
        assert any(isinstance(v, OpResult) and v.op is found[name] for v in found[reader].inputs), (
            f"{name} is read by {reader}"
        )
