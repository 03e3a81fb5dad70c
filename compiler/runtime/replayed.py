"""What a run should show at the speed of this machine: its programs replayed with the times that were measured.

The platform's times say nothing about a real run on another machine. Given how long each operator and message took in
the middle, :mod:`compiler.simulate.replay` says what the order of the programs makes of them.
"""

from __future__ import annotations

import statistics
from bisect import bisect_right
from collections.abc import Iterator

import numpy as np
from xdsl.dialects.builtin import ModuleOp

from compiler.runtime.measured import Figures
from compiler.runtime.recorded import Line, Run, lines_of
from compiler.simulate.replay import replay
from compiler.view import Accelerators
from dialects.programs import ALL_GATHER, COMPUTE, FREE, RECV, SEND, UPDATE, Instruction

Key = tuple[int, ...]


def replayed(module: ModuleOp, run: Run) -> Figures:
    """The figures of the programs of ``module``, with the median time of each operator on each set and each message.

    The replay is as strict as a runtime may be: a message keeps both ends until it is there.
    """
    operators, moves = _operator_times(run), _move_times(run)

    def moving(x: Instruction, among: Accelerators) -> int:
        return moves.get((*_value(x), *among), 0)

    report = replay(module, 0, moving, lambda x, among: operators.get((x.kind, x.subject, *among), 0))
    latencies = [end - begin for begin, end in zip(report.begun, report.completed, strict=True)]
    period = float(report.period)
    load = {p: busy / (report.microbatches * period or 1.0) for p, busy in report.busy.items()}
    return Figures(period, statistics.median(latencies), max(latencies), load)


def _reported(run: Run) -> Iterator[tuple[int, Line]]:
    for p in run.job.accelerators:
        yield from ((p, line) for line in lines_of(*run.reported(p)))


def _value(x: Instruction) -> Key:
    return x.kind == ALL_GATHER, x.subject, x.result, x.destination, x.begin, x.end


def _operator_times(run: Run) -> dict[Key, int]:
    """Operator or optimizer step and the set that did it → how long it took; of a set, as long as its slowest one."""
    slowest: dict[Key, int] = {}
    for _, line in _reported(run):
        x = line.what
        if x.kind in (COMPUTE, UPDATE):
            which = x.kind, x.subject, x.microbatch
            slowest[which] = max(slowest.get(which, 0), line.end - line.start)
    found: dict[Key, list[int]] = {}
    for (kind, subject, microbatch), time in slowest.items():
        place = run.job.operators[subject].on(microbatch) if kind == COMPUTE else run.job.updates[subject].on
        found.setdefault((kind, subject, *place), []).append(time)
    return _medians(found)


def _move_times(run: Run) -> dict[Key, int]:
    """Message or all-gather and who takes part → how long it took from when all ends were ready for it.

    A message is seen when its receiver looks for it: it took no longer than from then on, or from when it was sent.
    """
    found: dict[Key, list[int]] = {}
    sent: dict[Key, int] = {}
    received: dict[Key, tuple[int, int]] = {}
    looked = {p: _came(run, p) for p in run.job.accelerators}
    for p, line in _reported(run):
        x = line.what
        if x.kind == SEND:
            sent[*_value(x), p, x.peer, x.microbatch] = line.start
        elif x.kind == RECV:
            at = bisect_right(looked[p], line.end)
            looks = looked[p][at - 1] if at else 0
            received[*_value(x), x.peer, p, x.microbatch] = max(line.arrive, looks), line.end
        elif x.kind == ALL_GATHER:
            found.setdefault((*_value(x), *run.job.groups[p][x.peer]), []).append(line.end - line.start)
    for (*which, microbatch), (ready, there) in received.items():
        begun = sent.get((*which, microbatch), there)
        found.setdefault(tuple(which), []).append(max(0, there - max(begun, ready)))
    return _medians(found)


def _came(run: Run, p: int) -> list[int]:
    """When an accelerator came to instructions that may wait for messages, in order."""
    rows, events = run.reported(p)
    return sorted(events["arrive"][np.isin(rows[:, 0], (COMPUTE, FREE))].tolist())


def _medians(found: dict[Key, list[int]]) -> dict[Key, int]:
    return {which: int(statistics.median(times)) for which, times in found.items()}
