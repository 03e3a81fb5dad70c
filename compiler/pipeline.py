"""The whole compiler on one page: which passes run, in which order, and why each stands where it does.

====================  ==============  ==================================================================
step                  level after     why here
====================  ==============  ==================================================================
(front end)           model           everything later needs the graph with types, names and places.
expand-training       model           (only if asked for) backward operators are operators like others: all
                                      that follows is to see them.
annotate-costs        moldable        times depend on the operators and the platform, on nothing decided
                                      later; every later choice weighs them.
restrict-allotments   moldable        (only if asked for) leaves one allotment, before anything weighs the others.
partition-stages      staged          a stage fixes which accelerators may hold an operator's parameters,
                                      so it must balance known times, and must stand before any operator
                                      gets accelerators of its own.
schedule-periodic     scheduled       allotments, accelerators and starts are chosen last, inside the
                                      granted blocks; only then is the memory of overlapping
                                      micro-batches known.
insert-communication  communicating   (only if asked for) makes the reserved transfers operations, for
                                      tools that read a graph; nothing moves in time.
lower-to-programs     programs        (only if asked for) what every accelerator does is final now, so it
                                      can be written down as one list of instructions each.
====================  ==============  ==================================================================

After every step the module is held to the written spec of its level. The one thing decided by looking
back is memory: how much the values in flight need is known only with a schedule, so when it does not fit,
partition and schedule are repeated: plan ``stages`` chooses stages by what they will hold, others keep more
memory free. (With ``--plan auto``, another
objective or limits the first of the two makes whole schedules, and does so itself.)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import ModulePass
from xdsl.utils.exceptions import DiagnosticException, VerifyException

from compiler.command_line import UsageError
from compiler.pass_text import make_pass, option_names
from dialects.diagnostics import Diagnostic, TaktError, at
from dialects.levels import verify_level
from dialects.structure import LEVELS, find_graph, reaches
from passes.choices import Allotments, Goal, Granularity, Optimizer, Plan, Solver
from passes.instance import DoesNotFit

PHASES: tuple[tuple[str, str], ...] = (
    ("annotate-costs", "moldable"),
    ("partition-stages", "staged"),
    ("schedule-periodic", "scheduled"),
    ("insert-communication", "communicating"),
    ("lower-to-programs", "programs"),
)
"""The passes of the pipeline, in order, each with the level it reaches."""

SOLVING = ("partition-stages", "schedule-periodic")
"""The passes that look for a schedule; the options are theirs."""

MEMORY_ROUNDS = 5
"""How often partition and schedule are repeated to make a schedule fit in memory."""


@dataclass(frozen=True)
class Options:
    """What a user may choose about a compilation; None leaves the choice to the pass.

    Times are ns, but for ``time_limit``, in seconds; sizes bytes; shares fractions.
    """

    plan: Plan | None = None
    """Stages on blocks of their own, sharing boundaries, also taking over some operators of later stages;
    operators packed on nested blocks of the whole platform; or the best of these."""
    stages: int | None = None
    max_in_flight: int | None = None
    time_limit: float | None = None
    seed: int | None = None
    objective: Goal | None = None
    microbatches: int | None = None
    max_latency: int | None = None
    max_memory: int | None = None
    max_crossing: int | None = None
    tolerance: float | None = None
    gap: float | None = None
    effort: float | None = None
    solver: Solver | None = None
    granularity: Granularity | None = None
    chunks: int | None = None
    copies: int | None = None
    allotments: Allotments | int | None = None
    """Whether operators run on all accelerators of their stages, and if a number, on how many exactly."""

    training: Optimizer | None = None
    """A training step instead of the forward pass alone, with what this optimizer keeps."""

    @property
    def whole(self) -> bool:
        """Whether ``partition-stages`` makes whole schedules, and so sees itself what fits in memory."""
        limits = (self.max_in_flight, self.max_latency, self.max_memory, self.max_crossing)
        return self.plan == "auto" or self.objective in ("step", "latency") or any(v is not None for v in limits)

    @property
    def fittable(self) -> bool:
        """Whether stages that do not fit in memory can be chosen anew by what they hold."""
        return self.plan in (None, "stages") and self.granularity != "block" and not self.whole

    def of(self, pass_name: str) -> dict[str, Any]:
        """The part of them that the pass ``pass_name`` takes. Both solving passes get half the time."""
        if pass_name == "lower-to-programs":
            return {} if self.microbatches is None else {"microbatches": self.microbatches}
        if pass_name == "restrict-allotments":
            return {"to": self.allotments}
        if pass_name == "expand-training":
            return {"optimizer": self.training}
        if pass_name not in SOLVING:
            return {}
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.time_limit is not None:
            given["time_limit"] = self.time_limit / 2
        if isinstance(self.allotments, int):
            given["allotments"] = "stage"
        return {name: v for name, v in given.items() if v is not None and name in option_names(pass_name)}

    def steps(self, have: str, want: str) -> list[str]:
        """The passes that take a module from the level ``have`` to ``want``."""
        begin, end = LEVELS.index(have), LEVELS.index(want)
        todo = [name for name, level in PHASES if begin < LEVELS.index(level) <= end]
        if isinstance(self.allotments, int) and begin < LEVELS.index("scheduled") and end >= LEVELS.index("moldable"):
            todo.insert(todo.count("annotate-costs"), "restrict-allotments")
        return todo

    def check(self) -> None:
        """Raise UsageError for what no pass can do."""
        given = [f.name for f in fields(self) if getattr(self, f.name) is not None and f.name != "training"]
        for name in given:
            if not any(name in option_names(step) for step in SOLVING):
                raise UsageError(f"no pass has an option '{name.replace('_', '-')}'")


class Observer:
    """Told of every step of a compilation; this one does nothing with it."""

    def ran(self, step: str, module: ModuleOp, seconds: float) -> None:
        """``step``, the canonical text of a pass, left ``module`` after ``seconds``; it is not verified yet."""

    def verified(self, seconds: float) -> None:
        """The module was held to its level, which took ``seconds``."""


SILENT = Observer()


def new_context() -> Context:
    """A context that knows the builtin and the takt dialects, and loads xDSL's others when met."""
    from xdsl.dialects import get_all_dialects

    from compiler.universe import get_takt

    context = Context()
    for name, factory in (get_all_dialects() | {"takt": get_takt}).items():
        context.register_dialect(name, factory)
    context.load_registered_dialect("builtin")
    context.load_registered_dialect("takt")
    return context


