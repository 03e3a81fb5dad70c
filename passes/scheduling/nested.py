"""Assignment of operations to nested blocks: exactly for few operations, window by window for many.

On nested blocks time has disappeared (``laminar.py``): the load of an accelerator is what runs on the
blocks around it, and the period is the heaviest load. A *window* is a few blocks of one width, with the
operations inside them; what runs on wider blocks is a load that they start with. CP-SAT finds the best
assignment of a window, or of everything when operations are few, which is then a proof. Otherwise windows
around the heaviest accelerator are solved again and again with other blocks that have room (large
neighbourhood search: Shaw, "Using constraint programming and local search methods", CP 1998).
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from math import ceil, gcd
from types import MappingProxyType
from typing import Any, NamedTuple

from passes.scheduling.budget import Budget
from passes.scheduling.interruptible import solve

FEW = 14
"""Operations up to which everything is one window at once."""

SMALLEST, LARGEST = 6, 16
"""Operations in a window: at first, and when smaller windows bring nothing any more (or four accelerators' worth)."""

PATIENCE = 60
"""Windows without an improvement before they grow."""

WINDOW_WORK = 0.1
"""Work units for one window of the search."""

MOST_VARIABLES = 6000
"""Assignments beyond which a window is not built."""


class Choice(NamedTuple):
    """An allotment, the width of the block that it takes, its time in ns, parameter bytes on each accelerator."""

    allotment: int
    width: int
    time: int
    params: int = 0


Place = tuple[Choice, int]
"""What an operation runs as, and the first accelerator of its block."""


@dataclass(frozen=True)
class Blocks:
    """Blocks of ``widths``, increasing, each of which divides the next but the last, which is ``count``."""

    widths: tuple[int, ...]
    count: int

    def starts(self, width: int) -> range:
        """The first accelerators of the blocks of ``width``."""
        return range(0, self.count - width + 1, width)

    def inside(self, width: int, first: int) -> list[tuple[int, int]]:
        """Blocks in block (``width``, ``first``), itself included, widest first."""
        found: list[tuple[int, int]] = []
        for w in reversed(self.widths):
            if w <= width:
                found += [(w, b) for b in range(-(-first // w) * w, first + width - w + 1, w)]
        return found

    def root(self, width: int, accelerator: int) -> int | None:
        """The first accelerator of the block of ``width`` around ``accelerator``; None where there is none."""
        first = 0 if width == self.count else accelerator - accelerator % width
        return first if first + width <= self.count else None


@dataclass(frozen=True)
class Window:
    """Blocks (first accelerators) of ``width``, each with the load in ns and bytes that it starts with."""

    width: int
    loads: Mapping[int, int]
    held: Mapping[int, int]


@dataclass(frozen=True)
class Assigned:
    """The place of each operation of a window, the heaviest load and the least one possible there."""

    places: dict[int, Place]
    heaviest: int
    bound: int


def loads_of(places: Sequence[Place], count: int) -> list[int]:
    """Busy time of each accelerator."""
    load = [0] * count
    for choice, first in places:
        for p in range(first, first + choice.width):
            load[p] += choice.time
    return load


# --- one window --------------------------------------------------------------------------------------


class _Program:
    """The constraint program of a window: how many operations of a class run as which choice on which block."""

    def __init__(self, columns: Mapping[int, Sequence[Choice]], blocks: Blocks, window: Window, below: int, room: int):
        from ortools.sat.python import cp_model  # slow to import, and only few need it

        self.model: Any = cp_model.CpModel()
        classes: defaultdict[tuple[Choice, ...], list[int]] = defaultdict(list)
        for v, choices in columns.items():
            classes[tuple(c for c in choices if c.time <= below and c.width <= window.width)].append(v)
        self.classes = classes
        times = [c.time for each in classes for c in each] + list(window.loads.values())
        self.unit = reduce(gcd, times) or 1
        self.most = below // self.unit
        self.load: Any = self.model.new_int_var(0, self.most, "load")
        self.taken: list[tuple[int, Choice, int, Any]] = []
        """Class, choice, block and how many of them."""
        self.on: defaultdict[tuple[int, int], list[tuple[Choice, Any]]] = defaultdict(list)
        trees = {root: blocks.inside(window.width, root) for root in window.loads}
        self._choose(trees)
        for root, tree in trees.items():
            self._stack(tree, window.loads[root] // self.unit, room - window.held[root])
        self.model.minimize(self.load)

    def _choose(self, trees: Mapping[int, Sequence[tuple[int, int]]]) -> None:
        every: defaultdict[int, list[int]] = defaultdict(list)
        for tree in trees.values():
            for width, first in tree:
                every[width].append(first)
        for number, (choices, members) in enumerate(self.classes.items()):
            mine: list[Any] = []
            for choice in choices:
                for first in every[choice.width]:
                    x = self.model.new_int_var(0, len(members), "")
                    mine.append(x)
                    self.taken.append((number, choice, first, x))
                    self.on[choice.width, first].append((choice, x))
            self.model.add(sum(mine) == len(members))

    def begin_at(self, known: Mapping[int, Place]) -> None:
        """Hint the search at these places."""
        there = Counter((number, *known[v]) for number, members in enumerate(self.classes.values()) for v in members)
        for number, choice, first, x in self.taken:
            self.model.add_hint(x, there[number, choice, first])

    def _stack(self, tree: Sequence[tuple[int, int]], base: int, room: int) -> None:
        """The load of a block is that of the block around it and its own; all in one tree of blocks."""
        total: dict[tuple[int, int], Any] = {}
        around: dict[tuple[int, int], tuple[int, int] | None] = {}
        area: dict[tuple[int, int], list[Any]] = {}
        bytes_: dict[tuple[int, int], list[Any]] = {}
        for block in tree:
            width, first = block
            holders = [b for b in total if b[0] > width and b[1] <= first and first + width <= b[1] + b[0]]
            parent = min(holders, default=None)
            around[block] = parent
            above = base if parent is None else total[parent]
            own = [c.time // self.unit * x for c, x in self.on[block]]
            total[block] = self.model.new_int_var(0, self.most, "")
            self.model.add(total[block] == sum(own) + above)
            self.model.add(total[block] <= self.load)
            bytes_[block] = [c.params * x for c, x in self.on[block] if c.params]
            area[block] = []
            for holder in (*holders, block):
                area[holder] += [c.width * (c.time // self.unit) * x for c, x in self.on[block]]
        for block, parent in around.items():
            above = base if parent is None else total[parent]
            if block[0] > 1:  # implied, and what the search learns from
                self.model.add(sum(area[block]) + block[0] * above <= block[0] * self.load)
            if any(bytes_.values()) and not any(p == block for p in around.values()):
                holders = [b for b in total if b[0] > block[0] and b[1] <= block[1] and block[1] + block[0] <= sum(b)]
                self.model.add(sum(x for b in (*holders, block) for x in bytes_[b]) <= room)
        for one, two in pairwise(tree):  # alike siblings, ordered by load
            if one[0] == two[0] and around[one] == around[two]:
                self.model.add(total[one] >= total[two])


def assign(
    columns: Mapping[int, Sequence[Choice]],
    blocks: Blocks,
    window: Window,
    below: int,
    *,
    room: int = 1 << 60,
    known: Mapping[int, Place] = MappingProxyType({}),
    work: float = WINDOW_WORK,
    budget: Budget,
    seed: int = 0,
) -> Assigned | None:
    """The best assignment of operations to the blocks of ``window`` with a load of at most ``below`` ns.

    ``columns`` maps operations to their choices; the search begins at the places ``known``. ``room`` is the most
    parameter bytes on an accelerator. At
    most ``work`` units are spent, from ``budget``. None when nothing was found, or the window is too large.
    """
    narrow = [c for choices in columns.values() for c in choices if c.width <= window.width]
    sizes = {
        w: sum(sum(b[0] == w for b in blocks.inside(window.width, r)) for r in window.loads) for w in blocks.widths
    }
    if sum(sizes[c.width] for c in narrow) > MOST_VARIABLES:
        return None
    from ortools.sat.python import cp_model

    program = _Program(columns, blocks, window, below, room)
    if known:
        program.begin_at(known)
    solver: Any = cp_model.CpSolver()
    solver.parameters.num_workers = 1  # more of them are not deterministic, and slower on windows
    solver.parameters.random_seed = seed
    solver.parameters.max_deterministic_time = work
    if (left := budget.left()) is not None:
        solver.parameters.max_time_in_seconds = left
    status = solve(solver, program.model)
    budget.spend(solver.response_proto.deterministic_time + 3e-6 * len(program.taken) + 1e-3)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None
    members = [list(m) for m in program.classes.values()]
    places: dict[int, Place] = {}
    for number, choice, first, x in program.taken:
        for _ in range(solver.value(x)):
            places[members[number].pop()] = (choice, first)
    bound = ceil(solver.best_objective_bound - 1e-6) * program.unit
    return Assigned(places, solver.value(program.load) * program.unit, bound)


# --- many windows ------------------------------------------------------------------------------------


def exact(
    columns: Sequence[Sequence[Choice]],
    blocks: Blocks,
    known: int,
    *,
    places: Sequence[Place] = (),
    room: int = 1 << 60,
    work: float,
    budget: Budget,
) -> Assigned | None:
    """All operations as one window: an assignment no heavier than ``known``, and what is proven of the least load.

    The search begins at ``places``, if some are known.
    """
    window = Window(blocks.count, {0: 0}, {0: 0})
    given, begin = dict(enumerate(columns)), dict(enumerate(places))
    return assign(given, blocks, window, known, known=begin, room=room, work=work, budget=budget, seed=budget.seed)


def improve(
    columns: Sequence[Sequence[Choice]],
    places: Sequence[Place],
    blocks: Blocks,
    bound: int,
    *,
    room: int = 1 << 60,
    gap: float = 0.0,
    budget: Budget,
) -> list[Place]:
    """Better places by search over windows, until within ``gap`` of ``bound``, nothing helps or the budget is spent.

    The heaviest load never grows. On an interrupt the best places so far are returned and the budget is stopped.
    """
    now = list(places)
    rng = random.Random(budget.seed)
    size, idle = SMALLEST, 0
    largest = max(LARGEST, 4 * -(-len(now) // blocks.count))
    try:
        while not budget.spent():
            loads = loads_of(now, blocks.count)
            heaviest = max(loads)
            if heaviest <= bound * (1 + gap):
                break
            budget.spend(1e-6 * (len(now) + blocks.count))
            target = rng.choice([p for p, load in enumerate(loads) if load == heaviest])
            window, inside = _around(columns, now, blocks, target, size, rng)
            found = None
            if window is not None:
                given = {v: columns[v] for v in inside}
                seed = rng.randrange(2**31)
                found = assign(given, blocks, window, heaviest, room=room, budget=budget, seed=seed)
            if found is not None:
                for v, place in found.places.items():
                    now[v] = place
            if found is not None and found.heaviest < heaviest:
                idle = 0
                lightest = max(loads_of(now, blocks.count))
                if lightest < heaviest:
                    budget.report("windows of nested blocks", lightest)
                continue
            idle += 1
            if idle >= PATIENCE:
                if size >= largest:
                    break
                size, idle = size + max(2, size // 4), 0
    except KeyboardInterrupt:
        budget.stop()
    return now


def _around(
    columns: Sequence[Sequence[Choice]],
    places: Sequence[Place],
    blocks: Blocks,
    target: int,
    most: int,
    rng: random.Random,
) -> tuple[Window | None, list[int]]:
    """A window of at most ``most`` operations with a block around ``target``, and the operations inside."""
    width = rng.choice(blocks.widths)
    home = blocks.root(width, target)
    if home is None:
        return None, []
    inside: defaultdict[int, list[int]] = defaultdict(list)
    for v, (choice, first) in enumerate(places):
        if choice.width <= width and (root := blocks.root(width, first)) is not None:
            inside[root].append(v)
    chosen, roots = list(inside[home]), [home]
    if not chosen or len(chosen) > most:
        return None, []
    others = [r for r in blocks.starts(width) if r != home] if width < blocks.count else []
    rng.shuffle(others)
    for root in others:
        if len(chosen) + len(inside[root]) <= most:
            chosen += inside[root]
            roots.append(root)
    if len(chosen) < 2:
        return None, []
    loads, held = dict.fromkeys(roots, 0), dict.fromkeys(roots, 0)
    for choice, first in places:
        if choice.width > width:
            for root in roots:
                if first <= root < first + choice.width:
                    loads[root] += choice.time
                    held[root] += choice.params
    return Window(width, loads, held), chosen
