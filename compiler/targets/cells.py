"""Orders of a training step as cells: what each rank computes, sends and receives, in PyTorch's notation.

A row a rank, a cell ``<stage><kind><microbatch>``: ``F`` forward, ``I`` the gradient of the inputs, ``W`` that of the
weights, ``B`` both in one; ``SEND_F`` and ``RECV_F`` hand the result of a forward cell to the next stage, ``SEND_B``
and ``RECV_B`` a gradient to the stage before, each named by the stage that does it. Empty cells are pauses, and
``(0F7;7B3)OVERLAP_F_B`` is two cells run as one. Where a file has ``B`` and ``W`` of one stage and micro-batch, its
``B`` is our ``I``, and its ``BW`` our ``B``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

COMPUTE = ("F", "B", "I", "W")
MESSAGES = ("SEND_F", "RECV_F", "SEND_B", "RECV_B")
_CELL = re.compile(r"(\d+)(F|I|W|BW|B|SEND_F|RECV_F|SEND_B|RECV_B)(\d+)")
_BOTH = re.compile(r"\((.*);(.*)\)OVERLAP_F_B")


class Cell(NamedTuple):
    """One action of a rank."""

    stage: int
    kind: str
    microbatch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.kind}{self.microbatch}"


Slot = tuple[Cell, ...]
"""Cells that run as one: two where they overlap."""
Rows = Sequence[Sequence[Cell]]


class Malformed(ValueError):
    """Rows that no ranks can work through."""


# --- reading and writing ---------------------------------------------------------------------


def parse(text: str) -> list[list[Slot]]:
    """The slots of every rank, without pauses; :class:`Malformed` for what is no cell."""
    lines = enumerate(text.splitlines())
    rows = [[_slot(cell.strip(), rank) for cell in line.split(",") if cell.strip()] for rank, line in lines]
    halves = {c._replace(kind="B") for row in rows for slot in row for c in slot if c.kind == "W"}

    def ours(cell: Cell) -> Cell:
        if cell.kind == "BW":
            return cell._replace(kind="B")
        return cell._replace(kind="I") if cell in halves else cell

    return [[tuple(ours(cell) for cell in slot) for slot in row] for row in rows]


def _slot(text: str, rank: int) -> Slot:
    both = _BOTH.fullmatch(text)
    return tuple(cell_of(part.strip(), rank) for part in (both.groups() if both else (text,)))


def cell_of(text: str, rank: int) -> Cell:
    """One cell; :class:`Malformed` for what is none, ``rank`` says where it stands."""
    match = _CELL.fullmatch(text)
    if match is None:
        raise Malformed(f"rank {rank}: '{text}' is no cell of a schedule")
    return Cell(int(match[1]), match[2], int(match[3]))


def text_of(rows: Rows, *, apart: str = "I", whole: str = "B") -> str:
    """Rows as CSV, ragged; ``apart`` and ``whole`` are how ``I`` and ``B`` are written."""
    written = {"I": apart, "B": whole}
    lines = (",".join(f"{c.stage}{written.get(c.kind, c.kind)}{c.microbatch}" for c in row) for row in rows)
    return "".join(line + "\n" for line in lines)


# --- orders ----------------------------------------------------------------------------------


def places(rows: Iterable[Iterable[Slot]]) -> dict[int, int]:
    """Stage → its rank; :class:`Malformed` for a stage on two ranks, or one of 0, 1, ... on none."""
    found: dict[int, int] = {}
    for rank, row in enumerate(rows):
        for cell in (cell for slot in row for cell in slot):
            if found.setdefault(cell.stage, rank) != rank:
                raise Malformed(f"stage {cell.stage} is on the ranks {found[cell.stage]} and {rank}")
    if absent := set(range(max(found, default=-1) + 1)) - found.keys():
        raise Malformed(f"no rank runs stage {min(absent)}")
    return found


def needs(cell: Cell, stages: int) -> tuple[tuple[Cell, ...], ...]:
    """What a computing cell waits for: one of each group."""
    stage, kind, i = cell
    if kind == "W":
        return ((Cell(stage, "I", i),),)
    own = ((Cell(stage, "F", i),),) if kind in ("B", "I") else ()
    if kind == "F":
        return ((Cell(stage - 1, "F", i),),) if stage else ()
    return (*own, (Cell(stage + 1, "B", i), Cell(stage + 1, "I", i))) if stage + 1 < stages else own


def in_rounds(rows: Sequence[Sequence[Slot]]) -> Iterator[Cell]:
    """All cells in an order in which ranks take turns, a slot each, the first rank first; who has to wait, passes.

    :class:`Malformed` where all wait for each other.
    """
    stages, at, done = len(places(rows)), [0] * len(rows), set[Cell]()
    while any(place < len(row) for place, row in zip(at, rows, strict=True)):
        before = sum(at)
        for rank, row in enumerate(rows):
            if at[rank] == len(row):
                continue
            slot = row[at[rank]]
            if all(not done.isdisjoint(group) for cell in slot for group in needs(cell, stages)):
                yield from slot
                done.update(slot)
                at[rank] += 1
        if sum(at) == before:
            waiting = ", ".join(str(row[at[r]][0]) for r, row in enumerate(rows) if at[r] < len(row))
            raise Malformed(f"ranks wait for each other for ever: {waiting}")


def in_time(rows: Sequence[Sequence[Cell]], start: Mapping[Cell, Fraction]) -> Iterator[Cell]:
    """All cells in an order in which each comes after what it needs; of those that could be next, the earliest start.

    :class:`Malformed` where all wait for each other.
    """
    stages, at, done = len(places([[(c,) for c in row] for row in rows])), [0] * len(rows), set[Cell]()
    while left := [row[place] for row, place in zip(rows, at, strict=True) if place < len(row)]:
        ready = [c for c in left if all(not done.isdisjoint(group) for group in needs(c, stages))]
        if not ready:
            raise Malformed(f"ranks wait for each other for ever: {', '.join(map(str, left))}")
        cell = min(ready, key=lambda c: (start[c], c.stage))
        yield cell
        done.add(cell)
        at[next(r for r, row in enumerate(rows) if at[r] < len(row) and row[at[r]] == cell)] += 1


def with_messages(order: Iterable[Cell], rank_of: Mapping[int, int]) -> list[list[Cell]]:
    """The rows of all ranks, with what they send and receive, from all computing cells in one order.

    A message follows its cell, and stands on the other side behind what that rank did before it: so all messages have
    one common order, and no ranks wait for each other, even where a send ends only when its receive begins.
    """
    rows: list[list[Cell]] = [[] for _ in range(max(rank_of.values(), default=-1) + 1)]
    for cell in order:
        here = rank_of[cell.stage]
        rows[here].append(cell)
        if cell.kind == "W":
            continue
        ahead = cell.stage + (1 if cell.kind == "F" else -1)
        there = rank_of.get(ahead)
        if there is not None and there != here:
            kind = "F" if cell.kind == "F" else "B"
            rows[here].append(Cell(cell.stage, f"SEND_{kind}", cell.microbatch))
            rows[there].append(Cell(ahead, f"RECV_{kind}", cell.microbatch))
    return rows


def merged(row: Sequence[Slot]) -> list[Slot]:
    """A row in which ``I`` and the ``W`` right behind it are one ``B``."""
    found: list[Slot] = []
    for slot in row:
        if found and len(slot) == 1 and slot[0].kind == "W" and found[-1] == (slot[0]._replace(kind="I"),):
            found[-1] = (slot[0]._replace(kind="B"),)
        else:
            found.append(slot)
    return found
