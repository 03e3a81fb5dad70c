"""Contiguous stages of which several copies serve micro-batches in turn (plan ``replicated``).

A stage of ``r`` copies on ``k`` accelerators each takes ``r·k`` accelerators and may run for ``r·T``. For a trial
``T`` the recurrence of ``stages.py`` goes over these shapes: ``reach[q]``, the furthest position that ``q``
accelerators cover, is the furthest that a stage of some shape extends to from ``reach[q - r·k]``, within ``r·T``
and with its parameters on every copy. Extending further never hurts what follows, so bisection on the integer
``T`` is exact over the order, the widths and the numbers of copies. (Subhlok and Vondran, "Optimal latency-throughput
tradeoffs for data parallel pipelines", SPAA 1996, replicate the stages of such mappings.)

A full pipeline holds one micro-batch in each copy of each stage, so of the plans with about the least period the
one with fewest copies in all is taken. Of those the one whose most copied stage has fewest copies, since each copy
holds all parameters of its stage; then, between orders and families, fewest bytes of parameters and the shorter period.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from passes.scheduling.blocks import divisor_chains, pack_blocks, width_families
from passes.scheduling.budget import Budget
from passes.scheduling.copies import copy_numbers
from passes.scheduling.data import InvalidProblem, Violation
from passes.scheduling.elementary import area_bound
from passes.scheduling.granted_copies import choose_copies, copied_sets, missing_bytes, schedule_replicated
from passes.scheduling.linked_copies import CopiedLine, CopiedPiece
from passes.scheduling.linked_costs import NEVER, StageCosts, cheapest_cuts, widest_by_width
from passes.scheduling.linked_loads import is_linked, load_bound
from passes.scheduling.orders import topological_orders
from passes.scheduling.problem import MemoryProblem, PeriodicProblem, StagedProblem
from passes.scheduling.profiles import Choices, Profile
from passes.scheduling.recurrence import recurrence_bound
from passes.scheduling.stages import partition_stages

Positions = NDArray[Any]

ROUNDS = 8
"""How often stages are cut to make live values fit in memory."""

LINKED_CUTS = 256
"""Positions of the order at which it may be cut, at most, where values take time to move."""

LONGEST = 2**50
"""Longer than any period, also when multiplied by the copies of a stage, ns."""

STEP = 1e-5
"""Work of one step of the dynamic programs over all accelerators."""


@dataclass(frozen=True)
class CopiedStage:
    """Operations ``begin..end`` of the order in ``copies`` copies on ``width`` accelerators; one run takes ``time``."""

    begin: int
    end: int
    copies: int
    width: int
    time: int

    @property
    def load(self) -> int:
        """Least period of this stage, ns."""
        return -(-self.time // self.copies)


@dataclass(frozen=True)
class ReplicatedPlan:
    """A contiguous partition: ``order`` cut into ``stages``, and the accelerators of all copies of each stage."""

    order: tuple[int, ...]
    stages: tuple[CopiedStage, ...]
    blocks: tuple[tuple[int, ...], ...]
    parameters: int
    """Bytes of parameters on all accelerators together."""

    @property
    def period(self) -> int:
        """The longest stage, divided by its copies."""
        return max((1, *(s.load for s in self.stages)))

    @property
    def copies(self) -> int:
        """Copies of all stages together: the micro-batches that a full pipeline holds."""
        return sum(s.copies for s in self.stages)

    @property
    def homes(self) -> tuple[int, ...]:
        """Stage of each operation, by the operation's number."""
        homes = [0] * len(self.order)
        for number, stage in enumerate(self.stages):
            for v in self.order[stage.begin : stage.end]:
                homes[v] = number
        return tuple(homes)

    def staged(self, problem: MemoryProblem) -> StagedProblem:
        """``problem`` with the stages of this plan."""
        return problem.staged(self.blocks, self.homes)


