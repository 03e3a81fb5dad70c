"""The options of ``taktc`` that steer the schedule: what they are called, what goes together, and how they read."""

from __future__ import annotations

import argparse

from compiler.command_line import (
    ArgumentParser,
    amount,
    did_you_mean,
    duration,
    names_of,
    natural,
    positive,
    seconds,
    share,
    size,
)
from passes.choices import (
    ALLOTMENTS,
    AXES,
    CUTS,
    GOALS,
    GRANULARITIES,
    OPTIMIZERS,
    ORDERS,
    PLANS,
    RECOMPUTATION_CHOICES,
    RECOMPUTATIONS,
    SOLVERS,
    TIES,
)

PLAN_HELP = (
    "stages: each on a block of its own (default); shared: neighbours run boundary operators together; pushed: blocks"
    " also run some operators of later stages; interleaved, v: blocks run several chunks each, passed again and again"
    " or there and back; replicated: copies of a stage take turns; list: single operators, as early as they can;"
    " laminar: operators packed on nested blocks of all; assigned: the same with what transfers cost; free: few"
    " operators on any sets; auto: the best of these"
)
ALLOTMENTS_HELP = (
    "on how many accelerators of its stage an operator runs: any (default); stage: all of them; or a number: exactly so"
    " many, in stages that wide (plans stages, interleaved, v and auto)"
)
TRAINING_HELP = (
    "train: backward operators, and what this optimizer keeps; with --microbatches a whole step, else the steady state:"
    f" {', '.join(OPTIMIZERS)}"
)
ORDER_HELP = (
    "a step of --microbatches in this order, each with starts of its own: own, the shortest found (default with"
    f" --training); or {', '.join(ORDERS[1:])}"
)
CUT_HELP = "chunks of a step: balanced, of equal time (default); or equal, of as many layers (uniform plans)"
TIE_HELP = (
    "operators that share parameters, in training: copies, whose gradients are summed once a step (default), or"
    " colocate, on the same accelerators"
)
ASYNCHRONOUS_HELP = (
    "update parameters every M micro-batches (default: 1) and wait for nothing: micro-batches keep the version"
    " that they began with"
)
RECOMPUTE_HELP = (
    f"what a training step computes again instead of keeping it: {', '.join(RECOMPUTATIONS)}; solver: what gives the"
    " best schedule that fits"
)
COMPARE_HELP = (
    "a step of --training and --microbatches by our own order beside the known ones, as a table or --emit json"
)
EFFORT_HELP = "work for the solvers; a unit is about a second of one core (10; for a step 3)"
PARETO_HELP = f"the trade-off instead of one schedule: period,in-flight, or others of {', '.join(AXES)}"

OPTIONS = (
    *("plan", "stages", "objective", "microbatches", "max_in_flight", "max_latency", "memory", "max_crossing"),
    *("tolerance", "gap", "effort", "time_limit", "seed", "solver", "granularity", "chunks", "replicate", "allotments"),
    *("training", "tie", "asynchronous", "recompute", "order", "cut", "staggered"),
)
"""Names of the options that steer one schedule, as attributes of the parsed command line."""

PERIODIC = (
    *("plan", "max_in_flight", "max_latency", "max_crossing", "tolerance", "gap", "time_limit", "solver"),
    *("granularity", "replicate"),
)
"""Those of a schedule that repeats with a period, and not of a step."""

STEPS = ("order", "cut", "staggered")
"""Those of a step alone."""

BATCHES = ("mpmd", "torch-csv")
"""The output formats that are for a number of micro-batches."""

UNITS = {"max_latency": "ns", "memory": "B", "max_crossing": "B"}


def allotments(text: str) -> str | int:
    """An argparse type: one of ``ALLOTMENTS``, or a positive integer."""
    if text in ALLOTMENTS:
        return text
    if not text.isdecimal():
        names = ", ".join(ALLOTMENTS)
        message = f"expected {names} or a positive integer, got '{text}'{did_you_mean(text, ALLOTMENTS)}"
        raise argparse.ArgumentTypeError(message)
    return positive(text)


