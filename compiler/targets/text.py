"""Short forms of numbers and names for tables and pictures; exact values stay in the machine-readable formats."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

from dialects.units import TIMES, show_bytes

short_bytes = show_bytes


def short_time(ns: int | Fraction, digits: int = 4) -> str:
    """A time rounded to ``digits`` significant digits, in the largest unit that leaves at least one: ``8.123 ms``."""
    if not ns:
        return "0 ns"
    unit, scale = next(((u, f) for u, f in TIMES if abs(ns) >= f), ("ns", 1))
    value = float(Fraction(ns) / scale)
    decimals = max(0, digits - len(str(int(abs(value)))))
    text = f"{value:.{decimals}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} {unit}"


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


def counted(number: int, noun: str) -> str:
    """``1 operator``, ``2 operators``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