@dataclass(frozen=True)
class Shapes:
    """Numbers of copies, increasing, that a stage may have at each of the widths of a profile."""

    copies: tuple[tuple[int, ...], ...]

    def flat(self) -> list[tuple[int, int]]:
        """Pairs of the number of a width and a number of copies."""
        return [(number, r) for number, copies in enumerate(self.copies) for r in copies]

    def up_to(self, most: int) -> Shapes:
        """Those of at most ``most`` copies."""
        return Shapes(tuple(tuple(r for r in of if r <= most) for of in self.copies))


# --- which shapes ------------------------------------------------------------------------------


def shapes_of(problem: PeriodicProblem, widths: Sequence[int], most: int) -> Iterator[list[Shapes]]:
    """Shapes of stages on copies of ``widths``: for each choice of numbers all, then those that can always be packed.

    A stage no wider than a group must lie inside one. When its width is of the chain to which ``widths``
    belong, all stages can be packed, see ``blocks.py``; wider stages are packed copy by copy.
    """
    count, group = problem.accelerators, problem.group
    inside = {w for w in widths if w <= group}
    chain = next((c for c in divisor_chains(group) if inside <= set(c)), ())
    for numbers in copy_numbers(len(problem.operations), count, most):
        loose = tuple(tuple(r for r in numbers if r * k <= count) for k in widths)
        tight = tuple(
            tuple(r for r in of if r * k > group or r * k in chain or r == 1)
            for of, k in zip(loose, widths, strict=True)
        )
        yield [Shapes(loose)] if group == count or tight == loose else [Shapes(loose), Shapes(tight)]


def pack_copies(stages: Sequence[CopiedStage], count: int, group: int) -> list[tuple[int, ...]] | None:
    """Accelerators of each stage, or None when they cannot be packed.

    A stage no wider than a group lies inside one group, and so does each copy of a wider one that fits in one.
    """
    units: list[tuple[int, int]] = []
    for number, s in enumerate(stages):
        whole = s.copies * s.width <= group
        units += [(number, s.copies * s.width)] if whole else [(number, s.width)] * s.copies
    packed = pack_blocks([width for _, width in units], count, group)
    if packed is None:
        return None
    blocks: list[list[int]] = [[] for _ in stages]
    for (number, _), members in zip(units, packed, strict=True):
        blocks[number] += members
    return [tuple(sorted(block)) for block in blocks]


# --- the dynamic programs ----------------------------------------------------------------------


class Line:
    """A profile with arrays for whole sweeps: how far stages extend, by width and copies."""

    def __init__(self, profile: Profile):
        self.profile, self.n, self.count = profile, profile.n, profile.accelerators
        self.widths = profile.widths
        self.time = [_array(t) for t in profile.time]
        self.params = [_array(p) for p in profile.params]

    def ends(self, number: int, begins: Positions, lengths: Positions | int) -> Positions:
        """Furthest ends of stages of width ``number`` that begin at ``begins`` and take at most ``lengths`` ns."""
        time, params = self.time[number], self.params[number]
        ends = np.searchsorted(time, time[begins] + lengths, side="right") - 1
        if self.profile.room is not None:
            ends = np.minimum(ends, np.searchsorted(params, params[begins] + self.profile.room, side="right") - 1)
        return np.maximum(ends, begins)

    def length(self, copies: int, period: int) -> int:
        """How long a stage may take; no longer than possible operations do, since impossible ones take longer."""
        return min(copies * period, self.profile.most)

    def stage(self, number: int, copies: int, begin: int, end: int) -> CopiedStage:
        """A stage with its time."""
        time = self.profile.time[number]
        return CopiedStage(begin, end, copies, self.widths[number], time[end] - time[begin])

    def parameters(self, stages: Sequence[CopiedStage]) -> int:
        """Bytes of parameters of the copies of all stages on each of their accelerators, added up."""
        total = 0
        for s in stages:
            params = self.profile.params[self.widths.index(s.width)]
            total += s.copies * s.width * (params[s.end] - params[s.begin])
        return total


def _array(numbers: list[int]) -> Positions:
    """64-bit integers where sums stay below 2^62, Python integers otherwise."""
    return np.array(numbers, dtype=np.int64 if numbers[-1] < 2**61 else object)


