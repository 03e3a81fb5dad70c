"""The command ``taktc``: a model in, a checked schedule out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from compiler.command_line import INTERRUPTED, ArgumentParser, assignment, did_you_mean, guarded, positive
from compiler.schedule_options import add_schedule_options, check_schedule_options, schedule_texts
from compiler.targets import TARGETS

LEVELS = ("model", "moldable", "staged", "scheduled", "communicating", "programs")
EARLY = LEVELS[:3]
"""The levels without a schedule."""
EMITS = ("ast", "model", "mlir", "generic", *TARGETS)

USAGE = "taktc MODEL [--platform FILE] [-o FILE] [--emit KIND] [options]\n       taktc run MODEL [options]"
DESCRIPTION = "Compile a model to a periodic schedule for pipelined execution."

EPILOG = """\
examples:
  taktc gpt.takt --platform dgx.takt                       IR on stdout, the summary on stderr
  taktc gpt.takt --platform dgx.takt --emit summary        period, bound, latency, load, memory
  taktc gpt.takt --platform dgx.takt -o gpt.mlir           write the scheduled IR to a file
  taktc gpt.takt --platform dgx.takt --set layers=48       override a parameter of the model
  taktc gpt.takt --platform dgx.takt --emit svg -o gpt.svg the steady state as a picture
  taktc gpt.takt --platform dgx.takt --simulate 200        prediction and simulation side by side
  taktc gpt.takt --platform dgx.takt --plan auto --max-in-flight 16 --memory 60GiB
                                                           the best plan within limits
  taktc gpt.takt --platform dgx.takt --pareto period,in-flight
                                                           what a shorter period costs
  taktc gpt.takt --platform dgx.takt --training adam --microbatches 32 --compare
                                                           our step beside the known schedules
  taktc gpt.takt --platform dgx.takt --dump-phases-to ir   one file a level ...
  taktc ir/gpt.1.moldable.mlir --emit summary              ... and compile on from one of them
  taktc gpt.takt --platform dgx.takt -p annotate-costs     these passes and no others
  taktc run gpt.takt --platform dgx.takt                   run the schedule with a process an accelerator
                                                           (taktc run --help)

exit codes:
  0 done; 1 the input is wrong or there is no schedule; 2 wrong usage; 130 interrupted
"""


def build_parser() -> ArgumentParser:
    """The options of ``taktc``."""
    parser = ArgumentParser("taktc", USAGE, DESCRIPTION, EPILOG)
    add = parser.add_argument_group("input").add_argument
    parser.add_argument("input", nargs="?", metavar="MODEL", help=".takt model or .mlir IR of any level; - is stdin")
    add("--platform", metavar="FILE", help=".takt file with the platform, when the model has none")
    add("--set", metavar="NAME=VALUE", type=assignment, action="append", default=[], help="set a model parameter")
    add("--model", metavar="NAME", help="which model of the file, when it has several")
    add("--input-format", choices=("takt", "mlir"), help="default: by extension; for stdin, by its first words")
    add = parser.add_argument_group("output").add_argument
    add("-o", "--output", metavar="FILE", help="write the result here, whole or not at all (default: stdout)")
    add("--emit", type=emission, metavar="KIND", help=f"one of {', '.join(EMITS)} (default: mlir); 'svg{{width=900}}'")
    add("--print-debuginfo", action="store_true", help="keep source locations in printed IR")
    add("--simulate", metavar="N", type=positive, help="run N micro-batches in the simulator and compare")
    add("--quiet", action="store_true", help="no summary, no progress; only the result and errors")
    add_schedule_options(parser)
    add = parser.add_argument_group("pipeline").add_argument
    add("--compile-from", choices=LEVELS, metavar="LEVEL", help="refuse IR input that is not at LEVEL")
    add("--compile-to", choices=LEVELS, metavar="LEVEL", help=f"go to LEVEL (scheduled): {', '.join(LEVELS)}")
    add("-p", "--passes", metavar="PIPELINE", help="run these passes instead: 'name{option=value},name'")
    add("--dump-phases-to", metavar="DIR", help="write the IR after every phase to DIR")
    add("--print-ir-after-all", action="store_true", help="print the IR after every pass on stderr")
    add("--timing", action="store_true", help="wall time and peak memory of every phase on stderr")
    add("--debug", action="store_true", help="show a traceback with every error")
    add = parser.add_argument_group("about").add_argument
    add("--list-passes", action="store_true", help="name and purpose of every pass")
    add("--pass-help", metavar="PASS", help="description and options of a pass")
    add("--version", action="store_true", help="versions of taktc, xDSL and Python")
    return parser


def emission(text: str) -> str:
    """An argparse type: the name of an output format, with options in braces where it has any."""
    name, brace, _ = text.partition("{")
    if name not in EMITS:
        raise argparse.ArgumentTypeError(f"there is no '{name}'{did_you_mean(name, EMITS)}: {', '.join(EMITS)}")
    if brace and name not in TARGETS:
        raise argparse.ArgumentTypeError(f"'{name}' has no options")
    return text


def check_usage(parser: ArgumentParser, args: argparse.Namespace) -> None:
    """End with a usage error when options do not fit together."""
    if args.input is None:
        parser.error("no input: give a .takt model, .mlir IR, or - for stdin")
    args.target, args.emit = args.emit, None if args.emit is None else args.emit.partition("{")[0]
    names = [name for name, _ in args.set]
    for name in names:
        if names.count(name) > 1:
            parser.error(f"--set {name} is given twice")
    if args.emit in ("ast", "model") and args.compile_to not in (None, "model"):
        parser.error(f"--emit {args.emit} stops at the front end, --compile-to {args.compile_to} goes on")
    if args.emit in TARGETS and args.compile_to in EARLY:
        parser.error(f"--emit {args.emit} needs a schedule, --compile-to {args.compile_to} stops before")
    if args.simulate is not None and (args.compile_to in EARLY or args.emit in ("ast", "model")):
        parser.error("--simulate needs a schedule, and the compilation stops before")
    if args.emit in ("ast", "model") and args.passes is not None:
        parser.error(f"--emit {args.emit} stops at the front end; no pass can run before it")
    if args.passes is not None:
        for option in ["--compile-to"] * (args.compile_to is not None) + list(schedule_texts(args)):
            parser.error(f"{option} belongs to the standard pipeline; with -p, write it as an option of the pass")
    check_schedule_options(parser, args)
    if args.platform == "-" and args.input == "-":
        parser.error("the model and the platform cannot both come from stdin")


def version_text() -> str:
    """One line: our version and those that decide what we do."""
    from importlib.metadata import PackageNotFoundError, version

    from compiler import __version__

    try:
        xdsl = version("xdsl")
    except PackageNotFoundError:
        xdsl = "missing"
    return f"taktc {__version__} (xDSL {xdsl}, Python {sys.version.split()[0]})\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``taktc`` with ``argv`` (default: the process's arguments); returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] == "run":
        from compiler import run

        return run.main(argv[1:])
    try:
        parser = build_parser()
        args = parser.parse_args(argv)
        if args.version:
            sys.stdout.write(version_text())
            return 0
        if not (args.list_passes or args.pass_help):
            check_usage(parser, args)
        from compiler.diagnostics import SourceCache
        from compiler.driver import Driver

        sources = SourceCache()
        return guarded("taktc", args.debug, sources, Driver(args, sources).run)
    except KeyboardInterrupt:
        sys.stderr.write("taktc: interrupted\n")
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
