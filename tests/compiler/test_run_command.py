"""taktc run: usage, errors, exit codes and what it writes. Most runs are played, without processes; one is real."""

import json
import os
import signal
import sys
from collections.abc import Callable
from errno import ENOSPC
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from xdsl.dialects.builtin import IntAttr, ModuleOp, StringAttr

from compiler import run
from compiler.output import print_ir
from compiler.runtime.job import Job, events_file, read_job, read_program
from dialects.diagnostics import Diagnostic, TaktError
from dialects.links import LinkAttr
from passes.lower_to_programs import lower_to_programs

Build = Callable[..., ModuleOp]
Tool = Callable[..., Any]


@pytest.fixture
def scheduled(build: Build, operator: Any) -> Callable[[int], ModuleOp]:
    """A chain of three on accelerators of their own, a transfer between neighbours; times in units of so many ns."""

    def make(unit: int) -> ModuleOp:
        operators = [
            operator("a", ["x"], 3 * unit, [[0]], 0, results=[64], output=64, stage=0),
            operator("b", ["a"], 4 * unit, [[1]], 4 * unit, results=[64], output=64, stage=1),
            operator("c", ["b"], 2 * unit, [[2]], 9 * unit, results=[8], output=8, stage=2),
        ]
        link = LinkAttr(StringAttr("board"), IntAttr(3), IntAttr(unit - 64), IntAttr(10**9))
        moves = [("a", [[1]], "board", 3 * unit, unit), ("b", [[2]], "board", 8 * unit, unit)]
        return build(
            operators,
            pattern=4 * unit,
            accelerators=3,
            inputs={"x": 64},
            outputs=["c"],
            stages=[[0], [1], [2]],
            links=[link],
            moves=moves,
        )

    return make


@pytest.fixture
def ir(scheduled: Callable[[int], ModuleOp], tmp_path: Path) -> Path:
    """A file with such a schedule, in units of 10 ms."""
    path = tmp_path / "chain.mlir"
    path.write_text(print_ir(scheduled(10_000_000)))
    return path


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch, player: Any) -> list[Job]:
    """Runs are played, not launched; the jobs that were."""
    jobs: list[Job] = []

    def launch(folder: Path, job: Job, on_progress: Any = None) -> None:
        assert read_job(folder) == job
        jobs.append(job)
        programs = {p: read_program(folder, p) for p in job.accelerators}
        for p, events in player(job, programs, {}, True).play().items():
            np.save(events_file(folder, job.rank_of[p]), events)

    monkeypatch.setattr("compiler.runtime.launch.launch", launch)
    monkeypatch.setattr(run, "check_torch", lambda: None)
    return jobs


# --- usage -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no input: give a .takt model"),
        (["m.takt", "--collect", "x"], "it takes no model"),
        (["m.takt", "--prepare", "x", "--trace", "y"], "--prepare runs nothing"),
        (["m.takt", "--emulate", "--real"], "not allowed with argument"),
        (["m.takt", "--real", "--scale", "2"], "--scale is about the times of an emulated run"),
        (["m.takt", "--scale", "0"], "expected a positive number, got '0'"),
        (["m.takt", "--microbatches", "0"], "expected a positive integer"),
        (["m.takt", "--objective", "step"], "--objective step needs --microbatches M"),
        (["m.takt", "--trace", "-"], "--trace writes a file"),
        (["m.takt", "--trace", "x", "--json", "x"], "cannot both write 'x'"),
        (["m.takt", "--set", "a=1", "--set", "a=2"], "--set a is given twice"),
        (["-", "--platform", "-"], "cannot both come from stdin"),
        (["m.takt", "--pareto", "period,in-flight"], "unrecognized arguments: --pareto"),
        (["m.takt", "--emulat"], "(did you mean '--emulate'?)"),
    ],
)
def test_wrong_usage(taktc: Tool, words: list[str], message: str) -> None:
    result = taktc("run", *words)
    assert result.code == 2
    assert message in result.err
    assert "hint: taktc run --help shows all options" in result.err
    assert result.out == ""


