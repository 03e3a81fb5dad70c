"""Operations that run on one accelerator each: which accelerator, so that the heaviest load is least.

With free starts the dependences of one micro-batch do not bind the period: any loads of at most ``T``
can be unrolled into a schedule of period ``T``. What is left is scheduling identical machines
(``P||Cmax``), with groups of operations that must share an accelerator as its items.

Incumbents: longest item first (Graham, SIAM J. Appl. Math. 17, 1969), first fit decreasing under bisection
(MULTIFIT: Coffman, Garey and Johnson, SIAM J. Comput. 7, 1978), then pairs of accelerators are balanced
again by the differencing method of Karmarkar and Karp. CP-SAT closes what remains: items of equal time
are interchangeable, so it counts how many of each time an accelerator gets.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import ceil

from passes.scheduling.budget import Budget
from passes.scheduling.data import InvalidProblem, Solution, Violation
from passes.scheduling.elementary import least
from passes.scheduling.interruptible import solve
from passes.scheduling.problem import PeriodicProblem
from passes.scheduling.retime import from_offsets

MOST_COUNTS = 60_000
"""Counts (distinct times by accelerators) beyond which the exact search is not started."""

MOST_PAIRS = 4_000
"""Pairs of accelerators balanced again before the improvement gives up."""

Bins = list[list[int]]
"""For each accelerator the times of its items, zeros left out."""


@dataclass(frozen=True)
class Assignment:
    """The accelerator of each item, the heaviest load, a proven lower bound on it, and who found it."""

    accelerator: tuple[int, ...]
    load: int
    bound: int
    engine: str

    @property
    def proven(self) -> bool:
        """Whether no assignment has a lighter heaviest load."""
        return self.load == self.bound


def load_bound(times: Sequence[int], accelerators: int) -> int:
    """Area, longest item, and the pigeonhole: ``j·m + 1`` items on ``m`` accelerators put ``j + 1`` on one."""
    descending = sorted(times, reverse=True)
    bound = max(-(-sum(descending) // accelerators), descending[0] if descending else 0)
    for j in range(1, (len(descending) - 1) // accelerators + 1):
        last = j * accelerators
        bound = max(bound, sum(descending[last - j : last + 1]))
    return bound


def balance(
    times: Sequence[int], accelerators: int, *, budget: Budget | None = None, seed: int = 0, workers: int = 2
) -> Assignment:
    """Items of these ``times`` (ns) on ``accelerators``, the heaviest load as small as the budget allows.

    Without a time limit the search ends with a proof, unless the problem is too large for the exact engine.
    """
    budget = budget or Budget()
    bound = load_bound(times, accelerators)
    items = [t for t in times if t]
    bins, engine = _longest_first(items, accelerators), "longest first"
    if _heaviest(bins) > bound:
        rival = _multifit(items, accelerators, bound, _heaviest(bins))
        if rival is not None:
            bins, engine = rival, "multifit"
    if _heaviest(bins) > bound:
        before = _heaviest(bins)
        bins = _rebalance(bins, bound, budget)
        engine = "differencing" if _heaviest(bins) < before else engine
    budget.report(engine, _heaviest(bins))
    if _heaviest(bins) > bound and not budget.spent() and len(set(items)) * accelerators <= MOST_COUNTS:
        found, bound = _exact(bins, bound, budget, seed, workers)
        if found is not None:
            bins, engine = found, "cp-sat"
    return Assignment(_items_of(bins, times), _heaviest(bins), bound, engine)


def schedule_rigid(
    problem: PeriodicProblem,
    *,
    budget: Budget | None = None,
    seed: int = 0,
    workers: int = 2,
) -> tuple[Solution, Assignment]:
    """A schedule of ``problem`` with every operation on one accelerator; items of the assignment are its items.

    Operations that share parameters share an accelerator. Raises :class:`InvalidProblem` when an operation
    cannot run on one accelerator. Memory is not looked at.
    """
    n = len(problem.operations)
    for v, operation in enumerate(problem.operations):
        if 1 not in operation.table:
            message = f"operation '{operation.name}' cannot run on a single accelerator"
            raise InvalidProblem([Violation("allotment", message, (v,))])
    times = [o.table[1].time for o in problem.operations]
    items = problem.items
    weights = [sum(times[v] for v in item) for item in items]
    found = balance(weights, problem.accelerators, budget=budget, seed=seed, workers=workers)
    home = {v: p for item, p in zip(items, found.accelerator, strict=True) for v in item}
    free = [0] * problem.accelerators
    offsets = [0] * n
    for v in problem.topological:
        offsets[v] = free[home[v]]
        free[home[v]] += times[v]
    period = max(1, found.load)
    starts = from_offsets(problem, times, offsets, period)
    return Solution(period, (1,) * n, tuple((home[v],) for v in range(n)), starts), found


def _heaviest(bins: Bins) -> int:
    return max(sum(b) for b in bins)


def _items_of(bins: Bins, times: Sequence[int]) -> tuple[int, ...]:
    """The accelerator of each item, when only the times on each accelerator are known."""
    places: defaultdict[int, list[int]] = defaultdict(list)
    for p, content in enumerate(bins):
        for t in content:
            places[t].append(p)
    return tuple(places[t].pop() if t else 0 for t in times)


def _longest_first(items: Sequence[int], accelerators: int) -> Bins:
    """Each item, longest first, on the accelerator that is least loaded."""
    bins: Bins = [[] for _ in range(accelerators)]
    heap = [(0, p) for p in range(accelerators)]
    for t in sorted(items, reverse=True):
        load, p = heappop(heap)
        bins[p].append(t)
        heappush(heap, (load + t, p))
    return bins


def _first_fit(descending: Sequence[int], accelerators: int, limit: int) -> Bins | None:
    """Each item on the first accelerator with room under ``limit``; None when one has none."""
    bins: Bins = [[] for _ in range(accelerators)]
    room = [limit] * accelerators
    for t in descending:
        p = next((p for p in range(accelerators) if room[p] >= t), None)
        if p is None:
            return None
        bins[p].append(t)
        room[p] -= t
    return bins


def _multifit(items: Sequence[int], accelerators: int, low: int, high: int) -> Bins | None:
    """First fit decreasing at the least limit below ``high`` that bisection finds."""
    descending = sorted(items, reverse=True)
    limit = least(low, high, lambda limit: _first_fit(descending, accelerators, limit) is not None)
    return _first_fit(descending, accelerators, limit) if limit < high else None


def _halves(items: Sequence[int]) -> Bins:
    """Two sets of about equal sums: the two largest differences are replaced by their difference."""
    heap = [(-t, i) for i, t in enumerate(items)]
    heapify(heap)
    sides: dict[int, tuple[list[int], list[int]]] = {i: ([t], []) for i, t in enumerate(items)}
    while len(heap) > 1:
        (a, i), (b, j) = heappop(heap), heappop(heap)
        (more, less), (other, rest) = sides[i], sides.pop(j)
        sides[i] = (more + rest, less + other)
        heappush(heap, (a - b, i))
    return list(sides[heap[0][1]]) if heap else [[], []]


def _rebalance(bins: Bins, bound: int, budget: Budget) -> Bins:
    """Split the heaviest accelerator and a light one evenly, lightest first, as long as that helps."""
    bins = [list(b) for b in bins]
    for _ in range(MOST_PAIRS):
        order = sorted(range(len(bins)), key=lambda p: sum(bins[p]))
        top = order[-1]
        heaviest = sum(bins[top])
        if heaviest == bound or budget.spent():
            break
        for p in order[:-1]:
            pair = _halves(bins[top] + bins[p])
            if _heaviest(pair) < heaviest:
                bins[top], bins[p] = pair
                break
        else:
            break
    return bins


def _exact(bins: Bins, bound: int, budget: Budget, seed: int, workers: int) -> tuple[Bins | None, int]:
    """The best assignment CP-SAT finds, if it beats ``bins``, and the bound that it proves."""
    from ortools.sat.python import cp_model  # slow to import, and only few need it

    known = _heaviest(bins)
    counts = Counter(t for b in bins for t in b)
    model = cp_model.CpModel()
    load = model.new_int_var(bound, known, "load")
    ranked = sorted(bins, key=sum, reverse=True)
    taken: list[dict[int, cp_model.IntVar]] = []
    loads: list[cp_model.IntVar] = []
    for p, content in enumerate(ranked):
        here = Counter(content)
        row = {t: model.new_int_var(0, min(count, known // t), f"{t}.{p}") for t, count in counts.items()}
        for t, variable in row.items():
            model.add_hint(variable, here[t])
        total = model.new_int_var(0, known, f"load.{p}")
        model.add(sum(t * variable for t, variable in row.items()) == total)
        model.add(total <= load)
        if loads:
            model.add(total <= loads[-1])  # accelerators are interchangeable
        loads.append(total)
        taken.append(row)
    for t, count in counts.items():
        model.add(sum(row[t] for row in taken) == count)
    model.minimize(load)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = workers
    solver.parameters.random_seed = seed
    left = budget.left()
    if left is not None:
        solver.parameters.max_time_in_seconds = left
    status = solve(solver, model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None, bound
    bound = max(bound, ceil(solver.best_objective_bound - 1e-6))
    found = [[t for t, variable in row.items() for _ in range(solver.value(variable))] for row in taken]
    return (found if _heaviest(found) < known else None), bound
