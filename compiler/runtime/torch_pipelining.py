"""Loads forward-only schedules into the schedule runtime of ``torch.distributed.pipelining``.

Its own loader takes schedules with a backward pass only, and believes what a file says of communication. This one
takes both forms that ``--emit torch-csv`` writes, and runs a file once, on paper, before it lets it run: as strict as a
runtime may be, where a send ends only when its receive begins.

The runtime is private to torch: what is used of it is looked for first, and was tried with torch 2.13.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

WRITTEN = "this was written for torch 2.13"
CELL = re.compile(r"(\d+)(F|SEND_F|RECV_F)(\d+)")
USED = (
    *("_stages", "_num_stages", "_n_microbatches", "_loss_fn", "pp_group_size", "rank"),
    *("stage_index_to_group_rank", "pipeline_order"),
)
"""Attributes of the schedule that are read or set."""


class Cell(NamedTuple):
    """One action of a rank: ``kind`` is F, SEND_F or RECV_F; a RECV_F is named by the stage that receives."""

    stage: int
    kind: str
    microbatch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.kind}{self.microbatch}"


Rows = Sequence[Sequence[Cell]]


def parse(text: str) -> list[list[Cell]]:
    """The cells of each rank, without the empty ones; ValueError for cells of another kind than :class:`Cell` has."""
    lines = enumerate(text.splitlines())
    return [[_cell(cell.strip(), rank) for cell in line.split(",") if cell.strip()] for rank, line in lines]


def _cell(text: str, rank: int) -> Cell:
    match = CELL.fullmatch(text)
    if match is None:
        raise ValueError(f"rank {rank}: '{text}' is no cell of a forward-only schedule")
    return Cell(int(match[1]), match[2], int(match[3]))


def communicates(rows: Rows) -> bool:
    """Whether the schedule says what is sent and received when."""
    return any(cell.kind != "F" for row in rows for cell in row)


def check(rows: Rows, stages: int, microbatches: int) -> dict[int, int]:
    """Stage → its rank; ValueError unless every rank can work through its row and all is done once.

    A stage needs the one before it: on its own rank the cell, from another the message. Where the schedule has no
    communication, messages are sent when they are there.
    """
    rank_of: dict[int, int] = {}
    for rank, row in enumerate(rows):
        for cell in row:
            if cell.kind == "F" and rank_of.setdefault(cell.stage, rank) != rank:
                raise ValueError(f"stage {cell.stage} is on the ranks {rank_of[cell.stage]} and {rank}")
    if absent := set(range(stages)) - rank_of.keys():
        raise ValueError(f"no rank runs stage {min(absent)}")
    expected = _expected(rank_of, stages, microbatches, communicates(rows))
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


def _expected(rank_of: Mapping[int, int], stages: int, microbatches: int, comms: bool) -> dict[int, set[Cell]]:
    """What every rank must do."""
    found: dict[int, set[Cell]] = {rank: set() for rank in rank_of.values()}
    for stage in range(stages):
        here, after = rank_of[stage], rank_of.get(stage + 1)
        for i in range(microbatches):
            found[here].add(Cell(stage, "F", i))
            if comms and stage + 1 < stages and after != here:
                found[here].add(Cell(stage, "SEND_F", i))
                found[rank_of[stage + 1]].add(Cell(stage + 1, "RECV_F", i))
    return found


def _rehearse(rows: Rows, rank_of: Mapping[int, int], comms: bool) -> None:
    """Work through all rows at once; ValueError when ranks wait for each other for ever."""
    at, done = [0] * len(rows), set[Cell]()

    def ready(cell: Cell) -> bool:
        before = Cell(cell.stage - 1, "F", cell.microbatch)
        if cell.kind == "F":
            local = not comms or rank_of.get(before.stage) == rank_of[cell.stage]
            return not cell.stage or (before if local else cell._replace(kind="RECV_F")) in done
        if cell.kind == "SEND_F":
            there = Cell(cell.stage + 1, "RECV_F", cell.microbatch)
            return cell._replace(kind="F") in done and next_of(rank_of[there.stage]) == there
        return True

    def next_of(rank: int) -> Cell | None:
        return rows[rank][at[rank]] if at[rank] < len(rows[rank]) else None

    moved = True
    while moved:
        moved = False
        for rank in range(len(rows)):
            while (cell := next_of(rank)) is not None and cell.kind != "RECV_F" and ready(cell):
                done.add(cell)
                at[rank] += 1
                moved = True
                if cell.kind == "SEND_F":
                    there = Cell(cell.stage + 1, "RECV_F", cell.microbatch)
                    done.add(there)
                    at[rank_of[there.stage]] += 1
    waiting = [f"rank {rank} at {cell}" for rank in range(len(rows)) if (cell := next_of(rank)) is not None]
    if waiting:
        raise ValueError(f"ranks wait for ever: {', '.join(waiting)}")


def load(schedule: Any, source: str | Path) -> None:
    """Have a ``_PipelineScheduleRuntime`` without a loss run a forward-only schedule, a file or its text.

    Call it before the first ``step``, in every process. Raises ValueError when the schedule does not fit the stages and
    the group it was made for, or could hang, and RuntimeError where torch has no such runtime.
    """
    private = _private(schedule)
    text = source if isinstance(source, str) and "\n" in source else Path(source).read_text(encoding="utf-8")
    rows = parse(text)
    if schedule._loss_fn is not None:
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
    schedule.pipeline_order = _actions(private, rows, only="F")
    if communicates(rows):
        schedule.pipeline_order_with_comms = _actions(private, rows)
    else:
        # It empties the lists it is given.
        order = private._add_send_recv(_actions(private, rows), rank_of.__getitem__, len(rank_of))
        schedule.pipeline_order_with_comms = order


def _actions(private: Any, rows: Rows, only: str = "") -> dict[int, list[Any]]:
    """Rank → its actions as torch has them, of one kind or of all."""
    return {
        rank: [private._Action.from_str(str(cell)) for cell in row if cell.kind == only or not only]
        for rank, row in enumerate(rows)
    }


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
