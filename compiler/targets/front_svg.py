"""A front of schedules as a picture: the first axis over the second, a colour a plan, a line along what none beats."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from html import escape
from math import ceil, floor, log2

from compiler.pareto import Front, Point
from compiler.targets.front import show
from compiler.targets.svg import round_step
from compiler.targets.svg_parts import FAINT, FONT, INK, RULE, text_at
from compiler.targets.text import counted, percent, short_time
from dialects.units import SIZES, TIMES
from passes.choices import PLANS

COLOURS = ("#2f6fb0", "#d9822b", "#2f9e5b", "#c2405a", "#7356bf", "#a8871a", "#1d9a96", "#8a5a34")
"""One colour a plan, the same in every picture."""

WIDTH, HEIGHT = 760, 480
LEFT, RIGHT, TOP, FOOT = 92, 150, 92, 64
FAR = 24
"""How many times the least value the greatest must be for a logarithmic axis."""

NAMES = {"period": "period", "in-flight": "micro-batches in flight", "latency": "latency"}
NAMES |= {"memory": "memory of the fullest accelerator", "crossing": "bytes that cross in a micro-batch"}


@dataclass(frozen=True)
class Scale:
    """An axis from ``low`` to ``high`` units of ``factor``, between two pixels.

    A tick stands at every ``step``; with step 0 the axis is logarithmic, with a tick at every doubling.
    """

    low: Fraction
    high: Fraction
    step: Fraction
    unit: str
    factor: int
    begin: float
    end: float

    @staticmethod
    def of(name: str, values: Sequence[int], begin: float, end: float) -> Scale:
        """An axis that holds all ``values`` between round ends; logarithmic where they are far apart."""
        units = {"in-flight": (("", 1),)}.get(name, TIMES if name in ("period", "latency") else (*SIZES, ("B", 1)))
        most, least = max(values), min(values)
        unit, factor = next(((u, f) for u, f in units if most >= f), units[-1])
        if least > 0 and most >= FAR * least:
            bottom, top = (Fraction(2) ** round_to(log2(v / factor)) for round_to, v in ((floor, least), (ceil, most)))
            return Scale(bottom, top, Fraction(0), unit, factor, begin, end)
        low = Fraction(0 if name == "in-flight" else least, factor)
        spread = Fraction(most, factor) - low
        step = round_step(max(spread / 6, Fraction(most, factor) / 50, Fraction(1, 100)))
        if name == "in-flight":
            step = max(step, Fraction(1))
        bottom = low // step * step
        top = max(-(-Fraction(most, factor) // step) * step, bottom + step)
        return Scale(bottom, top, step, unit, factor, begin, end)

    def at(self, value: int | Fraction) -> float:
        """The pixel of a value in its base unit."""
        here = Fraction(value) / self.factor
        if self.step:
            share = float((here - self.low) / (self.high - self.low))
        else:
            share = log2(here / self.low) / log2(self.high / self.low)
        return self.begin + share * (self.end - self.begin)

    def ticks(self) -> Iterator[tuple[float, str]]:
        """Pixel and text of each tick."""
        tick = self.low
        while tick <= self.high:
            yield self.at(tick * self.factor), f"{float(tick):.6g}"
            tick = tick + self.step if self.step else 2 * tick


def draw(front: Front) -> str:
    """The picture; the same front gives the same bytes."""
    y_name, x_name = front.axes[:2]
    bounds = [front.bound.value] if y_name == "period" else []
    x = Scale.of(x_name, [p.value(x_name) for p in front.points], LEFT, WIDTH - RIGHT)
    y = Scale.of(y_name, [p.value(y_name) for p in front.points] + bounds, HEIGHT - FOOT, TOP)
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    present = {p.plan for p in front.points}
    colours = {plan: COLOURS[i % len(COLOURS)] for i, plan in enumerate(PLANS[1:]) if plan in present}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="{escape(FONT)}" fill="{INK}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#ffffff"/>',
        text_at(16, 28, front.title, size=17, weight="600"),
        text_at(
            16, 49, f"{len(front.points)} schedules, none beaten in {', '.join(front.axes)}", size=12.5, colour=FAINT
        ),
        *_grid(x, y, x_name, y_name),
        *(_bound(front, y) if bounds else ()),
        f'<path d="{_steps(front, x, y)}" stroke="{FAINT}" stroke-width="1.2" fill="none"/>',
        *(_point(front, p, x, y, colours[p.plan]) for p in front.points),
        *_legend(colours),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _grid(x: Scale, y: Scale, x_name: str, y_name: str) -> Iterator[str]:
    for pixel, text in x.ticks():
        yield f'<path d="M{pixel:.1f} {TOP}V{HEIGHT - FOOT}" stroke="{RULE}" stroke-width=".6"/>'
        yield text_at(pixel, HEIGHT - FOOT + 18, text, size=10.5, anchor="middle", colour=FAINT)
    for pixel, text in y.ticks():
        yield f'<path d="M{LEFT} {pixel:.1f}H{WIDTH - RIGHT}" stroke="{RULE}" stroke-width=".6"/>'
        yield text_at(LEFT - 8, pixel + 3.6, text, size=10.5, anchor="end", colour=FAINT)
    yield text_at((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 20, _label(x_name, x), size=12, anchor="middle")
    yield text_at(16, TOP - 16, _label(y_name, y), size=12)


def _label(name: str, scale: Scale) -> str:
    return f"{NAMES[name]}, {scale.unit}" if scale.unit else NAMES[name]


def _bound(front: Front, y: Scale) -> Iterator[str]:
    pixel = y.at(front.bound.value)
    yield f'<path d="M{LEFT} {pixel:.1f}H{WIDTH - RIGHT}" stroke="{INK}" stroke-dasharray="5 4"/>'
    yield text_at(WIDTH - RIGHT + 6, pixel + 3.6, f"bound {short_time(front.bound.value)}", size=10.5)


def _steps(front: Front, x: Scale, y: Scale) -> str:
    """The least of the first axis for every most of the second: a staircase."""
    path = ""
    least: int | None = None
    for across, up in sorted((p.value(front.axes[1]), p.value(front.axes[0])) for p in front.points):
        if least is None:
            path = f"M{x.at(across):.1f} {y.at(up):.1f}"
        elif up < least:
            path += f"H{x.at(across):.1f}V{y.at(up):.1f}"
        least = up if least is None else min(least, up)
    return f"{path}H{x.end}"


def _point(front: Front, point: Point, x: Scale, y: Scale, colour: str) -> str:
    figures = ", ".join(f"{name} {show(name, point.value(name))}" for name in front.axes)
    made = f"{point.plan} by {point.engine}, {counted(point.stages, 'stage')}"
    title = f"{made}\n{figures}\n{percent(front.above(point), 2)} above the bound"
    place = f'cx="{x.at(point.value(front.axes[1])):.1f}" cy="{y.at(point.value(front.axes[0])):.1f}"'
    return f'<circle {place} r="4.5" fill="{colour}" stroke="#ffffff"><title>{escape(title)}</title></circle>'


def _legend(colours: dict[str, str]) -> Iterator[str]:
    for number, (plan, colour) in enumerate(colours.items()):
        height = TOP + 6 + 20 * number
        yield f'<circle cx="{WIDTH - RIGHT + 24}" cy="{height}" r="4.5" fill="{colour}"/>'
        yield text_at(WIDTH - RIGHT + 36, height + 4, plan, size=11.5)
