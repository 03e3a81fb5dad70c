"""Stages whose blocks share boundary operations or take over a few operations of their successors.

Translates between a problem and the search of ``chain.py``, and turns its blocks into stages: every
run of the order that stays on one block is a stage, so a block that pulls operations forward has two or
more stages, and stages stay convex. More laps buy a shorter period with more micro-batches in flight;
of the plans with about the least period the one with fewest in flight is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from passes.scheduling.blocks import width_families
from passes.scheduling.budget import Budget
from passes.scheduling.chain import NEVER, Block, Chain, Effort, shortest
from passes.scheduling.elementary import area_bound, usable
from passes.scheduling.granted import schedule_blocks
from passes.scheduling.orders import topological_orders
from passes.scheduling.problem import MemoryProblem, StagedProblem

MOST_WIDTHS = 8
"""Widths of blocks tried; powers of two are preferred when a platform allows more."""

STATE_WORK = 3e-5
"""Work units for looking at one state of the beam; ten times as much where ranges may be pulled forward."""

LARGE = 200_000
"""Operations times accelerators beyond which fewer states are kept."""


@dataclass(frozen=True)
class SharedPlan:
    """Blocks of the stages, home stage of each operation, second stage of the shared ones."""

    blocks: tuple[tuple[int, ...], ...]
    homes: tuple[int, ...]
    shared: dict[int, int]
    period: int
    in_flight: int
    laps: int
    """Ranges pulled forward; each costs about one more micro-batch in flight."""

    def staged(self, problem: MemoryProblem) -> StagedProblem:
        """``problem`` with the stages of this plan."""
        return problem.staged(self.blocks, self.homes, self.shared)


def share_boundaries(
    problem: MemoryProblem,
    *,
    laps: int = 0,
    max_in_flight: int | None = None,
    reserve: int = 0,
    tolerance: float = 0.005,
    budget: Budget | None = None,
) -> SharedPlan | None:
    """The plan of least period with at most ``laps`` pulled ranges; within ``tolerance`` of it fewest in flight.

    Several topological orders are tried without laps, then laps are allowed step by step on the best of
    them. None when no plan was found: operations that fit no block, parameters that do not fit, or always
    more than ``max_in_flight`` micro-batches in flight; and for operations that share parameters, whose sets the
    search does not know how to keep together.
    """
    if problem.together:
        return None
    budget = budget or Budget()
    bound = max(1, area_bound(problem).value)
    candidates: list[SharedPlan] = []
    best: tuple[SharedPlan, Chain, tuple[int, ...]] | None = None
    for order in topological_orders(problem):
        if best is not None and budget.spent():
            break
        chain = _chain(problem, order, reserve)
        plan = _search(problem, chain, order, bound, 0, None, budget)
        if plan is not None and (best is None or plan.period < best[0].period):
            best = (plan, chain, order)
            candidates.append(plan)
    if best is None:
        return None
    if max_in_flight is not None:
        laps = min(laps, max(0, max_in_flight - best[0].in_flight))
    for limit in _steps(laps):
        if budget.spent():
            break
        known = min(c.period for c in candidates)
        plan = _search(problem, best[1], best[2], bound, limit, known, budget)
        if plan is not None:
            candidates.append(plan)
    fitting = [c for c in candidates if max_in_flight is None or c.in_flight <= max_in_flight]
    if not fitting:
        return None
    least = min(c.period for c in fitting)
    near = [c for c in fitting if c.period <= least * (1 + tolerance)]
    return min(near, key=lambda c: (c.in_flight, c.period))


def _steps(laps: int) -> list[int]:
    """Limits on laps to try: a quarter, a half, all."""
    return sorted({-(-laps // 4), -(-laps // 2), laps} - {0})


def _chain(problem: MemoryProblem, order: Sequence[int], reserve: int) -> Chain:
    tables = {id(o.table): o.table for o in problem.operations}
    count, memory = problem.accelerators, problem.memory
    times = {key: usable(table, count, memory) or usable(table, count) for key, table in tables.items()}
    params = {key: {k: c.params for k, c in table.items()} for key, table in tables.items()}
    widths = width_families(problem)[0]
    if len(widths) > MOST_WIDTHS:
        powers = [w for w in widths if w & (w - 1) == 0]
        widths = tuple(sorted({widths[0], *powers}))[:MOST_WIDTHS]
    keys = [id(problem.operations[v].table) for v in order]
    return Chain(
        [times[key] for key in keys],
        count,
        params=[params[key] for key in keys],
        memory=memory - reserve if memory else NEVER,
        group=problem.group,
        widths=widths,
    )


def _search(
    problem: MemoryProblem,
    chain: Chain,
    order: Sequence[int],
    bound: int,
    laps: int,
    known: int | None,
    budget: Budget,
) -> SharedPlan | None:
    """The best plan with at most ``laps`` laps, shorter than ``known``; None when none was found."""
    large = chain.n * chain.accelerators > LARGE
    effort = Effort(beam=2, look=24, back=1, pulls=2, pace=3) if large else Effort()
    if not laps and not large:  # without pulled ranges a wider search costs little
        effort = Effort(beam=32, back=8)
    best: list[tuple[Block, ...]] = []

    def found(period: int, blocks: tuple[Block, ...]) -> None:
        best.append(blocks)
        budget.report("beam", period)

    def stop(states: int) -> bool:
        budget.spend(STATE_WORK * states * (10 if laps else 1))
        return (bool(best) or known is not None) and budget.spent()

    try:
        shortest(chain, bound, laps, effort, known=known, on_found=found, stop=stop)
    except KeyboardInterrupt:
        if not best and known is None:
            raise
        budget.stop()
    if not best:
        return None
    plan = _stages(order, best[-1])
    staged = plan.staged(problem)
    solution, _ = schedule_blocks(staged)
    return SharedPlan(plan.blocks, plan.homes, plan.shared, solution.period, problem.in_flight(solution), plan.laps)


def _stages(order: Sequence[int], blocks: Sequence[Block]) -> SharedPlan:
    """Cut the order where the block changes; shared operations belong to the stage before them."""
    owner = [-1] * len(order)
    both = [False] * len(order)
    for number, block in enumerate(blocks):
        for position in (*block.own, *block.shared):
            if position not in block.skipped:
                owner[position] = number
        for position in block.shared:
            both[position] = True
    for number, block in enumerate(blocks):
        for position in block.pulled:
            owner[position], both[position] = number, False
    granted: list[int] = []
    homes = [0] * len(order)
    shared: dict[int, int] = {}
    for position, v in enumerate(order):
        if not granted or granted[-1] != owner[position]:
            granted.append(owner[position])
        homes[v] = len(granted) - 1
        if both[position]:
            shared[v] = len(granted)
            after = position + 1
            if after == len(order) or owner[after] not in (owner[position], owner[position] + 1):
                granted.append(owner[position] + 1)  # the next block runs nothing of its own: an empty stage
    accelerators = [tuple(range(b.first, b.first + b.width)) for b in blocks]
    laps = sum(1 for block in blocks if block.pulled)
    return SharedPlan(tuple(accelerators[number] for number in granted), tuple(homes), shared, 0, 0, laps)
