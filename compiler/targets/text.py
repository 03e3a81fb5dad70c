"""Short forms of numbers and names for tables and pictures; exact values stay in the machine-readable formats."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction

from compiler.links import Resource
from compiler.view import Move, ScheduleView, Task
from dialects.units import TIMES, show_bytes

short_bytes = show_bytes


def short_time(ns: int | Fraction, digits: int = 4) -> str:
    """A time rounded to ``digits`` significant digits, in its largest unit: ``8.120 ms``, but ``8 ms`` when exact."""
    if not ns:
        return "0 ns"
    unit, scale = next(((u, f) for u, f in TIMES if abs(ns) >= f), ("ns", 1))
    value = float(Fraction(ns) / scale)
    decimals = max(0, digits - len(str(int(abs(value)))))
    text = f"{value:.{decimals}f}"
    exact = Fraction(text) * scale == ns
    return f"{text.rstrip('0').rstrip('.') if exact and '.' in text else text} {unit}"


def rate(period: Fraction) -> str:
    """Micro-batches a second, to four digits: ``17.82 micro-batches/s``."""
    value = float(10**9 / period)
    return f"{value:,.0f} micro-batches/s" if value >= 1000 else f"{value:.4g} micro-batches/s"


def percent(share: Fraction | float, decimals: int = 1) -> str:
    """A share as a percentage: ``97.3 %``."""
    return f"{100 * float(share):.{decimals}f} %"


def ranges(members: Iterable[int]) -> str:
    """Sorted integers as half-open ranges, as in the IR: ``0:8 12:13``."""
    found: list[list[int]] = []
    for m in members:
        if found and found[-1][1] == m:
            found[-1][1] = m + 1
        else:
            found.append([m, m + 1])
    return " ".join(f"{low}:{high}" for low, high in found)


def counted(number: int, noun: str, plural: str = "") -> str:
    """``1 operator``, ``2 operators``."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def span_of(tasks: Sequence[Task]) -> str:
    """First and last call of a block of the source, or the operators themselves where they are in none."""
    if not tasks:
        return ""
    first, last = tasks[0], tasks[-1]
    if first.block and last.block and first.block[0] == last.block[0]:
        block, low, high = first.block[0], first.block[1], last.block[1]
        return f"{block} {low}" if low == high else f"{block} {low} .. {high}"
    names = [f"{t.block[0]} {t.block[1]}" if t.block else t.name for t in (first, last)]
    return names[0] if names[0] == names[1] else " .. ".join(names)


def value_of(view: ScheduleView, move: Move) -> str:
    """Name of what is moved: its producer, with the number of the result where there are several: ``split#1``."""
    producer = view.tasks[move.producer]
    return producer.name if len(producer.results) == 1 else f"{producer.name}#{move.result}"


def route_of(view: ScheduleView, move: Move, microbatch: int) -> str:
    """What moves and where to: ``layer.3.down to 8:16``."""
    return f"{value_of(view, move)} to {ranges(move.target_of(microbatch))}"


def place_of(resources: Sequence[Resource]) -> str:
    """Where resources of one kind and level are: ``out of accelerators 0:2``, ``between accelerators 3 and 4``."""
    first = resources[0]
    if first.kind == "wire":
        more = f" and {len(resources) - 1} like it" if len(resources) > 1 else ""
        return f"between accelerators {first.first} and {first.last}{more}"
    side = {"send": "out of ", "receive": "into "}.get(first.kind, "at ")
    members = [r.first for r in resources]
    return side + (f"accelerator {members[0]}" if len(members) == 1 else f"accelerators {ranges(members)}")
