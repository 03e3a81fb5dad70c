"""A schedule as runtimes of transformers know it: whole layers on pipeline stages, one tensor-parallel degree for all.

A *layer* is a call, by the model itself, of the one block that it calls more than once. What leads to layers is the
*embedding*, everything else the *head*: the loss, too. Embedding, layers and head form a row, in which each reads from
the one before it only. All three are kept whole, the embedding in the first stage and the head in the last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from xdsl.dialects.builtin import ModuleOp

from compiler.targets.pipelines import Pipeline, forward_pipeline, refuse, with_plan
from compiler.targets.text import counted
from compiler.targets.training_stages import forward_of
from compiler.view import ScheduleView, Task
from dialects.diagnostics import Diagnostic, TaktError, at
from dialects.operators import OperatorOp

LAYERS = "a layer is a call of the one block that the model repeats, not a block inside another"
WHOLE = "--granularity block keeps every call of a block in one stage"
CIRCLE = "--plan interleaved goes through the ranks in a circle"
BETWEEN_LAYERS = "--cut equal cuts a step between layers"
ONE_CHUNK = "--order 1f1b gives every rank of a step one stage"
ONCE = "--plan stages gives every rank one stage"


@dataclass(frozen=True)
class LayerPlan:
    """``layers[s]`` are the numbers of the layers of stage ``s``, which chunk ``s // ranks`` of rank ``s % ranks`` is.

    ``width`` is the number of accelerators of a rank, all of which run every operator.
    """

    model: str
    layers: tuple[range, ...]
    ranks: int
    width: int

    @property
    def count(self) -> int:
        """Layers in all."""
        return sum(len(found) for found in self.layers)

    @property
    def chunks(self) -> int:
        """Stages of a rank."""
        return len(self.layers) // self.ranks

    @property
    def title(self) -> str:
        """The degrees that go with the plan, for people."""
        degrees = f"tensor parallel {self.width}, pipeline parallel {self.ranks}"
        return f"{self.model}, {counted(self.count, 'layer')}: {degrees}, {counted(self.chunks, 'stage')} a rank"


def layers_of(module: ModuleOp, target: str, *, chunked: bool = True, empty: bool = True) -> LayerPlan:
    """The layers of a scheduled module for ``target``, a name for messages.

    Without ``chunked``, a rank has one stage; without ``empty``, a stage has a layer. Of a training schedule only the
    forward operators count: runtimes make the backward of a layer themselves. Raises :class:`TaktError` with a
    diagnostic for each thing that stands in the way: a model that is no row of layers; or else layers, embedding or
    head that are cut or in a wrong stage, ranks that are not taken in a circle, operators on different numbers of
    accelerators, ranks with accelerators that some operator leaves out.
    """
    row = _Row(*forward_of(module), target)
    row.check()
    pipeline = forward_pipeline(row.view, row.operators, target)
    width = _best_width(pipeline.view.tasks)
    spans = _spans(row, pipeline)
    found = [_cut(row, pipeline), _disorder(pipeline, target, chunked)]
    if not empty and not any(found):
        found.append(_bare(pipeline, target, spans))
    found.append(_uneven(pipeline, target, width) or _unused(pipeline, target, width))
    if any(found):
        raise TaktError([d for d in found if d is not None])
    assert width is not None
    return LayerPlan(row.view.graph, spans, len(pipeline.blocks), width)


@dataclass(frozen=True)
class _Row:
    """The parts of a model: -1 is the embedding, then come the layers, and the head is one more than the last layer."""

    view: ScheduleView
    operators: tuple[OperatorOp, ...]
    target: str

    @cached_property
    def calls(self) -> list[tuple[str, int]]:
        """The calls that are layers, in program order."""
        tasks = self.view.tasks
        calls = list(dict.fromkeys(t.block for t in tasks if t.block is not None))
        times = Counter(block for block, _ in calls)
        repeated = [block for block, n in times.most_common() if n > 1]
        if not repeated:
            message = f"'{self.view.graph}' calls no block more than once, and {self.target} is for a row of layers"
            raise refuse(self.operators, tasks[0], message, LAYERS)
        if len(repeated) > 1:
            second = next(t for t in tasks if t.block is not None and t.block[0] == repeated[1])
            blocks = ", ".join(f"'{block}' {times[block]} times" for block in repeated)
            message = f"'{second.name}' is of a second kind of layers, and {self.target} is for a row of one kind"
            raise refuse(self.operators, second, message, f"'{self.view.graph}' calls {blocks}; {LAYERS}")
        return [call for call in calls if call[0] == repeated[0]]

    @cached_property
    def part(self) -> list[int]:
        """The part of each operator."""
        number = {call: i for i, call in enumerate(self.calls)}
        layer = [None if t.block is None else number.get(t.block) for t in self.view.tasks]
        before, after = set[int](), set[int]()
        for edge in sorted(self.view.edges, key=lambda e: e.consumer):
            if not edge.distance and (layer[edge.producer] is not None or edge.producer in after):
                after.add(edge.consumer)
        for edge in sorted(self.view.edges, key=lambda e: -e.producer):
            if not edge.distance and (layer[edge.consumer] is not None or edge.consumer in before):
                before.add(edge.producer)
        for task in self.view.tasks:
            if layer[task.index] is None and task.index in before & after:
                message = f"'{task.name}' stands between two layers, and {self.target} is for layers in a row"
                raise refuse(self.operators, task, message, f"make it part of '{self.calls[0][0]}'")
        head = len(self.calls)
        return [found if found is not None else -1 if v in before else head for v, found in enumerate(layer)]

    def name(self, part: int) -> str:
        """What people call a part."""
        if part < 0:
            return "the embedding"
        return "the head" if part == len(self.calls) else f"layer {part}"

    def check(self) -> None:
        """Raise unless each part reads from the one before it, and from no other."""
        joined = set[int]()
        for edge in self.view.edges:
            source, sink = self.part[edge.producer], self.part[edge.consumer]
            if edge.distance:
                continue
            if sink > source + 1:
                made, read = self.view.tasks[edge.producer], self.view.tasks[edge.consumer]
                message = f"'{read.name}' in {self.name(sink)} reads '{made.name}' in {self.name(source)}"
                hint = f"{self.target} hands on from one layer to the next only"
                raise refuse(self.operators, read, message, hint)
            if sink > source:
                joined.add(sink)
        for task, part in zip(self.view.tasks, self.part, strict=True):
            if 0 < part < len(self.calls) and part not in joined:
                message = f"'{task.name}' begins {self.name(part)}, which reads nothing from {self.name(part - 1)}"
                raise refuse(self.operators, task, message, f"{self.target} is for layers in one row")

    def one_call(self, part: int) -> bool:
        """Whether a part is one call of a block."""
        blocks = {t.block for t, p in zip(self.view.tasks, self.part, strict=True) if p == part}
        return len(blocks) == 1 and None not in blocks


def _spans(row: _Row, pipeline: Pipeline) -> tuple[range, ...]:
    """The layers of each stage."""
    spans, first = list[range](), 0
    for stage in pipeline.stages:
        numbers = {row.part[v] for v in stage} & set(range(len(row.calls)))
        spans.append(range(first, first + len(numbers)))
        first += len(numbers)
    return tuple(spans)


def _cut(row: _Row, pipeline: Pipeline) -> Diagnostic | None:
    """The first operator that is not in the stage of its part."""
    stages = {v: s for s, members in enumerate(pipeline.stages) for v in members}
    last = len(row.calls)
    home = {-1: 0, last: len(pipeline.stages) - 1}
    for task, part in zip(row.view.tasks, row.part, strict=True):
        wanted = home.setdefault(part, stages[task.index])
        if stages[task.index] == wanted:
            continue
        where, number = f"'{task.name}' is in stage {task.stage}", pipeline.tasks(wanted)[0].stage
        layer = 0 <= part < last
        if layer:
            message = f"{where}, other operators of {row.name(part)} in stage {number}: {row.target} has whole layers"
        else:
            side = "first" if part < 0 else "last"
            message = f"{where} and part of {row.name(part)}: {row.target} has that in the {side} stage, {number}"
        hint = with_plan(row.view, WHOLE, BETWEEN_LAYERS)
        if not (layer or row.one_call(part)):
            hint = f"make {row.name(part)} a block: {hint}"
        return at(row.operators[task.index], message, hint)
    return None


def _bare(pipeline: Pipeline, target: str, spans: Sequence[range]) -> Diagnostic | None:
    """The first stage without a layer."""
    for stage, span in enumerate(spans):
        if not span:
            first = pipeline.tasks(stage)[0]
            message = f"'{first.name}' is in stage {first.stage}, which has no layer: {target} has one in every stage"
            fewer = f"--stages {len(spans) - 1} makes fewer stages"
            hint = fewer if pipeline.view.step else f"--plan stages {fewer}"
            return at(pipeline.operators[first.index], message, hint)
    return None


def _disorder(pipeline: Pipeline, target: str, chunked: bool) -> Diagnostic | None:
    """The first stage that is not on the rank whose turn it is."""
    ranks, ranked = len(pipeline.blocks), pipeline.rank_of
    for stage, rank in enumerate(ranked):
        if not chunked and rank in ranked[:stage]:
            why = "which has one already"
        elif chunked and rank != stage % ranks:
            why = f"and it is the turn of rank {stage % ranks}"
        elif chunked and stage >= len(ranked) - len(ranked) % ranks:
            why = f"and rank {ranks - 1} has one stage less"
        else:
            continue
        first = pipeline.tasks(stage)[0]
        message = f"'{first.name}' begins stage {first.stage} on rank {rank}, {why}: {target} has no such order"
        periodic = CIRCLE if chunked and pipeline.view.plan == "v" else ONCE
        hint = ONE_CHUNK if pipeline.view.step else periodic
        return at(pipeline.operators[first.index], message, hint)
    return None


def _best_width(tasks: Sequence[Task]) -> int | None:
    """Of the allotments that all operators have, the one on which most run; None if there is none for all."""
    common = set.intersection(*({k for k, _ in t.times} for t in tasks))
    used = Counter(t.allotment for t in tasks)
    return max(common, key=lambda k: (used[k], k), default=None)


def _uneven(pipeline: Pipeline, target: str, width: int | None) -> Diagnostic | None:
    """The first operator that runs on another number of accelerators than the tensor-parallel degree."""
    tasks = pipeline.view.tasks
    usual, many = Counter(t.allotment for t in tasks).most_common(1)[0]
    one_degree = f"{target} has one tensor-parallel degree for all"
    if width is None:
        task = next(t for t in tasks if usual not in dict(t.times))
        message = f"'{task.name}' cannot run on {usual} accelerators, as {many} of {len(tasks)} operators do"
        hint = "no number of accelerators suits all operators; write a time for one into each"
    else:
        task = next((t for t in tasks if t.allotment != width), None)
        if task is None:
            return None
        others = f"{sum(t.allotment == width for t in tasks)} of {len(tasks)} operators on {width}"
        message = f"'{task.name}' runs on {counted(task.allotment, 'accelerator')}, {others}"
        hint = with_plan(pipeline.view, f"--allotments {width} gives every operator {width}")
    return at(pipeline.operators[task.index], f"{message}: {one_degree}", hint)


def _unused(pipeline: Pipeline, target: str, width: int | None) -> Diagnostic | None:
    """The first stage with more accelerators than its operators run on."""
    for stage, rank in enumerate(pipeline.rank_of):
        granted, first = len(pipeline.blocks[rank]), pipeline.tasks(stage)[0]
        if granted != width:
            message = f"'{first.name}' runs on {width} of the {granted} accelerators of its stage"
            stages = pipeline.view.platform.accelerators // (width or granted)
            of_step = f"--stages {stages} has stages of {width}"
            hint = with_plan(pipeline.view, f"--allotments {width} has stages of {width}", of_step)
            return at(pipeline.operators[first.index], f"{message}: the ranks of {target} have one width", hint)
    return None