def add_schedule_options(
    parser: ArgumentParser, microbatches: str = "micro-batches of a step, or of the programs", *, several: bool = True
) -> None:
    """Add the options to the parser of ``taktc``, those for ``several`` schedules too.

    ``microbatches`` says what so many are for.
    """
    add = parser.add_argument_group("schedule").add_argument
    add("--plan", choices=PLANS, metavar="PLAN", help=PLAN_HELP)
    add("--stages", metavar="N", type=positive, help="number of stages, in a step of ranks (default: chosen)")
    add("--objective", choices=GOALS, metavar="KIND", help="what is made small: period (default), step or latency")
    add("--microbatches", metavar="M", type=positive, help=microbatches)
    add("--max-in-flight", metavar="N", type=positive, help="most micro-batches begun and not finished")
    add("--max-latency", metavar="TIME", type=duration, help="longest latency, such as 30ms")
    add("--memory", metavar="SIZE", type=size, help="most bytes on an accelerator, such as 60GiB")
    add("--max-crossing", metavar="SIZE", type=size, help="most bytes of a micro-batch that change accelerator sets")
    add("--tolerance", metavar="SHARE", type=share, help="values this close to the least count as equal (0.5%%)")
    add(
        "--gap", metavar="SHARE", type=share, help="stop when the period is proven this close to the least, such as 1%%"
    )
    add("--training", choices=OPTIMIZERS, metavar="OPTIMIZER", help=TRAINING_HELP)
    add("--order", choices=ORDERS, metavar="NAME", help=ORDER_HELP)
    add("--cut", choices=CUTS, metavar="KIND", help=CUT_HELP)
    add("--staggered", action="store_const", const=True, help="a step begins before all of the last one has ended")
    add("--tie", choices=TIES, metavar="KIND", help=TIE_HELP)
    add("--asynchronous", metavar="M", nargs="?", const=1, type=positive, help=ASYNCHRONOUS_HELP)
    add("--recompute", choices=RECOMPUTATION_CHOICES, metavar="POLICY", help=RECOMPUTE_HELP)
    if several:
        add("--pareto", metavar="AXES", type=names_of(AXES, 2), help=PARETO_HELP)
        add("--compare", action="store_true", help=COMPARE_HELP)
    add = parser.add_argument_group("search").add_argument
    add("--effort", metavar="W", type=amount, help=EFFORT_HELP)
    add("--time-limit", metavar="S", type=seconds, help="seconds for the solvers")
    add("--seed", metavar="N", type=natural, help="seed of the solvers")
    add("--solver", choices=SOLVERS, metavar="NAME", help=f"this engine only: {', '.join(SOLVERS)}")
    add("--granularity", choices=GRANULARITIES, metavar="KIND", help="what is placed: operator or block")
    add("--allotments", metavar="KIND", type=allotments, help=ALLOTMENTS_HELP)
    add("--chunks", metavar="N", type=positive, help="stages of every block of accelerators")
    add("--replicate", metavar="R", type=positive, help="most copies of an operator")


