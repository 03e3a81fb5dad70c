"""``--emit perfetto``: a few periods of the steady state as a Chrome trace, for the Perfetto UI or chrome://tracing.

Of steps, whole ones from the first on: two where they overlap. There the enclosing slices are cells, named by what they
are (:mod:`compiler.targets.step_cells`), and what the optimizer does stands behind them.

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

from compiler.links import instances, numbers, readers_of
from compiler.simulate.machine import Clock, Machine, check_length
from compiler.simulate.memory import lifetimes, moments, usage
from compiler.targets.perfetto_links import LinkTracks
from compiler.targets.step_cells import kinds
from compiler.targets.text import ranges, value_of
from compiler.targets.trace_events import MOST_SLICES, NAMES, about, order, us
from compiler.targets.training_stages import halves
from compiler.view import Edge, ScheduleView, Task, Update, view_of

PROCESS = 1

KINDS = "FIWBO"
"""What a cell is, in the order of the colours."""


def emit(module: ModuleOp, *, periods: int = 3, memory: bool = True) -> str:
    """The trace of ``periods`` periods (rounded up to whole patterns, or steps), with memory counters if ``memory``."""
    view = view_of(module)
    window = _Window(view, max(1, periods), memory)
    events = [*window.metadata(), *sorted(window.events(), key=order)]
    other = {
        "model": view.graph,
        "platform": view.platform.name,
        "period_ns": float(view.period),
        **({"step_ns": view.pattern, "microbatches": view.microbatches} if view.step else {}),
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
        self.half = halves(view)
        last = max([*(t.end for t in view.tasks), *(m.ready for m in view.moves)], default=0)
        self.first = 0 if view.step else max(0, ceil(last / view.period))
        self.periods = -(-periods // view.rounds) * view.rounds
        self.steps = self.periods // view.microbatches if view.step else 0
        if self.steps == 1 and view.makespan > view.pattern:
            self.steps, self.periods = 2, 2 * self.periods
        self.low = self.first * view.period
        self.high = self.low + self.periods * view.period
        if view.step:
            self.low = Fraction(view.span[0])
            self.high = Fraction(max(view.span[1], view.pattern) + (self.steps - 1) * view.pattern)
        found = list(self._instances())
        moved = [
            x for x in instances(view, self.low, self.high, first=0) if not view.step or x.microbatch < self.periods
        ]
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
        for task in self.view.tasks:
            every = range(self.periods) if self.view.step else numbers(self.view, task, self.low, self.high)
            for i in (i for i in every if i >= 0):
                begin = self.view.begin(task, i)
                end = begin + task.time
                if begin < self.high and (end > self.low or (not task.time and begin >= self.low)):
                    yield task, i, begin, end

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
        yield from self.optimizer()
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
            if held and (self.cell(held[-1]) != self.cell(run) or held[-1].end != run.begin):
                yield from self.enclosing(p, held)
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
            yield from self.enclosing(p, held)

    def cell(self, run: _Run) -> tuple[int, ...]:
        """What the runs inside one enclosing slice have in common: the micro-batch, and in a step stage and half."""
        if not self.view.step:
            return (run.microbatch,)
        stage = -1 if run.task.stage is None else run.task.stage
        return run.microbatch, stage, self.half[run.task.index] == "F"

    def enclosing(self, p: int, runs: list[_Run]) -> Iterator[dict[str, Any]]:
        i = runs[0].microbatch
        parts = [(f"micro-batch {i} {chr(ord('A') + i % len(NAMES))}", NAMES[i % len(NAMES)], len(runs))]
        if self.view.step:
            parts = [
                (f"{kind} of micro-batch {i}", NAMES[KINDS.index(kind)], count)
                for kind, count in kinds([self.half[run.task.index] for run in runs])
            ]
        first = 0
        for name, colour, count in parts:
            begin, end = runs[first].begin, runs[first + count - 1].end
            yield {
                "ph": "X",
                "name": name,
                "cat": "micro-batch",
                **_place(p, begin),
                "dur": us(end - begin),
                "cname": colour,
                "args": {"micro-batch": i, "operators": count},
            }
            first += count

    def optimizer(self) -> Iterator[dict[str, Any]]:
        """A slice for every step of the optimizer on each of its accelerators."""
        for step in range(self.steps):
            for update in (u for u in self.view.updates if u.time):
                for p in (p for p in update.place if p in self.tracks):
                    yield {
                        "ph": "X",
                        "name": update.name,
                        "cat": "optimizer",
                        **_place(p, self.begin_of(update, step)),
                        "dur": us(update.time),
                        "cname": NAMES[KINDS.index("O")],
                        "args": {"group": update.group, "step": step, "time_ns": update.time},
                    }

    def begin_of(self, update: Update, step: int) -> int:
        """When a step of the optimizer begins, from the start of the trace."""
        assert update.start is not None
        return self.whole(Fraction(update.start + step * self.view.pattern))

    def into_optimizer(self) -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
        """The arrows from the gradients of the last micro-batch of a step."""
        for step in range(self.steps):
            for update in (u for u in self.view.updates if u.time):
                head = _place(self.track_of[update.place[0]], self.begin_of(update, step))
                for v in update.gradients:
                    last = max(range(self.view.microbatches), key=lambda i, v=v: self.view.tasks[v].starts[i])
                    if (tail := self.end_of(v, step * self.view.microbatches + last)) is not None:
                        yield self.view.tasks[v].name, "dependence", tail, head

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
        found = (*self.through_links(), *self.dependences(), *self.into_optimizer())
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
        starts = moments(view, [t.starts for t in view.tasks], count)
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
