"""The clock of a run: ``time.monotonic_ns``, the same for all processes of a machine."""

from __future__ import annotations

import time

now = time.monotonic_ns


def sleep_until(moment: int) -> None:
    """Sleep until a moment on :func:`now`; returns at once where it has passed."""
    while (left := moment - now()) > 0:
        time.sleep(left / 1e9)


def wall_offset() -> int:
    """What to add to :func:`now` for a time that other machines understand too, as far as their clocks agree."""
    return time.time_ns() - now()
