"""``--emit svg``: a Gantt chart of the steady state, one self-contained picture.

One row an accelerator, grouped by stage; one colour a micro-batch; one rectangle an operator, over all the rows of its
set. The period stands between two lines, with the end of the one before and the start of the next beside it. Transfers
stand between the rows, or in them where they stop accelerators.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from html import escape
from itertools import pairwise

from xdsl.dialects.builtin import ModuleOp

from compiler.targets.gantt import Chart, Group, Piece
from compiler.targets.svg_links import BUSY, Links
from compiler.targets.svg_parts import FAINT, FONT, INK, PALETTE, RULE, relative, text_at
from compiler.targets.text import percent, ranges, rate, short_time
from compiler.view import ScheduleView, view_of
from dialects.units import TIMES

LEFT, RIGHT, TOP = 166, 112, 92
FOOT = 84
GAP = 5
"""Pixels between groups of rows."""

NARROW = 8.0
"""Operators narrower than this many pixels are joined with their neighbours."""


def emit(module: ModuleOp, *, width: int = 1280) -> str:
    """The chart of a scheduled module, ``width`` pixels wide; of a step, all its micro-batches (``svg_step``)."""
    view = view_of(module)
    if view.step:
        from compiler.targets.svg_step import StepPage

        return StepPage(view, width).draw()
    return Page(view, Chart.of(view), width).draw()


class Page:
    """Places a chart on a page of pixels."""

    def __init__(self, view: ScheduleView, chart: Chart, width: int):
        self.view = view
        self.chart = chart
        self.width = max(width, LEFT + RIGHT + 200)
        count = len(self.chart.rows)
        self.row = max(2.0, min(34.0, 900 / max(1, count)))
        self.tops: list[float] = []
        self.scale = Fraction(self.width - LEFT - RIGHT) / (self.chart.high - self.chart.low)
        self.links = Links(self.chart, 1 / self.scale)
        y = float(TOP)
        for number, group in enumerate(self.chart.groups):
            y += self.links.take(number, True, y)
            for _ in group.accelerators:
                self.tops.append(y)
                y += self.row
            y += self.links.take(number, False, y)
            y += GAP
        self.bottom = y - GAP if self.tops else y
        self.height = self.bottom + FOOT + self.links.foot

    # --- geometry ----------------------------------------------------------------------------

    def x(self, ns: Fraction | int) -> float:
        """Pixel of a time."""
        return LEFT + float((ns - self.chart.low) * self.scale)

    def rows(self, top: int, bottom: int) -> tuple[float, float]:
        """Pixels of the rows ``[top, bottom)``."""
        return self.tops[top], self.tops[bottom - 1] + self.row

    # --- page --------------------------------------------------------------------------------

    def draw(self) -> str:
        """The whole picture."""
        size = f'width="{self.width}" height="{self.height:.0f}" viewBox="0 0 {self.width} {self.height:.0f}"'
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="{escape(FONT)}" fill="{INK}">',
            f"<style>{self.style()}</style>",
            f'<rect width="{self.width}" height="{self.height:.0f}" rx="6" fill="#ffffff"/>',
            *self.header(),
            *self.backgrounds(),
            *self.operators(),
            *self.links.draw(self.x, self.rows),
            *self.margins(),
            *self.bracket(),
            *self.axis(),
            *self.legend(),
            *self.links.legend(float(LEFT), self.bottom + 78),
            "</svg>",
        ]
        return "\n".join(parts) + "\n"

    def style(self) -> str:
        colours = [f".m{i}{{fill:{c}}}.m{i}o{{fill:{lighter(c)}}}" for i, c in enumerate(PALETTE)]
        return "".join(colours) + ".p{stroke:#ffffff;stroke-width:.6}.l{text-anchor:middle;pointer-events:none}"

    def header(self) -> Iterator[str]:
        p = self.view.platform
        title = f"{self.view.graph} on {p.name}: {p.accelerators} x {p.accelerator}"
        yield text_at(16, 28, title, size=17, weight="600")
        yield text_at(16, 49, "   ·   ".join(self.figures()), size=12.5, colour=FAINT)

    def figures(self) -> list[str]:
        """What stands below the title."""
        view = self.view
        return [
            f"period {short_time(view.period)} ({rate(view.period)})",
            self.bound(),
            f"latency {short_time(view.latency)}",
            f"{view.in_flight} in flight",
        ]

    def bound(self) -> str:
        """The lower bound, and how far the schedule is above it."""
        view = self.view
        gap = "no gap known" if view.gap is None else f"gap {percent(view.gap)}" if view.gap else "optimal"
        return f"lower bound {short_time(view.bound)} ({view.bound_by}), {gap}"

    def backgrounds(self) -> Iterator[str]:
        """Row bands, labels on the left, load on the right."""
        right = self.x(self.chart.high)
        first = 0
        for group in self.chart.groups:
            last = first + len(group.accelerators)
            top, bottom = self.rows(first, last)
            band = f'x="{LEFT}" y="{top:.1f}" width="{right - LEFT:.1f}" height="{bottom - top:.1f}"'
            yield f'<rect {band} fill="#eceff2"/>'
            if self.row >= 6:
                lines = "".join(f"M{LEFT} {self.tops[r]:.1f}H{right:.1f}" for r in range(first + 1, last))
                yield f'<path d="{lines}" stroke="#ffffff" stroke-width=".7"/>' if lines else ""
            yield from self.labels(group, first, top, bottom)
            yield from self.loads(group, first, top, bottom)
            first = last

    def labels(self, group: Group, first: int, top: float, bottom: float) -> Iterator[str]:
        middle = (top + bottom) / 2
        members = group.accelerators
        whole = middle
        if group.content and bottom - top >= 22:
            content = fitted(group.content, (LEFT - 44) / 5.1)
            yield text_at(16, middle + 12, content, size=8.5, colour=FAINT)
            middle -= 4
        label = self.name(group) or f"{ranges(members)}"
        each = self.row >= 9
        if bottom - top >= 9:
            size = 12 if bottom - top >= 15 else 9
            yield text_at(16, middle + 0.36 * size, label, size=size, weight="600")
        if each:
            size = min(11.0, self.row * 0.72)
            for row, p in enumerate(members, start=first):
                yield text_at(
                    LEFT - 8, self.tops[row] + self.row / 2 + 0.36 * size, str(p), size=size, anchor="end", colour=FAINT
                )
        elif group.index is not None and bottom - top >= 9:
            yield text_at(LEFT - 8, whole + 3.5, ranges(members), size=9, anchor="end", colour=FAINT)

    def name(self, group: Group) -> str:
        """What a group of rows is called; nothing where it is no stage."""
        return "" if group.index is None else f"stage {group.index}"

    def loads(self, group: Group, first: int, top: float, bottom: float) -> Iterator[str]:
        """A bar and a figure for each row, or one for the group where rows are thin or all alike."""
        view = self.view
        loads = [float(view.load.get(p, Fraction(0)) / view.period) for p in group.accelerators]
        stops = [float(self.links.standstill.get(p, 0)) for p in group.accelerators]
        x, room = self.x(self.chart.high) + 10, 42.0
        if self.row >= 9 and (group.index is None or len(set(zip(loads, stops, strict=True))) > 1):
            each = enumerate(zip(loads, stops, strict=True))
            spans = [(*self.rows(first + i, first + i + 1), load, stop) for i, (load, stop) in each]
        else:
            spans = [(top, bottom, max(loads), max(stops))]
        for low, high, load, stop in spans:
            inset = 1 if high - low > 6 else 0
            place = f'x="{x:.1f}" y="{low + inset:.1f}" height="{high - low - 2 * inset:.1f}"'
            yield f'<rect {place} width="{room}" fill="#eceff2"/>'
            if stop:
                yield f'<rect {place} width="{room * min(1.0, load + stop):.1f}" fill="{BUSY}"/>'
            fill = "#3c6e9f" if load > 0.9995 else "#8fa9c2"
            yield f'<rect {place} width="{room * min(1.0, load):.1f}" fill="{fill}"/>'
            size = min(11.0, (high - low) * 0.72)
            if size >= 6:
                yield text_at(x + room + 5, (low + high) / 2 + 0.36 * size, percent(load), size=size, colour=INK)

    # --- operators ---------------------------------------------------------------------------

    def operators(self) -> Iterator[str]:
        parity = _block_parity(self.view)
        for piece in self.chart.pieces(Fraction(NARROW) / self.scale):
            left, right = self.x(piece.begin), self.x(piece.end)
            top, bottom = self.rows(piece.top, piece.bottom)
            shade = f"m{-piece.microbatch % len(PALETTE)}{'o' if parity.get(piece.tasks[0].block) else ''}"
            place = f'x="{left:.1f}" y="{top:.1f}" width="{max(0.3, right - left):.1f}" height="{bottom - top:.1f}"'
            border = " p" if right - left > 2.5 else ""
            yield f'<rect class="{shade}{border}" {place}><title>{escape(self.tooltip(piece))}</title></rect>'
            left, right = self.widest_part(left, right)
            yield from self.label(piece, right - left, bottom - top, (left + right) / 2, (top + bottom) / 2)

    def widest_part(self, left: float, right: float) -> tuple[float, float]:
        """The widest part of ``[left, right]`` that no line of the bracket cuts; labels stand there."""
        lines = [self.x(turn * self.view.period) for turn in range(self.chart.rounds + 1)]
        cuts = [left, *(x for x in lines if left < x < right), right]
        return max(pairwise(cuts), key=lambda part: part[1] - part[0])

    def label(self, piece: Piece, width: float, height: float, x: float, y: float) -> Iterator[str]:
        size = min(11.0, height * 0.66)
        if size < 7 or width < 14:
            return
        for name in _short_names(piece):
            if len(name) * size * 0.6 + 4 <= width:
                place = f'x="{x:.1f}" y="{y + 0.35 * size:.1f}" font-size="{size:.3g}"'
                yield f'<text class="l" {place}>{escape(name)}</text>'
                return

    def tooltip(self, piece: Piece) -> str:
        first, last = piece.tasks[0], piece.tasks[-1]
        begin = first.start + piece.microbatch * self.view.period
        end = last.end + piece.microbatch * self.view.period
        names = ", ".join(t.name for t in piece.tasks[:6]) + (", ..." if len(piece.tasks) > 6 else "")
        stage = f", stage {first.stage}" if first.stage is not None else ""
        return (
            f"{names}\nmicro-batch {relative(piece.microbatch)}{stage}, on {ranges(first.set_of(piece.microbatch))}\n"
            f"{short_time(begin)} to {short_time(end)}: {short_time(end - begin)}, "
            f"{percent((end - begin) / self.view.period)} of the period"
        )

    def margins(self) -> Iterator[str]:
        """A veil over what lies outside the bracketed pattern."""
        ends = (self.chart.low, 0), (self.chart.rounds * self.view.period, self.chart.high)
        for low, high in ends:
            place = f'x="{self.x(low):.1f}" y="{TOP}" width="{self.x(high) - self.x(low):.1f}"'
            yield f'<rect {place} height="{self.bottom - TOP:.1f}" fill="#ffffff" opacity=".55" pointer-events="none"/>'

    def bracket(self) -> Iterator[str]:
        """The period between two lines, named above the rows."""
        period = self.view.period
        for turn in range(self.chart.rounds):
            yield from self.between(turn * period, (turn + 1) * period, f"one period: {short_time(period)}")

    def between(self, begin: Fraction | int, end: Fraction | int, text: str) -> Iterator[str]:
        """Two lines at ``begin`` and ``end``, and above the rows what is between them."""
        left, right, y = self.x(begin), self.x(end), TOP - 16
        yield (
            f'<path d="M{left:.1f} {y - 6}V{self.bottom + 5:.1f}M{right:.1f} {y - 6}V{self.bottom + 5:.1f}" '
            f'stroke="{INK}" stroke-width="1.2" stroke-dasharray="none" fill="none"/>'
        )
        half = len(text) * 3.6 + 8
        middle = (left + right) / 2
        yield (
            f'<path d="M{left + 1:.1f} {y}l7 -4v8zM{right - 1:.1f} {y}l-7 -4v8z" fill="{INK}"/>'
            f'<path d="M{left:.1f} {y}H{middle - half:.1f}M{middle + half:.1f} {y}H{right:.1f}" stroke="{INK}"/>'
        )
        yield text_at(middle, y + 4.5, text, size=12.5, anchor="middle", weight="600")

    def axis(self) -> Iterator[str]:
        """Ticks at round times, counted from the start of the period."""
        low, high = self.chart.low, self.chart.high
        step = round_step((high - low) / 11)
        unit, factor = next(((u, f) for u, f in reversed(TIMES) if high < 1000 * f), TIMES[0])
        y = self.bottom + 5
        yield f'<path d="M{LEFT} {y:.1f}H{self.x(high):.1f}" stroke="{RULE}"/>'
        tick = -(-low // step) * step
        while tick <= high:
            yield f'<path d="M{self.x(Fraction(tick)):.1f} {y:.1f}v5" stroke="{FAINT}"/>'
            value = f"{float(Fraction(tick) / factor):.6g}"
            yield text_at(self.x(Fraction(tick)), y + 18, value, size=10.5, anchor="middle", colour=FAINT)
            tick += step
        yield text_at(self.x(high) + 10, y + 18, unit, size=10.5, colour=FAINT)
        yield text_at(self.x(high) + 10, TOP - 12, "load", size=10.5, colour=FAINT)
        yield text_at(LEFT - 8, TOP - 12, "accelerator", size=10.5, colour=FAINT, anchor="end")

    def legend(self) -> Iterator[str]:
        y = self.bottom + 56
        x = float(LEFT)
        yield text_at(x, y, "micro-batch", size=11.5, colour=FAINT)
        x += 76
        newest = self.chart.rounds - 1
        shown = min(self.view.in_flight + newest, len(PALETTE))
        for i in range(newest, newest - max(1, shown), -1):
            name = relative(i)
            yield f'<rect class="m{-i % len(PALETTE)}" x="{x:.1f}" y="{y - 10:.1f}" width="13" height="13" rx="2"/>'
            yield text_at(x + 18, y, name, size=11.5)
            x += 18 + len(name) * 7 + 14
        if self.view.in_flight + newest > len(PALETTE):
            yield text_at(x, y, "and so on in turn", size=11.5, colour=FAINT)
            x += 112
        x += 10
        yield f'<rect x="{x:.1f}" y="{y - 10:.1f}" width="13" height="13" rx="2" fill="#eceff2" stroke="{RULE}"/>'
        yield text_at(x + 18, y, "idle", size=11.5)
        if self.x(self.chart.high) - x > 330:
            note = "n enters at 0; faded: the periods before and after"
            yield text_at(self.x(self.chart.high), y, note, size=11, colour=FAINT, anchor="end")


# --- small things ----------------------------------------------------------------------------


def fitted(text: str, characters: float) -> str:
    """``text`` cut in the middle to so many characters."""
    room = max(4, int(characters))
    return text if len(text) <= room else f"{text[: (room - 1) // 2]}…{text[len(text) - room // 2 :]}"


def lighter(colour: str, by: float = 0.38) -> str:
    """``colour`` with so much white in it."""
    parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(c + (255 - c) * by):02x}" for c in parts)


def _block_parity(view: ScheduleView) -> dict[tuple[str, int] | None, int]:
    """Block of the source → 0 or 1, changing from each block to the next in program order."""
    found: dict[tuple[str, int] | None, int] = {}
    for task in view.tasks:
        if task.block is not None and task.block not in found:
            found[task.block] = len(found) % 2
    return found


def _short_names(piece: Piece) -> Sequence[str]:
    """Names for a piece, longest first."""
    first = piece.tasks[0]
    if len(piece.tasks) == 1:
        parts = first.name.split(".")
        names = [".".join(parts[i:]) for i in range(len(parts))]
        # "head.0.logits" is shortened to "logits": the number of an only call says nothing.
        return [n for n in names if not n.startswith("0.")]
    if first.block is not None:
        return [f"{first.block[0]} {first.block[1]}", str(first.block[1])]
    return [f"{first.name}..{piece.tasks[-1].name}"]


def round_step(least: Fraction) -> Fraction:
    """The smallest of 1, 2, 5 times a power of ten that is at least ``least``."""
    power = Fraction(1)
    while power * 10 <= least:
        power *= 10
    while power > least:
        power /= 10
    return next(power * f for f in (1, 2, 5, 10) if power * f >= least)
