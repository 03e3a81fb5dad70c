"""Steps shown to people and to programs: summary, picture, trace, JSON and the comparison with known schedules."""

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import fields
from fractions import Fraction
from itertools import pairwise
from typing import Any

import jsonschema
import pytest
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp

from compiler.pipeline import Options
from compiler.step_comparison import NAMES, Comparison, Made, Refused, compare_steps
from compiler.targets import TARGETS, emitter
from compiler.targets.json import schema
from compiler.targets.step_analysis import Spent, StepAnalysis
from compiler.targets.step_cells import alike, cells, kinds, ranks_of, runs_on
from compiler.targets.steps import json_text, table
from compiler.targets.steps import schema as steps_schema
from compiler.view import view_of
from dialects.diagnostics import TaktError
from frontend import Source, load
from passes.annotate_costs import AnnotateCostsPass
from passes.expand_training import ExpandTrainingPass
from passes.schedule_step import ScheduleStepPass

Tool = Callable[..., Any]
SVG = "{http://www.w3.org/2000/svg}"

CHIP = "accelerator chip { memory = 1 GiB  bandwidth = 10 GB/s  launch = 1 us  peak bf16 = 1 TFLOP/s }\n"
FREE = CHIP + "platform free { accelerators = 4 of chip }\n"
LINKED = CHIP + (
    "platform linked { accelerators = 4 of chip\n"
    "  link node = 2 { latency = 300 ns  bandwidth = 10 GB/s }\n"
    "  link rack { latency = 1 us  bandwidth = 2 GB/s } }\n"
)


def chain(count: int, backward: str = "1.0", size: int = 1024) -> str:
    """A chain of operators of 10 us each, behind one of no time, for which the first makes a gradient."""
    lines = ["model chain {", "  input x: tensor<8 x 64, bf16>", "  s = op(x) time [0us] params 8 B output 8 B"]
    before = "s"
    for number in range(count):
        lines.append(f"  a{number} = op({before}) time [10us] backward {backward}x params 4 KiB output {size} B")
        before = f"a{number}"
    return "\n".join([*lines, f"  output {before}", "}\n"])


def moldable(text: str, optimizer: Any = "none") -> ModuleOp:
    module = load(Source("model.takt", text))
    if optimizer != "forward":
        ExpandTrainingPass(optimizer=optimizer).apply(Context(), module)
    AnnotateCostsPass().apply(Context(), module)
    return module


def scheduled(text: str, microbatches: int, order: Any, optimizer: Any = "none", **options: Any) -> ModuleOp:
    module = moldable(text, optimizer)
    ScheduleStepPass(microbatches=microbatches, order=order, **{"effort": 0.05, **options}).apply(Context(), module)
    return module


@pytest.fixture(scope="module")
def one_f_one_b() -> ModuleOp:
    """Four equal stages, six micro-batches: F 10, I 5 and W 5 us."""
    return scheduled(chain(4) + FREE, 6, "1f1b", stages=4)


@pytest.fixture(scope="module")
def overlapping() -> ModuleOp:
    """ZB-V with links and an optimizer: two chunks a rank, and a next step that begins early."""
    return scheduled(chain(8, "2.0") + LINKED, 8, "zb-v", "adam", stages=4)


# --- cells -----------------------------------------------------------------------------------


def test_kinds_of_cells() -> None:
    assert kinds(["F", "F"]) == [("F", 2)]
    assert kinds(["I", "I", "W"]) == [("I", 2), ("W", 1)]
    assert kinds(["I", "W", "I", "W"]) == [("B", 4)]
    assert kinds(["W", "I"]) == [("B", 2)]


def test_cells_of_a_step(one_f_one_b: ModuleOp, overlapping: ModuleOp) -> None:
    for module, stages, m in ((one_f_one_b, 4, 6), (overlapping, 8, 8)):
        view = view_of(module)
        places = alike(view)
        assert places == [(0,), (1,), (2,), (3,)] == [rank.accelerators for rank in ranks_of(view)]
        found = [cells(view, runs) for runs in runs_on(view, places)]
        named = [(c.kind, c.stage, c.microbatch) for row in found for c in row if c.kind != "O"]
        assert len(named) == len(set(named)) == 3 * stages * m
        for p, row in enumerate(found):
            assert all(a.end <= b.begin for a, b in pairwise(row))
            assert sum(c.end - c.begin for c in row) == view.load[p] * m


