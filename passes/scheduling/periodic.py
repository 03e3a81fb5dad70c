"""Operations, dependences, accelerators and repetition: problems without memory.

``Problem`` (operations and dependences) → ``MoldableProblem`` (accelerators and their sets) →
``PeriodicProblem`` (repetition). See ``problem.py`` for how problem classes are used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

from passes.scheduling.copies import broken_copies, unrolled
from passes.scheduling.crossings import Need, broken_transfers, destination_of, needs_of, overbooked, targets_of
from passes.scheduling.data import Dependence, Input, InvalidProblem, Operation, Solution, Table, Transfer, Violation
from passes.scheduling.lifetimes import held_sets
from passes.scheduling.network import Network
from passes.scheduling.together import Items, apart, broken_groups, item_tables, items_of

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

    def transfer_time(self, s: Solution, d: Dependence) -> int:
        """Time in ns from the end of the producer until its value is where it is read: 0; a subclass may know links."""
        return 0

    def verify_precedence(self, s: Solution) -> Iterator[Violation]:
        """A value is read no sooner than it is produced, and moved to where it is read."""
        for d in self.dependences:
            ready = self.end(s, d.producer) + self.transfer_time(s, d)
            reads = s.starts[d.consumer] + d.distance * s.period
            if reads < ready:
                yield Violation(
                    "precedence",
                    f"'{self.operations[d.consumer].name}' starts at {reads} ns"
                    f" but reads '{self.operations[d.producer].name}', which is there at {ready} ns",
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
    copies: int = field(default=1, kw_only=True)
    """Most copies of an operation, each on a set of its own."""
    filled: bool = field(default=False, kw_only=True)
    """Whether every operation runs on all accelerators of the block granted to its stage."""
    network: Network | None = field(default=None, kw_only=True)
    """The links that transfers occupy; None: values are wherever they are read, at no cost."""

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
        if s.more:
            yield from broken_copies(self.operations, s, self.accelerators, self.copies)

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
        needs = self.needs(s)
        broken = list(broken_transfers(self.operations, self.network, needs, s))
        yield from broken
        yield from self.verify_precedence(s)
        yield from self.verify_exclusive(s)
        if not broken and self.network is not None and s.transfers:
            yield from overbooked(self.operations, self.network, needs, s)

    def needs(self, s: Solution) -> list[Need]:
        """The transfers that ``s`` must have, with what each takes in its turns."""
        return needs_of(self.network, self.dependences, s)

    def transfer_time(self, s: Solution, d: Dependence) -> int:
        """Time in ns from the end of the producer until its value may be read; 0 where nothing moves."""
        found = self.transfer_of(s, d)
        return 0 if found is None else found.ready - self.end(s, d.producer)

    def transfer_of(self, s: Solution, d: Dependence) -> Transfer | None:
        """The transfer that serves ``d``; None where nothing moves."""
        if self.network is None or not s.transfers or not d.bytes:
            return None
        return s.arrivals.get(destination_of(self.network, d, targets_of(s, d)))

    def verify_origin(self, s: Solution) -> Iterator[Violation]:
        """The first operation starts at 0."""
        if s.starts and min(s.starts) != 0:
            yield Violation("origin", f"the first operation starts at {min(s.starts)} ns, not at 0")

    def verify_exclusive(self, s: Solution) -> Iterator[Violation]:
        """No two operations of one accelerator overlap modulo the pattern, and none overlaps itself.

        The pattern is the period, or as many periods as it takes until all copies are used as before.
        """
        for v, operation in enumerate(self.operations):
            copies = len(s.copies(v))
            if self.time(s, v) > copies * s.period:
                yield Violation(
                    "exclusive",
                    f"'{operation.name}' takes {self.time(s, v)} ns, longer than the period of {s.period} ns"
                    + (f" with {copies} copies" if copies > 1 else ""),
                    (v,),
                )
        reported: set[tuple[int, int]] = set()
        runs, sets = unrolled(s)
        cycle = s.repetition * s.period
        for members, sharing in held_sets(sets):
            held = (runs[j] for j in sharing)
            running = sorted(((s.starts[v] + i * s.period) % cycle, v) for i, v in held if self.time(s, v))
            if not running:
                continue
            for (a, u), (b, v) in pairwise([*running, (running[0][0] + cycle, running[0][1])]):
                if u != v and a + self.time(s, u) > b and (u, v) not in reported:
                    reported.add((u, v))
                    yield self._overlap(s, members[0], (a, u), (b % cycle, v), cycle)

    def _overlap(
        self, s: Solution, accelerator: int, first: tuple[int, int], second: tuple[int, int], cycle: int
    ) -> Violation:
        def run(begin: int, w: int) -> str:
            return f"'{self.operations[w].name}' in [{begin}, {begin + self.time(s, w)})"

        message = f"accelerator {accelerator} runs {run(*first)} and {run(*second)} ns modulo {cycle}"
        return Violation("exclusive", message, (first[1], second[1]))

    def loads(self, s: Solution) -> list[int]:
        """Busy nanoseconds of each accelerator in one period, rounded up where copies take turns."""
        load = [0] * self.accelerators
        runs, sets = unrolled(s)
        for members, sharing in held_sets(sets):
            busy = -(-sum(self.time(s, runs[j][1]) for j in sharing) // s.repetition)
            for p in members:
                load[p] = busy
        return load
