"""Why accelerators waited in a run: for a value, for the others of their set, for the turn of a micro-batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from compiler.runtime.measured import measured
from compiler.runtime.recorded import Line, Run
from compiler.targets.text import ranges
from dialects.programs import ALL_GATHER, COMPUTE, FREE, RECV, SEND, UPDATE, Instruction

SHORTEST = 1000
"""Waits of less than the measured period over this are not told: that is what the machine itself takes."""


@dataclass(frozen=True)
class Wait:
    """An accelerator waited in ``[begin, end)`` for an instruction about ``microbatch``."""

    begin: int
    end: int
    why: str
    microbatch: int


class Story:
    """What happened on every accelerator, line by line, and what it waited for."""

    def __init__(self, run: Run):
        self.job = run.job
        self.period = measured(run).period
        self.lines = {p: list(run.lines(p)) for p in run.job.accelerators}
        self.brought: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        """Accelerator, value and micro-batch → when its pieces came, and from whom."""
        self.came: dict[tuple[int, int, int], dict[int, Line]] = {}
        """Kind of instruction, operator or optimizer step, and micro-batch → accelerator → its part."""
        for p, lines in self.lines.items():
            for line in lines:
                x = line.what
                if x.kind == RECV:
                    value = p, *x.buffer, x.microbatch
                    self.brought.setdefault(value, []).append((line.end, x.peer))
                elif x.kind in (COMPUTE, UPDATE):
                    self.came.setdefault((x.kind, x.subject, x.microbatch), {})[p] = line

    def value(self, x: Instruction) -> str:
        """What an instruction other than a compute is about: ``h of micro-batch 3``."""
        subject = self.job.inputs[-1 - x.subject] if x.subject < 0 else self.job.operators[x.subject].results[x.result]
        return f"{subject.name} of micro-batch {x.microbatch}"

    def waits(self, p: int) -> Iterator[Wait]:
        """The waits of an accelerator, one after the other. Messages may have left before their place came."""
        least = self.period / SHORTEST
        now = 0
        for line in sorted(self.lines[p], key=lambda line: (line.arrive, line.end)):
            for begin, end, why in self._reasons(p, line):
                if end - max(begin, now) > least:
                    yield Wait(max(begin, now), end, why, line.what.microbatch)
            now = max(now, line.end)

    def _reasons(self, p: int, line: Line) -> Iterator[tuple[int, int, str]]:
        x = line.what
        if x.kind == COMPUTE:
            yield from self._operands(p, line)
        elif x.kind == UPDATE:
            yield from self._gradients(p, line)
        elif x.kind == SEND:
            yield line.arrive, line.start, f"waits to send {self.value(x)} to accelerator {x.peer}"
        elif x.kind == ALL_GATHER:
            there, why = self._arrival(p, x.buffer, x.microbatch, line.arrive)
            first = min(there, line.start)
            yield line.arrive, first, why
            group = ranges(self.job.groups[p][x.peer])
            yield first, line.start, f"waits to gather {self.value(x)} on accelerators {group}"
        elif x.kind == RECV:
            yield line.arrive, line.start, f"waits for {self.value(x)} from accelerator {x.peer}"
        elif x.kind == FREE:
            yield line.arrive, line.start, f"waits to free {self.value(x)}"

    def _operands(self, p: int, line: Line) -> Iterator[tuple[int, int, str]]:
        """What an operator waited for: its operands, then the others of its set, then its turn."""
        operator, i = self.job.operators[line.what.subject], line.what.microbatch
        there, why = self._ready(p, line)
        came = self.came[COMPUTE, line.what.subject, i]
        others = [(self._ready(q, other)[0], q) for q, other in came.items() if q != p]
        together, last = max(others, default=(0, p))
        first = min(max(there, line.arrive), line.start)
        second = min(max(together, first), line.start)
        turn = f"waits for the turn of micro-batch {i}" if operator.source and self.job.settings.paced else None
        found = [
            (line.arrive, first, why),
            (first, second, f"waits for accelerator {last} to come to {operator.name} of micro-batch {i}"),
            (second, line.start, turn or f"waits to begin {operator.name} of micro-batch {i}"),
        ]
        yield from ((begin, end, reason) for begin, end, reason in found if end > begin)

    def _gradients(self, p: int, line: Line) -> Iterator[tuple[int, int, str]]:
        """What an optimizer step waited for: gradients of other accelerators, then the others of its set."""
        x = line.what
        name = f"{self.job.updates[x.subject].name} after micro-batch {x.microbatch}"
        found: list[tuple[int, str]] = []
        for v, giver in self.job.givers(x.subject).items():
            for i in range(x.microbatch + 1 - self.job.per_pattern, x.microbatch + 1):
                end = self.came[COMPUTE, v, i][giver].end
                what = f"waits for {self.job.operators[v].name} of micro-batch {i} on accelerator {giver}"
                found.append((end, what))
        there, why = max(found, default=(0, ""))
        for q, other in self.came[UPDATE, x.subject, x.microbatch].items():
            if q != p and other.arrive > there:
                there, why = other.arrive, f"waits for accelerator {q} to come to {name}"
        first = min(max(there, line.arrive), line.start)
        yield line.arrive, first, why
        yield first, line.start, f"waits to begin {name}"

    def _ready(self, p: int, line: Line) -> tuple[int, str]:
        """When an accelerator had come to an operator and had its operands, and which of these came last."""
        operator, i = self.job.operators[line.what.subject], line.what.microbatch
        last, why = line.arrive, ""
        for read in operator.reads:
            value = (read.subject, read.result, read.destination)
            end, reason = self._arrival(p, value, i - read.distance, last)
            last, why = (end, reason) if end > last else (last, why)
        return last, why

    def _arrival(self, p: int, value: tuple[int, int, int], microbatch: int, since: int) -> tuple[int, str]:
        """When the last piece of a value came to an accelerator after ``since``, if any did, and what waits for it."""
        end, peer = max(self.brought.get((p, *value, microbatch), ()), default=(0, p))
        if end <= since:
            return since, ""
        name = self.job.operators[value[0]].results[value[1]].name
        return end, f"waits for {name} of micro-batch {microbatch} from accelerator {peer}"
