"""What a Gantt chart of the steady state shows, before it has a size: rows, groups of rows, and pieces of time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import ceil

from compiler.targets.text import span_of
from compiler.view import Accelerators, ScheduleView, Task

MARGIN = Fraction(1, 5)
"""How much of a period is shown before and after the bracketed pattern."""

MOST_ROUNDS = 4
"""With replicas the pattern is several periods long; no more of them are shown."""

MOST_PIECES = 4000


@dataclass(frozen=True)
class Group:
    """Neighbouring rows: a stage (``index``), or accelerators without one."""

    index: int | None
    accelerators: Accelerators
    content: str
    """First and last block or operator of the stage; empty without a stage."""


@dataclass(frozen=True)
class Piece:
    """Operators that run one after the other without a gap: ``tasks`` of one micro-batch on rows ``[top, bottom)``.

    ``begin`` and ``end`` are ns from the start of the bracketed pattern, cut at the window; micro-batch 0 is the one
    injected at time 0, earlier ones are negative.
    """

    tasks: tuple[Task, ...]
    microbatch: int
    begin: Fraction
    end: Fraction
    top: int
    bottom: int


@dataclass(frozen=True)
class Chart:
    """A window ``[low, high)`` in ns around ``rounds`` bracketed periods; ``rows`` holds accelerators from the top."""

    view: ScheduleView
    groups: tuple[Group, ...]
    rounds: int
    low: Fraction
    high: Fraction

    @property
    def rows(self) -> tuple[int, ...]:
        """The accelerator of each row."""
        return tuple(p for group in self.groups for p in group.accelerators)

    @staticmethod
    def of(view: ScheduleView) -> Chart:
        """The chart of a schedule: its pattern, with a part of a period on both sides."""
        rounds = min(view.rounds, MOST_ROUNDS)
        return Chart(view, _groups(view), rounds, -MARGIN * view.period, (rounds + MARGIN) * view.period)

    def pieces(self, least: Fraction) -> list[Piece]:
        """Everything that runs in the window; what is shorter than ``least`` ns is joined with its neighbours.

        Of very many pieces longer ones are joined too, so that a picture of any schedule can be opened.
        """
        row_of = {p: row for row, p in enumerate(self.rows)}
        on_rows: dict[tuple[int, int], list[Piece]] = {}
        for task in self.view.tasks:
            for piece in self._of_task(task, row_of):
                on_rows.setdefault((piece.top, piece.bottom), []).append(piece)
        for pieces in on_rows.values():
            pieces.sort(key=lambda p: (p.begin, p.tasks[0].index))
        while True:
            found = [piece for pieces in on_rows.values() for piece in _joined(pieces, least)]
            if len(found) <= MOST_PIECES or least >= self.view.period:
                return sorted(found, key=lambda p: (p.top, p.begin))
            least = max(Fraction(1), 2 * least)

    def _of_task(self, task: Task, row_of: Mapping[int, int]) -> Iterator[Piece]:
        period = self.view.period
        first = ceil((self.low - task.end) / period)
        last = ceil((self.high - task.start) / period)
        for microbatch in range(first, last + 1):
            begin = max(self.low, task.start + microbatch * period)
            end = min(self.high, task.end + microbatch * period)
            if begin < end:
                for top, bottom in runs_of(row_of[p] for p in task.set_of(microbatch) if p in row_of):
                    yield Piece((task,), microbatch, begin, end, top, bottom)


def _groups(view: ScheduleView) -> tuple[Group, ...]:
    """Rows by stage, then accelerators that no stage was granted."""
    groups: list[Group] = []
    shown: set[int] = set()
    # One stage over everything says nothing: then the groups of the platform order the rows.
    stages = view.stages if len({s.granted for s in view.stages}) > 1 else ()
    for stage in stages:
        fresh = tuple(p for p in stage.granted if p not in shown and p < view.platform.accelerators)
        if fresh:
            members = [t for t in view.tasks if t.stage == stage.index]
            groups.append(Group(stage.index, fresh, span_of(members)))
            shown.update(fresh)
    return groups_of(view, groups)


def groups_of(view: ScheduleView, groups: Iterable[Group]) -> tuple[Group, ...]:
    """``groups``, and behind them the accelerators that they leave out, by group of the platform."""
    groups = list(groups)
    shown = {p for group in groups for p in group.accelerators}
    rest = [p for p in range(view.platform.accelerators) if p not in shown]
    size = max(1, view.platform.group)
    for node in sorted({p // size for p in rest}):
        groups.append(Group(None, tuple(p for p in rest if p // size == node), ""))
    return tuple(groups)


def runs_of(rows: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Ranges of neighbouring rows."""
    ordered = sorted(rows)
    if not ordered:
        return
    breaks = [i for i, (a, b) in enumerate(pairwise(ordered), start=1) if b != a + 1]
    for low, high in pairwise([0, *breaks, len(ordered)]):
        yield ordered[low], ordered[high - 1] + 1


def _joined(pieces: Sequence[Piece], least: Fraction) -> Iterator[Piece]:
    """Join runs of short pieces of one micro-batch and one block of the source that follow each other closely."""
    held: Piece | None = None
    for piece in pieces:
        if held is not None and _belong(held, piece, least):
            held = Piece(held.tasks + piece.tasks, held.microbatch, held.begin, piece.end, held.top, held.bottom)
            continue
        if held is not None:
            yield held
        held = piece
    if held is not None:
        yield held


def _belong(a: Piece, b: Piece, least: Fraction) -> bool:
    last, first = a.tasks[-1], b.tasks[0]
    same = a.microbatch == b.microbatch and (last.stage, last.block) == (first.stage, first.block)
    if not same or not 0 <= b.begin - a.end <= least / 16:
        return False
    return b.end - b.begin < least and (len(a.tasks) > 1 or a.end - a.begin < least)
