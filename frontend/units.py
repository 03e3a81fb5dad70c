"""Units and the quantities they make: times in ns, sizes in bytes, rates per second."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from frontend.report import suggest

TIME, SIZE, BANDWIDTH, WORK, RATE = "time", "size", "bandwidth", "work", "rate"

EXAMPLES = {TIME: "812us", SIZE: "80 GiB", BANDWIDTH: "155 GB/s", WORK: "3 GFLOP", RATE: "312 TFLOP/s"}
"""A way to write a quantity of each dimension, for messages."""


def _units() -> dict[str, tuple[str, int]]:
    units = {"ns": (TIME, 1), "us": (TIME, 10**3), "ms": (TIME, 10**6), "s": (TIME, 10**9)}
    for power, letter in enumerate(("", "K", "M", "G", "T", "P")):
        units[f"{letter}B"] = (SIZE, 1000**power)
        units[f"{letter}FLOP"] = (WORK, 1000**power)
        if letter:
            units[f"{letter}iB"] = (SIZE, 1024**power)
    for name, (dimension, factor) in list(units.items()):
        if dimension in (SIZE, WORK):
            units[f"{name}/s"] = (BANDWIDTH if dimension == SIZE else RATE, factor)
    return units


UNITS = _units()
"""Unit → its dimension and its size in ns, bytes, bytes/s, operations or operations/s."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """An exact amount of a dimension, in its base unit."""

    dimension: str
    amount: int | Fraction

    def __str__(self) -> str:
        """With the largest unit that leaves a whole number, else in the base unit."""
        fitting = sorted((f, u) for u, (d, f) in UNITS.items() if d == self.dimension)
        for factor, unit in reversed(fitting):
            if self.amount and self.amount % factor == 0:
                return f"{self.amount // factor} {unit}"
        number = str(self.amount) if isinstance(self.amount, int) else f"{float(self.amount):g}"
        return f"{number} {fitting[0][1]}"


def unknown_unit(name: str) -> tuple[str, str]:
    """What to say about a word after a number that is no unit."""
    hint = suggest(name, [*UNITS, "carry", "as", "of"])
    known = "units are ns us ms s, B KB KiB ... PiB, FLOP KFLOP ... PFLOP, and bytes or operations /s"
    return f"unknown unit '{name}'", hint or known
