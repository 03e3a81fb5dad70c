"""Search for the greatest period that an argument excludes.

An argument that excludes a period excludes every shorter one, if what it assumes of a schedule only gets easier
to keep as the period grows. All of ours are so: loads, allotments that meet the period, lengths of paths. Whether the
argument is *found* need not be monotone; so the search may stop anywhere, and what it returns is proven.
"""

from __future__ import annotations

from collections.abc import Callable

from passes.scheduling.budget import Budget

Excludes = Callable[[int, Budget], str | None]
"""Name of what excludes a period, or None."""

PRECISION = 10_000
"""The search is content with this fraction of the period, unless its questions are cheap."""

CHEAP = 0.05
"""Units of work below which a question is cheap."""

SHARE = 0.2
"""Share of the work left that one question may use."""


def greatest_excluded(low: int, most: int, excludes: Excludes, budget: Budget) -> tuple[int, str] | None:
    """The greatest period above ``low`` found to be excluded, at most ``most``, and by what; None without any."""
    found: tuple[int, str] | None = None
    high, step = low + 1, max(1, low // 100)
    cost = 0.0

    def ask(period: int) -> bool:
        nonlocal found, cost
        part = budget.part(SHARE)
        name = excludes(period, part)
        budget.spend(part.used)
        cost = part.used
        if name is not None:
            found = (period, name)
        return name is not None

    while low < most and not budget.spent():
        if not ask(min(high, most)):
            break
        low = min(high, most)
        high, step = low + step, 2 * step
    if low >= most or found is None:
        return found
    while high - low > (1 if cost < CHEAP else max(1, high // PRECISION)) and not budget.spent():
        middle = (low + high) // 2
        if ask(middle):
            low = middle
        else:
            high = middle
    return found