# --- summary ---------------------------------------------------------------------------------


def test_summary_of_a_step(one_f_one_b: ModuleOp) -> None:
    text = " ".join(emitter("summary")(one_f_one_b, width=120).split())
    # (p-1)(F+I+W) = 60 us of 180 are idle on every rank; each of the six micro-batches takes 20 us.
    for expected in [
        "chain on free: 4 x chip, plan '1F1B' by known, seed 0",
        "training forward and backward, without an optimizer step 180 us",
        "180 us for 6 micro-batches (5,556 steps/s, 33,333 micro-batches/s)",
        "in flight 4 micro-batches, each for at most",
        "busy 66.7 % on average: forward 33.3 %, gradients of inputs 16.7 %, of weights 16.7 %",
        "bubble mean 33.3 % idle filling 16.7 %, draining 16.7 % transfers",
        "*0 0:1 2+3 s .. a0 120 us 66.7 %",
        "critical (*): accelerators 0:4, busy for 66.67 % of the step: forward 33.3 %",
        "33.3 % of the accelerators' time goes to filling and draining: 6 micro-batches for 4 ranks. More micro-",
        "of P",
    ]:
        assert expected in text, (expected, text)
    assert "period" not in text
    assert text.count(" all on 1") == 4


def test_summary_of_steps_that_overlap(overlapping: ModuleOp) -> None:
    view, text = view_of(overlapping), " ".join(emitter("summary")(overlapping, width=120).split())
    assert view.makespan > view.pattern
    for expected in [
        "from its first start to its last end; the next step begins before that",
        "training forward and backward, adam in mixed precision step",
        "rank.chunk",
        "3.1 3:4",
        "between steps",
        "optimizer 9 updates, at most 14.48 us (2.9 % of the step) on accelerator 0; the first at 493.1 us",
        "link node",
        "of the step, into accelerator",
    ]:
        assert expected in text, (expected, text)


WIDE = """model wide {
  input x: tensor<8 x 64, bf16>
  a = op(x) time [40us, 20us, 15us, 12us] backward 2.0x params 4 KiB output 8 B
  b = op(a) time [40us] backward 2.0x params 4 KiB output 8 B
  output b
}
"""


def blocking(mode: str) -> str:
    """Links whose transfers stop accelerators."""
    return LINKED.replace("4 of chip", f"4 of chip  transfers = {mode}")


def odd_steps() -> list[ModuleOp]:
    """Chunks that take turns, transfers that stop accelerators, a rank of several accelerators, no stages at all."""
    unstaged = scheduled(chain(4) + FREE, 3, "zb-h2", "sgd", stages=2)
    for op in unstaged.walk():
        op.properties.pop("stage", None)
    for op in [op for op in unstaged.walk() if op.name == "takt.stage"]:
        op.detach()
    return [
        scheduled(chain(8) + LINKED, 8, "interleaved", "adam", stages=2),
        *(scheduled(chain(4, size=4000) + blocking(mode), 6, "1f1b", stages=4) for mode in ("blocking", "buffered")),
        scheduled(WIDE + FREE, 4, "own", "adam", stages=1),
        unstaged,
    ]


def test_where_the_time_goes(one_f_one_b: ModuleOp, overlapping: ModuleOp) -> None:
    for module in (one_f_one_b, overlapping, *odd_steps()):
        analysis = StepAnalysis(module)
        for p, spent in analysis.spent.items():
            shares = [getattr(spent, f.name) for f in fields(Spent)]
            assert min(shares) >= 0
            assert sum(shares) == 1
            assert spent.busy == 1 - analysis.view.bubble[p]
    # Rank s of 1F1B begins s F late, and waits (p-1-s)(F+B) until its first micro-batch has come back.
    spent = StepAnalysis(one_f_one_b).spent
    assert [s.fill * 180 for s in spent.values()] == [10 * s + 20 * (3 - s) - 10 * (3 - s) for s in range(4)]
    assert all(s.waiting == s.moving == s.between == s.unused == 0 for s in spent.values())


