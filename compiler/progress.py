"""The live line of a long solve: engine, incumbent, proven bound, gap, elapsed time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.text import Text

from dialects.units import show_time
from passes.progress import listening


class ProgressLine:
    """What the line shows; rich asks for it a few times a second."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.text = "compiling"

    def __call__(self, engine: str, incumbent: int, bound: int, message: str) -> None:
        parts: list[str] = []
        if incumbent:
            gap = f" ({incumbent / bound - 1:.2%} above)" if bound else ""
            parts.append(f"period {show_time(incumbent)}, at least {show_time(bound)}{gap}")
        if message:
            parts.append(message)
        self.text = f"{engine}: {', '.join(parts)}" if parts else engine

    def __rich__(self) -> Text:
        elapsed = time.monotonic() - self.started
        return Text(f"[{elapsed:5.1f} s] {self.text}", no_wrap=True, overflow="ellipsis")


@contextmanager
def live_progress() -> Iterator[None]:
    """Show a live line on standard error inside the ``with`` block; it is gone afterwards."""
    line = ProgressLine()
    console = Console(stderr=True)
    with Live(line, console=console, transient=True, refresh_per_second=5), listening(line):
        yield
