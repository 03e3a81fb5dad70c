"""Piper's BERT-32 with its links and memory, as its authors price them, in terms of ours.

A stage of Piper pays ``2·(bytes + synchronisation bytes)/bandwidth`` for each edge that it sends or receives along,
without computing meanwhile; the synchronisation bytes are those of its own degree of tensor parallelism. That is mode
``buffered`` with a copy for each edge. Here a copy takes as long at both ends: as the end that has more to synchronise.

Memory there is ``A·y + B`` for each operation, ``y`` the stages from its own to the last: as many micro-batches have
passed it and not come back. Here ``y`` is counted in windows: an operation is a window later than one it reads
from another set, which is the same where stages are contiguous.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from typing import Any

from passes.scheduling.bounds import best_bound
from passes.scheduling.budget import Budget
from passes.scheduling.data import Cost, Dependence, Operation, Solution
from passes.scheduling.network import COMPUTE, NOTHING, NS, Level, Members, Network, Price
from passes.scheduling.problem import MemoryProblem
from passes.scheduling.retime import from_offsets

BANDWIDTH = 25 * 2**30
"""Bytes per second between accelerators, in all rows of the reference values that have links."""

MICROBATCHES = 1920
"""Micro-batches after which parameters are synchronised."""

Pair = tuple[int, int]
Sync = Mapping[int, int]
"""Allotment → bytes to synchronise at an end that has it."""


@dataclass(frozen=True)
class PiperLinks(Network):
    """Every edge between sets costs both ends time; ``per_edge``: each reader anew, else each destination once."""

    per_edge: bool = True
    forward: Mapping[Pair, Sync] = field(default_factory=dict[Pair, Sync], compare=False, repr=False)
    """Producer and consumer → what the consumer synchronises."""
    backward: Mapping[Pair, Sync] = field(default_factory=dict[Pair, Sync], compare=False, repr=False)
    """The same of the producer."""

    def key(self, d: Dependence, targets: tuple[Members, ...]) -> Hashable:
        return (d.producer, d.consumer, d.result, targets) if self.per_edge else super().key(d, targets)

    def price(self, d: Dependence, source: Members, target: Members) -> Price:
        if source == target or not d.bytes:
            return NOTHING
        time = max(self.ends(d, len(source), len(target)))
        out = frozenset((COMPUTE, -1, p, p) for p in source)
        return Price(0, time, out, frozenset((COMPUTE, -1, p, p) for p in target))

    def ends(self, d: Dependence, source: int, target: int) -> tuple[int, int]:
        """Time of the copy at the sender and at the receiver, by their allotments, ns, as Piper prices them."""
        pair = (d.producer, d.consumer)
        sync = (self.backward.get(pair, {}).get(source, 0), self.forward.get(pair, {}).get(target, 0))
        rate = self.levels[0].bandwidth
        return -(-2 * NS * (d.bytes + sync[0]) // rate), -(-2 * NS * (d.bytes + sync[1]) // rate)


@dataclass(frozen=True)
class Variant:
    """One way to run an operation at some allotment: ns, bytes for each micro-batch in flight, and bytes always."""

    time: int
    live: int
    fixed: int


@dataclass(frozen=True)
class Model:
    """The problem without memory, and what Piper's rule of memory asks for: variants, with recomputing or without."""

    problem: MemoryProblem
    variants: tuple[Mapping[int, tuple[Variant, ...]], ...]
    params: tuple[Mapping[int, int], ...]
    """Of each operation: allotment → bytes that copies of it synchronise."""
    memory: int = 0
    """Bytes of an accelerator; 0: not looked at."""

    def windows(self, sets: Sequence[Members]) -> list[int]:
        """``y`` of each operation: the windows from its own to the last."""
        problem = self.problem
        window = [0] * len(sets)
        for v in problem.topological:
            window[v] = max((window[u] + (sets[u] != sets[v]) for u in problem.predecessors[v]), default=0)
        last = max(window)
        return [last - w + 1 for w in window]

    def missing(self, sets: Sequence[Members], chosen: Sequence[Variant]) -> int:
        """Bytes by which the accelerators exceed their memory, all together."""
        if not self.memory:
            return 0
        need = [0] * self.problem.accelerators
        for y, members, variant in zip(self.windows(sets), sets, chosen, strict=True):
            for p in members:
                need[p] += variant.live * y + variant.fixed
        return sum(max(0, n - self.memory) for n in need)


def read_piper_linked(
    path: Path, accelerators: int, *, memory: int = 0, recompute: bool = False, per_edge: bool = True
) -> Model:
    """A graph of Piper at every tensor-parallel degree, with links and, unless ``memory`` is 0, its rule of memory.

    With ``recompute`` each operation may also run in the slower variant that keeps less.
    """
    data = json.loads(path.read_text())
    number = {node["id"]: v for v, node in enumerate(data["nodes"])}
    operations: list[Operation] = []
    variants: list[dict[int, tuple[Variant, ...]]] = []
    params: list[dict[int, int]] = []
    forward: dict[Pair, dict[int, int]] = {}
    backward: dict[Pair, dict[int, int]] = {}
    for v, node in enumerate(data["nodes"]):
        found: dict[int, tuple[Variant, ...]] = {}
        for k, modes in ((int(k), modes) for k, modes in node["TMPCs"].items()):
            wanted = [m for m in modes if recompute or m["id"] == "vanilla"]
            found[k] = tuple(_variants(wanted))
            for other, size in wanted[0]["syncTimeFw"].items():
                forward.setdefault((number[int(other)], v), {})[k] = round(size)
            for other, size in wanted[0]["syncTimeBw"].items():
                backward.setdefault((v, number[int(other)]), {})[k] = round(size)
        variants.append(found)
        params.append({int(k): round(modes[0]["parameterSize"]) for k, modes in node["TMPCs"].items()})
        table = {k: Cost(min(x.time for x in of)) for k, of in found.items() if k <= accelerators}
        operations.append(Operation(f"{node['name']}.{node['id']}", table))
    edges = sorted((number[e["sourceId"]], number[e["destId"]], round(e["communicationCost"])) for e in data["edges"])
    level = Level("all", accelerators, 0, BANDWIDTH)
    network = PiperLinks((level,), "buffered", per_edge=per_edge, forward=forward, backward=backward)
    dependences = tuple(Dependence(u, v, size) for u, v, size in edges)
    problem = MemoryProblem(tuple(operations), dependences, (), accelerators, network=network)
    return Model(problem, tuple(variants), tuple(params), memory)