def test_waiting_for_transfers_is_told() -> None:
    slow = LINKED.replace("2 GB/s", "2 MB/s").replace("10 GB/s }", "1 MB/s }")
    analysis = StepAnalysis(scheduled(chain(4, size=40_000) + slow, 8, "1f1b", stages=4))
    assert analysis.mean.moving > Fraction(1, 3)
    assert "is spent waiting for transfers under way" in analysis.advice()[0]


def test_advice_on_optimizer_and_balance() -> None:
    few = StepAnalysis(scheduled(chain(4).replace("4 KiB", "40 KiB") + FREE, 2, "1f1b", "adam", stages=4))
    assert any(s.startswith("The optimizer takes") for s in few.advice())
    uneven = chain(4).replace("a3 = op(a2) time [10us]", "a3 = op(a2) time [90us]")
    assert any(
        s.startswith("The load is uneven") for s in StepAnalysis(scheduled(uneven + FREE, 8, "1f1b", stages=4)).advice()
    )


# --- picture ---------------------------------------------------------------------------------


def drawn(svg: str) -> list[tuple[str, str, dict[str, float]]]:
    """Class, tooltip and geometry of every cell."""
    return [
        (rect.attrib["class"].split()[0], title.text or "", {k: float(rect.attrib[k]) for k in ("x", "y", "width")})
        for rect in ET.fromstring(svg).iter(f"{SVG}rect")
        if (title := rect.find(f"{SVG}title")) is not None and re.match(r"[FIWBO]\d", rect.attrib.get("class", ""))
    ]


def test_picture_of_a_step(one_f_one_b: ModuleOp) -> None:
    svg = emitter("svg")(one_f_one_b)
    found = drawn(svg)
    assert len(found) == 4 * 6 * 3
    assert {c for c, _, _ in found} == {"F0", "I0", "W0"}
    assert "one step of 6 micro-batches: 180 us" in svg
    assert "bubble 33.3 %" in svg
    first = next(box for _, title, box in found if title.startswith("forward of micro-batch 0, stage 0,"))
    assert first["x"] == 166
    assert first["width"] == pytest.approx((1280 - 166 - 112) * 10 / 180, abs=0.2)
    labels = [e.text or "" for e in ET.fromstring(svg).iter(f"{SVG}text") if e.attrib.get("class") == "l"]
    assert sorted(labels) == sorted(12 * [str(i) for i in range(6)])


def test_cells_never_overlap(one_f_one_b: ModuleOp, overlapping: ModuleOp) -> None:
    for module in (one_f_one_b, overlapping):
        found = sorted((box for _, _, box in drawn(emitter("svg")(module))), key=lambda box: box["x"])
        last: dict[float, float] = {}
        for box in found:
            assert box["x"] >= last.get(box["y"], 0.0) - 0.21
            last[box["y"]] = box["x"] + box["width"]


def test_pictures_of_odd_steps() -> None:
    for module in odd_steps():
        view, svg = view_of(module), emitter("svg")(module)
        assert len([title for _, title, _ in drawn(svg) if "of the optimizer" not in title]) >= len(view.tasks)
        assert emitter("summary")(module, width=80)
        assert json.loads(emitter("perfetto")(module))["otherData"]["step_ns"] == view.pattern
        jsonschema.Draft202012Validator(schema()).validate(json.loads(emitter("json")(module)))


def test_picture_of_steps_that_overlap(overlapping: ModuleOp) -> None:
    svg = emitter("svg")(overlapping)
    assert any("of the next step" in title for _, title, _ in drawn(svg))
    assert {"O0", "F0", "F1"} <= {c for c, _, _ in drawn(svg)}
    assert "faded: the steps before and after" in svg
    assert "lighter: later chunks of a rank" in svg
    assert "thin lanes" in svg


def test_picture_of_many_cells_is_small(monkeypatch: pytest.MonkeyPatch, overlapping: ModuleOp) -> None:
    whole = emitter("svg")(overlapping)
    monkeypatch.setattr("compiler.targets.svg_step.MOST_CELLS", 10)
    few = emitter("svg")(overlapping)
    assert not drawn(few)
    assert len(few) < len(whole)
    rectangles = sum(
        path.attrib["d"].count("z") for path in ET.fromstring(few).iter(f"{SVG}path") if "class" in path.attrib
    )
    assert rectangles == len(drawn(whole))


