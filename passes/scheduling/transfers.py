"""Schedules with their transfers: what a schedule that knew nothing of links must move, and when.

Three ways. *Rotated* (``rotated.py``): accelerators keep their rounds, and transfers run beside them. *Inserted*
(``inserted.py``): operations and transfers are laid out anew, the only way where transfers stop the accelerators. *In
order*: every resource does everything in one linear order, once a window; a window of the sum of all times is always
enough, so there always is a schedule.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from passes.scheduling.budget import Budget
from passes.scheduling.data import Solution
from passes.scheduling.inserted import insert
from passes.scheduling.kept import kept_starts
from passes.scheduling.problem import PeriodicProblem
from passes.scheduling.recurrence import Back, least_starts
from passes.scheduling.rotated import Rotation
from passes.scheduling.traffic import Traffic

Trial = Callable[[int], list[int] | None]
"""Starts of all nodes with a period; None when it finds none."""

STEPS = 6
"""How often the gap between a period that was too short and one that was not is halved."""

WORK = 2e-5
"""Units of work of laying out one operation or transfer in one way."""

CLOSE = 500
"""Periods that differ by less than this part of them count as equal in the search."""


def with_transfers(
    problem: PeriodicProblem, solution: Solution, budget: Budget | None = None, *, tolerance: float = 0.0
) -> Solution:
    """``solution``, which is valid without links, with every transfer that the links of ``problem`` ask for.

    Sets and allotments stay, starts change, and the period grows where links or waiting values need it. The result
    keeps every rule but those of memory, which is not looked at. A solution that has transfers is returned as it is,
    and so is one on a platform without links. With no budget left the first period found is taken. Periods within
    ``tolerance``, a fraction, of the shortest one count as equal: then the shortest latency decides.
    """
    if problem.network is None or not problem.network.levels or solution.transfers:
        return solution
    traffic = Traffic(problem, solution)
    if not traffic.needs:
        return solution
    budget = budget or Budget()
    found: list[tuple[int, list[int]]] = []
    least = traffic.least_period()
    runs = traffic.runs()
    ways: list[Trial] = [lambda period: insert(traffic, period, runs)]
    if problem.network.mode == "overlapped":
        least = max(least, solution.period)
        rotation = Rotation(traffic)
        if rotation.possible:
            ways.append(rotation.starts)

    def trial(period: int) -> list[int] | None:
        budget.spend(WORK * len(traffic.times) * len(ways))
        known = [starts for way in ways if (starts := way(period)) is not None]
        return min(known, key=lambda starts: _latency(traffic, starts), default=None)

    first = trial(least)
    if first is not None:
        period, first = _shortest(traffic, trial, least, first, tolerance)
        return traffic.solution_of(period, first)
    if traffic.back or problem.network.mode == "buffered":  # stages that wait for no buffer lose nothing in order
        found.append(_in_order(traffic, least))
    grown = _grow(trial, least, min((period for period, _ in found), default=None), budget)
    if grown is not None:
        found.append(grown)
    if not found:
        found.append(_in_order(traffic, least))
    period, starts = min(found, key=lambda pair: (pair[0], _latency(traffic, pair[1])))
    return traffic.solution_of(period, starts)


def _shortest(
    traffic: Traffic, trial: Trial, period: int, starts: list[int], tolerance: float
) -> tuple[int, list[int]]:
    """The period within the tolerance, and its starts, with fewest micro-batches in flight."""
    best = (period, starts)
    for part in (0.5, 1.0):
        longer = int(period * (1 + part * tolerance))
        rival = trial(longer) if longer > best[0] else None
        if rival is not None and _in_flight(traffic, longer, rival) < _in_flight(traffic, *best):
            best = (longer, rival)
    return best


def _in_flight(traffic: Traffic, period: int, starts: list[int]) -> int:
    return -(-_latency(traffic, starts) // period)


CALMER = (1.01, 1.02, 1.03, 1.05, 1.1, 1.2)
"""Periods, beside that of the schedule without links, at which operations are tried in their old rounds."""

WORTH = 1.2
"""How many times as many micro-batches in flight, because of transfers, make a calmer schedule worth a look."""

CALM_WORK = 5e-5
"""Work of one trial of a calmer schedule for each node."""


def calmer(problem: PeriodicProblem, solution: Solution, tight: Solution, budget: Budget) -> Solution | None:
    """A schedule of a somewhat longer period than ``tight`` with far fewer micro-batches in flight; None without one.

    ``tight`` is ``solution`` with transfers, of a short period, in which operations run rounds later when their values
    arrive late.
    """
    if tight.transfers == solution.transfers or problem.in_flight(tight) <= WORTH * problem.in_flight(solution):
        return None
    rotation = Rotation(traffic := Traffic(problem, solution))
    if not rotation.possible or traffic.network.mode != "overlapped":
        return None
    for part in CALMER:
        period = int(max(solution.period * part, tight.period))
        starts = kept_starts(rotation, period)
        budget.spend(CALM_WORK * len(traffic.times))
        if starts is not None:
            found = traffic.solution_of(period, starts)
            return found if problem.in_flight(found) < problem.in_flight(tight) else None
        if budget.spent():
            break
    return None


def fewer(problem: PeriodicProblem, solution: Solution, tight: Solution, most: int, budget: Budget) -> Solution | None:
    """A schedule of a longer period than ``tight`` with at most ``most`` micro-batches in flight; None if it has that.

    ``tight`` is ``solution`` with transfers. One micro-batch after another, everything in order, is the last resort.
    """
    if tight.transfers == solution.transfers or problem.in_flight(tight) <= most:
        return None
    traffic = Traffic(problem, solution)
    runs = traffic.runs()

    def trial(period: int) -> list[int] | None:
        budget.spend(WORK * len(traffic.times))
        starts = insert(traffic, period, runs)
        return starts if starts is not None and _in_flight(traffic, period, starts) <= most else None

    longest = max(tight.period, sum(traffic.times))
    return traffic.solution_of(*(_grow(trial, tight.period, longest, budget) or _in_order(traffic, longest)))


def _latency(traffic: Traffic, starts: list[int]) -> int:
    ends = [starts[v] + traffic.times[v] for v in range(traffic.operations)]
    return max(ends) - min(starts[: traffic.operations])


def _grow(trial: Trial, least: int, limit: int | None, budget: Budget) -> tuple[int, list[int]] | None:
    """About the shortest period of more than ``least`` and less than ``limit`` for which ``trial`` finds starts."""
    low, step = least, max(1, least // 200)
    most = 64 * least + 64
    best: tuple[int, list[int]] | None = None
    while best is None:
        period = low + step
        if period > most or (limit is not None and period >= limit):
            break
        starts = trial(period)
        if starts is not None:
            best = (period, starts)
        else:
            low, step = period, step + max(1, step // 2)
    if best is None:
        return None
    for _ in range(STEPS):
        if best[0] - low <= max(1, low // CLOSE) or budget.spent():
            break
        middle = (low + best[0]) // 2
        starts = trial(middle)
        if starts is None:
            low = middle
        else:
            best = (middle, starts)
    return best


def _in_order(traffic: Traffic, least: int) -> tuple[int, list[int]]:
    """The shortest period, and starts, when every resource does everything in one linear order, once a window."""
    order = [node for run in traffic.runs() for node in run]
    position = {node: i for i, node in enumerate(order)}
    before = [dict.fromkeys(mine) for mine in traffic.before]
    back: dict[tuple[int, int], int] = {(u, v): distance for u, v, distance in traffic.back}
    for number, members in enumerate(traffic.members):
        for lane in _lanes(traffic, sorted((m[0] for m in members), key=position.__getitem__), number):
            for u, v in pairwise(lane):
                before[v][u] = None
            window = (lane[-1], lane[0])
            back[window] = min(back.get(window, traffic.distances[number]), traffic.distances[number])
    edges: list[Back] = [(u, v, distance) for (u, v), distance in back.items()]
    waits = [tuple(mine) for mine in before]
    high = max(1, least, sum(traffic.times))
    best = least_starts(order, waits, traffic.times, edges, high)
    assert best is not None, "one after another everything fits in a window"
    low = max(1, least)
    while low < high:
        middle = (low + high) // 2
        starts = least_starts(order, waits, traffic.times, edges, middle)
        if starts is None:
            low = middle + 1
        else:
            best, high = starts, middle
    return high, best


def _lanes(traffic: Traffic, nodes: list[int], line: int) -> list[list[int]]:
    """What uses a resource, dealt out to as many lanes as it carries at once, the least loaded first."""
    lanes: list[list[int]] = [[] for _ in range(min(traffic.capacities[line], len(nodes)))]
    loads = [0] * len(lanes)
    for node in nodes:
        lane = loads.index(min(loads))
        lanes[lane].append(node)
        loads[lane] += traffic.times[node]
    return [lane for lane in lanes if lane]
