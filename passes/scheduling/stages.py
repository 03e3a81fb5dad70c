"""Contiguous stages over a topological order, each with its own number of accelerators, of least period.

For a trial period ``T`` let ``reach[q]`` be the furthest position of the order that ``q`` accelerators
cover. A stage of width ``w`` that begins at ``i`` extends to the furthest ``j`` whose operations
``i..j`` take at most ``T`` together, each at its fastest allotment of at most ``w``: one binary search
in prefix sums. ``reach[q] = max over w of extend_w(reach[q - w])``, and bisection on the integer ``T``
finds the least one with ``reach[P] = n``. Extending further never hurts what follows, since a shorter
rest takes no longer; so the result is the exact optimum over that order and those widths.
(Subhlok and Vondran, "Optimal mapping of sequences of data parallel tasks", PPoPP 1995, solve the same
problem by a dynamic program over positions and processors.)

Operations that share parameters are on one block. Either the order is not cut between the first and the last
of them, or they are moved to the first before it is cut, since loads do not depend on precedence. Then a
micro-batch comes back to that block, whose stages take turns on it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from passes.scheduling.blocks import capacity, width_families
from passes.scheduling.budget import Budget
from passes.scheduling.data import InvalidProblem, Violation
from passes.scheduling.elementary import area_bound, least, usable
from passes.scheduling.filled import Reach, all_by_width, first_unfilled
from passes.scheduling.grains import Granularity, cuttable_orders
from passes.scheduling.problem import MemoryProblem, PeriodicProblem
from passes.scheduling.recurrence import recurrence_bound
from passes.scheduling.together import gathered, runs

Positions = NDArray[Any]


@dataclass(frozen=True)
class Stage:
    """Operations ``begin..end`` of the order on ``width`` accelerators, ``load`` ns a period."""

    begin: int
    end: int
    width: int
    load: int


@dataclass(frozen=True)
class StagePlan:
    """A contiguous partition: ``order`` cut into ``stages``; ``idle`` accelerators are left over."""

    order: tuple[int, ...]
    stages: tuple[Stage, ...]
    period: int
    idle: int
    turns: tuple[int, ...] = ()
    """Block of each stage, numbered by first use, where some take turns on one; (): each stage has its own."""

    @property
    def widths(self) -> list[int]:
        """Accelerators of each block."""
        if not self.turns:
            return [s.width for s in self.stages]
        return list({block: s.width for block, s in zip(self.turns, self.stages, strict=True)}.values())

    def granted(self, blocks: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """The block of each stage, of ``blocks`` that have the :attr:`widths`."""
        return [blocks[block] for block in self.turns] if self.turns else list(blocks)

    def homes(self) -> list[int]:
        """Stage of each operation, by the operation's number."""
        homes = [0] * len(self.order)
        for number, stage in enumerate(self.stages):
            for v in self.order[stage.begin : stage.end]:
                homes[v] = number
        return homes


def fastest(times: dict[int, int], width: int) -> int | None:
    """The allotment of at most ``width`` of least time; of equal ones the widest, so that values stay where they are.

    None when no allotment is that narrow.
    """
    return min((k for k in times if k <= width), key=lambda k: (times[k], -k), default=None)


def fastest_by_width(times: dict[int, int], widths: Sequence[int]) -> list[int | None]:
    """:func:`fastest` for each of the increasing ``widths``."""
    found: list[int | None] = []
    best: int | None = None
    allotments = sorted(times)
    position = 0
    for width in widths:
        while position < len(allotments) and allotments[position] <= width:
            k = allotments[position]
            if best is None or times[k] <= times[best]:
                best = k
            position += 1
        found.append(best)
    return found


ByWidth = Callable[[dict[int, int], Sequence[int]], list[int | None]]


