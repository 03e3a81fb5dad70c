"""``--emit perfetto``: a few periods of the steady state as a Chrome trace, for the Perfetto UI or chrome://tracing.

One process, one track an accelerator (of very many accelerators, one for those that always act alike). On a track, a
slice for each uninterrupted run of one micro-batch encloses one for each operator. Perfetto colours a slice by its name
without the digits, so a letter in the name of the enclosing slice tells neighbouring micro-batches apart;
chrome://tracing uses ``cname``. Arrows follow the dependences, through the transfers on the tracks of a second process
(:mod:`compiler.targets.perfetto_links`). Counters show the memory of accelerators that act alike.
Times are microseconds with three decimals: exact nanoseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from typing import Any

import numpy as np
from xdsl.dialects.builtin import ModuleOp

from compiler.links import instances, readers_of
from compiler.simulate.machine import Clock, Machine, check_length
from compiler.simulate.memory import Times, lifetimes, usage
from compiler.targets.perfetto_links import LinkTracks
from compiler.targets.text import ranges, value_of
from compiler.targets.trace_events import MOST_SLICES, NAMES, about, order, us
from compiler.view import Edge, ScheduleView, Task, view_of

PROCESS = 1


def emit(module: ModuleOp, *, periods: int = 3, memory: bool = True) -> str:
    """The trace of ``periods`` periods (rounded up to whole patterns), with memory counters if ``memory``."""
    view = view_of(module)
    window = _Window(view, max(1, periods), memory)
    events = [*window.metadata(), *sorted(window.events(), key=order)]
    other = {
        "model": view.graph,
        "platform": view.platform.name,
        "period_ns": float(view.period),
        "bound_ns": view.bound,
        "plan": view.plan,
        "engine": view.engine,
    }
    rows = ",\n".join(json.dumps(e, ensure_ascii=False, separators=(",", ":")) for e in events)
    return f'{{"displayTimeUnit":"ns","otherData":{json.dumps(other)},"traceEvents":[\n{rows}\n]}}\n'


@dataclass(frozen=True)
class _Run:
    """One instance of an operator; times in ns from the start of the trace, whole."""

    task: Task
    microbatch: int
    begin: int
    end: int


class _Window:
    """The instances that run in the steady state between two moments a few periods apart."""

    def __init__(self, view: ScheduleView, periods: int, memory: bool):
        self.view, self.memory = view, memory
        last = max([*(t.end for t in view.tasks), *(m.ready for m in view.moves)], default=0)
        self.first = max(0, ceil(last / view.period))
        self.periods = -(-periods // view.rounds) * view.rounds
        self.low = self.first * view.period
        self.high = self.low + self.periods * view.period
        found = list(self._instances())
        moved = instances(view, self.low, self.high, first=0)
        # The first slice may begin before the window: the trace starts with it, so that no time is negative.
        self.origin = min([self.low, *(b for _, _, b, _ in found), *(x.sent for x in moved)])
        self.runs = {
            (task.index, i): _Run(task, i, self.whole(begin), self.whole(end)) for task, i, begin, end in found
        }
        self.tracks = self._tracks()
        self.track_of = {p: first for first, members in self.tracks.items() for p in members}
        self.links = LinkTracks(view, moved, self.whole, view.platform.accelerators)

    def whole(self, ns: Fraction) -> int:
        """Nanoseconds from the start of the trace, rounded down; order and whole durations are kept."""
        return floor(ns - self.origin)

    def _instances(self) -> Iterator[tuple[Task, int, Fraction, Fraction]]:
        period = self.view.period
        for task in self.view.tasks:
            i = max(0, ceil((self.low - task.end) / period))
            while (begin := task.start + i * period) < self.high:
                end = begin + task.time
                if end > self.low or (not task.time and begin >= self.low):
                    yield task, i, begin, end
                i += 1

    def _tracks(self) -> dict[int, tuple[int, ...]]:
        """First accelerator of each track → all its accelerators."""
        every = self.view.platform.accelerators
        if sum(run.task.allotment for run in self.runs.values()) <= MOST_SLICES:
            return {p: (p,) for p in range(every)}
        alike = Machine.of(self.view).classes
        used = {p for members in alike for p in members}
        return dict(sorted([(min(m), m) for m in alike] + [(p, (p,)) for p in range(every) if p not in used]))

    # --- events ------------------------------------------------------------------------------

    def metadata(self) -> Iterator[dict[str, Any]]:
        """Names and order of the process and its tracks."""
        view = self.view
        stage_of = {p: s.index for s in reversed(view.stages) for p in s.granted}

        yield about("process_name", PROCESS, 0, name=f"{view.graph} on {view.platform.name}, as scheduled")
        yield about("process_sort_index", PROCESS, 0, sort_index=0)
        several = len({s.granted for s in view.stages}) > 1
        for p, members in self.tracks.items():
            stage = f" (stage {stage_of[p]})" if several and p in stage_of else ""
            yield about("thread_name", PROCESS, p + 1, name=f"{_accelerators(members)}{stage}")
            yield about("thread_sort_index", PROCESS, p + 1, sort_index=p)
        yield from self.links.metadata()

    def events(self) -> Iterator[dict[str, Any]]:
        on_track: dict[int, list[_Run]] = {}
        for run in self.runs.values():
            for p in run.task.set_of(run.microbatch):
                if p in self.tracks:
                    on_track.setdefault(p, []).append(run)
        for p, runs in sorted(on_track.items()):
            runs.sort(key=lambda r: (r.begin, r.end))
            yield from self.track(p, runs)
        yield from self.links.slices()
        yield from self.arrows()
        if self.memory:
            yield from self.counters()

    def track(self, p: int, runs: list[_Run]) -> Iterator[dict[str, Any]]:
        held: list[_Run] = []
        for run in runs:
            if run.begin == run.end:
                yield {"ph": "i", "s": "t", "name": run.task.name, **_place(p, run.begin), "args": self.facts(run)}
                continue
            if held and (held[-1].microbatch != run.microbatch or held[-1].end != run.begin):
                yield self.enclosing(p, held)
                held = []
            held.append(run)
            yield {
                "ph": "X",
                "name": run.task.name,
                "cat": "operator",
                **_place(p, run.begin),
                "dur": us(run.end - run.begin),
                "cname": NAMES[run.microbatch % len(NAMES)],
                "args": self.facts(run),
            }
        if held:
            yield self.enclosing(p, held)

    def enclosing(self, p: int, runs: list[_Run]) -> dict[str, Any]:
        i = runs[0].microbatch
        return {
            "ph": "X",
            "name": f"micro-batch {i} {chr(ord('A') + i % len(NAMES))}",
            "cat": "micro-batch",
            **_place(p, runs[0].begin),
            "dur": us(runs[-1].end - runs[0].begin),
            "cname": NAMES[i % len(NAMES)],
            "args": {"micro-batch": i, "operators": len(runs)},
        }

    def facts(self, run: _Run) -> dict[str, Any]:
        task = run.task
        facts: dict[str, Any] = {"operator": task.name, "kind": task.kind}
        if task.stage is not None:
            facts["stage"] = task.stage
        if task.block is not None:
            facts["block"] = f"{task.block[0]} {task.block[1]}"
        facts["micro-batch"] = run.microbatch
        facts["allotment"] = task.allotment
        facts["accelerators"] = ranges(task.set_of(run.microbatch))
        facts["time_ns"] = task.time
        return facts

    def arrows(self) -> Iterator[dict[str, Any]]:
        """From the last nanosecond of a producer to the first of a consumer, through the transfer if there is one."""
        found = (*self.through_links(), *self.dependences())
        for number, (name, category, tail, head) in enumerate(found, start=1):
            common = {"name": name, "cat": category, "id": number}
            yield {"ph": "s", **common, **tail}
            yield {"ph": "f", "bp": "e", **common, **head}

    def dependences(self) -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
        """Name, category and both ends of the arrows of values that are read without a transfer."""
        serving: dict[Edge, list[int]] = {}
        for move in self.view.moves:
            for edge in readers_of(self.view, move):
                serving.setdefault(edge, []).append(move.index)
        for edge in self.view.edges:
            for i in range(self.first + self.periods):
                if any(self.links.stops(transfer, i) for transfer in serving.get(edge, ())):
                    continue
                tail, head = self.end_of(edge.producer, i), self.start_of(edge.consumer, i + edge.distance)
                if tail is not None and head is not None:
                    yield self.view.tasks[edge.producer].name, "dependence", tail, head

    def through_links(self) -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
        """The arrows from a producer to what leaves, to what arrives, to everyone who reads it there."""
        for move in self.view.moves:
            readers = readers_of(self.view, move)
            for i in range(self.first + self.periods):
                stops = self.links.stops(move.index, i)
                if not stops:
                    continue
                name = value_of(self.view, move)
                heads = [self.start_of(edge.consumer, i + edge.distance) for edge in readers]
                tail = self.end_of(move.producer, i)
                if tail is not None:
                    yield name, "transfer", tail, stops[0]
                if len(stops) > 1:
                    yield name, "transfer", stops[0], stops[1]
                yield from ((name, "transfer", stops[-1], head) for head in heads if head is not None)

    def end_of(self, task: int, microbatch: int) -> dict[str, Any] | None:
        """The last nanosecond of a run that is in the trace and takes time."""
        run = self.runs.get((task, microbatch))
        if run is None or run.begin == run.end:
            return None
        return _place(self.track_of[run.task.set_of(microbatch)[0]], run.end - 1)

    def start_of(self, task: int, microbatch: int) -> dict[str, Any] | None:
        """The first nanosecond of a run that is in the trace and takes time."""
        run = self.runs.get((task, microbatch))
        if run is None or run.begin == run.end:
            return None
        return _place(self.track_of[run.task.set_of(microbatch)[0]], run.begin)

    def counters(self) -> Iterator[dict[str, Any]]:
        """Bytes held over time by each class of accelerators that always act alike."""
        view = self.view
        if not view.tasks:
            return
        clock, machine, count = Clock.of(view), Machine.of(view), self.first + self.periods
        check_length(view, clock, count)
        first = np.array([t.start * clock.scale for t in view.tasks], dtype=np.int64)
        starts: Times = np.arange(count, dtype=np.int64)[:, None] * clock.period + first
        used = usage(view, machine, list(lifetimes(view, machine, starts)))
        low, high = self.origin * clock.scale, self.high * clock.scale
        for members, (times, held) in zip(machine.classes, used, strict=True):
            # The last change before the window gives the level at its start.
            begin = max(0, int(np.searchsorted(times, float(low), side="right")) - 1)
            end = int(np.searchsorted(times, float(high), side="left"))
            name = f"memory of {_accelerators(members)}"
            for at, level in zip(times[begin:end].tolist(), held[begin:end].tolist(), strict=True):
                moment = max(0, self.whole(clock.ns(at)))
                yield {"ph": "C", "name": name, "pid": PROCESS, "ts": us(moment), "args": {"bytes": level}}


def _accelerators(members: tuple[int, ...]) -> str:
    return f"accelerator {min(members)}" if len(members) == 1 else f"accelerators {ranges(members)}"


def _place(p: int, ns: int) -> dict[str, Any]:
    return {"pid": PROCESS, "tid": p + 1, "ts": us(ns)}