def level_of(module: ModuleOp) -> str:
    """The level that the module's graph claims; TaktError when there is no graph."""
    graph = find_graph(module)
    if graph is None:
        raise TaktError(Diagnostic("there is no takt.graph in this module"))
    return graph.level.data


def run_pass(
    context: Context, module: ModuleOp, step: ModulePass, observer: Observer = SILENT, *, check: bool = True
) -> None:
    """Run one pass on ``module``, tell ``observer``, then hold the result to its level.

    A broken result is shown to ``observer`` before it is refused, so that dumps show what went wrong.
    Raises TaktError when the pass refuses the module or breaks it.
    """
    started = time.perf_counter()
    try:
        step.apply(context, module)
    except DiagnosticException as error:  # how xDSL's own passes refuse a module
        raise TaktError(f"pass '{step.name}' failed: {str(error).splitlines()[0]}") from error
    observer.ran(str(step), module, time.perf_counter() - started)
    if check:
        verify(module, observer)


def verify(module: ModuleOp, observer: Observer = SILENT) -> None:
    """Hold ``module`` to the level it claims; one without a graph only has to be well-formed IR."""
    started = time.perf_counter()
    try:
        if find_graph(module) is not None:
            verify_level(module)
        else:
            module.verify()
    except VerifyException as error:
        raise TaktError(str(error)) from error
    observer.verified(time.perf_counter() - started)


def run_passes(
    context: Context, module: ModuleOp, steps: Sequence[ModulePass], observer: Observer = SILENT
) -> ModuleOp:
    """Run the given passes in order, as ``-p`` asks for."""
    for step in steps:
        run_pass(context, module, step, observer)
    return module


