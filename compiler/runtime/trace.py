"""The trace of a run for the Perfetto UI or chrome://tracing: as scheduled above, as run below, on one time axis.

Both groups of tracks show the same micro-batches from the moment at which the first operator began. As scheduled, an
accelerator has a track, and so has every way in or out that transfers occupy (:mod:`compiler.targets.perfetto_links`).
As run, an accelerator has a track with its work, one that says what it waits for, and some with the messages on their
way to it, from when they were sent to when they were there. Arrows go from an operator to the messages that it sent and
from there to the operators that read them.
Times are microseconds with three decimals: exact nanoseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import floor
from typing import Any

from compiler.links import instances
from compiler.runtime.recorded import Line, Run
from compiler.runtime.waits import Story
from compiler.targets.perfetto_links import LinkTracks
from compiler.targets.text import ranges
from compiler.targets.trace_events import NAMES, Event, about, order, us
from compiler.view import ScheduleView
from dialects.programs import ALL_GATHER, COMPUTE, COPY, KINDS, RECV, SEND, UPDATE, Instruction

SCHEDULED, RUN = 1, 2
"""The processes of the trace."""

CLOSE = 100
"""Operators of a micro-batch with less than the measured period over this between them stand in one slice."""


def emit(view: ScheduleView, run: Run) -> str:
    """The trace of a run beside its schedule."""
    scheduled = _Scheduled(view, run)
    found = _AsRun(run, scheduled.last)
    events = [*scheduled.metadata(), *found.metadata()]
    events += sorted([*scheduled.events(), *found.events()], key=order)
    other = {"model": view.graph, "platform": view.platform.name, "period_ns": float(view.period)}
    rows = ",\n".join(json.dumps(e, ensure_ascii=False, separators=(",", ":")) for e in events)
    return f'{{"displayTimeUnit":"ms","otherData":{json.dumps(other)},"traceEvents":[\n{rows}\n]}}\n'


@dataclass(frozen=True)
class _Slice:
    """Something of one micro-batch on a track, ns from the start of the trace."""

    name: str
    category: str
    microbatch: int
    begin: int
    end: int
    facts: Event = field(default_factory=dict[str, Any])


class _Scheduled:
    """What the schedule says about the micro-batches of the run, in the time of the run."""

    def __init__(self, view: ScheduleView, run: Run):
        self.view, self.job = view, run.job
        settings = run.job.settings
        self.scale = Fraction(settings.scale) if settings.emulate else Fraction(1)
        begun = int(run.spans[0].min()) if run.job.operators else 0
        self.shift = begun - self.scale * min((s for t in view.tasks for s in t.starts), default=0)
        last = max((s + m.time for m in view.moves for s in m.landings), default=0)
        end = last + run.job.microbatches * view.period
        low = Fraction(min((s for m in view.moves for s in m.starts), default=0))
        moved = [x for x in instances(view, low, end, first=0) if x.microbatch < run.job.microbatches]
        self.links = LinkTracks(view, moved, self.whole, len(run.job.accelerators), SCHEDULED)

    @property
    def last(self) -> int:
        """The number of the last track."""
        return len(self.job.accelerators) + len(self.links.rows)

    def whole(self, ns: Fraction) -> int:
        """A time of the schedule in ns of the trace, rounded down."""
        return floor(ns * self.scale + self.shift)

    def metadata(self) -> Iterator[Event]:
        yield from _process(SCHEDULED, f"{self.view.graph} on {self.view.platform.name}, as scheduled")
        for p, rank in self.job.rank_of.items():
            yield from _track(SCHEDULED, rank + 1, f"accelerator {p}")
        yield from self.links.tracks()

    def events(self) -> Iterator[Event]:
        on: dict[int, list[_Slice]] = {p: [] for p in self.job.accelerators}
        for task in self.view.tasks:
            for i in range(self.job.microbatches):
                begin = self.view.begin(task, i)
                place = task.set_of(i)
                facts = {"operator": task.name, "kind": task.kind, "micro-batch": i, "accelerators": ranges(place)}
                x = _Slice(task.name, "operator", i, self.whole(begin), self.whole(begin + task.time), facts)
                for p in place:
                    on[p].append(x)
        for update in self.view.updates if self.view.step else ():
            for i in range(self.view.microbatches - 1, self.job.microbatches, self.view.microbatches):
                begin = Fraction((update.start or 0) + i // self.view.microbatches * self.view.pattern)
                facts = {"optimizer step": update.name, "group": update.group, "accelerators": ranges(update.place)}
                x = _Slice(update.name, "update", i, self.whole(begin), self.whole(begin + update.time), facts)
                for p in update.place:
                    on[p].append(x)
        for p, rank in self.job.rank_of.items():
            yield from _work(SCHEDULED, rank + 1, sorted(on[p], key=lambda x: (x.begin, x.end)), 0)
        yield from self.links.slices()


class _AsRun:
    """What happened."""

    def __init__(self, run: Run, base: int):
        self.job, self.story = run.job, Story(run)
        self.close = int(self.story.period) // CLOSE
        self.readers: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
        """Value at a destination → operators that read it, and how many micro-batches later."""
        for v, operator in enumerate(self.job.operators):
            for read in operator.reads:
                key = (read.subject, read.result, read.destination)
                self.readers.setdefault(key, []).append((v, read.distance))
        self.sent = {
            (p, *_message(line.what, line.what.peer)): line.start
            for p, lines in self.story.lines.items()
            for line in lines
            if line.what.kind == SEND
        }
        self.work: dict[int, int] = {}
        """Accelerator → number of its first track; the next one shows its waits, others its messages."""
        self.lanes: dict[int, list[list[tuple[_Slice, Instruction]]]] = {}
        for p, lines in self.story.lines.items():
            self.work[p] = base = base + 1
            self.lanes[p] = _spread(self._messages(p, lines))
            base += 1 + len(self.lanes[p])

    def metadata(self) -> Iterator[Event]:
        yield from _process(RUN, f"{self.job.name} on {self.job.platform}, as run")
        for p, track in self.work.items():
            yield from _track(RUN, track, f"accelerator {p}")
            yield from _track(RUN, track + 1, f"accelerator {p} waits")
            for number, _ in enumerate(self.lanes[p]):
                suffix = f" ({number + 1})" if number else ""
                yield from _track(RUN, track + 2 + number, f"messages to accelerator {p}{suffix}")

    def events(self) -> Iterator[Event]:
        for p, lines in self.story.lines.items():
            yield from _work(RUN, self.work[p], self._worked(lines), self.close)
            for wait in self.story.waits(p):
                x = _Slice(wait.why, "waiting", wait.microbatch, wait.begin, wait.end)
                yield _complete(RUN, self.work[p] + 1, x)
            for number, lane in enumerate(self.lanes[p]):
                yield from (_complete(RUN, self.work[p] + 2 + number, x) for x, _ in lane)
        yield from self._arrows()

    def _worked(self, lines: Sequence[Line]) -> list[_Slice]:
        """Operators, and what else kept the accelerator busy, in order of time; slices never overlap."""
        found: list[_Slice] = []
        now = 0
        for line in sorted(lines, key=lambda line: (line.start, line.end)):
            x, begin, end = line.what, max(line.start, now), max(line.end, now)
            now, waited = end, line.start - line.arrive
            facts: Event = {"micro-batch": x.microbatch, "waited_ns": waited}
            if x.kind == COMPUTE:
                operator = self.job.operators[x.subject]
                place = ranges(operator.on(x.microbatch))
                facts = {"operator": operator.name, "kind": operator.kind, "accelerators": place, **facts}
                found.append(_Slice(operator.name, "operator", x.microbatch, begin, end, facts))
            elif x.kind == UPDATE:
                update = self.job.updates[x.subject]
                facts = {"optimizer step": update.name, "group": update.group, "accelerators": ranges(update.on)}
                found.append(_Slice(update.name, "update", x.microbatch, begin, end, facts | {"waited_ns": waited}))
            elif x.kind in (SEND, RECV, COPY, ALL_GATHER) and end > begin:
                name = f"{KINDS[x.kind].replace('_', '-')} {self.story.value(x)}"
                found.append(_Slice(name, "moving", x.microbatch, begin, end, facts | {"bytes": x.end - x.begin}))
        return found

    def _messages(self, p: int, lines: Sequence[Line]) -> Iterator[tuple[_Slice, Instruction]]:
        for line in lines:
            x = line.what
            if x.kind == RECV:
                begin = min(self.sent.get((x.peer, *_message(x, p)), line.end), line.end)
                name = f"{self.story.value(x)} from accelerator {x.peer}"
                facts: Event = {"micro-batch": x.microbatch, "bytes": x.end - x.begin, "from": x.peer}
                yield _Slice(name, "message", x.microbatch, begin, max(line.end, begin + 1), facts), x

    def _arrows(self) -> Iterator[Event]:
        number = 0
        for p, lanes in self.lanes.items():
            for lane, messages in enumerate(lanes):
                for message, x in messages:
                    track = self.work[p] + 2 + lane
                    first, last = _place(RUN, track, message.begin), _place(RUN, track, message.end - 1)
                    ends: list[tuple[Event | None, Event | None]]
                    ends = [(self._operator(x.subject, x.microbatch, x.peer, last=True), first)]
                    for v, distance in self.readers.get(x.buffer, ()):
                        ends.append((last, self._operator(v, x.microbatch + distance, p, last=False)))
                    for tail, head in ends:
                        if tail is not None and head is not None and tail["ts"] <= head["ts"]:
                            number += 1
                            yield from _arrow(self.job.operators[x.subject].name, number, tail, head)

    def _operator(self, v: int, microbatch: int, p: int, last: bool) -> Event | None:
        """The last or the first nanosecond of a part of an operator, if it took any time."""
        line = self.story.came.get((COMPUTE, v, microbatch), {}).get(p)
        if line is None or line.start == line.end:
            return None
        return _place(RUN, self.work[p], line.end - 1 if last else line.start)


def _message(x: Instruction, receiver: int) -> tuple[int, ...]:
    """A message but for who sends it."""
    return receiver, *x.buffer, x.microbatch, x.begin, x.end


# --- events ----------------------------------------------------------------------------------


def _process(process: int, name: str) -> Iterator[Event]:
    yield about("process_name", process, 0, name=name)
    yield about("process_sort_index", process, 0, sort_index=process)


def _track(process: int, track: int, name: str) -> Iterator[Event]:
    yield about("thread_name", process, track, name=name)
    yield about("thread_sort_index", process, track, sort_index=track)


def _place(process: int, track: int, ns: int) -> Event:
    return {"pid": process, "tid": track, "ts": us(ns)}


def _complete(process: int, track: int, x: _Slice) -> Event:
    return {
        "ph": "X",
        "name": x.name,
        "cat": x.category,
        **_place(process, track, x.begin),
        "dur": us(x.end - x.begin),
        "cname": NAMES[x.microbatch % len(NAMES)],
        "args": x.facts or {"micro-batch": x.microbatch},
    }


def _arrow(name: str, number: int, tail: Event, head: Event) -> Iterator[Event]:
    common = {"name": name, "cat": "message", "id": number}
    yield {"ph": "s", **common, **tail}
    yield {"ph": "f", "bp": "e", **common, **head}


def _work(process: int, track: int, slices: Iterable[_Slice], close: int) -> Iterator[Event]:
    """The slices of a track in order, and around operators of one micro-batch that follow each other another one."""
    held: list[_Slice] = []
    for x in slices:
        if x.begin == x.end:
            yield {"ph": "i", "s": "t", "name": x.name, **_place(process, track, x.begin), "args": x.facts}
            continue
        together = x.category == "operator" and held and held[-1].microbatch == x.microbatch
        if held and not (together and x.begin - held[-1].end <= close):
            yield _enclosing(process, track, held)
            held = []
        if x.category == "operator":
            held.append(x)
        yield _complete(process, track, x)
    if held:
        yield _enclosing(process, track, held)


def _enclosing(process: int, track: int, held: Sequence[_Slice]) -> Event:
    i = held[0].microbatch
    name = f"micro-batch {i} {chr(ord('A') + i % len(NAMES))}"
    facts: Event = {"micro-batch": i, "operators": len(held)}
    return _complete(process, track, _Slice(name, "micro-batch", i, held[0].begin, held[-1].end, facts))


def _spread(messages: Iterable[tuple[_Slice, Instruction]]) -> list[list[tuple[_Slice, Instruction]]]:
    """Messages so that none overlaps another, over as few lanes as there are at once."""
    lanes: list[list[tuple[_Slice, Instruction]]] = []
    for item in sorted(messages, key=lambda m: (m[0].begin, m[0].end)):
        lane = next((lane for lane in lanes if lane[-1][0].end <= item[0].begin), None)
        if lane is None:
            lanes.append([item])
        else:
            lane.append(item)
    return lanes