def _variants(modes: Sequence[Mapping[str, Any]]) -> Iterator[Variant]:
    """The distinct ways to run an operation."""
    seen: set[tuple[int, int, int]] = set()
    for m in modes:
        row = (round(m["timePerSample"] * NS), round(m["memoryUsageA"]), round(m["memoryUsageB"]))
        if row not in seen:
            seen.add(row)
            yield Variant(*row)


# --- bounds --------------------------------------------------------------------------------------


def bound(model: Model) -> int:
    """A lower bound on the period of any plan without copies, ns: without links, and of each value read by many."""
    free = replace(model.problem, network=None)
    best = best_bound(free, Budget()).value
    network = model.problem.network
    if isinstance(network, PiperLinks) and network.per_edge:
        for _, edges in groupby(model.problem.dependences, key=lambda d: d.producer):
            best = max(best, _fan_bound(model, network, list(edges)))
    return best


def _fan_bound(model: Model, network: PiperLinks, edges: Sequence[Dependence]) -> int:
    """Each reader of a value is on the producer's set, and takes its time there, or is sent the value.

    For each allotment of the producer and number of readers on its set: the load of that set, and what all
    accelerators do together, with the ends of every copy. The least over all of them is a bound.
    """
    operations, count = model.problem.operations, model.problem.accelerators
    base = sum(min(k * c.time for k, c in o.table.items()) for o in operations)
    best: Fraction | None = None
    for k, cost in operations[edges[0].producer].table.items():
        sends = [min(network.ends(d, k, j)[0] for j in operations[d.consumer].table) for d in edges]
        ends = sorted(
            k * send + min(j * network.ends(d, k, j)[1] for j in operations[d.consumer].table)
            for d, send in zip(edges, sends, strict=True)
        )
        here = sorted(
            operations[d.consumer].table[k].time - send
            for d, send in zip(edges, sends, strict=True)
            if k in operations[d.consumer].table
        )
        for together in range(len(here) + 1):
            load = Fraction(cost.time + sum(sends) + sum(here[:together]))
            area = Fraction(base + sum(ends[: len(ends) - together]), count)
            best = max(load, area) if best is None else min(best, max(load, area))
    return 0 if best is None else -(-best.numerator // best.denominator)


# --- schedules -----------------------------------------------------------------------------------


def spelled_out(
    problem: MemoryProblem, times: Sequence[int], sets: Sequence[Members]
) -> tuple[MemoryProblem, Solution]:
    """The problem without links in which copies are operations, and a schedule of it, for nested sets.

    Operations of the widest sets come first in every period, so accelerators never wait for each other and
    the period is the greatest load. Raises :class:`InvalidProblem` when the schedule breaks a rule.
    """
    network = problem.network
    assert isinstance(network, PiperLinks)
    operations = [Operation(o.name, {len(s): Cost(t)}) for o, t, s in zip(problem.operations, times, sets, strict=True)]
    places = list(sets)
    edges: list[Dependence] = []
    copies: dict[Hashable, int] = {}

    def copy(key: Hashable, name: str, members: Members, time: int) -> tuple[int, bool]:
        """The operation that copies a value out or in, as long as its longest; and whether it is new."""
        new = key not in copies
        if new:
            copies[key] = len(operations)
            operations.append(Operation(name, {len(members): Cost(time)}))
            places.append(members)
        v = copies[key]
        operations[v] = Operation(name, {len(members): Cost(max(time, operations[v].table[len(members)].time))})
        return v, new

    for d in problem.dependences:
        source, target = sets[d.producer], sets[d.consumer]
        if source == target or not d.bytes:
            edges.append(Dependence(d.producer, d.consumer, 0, d.distance))
            continue
        sent, received = network.ends(d, len(source), len(target))
        out, new = copy(("send", network.key(d, ())), f"send {d.producer} {d.consumer}", source, sent)
        if new:
            edges.append(Dependence(d.producer, out))
        into, _ = copy(network.key(d, (target,)), f"receive {d.producer} {d.consumer}", target, received)
        edges += [Dependence(out, into), Dependence(into, d.consumer, 0, d.distance)]
    plain = MemoryProblem(tuple(operations), tuple(dict.fromkeys(edges)), (), problem.accelerators)
    filled = [0] * problem.accelerators
    offsets = [0] * len(operations)
    for v in sorted(range(len(operations)), key=lambda v: (-len(places[v]), v)):
        offsets[v] = max(filled[p] for p in places[v])
        for p in places[v]:
            filled[p] = offsets[v] + operations[v].table[len(places[v])].time
    period = max(1, *filled)
    taken = [o.table[len(s)].time for o, s in zip(operations, places, strict=True)]
    starts = from_offsets(plain, taken, offsets, period)
    solution = Solution(period, tuple(map(len, places)), tuple(places), starts)
    plain.verify(solution)
    return plain, solution
