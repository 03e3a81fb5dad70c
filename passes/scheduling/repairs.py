"""Schedules on given sets that fit in memory: other starts with about the same period, else a longer period.

*Laid out anew* (``inserted.py``): every operation as early as its accelerators are free, so that a run going back may
go around one going there, and fewer micro-batches are in flight than where runs follow each other without a gap; that
takes a little room on the circle, and the more there is, the fewer are in flight. *Retimed* (``retimed.py``):
operations run whole periods later or earlier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from passes.scheduling.budget import Budget
from passes.scheduling.data import Solution
from passes.scheduling.granted import schedule_blocks
from passes.scheduling.inserted import insert
from passes.scheduling.network import Network
from passes.scheduling.problem import MemoryProblem, StagedProblem
from passes.scheduling.retimed import retimed
from passes.scheduling.traffic import Traffic

CLOSE = (1.0, 1.003, 1.006)
"""Periods at which starts are laid out anew before anything else is tried, as multiples of the greatest load."""

SLOWER = (1.01, 1.02, 1.04, 1.07, 1.12, 1.2, 1.35, 1.6, 2.0, 2.6, 3.5, 5.0, 7.0, 10.0, 15.0, 25.0, 40.0, 64.0)
"""Those after it."""

STEPS = 4
"""How often the gap between a period that was too short and one that was not is halved."""

HEAVY = 16.0
"""What an accelerator weighs that has too little memory, beside the others' 1."""

WORK = 2e-5
"""Work of laying out one operation or transfer."""

Schedule = Callable[[StagedProblem], Iterator[tuple[Solution, str]]]
"""Schedules inside granted blocks, whatever they hold, and the engine of each."""


def needed(problem: MemoryProblem, solution: Solution) -> dict[int, int]:
    """Bytes on each accelerator that holds some."""
    return {p: params + live for p, (params, live) in problem.peak_memory(solution).items()}


def fullest(problem: MemoryProblem, solution: Solution) -> int:
    """Bytes on the fullest accelerator."""
    return max(needed(problem, solution).values(), default=0)


Runs = list[list[int]]

Manner = Literal["soon", "late"]
"""When operations that nothing waits for run: as soon as they may, or after all others of their run.

Soon, a value is freed soonest. Late, what others wait for is there sooner (the gradients of weights fill the gaps that
gradients of values leave: Qi, Wan, Huang, Lin, "Zero bubble pipeline parallelism", ICLR 2024), so fewer micro-batches
are in flight.
"""

MANNERS: tuple[Manner, ...] = get_args(Manner)


def hurried(problem: MemoryProblem, runs: Runs) -> Runs:
    """``runs`` with what nothing waits for in a run of its own, behind the transfers of its run."""
    found: Runs = []
    waiting: list[int] = []
    for run in runs:
        moves = run[0] >= len(problem.operations)
        if waiting and not moves:
            found.append(waiting)
            waiting = []
        if moves:
            found.append(run)
            continue
        needed_soon = [v for v in run if problem.successors[v]]
        waiting = [v for v in run if not problem.successors[v]]
        if not needed_soon:
            needed_soon, waiting = waiting, []
        found.append(needed_soon)
    return [*found, waiting] if waiting else found


@dataclass
class Repair:
    """The search for a schedule that fits in the blocks of ``problem``, in any of the ``manners``."""

    problem: StagedProblem
    schedule: Schedule
    budget: Budget
    manners: Sequence[Manner] = MANNERS
    tried: list[tuple[int, Solution]] = field(default_factory=list[tuple[int, Solution]])
    """Every schedule that misses memory, and how much it misses."""

    def best(self, most: int | None = None) -> tuple[Solution, str] | None:
        """A schedule that fits, of about the least period below ``most``, and what made it; None when there is none."""
        first, _ = schedule_blocks(replace(self.problem, network=None), budget=self.budget)
        alone = replace(self.problem, updated=())  # there may be fewer versions in another schedule
        if any(params > self.problem.memory for params, _ in alone.peak_memory(first).values()):
            self.tried.append((fullest(self.problem, first) - self.problem.memory, first))
            # An engine that knows links may take other allotments, on which parameters are smaller.
            made = self._scheduled() if self.problem.network is not None and "soon" in self.manners else None
            return made if made is not None and (most is None or made[0].period < most) else None
        linked = self.problem if self.problem.network is not None else replace(self.problem, network=Network(()))
        traffic = Traffic(linked, first)
        ways = [runs if m == "soon" else hurried(linked, runs) for runs in [traffic.runs()] for m in self.manners]
        base = max(first.period, traffic.least_period())
        for factor in CLOSE:
            period = int(base * factor)
            if (most is None or period < most) and (found := self._laid_out(traffic, ways, period)) is not None:
                return found, "insertion"
        made = self._scheduled() if "soon" in self.manners else None
        if made is not None:
            most = made[0].period if most is None else min(made[0].period, most)
        shorter = self._slower(traffic, ways, base, most)
        return shorter or (made if made is not None and made[0].period == most else None)

    def _fits(self, solution: Solution) -> bool:
        missing = fullest(self.problem, solution) - self.problem.memory
        if missing > 0:
            self.tried.append((missing, solution))
        return missing <= 0 and not self.problem.violations(solution)

    def _laid_out(self, traffic: Traffic, ways: Sequence[Runs], period: int) -> Solution | None:
        for runs in ways:
            self.budget.spend(WORK * len(traffic.times))
            starts = insert(traffic, period, runs)
            if starts is not None and self._fits(found := traffic.solution_of(period, starts)):
                return found
        return None

    def _scheduled(self) -> tuple[Solution, str] | None:
        """What the engine of the blocks makes of them, as it is or retimed."""
        made = list(self.schedule(self.problem))
        for solution, by in made:
            if self._fits(solution):
                return solution, by
        solution, by = min(made, key=lambda pair: fullest(self.problem, pair[0]))
        heavy = {p: HEAVY for p, size in needed(self.problem, solution).items() if size > self.problem.memory}
        for weights in ({}, heavy):
            found = retimed(self.problem, solution, weights, self.budget)
            if found != solution and self._fits(found):
                return found, f"{by}, retimed"
        return None

    def _slower(
        self, traffic: Traffic, ways: Sequence[Runs], base: int, most: int | None
    ) -> tuple[Solution, str] | None:
        low, longest = base, max(base, sum(traffic.times))
        best: Solution | None = None
        for factor in SLOWER:
            period = min(int(base * factor), longest)
            if most is not None and period >= most:
                return None
            best = self._laid_out(traffic, ways, period)
            if best is not None or period == longest:
                break
            low = period
        if best is None:
            return None
        for _ in range(STEPS):
            if best.period - low <= max(1, low // 500):
                break
            middle = (low + best.period) // 2
            found = self._laid_out(traffic, ways, middle)
            if found is None:
                low = middle
            else:
                best = found
        return best, "insertion"
