"""The command ``taktc run``: compile a model, run its schedule with a process an accelerator, compare."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from compiler.command_line import (
    FAILED,
    INTERRUPTED,
    OK,
    ArgumentParser,
    amount,
    assignment,
    check_output,
    guarded,
    positive,
    seconds,
    write_output,
)
from compiler.schedule_options import add_schedule_options, check_objective

if TYPE_CHECKING:
    from xdsl.dialects.builtin import ModuleOp

    from compiler.diagnostics import SourceCache
    from compiler.runtime.job import Job, Rows, Settings
    from compiler.runtime.reference import Comparison

MOST_PROCESSES = 64
"""A run with more accelerators is refused: each is a process of its own on this machine."""

FEWEST = 16
"""Micro-batches of a run at least, unless told otherwise; and at least four times those in flight."""

MEASURED_STEPS = 3
"""Steps of a run that are measured, unless told otherwise; before and behind them run as many as go on at once."""

USAGE = "taktc run MODEL [--platform FILE] [--emulate | --real] [--microbatches M] [--trace FILE] [options]"
DESCRIPTION = "Compile a model, run its schedule on torch.distributed with a process an accelerator, and compare."

EPILOG = """\
examples:
  taktc run gpt.takt --platform board.takt                 operators sleep their time (--emulate)
  taktc run gpt.takt --platform board.takt --real          real tensors, outputs compared with the plain model
  taktc run gpt.takt --platform board.takt --trace run.json
                                                           schedule and run for ui.perfetto.dev
  taktc run gpt.takt --platform board.takt --scale 100     a hundred times slower: microseconds become visible
  taktc run gpt.takt --platform board.takt --pace          micro-batches enter a period apart, not at will
  taktc run gpt.takt --platform board.takt --training adam --microbatches 8 --steps 10
                                                           ten steps of a training batch, with the optimizer
  taktc run gpt.mlir --microbatches 64                     a schedule found before
  taktc run gpt.takt --platform board.takt --plan pushed --stages 4 --timeout 10

exit codes:
  0 done; 1 the input is wrong, there is no schedule, the run failed or its outputs are wrong; 2 wrong usage;
  130 interrupted
