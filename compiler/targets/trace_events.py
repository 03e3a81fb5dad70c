"""What every track of a Chrome trace shares: names of colours, and places of events."""

from __future__ import annotations

from typing import Any

Event = dict[str, Any]

NAMES = ("rail_response", "rail_idle", "good", "terrible", "thread_state_runnable", "yellow", "startup", "bad")
"""Colours that chrome://tracing knows by name; one a micro-batch, in turn."""

MOST_SLICES = 60_000
"""Slices in a trace that shows every accelerator; beyond that, what always acts alike shares a track."""


def us(ns: int) -> float:
    """Whole nanoseconds as microseconds; the shortest decimal of the result has at most three places."""
    return ns / 1000


def order(event: Event) -> tuple[float, int, bool]:
    """By time; at one moment enclosing slices first and arrows last, so that each finds the slice it belongs to."""
    return event["ts"], "XiCsf".index(event["ph"]), event.get("cat") != "micro-batch"


def about(what: str, process: int, track: int, **args: Any) -> Event:
    """A name, or the place in the order, of a process or a track."""
    return {"ph": "M", "name": what, "pid": process, "tid": track, "ts": 0, "args": args}
