"""Operations of Piper's model moved one by one between aligned sets: a local search that knows links and memory.

Simulated annealing (Kirkpatrick, Gelatt and Vecchi, Science 220, 1983). A state gives each operation an aligned set and
a variant; what is made small is a high norm of the loads of all accelerators, which is close to the greatest of
them but prefers few that are as great, and a price for each byte of memory that is missing. The sets are nested, so
the greatest load is a period that can be kept (``spelled_out`` of ``piper_model.py``).
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from passes.scheduling.data import Dependence
from passes.scheduling.network import Members
from suites.piper_model import Model, PiperLinks, Variant

NORM = 60.0
"""Order of the norm of loads."""

WARM, COLD = 2e-2, 2e-5
"""Share of the load by which a move may make things worse, in the beginning and in the end."""

Parts = list[tuple[Members, int]]


@dataclass(frozen=True)
class Placed:
    """A set and a variant for each operation, and the greatest load, ns."""

    sets: tuple[Members, ...]
    variants: tuple[Variant, ...]
    period: int


class _State:
    def __init__(self, model: Model, sets: Sequence[Members], variants: Sequence[Variant]):
        self.model, self.sets, self.variants = model, list(sets), list(variants)
        network = model.problem.network
        assert isinstance(network, PiperLinks)
        self.network = network
        values: dict[Hashable, list[Dependence]] = {}
        for d in model.problem.dependences:
            if d.bytes:
                values.setdefault(network.key(d, ()), []).append(d)
        self.values = list(values.values())
        self.known: dict[tuple[int, int, int, int], tuple[int, int]] = {}
        """Times of a copy at its ends, by the operations and their allotments."""
        self.touching: list[list[int]] = [[] for _ in sets]
        for number, readers in enumerate(self.values):
            for v in {readers[0].producer, *(d.consumer for d in readers)}:
                self.touching[v].append(number)
        self.loads = [0] * model.problem.accelerators
        self.parts: list[Parts] = []
        for readers in self.values:
            self.parts.append(self._copies(readers))
            self._add(self.parts[-1], 1)
        for members, variant in zip(self.sets, self.variants, strict=True):
            self._add([(members, variant.time)], 1)

    def _copies(self, readers: Sequence[Dependence]) -> Parts:
        """What a value occupies: its producer's set once, and each other set that reads it."""
        source = self.sets[readers[0].producer]
        into: dict[Members, int] = {}
        out = 0
        for d in readers:
            target = self.sets[d.consumer]
            if target != source:
                key = (d.producer, d.consumer, len(source), len(target))
                ends = self.known.get(key)
                if ends is None:
                    ends = self.known[key] = self.network.ends(d, len(source), len(target))
                out = max(out, ends[0])
                if ends[1] > into.get(target, 0):
                    into[target] = ends[1]
        return [(source, out), *into.items()] if into else []

    def _add(self, parts: Parts, sign: int) -> None:
        for members, time in parts:
            for p in members:
                self.loads[p] += sign * time

    def move(self, v: int, members: Members, variant: Variant) -> None:
        """Run ``v`` on other accelerators."""
        self._add([(self.sets[v], self.variants[v].time)], -1)
        self.sets[v], self.variants[v] = members, variant
        self._add([(members, variant.time)], 1)
        for number in self.touching[v]:
            self._add(self.parts[number], -1)
            self.parts[number] = self._copies(self.values[number])
            self._add(self.parts[number], 1)

    def cost(self) -> float:
        """About the greatest load, more where memory is missing."""
        most = max(self.loads)
        norm = most * math.fsum((load / most) ** NORM for load in self.loads) ** (1 / NORM) if most else 0.0
        missing = self.model.missing(self.sets, self.variants)
        return norm * (1 + 2 * missing / self.model.memory) if missing else norm


def search(model: Model, first: Sequence[Placed], steps: int, seed: int = 0) -> Placed | None:
    """The best plan found with ``steps`` moves from those of ``first`` in turn, or one of these; None: none fits."""
    rng = random.Random(seed)
    problem = model.problem
    options: list[list[tuple[Members, Variant]]] = []
    for variants in model.variants:
        options.append(
            [
                (tuple(range(p, p + k)), variant)
                for k, of in variants.items()
                for p in range(0, problem.accelerators - k + 1, k)
                for variant in of
            ]
        )
    best: Placed | None = None
    for start in first:
        if not model.missing(start.sets, start.variants) and (best is None or start.period < best.period):
            best = start
        state = _State(model, start.sets, start.variants)
        cost = state.cost()
        for step in range(steps // max(1, len(first))):
            heat = WARM * (COLD / WARM) ** (step * len(first) / steps)
            v = _pick(state, rng)
            moves = [(v, *_other(options[v], state, v, rng))]
            if rng.random() < 0.3:  # exchange
                u = rng.randrange(len(options))
                if u != v and len(state.sets[u]) == len(state.sets[v]):
                    moves = [(v, state.sets[u], state.variants[v]), (u, state.sets[v], state.variants[u])]
            back = [(w, state.sets[w], state.variants[w]) for w, _, _ in moves]
            for move in moves:
                state.move(*move)
            changed = state.cost()
            if changed > cost and rng.random() >= math.exp((cost - changed) / (heat * cost)):
                for move in back:
                    state.move(*move)
                continue
            cost = changed
            period = max(state.loads)
            if (best is None or period < best.period) and not model.missing(state.sets, state.variants):
                best = Placed(tuple(state.sets), tuple(state.variants), period)
    return best


def _pick(state: _State, rng: random.Random) -> int:
    """Any operation, or one of the accelerator with most to do."""
    if rng.random() < 0.5:
        return rng.randrange(len(state.sets))
    worst = max(range(len(state.loads)), key=state.loads.__getitem__)
    there = [v for v, members in enumerate(state.sets) if worst in members]
    return rng.choice(there) if there else rng.randrange(len(state.sets))


def _other(
    options: Sequence[tuple[Members, Variant]], state: _State, v: int, rng: random.Random
) -> tuple[Members, Variant]:
    """Another option of ``v``: any, or the set of one that it exchanges values with."""
    if rng.random() < 0.4:
        readers = state.values[rng.choice(state.touching[v])] if state.touching[v] else []
        near: defaultdict[Members, None] = defaultdict(None)
        for d in readers:
            near[state.sets[d.producer]] = near[state.sets[d.consumer]] = None
        found = [o for o in options if o[0] in near]
        if found:
            return rng.choice(found)
    return rng.choice(options)
