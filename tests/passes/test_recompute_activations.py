"""recompute-activations: what gradients read, bytes kept by hand and on random blocks, layouts, schedules."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xdsl.context import Context
from xdsl.ir import OpResult, SSAValue

from compiler.ir_input import parse_ir
from compiler.output import print_ir
from compiler.pipeline import Options, new_context, run_pipeline
from compiler.simulate import time_triggered
from compiler.view import view_of
from dialects.attributes import CostEntry
from dialects.diagnostics import TaktError
from dialects.gradients import ForwardAttr, GradientOp, RecomputeOp
from dialects.levels import verify_level
from dialects.operators import OperatorOp, Tensor, operator_names, tensor_bytes
from dialects.schedule_rules import peak_memory
from dialects.structure import GraphOp, find_graph, find_platform
from frontend import Source, load
from passes.choices import RECOMPUTATIONS
from passes.expand_training import ExpandTrainingPass
from passes.recompute_activations import RecomputeActivationsPass
from passes.training.choose import cheapest
from passes.training.regions import kept_values

PLATFORM = """
accelerator a {
  memory = 1 GiB  bandwidth = 10 GB/s  launch = 1 us
  peak bf16 = 1 TFLOP/s
}
platform p { accelerators = 2 of a  link node { latency = 1 us  bandwidth = 10 GB/s } }
"""

LAYERS = """
block layer(x: tensor<8 x 64, bf16>) -> y {
  n = layer_norm(x)
  h = linear(n, features = 256)
  g = gelu(h)
  d = linear(g, features = 64, split = "row")
  y = residual(x, d)
}
model m {
  input x: tensor<8 x 64, bf16>
  input t: tensor<8 x 64, bf16>
  e = linear(x, features = 64)
  repeat 2 carry e { e = layer(e) }
  p = linear(e, features = 64)
  loss = mse_loss(p, t)
  output loss
}
"""
NARROW, WIDE = 8 * 64 * 2, 8 * 256 * 2


def trained(text: str, policy: Any = "none", save: int = 0) -> GraphOp:
    module = load(Source("m.takt", text))
    ExpandTrainingPass().apply(Context(), module)
    RecomputeActivationsPass(policy=policy, save=save).apply(Context(), module)
    verify_level(module)
    return cast(GraphOp, find_graph(module))


def named(graph: GraphOp) -> dict[str, OperatorOp]:
    return {name: op for op, name in operator_names(graph).items()}


def kept(graph: GraphOp) -> int:
    return sum(tensor_bytes(cast(Tensor, v.type)) for v in kept_values(graph))


def copies(graph: GraphOp) -> dict[RecomputeOp, OperatorOp]:
    """Each copy and its original, which has its name without ``.R``."""
    found = named(graph)
    return {op: found[name.removesuffix(".R")] for name, op in found.items() if isinstance(op, RecomputeOp)}


def original(value: SSAValue, of: Mapping[RecomputeOp, OperatorOp]) -> SSAValue:
    if isinstance(value, OpResult) and isinstance(value.op, RecomputeOp):
        return of[value.op].outputs[value.index]
    return value


def test_bytes_kept_for_a_micro_batch_by_hand() -> None:
    # Of the model both inputs and the result of each product, of each layer its result, which the next reads.
    always = 6 * NARROW
    none = always + 2 * (NARROW + 2 * WIDE)
    assert [kept(trained(LAYERS, policy)) for policy in RECOMPUTATIONS] == [none, always + 2 * WIDE, always]


def test_gradients_read_copies_of_the_same_values() -> None:
    full = trained(LAYERS, "full")
    found = named(full)
    assert [name for name in found if name.endswith(".R")] == [
        f"layer.{i}.{name}.R" for i in (1, 0) for name in ("n", "h", "g")
    ]
    for i, before in ((0, "e"), (1, "layer.0.y")):
        reads = {name: [v.name_hint for v in found[f"layer.{i}.{name}"].inputs][1:] for name in ("d.W", "g.I", "h.W")}
        assert reads == {"d.W": [f"layer.{i}.g.R"], "g.I": [f"layer.{i}.h.R"], "h.W": [f"layer.{i}.n.R"]}
        assert found[f"layer.{i}.n.I"].inputs[1].name_hint == before
        first = cast(RecomputeOp, found[f"layer.{i}.n.R"])
        assert [v.name_hint for v in first.computed] == [before]
        assert [v.name_hint for v in first.awaited] == [found[f"layer.{i}.d.W"].inputs[0].name_hint]
    selective = named(trained(LAYERS, "selective"))
    assert {name[8:] for name in selective if name.endswith(".R")} == {"n.R", "g.R"}
    module = full.parent_op()
    text = print_ir(module, generic=False)  # pyright: ignore[reportArgumentType]
    assert print_ir(parse_ir(new_context(), text, "again.mlir")) == text


def test_scores_of_attention_are_light_and_what_they_make_is_not() -> None:
    text = """
    block core(x: tensor<1 x 512 x 64, bf16>) -> o {
      q = linear(x, features = 64)
      k = linear(x, features = 64)
      v = linear(x, features = 64)
      scores = matmul(q, k, transpose_b = true)
      p = softmax(scores)
      c = matmul(p, v)
      o = linear(c, features = 64)
    }
    model m { input x: tensor<1 x 512 x 64, bf16>
      h = linear(x, features = 64)  y = core(h)  z = core(y)  output z }
    """
    again = {name for name in named(trained(text, "selective")) if name.endswith(".R")}
    assert again == {f"core.{i}.{name}.R" for i in (0, 1) for name in ("scores", "p")}


def test_the_end_of_a_model_is_not_computed_again() -> None:
    text = LAYERS.replace("p = linear(e, features = 64)\n  loss = mse_loss(p, t)", "loss = head(e, t)")
    head = "n = layer_norm(x)\n p = linear(n, features = 64)\n l = mse_loss(p, t)"
    text = f"block head(x: tensor<8 x 64, bf16>, t: tensor<8 x 64, bf16>) -> l {{\n {head}\n}}\n{text}"
    for policy in RECOMPUTATIONS[1:]:
        again = {name for name in named(trained(text, policy)) if name.endswith(".R")}
        assert {"layer.0.n.R", "layer.1.n.R"} <= again
        assert not any(name.startswith("head") for name in again)


def test_a_model_without_blocks_has_nothing_that_full_could_keep() -> None:
    text = "model m { input x: tensor<8 x 64, bf16>\n h = linear(x, features = 8)\n g = gelu(h)\n output g }"
    with pytest.raises(TaktError, match="'full' keeps what blocks read, and @m calls no block"):
        trained(text, "full")


@st.composite
def models(draw: Any) -> str:
    """A model of a few calls of one random block, which reads one value or two."""
    lines: list[str] = []
    known = ["x", "w"]
    for v in range(draw(st.integers(1, 7))):
        kind = draw(st.sampled_from(["linear", "layer_norm", "gelu", "relu", "add", "mul", "softmax", "sub"]))
        count = 2 if kind in ("add", "mul", "sub") else 1
        operands = ", ".join(draw(st.sampled_from(known)) for _ in range(count))
        lines.append(f"v{v} = {kind}({operands}{', features = 64' if kind == 'linear' else ''})")
        known.append(f"v{v}")
    body = "\n  ".join([*lines, f"y = {draw(st.sampled_from(['residual(x, ', 'mul(x, ']))}{known[-1]})"])
    shape = "tensor<8 x 64, bf16>"
    count = draw(st.integers(1, 3))
    calls = "\n ".join(f"e{i + 1} = layer(e{i}, {draw(st.sampled_from([f'e{i}', 'f']))})" for i in range(count))
    end = draw(st.sampled_from([f"output e{count}", f"l = mse_loss(e{count}, t)\n output l"]))
    return (
        f"block layer(x: {shape}, w: {shape}) -> y {{\n  {body}\n}}\nmodel m {{\n input t: {shape}\n"
        f" e0 = linear(t, features = 64)\n f = gelu(e0)\n {calls}\n {end}\n}}\n"
    )


@given(models())
@settings(max_examples=15, deadline=None)
def test_random_blocks(text: str) -> None:
    graphs = {policy: trained(text, policy) for policy in RECOMPUTATIONS}
    none = {name: op for name, op in named(graphs["none"]).items() if isinstance(op, GradientOp)}
    for graph in graphs.values():
        of = copies(graph)
        for copy, op in of.items():
            assert copy.of == ForwardAttr.of(op, (), ())
            assert [original(v, of) for v in copy.computed] == list(op.inputs)
            assert (copy.group, copy.block, copy.params) == (op.group, op.block, op.params)
            assert any(True for r in copy.outputs for _ in r.uses)
            again = [v for v in copy.computed if isinstance(v.owner, RecomputeOp)]
            assert len(copy.awaited) == (not again)
        for name, op in named(graph).items():
            if isinstance(op, GradientOp):
                assert [original(v, of).name_hint for v in op.inputs] == [v.name_hint for v in none[name].inputs]
    bytes_ = [kept(graphs[policy]) for policy in RECOMPUTATIONS]
    assert bytes_ == sorted(bytes_, reverse=True)
    none_, light, whole = ({op.outputs[0].name_hint for op in copies(graphs[p]).values()} for p in RECOMPUTATIONS)
    # The more is forgotten, the more is computed again; only where a loss is near "full" forgets nothing.
    assert set() == none_ <= light <= whole


def test_copies_cost_and_lie_as_their_originals(examples: Path) -> None:
    platform = Source.read(examples / "dgx_a100_16.takt")
    for name, layers in (("gpt2_xl", 2), ("mixtral_8x7b", 1)):
        graphs: dict[str, GraphOp] = {}
        for policy in ("none", "full"):
            module = load(Source.read(examples / f"{name}.takt"), platform=platform, overrides={"layers": f"{layers}"})
            options = Options(training="none", recompute=policy)
            graphs[policy] = cast(
                GraphOp, find_graph(run_pipeline(new_context(), module, to="moldable", options=options))
            )
        found = copies(graphs["full"])
        again = named(graphs["full"])
        for operator, op in named(graphs["none"]).items():
            assert (again[operator].cost, again[operator].sharded) == (op.cost, op.sharded)
        assert found
        for copy, op in found.items():
            assert copy.sharded == op.sharded
            assert _times(copy) == _times(op)


def _times(op: OperatorOp) -> Mapping[int, CostEntry]:
    assert op.cost is not None
    return op.cost.table()


def test_the_solver_saves_enough_in_the_least_time() -> None:
    text = LAYERS.replace("repeat 2", "repeat 4") + PLATFORM
    before = kept(trained(text))
    for save in (0, 1, 3 * WIDE, 4 * (WIDE + NARROW), 4 * (2 * WIDE + NARROW)):
        graph = trained(text, "solver", save=save)
        assert before - kept(graph) >= save
        # A layer saves a narrow and a wide value selectively, and one wide value more in full.
        light = -(-save // (WIDE + NARROW))
        full = max(0, light - 4) and 4
        found = [name.split(".")[2] for name in named(graph) if name.endswith(".R")]
        assert (found.count("g"), found.count("h")) == (max(min(light, 4), full), full)
    with pytest.raises(TaktError, match=r"at most 36\.00 KiB that a micro-batch of @m keeps can be computed again"):
        trained(text, "solver", save=4 * (2 * WIDE + NARROW) + 1)
    with pytest.raises(TaktError, match="depends on a platform"):
        trained(LAYERS, "solver")


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=3), min_size=1, max_size=4),
    st.integers(0, 30),
)
@settings(max_examples=60, deadline=None)
def test_choices_are_the_best_of_all(ways: list[list[tuple[int, int]]], save: int) -> None:
    every = [list(way) for way in product(*(range(len(some)) for some in ways))]
    good = [way for way in every if sum(some[n][0] for some, n in zip(ways, way, strict=True)) >= save]
    found = cheapest(ways, save)
    if found is None:
        assert not good
        return
    assert found in good
    times = [sum(some[n][1] for some, n in zip(ways, way, strict=True)) for way in (*good, found)]
    assert times[-1] == min(times)


def test_schedules_hold_less_and_take_longer() -> None:
    held: list[int] = []
    periods: list[Any] = []
    for policy in RECOMPUTATIONS:
        module = load(Source("m.takt", LAYERS + PLATFORM))
        options = Options(training="adam", recompute=policy, stages=3, allotments="stage", effort=0.1)
        scheduled = run_pipeline(new_context(), module, options=options)
        verify_level(scheduled)
        view, graph, platform = view_of(scheduled), find_graph(scheduled), find_platform(scheduled)
        assert graph is not None
        assert platform is not None
        peaks = peak_memory(graph, platform)
        measured = time_triggered(view, view.in_flight + 4)
        assert max(measured.peak_memory.values()) == max(sum(v) for v in peaks.values())
        held.append(sum(values for _, values in peaks.values()))
        periods.append(view.period)
    assert held[0] > held[1] > held[2]
    assert periods[0] < periods[1] < periods[2]
