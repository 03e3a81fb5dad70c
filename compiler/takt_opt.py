"""The command ``takt-opt``: IR or a model in, chosen passes, IR out. For tests and for flows of one's own."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from io import StringIO
from typing import cast

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import PassPipeline
from xdsl.xdsl_opt_main import xDSLOptMain

from compiler.command_line import (
    FAILED,
    OK,
    ArgumentParser,
    assignment,
    check_output,
    guarded,
    print_diagnostics,
    write_output,
)
from compiler.diagnostics import Renderer, SourceCache
from compiler.loading import Format, Input, load_module, read_input
from compiler.output import Reporter, Timing, print_ir
from compiler.pass_text import (
    TargetFactories,
    all_passes,
    find_pass,
    list_passes,
    parse_passes,
    parse_target,
    pass_help,
)
from compiler.pipeline import run_pass, verify
from compiler.targets import TARGETS
from compiler.targets.registry import REGISTRY
from dialects.diagnostics import TaktError

USAGE = "takt-opt [FILE] [-p PIPELINE] [-t TARGET] [-o FILE] [options]"
DESCRIPTION = "Run passes on IR or on a model; the result goes to stdout."

EPILOG = """\
examples:
  takt-opt gpt.takt --platform dgx.takt                        level 0 IR
  takt-opt gpt.takt --platform dgx.takt -p annotate-costs      one pass
  takt-opt ir.mlir -p 'annotate-costs{allotments=all},partition-stages' --print-between-passes
  takt-opt ir.mlir -p verify-level                             check a dump
  takt-opt ir.mlir --print-op-generic | takt-opt -             '-' or nothing is stdin
  takt-opt scheduled.mlir -t svg -o gantt.svg                  write a target

