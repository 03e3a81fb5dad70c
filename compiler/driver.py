"""What ``taktc`` does after its command line is understood."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp

from compiler.command_line import OK, check_output, write_output
from compiler.diagnostics import SourceCache, wants_colour
from compiler.loading import Input, load_module, read_input
from compiler.output import PhaseDumps, Reporter, Timing, print_ir
from compiler.pass_text import all_passes, find_pass, list_passes, own_passes, parse_passes, pass_help
from compiler.pipeline import Options, level_of, new_context, run_passes, run_pipeline, verify
from compiler.schedule_options import OPTIONS, schedule_texts
from compiler.targets import TARGETS, emitter
from dialects.diagnostics import Diagnostic, TaktError
from dialects.structure import LEVELS, reaches

if TYPE_CHECKING:
    from compiler.targets.registry import TaktTarget


def options_of(args: argparse.Namespace) -> Options:
    """What the command line chooses about a compilation."""
    given = {name: getattr(args, name) for name in OPTIONS}
    return Options(max_memory=given.pop("memory"), copies=given.pop("replicate"), **given)


def module_of(context: Context, given: Input, args: argparse.Namespace, sources: SourceCache) -> ModuleOp:
    """The module of an input, with the platform, parameters and model that the command line names."""
    return load_module(
        context,
        given,
        sources=sources,
        platform=args.platform,
        overrides=dict(args.set),
        model=args.model,
    )


class Driver:
    """One run of ``taktc``."""

    def __init__(self, args: argparse.Namespace, sources: SourceCache) -> None:
        self.args = args
        self.sources = sources
        self.timing = Timing()
        self.options = options_of(args)

    def run(self) -> int:
        """Do what the command line asks for; returns the exit code."""
        args = self.args
        if args.list_passes:
            sys.stdout.write(list_passes(own_passes()))
            return OK
        if args.pass_help:
            sys.stdout.write(pass_help(find_pass(args.pass_help, all_passes())))
            return OK
        self.options.check()
        check_output(args.output)
        wanted = self._target()
        steps = parse_passes(args.passes, all_passes()) if args.passes is not None else None
        given = read_input(args.input, self.sources, args.input_format)
        if args.emit == "ast":
            write_output(args.output, syntax_tree(given))
            return OK
        reporter = Reporter(self.timing, args.print_ir_after_all, self._dumps(steps is not None))
        context = new_context()
        started = time.perf_counter()
        module = module_of(context, given, args, self.sources)
        reporter.ran("parse", module, time.perf_counter() - started)
        verify(module, reporter)
        self._check_start(given, module)
        with self._progress():
            if steps is not None:
                module = run_passes(context, module, steps, reporter)
            else:
                module = run_pipeline(context, module, to=self._goal(module), options=self.options, observer=reporter)
        if args.compare:
            return self._compare(module)
        return self._finish(module, wanted) if args.pareto is None else self._trade_off(module)

    def _target(self) -> TaktTarget | None:
        """The emitter asked for, with its options; what is wrong with them is said before the compilation."""
        if self.args.emit not in TARGETS:
            return None
        from compiler.targets.registry import for_batch, make_target

        return for_batch(make_target(self.args.target), self.args.microbatches)

    def _trade_off(self, module: ModuleOp) -> int:
        """Find the front that was asked for, and write it as a table, as JSON or as a picture."""
        from compiler.pareto import trade_off

        args = self.args
        started = time.perf_counter()
        with self._progress():
            found = trade_off(module, args.pareto, self.options)
        self.timing.note("pareto", time.perf_counter() - started)
        if args.emit == "svg":
            from compiler.targets.front_svg import draw

            text = draw(found)
        else:
            from compiler.targets.front import json_text, table

            colour = args.output in (None, "-") and wants_colour(sys.stdout)
            text = json_text(found) if args.emit == "json" else table(found, colour=colour)
        write_output(args.output, text)
        if args.timing:
            sys.stderr.write(self.timing.table())
        return OK

    def _compare(self, module: ModuleOp) -> int:
        """Make the steps to compare, and write them as a table or as JSON."""
        from compiler.step_comparison import compare_steps
        from compiler.targets.steps import json_text, table

        args = self.args
        started = time.perf_counter()
        with self._progress():
            found = compare_steps(module, self.options)
        self.timing.note("compare", time.perf_counter() - started)
        colour = args.output in (None, "-") and wants_colour(sys.stdout)
        write_output(args.output, json_text(found) if args.emit == "json" else table(found, colour=colour))
        if args.timing:
            sys.stderr.write(self.timing.table())
        return OK

    def _goal(self, module: ModuleOp) -> str:
        """The level asked for; unless asked, a schedule, or the level of the input where that is a later one."""
        if self.args.pareto is not None or self.args.compare:
            return "moldable"
        if self.args.emit == "model":
            return "model"
        level = level_of(module)
        return self.args.compile_to or (level if reaches(level, "scheduled") else "scheduled")

    def _check_start(self, given: Input, module: ModuleOp) -> None:
        wanted = self.args.compile_from
        if wanted is None:
            return
        if given.format == "takt" and wanted != LEVELS[0]:
            raise TaktError(Diagnostic(f"'{given.name}' is a model; --compile-from {wanted} needs IR of that level"))
        if level_of(module) != wanted:
            raise TaktError(Diagnostic(f"'{given.name}' is at level '{level_of(module)}', not at '{wanted}'"))

    def _dumps(self, passes: bool) -> PhaseDumps | None:
        args = self.args
        if args.dump_phases_to is None:
            return None
        goal = {} if args.compile_to is None else {"--compile-to": args.compile_to}
        options = [word for pair in (goal | schedule_texts(args)).items() for word in pair if word]
        return PhaseDumps(Path(args.dump_phases_to), options, passes)

    def _progress(self) -> AbstractContextManager[None]:
        if self.args.quiet or not sys.stderr.isatty():
            return nullcontext()
        from compiler.progress import live_progress

        return live_progress()

    def _finish(self, module: ModuleOp, wanted: TaktTarget | None) -> int:
        """Write the result, then what a person wants to know beside it."""
        args = self.args
        started = time.perf_counter()
        kind = args.emit or "mlir"
        simulated_only = args.simulate is not None and args.emit is None and args.output is None
        code = OK
        if not simulated_only:
            text = self._emit(kind, module, wanted)
            self.timing.note(f"emit {kind}", time.perf_counter() - started)
            write_output(args.output, text)
        scheduled = reaches(level_of(module), "scheduled")
        if kind == "mlir" and scheduled and not args.quiet and not simulated_only:
            sys.stderr.write(self._summary(module, wants_colour(sys.stderr)))
        if args.simulate is not None:
            from compiler.comparison import compare

            started = time.perf_counter()
            report, agrees = compare(module, args.simulate)
            self.timing.note("simulate", time.perf_counter() - started)
            (sys.stdout if simulated_only else sys.stderr).write(report)
            code = OK if agrees else 1
        if args.timing:
            sys.stderr.write(self.timing.table())
        return code

    def _emit(self, kind: str, module: ModuleOp, wanted: TaktTarget | None) -> str:
        if wanted is None:
            return print_ir(module, generic=kind == "generic", locations=self.args.print_debuginfo)
        if not reaches(level_of(module), "scheduled"):
            raise TaktError(
                Diagnostic(f"--emit {kind} needs a schedule, and the graph is at level '{level_of(module)}'")
            )
        return wanted.text(module, colour=self.args.output in (None, "-") and wants_colour(sys.stdout))

    def _summary(self, module: ModuleOp, colour: bool) -> str:
        return emitter("summary")(module, colour=colour, microbatches=self.args.microbatches)


def syntax_tree(given: Input) -> str:
    """The syntax tree of a model, for ``--emit ast``."""
    if given.format != "takt":
        raise TaktError(Diagnostic(f"--emit ast needs a .takt model, and '{given.name}' is IR"))
    from frontend import parse
    from frontend.dump import show_ast

    text = show_ast(parse(given.source()))
    return text if text.endswith("\n") else text + "\n"
