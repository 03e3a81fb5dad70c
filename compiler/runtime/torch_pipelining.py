"""Loads schedules into the schedule runtime of ``torch.distributed.pipelining``.

Its own loader takes schedules with a backward pass only, has stages on ranks in turn, and believes what a file says of
communication. This one takes both forms that ``--emit torch-csv`` writes, forward passes and training steps, with
stages on any ranks, and runs a file once, on paper, before it lets it run: as strict as a runtime may be, where a send
ends only when its receive begins.

The runtime is private to torch: what is used of it is looked for first, and was tried with torch 2.13.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compiler.targets.cells import COMPUTE, MESSAGES, Cell, cell_of, needs, places

WRITTEN = "this was written for torch 2.13"
USED = (
    *("_stages", "_num_stages", "_n_microbatches", "_loss_fn", "pp_group_size", "rank"),
    *("stage_index_to_group_rank", "pipeline_order"),
)
"""Attributes of the schedule that are read or set."""


Rows = Sequence[Sequence[Cell]]


def parse(text: str) -> list[list[Cell]]:
    """The cells of each rank, without the empty ones; ValueError for cells of another kind than :class:`Cell` has."""
    lines = enumerate(text.splitlines())
    return [[cell_of(cell.strip(), rank) for cell in line.split(",") if cell.strip()] for rank, line in lines]


def communicates(rows: Rows) -> bool:
    """Whether the schedule says what is sent and received when."""
    return any(cell.kind in MESSAGES for row in rows for cell in row)


def trains(rows: Rows) -> bool:
    """Whether the schedule has backward cells."""
    return any(cell.kind in ("B", "I", "W") for row in rows for cell in row)


def check(rows: Rows, stages: int, microbatches: int) -> dict[int, int]:
    """Stage → its rank; ValueError unless every rank can work through its row and all is done once.

    A stage needs the one before it, and to go back the one behind it: on its own rank the cell, from another the
    message. Where the schedule has no communication, messages are sent when they are there.
    """
    rank_of = places([[(cell,) for cell in row if cell.kind in COMPUTE] for row in rows])
    if absent := set(range(stages)) - rank_of.keys():
        raise ValueError(f"no rank runs stage {min(absent)}")
    whole = {(cell.stage, cell.microbatch) for row in rows for cell in row if cell.kind == "B"}
    expected = _expected(rank_of, stages, microbatches, whole, trains(rows), communicates(rows))
    for rank, row in enumerate(rows):
        given, wanted = set(row), expected.get(rank, set[Cell]())
        if not given:
            raise ValueError(f"rank {rank} has no stage")
        if len(given) < len(row):
            twice = next(cell for i, cell in enumerate(row) if cell in row[:i])
            raise ValueError(f"rank {rank}: {twice} stands there twice")
        if wanted - given:
            raise ValueError(f"rank {rank} lacks {min(wanted - given)}")
        if given - wanted:
            raise ValueError(f"rank {rank} has {min(given - wanted)}, which has no place there")
    _rehearse(rows, rank_of, communicates(rows))
    return rank_of


def _expected(
    rank_of: Mapping[int, int], stages: int, microbatches: int, whole: set[tuple[int, int]], back: bool, comms: bool
) -> dict[int, set[Cell]]:
    """What every rank must do; ``whole`` are the stages and micro-batches that have their backward in one cell."""
    found: dict[int, set[Cell]] = {rank: set() for rank in rank_of.values()}
    for stage in range(stages):
        here = rank_of[stage]
        for i in range(microbatches):
            halves = ("B",) if (stage, i) in whole else ("I", "W")
            found[here].update(Cell(stage, kind, i) for kind in ("F", *(halves if back else ())))
            for kind, ahead in (("F", stage + 1), ("B", stage - 1)) if back else (("F", stage + 1),):
                there = rank_of.get(ahead)
                if comms and there is not None and there != here:
                    found[here].add(Cell(stage, f"SEND_{kind}", i))
                    found[there].add(Cell(ahead, f"RECV_{kind}", i))
    return found


def _rehearse(rows: Rows, rank_of: Mapping[int, int], comms: bool) -> None:
    """Work through all rows at once; ValueError when ranks wait for each other for ever."""
    at, done, stages = [0] * len(rows), set[Cell](), len(rank_of)

    def came(cell: Cell, need: Cell) -> bool:
        if not comms or rank_of[need.stage] == rank_of[cell.stage]:
            return need in done
        return cell._replace(kind=f"RECV_{'F' if cell.kind == 'F' else 'B'}") in done

    def ready(cell: Cell) -> bool:
        if cell.kind in COMPUTE:
            return all(any(came(cell, need) for need in group) for group in needs(cell, stages))
        there = _received(cell)
        made = ("F",) if cell.kind == "SEND_F" else ("B", "I")
        return any(cell._replace(kind=kind) in done for kind in made) and next_of(rank_of[there.stage]) == there

    def next_of(rank: int) -> Cell | None:
        return rows[rank][at[rank]] if at[rank] < len(rows[rank]) else None

    moved = True
    while moved:
        moved = False
        for rank in range(len(rows)):
            while (cell := next_of(rank)) is not None and not cell.kind.startswith("RECV") and ready(cell):
                done.add(cell)
                at[rank] += 1
                moved = True
                if cell.kind in MESSAGES:
                    there = _received(cell)
                    done.add(there)
                    at[rank_of[there.stage]] += 1
    waiting = [f"rank {rank} at {cell}" for rank in range(len(rows)) if (cell := next_of(rank)) is not None]
    if waiting:
        raise ValueError(f"ranks wait for ever: {', '.join(waiting)}")


def _received(sent: Cell) -> Cell:
    """The other end of a send."""
    ahead = 1 if sent.kind == "SEND_F" else -1
    return Cell(sent.stage + ahead, sent.kind.replace("SEND", "RECV"), sent.microbatch)


def load(schedule: Any, source: str | Path) -> None:
    """Have a ``_PipelineScheduleRuntime`` run a schedule, a file or its text: one with a loss if there are backwards.

    Call it before the first ``step``, in every process. Raises ValueError when the schedule does not fit the stages and
    the group it was made for, or could hang, and RuntimeError where torch has no such runtime.
    """
    private = _private(schedule)
    text = source if isinstance(source, str) and "\n" in source else Path(source).read_text(encoding="utf-8")
    rows = parse(text)
    if trains(rows) and schedule._loss_fn is None:
        raise ValueError("a schedule with backwards needs a loss: make the runtime with loss_fn")
    if not trains(rows) and schedule._loss_fn is not None:
        raise ValueError("a forward-only schedule has no loss: make the runtime without loss_fn")
    if len(rows) != schedule.pp_group_size:
        raise ValueError(f"the schedule has {len(rows)} ranks, and the group {schedule.pp_group_size} processes")
    rank_of = check(rows, schedule._num_stages, schedule._n_microbatches)
    ours, wanted = (
        [x.stage_index for x in schedule._stages],
        [s for s in sorted(rank_of) if rank_of[s] == schedule.rank],
    )
    if ours != wanted:
        raise ValueError(f"rank {schedule.rank} runs the stages {wanted} in this order, and was given {ours}")
    for holder in (schedule, *schedule._stages):
        holder.stage_index_to_group_rank = rank_of
    schedule.pipeline_order = _actions(private, [[cell for cell in row if cell.kind in COMPUTE] for row in rows])
    if communicates(rows):
        schedule.pipeline_order_with_comms = _actions(private, rows)
    else:
        # It empties the lists it is given.
        order = private._add_send_recv(_actions(private, rows), rank_of.__getitem__, len(rank_of))
        schedule.pipeline_order_with_comms = order


def _actions(private: Any, rows: Rows) -> dict[int, list[Any]]:
    """Rank → its actions as torch has them."""
    return {rank: [private._Action.from_str(str(cell)) for cell in row] for rank, row in enumerate(rows)}


def _private(schedule: Any) -> Any:
    """The module of torch that has the runtime; RuntimeError where something is missing."""
    import torch

    try:
        from torch.distributed.pipelining import schedules
    except ImportError:
        raise RuntimeError(f"torch {torch.__version__} lacks torch.distributed.pipelining: {WRITTEN}") from None
    names = ("_PipelineScheduleRuntime", "_Action", "_add_send_recv")
    missing = [name for name in names if not hasattr(schedules, name)]
    missing += [name for name in USED if not hasattr(schedule, name)]
    if missing:
        raise RuntimeError(f"torch {torch.__version__} lacks {', '.join(missing)}: {WRITTEN}")
    if not isinstance(schedule, schedules._PipelineScheduleRuntime):
        raise RuntimeError(f"the schedule is a {type(schedule).__name__}, not a _PipelineScheduleRuntime")
    return schedules
