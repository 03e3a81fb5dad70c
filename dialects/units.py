"""Times and sizes as a person reads them."""

from __future__ import annotations

from fractions import Fraction

TIMES = (("s", 10**9), ("ms", 10**6), ("us", 10**3), ("ns", 1))
SIZES = (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


def show_time(ns: int | Fraction) -> str:
    """A time in its largest fitting unit, exact for whole nanoseconds: ``1.234567 ms``."""
    exact = Fraction(ns)
    if exact.denominator != 1:
        return f"{show_time(int(exact))} + {exact - int(exact)} ns"
    whole = int(exact)
    unit, scale = next(((u, f) for u, f in TIMES if abs(whole) >= f), ("ns", 1))
    quotient, rest = divmod(abs(whole), scale)
    fraction = f".{rest:0{len(str(scale)) - 1}}".rstrip("0") if rest else ""
    return f"{'-' if whole < 0 else ''}{quotient}{fraction} {unit}"


def show_bytes(size: int) -> str:
    """A size in its largest fitting binary unit with two decimals, or exact bytes: ``1.50 GiB``, ``12 B``."""
    unit, scale = next(((u, f) for u, f in SIZES if abs(size) >= f), ("B", 1))
    return f"{size} B" if scale == 1 else f"{size / scale:.2f} {unit}"