class Choices:
    """Time and parameter bytes of each operation at its fastest allotment, for each of some ``widths``.

    With ``by_width`` at the allotment that this chooses instead, and where blocks are to be filled at the width itself;
    :attr:`allotments` has it for each identity of a table (the first of the operation's ``keys``) and width.
    """

    def __init__(self, problem: PeriodicProblem, widths: Sequence[int], by_width: ByWidth = fastest_by_width):
        memory = problem.memory if isinstance(problem, MemoryProblem) else 0
        self.accelerators, self.memory, self.widths = capacity(problem, widths), memory, tuple(widths)
        self.unusable = problem.accelerators - self.accelerators
        by_width = all_by_width if problem.filled else by_width
        self.groups = [item for item in problem.items if len(item) > 1]
        self.keys = [(0, 0, True)] * len(problem.operations)
        chosen: dict[tuple[int, int, bool], list[tuple[int, int] | None]] = {}
        self.allotments: dict[int, list[int | None]] = {}
        for item, table in zip(problem.items, problem.item_tables, strict=True):
            if id(table) not in self.allotments:
                times = usable(table, problem.accelerators, memory) or usable(table, problem.accelerators)
                self.allotments[id(table)] = by_width(times, widths)
            for v in item:
                own = problem.operations[v].table
                first = v == item[0]  # which stands for the parameters of the whole group
                key = self.keys[v] = (id(table), id(own), first)
                if key not in chosen:
                    chosen[key] = [
                        None if k is None else (own[k].time, table[k].params if first else 0)
                        for k in self.allotments[id(table)]
                    ]
        longest = {key: max((b[0] for b in best if b is not None), default=0) for key, best in chosen.items()}
        self.most = max(1, sum(longest[key] for key in self.keys))
        """No contiguous partition needs a longer period."""
        impossible = (self.most + 1, 0)
        self.rows = {key: [b or impossible for b in best] for key, best in chosen.items()}


class Profile:
    """Prefix sums, over one order, of time and of parameter bytes for each width.

    ``cuts`` are the positions of the order, first and last included, at which stages may begin and end
    (None: any). Everything below counts in cuts: position ``i`` of the profile is ``cuts[i]`` of the order.
    """

    def __init__(self, choices: Choices, order: Sequence[int], reserve: int = 0, cuts: Sequence[int] | None = None):
        everywhere = range(len(order) + 1) if cuts is None else cuts
        self.cuts = _outside(choices.groups, order, everywhere) if choices.groups else tuple(everywhere)
        self.n, self.accelerators, self.widths = len(self.cuts) - 1, choices.accelerators, choices.widths
        self.unusable = choices.unusable
        self.room = choices.memory - reserve if choices.memory else None
        self.most = choices.most
        rows = [choices.rows[choices.keys[v]] for v in order]
        self.time = [self._sums(row[i][0] for row in rows) for i in range(len(self.widths))]
        self.params = [self._sums(row[i][1] for row in rows) for i in range(len(self.widths))]
        self._arrays: list[tuple[Positions, Positions]] | None = None

    def _sums(self, numbers: Iterable[int]) -> list[int]:
        sums = list(accumulate(numbers, initial=0))
        return [sums[at] for at in self.cuts]

    def in_order(self, stages: Sequence[Stage]) -> tuple[Stage, ...]:
        """``stages`` with positions of the order."""
        return tuple(replace(s, begin=self.cuts[s.begin], end=self.cuts[s.end]) for s in stages)

    def extend(self, number: int, begin: int, period: int) -> int:
        """Furthest end of a stage of width ``widths[number]`` that begins at ``begin``."""
        time = self.time[number]
        end = bisect_right(time, time[begin] + period, begin) - 1
        if self.room is not None:
            params = self.params[number]
            end = min(end, bisect_right(params, params[begin] + self.room, begin) - 1)
        return max(end, begin)

    def extend_all(self, number: int, period: int) -> Positions:
        """:meth:`extend` for every beginning at once."""
        if self._arrays is None:
            self._arrays = [(_array(t), _array(p)) for t, p in zip(self.time, self.params, strict=True)]
        time, params = self._arrays[number]
        ends = np.searchsorted(time, time + period, side="right") - 1
        if self.room is not None:
            ends = np.minimum(ends, np.searchsorted(params, params + self.room, side="right") - 1)
        return np.maximum(ends, np.arange(self.n + 1))


def _outside(groups: Sequence[Sequence[int]], order: Sequence[int], cuts: Sequence[int]) -> tuple[int, ...]:
    """Those of ``cuts`` that tear no group apart."""
    position = {v: i for i, v in enumerate(order)}
    inside = [0] * (len(order) + 1)
    for group in groups:
        span = [position[v] for v in group]
        inside[min(span) + 1] += 1
        inside[max(span) + 1] -= 1
    open_groups = list(accumulate(inside))
    return tuple(at for at in cuts if not open_groups[at])


def _array(numbers: list[int]) -> Positions:
    """64-bit integers where sums stay below 2^62, Python integers otherwise."""
    return np.array(numbers, dtype=np.int64 if numbers[-1] < 2**61 else object)


# --- any number of stages ----------------------------------------------------------------------


