"""Schedules for ``torch.distributed.pipelining``: one line a rank, a cell ``<stage>F<microbatch>`` a visit of a stage.

That runtime knows a *chain* of stages. A stage runs a micro-batch in one piece; then one message goes to the next
stage, with everything that later stages still need, unless the same rank runs that stage too. So a value that is read
further on is passed on by the stages between, and a stage waits for the one before it even where it reads nothing of
it. Stages that the schedule runs before or beside their predecessor begin whole periods later: what every rank does in
a period, and so the period, remain.

Form "compute-comms" has a send and a receive for each message (``0SEND_F3`` with ``1RECV_F3``), all in one common order
that no rank leaves: they do not hang even where a send ends only when its receive begins, and the other way round.

Of a training schedule, stages have backward cells too: ``1I3`` and ``1W3``, or ``1B3`` for both in one, and messages go
both ways (``1SEND_B3`` with ``0RECV_B3``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from xdsl.dialects.builtin import ModuleOp

from compiler.targets.cells import Malformed, in_time, text_of, with_messages
from compiler.targets.pipelines import Pipeline, batch_of, pipeline_of
from compiler.targets.training_stages import Training, training_of
from compiler.view import Move, ScheduleView
from dialects.diagnostics import Diagnostic, TaktError
from dialects.structure import find_graph

NAME = "torch-csv"

MOST_CELLS = 1_000_000
"""Longer schedules are refused, before they fill the memory."""

Result = tuple[int, int]
"""A task and the number of one of its results."""


def emit(module: ModuleOp, *, microbatches: int | None = None, form: str = "compute-only") -> str:
    """The schedule of ``microbatches`` micro-batches (default: three times those in flight) as CSV, ragged rows.

    ``form`` "stages" is JSON instead, which says what the module of each stage takes, runs and hands on. Raises
    :class:`TaktError` for schedules that are no pipeline of ranks, or hand values to earlier stages.
    """
    graph = find_graph(module)
    if graph is not None and graph.training is not None:
        return _training(training_of(module, NAME), microbatches, form)
    pipeline = pipeline_of(module, NAME)
    _check(pipeline)
    if form == "stages":
        return _stages(pipeline)
    count = _count(pipeline, microbatches)
    rows: list[list[str]] = [[] for _ in pipeline.blocks]
    for stage, microbatch, is_message in _order(pipeline, count):
        here = pipeline.rank_of[stage]
        if not is_message:
            rows[here].append(f"{stage}F{microbatch}")
        elif form == "compute-comms" and pipeline.rank_of[stage + 1] != here:
            rows[here].append(f"{stage}SEND_F{microbatch}")
            rows[pipeline.rank_of[stage + 1]].append(f"{stage + 1}RECV_F{microbatch}")
    return "".join(",".join(row) + "\n" for row in rows)


def _count(pipeline: Pipeline, microbatches: int | None) -> int:
    """How many micro-batches; TaktError for none, and for too many."""
    count = batch_of(pipeline.view, microbatches)
    if (cells := count * len(pipeline.stages)) > MOST_CELLS:
        hint = "fewer --microbatches have fewer"
        raise TaktError(Diagnostic(f"the stages have {cells:,} cells, more than {MOST_CELLS:,}", hint=hint))
    return count


def _training(training: Training, microbatches: int | None, form: str) -> str:
    """Forward and backward cells; the forward part says what the module of each stage is."""
    _check(training.forward)
    if form == "stages":
        return _stages(training.forward)
    rows, begins = training.cells(_count(training.forward, microbatches))
    rank_of = dict(enumerate(training.forward.rank_of))
    try:
        order = list(in_time(rows, begins))
    except Malformed as error:
        hint = "plans of whole stages can be told to it: --plan stages, or a step with --microbatches and --order"
        if training.view.step:
            hint = "steps in other orders can be told to it, such as --order 1f1b"
        raise TaktError(Diagnostic(f"{NAME} runs stages as a chain, and there {error}", hint=hint)) from None
    if form == "compute-only":
        return text_of([[cell for cell in order if rank_of[cell.stage] == r] for r in range(len(rows))])
    return text_of(with_messages(order, rank_of))


def _check(pipeline: Pipeline) -> None:
    """Refuse values that micro-batches leave to later ones in an earlier stage: messages go forward only."""
    home = _home(pipeline)
    for edge in pipeline.view.edges:
        if home[edge.producer] > home[edge.consumer]:
            producer, consumer = pipeline.view.tasks[edge.producer], pipeline.view.tasks[edge.consumer]
            message = f"'{consumer.name}' reads '{producer.name}' of an earlier micro-batch from a later stage"
            hint = f"{NAME} sends to the next stage only: --plan stages with fewer --stages keeps both in one"
            raise pipeline.refuse(consumer, message, hint)


def _home(pipeline: Pipeline) -> dict[int, int]:
    """Task → its stage."""
    return {v: s for s, tasks in enumerate(pipeline.stages) for v in tasks}


# --- order -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Step:
    """A stage on the chain, for micro-batch 0, ns: its start, the place of its message, and when this arrives."""

    start: Fraction
    message: Fraction
    arrives: Fraction


def _chain(pipeline: Pipeline) -> list[_Step]:
    """Every stage as scheduled, or as few whole periods later as the message from the stage before it needs."""
    period, moves = pipeline.view.period, _moves(pipeline)
    steps: list[_Step] = []
    for stage, time in enumerate([*_times(pipeline), 0]):
        (start, end), late = pipeline.spans[stage], Fraction(0)
        if steps:
            late = max(0, ceil((steps[-1].arrives - start) / period)) * period
        place, leaves = _message(pipeline, stage, max([end, *(Fraction(m.start) for m in moves[stage])]))
        arrives = max([leaves + time, *(m.ready for m in moves[stage])])
        steps.append(_Step(start + late, place + late, arrives + late))
    return steps


def _message(pipeline: Pipeline, stage: int, leaves: Fraction) -> tuple[Fraction, Fraction]:
    """Where the message of micro-batch 0 stands in the order, and from when on it moves, ns.

    It moves as scheduled, from ``leaves`` on. But a rank sends and receives between two cells only: so it is sent
    before the sender begins another cell, and received before the cell in the course of which it is to come, since
    otherwise nobody would compute meanwhile. A cell that began before that of the sender comes first.
    """
    period, start = pipeline.view.period, pipeline.spans[stage][0]
    place = moves = leaves
    for other, (rank, (begin, end)) in enumerate(zip(pipeline.rank_of, pipeline.spans, strict=True)):
        if rank == pipeline.rank_of[stage]:
            wait = (begin - start) % period
            place = min(place, start + (wait if wait or other > stage else period))
        if rank == pipeline.rank_of[min(stage + 1, len(pipeline.stages) - 1)]:
            begun = leaves - (leaves - begin) % period
            ended = begun + end - begin
            if begun < start:
                moves = max(moves, ended)
            elif leaves < ended:
                place = min(place, begun)
    return max(start, place), moves


def _times(pipeline: Pipeline) -> list[int]:
    """For each stage but the last, how long its message takes from leader to leader, ns."""
    view, found = pipeline.view, list[int]()
    for stage, results in enumerate(messages(pipeline)):
        here, there = (pipeline.blocks[pipeline.rank_of[s]][:1] for s in (stage, stage + 1))
        size = sum(view.tasks[producer].results[result] for producer, result in results)
        found.append(view.platform.network.way(size, False, here, there).time)
    return found


def _moves(pipeline: Pipeline) -> list[list[Move]]:
    """For each stage, the transfers of the schedule from it to the next."""
    home = _home(pipeline)
    found: list[list[Move]] = [[] for _ in pipeline.stages]
    for edge, moves in pipeline.view.carriers.items():
        if home[edge.consumer] == home[edge.producer] + 1:
            found[home[edge.producer]] += moves.values()
    return found


def _order(pipeline: Pipeline, microbatches: int) -> Iterator[tuple[int, int, bool]]:
    """All cells and messages in one order: stage, micro-batch, and whether it is the message to the next stage.

    A cell stands at its start, and at one time the earlier stage comes first: so a message, after its cell, is before
    that of the next stage.
    """
    period, steps = pipeline.view.period, _chain(pipeline)
    found: list[tuple[Fraction, int, int, int, int]] = []
    for stage, step in enumerate(steps):
        first = -1 if step.message > step.start else stage
        for i in range(microbatches):
            found.append((step.start + i * period, stage, 0, i, stage))
            if stage + 1 < len(steps):
                found.append((step.message + i * period, first, 1, i, stage))
    for _, _, kind, microbatch, stage in sorted(found):
        yield stage, microbatch, kind == 1


# --- what stages hand on ---------------------------------------------------------------------


def messages(pipeline: Pipeline) -> list[list[Result]]:
    """For each stage but the last, what it hands to the next: results made so far that are read, or leave, later on."""
    last = len(pipeline.stages) - 1
    home = _home(pipeline)
    needed: dict[Result, int] = {}
    for edge in pipeline.view.edges:
        for result in edge.results:
            key = edge.producer, result
            needed[key] = max(needed.get(key, 0), home[edge.consumer])
    for output in pipeline.view.outputs:
        if output.producer is not None:
            needed[output.producer, output.result] = last
    return [sorted(key for key, to in needed.items() if home[key[0]] <= stage < to) for stage in range(last)]


def _stages(pipeline: Pipeline) -> str:
    """What the modules of the stages are, as JSON, one line a stage."""
    view, home, passed = pipeline.view, _home(pipeline), messages(pipeline)
    last = len(pipeline.stages) - 1
    rows: list[str] = []
    for stage, members in enumerate(pipeline.stages):
        through = [o.name for o in view.outputs if o.producer is None] if stage == last else []
        # In increasing order: of several distances the greatest is left.
        kept = sorted((e for e in view.edges if e.distance and home[e.consumer] == stage), key=lambda e: e.distance)
        row = {
            "stage": stage,
            "rank": pipeline.rank_of[stage],
            "accelerators": pipeline.blocks[pipeline.rank_of[stage]],
            "inputs": [x.name for x in view.inputs if x.name in through or any(home[v] == stage for v in x.consumers)],
            "receives": [_name(view, *result) for result in passed[stage - 1]] if stage else [],
            "keeps": {_name(view, e.producer, result): e.distance for e in kept for result in e.results},
            "operators": [view.tasks[v].name for v in members],
            "returns": [_name(view, *result) for result in passed[stage]] if stage < last else _outputs(view),
        }
        rows.append(json.dumps(row))
    return '{"stages": [\n  ' + ",\n  ".join(rows) + "\n]}\n"


def _outputs(view: ScheduleView) -> list[str]:
    """What the model returns."""
    return [o.name if o.producer is None else _name(view, o.producer, o.result) for o in view.outputs]


def _name(view: ScheduleView, producer: int, result: int) -> str:
    """A result by its producer, with its number where there are several: ``split#1``."""
    task = view.tasks[producer]
    return task.name if len(task.results) == 1 else f"{task.name}#{result}"
