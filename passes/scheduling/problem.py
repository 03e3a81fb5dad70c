"""Problems of periodic scheduling: what is given, what a solution is, and when it is valid.

A problem is a class. Its fields are the input; ``check()`` says whether the input is sane;
``verify(solution)`` whether a solution is valid. Each rule is one small method that yields the
violations it finds; a subclass adds its own. The objective is no part of a problem, and solvers are
functions that take the class they can solve.

``Problem`` (operations and dependences) → ``MoldableProblem`` (accelerators and their sets) →
``PeriodicProblem`` (repetition) → ``MemoryProblem`` → ``StagedProblem`` (granted blocks).

Times are integer nanoseconds, sizes integer bytes, operations and accelerators are numbered from 0.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType

from passes.scheduling.crossings import Received, share
from passes.scheduling.data import Dependence, Solution, Violation
from passes.scheduling.lifetimes import Holding, held_sets, peak_of
from passes.scheduling.periodic import MoldableProblem, PeriodicProblem, Problem
from passes.scheduling.together import once, stored
from passes.scheduling.versions import Updated, further

__all__ = ["MemoryProblem", "MoldableProblem", "PeriodicProblem", "Problem", "StagedProblem"]


@dataclass(frozen=True)
class MemoryProblem(PeriodicProblem):
    """Each accelerator holds parameters and live values in ``memory`` bytes (0: memory is not looked at)."""

    memory: int = 0
    asynchronous: int = field(default=0, kw_only=True)
    """Micro-batches after which parameters have a new version; 0: one version at a time."""
    updated: tuple[Updated, ...] = field(default=(), kw_only=True)
    """What has versions."""

    def input_violations(self) -> Iterator[Violation]:
        found = list(super().input_violations())
        yield from found
        if not found and self.memory:
            yield from self.check_parameters()

    def check_parameters(self) -> Iterator[Violation]:
        """Each operation (or group) alone, and the parameters of all together, fit in memory."""
        total = 0
        for (v, *others), table in zip(self.items, self.item_tables, strict=True):
            columns = [(k, c) for k, c in table.items() if k <= self.accelerators]
            least = min(c.params + (c.output + c.workspace if c.time else 0) for _, c in columns)
            total += min(k * c.params for k, c in columns)
            if least > self.memory:
                yield Violation(
                    "memory",
                    f"{'the group of ' if others else ''}operation '{self.operations[v].name}' alone needs at least"
                    f" {least} bytes on an accelerator of {self.memory}: {least - self.memory} bytes are missing",
                    (v,),
                    least - self.memory,
                )
        if total > self.memory * self.accelerators:
            each = -(-total // self.accelerators)
            yield Violation(
                "memory",
                f"the parameters need {total} bytes, {self.accelerators} accelerators have"
                f" {self.memory * self.accelerators}: {total - self.memory * self.accelerators} bytes are missing,"
                f" {each} bytes an accelerator would be the least",
                (),
                each - self.memory,
            )

    def verify_times(self, s: Solution) -> Iterator[Violation]:
        found = list(super().verify_times(s))
        yield from found
        if not found and self.memory:
            yield from self.verify_memory(s)

    def verify_memory(self, s: Solution) -> Iterator[Violation]:
        """Parameters and the peak of live values fit on every accelerator."""
        worst: tuple[int, int, int, int] | None = None
        for p, (params, peak) in self.peak_memory(s).items():
            if params + peak > self.memory and (worst is None or params + peak > worst[0]):
                worst = (params + peak, p, params, peak)
        if worst is not None:
            need, p, params, peak = worst
            yield Violation(
                "memory",
                f"accelerator {p} needs {need} bytes ({params} of parameters and {peak} of live values) and has"
                f" {self.memory}: {need - self.memory} bytes are missing",
                (),
                need - self.memory,
            )

    def peak_memory(self, s: Solution) -> dict[int, tuple[int, int]]:
        """Accelerator → (parameter bytes, peak bytes of live values in the steady state)."""
        held: defaultdict[tuple[int, ...], list[Holding]] = defaultdict(list)
        for members, holding in self.holdings(s):
            held[members].append(holding)
        params = stored(self.operations, self.items, s)
        for members, group, size in further(self.operations, s, self.updated, self.asynchronous):
            params[members].append((-1 - group, size))
        keys = list({**held, **params})
        found: dict[int, tuple[int, int]] = {}
        for members, sharing in held_sets(keys):
            live = [h for i in sharing for h in held[keys[i]]]
            mine = once(pair for i in sharing for pair in params.get(keys[i], ()))
            result = (mine, peak_of(live, s.repetition * s.period))
            found.update(dict.fromkeys(members, result))
        return found

    def crossing(self, s: Solution) -> int:
        """Bytes per micro-batch of values read on another set than they are produced on, once for each such set.

        Where copies take turns it is the mean over the pattern, rounded up.
        """
        total = 0
        for i in range(s.repetition):
            sent = {(d.producer, d.result, s.set_of(d.consumer, i + d.distance)): d.bytes for d in self.dependences}
            total += sum(size for (u, _, readers), size in sent.items() if readers != s.set_of(u, i))
        return -(-total // s.repetition)

    def staged(
        self,
        blocks: Sequence[tuple[int, ...]],
        homes: Sequence[int],
        shared: Mapping[int, int] = MappingProxyType({}),
    ) -> StagedProblem:
        """This problem with ``blocks`` granted to its stages, the home stage of each operation, and a second one."""
        given = {f.name: getattr(self, f.name) for f in fields(MemoryProblem)}
        return StagedProblem(**given, blocks=tuple(blocks), homes=tuple(homes), shared=dict(shared))

    def holdings(self, s: Solution) -> Iterator[tuple[tuple[int, ...], Holding]]:
        """Set → bytes held on each of its accelerators for an interval of every pattern of micro-batches."""
        readers: list[list[Dependence]] = [[] for _ in self.operations]
        for d in self.dependences:
            readers[d.producer].append(d)
        for i in range(s.repetition):
            yield from self._holdings_of(s, i, readers)

    def _holdings_of(
        self, s: Solution, i: int, readers: Sequence[Sequence[Dependence]]
    ) -> Iterator[tuple[tuple[int, ...], Holding]]:
        """The holdings of micro-batch ``i``."""
        shift = i * s.period
        for v, k in enumerate(s.allotments):
            mine, cost = s.set_of(v, i), self.operations[v].table[k]
            start, end = s.starts[v] + shift, self.end(s, v) + shift
            yield mine, Holding(start, end, cost.workspace, "workspace")
            last = end
            foreign: dict[tuple[int, ...], Received] = {}
            for d in readers[v]:
                theirs = s.set_of(d.consumer, i + d.distance)
                done = self.end(s, d.consumer) + d.distance * s.period + shift
                if theirs == mine:
                    last = max(last, done)
                    continue
                moved = self.transfer_of(s, d)
                there = foreign.setdefault(theirs, Received(None, end, {}))
                arrives = end if moved is None else moved.landing + shift
                there.add(arrives, done, d.result, share(d, theirs))
                if moved is not None:
                    last = max(last, moved.start + moved.time + shift)
            yield mine, Holding(start, last, cost.output, "result")
            for theirs, there in foreign.items():
                if there.begin is not None:
                    yield theirs, Holding(there.begin, there.until, sum(there.sizes.values()), "received value")
        for value in self.inputs:
            spans: dict[tuple[int, ...], tuple[int, int]] = {}
            for c in value.consumers:
                theirs = s.set_of(c, i)
                begin, until = spans.get(theirs, (s.starts[c], s.starts[c]))
                spans[theirs] = (min(begin, s.starts[c]), max(until, self.end(s, c)))
            for theirs, (begin, until) in spans.items():
                yield theirs, Holding(begin + shift, until + shift, value.bytes, "input")


@dataclass(frozen=True)
class StagedProblem(MemoryProblem):
    """Operations have a home stage whose block holds their set; a shared one may use a neighbour's block too."""

    blocks: tuple[tuple[int, ...], ...] = ()
    """Sorted accelerators granted to each stage; blocks are equal or disjoint."""
    homes: tuple[int, ...] = ()
    """Stage of each operation."""
    shared: Mapping[int, int] = field(default_factory=dict[int, int])
    """Operation → second stage, for the few that have one."""

    def granted(self, v: int) -> tuple[int, ...]:
        """The accelerators that operation ``v`` may use."""
        home = self.blocks[self.homes[v]]
        other = self.shared.get(v)
        return home if other is None else tuple(sorted({*home, *self.blocks[other]}))

    def granted_to(self, item: Sequence[int]) -> tuple[int, ...]:
        """The accelerators that all operations of ``item`` may use."""
        return tuple(sorted(set(self.granted(item[0])).intersection(*(self.granted(v) for v in item[1:]))))

    def input_violations(self) -> Iterator[Violation]:
        found = list(super().input_violations())
        yield from found
        if not found:
            found = list(self.check_blocks())
            yield from found or self.check_common_blocks()

    def check_blocks(self) -> Iterator[Violation]:
        """Homes exist, blocks are equal or disjoint, and every operation fits on what it was granted."""
        taken: dict[int, tuple[int, ...]] = {}
        for stage, block in enumerate(self.blocks):
            if not block:
                yield Violation("blocks", f"stage {stage} has no accelerators")
            for p in block:
                if taken.setdefault(p, block) != block:
                    yield Violation("blocks", f"the block of stage {stage} overlaps another block on accelerator {p}")
                    break
        for v, operation in enumerate(self.operations):
            if not 0 <= self.homes[v] < len(self.blocks):
                yield Violation("blocks", f"operation '{operation.name}' has the unknown stage {self.homes[v]}", (v,))
            elif min(operation.table) > len(self.granted(v)):
                yield Violation(
                    "blocks",
                    f"operation '{operation.name}' needs {min(operation.table)} accelerators,"
                    f" stage {self.homes[v]} grants {len(self.granted(v))}",
                    (v,),
                )
            elif self.filled:
                yield from self._check_filled(v)

    def _check_filled(self, v: int) -> Iterator[Violation]:
        """Operation ``v`` can run on all accelerators of its stage, and is of one stage only."""
        operation, stage = self.operations[v], self.homes[v]
        if v in self.shared:
            message = f"operation '{operation.name}' is shared by stages {stage} and {self.shared[v]}"
            yield Violation("allotments", f"{message}: it cannot run on all accelerators of its stage", (v,))
        elif len(self.blocks[stage]) not in operation.table:
            runs = ", ".join(map(str, sorted(operation.table)))
            message = f"operation '{operation.name}' runs on {runs} accelerators"
            yield Violation("allotments", f"{message}, not on all {len(self.blocks[stage])} of stage {stage}", (v,))

    def check_common_blocks(self) -> Iterator[Violation]:
        """The operations of a group fit on what all of them were granted."""
        for item, table in zip(self.items, self.item_tables, strict=True):
            if len(item) > 1 and min(table) > (width := len(self.granted_to(item))):
                a, b = (f"'{self.operations[v].name}'" for v in item[:2])
                message = f"{a} and {b} share parameters and need {min(table)} accelerators, all may use {width}"
                yield Violation("blocks", message, item)

    def verify_sets(self, s: Solution) -> Iterator[Violation]:
        yield from super().verify_sets(s)
        granted: dict[tuple[int, int | None], set[int]] = {}
        for v, operation in enumerate(self.operations):
            key = (self.homes[v], self.shared.get(v))
            allowed = granted.get(key) or granted.setdefault(key, set(self.granted(v)))
            if not all(allowed.issuperset(members) for members in s.copies(v)):
                yield Violation(
                    "blocks", f"operation '{operation.name}' leaves the block of stage {self.homes[v]}", (v,)
                )
            elif self.filled and s.allotments[v] != len(allowed):
                message = f"operation '{operation.name}' runs on {s.allotments[v]} of the {len(allowed)} accelerators"
                yield Violation("allotments", f"{message} of stage {self.homes[v]}", (v,))