def test_help(taktc: Tool) -> None:
    result = taktc("run", "--help")
    assert result.code == 0
    assert all(word in result.out for word in ("--real", "--pace", "--trace", "--plan", "examples:"))
    assert "--pareto" not in result.out
    assert "taktc run MODEL" in taktc("--help").out


# --- errors ----------------------------------------------------------------------------------


def fails(result: Any, *messages: str) -> None:
    assert result.code == 1
    assert result.out == ""
    assert "Traceback" not in result.err
    for message in messages:
        assert message in result.err


def test_torch_is_asked_for_first(taktc: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "find_spec", lambda name: None)
    fails(taktc("run", "missing.takt"), "a run needs torch", "pip install 'taktc[torch]'")


def test_files_that_cannot_be_read_or_written(taktc: Tool, played: list[Job], ir: Path, tmp_path: Path) -> None:
    fails(taktc("run", "missing.takt"), "missing.takt")
    fails(taktc("run", ir, "--trace", tmp_path), "it is a directory")
    fails(taktc("run", ir, "--json", tmp_path / "no" / "x.json"), "there is no directory")
    assert not played


def test_a_failed_launch_is_an_error(taktc: Tool, played: list[Job], ir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(*_: Any, **__: Any) -> None:
        raise TaktError(Diagnostic("rank 1 died in compute 1 b of 3", hint="see above"))

    monkeypatch.setattr("compiler.runtime.launch.launch", launch)
    fails(taktc("run", ir), "rank 1 died in compute 1 b of 3", "hint: see above")


def test_a_full_disk_is_an_error(taktc: Tool, ir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_job(*_: Any) -> None:
        raise OSError(ENOSPC, "No space left on device")

    monkeypatch.setattr("compiler.runtime.job.write_job", write_job)
    monkeypatch.setattr(run, "check_torch", lambda: None)
    fails(taktc("run", ir), "cannot write what the processes need: No space left on device", "TMPDIR")


def test_an_interrupt_ends_with_130(taktc: Tool, played: list[Job], ir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("compiler.runtime.launch.launch", launch)
    result = taktc("run", ir)
    assert (result.code, result.err) == (130, "taktc run: interrupted\n")


def test_a_signal_leaves_no_file(taktc: Tool, played: list[Job], ir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders: list[Path] = []

    def launch(folder: Path, *_: Any, **__: Any) -> None:
        folders.append(folder)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("compiler.runtime.launch.launch", launch)
    before = signal.getsignal(signal.SIGTERM)
    assert taktc("run", ir).code == 128 + signal.SIGTERM
    assert not folders[0].exists()
    assert signal.getsignal(signal.SIGTERM) == before


def test_too_many_processes(taktc: Tool, played: list[Job], build: Build, operator: Any, tmp_path: Path) -> None:
    path = tmp_path / "wide.mlir"
    path.write_text(print_ir(build([operator("a", [], 5, [range(65)], 0, stage=0)], 5, 65, stages=[range(65)])))
    fails(taktc("run", path), "uses 65 accelerators", "at most 64", "a smaller model with --set")
    assert not played


def test_programs_keep_their_number_of_micro_batches(
    taktc: Tool, played: list[Job], scheduled: Callable[[int], ModuleOp], tmp_path: Path
) -> None:
    for name, count in (("bounded", 20), ("endless", None)):
        module = scheduled(1000)
        lower_to_programs(module, count)
        (tmp_path / f"{name}.mlir").write_text(print_ir(module))
    bounded, endless = tmp_path / "bounded.mlir", tmp_path / "endless.mlir"
    fails(taktc("run", bounded, "--microbatches", "24"), "are for 20 micro-batches", "compile the schedule again")
    fails(taktc("run", endless), "the programs have no end", "--microbatches 32")
    fails(taktc("run", endless, "--microbatches", "1"), "+ 1 * n micro-batches, and 1 is none of them")
    assert taktc("run", bounded).code == taktc("run", endless, "--microbatches", "24").code == 0
    assert [job.microbatches for job in played] == [20, 24]


def test_a_run_is_prepared_and_collected(
    taktc: Tool, played: list[Job], player: Any, scheduled: Callable[[int], ModuleOp], ir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "new" / "run"
    fails(taktc("run", "--collect", folder), "no run was prepared in", "--prepare DIR")
    result = taktc("run", ir, "--prepare", folder, "--scale", "2")
    assert (result.code, result.err, played) == (0, "", [])
    assert "--nproc-per-node 3 -m compiler.runtime.worker" in result.out
    fails(taktc("run", ir, "--prepare", folder), "is not empty")
    fails(taktc("run", "--collect", folder), "has not finished: nothing is there of rank 0")
    job = read_job(folder)
    programs = {p: read_program(folder, p) for p in job.accelerators}
    for p, events in player(job, programs, {}, True).play().items():
        np.save(events_file(folder, job.rank_of[p]), events)
    result = taktc("run", "--collect", folder, "--trace", tmp_path / "t.json")
    assert result.code == 0
    assert "period               80 ms     40 ms                50.0 %" in result.out
    assert (tmp_path / "t.json").is_file()


# --- runs ------------------------------------------------------------------------------------


def test_a_run_reports_prediction_and_measurement(taktc: Tool, played: list[Job], ir: Path, tmp_path: Path) -> None:
    result = taktc("run", ir, "--trace", tmp_path / "t.json", "--json", tmp_path / "f.json", "--seed", "7")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines()[0] == "test on board: 3 processes on torch.distributed, emulated"
    assert "period               40 ms     40 ms               100.0 %" in result.out
    (job,) = played
    assert job.microbatches == 16  # three in flight
    assert (job.settings.emulate, job.settings.paced, job.settings.ahead, job.settings.seed) == (True, False, 4, 7)
    assert json.loads((tmp_path / "f.json").read_text())["measured"]["period_ns"] == 40e6
    assert {e["pid"] for e in json.loads((tmp_path / "t.json").read_text())["traceEvents"]} == {1, 2}


def test_settings_reach_the_job(taktc: Tool, played: list[Job], ir: Path) -> None:
    words = ["--pace", "--ahead", "2", "--scale", "0.5", "--timeout", "7s", "--microbatches", "9", "--emulate"]
    result = taktc("run", ir, *words)
    assert result.code == 0
    assert "emulated, times scaled by 0.5, a micro-batch a period" in result.out
    assert "too few micro-batches for a steady state" not in result.out
    given = played[0].settings
    assert (given.paced, given.ahead, given.scale, given.timeout, played[0].microbatches) == (True, 2, 0.5, 7.0, 9)


def test_a_model_is_compiled_first(taktc: Tool, played: list[Job], examples: Path) -> None:
    words = [examples / "research_dag.takt", "--platform", examples / "tiny_board.takt", "--stages", "3"]
    result = taktc("run", *words)
    assert result.code == 0
    assert result.out.startswith("research_dag on tiny_board: ")


@pytest.mark.parametrize("error", [3e-7, 2e-2])
def test_outputs_of_a_real_run_decide(
    taktc: Tool, played: list[Job], ir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: float
) -> None:
    worst = SimpleNamespace(output=0, microbatch=5, accelerator=2, error=error)
    compared = SimpleNamespace(
        compared=16,
        worst=worst,
        missing=(),
        error=error,
        tolerance=1e-5,
        agrees=error < 1e-5,
        gradients=None,
        parameters=None,
    )
    fits: list[Job] = []
    reference = SimpleNamespace(compare=lambda folder, job: compared)
    check = SimpleNamespace(check_fits=lambda job, programs: fits.append(job))
    monkeypatch.setitem(sys.modules, "compiler.runtime.reference", reference)
    monkeypatch.setitem(sys.modules, "compiler.runtime.fits", check)
    result = taktc("run", ir, "--real", "--json", tmp_path / "f.json")
    assert fits == played
    assert "at measured times" in result.out
    assert json.loads((tmp_path / "f.json").read_text())["outputs"]["error"] == error
    last = result.out.splitlines()[-1]
    if error < 1e-5:
        assert result.code == 0
        assert last == "16 outputs agree with the unpipelined model: greatest relative error 3.0e-07 of at most 1e-05"
    else:
        assert result.code == 1
        assert last.endswith("relative error is 2.0e-02 of at most 1e-05, in 'c' of micro-batch 5 on accelerator 2")


@pytest.mark.parametrize("error", [3e-7, 2e-2])
def test_gradients_of_a_real_run_decide(
    taktc: Tool, played: list[Job], ir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: float
) -> None:
    def trained(error: float, missing: tuple[str, ...] = ()) -> SimpleNamespace:
        return SimpleNamespace(
            compared=3,
            worst="bias of 'h'",
            missing=missing,
            error=error,
            tolerance=1e-5,
            agrees=error < 1e-5 and not missing,
        )

    good = error < 1e-5
    compared = SimpleNamespace(
        compared=16,
        worst=SimpleNamespace(output=0, microbatch=5, accelerator=2, error=1e-7),
        missing=(),
        error=1e-7,
        tolerance=1e-5,
        agrees=good,
        gradients=trained(error),
        parameters=trained(1e-6, () if good else ("norm of 'd'",)),
    )
    reference = SimpleNamespace(compare=lambda folder, job: compared)
    monkeypatch.setitem(sys.modules, "compiler.runtime.reference", reference)
    result = taktc("run", ir, "--real", "--json", tmp_path / "f.json")
    found = json.loads((tmp_path / "f.json").read_text())
    assert result.code == (0 if good else 1)
    assert [found[x]["agree"] for x in ("outputs", "gradients", "parameters")] == [True, good, good]
    assert found["gradients"]["error"] == error
    outputs, gradients, parameters = result.out.splitlines()[-3:]
    assert outputs.startswith("16 outputs agree with")
    if good:
        assert gradients.startswith(
            "3 accumulated gradients agree with the unpipelined model: greatest relative error 3.0"
        )
        assert parameters.startswith("3 parameters after the last step agree with")
    else:
        assert gradients.startswith(
            "accumulated gradients differ from the unpipelined model: the greatest relative error"
        )
        assert gradients.endswith("is 2.0e-02 of at most 1e-05, in bias of 'h'")
        assert parameters.endswith("model: 1 parameter after the last step is missing, the first norm of 'd'")


@pytest.mark.torch
def test_a_whole_emulated_run(
    taktc: Tool, scheduled: Callable[[int], ModuleOp], tmp_path: Path, trace_rules: Callable[..., None]
) -> None:
    """Three processes that sleep; how far they are late depends on the machine."""
    if find_spec("torch") is None:
        pytest.skip("needs torch")
    ir, trace, figures = tmp_path / "chain.mlir", tmp_path / "t.json", tmp_path / "f.json"
    ir.write_text(print_ir(scheduled(8_000_000)))
    result = taktc("run", ir, "--emulate", "--pace", "--trace", trace, "--json", figures)
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines()[0].endswith("3 processes on torch.distributed, emulated, a micro-batch a period")
    found = json.loads(figures.read_text())
    assert (found["processes"], found["microbatches"], found["steady"]) == (3, 16, True)
    assert 0.95 < found["measured"]["period_ns"] / found["predicted"]["period_ns"] < 2
    assert 0.99 < found["measured"]["latency_ns"] / found["predicted"]["latency_ns"] < 3
    load = found["measured"]["load"]
    assert load["1"] > load["0"] > load["2"]
    events = json.loads(trace.read_text())["traceEvents"]
    trace_rules(events)
    work = [e for e in events if e.get("cat") == "operator"]
    assert sum(e["pid"] == 1 for e in work) == sum(e["pid"] == 2 for e in work) == 3 * 16
    assert any(e["name"].startswith("waits for b of micro-batch ") for e in events if e.get("cat") == "waiting")
    assert sum(e["ph"] == "s" for e in events) == 2 * 2 * 16  # into each message and out of it