"""


def build_parser() -> ArgumentParser:
    """The options of ``taktc run``."""
    parser = ArgumentParser("taktc run", USAGE, DESCRIPTION, EPILOG)
    parser.add_argument("input", nargs="?", metavar="MODEL", help=".takt model or .mlir IR of any level; - is stdin")
    add = parser.add_argument_group("input").add_argument
    add("--platform", metavar="FILE", help=".takt file with the platform, when the model has none")
    add("--set", metavar="NAME=VALUE", type=assignment, action="append", default=[], help="set a model parameter")
    add("--model", metavar="NAME", help="which model of the file, when it has several")
    add("--input-format", choices=("takt", "mlir"), help="default: by extension; for stdin, by its first words")
    group = parser.add_argument_group("run")
    mode = group.add_mutually_exclusive_group()
    mode.add_argument("--emulate", action="store_true", help="operators sleep as long as they take (default)")
    mode.add_argument("--real", action="store_true", help="real tensors, and outputs compared with the plain model")
    add = group.add_argument
    add("--pace", action="store_true", help="micro-batches enter no earlier than scheduled, a period apart")
    add("--steps", metavar="N", type=positive, help="steps to run of a schedule that is a step (5 or more)")
    add("--ahead", metavar="N", type=positive, help="receives that are posted before they are needed (4)")
    add("--scale", metavar="X", type=amount, help="factor of all times of an emulated run (1)")
    add("--timeout", metavar="S", type=seconds, help="seconds without progress after which a run is given up (60)")
    add("--prepare", metavar="DIR", help="only write what the processes need, for torchrun on several machines")
    add("--collect", metavar="DIR", help="only report on a run that was prepared there, and started")
    add = parser.add_argument_group("output").add_argument
    add("--trace", metavar="FILE", help="write schedule and run as one trace for Perfetto")
    add("--json", metavar="FILE", help="write the figures as JSON")
    add("--quiet", action="store_true", help="no progress; only the report and errors")
    add("--debug", action="store_true", help="show a traceback with every error")
    microbatches = "micro-batches to run (default: enough for a steady state); where a step is made, those of one step"
    add_schedule_options(parser, microbatches, several=False)
    return parser


def check_usage(parser: ArgumentParser, args: argparse.Namespace) -> None:
    """End with a usage error when options do not fit together."""
    if args.input is None and args.collect is None:
        parser.error("no input: give a .takt model, .mlir IR, or - for stdin")
    if args.collect is not None and (args.input is not None or args.prepare is not None):
        parser.error("--collect reports on a run that was prepared before; it takes no model and prepares none")
    if args.prepare is not None and (args.trace is not None or args.json is not None):
        parser.error("--prepare runs nothing: --trace and --json are for --collect")
    names = [name for name, _ in args.set]
    for name in names:
        if names.count(name) > 1:
            parser.error(f"--set {name} is given twice")
    if args.real and args.scale is not None:
        parser.error("--scale is about the times of an emulated run, and --real takes as long as it takes")
    if args.platform == "-" and args.input == "-":
        parser.error("the model and the platform cannot both come from stdin")
    for option, path in (("--trace", args.trace), ("--json", args.json)):
        if path == "-":
            parser.error(f"{option} writes a file, and the report stands on stdout")
    if args.trace is not None and args.trace == args.json:
        parser.error(f"--trace and --json cannot both write '{args.trace}'")
    check_objective(parser, args)


class Runner:
    """One ``taktc run``."""

    def __init__(self, args: argparse.Namespace, sources: SourceCache) -> None:
        from compiler.driver import options_of

        self.args, self.sources = args, sources
        self.options = options_of(args)

    def run(self) -> int:
        """Compile, run and report; returns the exit code."""
        from compiler.runtime.prepare import job_of

        args = self.args
        self.options.check()
        check_output(args.trace)
        check_output(args.json)
        if args.collect is not None:
            text, code = self._collect(Path(args.collect))
            sys.stdout.write(text)
            return code
        if args.prepare is None:
            check_torch()
        with self._progress():
            module = self._programs()
            job, programs = job_of(module, self._settings())
            if not job.settings.emulate:
                from compiler.runtime.fits import check_fits

                check_fits(job, programs)
            if args.prepare is not None:
                text, code = self._prepare(module, job, programs), OK
            else:
                text, code = self._run(module, job, programs)
        sys.stdout.write(text)
        return code

    def _run(self, module: ModuleOp, job: Job, programs: Mapping[int, Rows]) -> tuple[str, int]:
        from compiler.runtime.job import write_job
        from compiler.runtime.launch import launch
        from dialects.diagnostics import Diagnostic, TaktError
        from passes.progress import report

        def on_progress(done: int) -> None:
            report("run", 0, 0, f"{done} of {job.microbatches} micro-batches" if done else "processes start")

        try:
            with ended_by_signals(), TemporaryDirectory(prefix="takt-run-") as name:
                folder = Path(name)
                write_job(folder, job, programs)
                launch(folder, job, on_progress=on_progress)
                return self._report(folder, module, job)
        except OSError as error:
            message = f"cannot write what the processes need: {error.strerror or error}"
            hint = "it is in a folder for temporary files, which the variable TMPDIR names"
            raise TaktError(Diagnostic(message, hint=hint)) from None

    def _prepare(self, module: ModuleOp, job: Job, programs: Mapping[int, Rows]) -> str:
        from compiler.runtime.elsewhere import check_folder, prepare

        folder = Path(self.args.prepare).absolute()
        check_folder(folder)
        return prepare(folder, module, job, programs)

    def _collect(self, folder: Path) -> tuple[str, int]:
        from compiler.loading import load_module, read_input
        from compiler.pipeline import new_context
        from compiler.runtime.elsewhere import PROGRAMS, check_finished, check_prepared
        from compiler.runtime.job import read_job

        check_prepared(folder)
        job = read_job(folder)
        check_finished(folder, job)
        module = load_module(new_context(), read_input(str(folder / PROGRAMS), self.sources), sources=self.sources)
        return self._report(folder, module, job)

    def _programs(self) -> ModuleOp:
        """The module at level ``programs``, for the micro-batches of the run."""
        from compiler.driver import module_of
        from compiler.loading import read_input
        from compiler.pipeline import level_of, new_context, run_pipeline, verify
        from compiler.runtime.trainable import check_trainable
        from compiler.view import view_of
        from dialects.structure import reaches

        args, context = self.args, new_context()
        given = read_input(args.input, self.sources, args.input_format)
        module = module_of(context, given, args, self.sources)
        verify(module)
        made = not reaches(level_of(module), "scheduled")
        if made:
            module = run_pipeline(context, module, to="scheduled", options=self.options)
        check_size(module)
        if self.args.real:
            check_trainable(module)
        view = view_of(module)
        if args.steps is not None:
            check_steps(module, None if made else args.microbatches)
        if level_of(module) == "programs":
            bounded(module, args.steps * view.microbatches if args.steps else args.microbatches)
            return module
        if view.step:
            at_once = -(-view.makespan // view.pattern)
            steps = args.steps or max(2 * at_once + MEASURED_STEPS, -(-FEWEST // view.microbatches))
            count = steps * view.microbatches
            # Where the step is made here, so many micro-batches are those of one.
            count = count if made else args.microbatches or count
        else:
            count = args.microbatches or max(FEWEST, 4 * view.in_flight)
        # The schedule is there: micro-batches are now those of the run, and no step is asked for.
        options = replace(self.options, microbatches=count, order=None, objective="period")
        return run_pipeline(context, module, to="programs", options=options)

    def _settings(self) -> Settings:
        from compiler.runtime.job import Settings

        args = self.args
        given = {"ahead": args.ahead, "seed": args.seed, "timeout": args.timeout, "scale": args.scale}
        return Settings(
            emulate=not args.real, paced=args.pace, **{name: v for name, v in given.items() if v is not None}
        )

    def _report(self, folder: Path, module: ModuleOp, job: Job) -> tuple[str, int]:
        """What a run showed, and the exit code; of a real one, its outputs decide that."""
        from compiler.runtime import report, trace
        from compiler.runtime.measured import measured, predicted
        from compiler.runtime.recorded import Run
        from compiler.runtime.replayed import replayed
        from compiler.view import view_of

        compared = self._compared(folder, job)
        run = Run.read(folder)
        found = measured(run)
        replay = None if job.settings.emulate else replayed(module, run)
        columns = report.columns_of(predicted(job), replay, found)
        if self.args.trace is not None:
            write_output(self.args.trace, trace.emit(view_of(module), run))
        if self.args.json is not None:
            outputs = {} if compared is None else report.agreement_data(compared)
            write_output(self.args.json, report.json_text(job, columns, found, outputs))
        text = report.text(job, columns, found)
        if compared is None:
            return text, OK
        return text + report.agreement(job, compared), OK if compared.agrees else FAILED

    def _compared(self, folder: Path, job: Job) -> Comparison | None:
        if job.settings.emulate:
            return None
        from compiler.runtime.reference import compare
        from passes.progress import report

        check_torch()
        report("run", 0, 0, "outputs are compared")
        return compare(folder, job)

    def _progress(self) -> AbstractContextManager[None]:
        if self.args.quiet or not sys.stderr.isatty():
            return nullcontext()
        from compiler.progress import live_progress

        return live_progress()


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind this process, so that it leaves no process and no file, as Ctrl-C does."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_torch() -> None:
    """Raise TaktError where torch is missing; asked before a long compilation."""
    from dialects.diagnostics import Diagnostic, TaktError

    if find_spec("torch") is None:
        raise TaktError(Diagnostic("a run needs torch", hint="pip install 'taktc[torch]'"))


def check_size(module: ModuleOp) -> None:
    """Raise TaktError for a schedule on more accelerators than there should be processes."""
    from compiler.view import view_of
    from dialects.diagnostics import TaktError, at
    from dialects.structure import find_platform

    used = {p for task in view_of(module).tasks for place in task.copies for p in place}
    if len(used) > MOST_PROCESSES:
        op = find_platform(module)
        assert op is not None
        message = f"the schedule uses {len(used)} accelerators, and a run has a process for each, at most"
        hint = "take a platform with fewer accelerators, and a smaller model with --set"
        raise TaktError(at(op, f"{message} {MOST_PROCESSES}", hint))


def check_steps(module: ModuleOp, microbatches: int | None) -> None:
    """Raise TaktError where a number of steps makes no sense: the schedule is none, or ``microbatches`` are given."""
    from dialects.diagnostics import TaktError, at
    from dialects.structure import find_graph

    graph = find_graph(module)
    assert graph is not None
    assert graph.schedule is not None
    if not graph.schedule.is_step:
        hint = "--microbatches says how many micro-batches to run; --training or --order with it makes a step"
        raise TaktError(at(graph, "--steps is for a schedule that is a step, and this one has a period", hint))
    if microbatches is not None:
        raise TaktError(
            at(graph, "--steps and --microbatches both say how much to run of this step", "give one of them")
        )


def bounded(module: ModuleOp, microbatches: int | None) -> None:
    """Let programs without end run ``microbatches`` micro-batches.

    Raises TaktError where they are for another number, or do not come to it in whole trips.
    """
    from xdsl.dialects.builtin import IntegerAttr, i64

    from compiler.runtime.prepare import programs_of
    from dialects.diagnostics import TaktError, at
    from dialects.programs import ProgramOp

    for op in (op for op in module.body.ops if isinstance(op, ProgramOp)):
        base, step = op.base.value.data, op.step.value.data
        if microbatches is None:
            break
        trips, rest = divmod(microbatches - base, step)
        if op.trips is None and trips >= 0 and not rest:
            op.trips = IntegerAttr(trips, i64)
        elif op.trips is None or op.trips.value.data != trips or rest:
            message = f"the programs are for {base} + {step} * n micro-batches, and {microbatches} is none of them"
            if op.trips is not None:
                message = f"the programs are for {base + step * op.trips.value.data} micro-batches"
            raise TaktError(at(op, message, "compile the schedule again, with another --microbatches"))
    programs_of(module)


def main(argv: Sequence[str]) -> int:
    """Run ``taktc run`` with what follows it on the command line; returns the exit code."""
    try:
        parser = build_parser()
        args = parser.parse_args(argv)
        check_usage(parser, args)
        from compiler.diagnostics import SourceCache

        sources = SourceCache()
        return guarded("taktc run", args.debug, sources, lambda: Runner(args, sources).run())
    except KeyboardInterrupt:
        sys.stderr.write("taktc run: interrupted\n")
        return INTERRUPTED