def run_pipeline(
    context: Context,
    module: ModuleOp,
    *,
    to: str = "scheduled",
    options: Options = Options(),
    observer: Observer = SILENT,
) -> ModuleOp:
    """Compile ``module``, from whatever level it is at, to the level ``to``.

    Returns the compiled module; ``module`` itself is used up. Raises TaktError when a pass refuses the
    input, when no schedule exists, or when a pass leaves a module that breaks the rules of its level.
    """
    have = level_of(module)
    if not reaches(to, have):
        graph = find_graph(module)
        assert graph is not None
        raise TaktError(at(graph, f"the input is at level '{have}' already, past '{to}'"))
    todo = [*trained(module, options), *options.steps(have, to)]
    while todo:
        if todo[:2] == [*SOLVING]:
            module, todo = partition_and_schedule(context, module, options, observer), todo[2:]
        elif todo[0] == "schedule-periodic" and options.fittable:
            module, todo = schedule_granted(context, module, options, observer), todo[1:]
        else:
            name, *todo = todo
            run_pass(context, module, make_pass(name, options.of(name)), observer)
    return module


def trained(module: ModuleOp, options: Options) -> list[str]:
    """The pass that makes ``module`` the training graph asked for, unless it is; TaktError when it cannot become it."""
    graph = find_graph(module)
    assert graph is not None
    if options.training is None:
        return []
    if graph.training is not None:
        if (found := graph.training.optimizer.data) != options.training:
            raise TaktError(at(graph, f"the input is a training graph for '{found}' already, not '{options.training}'"))
        return []
    if graph.level.data != "model":
        message = f"the input is a forward graph at level '{graph.level.data}', past 'model'"
        raise TaktError(at(graph, message, "--training needs the model itself"))
    return ["expand-training"]


def partition_and_schedule(context: Context, module: ModuleOp, options: Options, observer: Observer) -> ModuleOp:
    """Partition and schedule; where the schedule does not fit in memory, again with stages that hold less.

    Each round starts from the same moldable module. Plan ``stages`` then looks for stages that fit, and the refusal of
    that is the one reported: it says what would do. Other plans keep memory free for values in flight: the
    reserve grows by what was missing, and at least doubles, since other stages change what is in flight. When no
    round fits, their first refusal is reported: it speaks of the partition that memory alone made impossible.
    """
    reserve = 0
    refusal: TaktError | None = None
    for _ in range(1 if options.whole else MEMORY_ROUNDS):
        attempt = module.clone()
        try:
            keep = {"memory_reserve": reserve} if reserve else {}
            run_pass(context, attempt, make_pass("partition-stages", options.of("partition-stages") | keep), observer)
            run_pass(context, attempt, make_pass("schedule-periodic", options.of("schedule-periodic")), observer)
            return attempt
        except DoesNotFit as error:
            if options.fittable:
                return partition_to_fit(context, module, options, observer)
            refusal = refusal or error
            reserve = max(reserve + error.missing, 2 * reserve)
    assert refusal is not None
    raise refusal


def schedule_granted(context: Context, module: ModuleOp, options: Options, observer: Observer) -> ModuleOp:
    """Schedule in blocks that are granted already; where that does not fit in memory, in the way that holds less."""
    attempt = module.clone()
    try:
        run_pass(context, attempt, make_pass("schedule-periodic", options.of("schedule-periodic")), observer)
        return attempt
    except DoesNotFit:
        step = make_pass("schedule-periodic", options.of("schedule-periodic") | {"fit": True})
        run_pass(context, module, step, observer)
        return module


def partition_to_fit(context: Context, module: ModuleOp, options: Options, observer: Observer) -> ModuleOp:
    """Partition and schedule plan ``stages`` by what stages hold; DoesNotFit when nothing was found that fits."""
    for name in SOLVING:
        run_pass(context, module, make_pass(name, options.of(name) | {"fit": True}), observer)
    return module
