"""How passes tell the driver of the progress of a long solve."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[str, int, int, str], None]
"""Called with engine, incumbent period in ns, proven bound in ns, and a message."""


def _silent(engine: str, incumbent: int, bound: int, message: str) -> None:
    """Say nothing."""


listener: ContextVar[Listener] = ContextVar("listener", default=_silent)
"""Who listens; the driver installs its own."""


@contextmanager
def listening(to: Listener) -> Iterator[None]:
    """Install ``to`` for the duration of a ``with`` block."""
    token = listener.set(to)
    try:
        yield
    finally:
        listener.reset(token)


def report(engine: str, incumbent_ns: int, bound_ns: int, message: str = "") -> None:
    """Tell the listener of a schedule of period ``incumbent_ns``, of which ``bound_ns`` is proven."""
    listener.get()(engine, incumbent_ns, bound_ns, message)
