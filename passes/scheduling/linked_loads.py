"""How busy a periodic schedule keeps accelerators and links: what of a period depends on sets alone.

What a period has to hold does not depend on when things start: the operations of an accelerator, what is sent and
received through each link, and in the modes in which an accelerator stands still meanwhile the transfers as well.
The greatest of these loads is a lower bound on the period of a schedule with those sets, and what a plan that
chooses sets may look at.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from math import lcm

from passes.scheduling.data import Dependence, Solution
from passes.scheduling.network import COMPUTE, Members, Network, Price, Resource, no_network
from passes.scheduling.problem import MoldableProblem, StagedProblem


def is_linked(problem: MoldableProblem) -> bool:
    """Whether moving a value costs anything at all."""
    network = problem.network
    return network is not None and bool(network.levels) and any(d.bytes for d in problem.dependences)


def loads(problem: MoldableProblem, s: Solution) -> dict[Resource, int]:
    """Resource → ns that operations and transfers occupy it in one pattern (``s.repetition`` periods)."""
    found: defaultdict[Resource, int] = defaultdict(int)
    cycle = s.repetition
    for v, operation in enumerate(problem.operations):
        copies = s.copies(v)
        busy = operation.table[s.allotments[v]].time * (cycle // len(copies))
        for members in copies:
            for p in members:
                found[COMPUTE, -1, p, p] += busy
    network = problem.network or no_network()
    if network.levels:
        values: dict[object, list[Dependence]] = {}
        for d in problem.dependences:
            if d.bytes:
                values.setdefault(network.key(d, ()), []).append(d)
        for readers in values.values():
            _add_value(network, s, readers, found)
    return found


def _add_value(network: Network, s: Solution, readers: list[Dependence], found: defaultdict[Resource, int]) -> None:
    """Add what the transfers of one value occupy in one pattern."""
    u = readers[0].producer
    turns = lcm(len(s.copies(u)), *(len(s.copies(d.consumer)) for d in readers))
    share = s.repetition // turns
    leaving = [0] * turns
    sending: list[set[Resource]] = [set() for _ in range(turns)]
    transfers: dict[object, tuple[Dependence, tuple[Members, ...]]] = {}
    for d in readers:
        targets = tuple(s.set_of(d.consumer, i + d.distance) for i in range(turns))
        transfers.setdefault(network.key(d, targets), (d, targets))
    for d, targets in transfers.values():
        prices = [network.price(d, s.set_of(u, i), target) for i, target in enumerate(targets)]
        time = max(p.time for p in prices)  # every turn takes as long as the longest
        for i, price in enumerate(prices):
            if price.time:
                for resource in price.receive if network.mode == "buffered" else price.both:
                    found[resource] += time * share
                leaving[i] = max(leaving[i], time)
                sending[i] |= price.send
    if network.mode == "buffered":  # once for all that read it
        for time, resources in zip(leaving, sending, strict=True):
            for resource in resources:
                found[resource] += time * share


def busiest(problem: MoldableProblem, s: Solution) -> dict[int, int]:
    """Accelerator → ns of a period that it or the busiest of its links needs; a link counts at both of its ends."""
    network, cycle = problem.network or no_network(), s.repetition
    found: defaultdict[int, int] = defaultdict(int)
    for resource, load in loads(problem, s).items():
        need = -(-load // (network.capacity(resource) * cycle))
        for p in resource[2:]:
            found[p] = max(found[p], need)
    return found


def load_bound(problem: MoldableProblem, s: Solution) -> int:
    """The least period of a schedule with the sets of ``s``, ns, by the loads of accelerators and links."""
    return max(1, *busiest(problem, s).values(), 1)


def with_sets(allotments: Sequence[int], sets: Sequence[Members]) -> Solution:
    """A solution of which only the sets count."""
    return Solution(1, tuple(allotments), tuple(sets), (0,) * len(sets))


def calmest(problem: StagedProblem, choices: Sequence[list[int]]) -> list[int]:
    """Allotments that keep the accelerators of each block least busy: on each block those of one of ``choices``.

    Operations of one block with different allotments pass values between different sets. What that costs may be
    more than the faster allotment saves.
    """
    network = problem.network or no_network()
    blocks = [problem.blocks[home] for home in problem.homes]
    best: dict[Members, tuple[tuple[int, int], int]] = {}
    for number, allotments in enumerate(choices):
        busy: defaultdict[Members, int] = defaultdict(int)
        moving: defaultdict[Members, int] = defaultdict(int)
        for v, k in enumerate(allotments):
            busy[blocks[v]] += problem.operations[v].table[k].time
        moved: set[object] = set()
        for d in problem.dependences:
            u, v = d.producer, d.consumer
            if blocks[u] != blocks[v] or allotments[u] == allotments[v] or not d.bytes:
                continue
            source, target = blocks[u][: allotments[u]], blocks[v][: allotments[v]]
            key = network.key(d, (target,))
            if key not in moved:
                moved.add(key)
                moving[blocks[u]] += _both_ends(network, network.price(d, source, target))
        for block, time in busy.items():
            wait = moving[block]
            cost = (max(time, wait) if network.mode == "overlapped" else time + wait, wait)
            if block not in best or cost < best[block][0]:
                best[block] = (cost, number)
    chosen = [choices[best[block][1]][v] for v, block in enumerate(blocks)]
    for item in problem.items:  # a group is placed as one, though its stages may differ
        for v in item[1:]:
            chosen[v] = chosen[item[0]]
    return chosen


def crossings(problem: StagedProblem) -> dict[Members, list[Dependence]]:
    """Block → the dependences whose value it makes for another block, or reads from one."""
    found: defaultdict[Members, list[Dependence]] = defaultdict(list)
    for d in problem.dependences:
        blocks = {problem.blocks[problem.homes[v]] for v in (d.producer, d.consumer)}
        if d.bytes and len(blocks) > 1:
            for block in blocks:
                found[block].append(d)
    return found


def with_moves(
    problem: StagedProblem, block: Members, crossing: Sequence[Dependence], allotment: Callable[[int], int], time: int
) -> int:
    """``time`` of the operations on a block, and what it receives and sends: for how long a micro-batch keeps it.

    ``allotment`` says how many accelerators an operation is taken to run on, also one of another block, of which
    the first accelerators are meant.
    """
    network = problem.network or no_network()
    received: dict[object, int] = {}
    sent: dict[object, int] = {}
    capacity = 1
    for d in crossing:
        source, target = (problem.blocks[problem.homes[v]][: allotment(v)] for v in (d.producer, d.consumer))
        price = network.price(d, source, target)
        inward = problem.blocks[problem.homes[d.consumer]] == block
        key = network.key(d, () if network.mode == "buffered" and not inward else (target,))
        ends, busy = (received, price.receive) if inward else (sent, price.send)
        if busy:
            ends[key] = max(ends.get(key, 0), price.time)
            capacity = max(capacity, network.capacity(next(iter(sorted(busy)))))
    into, out = sum(received.values()), sum(sent.values())
    if network.mode != "overlapped":
        return time + into + out
    return max(time, -(-into // capacity), -(-out // capacity))


def _both_ends(network: Network, price: Price) -> int:
    """Time that an accelerator of both sets gives to a transfer between them."""
    return 2 * price.time if network.mode == "buffered" else price.time