def cover(profile: Profile, period: int) -> list[Stage] | None:
    """Contiguous stages of at most ``period`` that cover everything, or None when there are none."""
    reach, choice = _furthest(profile, period)
    return _trace(profile, reach, choice, len(reach) - 1) if reach[-1] == profile.n else None


def _furthest(profile: Profile, period: int) -> tuple[list[int], list[int]]:
    """How far each number of accelerators reaches, up to the first that reaches the end, and its last stage's width."""
    reach, choice = [0] * (profile.accelerators + 1), [-1] * (profile.accelerators + 1)
    last = [(-1, 0)] * len(profile.widths)
    for q in range(1, profile.accelerators + 1):
        best, chosen = reach[q - 1], -1
        for number, width in enumerate(profile.widths):
            if width > q:
                break
            begin = reach[q - width]
            if last[number][0] != begin:
                last[number] = (begin, profile.extend(number, begin, period))
            if last[number][1] > best:
                best, chosen = last[number][1], number
        reach[q], choice[q] = best, chosen
        if best == profile.n:
            return reach[: q + 1], choice
    return reach, choice


def _trace(profile: Profile, reach: list[int], choice: list[int], q: int) -> list[Stage]:
    stages: list[Stage] = []
    end = reach[q]
    while end > 0:
        number = choice[q]
        if number < 0:
            q -= 1
            continue
        q -= profile.widths[number]
        stages.append(_stage(profile, number, reach[q], end))
        end = reach[q]
    return stages[::-1]


def _stage(profile: Profile, number: int, begin: int, end: int) -> Stage:
    time = profile.time[number]
    return Stage(begin, end, profile.widths[number], time[end] - time[begin])


def fewest(profile: Profile, period: int, most: int) -> list[Stage] | None:
    """Like :func:`cover` with the fewest stages, then the fewest accelerators; None if over ``most`` stages."""
    count = profile.accelerators
    widths = [w for w in profile.widths if w <= count]
    ends = [profile.extend_all(i, period) for i in range(len(widths))]
    reach = [np.zeros(count + 1, dtype=np.int64)]
    choices: list[Positions] = []
    while reach[-1][count] < profile.n:
        if len(choices) == most:
            return None
        before, now = reach[-1], reach[-1].copy()
        choice = np.full(count + 1, -1, dtype=np.int64)
        for number, width in enumerate(widths):
            candidate = ends[number][before[: count + 1 - width]]
            better = candidate > now[width:]
            now[width:][better] = candidate[better]
            choice[width:][better] = number
        if now[count] == before[count]:
            return None
        reach.append(now)
        choices.append(choice)
    q = int(np.searchsorted(reach[-1], profile.n))
    stages: list[Stage] = []
    for step in range(len(choices) - 1, -1, -1):
        number = int(choices[step][q])
        end = int(reach[step + 1][q])
        if number < 0:
            continue
        q -= profile.widths[number]
        stages.append(_stage(profile, number, int(reach[step][q]), end))
    return stages[::-1]


# --- a given number of stages ------------------------------------------------------------------


def exactly(profile: Profile, period: int, count: int) -> list[Stage] | None:
    """Exactly ``count`` non-empty stages on the fewest accelerators, or None when there are none.

    ``cost[s][j]`` is the least number of accelerators that cover the first ``j`` operations with ``s``
    stages; a stage of width ``w`` that ends at ``j`` may begin anywhere in a window that moves with
    ``j``, so each step is a sliding minimum.
    """
    n, never = profile.n, profile.accelerators + 1
    begins = [earliest(profile.extend_all(i, period)) for i in range(len(profile.widths))]
    cost = [np.full(n + 1, never, dtype=np.int64)]
    cost[0][0] = 0
    for _ in range(count):
        lowest = _Minima(cost[-1])
        now = np.full(n + 1, never, dtype=np.int64)
        for number, width in enumerate(profile.widths):
            now[1:] = np.minimum(now[1:], lowest.over(begins[number][1:], np.arange(n)) + width)
        cost.append(np.minimum(now, never))
    if cost[count][n] >= never:
        return None
    stages: list[Stage] = []
    end = n
    for step in range(count, 0, -1):
        end = _last_stage(profile, cost[step - 1], int(cost[step][end]), begins, end, stages)
    return stages[::-1]


def _last_stage(
    profile: Profile, before: Positions, need: int, begins: list[Positions], end: int, stages: list[Stage]
) -> int:
    for number, width in enumerate(profile.widths):
        first = int(begins[number][end])
        window = before[first:end]
        if len(window) and int(window.min()) + width == need:
            begin = first + int(window.argmin())
            stages.append(_stage(profile, number, begin, end))
            return begin
    raise AssertionError("a cost without a stage that explains it")