def cover(line: Line, shapes: Shapes, period: int) -> list[CopiedStage] | None:
    """Stages of at most ``period`` that cover everything, or None when there are none."""
    reach = np.zeros(line.count + 1, dtype=np.int64)
    chosen: list[tuple[int, int] | None] = [None] * (line.count + 1)
    copies = [np.array(r, dtype=np.int64) for r in shapes.copies]
    taken = [r * width for r, width in zip(copies, line.widths, strict=True)]
    lengths = [np.array([line.length(r, period) for r in of]) for of in shapes.copies]
    for q in range(1, line.count + 1):
        reach[q] = reach[q - 1]
        for number, wide in enumerate(taken):
            fitting = bisect_right(wide, q)
            if not fitting:
                continue
            found = line.ends(number, reach[q - wide[:fitting]], lengths[number][:fitting])
            best = int(found.argmax())
            if found[best] > reach[q]:
                reach[q], chosen[q] = found[best], (number, int(copies[number][best]))
        if reach[q] == line.n:
            return _trace(line, reach, chosen, q)
    return None


def _trace(line: Line, reach: Positions, chosen: list[tuple[int, int] | None], q: int) -> list[CopiedStage]:
    stages: list[CopiedStage] = []
    while reach[q] > 0:
        shape = chosen[q]
        if shape is None:
            q -= 1
            continue
        number, copies = shape
        before = q - copies * line.widths[number]
        stages.append(line.stage(number, copies, int(reach[before]), int(reach[q])))
        q = before
    return stages[::-1]


def fewest(line: Line, shapes: Shapes, period: int, most: int) -> list[CopiedStage] | None:
    """Like :func:`cover` with the fewest copies in all, then the fewest accelerators; None if over ``most`` copies."""
    flat = [(number, r, r * line.widths[number]) for number, r in shapes.flat() if r <= most]
    everywhere = np.arange(line.n + 1)
    ends = [line.ends(number, everywhere, line.length(r, period)) for number, r, _ in flat]
    reach = [np.zeros(line.count + 1, dtype=np.int64)]
    choices: list[Positions] = []
    while reach[-1][line.count] < line.n:
        if len(choices) == most:
            return None
        now = reach[-1].copy()
        choice = np.full(line.count + 1, -1, dtype=np.int64)
        for index, (_, r, wide) in enumerate(flat):
            if r > len(choices) + 1:
                continue
            candidate = ends[index][reach[-r][: line.count + 1 - wide]]
            better = candidate > now[wide:]
            now[wide:][better] = candidate[better]
            choice[wide:][better] = index
        reach.append(now)
        choices.append(choice)
    q = int(np.searchsorted(reach[-1], line.n))
    stages: list[CopiedStage] = []
    total = len(choices)
    while total:
        index = int(choices[total - 1][q])
        if index < 0:
            total -= 1
            continue
        number, r, wide = flat[index]
        end = int(reach[total][q])
        total, q = total - r, q - wide
        stages.append(line.stage(number, r, int(reach[total][q]), end))
    return stages[::-1]


# --- the solver --------------------------------------------------------------------------------


