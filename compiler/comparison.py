"""``taktc --simulate``: what the schedule promises beside what the simulator measures."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Literal, TypeVar

from xdsl.dialects.builtin import ModuleOp

from compiler.simulate import Report, self_timed, time_triggered
from compiler.view import ScheduleView, view_of
from dialects.schedule_rules import peak_memory
from dialects.structure import find_graph, find_platform
from dialects.units import show_bytes, show_time

Row = tuple[str, ...]
_N = TypeVar("_N", int, Fraction)


def compare(module: ModuleOp, microbatches: int) -> tuple[str, bool]:
    """A table of prediction and measurement, and whether they agree.

    Time-triggered, the measured period, latency and load are the predicted ones exactly, and memory and
    micro-batches in flight are at most the predicted ones (a short run may not reach the steady state).
    Self-timed, the period is at most the predicted one. Raises SimulationError, a TaktError, when the
    schedule cannot be executed.
    """
    view = view_of(module)
    graph, platform = find_graph(module), find_platform(module)
    assert graph is not None
    assert platform is not None
    memory = max((sum(need) for need in peak_memory(graph, platform).values()), default=0)
    load = max((Fraction(busy) / view.period for busy in view.load.values()), default=Fraction(0))
    triggered, free = time_triggered(view, microbatches), self_timed(view, microbatches)

    rows: list[Row] = [
        ("", "predicted", "time-triggered", "self-timed"),
        ("period", *map(show_time, (view.period, triggered.period, free.period))),
        *_step(view, triggered, free),
        ("latency", *map(show_time, (view.latency, triggered.latency_max, free.latency_max))),
        ("in flight", str(view.in_flight), str(triggered.in_flight), str(free.in_flight)),
        ("peak memory", *(show_bytes(m) for m in (memory, _most(triggered.peak_memory), _most(free.peak_memory)))),
        ("highest load", *(f"{float(x):.1%}" for x in (load, _most(triggered.load), _most(free.load)))),
        ("micro-batches", "", str(triggered.microbatches), str(free.microbatches)),
    ]
    faults = [
        *_unless(triggered.period == view.period, "the time-triggered period is not the predicted one"),
        *_unless(triggered.latency_max == view.latency, "the time-triggered latency is not the predicted one"),
        *_unless(triggered.in_flight <= view.in_flight, "more micro-batches are in flight than predicted"),
        *_unless(_most(triggered.peak_memory) <= memory, "more memory is used than predicted"),
        *_unless(free.period <= view.period, "the self-timed period is longer than the predicted one"),
    ]
    verdict = [f"disagreement: {fault}" for fault in faults] or ["prediction and simulation agree"]
    return "\n".join([*table(rows), *verdict]) + "\n", not faults


def _step(view: ScheduleView, triggered: Report, free: Report) -> list[Row]:
    """The time from step to step, where the schedule is one of steps."""
    if triggered.step is None or free.step is None:
        return []
    return [("step", *map(show_time, (view.pattern, triggered.step, free.step)))]


def _unless(holds: bool, fault: str) -> list[str]:
    return [] if holds else [fault]


def _most(values: Mapping[int, _N]) -> _N | Literal[0]:
    return max(values.values(), default=0)


def table(rows: list[Row]) -> list[str]:
    """Rows as lines: names on the left, all other cells to the right of their column."""
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    return [
        f"{name:{widths[0]}}" + "".join(f"  {cell:>{w}}" for cell, w in zip(cells, widths[1:], strict=True))
        for name, *cells in rows
    ]
