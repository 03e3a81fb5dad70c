"""A schedule as runtimes with pipeline stages know it: ranks, and on each rank the stages it runs in turn.

A *rank* stands for a block of accelerators. Its first accelerator leads: what moves between stages is exchanged by the
leaders, the others of a block help their leader with the operators that run on several (tensor parallelism). So every
operator must run in the block of its stage, and on its leader among others. What a runtime cannot express is refused
with the operator that stands in the way, and with the option that makes a plan without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from xdsl.dialects.builtin import ModuleOp

from compiler.targets.text import ranges
from compiler.view import Accelerators, ScheduleView, Task, view_of
from dialects.diagnostics import Diagnostic, TaktError, at
from dialects.operators import OperatorOp
from dialects.structure import GraphOp, find_graph

KEEPING = ("stages", "interleaved", "v")
"""The plans that take ``--allotments`` and ``--granularity``."""
ANY_STAGE = "--allotments stage gives every operator of a stage all accelerators of the stage"
ALL_OF_A_RANK = "--cut equal gives every operator of a step all accelerators of its rank, or as many as it can use"


@dataclass(frozen=True)
class Pipeline:
    """Stages in an order in which values flow, and the rank that runs each. ``stages`` holds numbers of tasks."""

    view: ScheduleView
    operators: tuple[OperatorOp, ...]
    stages: tuple[tuple[int, ...], ...]
    rank_of: tuple[int, ...]
    blocks: tuple[Accelerators, ...]
    """Accelerators of each rank, its leader first."""

    def tasks(self, stage: int) -> list[Task]:
        """The operators of a stage, in program order."""
        return [self.view.tasks[v] for v in self.stages[stage]]

    @cached_property
    def spans(self) -> tuple[tuple[Fraction, Fraction], ...]:
        """For each stage, when it begins micro-batch 0, and when that has left it, ns.

        A stage without time that the schedule has in the course of another on the same rank begins when that one ends.
        """
        period = self.view.period
        given = [(min(t.start for t in of), max(t.end for t in of)) for of in map(self.tasks, range(len(self.stages)))]
        found: list[tuple[Fraction, Fraction]] = []
        for rank, (begin, end) in zip(self.rank_of, given, strict=True):
            moment = Fraction(begin)
            if begin == end:
                others = (span for r, span in zip(self.rank_of, given, strict=True) if r == rank)
                moment += max(high - low - (begin - low) % period for low, high in others)
            found.append((moment, max(moment, Fraction(end))))
        return tuple(found)

    def refuse(self, task: Task, message: str, hint: str | None = None) -> TaktError:
        """An error about an operator."""
        return refuse(self.operators, task, message, hint)


def with_plan(view: ScheduleView, hint: str, of_step: str | None = None) -> str:
    """A hint that begins with ``--allotments`` or ``--granularity``, with a plan before it that takes them.

    Steps have no plan; ``of_step`` is their hint, where it is another.
    """
    if view.step:
        return of_step or hint
    return hint if view.plan in KEEPING else f"--plan stages {hint}"


def default_batch(view: ScheduleView) -> int:
    """A number of micro-batches with a fill, a steady state and a drain: three times those in flight."""
    return 3 * max(1, view.in_flight)


def batch_of(view: ScheduleView, microbatches: int | None) -> int:
    """How many micro-batches to write down; TaktError for none, and for others than those of a step."""
    if microbatches is not None and microbatches < 1:
        raise TaktError(f"{microbatches} micro-batches: there must be at least 1")
    if not view.step:
        return microbatches or default_batch(view)
    if microbatches not in (None, view.microbatches):
        message = f"the schedule is a step of {view.microbatches} micro-batches, not of {microbatches}"
        raise TaktError(Diagnostic(message, hint="compile the model for as many as are wanted"))
    return view.microbatches


def refuse(operators: Sequence[OperatorOp], task: Task, message: str, hint: str | None = None) -> TaktError:
    """An error about an operator, at its place in the source."""
    return TaktError(at(operators[task.index], message, hint))


def check_forward(graph: GraphOp, limit: str, hint: str = "compile the model without --training") -> None:
    """Raise TaktError for a training graph; ``limit`` says who takes none."""
    if graph.training is not None:
        message = f"@{graph.sym_name.data} is a training graph, and {limit}"
        raise TaktError(at(graph, message, hint))


def pipeline_of(module: ModuleOp, target: str) -> Pipeline:
    """The pipeline of a scheduled module for ``target``, a name for messages.

    Raises :class:`TaktError` for a training schedule, and for one that is no pipeline: operators outside the block of
    their stage or without its leader, copies, and stages that wait for each other in a circle.
    """
    view = view_of(module)
    graph = find_graph(module)
    assert graph is not None
    check_forward(graph, f"{target} is for forward passes")
    return forward_pipeline(view, tuple(graph.operators()), target)


def forward_pipeline(view: ScheduleView, operators: Sequence[OperatorOp], target: str) -> Pipeline:
    """The pipeline of a schedule whose tasks, all forward, are those of ``operators``; refusals as above."""
    members: dict[int, list[int]] = {s.index: [] for s in view.stages}
    for task in view.tasks:
        if task.stage is None:
            hint = "partition-stages gives every operator one"
            raise refuse(operators, task, f"'{task.name}' is in no stage, and {target} has stages", hint)
        members[task.stage].append(task.index)
    granted = {s.index: s.granted for s in view.stages}
    used = [s for s in _in_flow(view, operators, members) if members[s]]
    blocks = list(dict.fromkeys(granted[s] for s in used))
    _check(view, operators, target, granted)
    stages = tuple(tuple(members[s]) for s in used)
    return Pipeline(view, tuple(operators), stages, tuple(blocks.index(granted[s]) for s in used), tuple(blocks))


def _in_flow(view: ScheduleView, operators: Sequence[OperatorOp], members: dict[int, list[int]]) -> list[int]:
    """Stages in a topological order of what they read, earlier ones first where there is a choice."""
    home = {v: s for s, tasks in members.items() for v in tasks}
    after: dict[int, set[int]] = {s: set() for s in members}
    for edge in view.edges:
        a, b = home[edge.producer], home[edge.consumer]
        if a != b and not edge.distance:
            after[b].add(a)
    order: list[int] = []
    while len(order) < len(after):
        ready = [s for s, before in after.items() if s not in order and before <= set(order)]
        if not ready:
            left = [s for s in after if s not in order]
            ends = ((home[e.producer], home[e.consumer], e.consumer) for e in view.edges if not e.distance)
            read = next(v for a, b, v in ends if a != b and a in left and b in left)
            message = f"'{view.tasks[read].name}' is in one of the stages {', '.join(map(str, left))}"
            hint = "--plan stages cuts the model so that they do not"
            raise refuse(operators, view.tasks[read], f"{message}, which read from each other in a circle", hint)
        order.append(min(ready))
    return order


def _check(
    view: ScheduleView,
    operators: Sequence[OperatorOp],
    target: str,
    granted: dict[int, Accelerators],
) -> None:
    for task in view.tasks:
        assert task.stage is not None
        block, place = granted[task.stage], task.copies[0]
        if len(task.copies) > 1:
            message = f"'{task.name}' has {len(task.copies)} copies, and {target} has one place for an operator"
            raise refuse(operators, task, message, "leave out --replicate, and use --plan stages")
        if not set(place) <= set(block):
            message = (
                f"'{task.name}' runs on accelerators {ranges(place)}, outside the block {ranges(block)} of its stage"
            )
            raise refuse(operators, task, message, f"{target} has stages on blocks of their own: use --plan stages")
        if block[0] not in place:
            message = f"'{task.name}' runs on accelerators {ranges(place)}, without accelerator {block[0]}"
            message += f" that leads {ranges(block)}: {target} has whole stages only"
            raise refuse(operators, task, message, ANY_STAGE if view.plan in KEEPING else "use --plan stages")
