"""The pass annotate-costs: what it writes, what it keeps, what it refuses."""

from __future__ import annotations

import re
import time

import pytest
from xdsl.context import Context
from xdsl.dialects.builtin import Builtin, ModuleOp
from xdsl.parser import Parser

from dialects.attributes import CostEntry, values
from dialects.diagnostics import Diagnostic, TaktError
from dialects.operators import OperatorOp
from dialects.structure import find_graph
from dialects.takt import Takt
from passes.annotate_costs import AnnotateCostsPass

PLATFORM = """
takt.platform @p {accelerator = "a", accelerators = 8 : i64, memory = 1000000000 : i64,
  bandwidth = 1000000000000 : i64, launch = 1000 : i64,
  peak = {bf16 = 100000000000000 : i64, f32 = 1000000000000 : i64},
  compute_efficiency = 1.0 : f64, memory_efficiency = 1.0 : f64, saturation = 0 : i64,
  links = [#takt.link<"node" 4, latency 5000, bandwidth 100000000000>,
           #takt.link<"cluster" 8, latency 50000, bandwidth 10000000000>]}
"""
X = "tensor<1x1024x1024xbf16>"
MODEL = f"""
takt.graph @g model {{
  %x = takt.input : {X}
  %y = takt.linear(%x) {{features = 1024}} params 2097152 : ({X}) -> {X}
  %z = takt.linear(%y) {{features = 1024, split = "row"}} params 2097152 : ({X}) -> {X}
  %w = takt.op(%z) cost <[1, 3] time [7000, 5000] params [10, 4]> : ({X}) -> tensor<0xi8>
  takt.output %w : tensor<0xi8>
}}
"""


def parse(*texts: str) -> ModuleOp:
    context = Context()
    context.load_dialect(Builtin)
    context.load_dialect(Takt)
    return Parser(context, "\n".join(texts)).parse_module()


def annotated(*texts: str, **options: object) -> list[OperatorOp]:
    module = parse(*texts)
    AnnotateCostsPass(**options).apply(Context(), module)  # pyright: ignore[reportArgumentType]
    module.verify()
    graph = find_graph(module)
    assert graph is not None
    assert graph.level.data == "moldable"
    return list(graph.operators())


def refusal(*texts: str, **options: object) -> list[Diagnostic]:
    with pytest.raises(TaktError) as caught:
        annotated(*texts, **options)
    return list(caught.value.diagnostics)


def table(op: OperatorOp) -> dict[int, CostEntry]:
    assert op.cost is not None
    return dict(op.cost.table())