# --- trace -----------------------------------------------------------------------------------


def test_trace_of_a_step(one_f_one_b: ModuleOp) -> None:
    events = json.loads(emitter("perfetto")(one_f_one_b))["traceEvents"]
    cell = [e["name"] for e in events if e.get("cat") == "micro-batch"]
    assert len(cell) == len(set(cell)) * 4 == 72
    assert "F of micro-batch 0" in cell
    assert sum(e["ph"] == "X" and e["cat"] == "operator" for e in events) == 12 * 6
    assert max(e["ts"] + e["dur"] for e in events if e["ph"] == "X") == 180
    assert any(e["ph"] == "C" for e in events)


def test_trace_of_steps_that_overlap(overlapping: ModuleOp) -> None:
    view, events = view_of(overlapping), json.loads(emitter("perfetto")(overlapping))["traceEvents"]
    assert {e["args"]["micro-batch"] for e in events if e.get("cat") == "micro-batch"} == set(range(16))
    optimizer = [e for e in events if e.get("cat") == "optimizer"]
    assert len(optimizer) == 2 * len(view.updates)
    assert {e["args"]["step"] for e in optimizer} == {0, 1}
    open_until: dict[tuple[int, int], float] = {}
    for e in events:
        if e["ph"] == "X" and e["cat"] in ("micro-batch", "optimizer"):
            assert e["ts"] >= open_until.get((e["pid"], e["tid"]), 0) - 1e-6
            open_until[e["pid"], e["tid"]] = e["ts"] + e["dur"]
    heads = {(e["tid"], e["ts"]) for e in events if e["ph"] == "f" and e["cat"] == "dependence"}
    # What takes no time has no arrows: the gradients of the operator before the chain.
    assert {(e["tid"], e["ts"]) for e in optimizer if e["args"]["group"] != "s"} <= heads


# --- JSON ------------------------------------------------------------------------------------


def test_json_of_steps(one_f_one_b: ModuleOp, overlapping: ModuleOp) -> None:
    for module in (one_f_one_b, overlapping, scheduled(chain(4) + LINKED, 4, "gpipe", "forward", stages=4)):
        document = json.loads(emitter("json")(module))
        jsonschema.Draft202012Validator(schema()).validate(document)
        assert all(len(o["starts"]) == document["step"]["microbatches"] for o in document["operators"])
        assert all(o["starts"][0] == o["start"] for o in document["operators"])
        assert all(t["starts"] == t["landings"] for t in document["transfers"])
    document = json.loads(emitter("json")(one_f_one_b))
    assert document["step"] | {"bound": 0, "gap": 0} == {
        **{"time": 180_000, "microbatches": 6, "bound": 0, "gap": 0},
        **{"begin": 0, "end": 180_000, "makespan": 180_000, "bubble": 0.333333333},
    }
    assert document["training"] == {"optimizer": "none", "precision": "mixed", "asynchronous": 0}
    document = json.loads(emitter("json")(overlapping))
    assert document["training"]["optimizer"] == "adam"
    assert ["a0.W"] in [u["gradients"] for u in document["updates"]]
    assert all(u["start"] >= 0 and u["accelerators"] for u in document["updates"])
    assert document["step"]["makespan"] > document["step"]["time"]


def shown(name: str, module: ModuleOp) -> bool:
    """Whether a target writes something, or refuses a step, which those of our own never do, with a hint."""
    try:
        return emitter(name)(module).endswith("\n")
    except TaktError as refusal:
        return name not in ("json", "perfetto", "svg", "summary") and all(d.hint for d in refusal.diagnostics)


def test_every_target_shows_a_step_or_says_why_not(one_f_one_b: ModuleOp, overlapping: ModuleOp) -> None:
    forward = scheduled(chain(4) + FREE, 3, "gpipe", "forward", stages=4)
    single = scheduled(chain(4) + FREE, 1, "1f1b", stages=1)
    for module in (one_f_one_b, overlapping, forward, single):
        for name in TARGETS:
            assert shown(name, module), name


