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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from passes.scheduling.blocks import width_families
from passes.scheduling.budget import Budget
from passes.scheduling.covers import cover, exactly, fewest, furthest
from passes.scheduling.data import InvalidProblem, Violation
from passes.scheduling.elementary import area_bound, least
from passes.scheduling.filled import Reach, first_unfilled
from passes.scheduling.grains import Granularity, cuttable_orders, line_cuts
from passes.scheduling.problem import MemoryProblem, PeriodicProblem
from passes.scheduling.profiles import Choices, Profile, Stage
from passes.scheduling.recurrence import recurrence_bound
from passes.scheduling.together import gathered, runs


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
            for at in line_cuts(problem, line, granularity) if line != order else ():
                profile = Profile(choices, line, reserve, at)
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
            yield Reach(order, profile.cuts, furthest(profile, profile.most)[0])


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
            if count is None and (line := gathered(order, problem.items)) != order:
                at = line_cuts(problem, line, granularity)[0]
            for widths in width_families(larger):
                profile = Profile(Choices(larger, widths), line, reserve, at)
                found = cover(profile, profile.most) if count is None else exactly(profile, profile.most, count)
                if found is not None:
                    return True
        return False

    return least(problem.memory, top, fits) if fits(top) else None
