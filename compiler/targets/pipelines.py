"""A schedule as runtimes with pipeline stages know it: ranks, and on each rank the stages it runs in turn.

A *rank* stands for a block of accelerators. Its first accelerator leads: what moves between stages is exchanged by the
leaders, the others of a block help their leader with the operators that run on several (tensor parallelism). So every
operator must run in the block of its stage, and on its leader among others. What a runtime cannot express is refused
with the operator that stands in the way, and with the option that makes a plan without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from xdsl.dialects.builtin import ModuleOp

from compiler.targets.text import ranges
from compiler.view import Accelerators, ScheduleView, Task, view_of
from dialects.diagnostics import Diagnostic, TaktError, at
from dialects.operators import OperatorOp
from dialects.structure import GraphOp, find_graph

ANY_STAGE = "--allotments stage gives every operator of a stage all accelerators of the stage"


@dataclass(frozen=True)
class Cell:
    """What a rank does at a stretch: a stage for one micro-batch."""

    stage: int
    microbatch: int


@dataclass(frozen=True)
class Pipeline:
    """Stages in an order in which values flow, and the rank that runs each. ``stages`` holds numbers of tasks."""

    view: ScheduleView
    operators: tuple[OperatorOp, ...]
    stages: tuple[tuple[int, ...], ...]
    rank_of: tuple[int, ...]
    blocks: tuple[Accelerators, ...]
    """Accelerators of each rank, its leader first."""

    @property
    def default_batch(self) -> int:
        """A number of micro-batches with a fill, a steady state and a drain: three times those in flight."""
        return 3 * self.view.in_flight

    def tasks(self, stage: int) -> list[Task]:
        """The operators of a stage, in program order."""
        return [self.view.tasks[v] for v in self.stages[stage]]

    def start(self, stage: int) -> int:
        """When the stage begins micro-batch 0, ns."""
        return min((t.start for t in self.tasks(stage)), default=0)

    def end(self, stage: int) -> int:
        """When micro-batch 0 has left the stage, ns."""
        return max((t.end for t in self.tasks(stage)), default=0)

    def crossings(self) -> Iterator[tuple[int, int, int, int]]:
        """Values read in another stage: stage and task that make it, number of the result, stage that reads it.

        Each once for a reading stage, in order of program and stage.
        """
        home = {v: s for s, tasks in enumerate(self.stages) for v in tasks}
        found: dict[tuple[int, int, int, int], None] = {}
        for edge in self.view.edges:
            a, b = home[edge.producer], home[edge.consumer]
            if a != b:
                for result in edge.results:
                    found[a, edge.producer, result, b] = None
        yield from sorted(found, key=lambda c: (c[1], c[2], c[3]))

    def order(self, microbatches: int) -> list[list[Cell]]:
        """For each rank, its cells as scheduled: by the time at which they begin."""
        period = self.view.period
        keyed: list[list[tuple[Fraction, int, int]]] = [[] for _ in self.blocks]
        for stage, rank in enumerate(self.rank_of):
            start = self.start(stage)
            keyed[rank] += [(start + i * period, i, stage) for i in range(microbatches)]
        return [[Cell(stage, i) for _, i, stage in sorted(found)] for found in keyed]

    def refuse(self, task: Task, message: str, hint: str | None = None) -> TaktError:
        """An error about an operator."""
        return refuse(self.operators, task, message, hint)


def refuse(operators: Sequence[OperatorOp], task: Task, message: str, hint: str | None = None) -> TaktError:
    """An error about an operator, at its place in the source."""
    return TaktError(at(operators[task.index], message, hint))


def check_forward(graph: GraphOp, target: str) -> None:
    """Raise TaktError for a training graph."""
    if graph.training is not None:
        message = f"@{graph.sym_name.data} is a training graph, and {target} is for forward passes"
        raise TaktError(at(graph, message, "compile the model without --training"))


def pipeline_of(module: ModuleOp, target: str) -> Pipeline:
    """The pipeline of a scheduled module for ``target``, a name for messages.

    Raises :class:`TaktError` for a training schedule, and for one that is no pipeline: stages whose blocks overlap,
    operators outside the block of their stage or without its leader, copies, and stages that wait for each other in a
    circle.
    """
    view = view_of(module)
    graph = find_graph(module)
    assert graph is not None
    check_forward(graph, target)
    operators = tuple(graph.operators())
    members: dict[int, list[int]] = {s.index: [] for s in view.stages}
    for task in view.tasks:
        if task.stage is None:
            hint = "partition-stages gives every operator one"
            raise refuse(operators, task, f"'{task.name}' is in no stage, and {target} has stages", hint)
        members[task.stage].append(task.index)
    granted = {s.index: s.granted for s in view.stages}
    used = [s for s in _in_flow(view, members) if members[s]]
    blocks = list(dict.fromkeys(granted[s] for s in used))
    _check(view, operators, target, granted, blocks)
    stages = tuple(tuple(members[s]) for s in used)
    return Pipeline(view, operators, stages, tuple(blocks.index(granted[s]) for s in used), tuple(blocks))


def _in_flow(view: ScheduleView, members: dict[int, list[int]]) -> list[int]:
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
            left = sorted(s for s in after if s not in order)
            message = f"stages {', '.join(map(str, left))} read from each other in a circle"
            raise TaktError(Diagnostic(message, hint="--plan stages cuts the model so that they do not"))
        order.append(min(ready))
    return order


def _check(
    view: ScheduleView,
    operators: Sequence[OperatorOp],
    target: str,
    granted: dict[int, Accelerators],
    blocks: Iterable[Accelerators],
) -> None:
    owner: dict[int, Accelerators] = {}
    for block in blocks:
        for p in block:
            other = owner.setdefault(p, block)
            if other != block:
                message = f"accelerator {p} is in the blocks {ranges(other)} and {ranges(block)}"
                raise TaktError(Diagnostic(f"{message}, and {target} knows ranks only", hint="use --plan stages"))
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
            single = len(view.stages) == 1
            message = f"'{task.name}' runs on accelerators {ranges(place)}, without accelerator {block[0]}"
            message += f" that leads {ranges(block)}: {target} has whole stages only"
            raise refuse(operators, task, message, "use --plan stages" if single else ANY_STAGE)