exit codes: 0 done; 1 the input is wrong or a pass failed; 2 wrong usage; 130 interrupted
"""

SPLIT = "// -----"
"""Between the inputs of one file under ``--split-input-file``."""


class TaktOptMain(xDSLOptMain):
    """xDSL's opt driver with takt's dialect, passes, targets and input, and with clean errors.

    Where xDSL writes timings and dumps to stdout, this writes them to stderr; stdout has the result.
    """

    def __init__(self, args: Sequence[str] | None = None) -> None:
        # xDSLOptMain.__init__ makes its own argparse parser and patches all attributes for
        # --disable-verify; the rest of it is here.
        self.available_frontends = {}
        self.available_passes = dict(all_passes())
        self.available_targets = {}
        self.ctx = Context()
        self.sources = SourceCache()
        self.timing = Timing()
        self.register_all_dialects()
        self.register_all_targets()
        parser = ArgumentParser("takt-opt", USAGE, DESCRIPTION, EPILOG)
        self.register_all_arguments(parser)
        self.args = parser.parse_args(args)
        self.ctx.allow_unregistered = self.args.allow_unregistered_dialect

    def register_all_dialects(self) -> None:
        from xdsl.dialects import get_all_dialects

        from compiler.universe import get_takt

        for name, factory in (get_all_dialects() | {"takt": get_takt}).items():
            self.ctx.register_dialect(name, factory)
        self.ctx.load_registered_dialect("builtin")

    def register_all_targets(self) -> None:
        from xdsl.targets import get_all_targets

        self.available_targets.update(get_all_targets())
        for cls in REGISTRY:
            self.available_targets[cls.name] = lambda cls=cls: cls

    def register_all_arguments(self, arg_parser: argparse.ArgumentParser) -> None:
        add = arg_parser.add_argument_group("input").add_argument
        arg_parser.add_argument("input_file", nargs="?", default="-", metavar="FILE", help=".mlir or .takt; - is stdin")
        add("-f", "--frontend", choices=("takt", "mlir"), help="what the input is, whatever its name")
        add("--platform", metavar="FILE", help=".takt file with the platform")
        add("--set", metavar="NAME=VALUE", type=assignment, action="append", default=[], help="set a model parameter")
        add("--model", metavar="NAME", help="which model of a .takt file")
        add("--allow-unregistered-dialect", action="store_true", help="accept operations nobody registered")
        add("--no-implicit-module", action="store_true", help="the text must hold one builtin.module")
        add("--split-input-file", action="store_true", help=f"process the parts between '{SPLIT}' one by one")
        add = arg_parser.add_argument_group("passes").add_argument
        add("-p", "--passes", default="", metavar="PIPELINE", help="'name{option=value option=value},name'")
        add("--disable-verify", action="store_true", help="do not check the IR after parsing and after passes")
        add("--print-between-passes", action="store_true", help="print the IR after every pass on stderr")
        add("--time-passes", action="store_true", help="wall time and peak memory of every pass on stderr")
        add = arg_parser.add_argument_group("output").add_argument
        add("-o", "--output-file", metavar="FILE", help="write here, whole or not at all (default: stdout)")
        add("-t", "--target", default="mlir", metavar="TARGET", help=f"mlir, {', '.join(TARGETS)}, or xDSL's")
        add("--print-op-generic", action="store_true", help="the generic form, which MLIR's own tools read")
        add("--print-debuginfo", action="store_true", help="keep source locations")
        add("--verify-diagnostics", action="store_true", help="errors to stdout and exit code 0, for tests")
        add = arg_parser.add_argument_group("about").add_argument
        add("--list-passes", action="store_true", help="name and purpose of every pass, xDSL's too")
        add("--pass-help", metavar="PASS", help="description and options of a pass")
        add("--debug", action="store_true", help="show a traceback with every error")
        add("-v", "--version", action="store_true", help="versions of takt-opt, xDSL and Python")

    def setup_pipeline(self) -> None:
        self.pipeline = PassPipeline(parse_passes(self.args.passes, self.available_passes))

    def run(self) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Do what the command line asks for; returns the exit code."""
        args = self.args
        if args.version:
            from compiler.taktc import version_text

            sys.stdout.write(version_text().replace("taktc", "takt-opt", 1))
            return OK
        if args.list_passes:
            sys.stdout.write(list_passes(self.available_passes))
            return OK
        if args.pass_help:
            sys.stdout.write(pass_help(find_pass(args.pass_help, self.available_passes)))
            return OK
        self.wanted = parse_target(args.target, cast(TargetFactories, self.available_targets))
        self.setup_pipeline()
        check_output(args.output_file)
        given = read_input(args.input_file, self.sources, cast(Format | None, args.frontend), unclear="mlir")
        results: list[str] = []
        failed = False
        for part in split_input(given) if args.split_input_file else [given]:
            try:
                results.append(self.process(part))
            except TaktError as error:
                if args.verify_diagnostics:
                    results.append(Renderer(self.sources, tool="takt-opt").render_all(error.diagnostics))
                elif args.split_input_file:
                    print_diagnostics(error.diagnostics, self.sources, "takt-opt")
                    failed = True
                else:
                    raise
        if failed:
            return FAILED
        write_output(args.output_file, f"{SPLIT}\n".join(results))
        if args.time_passes:
            sys.stderr.write(self.timing.table())
        return OK

    def process(self, given: Input) -> str:
        """One input through all passes to its text."""
        args = self.args
        module = load_module(
            self.ctx,
            given,
            sources=self.sources,
            platform=args.platform,
            overrides=dict(args.set),
            model=args.model,
            implicit_module=not args.no_implicit_module,
        )
        if not args.disable_verify:
            verify(module)
        self.apply_passes(module)
        return self.output_resulting_program(module)

    def apply_passes(self, prog: ModuleOp) -> None:
        reporter = Reporter(self.timing, self.args.print_between_passes)
        for step in self.pipeline.passes:
            run_pass(self.ctx, prog, step, reporter, check=not self.args.disable_verify)

    def output_resulting_program(self, prog: ModuleOp) -> str:
        if self.args.target == "mlir":
            return print_ir(prog, generic=self.args.print_op_generic, locations=self.args.print_debuginfo)
        stream = StringIO()
        self.wanted.emit(self.ctx, prog, stream)
        return stream.getvalue()


def split_input(given: Input) -> list[Input]:
    """The parts of a text between lines ``// -----``, each keeping its line numbers."""
    parts: list[Input] = []
    lines_before = 0
    for text in re.split(rf"^{SPLIT}[ \t]*$", given.text, flags=re.MULTILINE):
        parts.append(Input(given.name, "\n" * lines_before + text, given.format))
        lines_before += text.count("\n")
    return parts


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``takt-opt`` with ``argv`` (default: the process's arguments); returns the exit code."""
    tool = TaktOptMain(argv)
    return guarded("takt-opt", tool.args.debug, tool.sources, tool.run)


if __name__ == "__main__":
    sys.exit(main())
