"""How long a solver may run, and whom it tells how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

Listener = Callable[[str, int], None]
"""Called with the engine and its incumbent period in ns."""


@dataclass
class Budget:
    """Wall-clock limit in seconds (None: no limit), counted from the creation of the object.

    Solvers ask :meth:`spent` between steps. On an interrupt from the keyboard a solver that has a
    schedule calls :meth:`stop` and returns it; one that has none lets the interrupt pass.
    """

    seconds: float | None = None
    listener: Listener | None = None
    _started: float = field(default_factory=time.monotonic)

    def stop(self) -> None:
        """Let the time be over now, because the user interrupted."""
        self.seconds = 0.0

    def spent(self) -> bool:
        """Whether the time is over."""
        return self.seconds is not None and time.monotonic() - self._started >= self.seconds

    def left(self) -> float | None:
        """Seconds that remain, at least 0; None without a limit."""
        return None if self.seconds is None else max(0.0, self.seconds - (time.monotonic() - self._started))

    def report(self, engine: str, incumbent: int) -> None:
        """Tell the listener of a better schedule."""
        if self.listener is not None:
            self.listener(engine, incumbent)
