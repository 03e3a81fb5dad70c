"""Single operations on accelerators such that the heaviest load, transfers included, is small: the plan ``assigned``.

Contiguous splits and a packing that leaves transfers out are where the search begins. A period to beat keeps much of
the graph together (``assigned_clusters.py``), so each round anneals a smaller graph (``assigned_search.py``), or solves
it by constraint programming, all of it or a window (``assigned_program.py``). The bound comes from the same: a period
that leaves no choice is impossible.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from passes.scheduling.assigned_clusters import contracted, dominated, least_period, projected, undone
from passes.scheduling.assigned_loads import Choices, Loads, Option, choices_of
from passes.scheduling.assigned_program import choose
from passes.scheduling.assigned_search import Neighbourhoods, anneal, split
from passes.scheduling.assigned_starts import started
from passes.scheduling.budget import Budget
from passes.scheduling.data import InvalidProblem, Solution, Violation
from passes.scheduling.laminar import LEAST, Packing, nested_widths, pack
from passes.scheduling.network import Members
from passes.scheduling.problem import MemoryProblem, StagedProblem

GAP = 1e-4
"""How far above the bound a load is good enough, unless the caller wants less."""

ENGINES = ("neighbourhoods", "cp-sat")
"""What searches: annealing and windows (and the program of all units for some time), or that program alone."""

HEATS = (0.01, 0.03, 0.003, 0.01)
"""Temperatures, as fractions of the target, at which rounds of the annealing begin."""

STEPS = 200_000
"""Moves of a round of the annealing at first; more when rounds bring nothing."""

FEW = 14
"""Units up to which the program of all comes first."""

PATIENCE = 3
"""Rounds that bring nothing before the program of all units is tried."""

WORKERS = 4
"""Searches that CP-SAT interleaves on the whole program: one alone is often stuck."""

LEVELS = (1.02, 1.1, 1.3, 2.0)
"""Multiples of the bound for which the graph is contracted before it is split."""


@dataclass(frozen=True)
class Assignment:
    """The option of each unit (item), the heaviest load in ns, a lower bound on it over these sets, the engine."""

    choices: Choices
    at: tuple[int, ...]
    heaviest: int
    bound: int
    engine: str


class _Search:
    """The best options so far, and what is known of the least load."""

    def __init__(self, choices: Choices, bound: int, gap: float, budget: Budget):
        self.choices, self.budget, self.gap = choices, budget, gap
        self.low = max(1, bound)
        self.at: list[int] = []
        self.value = (1 << 62, 1 << 62)
        """Parameter bytes that do not fit, and the heaviest load."""
        self.engine = ENGINES[0]
        self._inner: tuple[int, Choices, Neighbourhoods] | None = None

    @property
    def heaviest(self) -> int:
        return self.value[1]

    @property
    def done(self) -> bool:
        """Whether the load is good enough, or the budget over."""
        return (not self.value[0] and self.heaviest <= self.low * (1 + self.gap)) or self.budget.spent()

    def take(self, choices: Choices, at: Sequence[int] | None, engine: str) -> bool:
        """Keep the options ``at`` of units of ``choices`` if they are better than what is known."""
        if at is None:
            return False
        own = list(at) if choices is self.choices else undone(self.choices, choices, at)
        loads = Loads(self.choices, own)
        mine = (loads.overfull, loads.heaviest)
        if mine >= self.value:
            return False
        self.at, self.value, self.engine = own, mine, engine
        if not mine[0]:
            self.budget.report(engine, max(1, mine[1]))
        return True

    def inner(self) -> tuple[Choices, Neighbourhoods] | None:
        """The graph that every better choice respects; None, and the bound is reached, when there is no better one."""
        if self.value[0]:
            return self.choices, Neighbourhoods(self.choices, self.budget.seed)
        limit = self.heaviest - 1
        if self._inner is None or self._inner[0] != limit:
            found = contracted(self.choices, limit, self.budget)
            if found is None:
                self.low = self.heaviest
                return None
            found = dominated(found)
            self._inner = (limit, found, Neighbourhoods(found, self.budget.seed))
        return self._inner[1:]


def assign(
    problem: MemoryProblem,
    *,
    reserve: int = 0,
    bound: int = 0,
    gap: float = GAP,
    solver: str | None = None,
    budget: Budget,
) -> Assignment:
    """The best sets found for the items of ``problem``, on aligned blocks that are nested or disjoint.

    ``reserve`` bytes of each accelerator stay free of parameters. ``bound`` is a lower bound in ns, if one is known;
    the search stops within ``gap`` of it. ``solver`` is one of ``ENGINES``; None: the first, then the second. On an
    interrupt the budget is stopped. Raises :class:`InvalidProblem` when an item fits on no block.
    """
    packing = pack(
        problem.item_tables,
        problem.accelerators,
        problem.group,
        memory=problem.memory,
        bound=bound,
        solver="buddy",
        budget=budget,
    )
    if packing is None:
        raise InvalidProblem([Violation("blocks", "an operation fits on no aligned block of accelerators")])
    choices = choices_of(problem, _widths(problem, packing), reserve)
    for unit, options in enumerate(choices.options):
        if not options:
            v = choices.units[unit][0]
            message = (
                f"operation '{problem.operations[v].name}' fits on no accelerators beside {reserve} bytes kept free"
            )
            raise InvalidProblem([Violation("memory", message, (v,))])
    search = _Search(choices, bound, gap, budget)
    search.take(choices, _at(choices, packing), ENGINES[0])
    try:
        _begin(search)
        _rounds(search, solver)
    except KeyboardInterrupt:
        budget.stop()
    return Assignment(choices, tuple(search.at), search.heaviest, min(search.low, search.heaviest), search.engine)


def _widths(problem: MemoryProblem, packing: Packing) -> tuple[int, ...]:
    """As many widths of nested blocks as go with those of ``packing``; 1 where operations have no other allotment."""
    if all(max(table) == 1 for table in problem.item_tables):
        return (1,)
    chains = nested_widths(problem.accelerators, problem.group)
    return max((c for c in chains if set(packing.blocks.widths) <= set(c)), key=lambda c: (len(c), c))


def _at(choices: Choices, packing: Packing) -> list[int]:
    """The options of ``packing``."""
    found: list[int] = []
    for options, (choice, first) in zip(choices.options, packing.places, strict=True):
        members, block = (tuple(range(first, first + k)) for k in (choice.allotment, choice.width))
        found.append(next((n for n, o in enumerate(options) if o.members == members and o.block == block), 0))
    return found


def _begin(search: _Search) -> None:
    """A bound by contraction, and splits of graphs that are contracted more or less."""
    choices, budget = search.choices, search.budget
    part = budget.part(0.1)
    search.low = least_period(choices, search.low, search.heaviest, part)
    budget.spend(part.used)
    graphs = [choices]
    for level in LEVELS:
        found = contracted(choices, int(search.low * level), budget)
        if found is not None:
            graphs.append(dominated(found))
    for width in {option.block[-1] - option.block[0] + 1: None for options in choices.options for option in options}:
        for graph in graphs:
            if not search.done:
                search.take(graph, split(graph, width, budget), ENGINES[0])

    if search.value[0]:
        search.take(choices, _spread(choices), ENGINES[0])


def _spread(choices: Choices) -> list[int]:
    """Options that spread parameters evenly, the largest first; load does not count."""
    held = [0] * choices.accelerators
    at = [0] * len(choices.options)
    for unit in sorted(range(len(at)), key=lambda u: -min(o.params for o in choices.options[u])):
        options = choices.options[unit]

        def fullest(number: int, options: Sequence[Option] = options) -> tuple[int, int]:
            return max(held[p] for p in options[number].members) + options[number].params, options[number].time

        at[unit] = min(range(len(options)), key=fullest)
        for p in options[at[unit]].members:
            held[p] += options[at[unit]].params
    return at


def _rounds(search: _Search, solver: str | None) -> None:
    """Annealing from what is known and afresh in turns; the whole program once that brings nothing."""
    budget = search.budget
    rng = random.Random(budget.seed)
    steps, idle, number = STEPS, 0, 0
    tried = -1
    while not search.done:
        now = search.inner()
        if now is None:
            return
        graph, near = now
        patient = PATIENCE if len(graph.units) > FEW else 0
        due = solver == "cp-sat" or (solver is None and idle >= patient)
        if due and tried != search.heaviest and not search.value[0]:
            tried, idle = search.heaviest, 0
            if _whole(search, graph, alone=solver == "cp-sat"):
                continue
            if solver == "cp-sat":
                return
        afresh = number % 2 == 1 and not search.value[0]
        begin = [0] * len(graph.options) if afresh else projected(search.choices, graph, search.at)
        target = 0 if search.value[0] else max(search.low, int(0.97 * search.heaviest))
        _, at = anneal(near, begin, target, steps, HEATS[number % len(HEATS)], rng, budget)
        number += 1
        idle = 0 if search.take(graph, at, ENGINES[0]) else idle + 1
        if idle and idle % len(HEATS) == 0:
            steps = min(2 * steps, 16 * STEPS)
        failed = 0
        while failed < WINDOWS and not search.done:
            failed = 0 if _window(search, rng) else failed + 1


def _whole(search: _Search, graph: Choices, *, alone: bool) -> bool:
    """Solve the program of all units for a part of the work; whether it improved the choice or proved it best."""
    budget = search.budget
    left = budget.work_left()
    found = choose(
        graph,
        projected(search.choices, graph, search.at),
        range(len(graph.units)),
        limit=search.heaviest - 1,
        work=10.0 if left is None else left if alone else left / 4,
        seed=budget.seed,
        workers=WORKERS,
        budget=budget,
    )
    if found is None:
        return False
    search.low = max(search.low, min(found.bound, search.heaviest))
    better = search.take(graph, found.at, ENGINES[1])
    return better or search.low == search.heaviest


WINDOW_WORK = 0.3
"""Work units for one window."""

WINDOWS = 8
"""Windows in a row that bring nothing before the next round."""

WINDOW = 24
"""Units of a window."""

WIDE = 8
"""Accelerators beyond which a window has only some of them."""


def _window(search: _Search, rng: random.Random) -> bool:
    """Some units of the heaviest accelerator and of others choose again, by the program; whether it helped."""
    now = search.inner()
    if now is None:
        return False
    graph, near = now
    at = projected(search.choices, graph, search.at)
    loads = Loads(graph, at)
    if loads.heaviest > search.heaviest:
        return False  # the graph cannot say what is known
    every = range(graph.accelerators)
    worst = max(every, key=lambda p: (loads.load[p], -p))
    some = set(every)
    if len(every) > WIDE:  # an aligned block, which wide sets need, or accelerators from everywhere
        near_by = (p for p in every if p // WIDE == worst // WIDE)
        some = set(near_by if rng.random() < 0.5 else (worst, *rng.sample(every, WIDE // 2)))
    inside = [u for u, n in enumerate(at) if some.issuperset(graph.options[u][n].block)]
    rng.shuffle(inside)
    heavy = [u for u in inside if worst in graph.options[u][at[u]].block]
    chosen = dict.fromkeys(heavy[: WINDOW // 4])
    for u in chosen.copy():
        chosen.update(dict.fromkeys(v for v, _ in near.near[u][:2]))
    for u in inside:
        if len(chosen) < WINDOW:
            chosen[u] = None
    found = choose(
        graph,
        at,
        list(chosen),
        limit=search.heaviest,
        allowed=some.issuperset,
        work=WINDOW_WORK,
        seed=rng.randrange(2**31),
        budget=search.budget,
    )
    return found is not None and search.take(graph, found.at, ENGINES[0])


def scheduled(problem: MemoryProblem, found: Assignment, budget: Budget) -> Solution:
    """A solution on the sets of ``found``; its period is the heaviest load unless carried values would come too late.

    It has its transfers in mode ``buffered`` with all operations on single accelerators (see ``assigned_starts.py``).
    """
    n = len(problem.operations)
    allotments = [0] * n
    sets: list[Members] = [()] * n
    blocks: list[Members] = [()] * n
    for unit, options, number in zip(found.choices.units, found.choices.options, found.at, strict=True):
        for v in unit:
            sets[v], blocks[v] = options[number].members, options[number].block
            allotments[v] = len(sets[v])
    return started(problem, allotments, sets, blocks, max(1, found.heaviest), budget)


def schedule_assigned(
    problem: StagedProblem,
    *,
    reserve: int = 0,
    bound: int = 0,
    gap: float = GAP,
    solver: str | None = None,
    budget: Budget | None = None,
) -> tuple[Solution, str]:
    """A schedule whose operations choose their sets for themselves, and the engine that found it.

    The period is the heaviest load of the sets, transfers included; the solution has its transfers in mode
    ``buffered`` with all operations on single accelerators, otherwise none (see ``assigned_starts.py``), and on links
    beside the accelerators the period may turn out longer. The name of the engine ends with ``LEAST`` when nothing is
    left to come and no other nested blocks have a smaller heaviest load. Arguments as of :func:`assign`. Raises
    :class:`InvalidProblem` unless one block of all accelerators is granted.
    """
    budget = budget or Budget(work=10.0)
    if any(len(block) != problem.accelerators for block in problem.blocks):
        raise InvalidProblem([Violation("blocks", "plan assigned needs one block of all accelerators")])
    searching = budget.part(0.9)
    found = assign(problem, reserve=reserve, bound=bound, gap=gap, solver=solver, budget=searching)
    budget.spend(searching.used)
    if searching.stopped:
        budget.stop()
    solution = scheduled(problem, found, budget)
    network = problem.network
    whole = network is None or not network.levels  # else transfers that are still to come may make the period longer
    whole = whole or (network is not None and network.mode == "buffered" and found.choices.widths == (1,))
    least = solution.period == max(1, found.heaviest) == max(1, found.bound) and solution.period > bound
    least = least and whole
    return solution, found.engine + (LEAST if least else "")