# --- comparison ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared() -> Comparison:
    return compare_steps(moldable(chain(4) + FREE), Options(microbatches=8, stages=4, effort=0.05))


def test_comparison_has_the_closed_forms(compared: Comparison) -> None:
    made = {step.name: step for step in compared.steps if isinstance(step, Made)}
    p, m, forward, work = 4, 8, 10, 20
    idle = {"GPipe": work, "1F1B": work, "1F1B*": work, "ZB-H1": forward, "ZB-H2": forward - 5}
    text = table(compared, width=120)
    for name, each in idle.items():
        bubble = Fraction((p - 1) * each, m * work + (p - 1) * each)
        assert made[name].bubble == made[name].least_bubble == bubble, name
        assert made[name].period == work * 1000
        row = next(line for line in text.splitlines() if line.split()[:1] == [name])
        assert row.count(f"{100 * float(bubble):.2f} %") == 2
    assert made["own"].time <= min(step.time for step in made.values() if not step.overlaps)
    assert compared.ahead(made["own"]) is None
    assert compared.ahead(made["GPipe"]) == Fraction(made["GPipe"].time, made["own"].time) - 1
    assert [s.name for s in compared.steps] == list(NAMES)


def test_comparison_says_what_the_simulator_says(compared: Comparison) -> None:
    made = [step for step in compared.steps if isinstance(step, Made)]
    assert not any(step.disagreement for step in made)
    refused = {step.name: step for step in compared.steps if isinstance(step, Refused)}
    text = " ".join(table(compared, width=120).split())
    assert "checker and simulator agree on step time and on the peak memory of every accelerator" in text
    assert "ZB-V" in refused  # four operators have no eight chunks
    for step in refused.values():
        assert f"{step.name}: {step.reason} ({step.hint})" in text


def test_comparison_as_json(compared: Comparison) -> None:
    jsonschema.Draft202012Validator.check_schema(steps_schema())
    document = json.loads(json_text(compared))
    jsonschema.Draft202012Validator(steps_schema()).validate(document)
    assert document["complete"] is True
    assert len(document["steps"]) + len(document["refused"]) == len(NAMES)
    assert all(len(step["peak_memory"]) == 4 for step in document["steps"])


def test_an_interrupt_gives_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("compiler.step_comparison.baselines", interrupted)
    found = compare_steps(moldable(chain(4) + FREE), Options(microbatches=4, stages=4, effort=0.05))
    assert not found.complete
    assert f"interrupted after 2 of {len(NAMES)}" in table(found)
    jsonschema.Draft202012Validator(steps_schema()).validate(json.loads(json_text(found)))
    monkeypatch.setattr("compiler.step_comparison.ScheduleStepPass", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare_steps(moldable(chain(4) + FREE), Options(microbatches=4))


def test_compare_on_the_command_line(taktc: Tool, tmp_path: Any) -> None:
    path = tmp_path / "chain.takt"
    path.write_text(chain(4) + FREE)
    options = (path, "--training", "sgd", "--microbatches", "4", "--effort", "0.05", "--stages", "2", "--compare")
    found = taktc(*options, "--emit", "json")
    assert found.code == 0, found.err
    document = json.loads(found.out)
    assert document["training"]["optimizer"] == "sgd"
    assert {step["ranks"] for step in document["steps"]} == {2}
    small = taktc(*options, "--memory", "20KiB")
    assert (small.code, small.out) == (1, "")
    assert "lacks" in small.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--microbatches", "4", "--compare"), "--microbatches is for"),
        (("--training", "adam", "--compare"), "--compare is about a step: give --training and --microbatches"),
        (
            ("--training", "adam", "--microbatches", "4", "--compare", "--order", "gpipe"),
            "--order is about one schedule",
        ),
        (("--training", "adam", "--microbatches", "4", "--compare", "--emit", "svg"), "not svg; --order draws one"),
        (("--training", "adam", "--microbatches", "4", "--compare", "--simulate", "8"), "--simulate is about one"),
        (("--training", "adam", "--microbatches", "4", "--compare", "--recompute", "solver"), "name a policy"),
    ],
)
def test_usage_of_compare(taktc: Tool, options: tuple[str, ...], message: str) -> None:
    found = taktc("m.takt", *options)
    assert found.code == 2
    assert message in found.err
