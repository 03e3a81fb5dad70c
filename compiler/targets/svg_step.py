"""``--emit svg`` of a step: all its micro-batches on one axis, and what of other steps runs beside them.

One row an accelerator, grouped by rank; a rectangle is a cell (:mod:`compiler.targets.step_cells`), its colour says
what it is and its number the micro-batch. Later chunks of a rank are lighter.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from html import escape
from math import ceil

from compiler.targets.gantt import Chart, Group, groups_of, runs_of
from compiler.targets.step_cells import NAMES, Kind, Piece, alike, cells, ranks_of, runs_on
from compiler.targets.svg import LEFT, Page, lighter
from compiler.targets.svg_parts import FAINT, PALETTE, text_at
from compiler.targets.text import counted, percent, ranges, rate, short_time, span_of
from compiler.targets.training_stages import halves
from compiler.view import ScheduleView, Task

COLOURS: dict[Kind, str] = {"F": "#7fb2ea", "I": "#52c1c1", "W": "#9bcf74", "O": "#b3a0ea"}
SHADES = (0.0, 0.4, 0.6, 0.72)
"""How much white is in the first chunk of a rank, the second, and so on."""

MOST_CELLS = 4500
"""Of more cells those of one colour are one path, without labels and tooltips."""

PAUSE = 0.5
"""Pixels of a pause that parts a cell."""


class StepPage(Page):
    """The page of a step."""

    def __init__(self, view: ScheduleView, width: int):
        self.chunk_of = {s: n for rank in ranks_of(view) for n, chunk in enumerate(rank.chunks) for s in chunk}
        """Number of the chunk of each stage on its rank."""
        self.shown: set[Kind] = set()
        self.labelled = False
        low, high = min(0, view.span[0]), max(view.pattern, view.span[1])
        super().__init__(view, Chart(view, _groups(view), 1, Fraction(low), Fraction(max(1, high))), width)

    @property
    def overlaps(self) -> bool:
        """Whether the next step begins before all of one has ended."""
        return self.view.makespan > self.view.pattern

    def style(self) -> str:
        quiet = "".join(f".m{i}{{fill:#aab4be}}" for i in range(len(PALETTE)))
        solid = "".join(
            f".{kind}{n}{{fill:{lighter(colour, white)}}}"
            for kind, colour in COLOURS.items()
            for n, white in enumerate(SHADES)
        )
        both = "".join(f".B{n}{{fill:url(#B{n})}}" for n in range(len(SHADES)))
        lines = ".p{stroke:#ffffff;stroke-width:.6}.q{stroke:#ffffff;stroke-width:.25}"
        return quiet + solid + both + lines + ".l{text-anchor:middle;pointer-events:none}"

    def figures(self) -> list[str]:
        view = self.view
        bubble = sum(view.bubble.values(), Fraction(0)) / max(1, len(view.bubble))
        of = counted(view.microbatches, "micro-batch", "micro-batches")
        return [
            f"step {short_time(view.pattern)} for {of} ({rate(view.period)})",
            self.bound(),
            f"bubble {percent(bubble)}",
            f"{view.in_flight} in flight",
            f"plan {view.plan}",
        ]

    def name(self, group: Group) -> str:
        return "" if group.index is None else f"rank {group.index}"

    # --- cells -------------------------------------------------------------------------------

    def operators(self) -> Iterator[str]:
        yield "<defs>"
        for n, white in enumerate(SHADES):
            stops = ((0, lighter(COLOURS["I"], white)), (1, lighter(COLOURS["W"], white)))
            inside = "".join(f'<stop offset="{at}" stop-color="{colour}"/>' for at, colour in stops)
            yield f'<linearGradient id="B{n}">{inside}</linearGradient>'
        yield "</defs>"
        view, half = self.view, halves(self.view)
        row_of = {p: row for row, p in enumerate(self.chart.rows)}
        places = [tuple(p for p in members if p in row_of) for members in alike(view)]
        found = [
            (piece, top, bottom)
            for members, runs in zip(places, runs_on(view, places), strict=True)
            for piece in cells(view, runs, PAUSE / float(self.scale), half)
            for top, bottom in runs_of(row_of[p] for p in members)
        ]
        laps = ceil(view.makespan / view.pattern) if self.overlaps else 0
        many = len(found) * (2 if laps else 1) > MOST_CELLS
        draw = self.paths if many else self.rectangles
        for lap in (lap for lap in range(-laps, laps + 1) if lap):
            yield '<g opacity=".35">'
            yield from draw(found, lap)
            yield "</g>"
        yield from draw(found, 0)

    def rectangles(self, found: list[tuple[Piece, int, int]], lap: int) -> Iterator[str]:
        """A rectangle with a tooltip a cell."""
        for piece, rows_top, rows_bottom in found:
            if (span := self.cut(piece, lap)) is None:
                continue
            left, right = span
            top, bottom = self.rows(rows_top, rows_bottom)
            width = max(0.3, right - left)
            place = f'x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{bottom - top:.1f}"'
            border = " p" if width > 4 else " q" if width > 1 else ""
            title = f"<title>{escape(self.said(piece, lap))}</title>"
            yield f'<rect class="{self.shade(piece)}{border}" {place}>{title}</rect>'
            label = "" if piece.microbatch is None else str(piece.microbatch)
            size = min(11.0, (bottom - top) * 0.66, width / (0.62 * len(str(self.view.microbatches - 1))))
            if label and size >= 5.5:
                self.labelled = True
                where = f'x="{(left + right) / 2:.1f}" y="{(top + bottom) / 2 + 0.35 * size:.1f}"'
                yield f'<text class="l" {where} font-size="{size:.3g}">{label}</text>'

    def paths(self, found: list[tuple[Piece, int, int]], lap: int) -> Iterator[str]:
        """A path for the cells of a colour."""
        drawn: dict[str, list[str]] = {}
        for piece, rows_top, rows_bottom in found:
            if (span := self.cut(piece, lap)) is None:
                continue
            top, bottom = self.rows(rows_top, rows_bottom)
            width = max(0.3, span[1] - span[0])
            rectangle = f"M{span[0]:.1f} {top:.1f}h{width:.1f}v{bottom - top:.1f}h-{width:.1f}z"
            drawn.setdefault(self.shade(piece), []).append(rectangle)
        for shade, rectangles in sorted(drawn.items()):
            # A gradient would run over the whole path.
            fill = f' style="fill:{lighter(_mixed(), SHADES[int(shade[1])])}"' if shade[0] == "B" else ""
            yield f'<path class="{shade} q"{fill} d="{"".join(rectangles)}"/>'

    def cut(self, piece: Piece, lap: int) -> tuple[float, float] | None:
        """The pixels of a cell of a step, where it is in the window."""
        begin, end = piece.begin + lap * self.view.pattern, piece.end + lap * self.view.pattern
        begin, end = max(begin, self.chart.low), min(end, self.chart.high)
        if begin >= end:
            return None
        self.shown.add(piece.kind)
        return self.x(begin), self.x(end)

    def shade(self, piece: Piece) -> str:
        """The class of a cell."""
        chunk = 0 if piece.stage is None else self.chunk_of.get(piece.stage, 0)
        return f"{piece.kind}{min(chunk, len(SHADES) - 1)}"

    def said(self, piece: Piece, lap: int) -> str:
        """The tooltip of a cell."""
        view, offset = self.view, lap * self.view.pattern
        which = "" if not lap else " of the next step" if lap > 0 else " of the last step"
        when = (
            f"{short_time(piece.begin + offset)} to {short_time(piece.end + offset)}: "
            f"{short_time(piece.end - piece.begin)}, {percent((piece.end - piece.begin) / view.pattern)} of the step"
        )
        if piece.microbatch is None:
            names = ", ".join(u.name for u in piece.members[:4]) + (", ..." if len(piece.members) > 4 else "")
            return f"{counted(len(piece.members), 'step')} of the optimizer{which}: {names}\n{when}"
        tasks = [t for t in piece.members if isinstance(t, Task)]
        names = ", ".join(t.name for t in tasks) if len(tasks) <= 3 else f"{tasks[0].name} .. {tasks[-1].name}"
        stage = "" if piece.stage is None else f", stage {piece.stage}"
        return (
            f"{NAMES[piece.kind]} of micro-batch {piece.microbatch}{which}{stage}, on "
            f"{ranges(tasks[0].set_of(piece.microbatch))}\n{counted(len(tasks), 'operator')}: {names}\n{when}"
        )

    # --- frame -------------------------------------------------------------------------------

    def margins(self) -> Iterator[str]:
        yield from ()

    def bracket(self) -> Iterator[str]:
        of = counted(self.view.microbatches, "micro-batch", "micro-batches")
        yield from self.between(0, self.view.pattern, f"one step of {of}: {short_time(self.view.pattern)}")

    def legend(self) -> Iterator[str]:
        x, y = float(LEFT), self.bottom + 56
        for kind, name in NAMES.items():
            if kind in self.shown:
                yield f'<rect class="{kind}0" x="{x:.1f}" y="{y - 10:.1f}" width="13" height="13" rx="2"/>'
                yield text_at(x + 18, y, name, size=11.5)
                x += 18 + len(name) * 6.3 + 16
        notes = ["numbers: micro-batches"] if self.labelled else []
        if max(self.chunk_of.values(), default=0):
            notes.append("lighter: later chunks of a rank")
        if self.overlaps:
            notes.append("faded: the steps before and after")
        note = "; ".join(notes)
        if self.x(self.chart.high) - x > len(note) * 5.6:
            yield text_at(self.x(self.chart.high), y, note, size=11, colour=FAINT, anchor="end")


def _mixed() -> str:
    """The colour halfway between those of the two gradients."""
    pairs = [(int(COLOURS["I"][i : i + 2], 16), int(COLOURS["W"][i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{(a + b) // 2:02x}" for a, b in pairs)


def _groups(view: ScheduleView) -> tuple[Group, ...]:
    """Rows by rank, then accelerators that have none."""
    ranks = [rank for rank in ranks_of(view) if rank.chunks]
    if not ranks:
        return groups_of(view, ())
    content: list[Group] = []
    for number, rank in enumerate(ranks):
        parts = [span_of([t for t in view.tasks if t.stage == chunk[0]]) for chunk in rank.chunks]
        content.append(Group(number, rank.accelerators, " | ".join(part for part in parts if part)))
    return groups_of(view, content)
