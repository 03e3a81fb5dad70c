"""The whole compiler on one page: which passes run, in which order, and why each stands where it does.

====================  ==============  ==================================================================
step                  level after     why here
====================  ==============  ==================================================================
(front end)           model           everything later needs the graph with types, names and places.
expand-training       model           (only if asked for) backward operators are operators like others: all
                                      that follows is to see them.
recompute-activations model           (only if asked for) which values live until the backward pass must be
                                      known before anything weighs their bytes.
annotate-costs        moldable        times depend on the operators and the platform, on nothing decided
                                      later; every later choice weighs them.
restrict-allotments   moldable        (only if asked for) leaves one allotment, before anything weighs the others.
partition-stages      staged          a stage fixes which accelerators may hold an operator's parameters,
                                      so it must balance known times, and must stand before any operator
                                      gets accelerators of its own.
schedule-periodic     scheduled       allotments, accelerators and starts are chosen last, inside the
                                      granted blocks; only then is the memory of overlapping
                                      micro-batches known.
schedule-step         scheduled       (instead of the two before, for a step of a finite batch) the order of
                                      micro-batches decides what a cut is worth, so it makes both.
insert-communication  communicating   (only if asked for) makes the reserved transfers operations, for
                                      tools that read a graph; nothing moves in time.
lower-to-programs     programs        (only if asked for) what every accelerator does is final now, so it
                                      can be written down as one list of instructions each.
====================  ==============  ==================================================================

After every step the module is held to the written spec of its level. The one thing decided by looking
back is memory: how much the values in flight need is known only with a schedule, so when it does not fit,
partition and schedule are repeated: plan ``stages`` chooses stages by what they will hold, others keep more
memory free. (With ``--plan auto``, another objective or limits the first of the two makes whole schedules,
and does so itself; with a limit of memory alone, plan ``stages`` does at once what it would do then.)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Any

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import ModulePass
from xdsl.utils.exceptions import DiagnosticException, VerifyException

from compiler.asked import check_step, recomputed, trained
from compiler.command_line import UsageError
from compiler.pass_text import make_pass, option_names
from dialects.diagnostics import Diagnostic, TaktError, at
from dialects.levels import verify_level
from dialects.structure import LEVELS, find_graph, reaches
from passes.choices import (
    RECOMPUTATIONS,
    Allotments,
    Cut,
    Goal,
    Granularity,
    Optimizer,
    Order,
    Plan,
    RecomputationChoice,
    Solver,
    Tie,
)
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
"""The passes that look for a schedule with a period; the options are theirs."""

STEP = "schedule-step"
"""The pass that makes a step instead."""

TRAINING = ("training", "tie", "asynchronous", "recompute")
"""The options of the passes that make a training graph; they are no part of the pipeline without them."""

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
    tie: Tie | None = None
    asynchronous: int | None = None
    """Micro-batches after which parameters are updated, without a step."""
    order: Order | None = None
    """A step of ``microbatches`` in this order; with ``training`` and ``microbatches`` our own unless said."""
    cut: Cut | None = None
    staggered: bool | None = None
    recompute: RecomputationChoice | None = None
    """What the backward pass computes again; "solver": whatever gives the shortest schedule that fits."""

    @property
    def step(self) -> bool:
        """Whether a step of a finite batch is asked for."""
        trains = self.training is not None and self.microbatches is not None and self.objective in (None, "step")
        return self.order is not None or trains

    @property
    def whole(self) -> bool:
        """Whether ``partition-stages`` makes whole schedules, and so sees itself what fits in memory."""
        limits = (self.max_in_flight, self.max_latency, self.max_memory, self.max_crossing)
        return self.plan == "auto" or self.objective in ("step", "latency") or any(v is not None for v in limits)

    @property
    def only_memory(self) -> bool:
        """Whether memory is the one limit of plan ``stages``: then stages are chosen by what they hold at once."""
        rest = replace(self, max_memory=None)
        return self.max_memory is not None and rest.fittable

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
            given = {"optimizer": self.training, "tie": self.tie, "asynchronous": self.asynchronous}
            return {name: value for name, value in given.items() if value is not None}
        if pass_name == "recompute-activations":
            return {"policy": self.recompute}
        if pass_name not in (*SOLVING, STEP):
            return {}
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.time_limit is not None:
            given["time_limit"] = self.time_limit / (1 if pass_name == STEP else 2)
        if isinstance(self.allotments, int):
            given["allotments"] = "stage"
        return {name: v for name, v in given.items() if v is not None and name in option_names(pass_name)}

    def steps(self, have: str, want: str) -> list[str]:
        """The passes that take a module from the level ``have`` to ``want``."""
        begin, end = LEVELS.index(have), LEVELS.index(want)
        todo = [name for name, level in PHASES if begin < LEVELS.index(level) <= end]
        if self.step and "schedule-periodic" in todo:
            todo[todo.index("schedule-periodic")] = STEP
            todo = [name for name in todo if name != "partition-stages"]
        if isinstance(self.allotments, int) and begin < LEVELS.index("scheduled") and end >= LEVELS.index("moldable"):
            todo.insert(todo.count("annotate-costs"), "restrict-allotments")
        return todo

    def check(self) -> None:
        """Raise UsageError for what no pass can do."""
        given = [f.name for f in fields(self) if getattr(self, f.name) is not None and f.name not in TRAINING]
        for name in given:
            if not any(name in option_names(step) for step in (*SOLVING, STEP)):
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
    if options.recompute == "solver":
        if not reaches(to, "scheduled"):
            message = f"--recompute solver compares schedules, and the compilation stops at level '{to}'"
            raise UsageError(f"{message}; name a policy: {', '.join(RECOMPUTATIONS)}")
        if recomputed(module, options):
            module = least_recomputation(context, module, options, observer)
            have = level_of(module)
        options = replace(options, recompute=None)
    check_step(module, options)
    todo = [*trained(module, options), *recomputed(module, options), *options.steps(have, to)]
    while todo:
        if todo[:2] == [*SOLVING]:
            module, todo = partition_and_schedule(context, module, options, observer), todo[2:]
        elif todo[0] == "schedule-periodic" and options.fittable:
            module, todo = schedule_granted(context, module, options, observer), todo[1:]
        else:
            name, *todo = todo
            run_pass(context, module, make_pass(name, options.of(name)), observer)
    return module


class Recorder(Observer):
    """Keeps what it is told, for another observer."""

    def __init__(self) -> None:
        self._told: list[tuple[str | None, ModuleOp | None, float]] = []

    def ran(self, step: str, module: ModuleOp, seconds: float) -> None:
        self._told.append((step, module.clone(), seconds))

    def verified(self, seconds: float) -> None:
        self._told.append((None, None, seconds))

    def tell(self, observer: Observer) -> None:
        """Tell ``observer`` all of it."""
        for step, module, seconds in self._told:
            if step is None or module is None:
                observer.verified(seconds)
            else:
                observer.ran(step, module, seconds)


def least_recomputation(context: Context, module: ModuleOp, options: Options, observer: Observer) -> ModuleOp:
    """The scheduled module of the policy with the best figure; of several, that which computes least again.

    The figure is the objective. When no policy has a schedule, the refusal of the one that keeps least is raised.
    """
    from compiler.view import view_of

    best: tuple[int | Fraction, ModuleOp, Recorder] | None = None
    refusal: TaktError | None = None
    graph = find_graph(module)
    blocks = graph is None or any(op.block is not None for op in graph.operators())
    for policy in RECOMPUTATIONS if blocks else (p for p in RECOMPUTATIONS if p != "full"):
        recorder = Recorder()
        try:
            found = run_pipeline(context, module.clone(), options=replace(options, recompute=policy), observer=recorder)
        except TaktError as error:
            refusal = error
            continue
        view = view_of(found)
        figure = view.pattern if view.step else view.period
        if options.objective == "latency":
            figure = view.latency
        elif options.objective == "step" and options.microbatches is not None and not view.step:
            figure = view.latency + (options.microbatches - 1) * view.period
        if best is None or figure < best[0]:
            best = figure, found, recorder
    if best is None:
        assert refusal is not None
        raise refusal
    best[2].tell(observer)
    return best[1]


def partition_and_schedule(context: Context, module: ModuleOp, options: Options, observer: Observer) -> ModuleOp:
    """Partition and schedule; where the schedule does not fit in memory, again with stages that hold less.

    Each round starts from the same moldable module. Plan ``stages`` then looks for stages that fit, and the refusal of
    that is the one reported: it says what would do. Other plans keep memory free for values in flight: the
    reserve grows by what was missing, and at least doubles, since other stages change what is in flight. When no
    round fits, their first refusal is reported: it speaks of the partition that memory alone made impossible.
    """
    if options.only_memory:
        return partition_to_fit(context, module, options, observer)
    reserve = 0
    refusal: TaktError | None = None
    for _ in range(1 if options.whole else MEMORY_ROUNDS):
        attempt = module.clone()
        try:
            keep = {"memory_reserve": reserve} if reserve else {}
            run_pass(context, attempt, make_pass("partition-stages", options.of("partition-stages") | keep), observer)
            if options.whole and options.plan in (None, "stages"):
                return schedule_granted(context, attempt, options, observer)
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