def test_times_computed_by_hand():
    y, z, _ = annotated(PLATFORM, MODEL)
    # 2 * 1024^3 operations at 100 TFLOP/s: 21475 ns, longer than moving 6 MiB; no collective, split result
    mib = 2**20
    assert table(y) == {
        1: CostEntry(1000 + 21475, 2 * mib, 2 * mib),
        2: CostEntry(1000 + 10737, mib, mib),
        4: CostEntry(1000 + 5369, mib // 2, mib // 2),
        8: CostEntry(1000 + 2684, mib // 4, mib // 4),
    }
    # the same and an all-reduce of 2 MiB: 5 us + 2 * 3/4 * 2 MiB at 100 GB/s = 36457 ns on 4,
    # and on 8, across nodes: 5 us + 3/4 * 2 MiB at 100 GB/s before and after 50 us + 1/2 MiB at 10 GB/s = 143886 ns
    assert table(z)[4] == CostEntry(1000 + 5369 + 36457, mib // 2, 2 * mib)
    assert table(z)[8] == CostEntry(1000 + 2684 + 143886, mib // 4, 2 * mib)


def test_times_need_not_fall():
    _, z, _ = annotated(PLATFORM, MODEL)
    assert table(z)[8].time > table(z)[4].time > table(z)[1].time


def test_written_tables_are_kept():
    *_, w = annotated(PLATFORM, MODEL)
    assert table(w) == {1: CostEntry(7000, 10), 3: CostEntry(5000, 4)}


def test_a_written_table_may_stand_on_any_operator():
    model = MODEL.replace("params 2097152 :", "params 2097152 cost <[1] time [5]> :", 1)
    y, z, _ = annotated(PLATFORM, model)
    assert table(y) == {1: CostEntry(5)}
    assert table(z) == table(annotated(PLATFORM, MODEL)[1])


def sharded(model: str) -> dict[str, tuple[int, ...]]:
    """Name of an operator's first result → the numbers of its results that stay split."""
    found: dict[str, tuple[int, ...]] = {}
    for op in annotated(PLATFORM, model):
        found[op.results[0].name_hint or ""] = () if op.sharded is None else values(op.sharded)
    return found


def test_results_that_stay_split_are_listed():
    # The column product stays split for the row product, whose sum is whole, as what an opaque operator reads.
    assert sharded(MODEL) == {"y": (0,), "z": (), "w": ()}
    # An output of the graph is whole, and so is what an opaque operator reads beside others.
    assert sharded(MODEL.replace("takt.output %w : tensor<0xi8>", f"takt.output %y : {X}"))["y"] == ()
    assert sharded(MODEL.replace("takt.op(%z)", "takt.op(%y)"))["y"] == ()


def test_a_written_table_changes_no_layout_but_an_opaque_operator_takes_and_gives_whole_values():
    model = MODEL.replace("params 2097152 :", "params 2097152 cost <[1] time [5]> :", 1)
    assert sharded(model)["y"] == (0,)
    opaque = f"%y = takt.op(%x) params 2097152 cost <[1] time [5]> : ({X}) -> {X}"
    model = re.sub(r"%y = .*", opaque, MODEL)
    assert sharded(model) == {"y": (), "z": (), "w": ()}


def test_each_result_has_a_layout_of_its_own():
    model = f"""takt.graph @g model {{
      %x = takt.input : {X}
      %y = takt.linear(%x) {{features = 1024}} params 2097152 : ({X}) -> {X}
      %p, %q = takt.split(%y) {{parts = 2, axis = 1}} : ({X}) -> (tensor<1x512x1024xbf16>, tensor<1x512x1024xbf16>)
      %z = takt.linear(%q) {{features = 512, split = "row"}} params 1048576
        : (tensor<1x512x1024xbf16>) -> tensor<1x512x512xbf16>
      takt.output %p, %z : tensor<1x512x1024xbf16>, tensor<1x512x512xbf16>
    }}"""
    assert sharded(model) == {"y": (0,), "p": (1,), "z": ()}


def test_a_written_table_beyond_the_platform_is_refused_at_its_operator():
    model = MODEL.replace("[1, 3] time", "[1, 9] time").replace("params [10, 4]> : (", "> : (")
    model = model.replace(") -> tensor<0xi8>", ') -> tensor<0xi8> loc("m.takt":4:7)', 1)
    (diagnostic,) = refusal(PLATFORM, model)
    assert diagnostic.message == "'w' has a written time on 9 accelerators, but platform @p has 8"
    assert str(diagnostic.location) == "m.takt:4:7"
    assert diagnostic.hint is not None
    assert "beyond 8" in diagnostic.hint


def test_an_element_type_without_a_rate_is_refused_once():
    model = MODEL.replace("bf16", "f16")
    (diagnostic,) = refusal(PLATFORM, model)
    assert "'y' (linear) multiplies f16 numbers" in diagnostic.message
    assert "it has: bf16, f32" in diagnostic.message
    assert diagnostic.hint is not None
    assert "peak f16" in diagnostic.hint


def test_element_wise_operators_need_no_rate():
    x = "tensor<16xf16>"
    model = (
        f"takt.graph @g model {{ %x = takt.input : {x} \n %y = takt.gelu(%x) : ({x}) -> {x} \n takt.output %y : {x} }}"
    )
    (y,) = annotated(PLATFORM, model)
    assert set(table(y)) == {1, 2, 4, 8}


def test_a_module_without_a_platform_is_refused():
    (diagnostic,) = refusal(MODEL)
    assert "depend on a platform" in diagnostic.message
    assert diagnostic.hint == "give one with --platform or define one in the model file"


@pytest.mark.parametrize("level", ["moldable", "staged", "scheduled"])
def test_a_graph_of_another_level_is_refused(level: str):
    (diagnostic,) = refusal(PLATFORM, MODEL.replace("@g model", f"@g {level}"))
    assert f"is at level '{level}'" in diagnostic.message


def test_a_module_without_a_graph_is_refused():
    assert "no takt.graph" in refusal(PLATFORM)[0].message


# 1023 = 3 * 11 * 31
ODD = """
takt.graph @g model {
  %x = takt.input : tensor<8x1023xbf16>
  %y = takt.linear(%x) {features = 1023, split = "row"} params 2093058 : (tensor<8x1023xbf16>) -> tensor<8x1023xbf16>
  takt.output %y : tensor<8x1023xbf16>
}
"""


@pytest.mark.parametrize(
    ("model", "options", "allotments"),
    [
        (MODEL, {}, {1, 2, 4, 8}),
        (MODEL, {"max_allotment": 2}, {1, 2}),
        (MODEL, {"max_allotment": 0}, {1, 2, 4, 8}),
        (ODD, {}, {1}),
        (ODD, {"allotments": "all"}, {1, 3}),
        (ODD, {"allotments": "all", "max_allotment": 2}, {1}),
    ],
)
def test_options(model: str, options: dict[str, object], allotments: set[int]):
    assert set(table(annotated(PLATFORM, model, **options)[0])) == allotments


def test_a_negative_limit_is_refused():
    assert "max-allotment" in refusal(PLATFORM, MODEL, max_allotment=-1)[0].message


def test_ten_thousand_operators_take_about_a_second():
    x = "tensor<1x64x64xbf16>"
    lines = ["takt.graph @g model {", f"%v0 = takt.input : {x}"]
    for i in range(0, 10_000, 2):
        lines.append(f"%v{i + 1} = takt.linear(%v{i}) {{features = 64}} params 8192 : ({x}) -> {x}")
        lines.append(f"%v{i + 2} = takt.gelu(%v{i + 1}) : ({x}) -> {x}")
    module = parse(PLATFORM, *lines, f"takt.output %v10000 : {x} }}")
    started = time.process_time()
    AnnotateCostsPass().apply(Context(), module)
    assert time.process_time() - started < 3  # 0.4 s on an idle core; room for a busy machine
