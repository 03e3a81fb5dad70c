"""taktc: objectives, limits, the best of all plans, and trade-offs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from compiler.pareto import trade_off
from compiler.pipeline import Options
from compiler.progress import ProgressLine
from compiler.targets.front import schema, table
from compiler.targets.front_svg import draw
from dialects.units import show_time
from passes.choices import PLANS
from passes.progress import listening
from passes.scheduling.bounds import bounds_by_name

Tool = Callable[..., Any]
ROOT = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"
EFFORT = "0.3"
EVERY = "period,in-flight,latency,memory,crossing"
LIMITS = ("--max-in-flight", "2", "--max-latency", "2ms", "--memory", "1GiB", "--max-crossing", "100MB")


@pytest.fixture
def dag(examples: Path) -> tuple[str, ...]:
    """The smallest example and its platform, as arguments, with little work for the solvers."""
    board = str(examples / "tiny_board.takt")
    return str(examples / "research_dag.takt"), "--platform", board, "--quiet", "--effort", EFFORT


def schedule(taktc: Tool, *args: str) -> dict[str, Any]:
    result = taktc(*args, "--emit", "json")
    assert result.code == 0, result.err
    return json.loads(result.out)["schedule"]


# --- one schedule ----------------------------------------------------------------------------


def test_auto_is_at_least_as_good_as_every_plan(taktc: Tool, dag: tuple[str, ...]) -> None:
    best = schedule(taktc, *dag, "--plan", "auto")
    assert best["plan"] != "auto"
    for plan in ("stages", "shared", "pushed", "laminar"):
        assert best["period"] <= schedule(taktc, *dag, "--plan", plan)["period"] * 1.005


@pytest.mark.parametrize("plan", ["auto", "stages", "pushed"])
def test_limits_are_kept_and_carried(taktc: Tool, dag: tuple[str, ...], plan: str) -> None:
    found = schedule(taktc, *dag, "--plan", plan, *LIMITS)
    assert found["limits"] == {"in_flight": 2, "latency": 2_000_000, "memory": 2**30, "crossing": 10**8}
    assert found["in_flight"] <= 2
    assert found["latency"] <= 2_000_000


def test_limits_stand_in_ir_and_summary(taktc: Tool, dag: tuple[str, ...]) -> None:
    ir = taktc(*dag, *LIMITS).out
    assert ", within <in_flight 2, latency 2000000, memory 1073741824, crossing 100000000>> {" in ir
    assert taktc("-", "--quiet", stdin=ir.encode()).out == ir
    summary = " ".join(taktc("-", "--emit", "summary", stdin=ir.encode()).out.split())
    assert " limits in flight 2 of 2, latency 1.914 ms of 2 ms, memory 22.00 MiB of 1.00 GiB, crossing" in summary
    wrong = taktc("-", "--quiet", stdin=ir.replace("in_flight 2", "in_flight 1").encode())
    assert wrong.code == 1
    assert "2 micro-batches are in flight, the schedule claims at most 1" in wrong.err


@pytest.mark.parametrize(
    ("limit", "message", "hint"),
    [
        (("--max-latency", "1ms"), "a latency of 1.636931 ms, more than the 1 ms allowed", "--objective latency"),
        (("--max-crossing", "1KiB", "--stages", "3"), "15.00 MiB of a micro-batch cross between", "wider stages"),
        (("--memory", "8MiB"), "bytes are missing", "memory"),
    ],
)
def test_limits_that_cannot_be_kept(
    taktc: Tool, dag: tuple[str, ...], limit: tuple[str, ...], message: str, hint: str
) -> None:
    result = taktc(*dag, *limit)
    assert (result.code, result.out) == (1, "")
    assert message in result.err
    assert hint in result.err.split("hint: ")[1]


def test_few_in_flight_cost_period_where_there_are_links(taktc: Tool, dag: tuple[str, ...], tmp_path: Path) -> None:
    model, _, board, *more = dag
    bare = tmp_path / "bare.takt"
    bare.write_text("\n".join(line for line in Path(board).read_text().splitlines() if "link" not in line))
    limit = ("--max-in-flight", "1", "--stages", "3")
    result = taktc(model, "--platform", bare, *more, *limit)
    assert (result.code, result.out) == (1, "")
    assert "has 3 micro-batches in flight, more than the 1" in result.err
    assert "wider stages" in result.err.split("hint: ")[1]
    slow, quick = schedule(taktc, *dag, *limit), schedule(taktc, *dag, *limit[2:])
    assert slow["in_flight"] == 1 < quick["in_flight"]
    assert slow["period"] > quick["period"]


def test_objectives(taktc: Tool, dag: tuple[str, ...]) -> None:
    def step(found: dict[str, Any], microbatches: int) -> int:
        return found["latency"] + (microbatches - 1) * found["period"]

    plain = schedule(taktc, *dag, "--plan", "auto")
    quick = schedule(taktc, *dag, "--plan", "auto", "--objective", "latency")
    assert quick["latency"] < plain["latency"]
    assert quick["period"] > plain["period"]
    few = schedule(taktc, *dag, "--plan", "auto", "--objective", "step", "--microbatches", "2")
    four = schedule(taktc, *dag, "--plan", "auto", "--objective", "step", "--microbatches", "4")
    for other in (plain, quick, *points(taktc, *dag, "--pareto", EVERY)):
        assert step(few, 2) <= step(other, 2) * 1.005
        assert step(four, 4) <= step(other, 4) * 1.005
    many = schedule(taktc, *dag, "--plan", "auto", "--objective", "step", "--microbatches", "1000")
    assert step(many, 1000) < step(few, 1000)


def test_the_time_of_a_step_is_shown(taktc: Tool, dag: tuple[str, ...]) -> None:
    args = (*dag, "--objective", "step", "--microbatches", "101", "--stages", "2", "--emit", "summary")
    assert re.search(r"^  step +89\.\d\d ms for 101 micro-batches$", taktc(*args).out, re.MULTILINE)


def test_the_time_of_a_step_of_ir(taktc: Tool, takt_opt: Tool, dag: tuple[str, ...]) -> None:
    ir = taktc(*dag, "--stages", "2").out.encode()
    assert "  step         3.291 ms for 1 micro-batch\n" in takt_opt("-t", "summary{microbatches=1}", stdin=ir).out
    assert "it has at least 1" in takt_opt("-t", "summary{microbatches=0}", stdin=ir).err


def test_gap_stops_the_search(taktc: Tool, dag: tuple[str, ...]) -> None:
    """Contiguous stages are within 20 % of the bound, so no later plan is tried."""
    assert schedule(taktc, *dag, "--plan", "auto", "--gap", "20%")["plan"] == "stages"
    assert schedule(taktc, *dag, "--plan", "auto", "--gap", "0.01")["plan"] != "stages"


def test_a_dump_names_all_options_that_go_on(taktc: Tool, dag: tuple[str, ...], tmp_path: Path) -> None:
    plain = taktc(*dag, "--plan", "auto", *LIMITS, "--tolerance", "1%", "--dump-phases-to", tmp_path).out
    path = tmp_path / "research_dag.1.moldable.mlir"
    command = path.read_text().splitlines()[0].removeprefix("// taktc ").split()
    assert taktc(*command, "--quiet").out == plain


def test_a_solver_is_an_option_of_the_passes(taktc: Tool, dag: tuple[str, ...]) -> None:
    result = taktc(*dag, "--solver", "blocks", "--print-ir-after-all")
    assert f'IR Dump After partition-stages{{effort={EFFORT} solver="blocks"}}' in result.err
    assert f'schedule-periodic{{effort={EFFORT} solver="blocks"}}' in result.err


def test_pass_help_describes_what_passes_share(taktc: Tool) -> None:
    for name in ("partition-stages", "schedule-periodic"):
        text = taktc("--pass-help", name).out
        assert "  max-latency=an integer  [optional]\n      most ns from the first start to the last end" in text
        assert f"  plan=one of {', '.join(PLANS)}" in text


# --- trade-offs ------------------------------------------------------------------------------


def points(taktc: Tool, *args: str) -> list[dict[str, Any]]:
    result = taktc(*args, "--emit", "json")
    assert result.code == 0, result.err
    document = json.loads(result.out)
    jsonschema.Draft202012Validator(schema()).validate(document)
    return document["points"]


def test_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize("axes", ["period,in-flight", "in-flight,period", EVERY])
def test_no_point_beats_another(taktc: Tool, dag: tuple[str, ...], axes: str) -> None:
    names = [name.replace("-", "_") for name in axes.split(",")]
    keys = [tuple(p[name] for name in names) for p in points(taktc, *dag, "--pareto", axes)]
    assert len(keys) >= 3
    assert keys == sorted(keys)
    for mine in keys:
        assert [k for k in keys if all(a <= b for a, b in zip(k, mine, strict=True))] == [mine]


def test_points_can_be_compiled(taktc: Tool, dag: tuple[str, ...]) -> None:
    for point in points(taktc, *dag, "--pareto", "period,in-flight"):
        args = ("--plan", "auto", "--max-in-flight", str(point["in_flight"]), "--tolerance", "0")
        assert schedule(taktc, *dag, *args)["period"] <= point["period"]


def test_points_keep_limits_and_the_plan(taktc: Tool, dag: tuple[str, ...]) -> None:
    limited = points(taktc, *dag, "--pareto", EVERY, *LIMITS)
    assert all(p["in_flight"] <= 2 and p["latency"] <= 2_000_000 for p in limited)
    assert {p["plan"] for p in points(taktc, *dag, "--pareto", EVERY, "--plan", "stages")} == {"stages"}
    refused = taktc(*dag, "--pareto", EVERY, "--max-latency", "1us")
    assert (refused.code, refused.out) == (1, "")
    assert "more than the 1 us allowed" in refused.err


def test_table(taktc: Tool, dag: tuple[str, ...], tmp_path: Path) -> None:
    result = taktc(*dag, "--pareto", "period,in-flight,memory")
    lines = result.out.splitlines()
    assert lines[0] == "research_dag on tiny_board: 6 x pebble"
    assert lines[1].split("(")[0].split() == ["lower", "bound", "of", "the", "period", "679.0", "us"]
    assert lines[1].rstrip(")").split("(")[1] in bounds_by_name
    assert lines[3].split() == ["plan", "engine", "stages", "period", "in-flight", "memory", "above", "bound"]
    assert len([line for line in lines[5:] if line]) >= 3
    target = tmp_path / "front.txt"
    assert taktc(*dag, "--pareto", "period,in-flight,memory", "-o", target).out == ""
    assert target.read_text() == result.out


@pytest.mark.parametrize("axes", ["period,in-flight", "memory,latency", "in-flight,crossing,period"])
def test_picture(taktc: Tool, dag: tuple[str, ...], axes: str, tmp_path: Path) -> None:
    target = tmp_path / "front.svg"
    command = (*dag, "--pareto", axes, "--emit", "svg", "-o", target)
    assert taktc(*command).code == 0
    drawn = target.read_bytes()
    assert taktc(*command).code == 0
    assert target.read_bytes() == drawn
    root = ET.fromstring(drawn)
    found = points(taktc, *dag, "--pareto", axes)
    dots = [dot for dot in root.iter(f"{SVG}circle") if dot.find(f"{SVG}title") is not None]
    assert len(dots) == len(found)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for dot in dots:
        assert 0 < float(dot.attrib["cx"]) < width
        assert 0 < float(dot.attrib["cy"]) < height
    texts = [text.text or "" for text in root.iter(f"{SVG}text")]
    assert {p["plan"] for p in found} <= set(texts)
    units = {"period": ("ms", "us"), "latency": ("ms", "us"), "memory": ("MiB", "KiB"), "crossing": ("MiB", "KiB", "B")}
    for axis in axes.split(",")[:2]:
        endings = tuple(f", {unit}" for unit in units.get(axis, ())) or ("in flight",)
        assert any(text.endswith(endings) for text in texts), axis
    assert any(text.startswith("bound ") for text in texts) == axes.startswith("period")


def test_the_further_left_the_fewer_in_flight(taktc: Tool, dag: tuple[str, ...]) -> None:
    root = ET.fromstring(taktc(*dag, "--pareto", "period,in-flight", "--emit", "svg").out)
    dots = [dot for dot in root.iter(f"{SVG}circle") if dot.find(f"{SVG}title") is not None]
    where = sorted((float(d.attrib["cx"]), float(d.attrib["cy"])) for d in dots)
    assert [y for _, y in where] == sorted(y for _, y in where), "down the page is a shorter period"


def test_nothing_is_written_when_it_fails(taktc: Tool, dag: tuple[str, ...], tmp_path: Path) -> None:
    target = tmp_path / "front.json"
    target.write_text("old")
    assert taktc(*dag, "--pareto", EVERY, "--memory", "1KiB", "--emit", "json", "-o", target).code == 1
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["front.json"]


def test_a_schedule_has_no_trade_off(taktc: Tool, dag: tuple[str, ...]) -> None:
    ir = taktc(*dag).out
    result = taktc("-", "--quiet", "--pareto", EVERY, stdin=ir.encode())
    assert result.code == 1
    assert "already" in result.err


def test_wide_ranges_are_drawn_on_a_logarithmic_axis(dag: tuple[str, ...]) -> None:
    from dataclasses import replace

    from compiler import compile_model

    module = compile_model(dag[0], platform=dag[2], to="moldable")
    found = trade_off(module, ("period", "in-flight"), Options(effort=float(EFFORT)))
    first = found.points[0]
    far = replace(first, figures=replace(first.figures, period=first.figures.period - 1, in_flight=700))
    text = draw(replace(found, points=(far, *found.points)))
    labels = [t.text for t in ET.fromstring(text).iter(f"{SVG}text")]
    assert [label for label in ("1", "2", "4", "512", "1024") if label in labels] == ["1", "2", "4", "512", "1024"]
    assert "700" in table(replace(found, points=(far, *found.points)), width=100)


# --- progress and interrupts -----------------------------------------------------------------


def test_progress_shows_the_best_so_far(dag: tuple[str, ...]) -> None:
    from compiler import compile_model

    heard: list[tuple[str, int, int, str]] = []
    with listening(lambda *news: heard.append(news)):
        compile_model(dag[0], platform=dag[2], options=Options(plan="auto", effort=float(EFFORT)))
    partition = [incumbent for _, incumbent, _, message in heard if message == "partition"]
    assert len(partition) > 2
    assert partition == sorted(partition, reverse=True)
    bounds = [bound for *_, bound, _ in heard]
    assert bounds[0] > 0
    assert bounds == sorted(bounds), "what is proven stays proven"
    assert len(set(bounds)) <= 2, "one for each pass"
    engine, incumbent, bound, _ = heard[-1]
    line = ProgressLine()
    line(*heard[-1])
    gap = f"{incumbent / bound - 1:.2%} above"
    assert line.text == f"{engine}: period {show_time(incumbent)}, at least {show_time(bound)} ({gap})"


@pytest.mark.parametrize("goal", [("--pareto", "period,in-flight"), ("--plan", "auto", "--emit", "summary")])
def test_interrupt_keeps_what_was_found(examples: Path, tmp_path: Path, goal: tuple[str, ...]) -> None:
    """The second family waits until it is interrupted; what the first one found is the result."""
    started = tmp_path / "started"
    board = str(examples / "tiny_board.takt")
    args = [str(examples / "research_dag.takt"), "--platform", board, "--effort", EFFORT, *goal]
    code = (
        "import pathlib, signal, sys, time\n"
        "from passes.scheduling import portfolio\nfrom compiler.taktc import main\n"
        "def waits(problem, request, budget):\n"
        f"    pathlib.Path({str(started)!r}).touch()\n"
        "    time.sleep(60)\n    yield\n"
        "portfolio.FAMILIES['shared'] = (waits, portfolio.FAMILIES['shared'][1])\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"sys.exit(main({args!r}))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    deadline = time.monotonic() + 30
    while not started.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.1)  # from the touch to the sleep
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=40)
    assert (process.returncode, err) == (0, "")
    assert out.startswith("research_dag on tiny_board")
    assert "stages" in out
    for plan in ("laminar", "free"):
        assert f"{plan} by" not in out
        assert f"{plan}  " not in out