def replicate_stages(
    problem: MemoryProblem,
    *,
    copies: int | None = None,
    reserve: int = 0,
    tolerance: float = 0.005,
    budget: Budget | None = None,
) -> ReplicatedPlan:
    """The contiguous stages with at most ``copies`` copies each of least period; within ``tolerance`` fewest copies.

    Without ``copies`` as many as ``problem.copies`` allows. ``reserve`` bytes of each accelerator are kept free of
    parameters; more when live values would not fit otherwise, because every copy holds parameters and so copies
    are what memory limits first. Exact for each topological order tried and each family of widths and numbers of
    copies, save that with groups a partition that cannot be packed is replaced by the best of a family that
    can. Raises :class:`InvalidProblem` when no partition fits, or operations share parameters; that its live
    values fit is not certain.
    """
    budget = budget or Budget()
    if problem.together:
        v = problem.together[0][0]
        message = f"'{problem.operations[v].name}' is of a group with others: such operations are not replicated"
        raise InvalidProblem([Violation("together", message, problem.together[0])])
    if copies is not None:
        problem = replace(problem, copies=copies)
    first = _least_stages(problem, reserve, tolerance, budget)
    best: tuple[int, ReplicatedPlan] | None = None
    plan: ReplicatedPlan | None = first
    for _ in range(ROUNDS if problem.memory else 0):
        if plan is None:
            break
        staged = plan.staged(problem)
        solution, _ = schedule_replicated(staged, tolerance=tolerance)
        fits = not missing_bytes(staged, solution)
        if fits and (best is None or solution.period < best[0]):
            best = (solution.period, plan)
        wanted = choose_copies(staged, 0, tolerance) or solution
        missing = missing_bytes(staged, wanted)
        if (fits and not missing) or budget.spent():
            break
        reserve = max(reserve + missing, 2 * reserve)
        plan = _next_stages(problem, reserve, tolerance, budget)
    return first if best is None else best[1]


def _next_stages(problem: MemoryProblem, reserve: int, tolerance: float, budget: Budget) -> ReplicatedPlan | None:
    try:
        return _least_stages(problem, reserve, tolerance, budget)
    except InvalidProblem:
        return None


def _least_stages(problem: MemoryProblem, reserve: int, tolerance: float, budget: Budget) -> ReplicatedPlan:
    """:func:`replicate_stages` for one ``reserve``."""
    if not problem.operations:
        return ReplicatedPlan((), (), (), 0)
    # Stages shorter than a cycle of carried values allows only add latency, and so length to the cycle.
    recurrence = recurrence_bound(problem)
    low = max(1, area_bound(problem).value, recurrence.value if recurrence else 0)
    best: ReplicatedPlan | None = None
    families = [Choices(problem, widths) for widths in width_families(problem)]
    orders = topological_orders(problem)
    for order in orders:
        for choices in families:
            line = Line(Profile(choices, order, reserve))
            for ways in shapes_of(problem, choices.widths, problem.copies):
                if best is not None and budget.spent():
                    return best
                tries = (_best_plan(problem, line, shapes, order, low, tolerance, budget) for shapes in ways)
                plan = next((p for p in tries if p is not None), None)
                if plan is not None and (best is None or _better(plan, best, tolerance)):
                    best = plan
                    budget.report("copies", plan.period)
    if best is None:
        partition_stages(problem, reserve=reserve)  # copies never help here, so this says what is missing
    assert best is not None, "stages without copies are among the shapes"
    return _linked(problem, best, orders, reserve, low, tolerance, budget) if is_linked(problem) else best


def _linked(
    problem: MemoryProblem,
    best: ReplicatedPlan,
    orders: Sequence[tuple[int, ...]],
    reserve: int,
    low: int,
    tolerance: float,
    budget: Budget,
) -> ReplicatedPlan:
    """``best``, or a plan that looked at what values take to move, if that has a shorter period with transfers."""
    assert problem.network is not None
    least = _with_transfers(problem, best, tolerance)
    families = [(Choices(problem, w), Choices(problem, w, widest_by_width)) for w in width_families(problem)]
    for order in orders:
        for choices in families:
            if budget.spent() or choices[0].most * (len(order) + 1) >= 2**60:
                return best
            cuts = cheapest_cuts(problem, choices[0], order, tuple(range(len(order) + 1)), LINKED_CUTS)
            profiles = [Profile(c, order, reserve, cuts) for c in choices]
            costs = StageCosts(problem, problem.network, choices, profiles, order, choices[0].most, {})
            for ways in shapes_of(problem, choices[0].widths, problem.copies):
                for shapes in ways:
                    pieces = CopiedLine(costs, shapes.flat(), budget).shortest(low, min(least, LONGEST), tolerance)
                    plan = None if pieces is None else _of_pieces(problem, costs, pieces, order)
                    if plan is None:
                        continue
                    period = _with_transfers(problem, plan, tolerance)
                    if period < least:
                        least, best = period, plan
                        budget.report("copies", period)
                    break
    return best


