"""What accelerators do in a step, as cells: operators that follow each other, of one micro-batch and one half.

A cell is ``F``, forward; ``I``, gradients of inputs; ``W``, those of weights; ``B``, where the last two alternate; or
``O``, steps of the optimizer. See :mod:`compiler.targets.training_stages` for the half of an operator.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Literal

from compiler.targets.training_stages import Half, halves
from compiler.view import Accelerators, ScheduleView, Task, Update

Kind = Literal["F", "I", "W", "B", "O"]

NAMES: dict[Kind, str] = {
    "F": "forward",
    "I": "gradients of inputs",
    "W": "gradients of weights",
    "B": "both gradients",
    "O": "optimizer",
}


@dataclass(frozen=True)
class Piece:
    """A cell of a micro-batch of step 0 in ``[begin, end)`` ns; steps of the optimizer belong to no micro-batch."""

    kind: Kind
    stage: int | None
    microbatch: int | None
    begin: int
    end: int
    members: tuple[Task, ...] | tuple[Update, ...]


@dataclass(frozen=True)
class Run:
    """One operator or update that takes time, of step 0."""

    begin: int
    end: int
    microbatch: int | None
    member: Task | Update


def alike(view: ScheduleView) -> list[Accelerators]:
    """The accelerators that run anything, in groups that run the same."""
    sets: dict[Accelerators, None] = {}
    for task in view.tasks:
        sets.update(dict.fromkeys(task.copies))
    for update in view.updates:
        sets.setdefault(update.place)
    inside: dict[int, list[int]] = {}
    for number, members in enumerate(sets):
        for p in members:
            inside.setdefault(p, []).append(number)
    found: dict[tuple[int, ...], list[int]] = {}
    for p, numbers in sorted(inside.items()):
        found.setdefault(tuple(numbers), []).append(p)
    return [tuple(members) for members in found.values()]


def runs_on(view: ScheduleView, places: Sequence[Accelerators]) -> list[list[Run]]:
    """What runs on each of ``places``, of which no two overlap, in step 0, by time; on any of its accelerators."""
    home = {p: number for number, members in enumerate(places) for p in members}
    found: list[list[Run]] = [[] for _ in places]
    for task in (t for t in view.tasks if t.time):
        where = [sorted({home[p] for p in copy if p in home}) for copy in task.copies]
        for i, start in enumerate(task.starts):
            run = Run(start, start + task.time, i, task)
            for number in where[i % len(where)]:
                found[number].append(run)
    for update in (u for u in view.updates if u.time and u.start is not None):
        assert update.start is not None
        run = Run(update.start, update.start + update.time, None, update)
        for number in sorted({home[p] for p in update.place if p in home}):
            found[number].append(run)
    for runs in found:
        runs.sort(key=lambda r: (r.begin, r.end))
    return found


def cells(view: ScheduleView, runs: Sequence[Run], pause: float = 0, half: list[Half] | None = None) -> list[Piece]:
    """The cells of ``runs``; one that pauses for longer than ``pause`` ns is two."""
    half = halves(view) if half is None else half
    found: list[Piece] = []
    held: list[Run] = []
    for run in runs:
        if held and (_key(held[-1], half) != _key(run, half) or run.begin - held[-1].end > pause):
            found += _pieces(held, half)
            held = []
        held.append(run)
    return found + (list(_pieces(held, half)) if held else [])


def kinds(half: Sequence[Half]) -> list[tuple[Kind, int]]:
    """The cells that operators following each other are, and how many operators each has: I before W, or both as B."""
    runs: list[tuple[Kind, int]] = [(kind, len(list(members))) for kind, members in groupby(half)]
    return runs if len(runs) == 1 or [kind for kind, _ in runs] == ["I", "W"] else [("B", len(half))]


def _key(run: Run, half: list[Half]) -> tuple[int | None, int | None, bool]:
    if isinstance(run.member, Update):
        return None, None, False
    return run.microbatch, run.member.stage, half[run.member.index] == "F"


def _pieces(held: list[Run], half: list[Half]) -> Iterator[Piece]:
    first = held[0]
    tasks = [run.member for run in held if isinstance(run.member, Task)]
    if not tasks:
        updates = tuple(run.member for run in held if isinstance(run.member, Update))
        yield Piece("O", None, None, first.begin, held[-1].end, updates)
        return
    split = kinds([half[t.index] for t in tasks])
    ends = [sum(count for _, count in split[:n]) for n in range(len(split) + 1)]
    for (kind, _), (low, high) in zip(split, pairwise(ends), strict=True):
        span = held[low].begin, held[high - 1].end
        yield Piece(kind, tasks[low].stage, first.microbatch, *span, tuple(tasks[low:high]))


# --- ranks ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rank:
    """A block of accelerators and what it runs: its ``chunks``, each with the stages that go forward and back."""

    accelerators: Accelerators
    chunks: tuple[tuple[int, ...], ...]


def chunks_of(view: ScheduleView) -> list[tuple[int, ...]]:
    """The stages of each chunk: forward, and back where stage ``2n - 1 - c`` comes back through the block of ``c``."""
    blocks = [s.granted for s in view.stages]
    count = len(blocks)
    if view.training is not None and count % 2 == 0 and blocks == blocks[::-1]:
        return [(c, count - 1 - c) for c in range(count // 2)]
    return [(c,) for c in range(count)]


def ranks_of(view: ScheduleView) -> list[Rank]:
    """The ranks, in the order of their first chunks; without stages that are blocks, accelerators that do the same."""
    found: dict[Accelerators, list[tuple[int, ...]]] = {}
    for chunk in chunks_of(view):
        found.setdefault(view.stages[chunk[0]].granted, []).append(chunk)
    members = [p for block in found for p in block]
    used = {p for block in alike(view) for p in block}
    if len(set(members)) != len(members) or not used <= set(members):
        return [Rank(block, ()) for block in alike(view)]
    return [Rank(block, tuple(chunks)) for block, chunks in found.items()]
