"""Transfers in a Gantt chart as SVG: lanes beside the rows of a group, or striped pieces of rows; and arrows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from html import escape

from compiler.links import Instance, loads, standstill
from compiler.targets.gantt import Chart
from compiler.targets.gantt_links import Bar, Lane, arrows, ends_of, lanes, stops
from compiler.targets.svg_parts import FAINT, INK, PALETTE, numbered, text_at
from compiler.targets.text import counted, percent, ranges, route_of, short_bytes, short_time

BUSY = "#7b8794"
"""Colour of what says only that something moves."""

HEIGHTS = (0.0, 5.0, 7.0, 9.0)
"""Pixels of a lane, by its depth."""

INSET = 1.0
"""Pixels between a lane and its rows."""

ROOM = 340.0
"""Pixels for all lanes together; where they need more they are thinner."""

THINNEST = 2.6
"""Pixels of the thinnest lane."""

SHORTEST = 1.6
"""Pixels of the shortest transfer."""

Span = tuple[float, float]


class Links:
    """The transfers of a chart; ``pixel`` is how many ns a pixel is wide. Without transfers it draws nothing."""

    def __init__(self, chart: Chart, pixel: Fraction):
        self.chart, self.view, self.pixel = chart, chart.view, pixel
        self.beside = self.view.platform.transfers == "overlapped"
        self.lanes: dict[tuple[int, bool], Lane] = lanes(chart, pixel) if self.beside else {}
        wanted = sum(HEIGHTS[lane.depth] + INSET for lane in self.lanes.values())
        self.shrink = min(1.0, ROOM / wanted) if wanted else 1.0
        self.tops: dict[tuple[int, bool], float] = {}
        self.standstill = standstill(chart.view)
        """Accelerator → share of the period in which transfers stop it."""
        self.stops = [] if self.beside else list(stops(chart, pixel))
        self.cycle, self.what = (self.view.pattern, "step") if self.view.step else (self.view.period, "period")
        self.joined = any(len(bar.transfers) > 1 for _, bar in self.stops)
        self.arrows: list[Instance] = arrows(chart)

    @property
    def foot(self) -> int:
        """Pixels that the legend needs."""
        return 22 if self.view.moves else 0

    def height(self, key: tuple[int, bool]) -> float:
        """Pixels of a lane, without the gap to its rows."""
        lane = self.lanes.get(key)
        return max(THINNEST, HEIGHTS[lane.depth] * self.shrink) if lane else 0.0

    def take(self, group: int, arrives: bool, y: float) -> float:
        """Place a lane at ``y``; the pixels that it takes, none where nothing moves."""
        key = (group, arrives)
        if key not in self.lanes:
            return 0.0
        self.tops[key] = y if arrives else y + INSET
        return self.height(key) + INSET

    # --- drawing -----------------------------------------------------------------------------

    def draw(self, x: Callable[[Fraction | int], float], rows: Callable[[int, int], Span]) -> Iterator[str]:
        """Everything inside the chart; ``x`` and ``rows`` turn times and rows into pixels."""
        if not self.view.moves:
            return
        yield from self._lanes(x)
        if not self.beside:
            for (top, bottom), bar in self.stops:
                yield from self._bar(bar, x, rows(top, bottom), striped=True)
        yield from self._arrows(x, rows)

    def _lanes(self, x: Callable[[Fraction | int], float]) -> Iterator[str]:
        busy = self._busy()
        left, right = x(self.chart.low), x(self.chart.high)
        for key, lane in self.lanes.items():
            top, height = self.tops[key], self.height(key)
            band = f'y="{top:.1f}" height="{height:.1f}"'
            yield f'<rect x="{left:.1f}" width="{right - left:.1f}" {band} fill="#f3f5f7"/>'
            each = height / lane.depth
            for bar in lane.bars:
                begin = top + bar.depth * each
                yield from self._bar(bar, x, (begin, begin + each))
            for piece in lane.busy:
                most = len(self.chart.groups[key[0]].accelerators)
                shade = 0.15 + 0.85 * min(1.0, float(piece.mean) / most)
                place = f'x="{x(piece.begin):.1f}" width="{x(piece.end) - x(piece.begin):.1f}" {band}'
                title = f"{float(piece.mean):.3g} transfers at once"
                yield f'<rect {place} fill="{BUSY}" opacity="{shade:.2f}"><title>{title}</title></rect>'
            load = f'<rect x="{right + 10:.1f}" {band}'
            yield f'{load} width="42" fill="#f3f5f7"/>'
            share = busy.get(key, Fraction(0))
            title = f"{'into' if key[1] else 'out of'} these: {percent(share)} of the {self.what}"
            yield f'{load} width="{42 * min(1.0, float(share)):.1f}" fill="{BUSY}"><title>{title}</title></rect>'
            if height >= 5:
                word = "in" if key[1] else "out"
                yield text_at(left - 8, top + height / 2 + 2.3, word, size=6.5, anchor="end", colour=FAINT)

    def _busy(self) -> dict[tuple[int, bool], Fraction]:
        """Load of the busiest link end of each lane."""
        group_of = {p: g for g, group in enumerate(self.chart.groups) for p in group.accelerators}
        found: dict[tuple[int, bool], Fraction] = {}
        for r, load in loads(self.view).items():
            sides = [side for side, other in ((False, "receive"), (True, "send")) if r.kind != other]
            for key in ((group_of[p], side) for p in r.members if p in group_of for side in sides):
                found[key] = max(found.get(key, Fraction(0)), load)
        return found

    def _bar(self, bar: Bar, x: Callable[[Fraction | int], float], span: Span, striped: bool = False) -> Iterator[str]:
        left, width = x(bar.begin), max(SHORTEST, x(bar.end) - x(bar.begin))
        place = f'x="{left:.1f}" y="{span[0]:.1f}" width="{width:.1f}" height="{span[1] - span[0]:.1f}"'
        first, *others = bar.transfers
        if others:
            title = f"{counted(len(bar.transfers), 'transfer')}, {short_time(bar.begin)} to {short_time(bar.end)}"
            yield f'<rect {place} fill="{BUSY}"><title>{title}</title></rect>'
            return
        shade = f'class="m{-first.microbatch % len(PALETTE)}"'
        yield f"<rect {shade} {place}><title>{escape(self.tooltip(first, bar.arrives))}</title></rect>"
        if striped:
            yield _stripes(left, width, span)

    def tooltip(self, x: Instance, arrives: bool) -> str:
        """What moves, how much, from where to where, and when."""
        move, begin = x.move, x.landed if arrives else x.sent
        home = ranges(self.view.tasks[move.producer].set_of(x.microbatch))
        end = begin + move.time
        return (
            f"{route_of(self.view, move, x.microbatch)}\n"
            f"micro-batch {numbered(self.view, x.microbatch)}, {short_bytes(move.size)} from {home} over {move.link}\n"
            f"{'arrives' if arrives else 'leaves'} {short_time(begin)} to {short_time(end)}: {short_time(move.time)}, "
            f"{percent(move.time / self.cycle)} of the {self.what}"
        )

    # --- arrows ------------------------------------------------------------------------------

    def _arrows(self, x: Callable[[Fraction | int], float], rows: Callable[[int, int], Span]) -> Iterator[str]:
        if not self.arrows:
            return
        yield (
            '<defs><marker id="a" viewBox="0 0 6 6" refX="5.5" refY="3" markerWidth="5" markerHeight="5" '
            f'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0L6 3L0 6z" fill="{INK}"/></marker></defs>'
        )
        yield f'<g fill="none" stroke="{INK}" stroke-width=".9" opacity=".75" pointer-events="none">'
        for arrow in self.arrows:
            tail, head = self._spans(arrow, rows)
            if tail is None or head is None:
                continue
            y, goal = (tail[1], head[0]) if tail[0] < head[0] else (tail[0], head[1])
            if tail == head:
                y = goal = (tail[0] + tail[1]) / 2
            half = arrow.move.time / Fraction(2)
            begin, end = arrow.sent + half, arrow.landed + half
            if arrow.landed != arrow.sent:
                begin, end = arrow.sent + arrow.move.time, arrow.landed
            if (begin, y) != (end, goal):
                yield f'<path d="{_curve(x(begin), y, x(end), goal)}" marker-end="url(#a)"/>'
        yield "</g>"

    def _spans(self, arrow: Instance, rows: Callable[[int, int], Span]) -> tuple[Span | None, Span | None]:
        """Where the two ends that are nearest to each other stand, from top to bottom."""
        sources, targets = ends_of(self.view, arrow)
        if self.beside:
            group_of = {p: g for g, group in enumerate(self.chart.groups) for p in group.accelerators}
            a, b = _nearest([group_of[p] for p in sources], [group_of[p] for p in targets])
            return self._lane_span((a, False), arrow), self._lane_span((b, True), arrow)
        row_of = {p: row for row, p in enumerate(self.chart.rows)}
        a, b = _nearest([row_of[p] for p in sources], [row_of[p] for p in targets])
        return rows(a, a + 1), rows(b, b + 1)

    def _lane_span(self, key: tuple[int, bool], x: Instance) -> Span | None:
        """Where a transfer stands in a lane; all of a lane that says only how busy it is."""
        lane, top = self.lanes.get(key), self.tops.get(key)
        if lane is None or top is None:
            return None
        each = self.height(key) / lane.depth
        bar = next((bar for bar in lane.bars if x in bar.transfers), None)
        return (top, top + self.height(key)) if bar is None else (top + bar.depth * each, top + (bar.depth + 1) * each)

    # --- legend ------------------------------------------------------------------------------

    def legend(self, x: float, y: float) -> Iterator[str]:
        """One line that says how transfers are drawn."""
        if not self.view.moves:
            return
        yield text_at(x, y, "transfers", size=11.5, colour=FAINT)
        if self.beside:
            says = "thin lanes: what arrives above the rows of its readers, what leaves below those of its producer"
            if any(lane.busy for lane in self.lanes.values()):
                says += "; grey: the darker the more at once"
            yield f'<rect class="m0" x="{x + 76:.1f}" y="{y - 6:.1f}" width="13" height="6"/>'
        else:
            how = "while it leaves, and later while it arrives" if self._buffered else "at both ends meanwhile"
            says = f"striped: accelerators stand still {how}"
            says += "; grey: for several" if self.joined else ""
            yield f'<rect class="m0" x="{x + 76:.1f}" y="{y - 10:.1f}" width="13" height="13"/>'
            yield _stripes(x + 76, 13, (y - 10, y + 3))
        says += "; arrows: from where to where" if self.arrows else "; too many for arrows"
        yield text_at(x + 94, y, says, size=11.5)

    @property
    def _buffered(self) -> bool:
        return self.view.platform.transfers == "buffered"


def _stripes(left: float, width: float, span: Span) -> str:
    """Lines across a rectangle, every few pixels."""
    lines = "".join(f"M{left:.1f} {y:.1f}h{width:.1f}" for y in _steps(*span))
    return f'<path d="{lines}" stroke="{INK}" stroke-width="1" opacity=".5" pointer-events="none"/>'


def _steps(top: float, bottom: float) -> Iterator[float]:
    count = max(1, round((bottom - top) / 4.3))
    yield from (top + (i + 0.5) * (bottom - top) / count for i in range(count))


def _nearest(sources: Sequence[int], targets: Sequence[int]) -> tuple[int, int]:
    return min(((a, b) for a in set(sources) for b in set(targets)), key=lambda p: (abs(p[0] - p[1]), p))


def _curve(x: float, y: float, end: float, goal: float) -> str:
    """Straight between neighbours; past other rows with a bow, so that arrows above each other can be told apart."""
    far = goal - y
    if abs(far) < 30:
        return f"M{x:.1f} {y:.1f}L{end:.1f} {goal:.1f}"
    bow, lean = min(18.0, abs(far) / 8), far * 0.35
    return f"M{x:.1f} {y:.1f}C{x + bow:.1f} {y + lean:.1f} {end + bow:.1f} {goal - lean:.1f} {end:.1f} {goal:.1f}"