def _of_pieces(
    problem: MemoryProblem, costs: StageCosts, pieces: Sequence[CopiedPiece], order: Sequence[int]
) -> ReplicatedPlan | None:
    """The plan of these stages; None when it cannot be packed."""
    profile = costs.profile
    stages = [CopiedStage(p.begin, p.end, p.copies, costs.widths[p.number], p.time) for p in pieces]
    blocks = pack_copies(stages, problem.accelerators, problem.group)
    if blocks is None:
        return None
    stored = Line(profile).parameters(stages)
    stages = [replace(s, begin=profile.cuts[s.begin], end=profile.cuts[s.end]) for s in stages]
    return ReplicatedPlan(tuple(order), tuple(stages), tuple(blocks), stored)


def _with_transfers(problem: MemoryProblem, plan: ReplicatedPlan, tolerance: float) -> int:
    """The least period of ``plan`` by the loads of accelerators and links, as its copies will be chosen."""
    found = copied_sets(plan.staged(problem), 0, tolerance)
    return NEVER if found is None else load_bound(problem, found)


def _better(plan: ReplicatedPlan, rival: ReplicatedPlan, tolerance: float) -> bool:
    """Whether ``plan`` has the shorter period, or about the same with fewer copies or bytes of parameters."""
    if plan.period * (1 + tolerance) < rival.period or rival.period * (1 + tolerance) < plan.period:
        return plan.period < rival.period
    return (plan.copies, plan.parameters, plan.period) < (rival.copies, rival.parameters, rival.period)


def _best_plan(
    problem: MemoryProblem,
    line: Line,
    shapes: Shapes,
    order: Sequence[int],
    low: int,
    tolerance: float,
    budget: Budget,
) -> ReplicatedPlan | None:
    """The best plan of these shapes; None when there is none, or when it cannot be packed."""
    found = cover(line, shapes, line.profile.most)
    if found is None:
        return None
    high = _period(found)
    try:
        while low < high and not budget.spent():
            middle = (low + high) // 2
            trial = cover(line, shapes, middle)
            budget.spend(STEP * line.count * len(line.widths))
            if trial is None:
                low = middle + 1
            else:
                found, high = trial, _period(trial)
        if not budget.spent():
            found = _fewer(line, shapes, found, int(max(low, high) * (1 + tolerance)), budget)
    except KeyboardInterrupt:
        budget.stop()
    blocks = pack_copies(found, problem.accelerators, problem.group)
    if blocks is None:
        return None
    return ReplicatedPlan(tuple(order), tuple(found), tuple(blocks), line.parameters(found))


def _period(stages: Sequence[CopiedStage]) -> int:
    return max(1, max(s.load for s in stages))


def _fewer(line: Line, shapes: Shapes, found: list[CopiedStage], limit: int, budget: Budget) -> list[CopiedStage]:
    """Fewest copies with a period of at most ``limit``, then fewest of one stage, then the least period with those."""

    def solve(period: int, most: int, allowed: Shapes) -> list[CopiedStage] | None:
        budget.spend(STEP * len(allowed.flat()) * most)
        return fewest(line, allowed, period, most)

    best = solve(limit, sum(s.copies for s in found), shapes) or found
    most = sum(s.copies for s in best)
    numbers = sorted({r for _, r in shapes.flat() if r <= max(s.copies for s in best)})
    low, high = 0, len(numbers) - 1
    while low < high and not budget.spent():
        middle = (low + high) // 2
        trial = solve(limit, most, shapes.up_to(numbers[middle]))
        if trial is None:
            low = middle + 1
        else:
            best, high = trial, middle
    allowed = shapes.up_to(numbers[high])
    low, high, fine = min(_period(found), _period(best)), _period(best), max(1, limit // 20000)
    while high - low >= fine and not budget.spent():
        middle = (low + high) // 2
        trial = solve(middle, most, allowed)
        if trial is None:
            low = middle + 1
        else:
            best, high = trial, _period(trial)
    return best