def check_schedule_options(parser: ArgumentParser, args: argparse.Namespace) -> None:
    """End with a usage error when options of ``taktc`` do not go together."""
    check_objective(parser, args)
    if args.tie is not None and args.training is None:
        parser.error("--tie is about the parameters that are trained: give --training too")
    if args.asynchronous is not None and args.training is None:
        parser.error("--asynchronous is about training: give --training too")
    if args.asynchronous is not None and (args.objective == "step" or is_step(args)):
        parser.error("micro-batches of a step see the same parameters: leave out --asynchronous, or what asks for it")
    counted = args.objective == "step" or is_step(args) or args.compile_to == "programs" or args.emit in BATCHES
    if args.microbatches is not None and not counted:
        parser.error(
            "--microbatches is for --objective step, of so many micro-batches, for --training and --order, and for"
            f" --compile-to programs and --emit {' and '.join(BATCHES)}, which process so many"
        )
    if args.compare:
        _check_compare(parser, args)
    if args.pareto is None:
        return
    if args.emit not in (None, "json", "svg"):
        parser.error(f"--pareto prints a table, --emit json or --emit svg, not {args.emit}")
    if args.target not in (None, args.emit):
        parser.error(f"--emit {args.emit} has no options with --pareto")
    if args.recompute == "solver":
        parser.error("--recompute solver chooses one schedule, and --pareto asks for several; name a policy")
    one = {"--compile-to": args.compile_to, "--simulate": args.simulate, "--passes": args.passes}
    one |= {"--objective": args.objective, "--gap": args.gap}
    for option, value in one.items():
        if value is not None:
            parser.error(f"{option} is about one schedule, and --pareto asks for several")


def _check_compare(parser: ArgumentParser, args: argparse.Namespace) -> None:
    if not is_step(args):
        parser.error("--compare is about a step: give --training and --microbatches")
    if args.emit not in (None, "json") or args.target not in (None, "json"):
        parser.error(f"--compare prints a table, or --emit json, not {args.target}; --order draws one of them")
    if args.recompute == "solver":
        parser.error("--recompute solver chooses by one schedule, and --compare asks for several: name a policy")
    for name in ("order", "cut", "staggered", "chunks", "compile_to", "simulate", "passes"):
        if getattr(args, name) is not None:
            parser.error(f"--{name.replace('_', '-')} is about one schedule, and --compare asks for several")


def is_step(args: argparse.Namespace) -> bool:
    """Whether a step of a finite batch is asked for: of so many micro-batches, to train or in an order."""
    return args.order is not None or (
        args.training is not None and args.microbatches is not None and args.objective in (None, "step")
    )


def _check_step(parser: ArgumentParser, args: argparse.Namespace) -> None:
    step = is_step(args)
    if args.order is not None and args.microbatches is None:
        parser.error("--order needs --microbatches M: it is the order of a step of M micro-batches")
    if args.order is not None and args.objective not in (None, "step"):
        parser.error(f"--order makes a step, and the objective is the {args.objective}")
    for name in PERIODIC if step else STEPS:
        if getattr(args, name) is None:
            continue
        option = f"--{name.replace('_', '-')}"
        if step:
            parser.error(f"{option} is for schedules with a period, not for a step; --objective period makes one")
        parser.error(f"{option} is for a step: give --training and --microbatches, or --order")
    if step and getattr(args, "pareto", None) is not None:
        parser.error("--pareto is about periods, and --training with --microbatches, or --order, makes one step")
    if step and isinstance(args.allotments, str):
        parser.error(f"--allotments {args.allotments} is for schedules with a period; a step has --cut equal")


def check_objective(parser: ArgumentParser, args: argparse.Namespace) -> None:
    """End with a usage error when what is asked of the objective does not go together."""
    _check_step(parser, args)
    if args.objective == "step" and args.microbatches is None:
        parser.error("--objective step needs --microbatches M: it is the time of a step of M micro-batches")
    if args.gap is not None and args.objective not in (None, "period"):
        parser.error(f"--gap is about the period, and the objective is the {args.objective}")


def schedule_texts(args: argparse.Namespace) -> dict[str, str]:
    """The options given → their values, as text that is read back alike; empty for those without a value."""
    given = {name: value for name in OPTIONS if (value := getattr(args, name)) is not None}
    texts = {
        f"--{name.replace('_', '-')}": "" if value is True else f"{value}{UNITS.get(name, '')}"
        for name, value in given.items()
    }
    return texts | ({"--pareto": ",".join(args.pareto)} if args.pareto else {})
