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
from functools import cached_property
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING

from passes.scheduling.data import Dependence, Input, InvalidProblem, Operation, Solution, Table, Violation
from passes.scheduling.lifetimes import Holding, held_sets, peak_of
from passes.scheduling.together import Items, apart, broken_groups, item_tables, items_of, once, stored

if TYPE_CHECKING:
    import networkx as nx


@dataclass(frozen=True)
class Problem:
    """Operations and the dependences between them."""

    operations: tuple[Operation, ...]
    dependences: tuple[Dependence, ...] = ()
    inputs: tuple[Input, ...] = ()

    # --- derived ------------------------------------------------------------------------------

    @cached_property
    def predecessors(self) -> tuple[tuple[int, ...], ...]:
        """Producers that each operation reads in the same micro-batch, without repetition."""
        found: list[dict[int, None]] = [{} for _ in self.operations]
        for d in self.dependences:
            if d.distance == 0:
                found[d.consumer][d.producer] = None
        return tuple(tuple(f) for f in found)

    @cached_property
    def successors(self) -> tuple[tuple[int, ...], ...]:
        """Consumers of each operation in the same micro-batch, without repetition."""
        found: list[dict[int, None]] = [{} for _ in self.operations]
        for d in self.dependences:
            if d.distance == 0:
                found[d.producer][d.consumer] = None
        return tuple(tuple(f) for f in found)

    @cached_property
    def graph(self) -> nx.DiGraph[int]:
        """Operations, and the dependences inside one micro-batch."""
        import networkx as nx  # takes a third of a second, which only scheduling needs

        graph: nx.DiGraph[int] = nx.DiGraph()
        graph.add_nodes_from(range(len(self.operations)))
        graph.add_edges_from((d.producer, d.consumer) for d in self.dependences if d.distance == 0)
        return graph

    @cached_property
    def topological(self) -> tuple[int, ...]:
        """The topological order that follows the numbering where it can."""
        import networkx as nx

        return tuple(nx.lexicographical_topological_sort(self.graph))

    # --- input --------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise :class:`InvalidProblem` unless the input is sane."""
        found = list(self.input_violations())
        if found:
            raise InvalidProblem(found)

    def input_violations(self) -> Iterator[Violation]:
        """All broken rules of the input; later rules only once the earlier ones hold."""
        earlier = [*self.check_tables(), *self.check_dependences()]
        yield from earlier
        if not earlier:
            yield from self.check_acyclic()

    def check_tables(self) -> Iterator[Violation]:
        """Every table has an allotment, all allotments are positive and no number is negative."""
        seen: set[int] = set()
        for v, operation in enumerate(self.operations):
            if id(operation.table) in seen:
                continue
            seen.add(id(operation.table))
            if not operation.table:
                yield Violation("table", f"operation '{operation.name}' has no allotment", (v,))
            for k, c in operation.table.items():
                if k < 1:
                    yield Violation("table", f"operation '{operation.name}' has the allotment {k}", (v,))
                if min(c.time, c.params, c.output, c.workspace) < 0:
                    yield Violation("table", f"operation '{operation.name}' has a negative cost at {k}", (v,))

    def check_dependences(self) -> Iterator[Violation]:
        """Dependences and inputs name existing operations; sizes and distances are not negative."""
        n = len(self.operations)
        for d in self.dependences:
            if not (0 <= d.producer < n and 0 <= d.consumer < n):
                yield Violation("dependence", f"dependence {d.producer} to {d.consumer} of {n} operations")
            if d.bytes < 0 or d.distance < 0:
                yield Violation(
                    "dependence", f"dependence {d.producer} to {d.consumer} has a negative size or distance"
                )
        for i in self.inputs:
            if i.bytes < 0 or any(not 0 <= c < n for c in i.consumers):
                yield Violation("dependence", f"input '{i.name}' has a negative size or an unknown consumer")

    def check_acyclic(self) -> Iterator[Violation]:
        """Dependences of distance 0 form no cycle."""
        import networkx as nx

        if not nx.is_directed_acyclic_graph(self.graph):
            cycle: list[int] = [edge[0] for edge in nx.find_cycle(self.graph)]  # pyright: ignore
            names = " -> ".join(f"'{self.operations[v].name}'" for v in (*cycle, cycle[0]))
            yield Violation("acyclic", f"operations wait for each other in one micro-batch: {names}", tuple(cycle))

    # --- solution -----------------------------------------------------------------------------

    def verify(self, solution: Solution) -> None:
        """Raise :class:`InvalidProblem` unless ``solution`` is valid."""
        found = self.violations(solution)
        if found:
            raise InvalidProblem(found)

    def violations(self, solution: Solution) -> list[Violation]:
        """Every rule that ``solution`` breaks; rules that need sane sets come after the rules of sets."""
        found = list(self.verify_shape(solution)) or list(self.verify_allotments(solution))
        return found or list(self.verify_times(solution))

    def verify_shape(self, s: Solution) -> Iterator[Violation]:
        """One allotment, set and start for each operation."""
        n = len(self.operations)
        if not len(s.allotments) == len(s.sets) == len(s.starts) == n:
            yield Violation("shape", f"the solution is not of {n} operations")

    def verify_allotments(self, s: Solution) -> Iterator[Violation]:
        """Every allotment is in the operation's table."""
        for v, (operation, k) in enumerate(zip(self.operations, s.allotments, strict=True)):
            if k not in operation.table:
                yield Violation("allotment", f"operation '{operation.name}' cannot run on {k} accelerators", (v,))

    def verify_times(self, s: Solution) -> Iterator[Violation]:
        """Rules that concern time."""
        yield from self.verify_precedence(s)

    def verify_precedence(self, s: Solution) -> Iterator[Violation]:
        """A value is read no sooner than it is produced."""
        for d in self.dependences:
            ready, reads = self.end(s, d.producer), s.starts[d.consumer] + d.distance * s.period
            if reads < ready:
                yield Violation(
                    "precedence",
                    f"'{self.operations[d.consumer].name}' starts at {reads} ns"
                    f" but reads '{self.operations[d.producer].name}', which ends at {ready} ns",
                    (d.producer, d.consumer),
                )

    def time(self, s: Solution, v: int) -> int:
        """Running time of operation ``v`` in ``s``."""
        return self.operations[v].table[s.allotments[v]].time

    def end(self, s: Solution, v: int) -> int:
        """End of instance 0 of operation ``v``."""
        return s.starts[v] + self.time(s, v)

    def latency(self, s: Solution) -> int:
        """Time from the first start to the last end of one micro-batch."""
        if not self.operations:
            return 0
        return max(self.end(s, v) for v in range(len(self.operations))) - min(s.starts)

    def in_flight(self, s: Solution) -> int:
        """Micro-batches being worked on at once."""
        return -(-self.latency(s) // s.period)


@dataclass(frozen=True)
class MoldableProblem(Problem):
    """Operations run on sets of identical accelerators; each table says how many it may use."""

    accelerators: int = 1
    group_size: int = 0
    """Size of the innermost group of accelerators; 0: one group of all."""
    together: tuple[tuple[int, ...], ...] = field(default=(), kw_only=True)
    """Groups of operations that share parameters: one allotment, one set, parameters stored once."""

    @property
    def group(self) -> int:
        """Size of the innermost group, at most the number of accelerators."""
        return min(self.group_size or self.accelerators, self.accelerators)

    @cached_property
    def items(self) -> Items:
        """What is placed as one: the sorted operations of each group, and every other operation alone."""
        return items_of(len(self.operations), self.together)

    @cached_property
    def item_tables(self) -> tuple[Table, ...]:
        """Table of each item: of a group times added and parameters once (see ``merged``); equal items share one."""
        return item_tables(self.operations, self.items)

    def input_violations(self) -> Iterator[Violation]:
        earlier = list(super().input_violations())
        yield from earlier
        yield from self.check_accelerators()
        if not earlier:
            yield from broken_groups(self.operations, self.together, self.accelerators)

    def check_accelerators(self) -> Iterator[Violation]:
        """Every operation has an allotment that the platform can give."""
        if self.accelerators < 1:
            yield Violation("accelerators", f"a platform of {self.accelerators} accelerators")
            return
        for v, operation in enumerate(self.operations):
            if operation.table and min(operation.table) > self.accelerators:
                yield Violation(
                    "accelerators",
                    f"operation '{operation.name}' needs {min(operation.table)} accelerators,"
                    f" the platform has {self.accelerators}",
                    (v,),
                )

    def violations(self, solution: Solution) -> list[Violation]:
        found = list(self.verify_shape(solution)) or [
            *self.verify_allotments(solution),
            *self.verify_sets(solution),
            *self.verify_together(solution),
        ]
        return found or list(self.verify_times(solution))

    def verify_sets(self, s: Solution) -> Iterator[Violation]:
        """A set holds as many different accelerators of the platform as the allotment says."""
        for v, (operation, k, members) in enumerate(zip(self.operations, s.allotments, s.sets, strict=True)):
            if len(set(members)) != len(members) or len(members) != k:
                yield Violation(
                    "sets", f"operation '{operation.name}' has allotment {k} but the set {list(members)}", (v,)
                )
            elif any(not 0 <= p < self.accelerators for p in members):
                yield Violation("sets", f"operation '{operation.name}' uses accelerators outside the platform", (v,))

    def verify_together(self, s: Solution) -> Iterator[Violation]:
        """Operations that share parameters run on one set."""
        yield from apart(self.operations, self.items, s)


@dataclass(frozen=True)
class PeriodicProblem(MoldableProblem):
    """The graph is repeated once a period; each operation keeps its accelerators."""

    def verify_times(self, s: Solution) -> Iterator[Violation]:
        if s.period < 1:
            yield Violation("period", f"the period is {s.period} ns")
            return
        yield from self.verify_origin(s)
        yield from self.verify_precedence(s)
        yield from self.verify_exclusive(s)

    def verify_origin(self, s: Solution) -> Iterator[Violation]:
        """The first operation starts at 0."""
        if s.starts and min(s.starts) != 0:
            yield Violation("origin", f"the first operation starts at {min(s.starts)} ns, not at 0")

    def verify_exclusive(self, s: Solution) -> Iterator[Violation]:
        """No two operations of one accelerator overlap modulo the period, and none overlaps itself."""
        for v, operation in enumerate(self.operations):
            if self.time(s, v) > s.period:
                yield Violation(
                    "exclusive",
                    f"'{operation.name}' takes {self.time(s, v)} ns, longer than the period of {s.period} ns",
                    (v,),
                )
        reported: set[tuple[int, int]] = set()
        for members, sharing in held_sets(s.sets):
            running = sorted((s.starts[v] % s.period, v) for v in sharing if self.time(s, v))
            if not running:
                continue
            for (a, u), (b, v) in pairwise([*running, (running[0][0] + s.period, running[0][1])]):
                if u != v and a + self.time(s, u) > b and (u, v) not in reported:
                    reported.add((u, v))
                    yield self._overlap(s, members[0], u, v)

    def _overlap(self, s: Solution, accelerator: int, u: int, v: int) -> Violation:
        def run(w: int) -> str:
            begin = s.starts[w] % s.period
            return f"'{self.operations[w].name}' in [{begin}, {begin + self.time(s, w)})"

        return Violation(
            "exclusive", f"accelerator {accelerator} runs {run(u)} and {run(v)} ns modulo {s.period}", (u, v)
        )

    def loads(self, s: Solution) -> list[int]:
        """Busy nanoseconds of each accelerator in one period."""
        load = [0] * self.accelerators
        for members, sharing in held_sets(s.sets):
            busy = sum(self.time(s, v) for v in sharing)
            for p in members:
                load[p] = busy
        return load


@dataclass(frozen=True)
class MemoryProblem(PeriodicProblem):
    """Each accelerator holds parameters and live values in ``memory`` bytes (0: memory is not looked at)."""

    memory: int = 0

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
        keys = list({**held, **params})
        found: dict[int, tuple[int, int]] = {}
        for members, sharing in held_sets(keys):
            live = [h for i in sharing for h in held[keys[i]]]
            mine = once(pair for i in sharing for pair in params.get(keys[i], ()))
            result = (mine, peak_of(live, s.period))
            found.update(dict.fromkeys(members, result))
        return found

    def crossing(self, s: Solution) -> int:
        """Bytes per micro-batch of values read on another set than they are produced on, once for each such set."""
        sent = {(d.producer, d.result, s.sets[d.consumer]): d.bytes for d in self.dependences}
        return sum(size for (u, _, readers), size in sent.items() if readers != s.sets[u])

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
        """Set → bytes held on each of its accelerators for an interval of every micro-batch."""
        readers: list[list[Dependence]] = [[] for _ in self.operations]
        for d in self.dependences:
            readers[d.producer].append(d)
        for v, mine in enumerate(s.sets):
            cost, start, end = self.operations[v].table[s.allotments[v]], s.starts[v], self.end(s, v)
            yield mine, Holding(start, end, cost.workspace)
            last = end
            foreign: dict[tuple[int, ...], tuple[int, dict[int, int]]] = {}
            for d in readers[v]:
                theirs, done = s.sets[d.consumer], self.end(s, d.consumer) + d.distance * s.period
                if theirs == mine:
                    last = max(last, done)
                else:
                    until, results = foreign.get(theirs, (end, {}))
                    foreign[theirs] = (max(until, done), {**results, d.result: d.bytes})
            yield mine, Holding(start, last, cost.output)
            for theirs, (until, results) in foreign.items():
                yield theirs, Holding(end, until, sum(results.values()))
        for value in self.inputs:
            spans: dict[tuple[int, ...], tuple[int, int]] = {}
            for c in value.consumers:
                begin, until = spans.get(s.sets[c], (s.starts[c], s.starts[c]))
                spans[s.sets[c]] = (min(begin, s.starts[c]), max(until, self.end(s, c)))
            for theirs, (begin, until) in spans.items():
                yield theirs, Holding(begin, until, value.bytes)


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
            if not allowed.issuperset(s.sets[v]):
                yield Violation(
                    "blocks", f"operation '{operation.name}' leaves the block of stage {self.homes[v]}", (v,)
                )
