"""A training schedule as runtimes with pipeline stages know it: stages that go forward and back, and cells of both.

A *stage* is one of the schedule that runs forward operators, with the backward operators of their groups, wherever the
schedule has these. Its cells for a micro-batch are ``F``, all of its forward operators, ``I``, input gradients and what
they need, and ``W``, weight gradients; ``B`` where the schedule runs the last two one into the other, or has only one.
Ranks work through their cells in the order in which the schedule begins them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from xdsl.dialects.builtin import ModuleOp

from compiler.targets.cells import Cell
from compiler.targets.pipelines import Pipeline, forward_pipeline, refuse
from compiler.view import ScheduleView, Task, view_of
from dialects.operators import OperatorOp
from dialects.structure import find_graph

Half = Literal["F", "I", "W"]


def halves(view: ScheduleView) -> list[Half]:
    """What every task belongs to. What only backward operators read, as what is computed again, is backward too."""
    found: list[Half] = ["F"] * len(view.tasks)
    for task in view.tasks:
        if task.kind == "weight_gradient":
            found[task.index] = "W"
        elif task.kind == "input_gradient":
            found[task.index] = "I"
    for edge in view.edges:  # in program order of what reads
        if found[edge.producer] != "F" and found[edge.consumer] == "F":
            found[edge.consumer] = "I"
    out = {o.producer for o in view.outputs}
    for task in reversed(view.tasks):
        readers = [found[e.consumer] for e in view.readers[task.index]]
        if found[task.index] == "F" and readers and "F" not in readers and task.index not in out:
            found[task.index] = "I"
    return found


def forward_part(view: ScheduleView, half: list[Half]) -> tuple[ScheduleView, list[int]]:
    """The schedule without what is backward, and for each of its tasks the number it had."""
    kept = [v for v, h in enumerate(half) if h == "F"]
    number = {v: n for n, v in enumerate(kept)}
    edges = [e for e in view.edges if e.producer in number and e.consumer in number]
    moves = [m for m in view.moves if m.producer in number]
    part = replace(
        view,
        tasks=tuple(replace(view.tasks[v], index=n) for n, v in enumerate(kept)),
        edges=tuple(replace(e, producer=number[e.producer], consumer=number[e.consumer]) for e in edges),
        moves=tuple(replace(m, index=n, producer=number[m.producer]) for n, m in enumerate(moves)),
        inputs=tuple(
            replace(x, consumers=tuple(number[v] for v in x.consumers if v in number))
            for x in view.inputs
            if not x.consumers or any(v in number for v in x.consumers)
        ),
        outputs=tuple(
            o if o.producer is None else replace(o, producer=number[o.producer])
            for o in view.outputs
            if o.producer is None or o.producer in number
        ),
    )
    return part, kept


@dataclass(frozen=True)
class Training:
    """The forward pipeline, and the backward operators of each of its stages: numbers of tasks of ``view``."""

    view: ScheduleView
    forward: Pipeline
    members: tuple[dict[Half, list[int]], ...]
    """For each stage the tasks of each half."""

    def cells(self, microbatches: int) -> tuple[list[list[Cell]], dict[Cell, Fraction]]:
        """What every rank computes, in order, and when each cell begins, ns.

        Through a stage without backward operators, such as one of a residual sum, gradients only pass: its ``B`` takes
        no time.
        """
        begins: dict[Cell, Fraction] = {}
        for i in range(microbatches):
            there = Fraction(0)
            for stage in reversed(range(len(self.members))):
                found, there = self._of(stage, i, there)
                begins |= found
        rows: list[list[Cell]] = [[] for _ in self.forward.blocks]
        for cell in sorted(begins, key=lambda c: (begins[c], c.microbatch, *_rank(c))):
            rows[self.forward.rank_of[cell.stage]].append(cell)
        return rows, begins

    def _of(self, stage: int, i: int, there: Fraction) -> tuple[dict[Cell, Fraction], Fraction]:
        """The cells of a stage, and when it has made gradients; those of the stage behind it are ``there``."""
        spans = {half: self._span(tasks, i) for half, tasks in self.members[stage].items() if tasks}
        found = {Cell(stage, "F", i): spans["F"][0]}
        if "I" in spans and "W" in spans and spans["W"][0] >= spans["I"][1]:
            return found | {Cell(stage, half, i): spans[half][0] for half in ("I", "W")}, spans["I"][1]
        there = max(there, spans["F"][1])
        back = [spans[half] for half in ("I", "W") if half in spans] or [(there, there)]
        return found | {Cell(stage, "B", i): min(begin for begin, _ in back)}, max(end for _, end in back)

    def _span(self, tasks: list[int], i: int) -> tuple[Fraction, Fraction]:
        begun = [(self.view.begin(self.view.tasks[v], i), self.view.tasks[v].time) for v in tasks]
        return min(b for b, _ in begun), max(b + t for b, t in begun)


def _rank(cell: Cell) -> tuple[int, int]:
    """Of what one micro-batch begins at one moment, what comes first: forward, then backward through the stages."""
    return "FBIW".index(cell.kind), cell.stage if cell.kind == "F" else -cell.stage


def forward_of(module: ModuleOp) -> tuple[ScheduleView, tuple[OperatorOp, ...]]:
    """The forward part of a scheduled module, and its operators: all of it, unless it is a training schedule."""
    view, graph = view_of(module), find_graph(module)
    assert graph is not None
    operators = tuple(graph.operators())
    if graph.training is None:
        return view, operators
    part, kept = forward_part(view, halves(view))
    return part, tuple(operators[v] for v in kept)


def training_of(module: ModuleOp, target: str) -> Training:
    """The stages of a training schedule; raises :class:`TaktError` for what is no pipeline of ranks.

    Beside what a forward pass must keep to, backward operators run on the block of the stage that they belong to.
    """
    view = view_of(module)
    graph = find_graph(module)
    assert graph is not None
    operators = tuple(graph.operators())
    half = halves(view)
    part, kept = forward_part(view, half)
    forward = forward_pipeline(part, tuple(operators[v] for v in kept), target)
    home = {kept[v]: stage for stage, tasks in enumerate(forward.stages) for v in tasks}
    _follow(view, half, home)
    members: tuple[dict[Half, list[int]], ...] = tuple({"F": [], "I": [], "W": []} for _ in forward.stages)
    for task in view.tasks:
        _check(operators, task, forward, home[task.index], target)
        members[home[task.index]][half[task.index]].append(task.index)
    return Training(view, forward, members)


def _follow(view: ScheduleView, half: list[Half], home: dict[int, int]) -> None:
    """Give every backward operator the stage of its group; of one without, that of a reader, or of what it reads."""
    of_group = {view.tasks[v].group: stage for v, stage in home.items() if view.tasks[v].group is not None}
    for task in view.tasks:
        if half[task.index] != "F" and task.group in of_group:
            home[task.index] = of_group[task.group]
    for task in reversed(view.tasks):
        if task.index not in home:
            readers = [home[e.consumer] for e in view.readers[task.index] if e.consumer in home]
            home.update(dict.fromkeys([task.index], readers[-1]) if readers else {})
    for edge in view.edges:
        home.setdefault(edge.consumer, home.get(edge.producer, 0))


def _check(operators: tuple[OperatorOp, ...], task: Task, forward: Pipeline, stage: int, target: str) -> None:
    block = forward.blocks[forward.rank_of[stage]]
    if not set(task.copies[0]) <= set(block):
        message = f"'{task.name}' is backward of a stage that {target} has on other accelerators"
        raise refuse(operators, task, message, "use --plan stages, or a step: --microbatches with --order")