def earliest(ends: Positions) -> Positions:
    """For each end the earliest beginning whose stage reaches it (the end itself when there is none)."""
    n = len(ends) - 1
    positions = np.arange(n + 1)
    return np.minimum(np.searchsorted(ends, positions, side="left"), positions)


class _Minima:
    """Minimum of any window of an array by windows of powers of two."""

    def __init__(self, numbers: Positions):
        self.levels: list[Positions] = [numbers]
        span = 1
        while 2 * span <= len(numbers):
            below = self.levels[-1]
            self.levels.append(np.minimum(below[:-span], below[span:]))
            span *= 2
        self.none = int(numbers.max()) + 1

    def over(self, first: Positions, last: Positions) -> Positions:
        """Minimum of each ``numbers[first..last]``, both included; a large number where ``first > last``."""
        length = last - first + 1
        level = np.frexp(np.maximum(length, 1))[1] - 1
        result = np.full(len(first), self.none, dtype=np.int64)
        for depth in np.unique(level[length > 0]):
            at = (level == depth) & (length > 0)
            span = 1 << int(depth)
            numbers: Positions = self.levels[int(depth)]
            result[at] = np.minimum(numbers[first[at]], numbers[last[at] + 1 - span])
        return result


# --- the solver --------------------------------------------------------------------------------


