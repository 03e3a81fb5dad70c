"""How much a solver may do, and whom it tells how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

Listener = Callable[[str, int], None]
"""Called with the engine and its incumbent period in ns."""


@dataclass
class Budget:
    """Work that a solver may do, and a limit on the wall clock as a safety stop; None: no limit.

    ``work`` is counted in units of about one second of one core, by the deterministic clocks of the engines
    (:meth:`spend`), so the same budget gives the same schedule on any machine, unless ``seconds`` of wall
    clock, counted from the creation of the object, are over before.

    Solvers ask :meth:`spent` between steps. On an interrupt from the keyboard a solver that has a
    schedule calls :meth:`stop` and returns it; one that has none lets the interrupt pass.
    """

    seconds: float | None = None
    listener: Listener | None = None
    work: float | None = None
    seed: int = 0
    used: float = 0.0
    """Work done so far."""
    _started: float = field(default_factory=time.monotonic)

    def stop(self) -> None:
        """Let the time be over now, because the user interrupted."""
        self.seconds = 0.0

    @property
    def stopped(self) -> bool:
        """Whether :meth:`stop` was called, or no time was given from the start."""
        return self.seconds == 0.0

    def spend(self, work: float) -> None:
        """Count ``work`` units as done."""
        self.used += work

    def spent(self) -> bool:
        """Whether the work is done or the time over."""
        if self.work is not None and self.used >= self.work:
            return True
        return self.seconds is not None and time.monotonic() - self._started >= self.seconds

    def left(self) -> float | None:
        """Seconds of wall clock that remain, at least 0; None without a limit."""
        return None if self.seconds is None else max(0.0, self.seconds - (time.monotonic() - self._started))

    def work_left(self) -> float | None:
        """Units of work that remain, at least 0; None without a limit."""
        return None if self.work is None else max(0.0, self.work - self.used)

    def part(self, share: float) -> Budget:
        """A budget of ``share`` of what remains, for one step of several; give what it used back to :meth:`spend`.

        Where the work is what ends first, the wall clock is not shared out: it would end a step on a slow machine that
        another machine completes.
        """
        seconds, work = self.left(), self.work_left()
        roomy = seconds is not None and work is not None and seconds >= 2 * work
        return Budget(
            seconds if seconds is None or roomy else seconds * share,
            self.listener,
            None if work is None else work * share,
            self.seed,
        )

    def report(self, engine: str, incumbent: int) -> None:
        """Tell the listener of a better schedule."""
        if self.listener is not None:
            self.listener(engine, incumbent)
