"""Contiguous stages of least period where values take time to move between them.

For a trial period ``T`` a stage is allowed when its operations and what enters and leaves it fit in ``T``
(``linked_costs.py``): one after the other where an accelerator stands still during a transfer, else side by side. A
longer stage may be shorter to run now, since less crosses its ends, so what ``stages.py`` builds on does not hold, and
the dynamic program is over positions: the least number of accelerators that cover the first ``j`` segments. It goes
from one number of accelerators to the next, so all positions that need as many are extended at once, and the place
of their blocks, and with it the level of the border that they cross, is known.

Three things are only estimated there: between stages of different widths both ends are priced at the stage's own
(and where that was far too little, at the width that makes it dearest, and again for fewer stages: then a value that
all stages read is sent to fewer);
what skips stages is priced as if it went to the next one; and a value that several stages read is sent once, or as
often as in the plan before. So the plan is priced exactly afterwards, as it will be placed, and the best one is kept;
the plan that does not look at links is among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from passes.scheduling.blocks import pack_blocks, width_families
from passes.scheduling.budget import Budget
from passes.scheduling.elementary import area_bound
from passes.scheduling.grains import Granularity, cuttable_orders, line_cuts
from passes.scheduling.granted import choose_allotments, place
from passes.scheduling.linked_costs import StageCosts, cheapest_cuts, widest_by_width
from passes.scheduling.linked_loads import busiest, is_linked, with_sets
from passes.scheduling.network import Network
from passes.scheduling.problem import MemoryProblem
from passes.scheduling.profiles import Choices, Profile, Stage
from passes.scheduling.recurrence import recurrence_bound
from passes.scheduling.stages import StagePlan, better, in_turns, partition_stages
from passes.scheduling.together import gathered

Positions = NDArray[Any]

MOST_CUTS = 2048
"""Positions of the order at which it may be cut, at most; of more those at which least crosses are kept."""

ROUNDS = 2
"""How often a partition is repeated with the number of stages that values are sent to in the one before."""

STEP = 2e-8
"""Work for each stage that a trial period looks at."""

PRICING = 5e-5
"""Work for each operation and width of an order."""

FINE = 2000
"""What part of the period the search may be off for a number of stages that is only tried."""

PATIENCE = 2
"""Numbers of stages without a better plan after which no greater ones are tried."""

FAR = 1.5
"""How many times as long as estimated a plan must take to make the next estimate a cautious one."""


@dataclass(frozen=True)
class _Piece:
    """Segments ``begin..end`` at the width of this number."""

    begin: int
    end: int
    number: int


# --- the dynamic programs ----------------------------------------------------------------------


class Line:
    """An order with the costs of its stages: which of them cover it within a trial period."""

    def __init__(self, costs: StageCosts, budget: Budget):
        self.costs, self.budget = costs, budget
        self.n, self.accelerators, self.widths = costs.n, costs.profile.accelerators, costs.widths
        self.never = self.accelerators + 1

    def _table(self, number: int, q: int) -> Any:
        """Least periods of the stages whose block begins at accelerator ``q``."""
        return self.costs.table(number, self.costs.border(q), self.costs.border(q + self.widths[number]))

    def cover(self, period: int) -> list[_Piece] | None:
        """Stages of at most ``period`` on the fewest accelerators, or None when there are none."""
        need = self._least(period)
        if need[self.n] == self.never:
            return None
        pieces: list[_Piece] = []
        end = self.n
        while end:
            pieces.append(self._last(need, int(need[end]), end, period))
            end = pieces[-1].begin
        return pieces[::-1]

    def _least(self, period: int) -> Positions:
        """The fewest accelerators for the first segments, by their number."""
        need = np.full(self.n + 1, self.never, dtype=np.int64)
        need[0] = 0
        for q in range(self.accelerators):
            begins = np.flatnonzero(need == q)
            if not len(begins):
                continue
            for number, width in enumerate(self.widths):
                if q + width <= self.accelerators:
                    self._extend(need, self._table(number, q), begins, q + width, period)
            if need[self.n] == q + 1:
                break
        return need

    def _extend(self, need: Positions, table: Any, begins: Positions, wide: int, period: int) -> None:
        rows, steps = np.nonzero(table[begins] <= period)
        self.budget.spend(STEP * len(begins) * table.shape[1])
        ends = begins[rows] + steps + 1
        need[ends] = np.minimum(need[ends], wide)

    def _last(self, before: Positions, q: int, end: int, period: int) -> _Piece:
        """A stage that ends at ``end`` when ``q`` accelerators are taken, after ``before``; the shortest to run."""
        best: tuple[int, int, int] | None = None
        for number, width in enumerate(self.widths):
            if width > q:
                break
            table = self._table(number, q - width)
            begins = np.arange(max(0, end - table.shape[1]), end)
            found = table[begins, end - 1 - begins]
            found = np.where(before[begins] == q - width, found, self.costs.profile.most + period + 1)
            at = int(found.argmin())
            if found[at] <= period and (best is None or (int(found[at]), number) < best[:2]):
                best = (int(found[at]), number, int(begins[at]))
        assert best is not None, "a number of accelerators without a stage that explains it"
        return _Piece(best[2], end, best[1])

    def _to_the_end(self, period: int) -> Positions:
        """About the fewest accelerators from each position to the end: borders are taken for innermost ones."""
        need = np.full(self.n + 1, self.never, dtype=np.int64)
        need[self.n] = 0
        for q in range(self.accelerators):
            ends = np.flatnonzero(need == q)
            for number, width in enumerate(self.widths):
                if not len(ends) or q + width > self.accelerators:
                    break
                level = self.costs.network.level_of((0, width - 1))
                table: Any = self.costs.table(number, level, level)
                steps: Any = np.arange(int(table.shape[1]))
                begins: Any = ends[:, None] - 1 - steps
                good: Any = (begins >= 0) & (table[np.maximum(begins, 0), steps] <= period)
                need[begins[good]] = np.minimum(need[begins[good]], q + width)
        return need

    def staged(self, period: int, most: int, count: int | None = None) -> list[_Piece] | None:
        """The fewest stages of at most ``period``, of up to ``most``; or exactly ``count`` of them; None: none."""
        rest = self._to_the_end(period)
        layers = [np.full(self.n + 1, self.never, dtype=np.int64)]
        layers[0][0] = 0
        for step in range(1, most + 1):
            before, now = layers[-1], np.full(self.n + 1, self.never, dtype=np.int64)
            alive = np.flatnonzero(before + rest <= self.accelerators)
            if not len(alive):
                return None
            for number, width in enumerate(self.widths):
                self._layer(before, now, alive, number, width, period)
            layers.append(now)
            if now[self.n] <= self.accelerators and (count is None or step == count):
                return self._stages_of(layers, period)
        return None

    def _layer(self, before: Positions, now: Positions, alive: Positions, number: int, width: int, period: int) -> None:
        """Add one stage of ``width`` to what ``before`` has, at all positions that are ``alive``."""
        borders: dict[tuple[int, int], list[int]] = {}
        for q in np.unique(before[alive]):
            if q + width <= self.accelerators:
                key = (self.costs.border(int(q)), self.costs.border(int(q) + width))
                borders.setdefault(key, []).append(int(q))
        for (entry, leave), numbers in borders.items():
            begins = alive[np.isin(before[alive], numbers)]
            table = self.costs.table(number, entry, leave)
            rows, steps = np.nonzero(table[begins] <= period)
            self.budget.spend(STEP * len(begins) * table.shape[1])
            np.minimum.at(now, begins[rows] + steps + 1, before[begins][rows] + width)

    def _stages_of(self, layers: list[Positions], period: int) -> list[_Piece]:
        pieces: list[_Piece] = []
        end, q = self.n, int(layers[-1][self.n])
        for before in reversed(layers[:-1]):
            pieces.append(self._last(before, q, end, period))
            q -= self.widths[pieces[-1].number]
            end = pieces[-1].begin
        return pieces[::-1]

    def period(self, pieces: Sequence[_Piece]) -> int:
        """The longest of these stages, placed one after the other."""
        q, longest = 0, 1
        for piece in pieces:
            table = self._table(piece.number, q)
            longest = max(longest, int(table[piece.begin, piece.end - piece.begin - 1]))
            q += self.widths[piece.number]
        return longest


# --- the solver --------------------------------------------------------------------------------


def partition_linked(
    problem: MemoryProblem,
    *,
    stages: int | None = None,
    reserve: int = 0,
    tolerance: float = 0.005,
    budget: Budget | None = None,
    granularity: Granularity = "operator",
) -> StagePlan:
    """:func:`partition_stages`, which see, with the time that values take to move: the same where they take none.

    The ``period`` of the plan and the ``load`` of its stages are those of its loads with transfers, of the
    accelerators and of the links, exactly. The least period is found where no value is read in several stages
    beyond the next and prices do not depend on the widths of both ends; otherwise it is an estimate.
    """
    budget = budget or Budget()
    asked: dict[str, Any] = {"reserve": reserve, "tolerance": tolerance, "granularity": granularity}
    plain = partition_stages(problem, stages=stages, budget=budget, **asked)
    if not is_linked(problem) or not plain.stages:
        return plain
    first = priced(problem, plain)
    if first.period <= plain.period * (1 + tolerance):
        return first  # no partition takes less than this one without links, and links are hardly noticed
    search = _Search(problem, stages, reserve, tolerance, budget, first)
    families = [(Choices(problem, w), Choices(problem, w, widest_by_width)) for w in width_families(problem)]
    try:
        for order, cuts in cuttable_orders(problem, granularity):
            for choices in families:
                if budget.spent():
                    return search.best
                search.look(choices, order, order, cuts)
                line = gathered(order, problem.items)
                for at in line_cuts(problem, line, granularity) if line != order else ():
                    search.look(choices, order, line, at)
    except KeyboardInterrupt:
        budget.stop()
    return search.best


def priced(problem: MemoryProblem, plan: StagePlan) -> StagePlan:
    """``plan`` with the loads that its blocks have, with transfers, as ``schedule_blocks`` will place it."""
    blocks = pack_blocks(plan.widths, problem.accelerators, problem.group)
    assert blocks is not None, "the widths were chosen so that they can be packed"
    granted = plan.granted(blocks)
    staged = problem.staged(granted, plan.homes())
    allotments = choose_allotments(staged)
    busy = busiest(problem, with_sets(allotments, place(staged, allotments)))
    stages = [
        replace(stage, load=max(busy.get(p, 0) for p in block))
        for stage, block in zip(plan.stages, granted, strict=True)
    ]
    return replace(plan, stages=tuple(stages), period=max(1, *busy.values()))


class _Search:
    """The best plan so far, and what looks for a better one on further orders."""

    def __init__(
        self,
        problem: MemoryProblem,
        stages: int | None,
        reserve: int,
        tolerance: float,
        budget: Budget,
        first: StagePlan,
    ):
        assert problem.network is not None
        self.problem, self.network, self.stages, self.reserve = problem, problem.network, stages, reserve
        self.tolerance, self.budget, self.best = tolerance, budget, first
        recurrence = recurrence_bound(problem)
        self.low = max(1, area_bound(problem).value, recurrence.value if recurrence else 0)

    def look(
        self, choices: Sequence[Choices], order: Sequence[int], line: Sequence[int], cuts: tuple[int, ...]
    ) -> None:
        """Look for a better plan that cuts ``line``, which is ``order`` with groups gathered."""
        longest = 2**58 // (len(line) + 1)  # beyond, sums would leave 64 bits
        if choices[0].most >= longest:
            return
        cuts = cheapest_cuts(self.problem, choices[0], line, cuts, MOST_CUTS)
        profiles = [Profile(c, line, self.reserve, cuts) for c in choices]
        counts: list[int | None] = [self.stages]
        if line != order and self.stages is not None:
            counts = [*sorted({self.stages - 1, (self.stages + 1) // 2} - {0})]
        reading: dict[object, int] = {}
        known: dict[bool, StageCosts] = {}
        cautious = False

        def solve(counts: Sequence[int | None]) -> tuple[int, StagePlan | None]:
            limit = min(int(self.best.period * (1 + self.tolerance)), longest)
            like = known.get(cautious)
            costs = StageCosts(self.problem, self.network, choices, profiles, line, limit, reading, cautious, like)
            known.setdefault(cautious, costs)
            self.budget.spend(PRICING * len(line) * len(costs.widths))
            return self._solve(Line(costs, self.budget), counts, choices[0], order, line)

        for step in range(ROUNDS + 1):
            estimate, least = solve(counts)
            if least is None or self.budget.spent() or least.period <= estimate * (1 + self.tolerance):
                return
            again = self._reading(least)
            if again == reading and cautious:
                return
            if not step and self.stages is None and least.period > FAR * estimate:
                worse = 0
                for count in _numbers(len(least.stages)):
                    before, reading = self.best.period, {key: min(n, count - 1) for key, n in again.items()}
                    _, plan = solve([count])
                    worse = worse + 1 if plan is not None and self.best.period == before else 0
                    if worse == PATIENCE or self.budget.spent():
                        break
            cautious = cautious or again == reading or least.period > FAR * estimate
            reading = again

    def _reading(self, plan: StagePlan) -> dict[object, int]:
        return {} if self.network.mode == "buffered" else _reading(self.problem, self.network, plan)

    def _solve(
        self,
        line: Line,
        counts: Sequence[int | None],
        choices: Choices,
        order: Sequence[int],
        positions: Sequence[int],
    ) -> tuple[int, StagePlan | None]:
        """The estimate and the plan of least period; the best plan is kept."""
        result: tuple[int, StagePlan | None] = (0, None)
        for count in counts:
            for pieces in self._least(line, count):
                stages = [Stage(p.begin, p.end, line.widths[p.number], 0) for p in pieces]
                idle = line.accelerators + choices.unusable - sum(s.width for s in stages)
                plan = StagePlan(tuple(positions), line.costs.profile.in_order(stages), 0, idle)
                if positions != order:
                    plan = in_turns(plan, choices, order)
                plan = priced(self.problem, plan)
                if result[1] is None:
                    result = (line.period(pieces), plan)
                if self.stages is not None and len(plan.stages) != self.stages:
                    continue
                if better(plan, self.best, self.tolerance):
                    self.best = plan
                    self.budget.report("stages", plan.period)
        return result

    def _least(self, line: Line, count: int | None) -> list[list[_Piece]]:
        """Stages of least period, and the fewest with about that."""

        def solve(period: int) -> list[_Piece] | None:
            return line.cover(period) if count is None else line.staged(period, count, count)

        low, high = self.low, min(int(self.best.period * (1 + self.tolerance)), 2**58 // (line.n + 1))
        found = solve(high)
        if found is None:
            return []
        high = line.period(found)
        fine = 0 if count is None or count == self.stages else high // FINE
        while high - low > fine and not self.budget.spent():
            middle = (low + high) // 2
            trial = solve(middle)
            if trial is None:
                low = middle + 1
            else:
                found, high = trial, line.period(trial)
        if count is not None or self.budget.spent():
            return [found]
        return [found, self._fewer(line, found, int(high * (1 + self.tolerance)))]

    def _fewer(self, line: Line, found: list[_Piece], limit: int) -> list[_Piece]:
        """Fewest stages with a period of at most ``limit``, then about the least period with that many."""
        best = line.staged(limit, len(found)) or found
        if len(best) == len(found):
            return found
        low, high, fine = line.period(found), line.period(best), max(1, limit // 2000)
        while high - low >= fine and not self.budget.spent():
            middle = (low + high) // 2
            trial = line.staged(middle, len(best))
            if trial is None:
                low = middle + 1
            else:
                best, high = trial, line.period(trial)
        return best


def _numbers(stages: int) -> list[int]:
    """Increasing numbers of stages below ``stages``, each about three quarters of the next."""
    found: list[int] = []
    while stages > 1:
        stages = stages * 3 // 4
        found.append(stages)
    return found[::-1]


def _reading(problem: MemoryProblem, network: Network, plan: StagePlan) -> dict[object, int]:
    """The number of other blocks that read each value, where that is more than one."""
    stage = plan.homes()
    block = [plan.turns[s] for s in stage] if plan.turns else stage
    found: dict[object, set[int]] = {}
    for d in problem.dependences:
        if d.bytes and block[d.producer] != block[d.consumer]:
            found.setdefault(network.key(d, ()), set()).add(block[d.consumer])
    return {key: len(blocks) for key, blocks in found.items() if len(blocks) > 1}
