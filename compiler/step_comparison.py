"""``taktc --compare``: our own step of a batch beside the known schedules, on the same graph and costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp

from compiler.pipeline import Options, verify
from compiler.simulate import SimulationError, time_triggered
from compiler.targets.step_cells import ranks_of
from compiler.view import ScheduleView, view_of
from dialects.diagnostics import TaktError
from dialects.schedule_rules import peak_memory
from dialects.structure import find_graph, find_platform
from passes.baselines import OWN, STAGGERED, UNIFORM, baselines
from passes.choices import KNOWN_ORDERS
from passes.progress import report
from passes.schedule_step import ScheduleStepPass

NAMES = (OWN, STAGGERED, *KNOWN_ORDERS.values(), UNIFORM)
"""What is compared, in the order in which it is made."""


@dataclass(frozen=True)
class Made:
    """A step that the checker accepts. Times are ns; ``period`` is the most work of an accelerator for a micro-batch.

    ``bubble`` is the idle share of the step on average over the platform, ``least_bubble`` that of the busiest
    accelerator. ``peak_memory`` counts bytes of each accelerator, as the checker does; ``disagreement`` says what the
    simulator finds otherwise, and is empty where step time and memory are the same.
    """

    name: str
    plan: str
    ranks: int
    chunks: int
    time: int
    makespan: int
    period: Fraction
    bubble: Fraction
    least_bubble: Fraction
    peak_memory: Mapping[int, int]
    disagreement: str

    @property
    def overlaps(self) -> bool:
        """Whether the next step begins before all of one has ended."""
        return self.makespan > self.time

    @property
    def most_memory(self) -> int:
        """Bytes on the fullest accelerator."""
        return max(self.peak_memory.values(), default=0)


@dataclass(frozen=True)
class Refused:
    """A schedule that the graph does not have, and why."""

    name: str
    reason: str
    hint: str


@dataclass(frozen=True)
class Comparison:
    """Steps of one batch; ``bound`` holds for every one. Not ``complete`` when it was interrupted."""

    model: str
    platform: str
    accelerators: int
    accelerator: str
    training: tuple[str, str] | None
    microbatches: int
    bound: int
    bound_by: str
    steps: tuple[Made | Refused, ...]
    complete: bool

    @property
    def title(self) -> str:
        """Model and machine."""
        return f"{self.model} on {self.platform}: {self.accelerators} x {self.accelerator}"

    def ahead(self, step: Made) -> Fraction | None:
        """How much longer ``step`` takes than ours, as a share; with the one that overlaps too, where it does.

        None for our own steps, and where ours was not made.
        """
        if step.name in (OWN, STAGGERED):
            return None
        ours = [s for s in self.steps if isinstance(s, Made) and s.name in (OWN, STAGGERED)]
        times = [s.time for s in ours if step.overlaps or not s.overlaps]
        return Fraction(step.time, min(times)) - 1 if times else None


def compare_steps(module: ModuleOp, options: Options) -> Comparison:
    """The steps of ``module``, at level ``moldable``, which is left as it is, as ``options`` limits them.

    Each is held to the rules of its level, and run in the simulator. On an interrupt, what was made so far. Raises
    :class:`TaktError` where the graph has no step at all.
    """
    assert options.microbatches is not None
    steps: list[Made | Refused] = []
    first: ScheduleView | None = None
    refusal: TaktError | None = None
    complete = False
    try:
        for number, (name, found) in enumerate(_made(module, options), start=1):
            made = found if isinstance(found, TaktError) else _measured(name, found)
            if isinstance(made, TaktError):
                refusal = refusal or made
                (fault, *_) = made.diagnostics
                steps.append(Refused(name, fault.message, fault.hint or ""))
            else:
                steps.append(made[0])
                first = first or made[1]
            if number < len(NAMES):
                report(NAMES[number], 0, 0, f"{number + 1} of {len(NAMES)}")
        complete = True
    except KeyboardInterrupt:
        if not steps:
            raise
    if complete and first is None and refusal is not None:
        raise refusal
    graph, platform = find_graph(module), find_platform(module)
    assert graph is not None
    assert platform is not None
    return Comparison(
        graph.sym_name.data,
        platform.sym_name.data,
        platform.count,
        platform.accelerator.data,
        graph.training and (graph.training.optimizer.data, graph.training.precision.data),
        options.microbatches,
        first.bound if first else 0,
        first.bound_by if first else "",
        tuple(steps),
        complete,
    )


def _made(module: ModuleOp, options: Options) -> Iterator[tuple[str, ModuleOp | TaktError]]:
    assert options.microbatches is not None
    given: dict[str, Any] = {"memory": options.max_memory, "stages": options.stages}
    given |= {name: v for name in ("effort", "seed") if (v := getattr(options, name)) is not None}
    report(OWN, 0, 0, f"1 of {len(NAMES)}")
    for name in (OWN, STAGGERED):
        asked = ScheduleStepPass(**options.of("schedule-step") | {"order": "own", "staggered": name == STAGGERED})
        copy = module.clone()
        try:
            asked.apply(Context(), copy)
        except TaktError as refusal:
            yield name, refusal
            continue
        yield name, copy
    for name, found in baselines(module, options.microbatches, **given):
        if name == OWN:
            return
        yield name, found


def _measured(name: str, module: ModuleOp) -> tuple[Made, ScheduleView] | TaktError:
    """The figures of a step, or how it breaks the rules of its level."""
    try:
        verify(module)
    except TaktError as broken:
        return broken
    graph, platform, view = find_graph(module), find_platform(module), view_of(module)
    assert graph is not None
    assert platform is not None
    memory = {p: sum(held) for p, held in peak_memory(graph, platform).items()}
    ranks = ranks_of(view)
    used = [bubble for bubble in view.bubble.values() if bubble < 1]
    updates = dict.fromkeys(view.load, 0)
    for update in view.updates:
        for p in update.place:
            updates[p] += update.time
    made = Made(
        name=name,
        plan=view.plan if view.plan == name else f"{view.plan} by {view.engine}",
        ranks=len(ranks),
        chunks=max((len(rank.chunks) for rank in ranks), default=0),
        time=view.pattern,
        makespan=view.makespan,
        period=max(
            (busy - Fraction(updates[p], view.microbatches) for p, busy in view.load.items()), default=Fraction(0)
        ),
        bubble=sum(view.bubble.values(), Fraction(0)) / max(1, len(view.bubble)),
        least_bubble=min(used, default=Fraction(1)),
        peak_memory=memory,
        disagreement=_disagreement(view, memory),
    )
    return made, view


def _disagreement(view: ScheduleView, memory: Mapping[int, int]) -> str:
    try:
        run = time_triggered(view)
    except SimulationError as failure:
        return failure.diagnostics[0].message
    if run.step != view.pattern:
        return f"steps follow each other every {run.step} ns, not every {view.pattern} ns"
    if dict(run.peak_memory) != dict(memory):
        return "peak memory is not what the checker counts"
    return ""
