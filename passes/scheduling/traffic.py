"""Operations and transfers of a schedule as nodes of one graph, and the resources that both occupy as *lines*.

Transfers are nodes after the operations: one for each transfer, or, where a buffer lies in between, one for the copy of
a value out of its set, and one for each destination where it arrives. A line is a resource, or several that the same
nodes occupy in the same turns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from heapq import heapify, heappop, heappush
from math import gcd, lcm

from passes.scheduling.circles import Circle, Segment, demand
from passes.scheduling.crossings import Need
from passes.scheduling.data import Solution, Transfer
from passes.scheduling.network import COMPUTE, Resource
from passes.scheduling.problem import PeriodicProblem
from passes.scheduling.recurrence import Back

Turns = tuple[frozenset[Resource], ...]


class Traffic:
    """The nodes of ``solution``, which has no transfers, on the links of ``problem``."""

    def __init__(self, problem: PeriodicProblem, solution: Solution):
        assert problem.network is not None
        self.problem, self.solution, self.network = problem, solution, problem.network
        self.needs: list[Need] = problem.needs(solution)
        self.operations = len(problem.operations)
        self.times = [problem.time(solution, v) for v in range(self.operations)]
        self.before: list[list[int]] = [[] for _ in self.times]
        """Nodes whose end each node waits for, in the same micro-batch."""
        self.back: list[Back] = []
        """Nodes that wait for nodes of earlier micro-batches."""
        self.leaves: list[int] = []
        """The node at which each needed transfer starts."""
        self.lands: list[int] = []
        """The node at which it arrives."""
        self._turns: list[Turns] = [
            tuple(frozenset((COMPUTE, -1, p, p) for p in members) for members in solution.copies(v)) if time else ()
            for v, time in enumerate(self.times)
        ]
        if self.network.mode == "buffered":
            self._add_buffered()
        else:
            for need in self.needs:
                self._add(need.time, tuple(p.both for p in need.prices), need.producer)
                self.leaves.append(len(self.times) - 1)
            self.lands = self.leaves
        self._wait()

    def _add(self, time: int, turns: Turns, after: int) -> int:
        self.times.append(time)
        self._turns.append(turns)
        self.before.append([after])
        return len(self.times) - 1

    def _add_buffered(self) -> None:
        values: dict[tuple[int, int], list[Need]] = {}
        for need in self.needs:
            values.setdefault((need.producer, need.result), []).append(need)
        copies: dict[tuple[int, int], int] = {}
        for (u, result), mine in values.items():
            rounds = lcm(*(len(need.prices) for need in mine))
            turns = tuple(frozenset[Resource]().union(*(n.price_of(i).send for n in mine)) for i in range(rounds))
            copies[u, result] = self._add(max(need.time for need in mine), turns, u)
        for need in self.needs:
            copy = copies[need.producer, need.result]
            self.leaves.append(copy)
            self.lands.append(self._add(self.times[copy], tuple(p.receive for p in need.prices), copy))

    def _wait(self) -> None:
        arrival = {id(d): self.lands[j] for j, need in enumerate(self.needs) for d in need.dependences}
        back: dict[tuple[int, int], int] = {}
        before: list[dict[int, None]] = [{} for _ in range(self.operations)]
        for d in self.problem.dependences:
            u = arrival.get(id(d), d.producer)
            if d.distance:
                back[u, d.consumer] = min(back.get((u, d.consumer), d.distance), d.distance)
            else:
                before[d.consumer][u] = None
        for v, mine in enumerate(before):
            self.before[v] = list(mine)
        self.back = [(u, v, distance) for (u, v), distance in back.items()]

    @cached_property
    def after(self) -> list[list[int]]:
        """The nodes of transfers that follow each node."""
        found: list[list[int]] = [[] for _ in self.times]
        for node in range(self.operations, len(self.times)):
            found[self.before[node][0]].append(node)
        return found

    # --- resources ----------------------------------------------------------------------------

    @cached_property
    def _lines(self) -> tuple[list[int], list[list[tuple[int, ...]]]]:
        """Capacity of each line, and the lines that each node occupies in each of its turns."""
        held: dict[Resource, list[tuple[int, int]]] = {}
        for node, turns in enumerate(self._turns):
            for turn, resources in enumerate(turns):
                for resource in resources:
                    held.setdefault(resource, []).append((node, turn))
        lines: dict[tuple[int, tuple[tuple[int, int], ...]], int] = {}
        uses: list[list[list[int]]] = [[[] for _ in turns] for turns in self._turns]
        capacities: list[int] = []
        for resource in sorted(held):
            mine = tuple(held[resource])
            key = (self.network.capacity(resource), mine)
            if key not in lines:
                lines[key] = len(lines)
                capacities.append(key[0])
                for node, turn in mine:
                    uses[node][turn].append(lines[key])
        return capacities, [[tuple(turn) for turn in turns] for turns in uses]

    @cached_property
    def capacities(self) -> list[int]:
        """Of each line."""
        return self._lines[0]

    @cached_property
    def turns(self) -> list[list[tuple[int, ...]]]:
        """The lines that each node occupies in each of its turns."""
        return self._lines[1]

    @cached_property
    def members(self) -> list[list[tuple[int, list[int], int]]]:
        """Of each line: the nodes, the turns in which they occupy it, and how many turns they have."""
        found: list[list[tuple[int, list[int], int]]] = [[] for _ in self.capacities]
        for node, turns in enumerate(self.turns):
            mine: dict[int, list[int]] = {}
            for turn, lines in enumerate(turns):
                for line in lines:
                    mine.setdefault(line, []).append(turn)
            for line, at in mine.items():
                found[line].append((node, at, len(turns)))
        return found

    @cached_property
    def cycles(self) -> list[int]:
        """Periods after which each line is used as before."""
        return [lcm(*(count for _, _, count in members)) for members in self.members]

    @cached_property
    def distances(self) -> list[int]:
        """Periods that lie between the micro-batches of each line, at least."""
        found: list[int] = []
        for members in self.members:
            first = members[0][1][0]
            found.append(gcd(*(count for _, _, count in members), *(i - first for _, at, _ in members for i in at)))
        return found

    def least_period(self) -> int:
        """The heaviest load of a line in a period, divided by what it carries at once."""
        least = 1
        for members, capacity, cycle in zip(self.members, self.capacities, self.cycles, strict=True):
            load = sum(self.times[node] * len(at) * (cycle // count) for node, at, count in members)
            least = max(least, -(-load // (capacity * cycle)))
        return least

    def footprints(self, period: int, nodes: Sequence[int]) -> dict[int, list[tuple[Circle, list[Segment]]]]:
        """Fresh circles of the lines that ``nodes`` occupy, and what each node asks of them."""
        circles: dict[int, Circle] = {}
        found: dict[int, list[tuple[Circle, list[Segment]]]] = {}
        for node in nodes:
            begins: dict[int, list[int]] = {}
            turns = self.turns[node]
            for turn, lines in enumerate(turns):
                for line in lines:
                    begins.setdefault(line, []).append(turn)
            mine = found[node] = []
            for line, at in begins.items():
                cycle = self.cycles[line]
                if line not in circles:
                    circles[line] = Circle(cycle * period, self.capacities[line])
                shifts = [(again + turn) * period for again in range(0, cycle, len(turns)) for turn in at]
                mine.append((circles[line], demand(shifts, self.times[node], cycle * period)))
        return found

    # --- parts --------------------------------------------------------------------------------

    @cached_property
    def parts(self) -> list[int]:
        """Part of each operation: those whose accelerators are connected by operations that take time.

        One that takes none belongs to the part that its accelerators are in, or is a part of its own.
        """
        root = list(range(self.problem.accelerators))

        def find(p: int) -> int:
            while root[p] != p:
                root[p] = root[root[p]]
                p = root[p]
            return p

        busy = [v for v in range(self.operations) if self.times[v]]
        for v in busy:
            first, *others = (p for members in self.solution.copies(v) for p in members)
            for p in others:
                root[find(p)] = find(first)
        parts = [-1 - v for v in range(self.operations)]
        for v in range(self.operations):
            own = {find(p) for members in self.solution.copies(v) for p in members}
            if len(own) == 1:
                parts[v] = own.pop()
        return parts

    @cached_property
    def ranks(self) -> list[int]:
        """Place of each operation in a topological order that finishes what the parts wait for before they run."""
        import networkx as nx

        parts = self.parts
        graph: nx.DiGraph[int] = nx.DiGraph()
        graph.add_nodes_from(parts)
        graph.add_edges_from((parts[u], parts[v]) for v, mine in enumerate(self.problem.predecessors) for u in mine)
        components: list[set[int]] = list(nx.strongly_connected_components(graph))
        components.reverse()
        self._component = {part: number for number, component in enumerate(components) for part in component}
        position = {v: i for i, v in enumerate(self.problem.topological)}
        order = sorted(
            range(self.operations),
            key=lambda v: (self._component[parts[v]], self.solution.starts[v], position[v]),
        )
        ranks = [0] * self.operations
        for rank, v in enumerate(order):
            ranks[v] = rank
        return ranks

    def groups(self) -> list[list[int]]:
        """Operations of parts that wait for each other, each group after those it waits for, as the schedule starts."""
        order = sorted(range(self.operations), key=self.ranks.__getitem__)
        found: dict[int, list[int]] = {}
        for v in order:
            found.setdefault(self._component[self.parts[v]], []).append(v)
        return list(found.values())

    def runs(self) -> list[list[int]]:
        """All nodes in a topological order: as long a run of operations of one part as there is, then its transfers."""
        return list(self._runs())

    def _runs(self) -> Iterator[list[int]]:
        ranks, parts = self.ranks, self.parts
        waiting = [len(mine) for mine in self.problem.predecessors]
        ready: dict[int, list[int]] = {}
        heads = [(ranks[v], v) for v, count in enumerate(waiting) if not count]
        heapify(heads)
        for v in range(self.operations):
            if not waiting[v]:
                ready.setdefault(parts[v], []).append(ranks[v])
        for mine in ready.values():
            heapify(mine)
        at = sorted(range(self.operations), key=ranks.__getitem__)
        pending: dict[int, list[int]] = {}
        done = [False] * len(self.times)
        run: list[int] = []
        part = self.problem.accelerators  # none yet
        for _ in range(self.operations):
            while heads and done[heads[0][1]]:
                heappop(heads)
            if not ready.get(part):
                part = parts[heads[0][1]]
                if run:
                    yield run
                run = []
            v = at[heappop(ready[part])]
            late = list(dict.fromkeys(parts[self.producer(u)] for u in self.before[v] if not done[u]))
            if late:
                if run:
                    yield run
                run = []
                for source in late:
                    nodes = [node for u in pending.pop(source) for node in self._following(u)]
                    for node in nodes:
                        done[node] = True
                    yield nodes
            run.append(v)
            done[v] = True
            if self.after[v]:
                pending.setdefault(part, []).append(v)
            for w in self.problem.successors[v]:
                waiting[w] -= 1
                if not waiting[w]:
                    heappush(heads, (ranks[w], w))
                    heappush(ready.setdefault(parts[w], []), ranks[w])
        if run:
            yield run
        rest = [node for mine in pending.values() for u in mine for node in self._following(u)]
        if rest:
            yield rest

    def producer(self, node: int) -> int:
        """The operation whose value ``node`` moves; of an operation itself."""
        while node >= self.operations:
            node = self.before[node][0]
        return node

    def _following(self, v: int) -> Iterator[int]:
        for node in self.after[v]:
            yield node
            yield from self.after[node]

    # --- result -------------------------------------------------------------------------------

    def solution_of(self, period: int, starts: Sequence[int]) -> Solution:
        """The schedule in which the nodes have these starts; the first operation starts at 0."""
        first = min(starts[: self.operations], default=0)
        transfers = tuple(
            Transfer(
                need.producer,
                need.result,
                need.targets,
                starts[leaves] - first,
                self.times[leaves],
                starts[lands] - first,
                need.consumer,
            )
            for need, leaves, lands in zip(self.needs, self.leaves, self.lands, strict=True)
        )
        operations = tuple(start - first for start in starts[: self.operations])
        return replace(self.solution, period=period, starts=operations, transfers=transfers)
