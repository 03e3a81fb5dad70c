"""Stages and a schedule that fit in memory, of about the least period: plans are estimated, scheduled, corrected.

``memory_stages.py`` proposes stages that should fit; they are scheduled (``repairs.py``), and what each block really
holds is looked at. By as much as that is more or less than was thought, the room of a block at this distance from
the end is corrected, and stages are proposed again. The last resort is one micro-batch at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from passes.scheduling.blocks import pack_blocks, width_families
from passes.scheduling.budget import Budget
from passes.scheduling.data import InvalidProblem, Solution, Violation
from passes.scheduling.elementary import area_bound
from passes.scheduling.held import HeldProfile
from passes.scheduling.memory_stages import Fit, leanest, one_at_a_time, proposed
from passes.scheduling.orders import topological_orders
from passes.scheduling.problem import MemoryProblem, StagedProblem
from passes.scheduling.profiles import Choices
from passes.scheduling.recurrence import recurrence_bound
from passes.scheduling.repairs import MANNERS, Manner, Repair, Schedule, fullest, needed

ROUNDS = 6
"""How often stages of one order are proposed."""

GAIN = 0.001
"""By what part of the period stages must be better to be looked at."""

Found = tuple[StagedProblem, Solution, str]
"""A schedule that fits, the blocks it is on, and what made it."""


class Misfit(InvalidProblem):
    """No schedule fits; ``nearest`` is the one that misses least memory, with the problem that it solves."""

    def __init__(self, violations: Sequence[Violation], nearest: tuple[StagedProblem, Solution] | None = None):
        super().__init__(violations)
        self.nearest = nearest


@dataclass
class Line:
    """An order, widths and a manner of scheduling with what is known of them."""

    profile: HeldProfile
    memory: int
    manner: Manner = "soon"
    excess: list[int] = field(default_factory=list[int])
    """Bytes that blocks hold beyond the estimate, by their number from the end."""

    def room(self, depth: int) -> int:
        """Bytes that the estimate of the block of this number from the end may come to."""
        return self.memory - (self.excess[min(depth, len(self.excess) - 1)] if self.excess else 0)

    def learn(self, fit: Fit, staged: StagedProblem, solution: Solution) -> None:
        """Compare what the blocks really hold with the estimate."""
        holds = needed(staged, solution)
        real = [max(holds.get(p, 0) for p in block) for block in dict.fromkeys(staged.blocks)]
        self.excess = [have - thought for have, thought in zip(real, fit.needs, strict=True)][::-1]


@dataclass
class Fitting:
    """The search for one problem. ``blocks`` fixes their number, ``stages`` that of the stages on them."""

    problem: MemoryProblem
    schedule: Schedule
    budget: Budget
    blocks: int | None = None
    stages: int | None = None
    profiles: Sequence[HeldProfile] = ()
    lean: dict[int, Fit | None] = field(default_factory=dict[int, "Fit | None"])
    """Number of a profile → its leanest stages, where they were looked for."""
    nearest: tuple[int, StagedProblem, Solution] | None = None
    """Bytes missing in the schedule that misses least."""

    def __post_init__(self) -> None:
        self.profiles = self.profiles or profiles_of(self.problem)
        self.lines = [Line(p, self.problem.memory, manner) for p in self.profiles for manner in MANNERS]
        recurrence = recurrence_bound(self.problem)
        self.low = max(1, area_bound(self.problem).value, recurrence.value if recurrence else 0)

    def found(self) -> Iterator[Found]:
        """Schedules that fit, ever better ones; raises :class:`Misfit` when there are none."""
        best: int | None = None
        lines, lean = list(self.lines), False
        for _ in range(ROUNDS):
            for line in list(lines):
                fit = self.leanest(line.profile) if lean else self.suited(self._proposed(line))
                if fit is None or (best is not None and fit.period >= best * (1 - GAIN)):
                    lines.remove(line)
                    continue
                result = self._scheduled(fit, line, best)
                if result is not None:
                    best = result[1].period
                    yield result
                if best is not None and self.budget.spent():
                    return
            lean = not lines and not lean and best is None and self.nearest is None
            if lean:
                lines = list(self.lines)
        if best is None:
            last = self.last_resort()
            if last is None:
                raise self.misfit()
            yield last

    def _scheduled(self, fit: Fit, line: Line, most: int | None) -> Found | None:
        """A schedule of the proposal that fits, of a period below ``most``; what is learnt from others is kept."""
        staged = granted(self.problem, fit)
        repair = Repair(staged, self.schedule, self.budget, (line.manner,))
        made = repair.best(most)
        late = int(fit.period * 1.01)
        tried = min(repair.tried, key=lambda pair: (pair[1].period > late, pair[0]), default=None)
        if tried is not None:
            self._missed(*min(repair.tried, key=lambda pair: pair[0]), staged)
            line.learn(fit, staged, tried[1])
        elif made is not None:
            line.learn(fit, staged, made[0])
        return None if made is None else (staged, *made)

    def leanest(self, profile: HeldProfile) -> Fit | None:
        """What is looked at where nothing should fit: it may hold less than the estimate says."""
        number = next(i for i, known in enumerate(self.profiles) if known is profile)
        if number not in self.lean:
            self.lean[number] = leanest(profile, self.blocks, self.budget)
        return self.suited(self.lean[number])

    def _proposed(self, line: Line) -> Fit | None:
        return proposed(line.profile, line.room, self.low, self.blocks, self.budget)

    def suited(self, fit: Fit | None) -> Fit | None:
        """``fit`` if it has the stages asked for: a micro-batch may come to a block more than twice."""
        return fit if fit is None or self.stages in (None, len(fit.plan.stages)) else None

    def _missed(self, missing: int, solution: Solution, staged: StagedProblem) -> None:
        if self.nearest is None or missing < self.nearest[0]:
            self.nearest = (missing, staged, solution)

    def last_resort(self) -> Found | None:
        """One micro-batch at a time, or as few as fit."""
        for profile in self.profiles:
            line = Line(profile, self.problem.memory)
            for _ in range(ROUNDS):
                fit = self.suited(one_at_a_time(profile, line.room, self.blocks, self.budget))
                if fit is None and not line.excess:
                    fit = self.leanest(profile)
                if fit is None:
                    break
                result = self._scheduled(fit, line, None)
                if result is not None:
                    return result
        return None

    def misfit(self) -> Misfit:
        """What to say when nothing fits."""
        if self.nearest is None:
            stages = "stages" if self.stages is None else f"{self.stages} stages"
            message = f"no {stages} were found whose parameters and values fit in memory"
            return Misfit([Violation("memory", message, (), 1)])
        _, staged, solution = self.nearest
        return Misfit(list(staged.verify_memory(solution)), (staged, solution))


def profiles_of(problem: MemoryProblem) -> list[HeldProfile]:
    """What stages take and hold, for every family of widths and order that is tried.

    Where groups make a micro-batch come back, that is the order of the program, which frees memory soonest.
    """
    orders = [problem.topological] if problem.together else topological_orders(problem)
    return [
        HeldProfile(problem, Choices(problem, widths), order) for widths in width_families(problem) for order in orders
    ]


def granted(problem: MemoryProblem, fit: Fit) -> StagedProblem:
    """``problem`` with the blocks of the proposed stages."""
    plan = fit.plan
    blocks = pack_blocks(plan.widths, problem.accelerators, problem.group)
    assert blocks is not None, "the widths were chosen so that they can be packed"
    return problem.staged(plan.granted(blocks), plan.homes())


MORE = 1.004
"""By how much more memory is asked for when what was thought enough is not."""


def smallest_memory(
    problem: MemoryProblem, schedule: Schedule, budget: Budget, blocks: int | None = None, stages: int | None = None
) -> tuple[int, Found] | None:
    """About the least bytes of memory with which stages have a schedule, and that; None when none was found."""
    profiles = profiles_of(replace(problem, memory=0))
    lean = {number: leanest(profile, blocks, budget) for number, profile in enumerate(profiles)}
    if not any(lean.values()):
        return None

    def search(memory: int) -> Fitting:
        return Fitting(replace(problem, memory=memory), schedule, budget, blocks, stages, profiles, lean)

    memory = min(max(fit.needs) for fit in lean.values() if fit is not None)
    for _ in range(ROUNDS):
        tried = search(memory)
        found = tried.last_resort()
        if found is not None:
            less = fullest(found[0], found[1])
            again = search(less).last_resort()
            return (memory, found) if again is None else (less, again)
        missing = 0 if tried.nearest is None else tried.nearest[0]
        memory = max(memory + missing, int(memory * MORE) + 1)
    return None