def partition_stages(
    problem: PeriodicProblem,
    *,
    stages: int | None = None,
    reserve: int = 0,
    tolerance: float = 0.005,
    budget: Budget | None = None,
    granularity: Granularity = "operator",
) -> StagePlan:
    """The contiguous stages of least period; within ``tolerance`` of it the fewest stages.

    Fewer stages hold fewer micro-batches at once. ``stages`` fixes their number (of stages that take turns on
    one block only the commonest numbers of blocks are tried); ``reserve`` bytes of
    each accelerator are kept free of parameters. Several topological orders of a branching graph are
    tried. Exact for each of those orders and each family of widths that can be packed on the platform.
    With ``granularity`` "block" all operations of a block of the model are in one stage. Where the problem asks for
    blocks to be filled, operations are weighed at the width of their stage, and only such stages are made.
    Raises :class:`InvalidProblem` when no partition fits.
    """
    budget = budget or Budget()
    if not problem.operations:
        return StagePlan((), (), 1, problem.accelerators)
    best: StagePlan | None = None
    families = [Choices(problem, widths) for widths in width_families(problem)]
    # Stages shorter than a cycle of carried values allows only add latency, and so length to the cycle.
    recurrence = recurrence_bound(problem)
    bound = max(1, area_bound(problem).value, recurrence.value if recurrence else 0)
    for order, cuts in cuttable_orders(problem, granularity):
        for choices in families:
            if best is not None and budget.spent():
                return best
            plans = [_best_plan(bound, Profile(choices, order, reserve, cuts), order, stages, tolerance, budget)]
            line = gathered(order, problem.items)
            if line != order and granularity == "operator":
                profile = Profile(choices, line, reserve)
                for count in [None] if stages is None else sorted({stages - 1, (stages + 1) // 2} - {0}):
                    plan = _best_plan(bound, profile, line, count, tolerance, budget)
                    plans.append(plan and in_turns(plan, choices, order))
            for plan in plans:
                if plan is None or (stages is not None and len(plan.stages) != stages):
                    continue
                if best is None or better(plan, best, tolerance):
                    best = plan
                    budget.report("stages", plan.period)
    if best is None:
        raise InvalidProblem([no_partition(problem, stages, reserve, granularity)])
    return best


def better(plan: StagePlan, rival: StagePlan, tolerance: float) -> bool:
    """Whether ``plan`` has the shorter period, or about the same with fewer stages."""
    if plan.period * (1 + tolerance) < rival.period or rival.period * (1 + tolerance) < plan.period:
        return plan.period < rival.period
    return (len(plan.stages), plan.period) < (len(rival.stages), rival.period)


def _best_plan(
    low: int,
    profile: Profile,
    order: Sequence[int],
    count: int | None,
    tolerance: float,
    budget: Budget,
) -> StagePlan | None:
    def solve(period: int) -> list[Stage] | None:
        return cover(profile, period) if count is None else exactly(profile, period, count)

    found = solve(profile.most)
    if found is None:
        return None
    high = _period(found)
    try:
        while low < high and not budget.spent():
            middle = (low + high) // 2
            trial = solve(middle)
            if trial is None:
                low = middle + 1
            else:
                found, high = trial, _period(trial)
        if count is None and not budget.spent():
            limit = min(int(max(low, high) * (1 + tolerance)), profile.most)
            found = _fewer(profile, found, limit, budget)
    except KeyboardInterrupt:
        budget.stop()
    idle = profile.accelerators + profile.unusable - sum(s.width for s in found)
    return StagePlan(tuple(order), profile.in_order(found), _period(found), idle)


def in_turns(plan: StagePlan, choices: Choices, order: Sequence[int]) -> StagePlan:
    """``plan``, which cuts another order of the operations, as stages of ``order``: what runs on one block in turn."""
    stages: list[Stage] = []
    turns: list[int] = []
    names: dict[int, int] = {}
    for begin, end, block in runs(order, plan.homes()):
        width = plan.stages[block].width
        number = choices.widths.index(width)
        load = sum(choices.rows[choices.keys[v]][number][0] for v in order[begin:end])
        stages.append(Stage(begin, end, width, load))
        turns.append(names.setdefault(block, len(names)))
    return StagePlan(tuple(order), tuple(stages), plan.period, plan.idle, tuple(turns))


def _period(stages: Sequence[Stage]) -> int:
    return max(1, max(s.load for s in stages))


def _fewer(profile: Profile, found: list[Stage], limit: int, budget: Budget) -> list[Stage]:
    """Fewest stages with a period of at most ``limit``, then the least period with that many."""
    best = fewest(profile, limit, len(found)) or found
    low, high = _period(found), _period(best)
    fine = max(1, limit // 20000)
    while high - low >= fine and not budget.spent():
        middle = (low + high) // 2
        trial = fewest(profile, middle, len(best))
        if trial is None:
            low = middle + 1
        else:
            best, high = trial, _period(trial)
    return best


def no_partition(
    problem: PeriodicProblem, count: int | None, reserve: int, granularity: Granularity = "operator"
) -> Violation:
    """Say why there is no partition: memory when more of it would help, the number of stages otherwise."""
    memory = problem.memory if isinstance(problem, MemoryProblem) else 0
    how_many = "contiguous stages" if count is None else f"{count} contiguous stages"
    if memory and isinstance(problem, MemoryProblem):
        enough = _enough_memory(problem, count, reserve, granularity)
        if enough is not None:
            return Violation(
                "memory",
                f"the parameters do not fit: {how_many}{_between(granularity)} need at least {enough} bytes on each of"
                f" {problem.accelerators} accelerators"
                + (f" ({reserve} of them reserved for live values)" if reserve else "")
                + f", the platform has {memory}: {enough - memory} bytes are missing",
                (),
                enough - memory,
            )
    if problem.filled and (reason := first_unfilled(problem, _reaches(problem, granularity))) is not None:
        return reason
    what = f"{len(problem.operations)} operations"
    if granularity == "block":
        what += f" in {max(len(cuts) for _, cuts in cuttable_orders(problem, granularity)) - 1} whole blocks"
    filled = ", each filled by all its operations" if problem.filled else ""
    return Violation("stages", f"{what} on {problem.accelerators} accelerators cannot be cut into {how_many}{filled}")


def _reaches(problem: PeriodicProblem, granularity: Granularity) -> Iterator[Reach]:
    """How far stages of any length come on every order, on every family of widths."""
    for order, cuts in cuttable_orders(problem, granularity):
        for widths in width_families(problem):
            profile = Profile(Choices(problem, widths), order, 0, cuts)
            yield Reach(order, profile.cuts, _furthest(profile, profile.most)[0])


def _between(granularity: Granularity) -> str:
    return " of whole blocks" if granularity == "block" else ""


def _enough_memory(problem: MemoryProblem, count: int | None, reserve: int, granularity: Granularity) -> int | None:
    """The least memory with which some partition exists, over the orders and widths that are tried."""
    top = sum(max(c.params + c.output + c.workspace for c in o.table.values()) for o in problem.operations) + reserve
    orders = cuttable_orders(problem, granularity)

    def fits(memory: int) -> bool:
        larger = replace(problem, memory=memory)
        for order, cuts in orders:
            line, at = order, cuts
            if count is None and granularity == "operator" and (line := gathered(order, problem.items)) != order:
                at = None
            for widths in width_families(larger):
                profile = Profile(Choices(larger, widths), line, reserve, at)
                found = cover(profile, profile.most) if count is None else exactly(profile, profile.most, count)
                if found is not None:
                    return True
        return False

    return least(problem.memory, top, fits) if fits(top) else None
