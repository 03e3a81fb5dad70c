"""Our own orders of a training step: the shortest found within the memory of every rank.

Three sources, from cheap to dear, each improving on what the one before found:

* *ramps* and the known schedules that belong to the placement of the stages, as far as they fit (``ramps.py``);
* list scheduling (``greedy.py``) under a grid of policies, then under changes of the best one;
* local search on the orders themselves (``improve.py``), which pays for steps of few cells.

All stop as soon as a lower bound (``bounds.py``) says that nothing shorter exists.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from passes.scheduling.steps.bounds import Objective, rank_bounds
from passes.scheduling.steps.cells import Line, Orders, Stage
from passes.scheduling.steps.greedy import Policy, listed
from passes.scheduling.steps.improve import improve
from passes.scheduling.steps.numbered import Numbered, Numbers
from passes.scheduling.steps.ramps import falling, first_orders

EFFORT = 3_000_000
"""Cells to put into orders; a second or so of one core for every million."""

LISTED = 0.6
"""Part of the effort for list scheduling."""

TRIED = 4
"""Cells that local search works through for the effort of listing one."""

POOL = 3
"""Orders from which local search starts."""


class DoesNotFit(ValueError):
    """A rank that cannot hold what a single micro-batch fills on it: ``needed`` bytes, of which it has ``limit``."""

    def __init__(self, rank: int, needed: int, limit: int):
        super().__init__(f"one micro-batch fills {needed} B on rank {rank}, which has {limit} B")
        self.rank, self.needed, self.limit = rank, needed, limit


def schedule_step(
    line: Line,
    microbatches: int,
    limits: Sequence[int] | None = None,
    *,
    objective: Objective = "makespan",
    effort: int = EFFORT,
    seed: int = 0,
) -> Orders:
    """Orders of a step that take little time and never hold more than ``limits`` bytes on the ranks.

    ``makespan`` is the time of the whole step, ``span`` the longest time from a rank's first start to its last end.
    Backwards are ``I`` and ``W``; they are ``B`` where the two apart would need more memory than there is. The same
    arguments give the same orders: ``effort`` counts cells, not seconds.

    Raises :class:`DoesNotFit` when no orders keep the limits, ``ValueError`` when there are no micro-batches.
    """
    if microbatches < 1:
        raise ValueError("a step has at least one micro-batch")
    if limits is not None:
        _check(line, limits)
    best: tuple[int, Orders] | None = None
    lines = _variants(line, limits)
    for variant in lines:
        search = _Search(variant, microbatches, limits, objective, seed)
        search.search(effort // len(lines))
        if search.pool and (best is None or search.cost < best[0]):
            best = search.cost, _merged(line, variant, search.orders)
    assert best is not None
    return best[1]


def _check(line: Line, limits: Sequence[int]) -> None:
    needed = [0] * len(limits)
    for stage in line.stages:
        needed[stage.rank] += stage.activation
    worst = max(range(len(limits)), key=lambda rank: needed[rank] - limits[rank])
    if needed[worst] > limits[worst]:
        raise DoesNotFit(worst, needed[worst], limits[worst])


def _variants(line: Line, limits: Sequence[int] | None) -> list[Line]:
    """The line such that no ``I`` needs memory: what it adds is held from ``F`` on, or ``I`` and ``W`` are one.

    Then the line as it is, for orders made from a rule and what local search makes of them.
    """
    if limits is None or all(stage.kept <= stage.activation for stage in line.stages):
        return [line]
    wide = replace(line, stages=tuple(replace(s, activation=max(s.activation, s.kept)) for s in line.stages))
    whole = replace(line, stages=tuple(_whole(s) if s.kept > s.activation else s for s in line.stages))
    needed = [sum(s.activation for s in wide.stages if s.rank == rank) for rank in range(line.ranks)]
    fits = all(bytes <= limit for bytes, limit in zip(needed, limits, strict=True))
    return [wide, whole, line] if fits else [whole, line]


def _whole(stage: Stage) -> Stage:
    return replace(stage, inputs=stage.inputs + stage.weights, weights=0, kept=0)


def _merged(line: Line, variant: Line, orders: Orders) -> Orders:
    """Orders of a variant as those of the line itself."""
    whole = {s for s, stage in enumerate(variant.stages) if stage != line.stages[s] and not stage.kept}
    return tuple(
        tuple(
            cell._replace(kind="B") if cell.kind == "I" and cell.stage in whole else cell
            for cell in cells
            if cell.kind != "W" or cell.stage not in whole
        )
        for cells in orders
    )


@dataclass(frozen=True)
class _Choice:
    """A policy in terms that can be changed one at a time; times and numbers relative to the line."""

    patience: float
    waiting: float
    idle: float
    """Allowance in mean times of a cell."""
    lead: float
    """Micro-batches in flight at the first stage, for every stage of the line."""
    ramp: bool
    """Whether that falls to one at the last stage."""
    deep: bool = True
    backlog: int | None = None

    def policy(self, line: Line) -> Policy:
        stages = len(line.stages)
        mean = sum(stage.work for stage in line.stages) / (3 * stages)
        most = max(1, round(self.lead * stages))
        leads = falling(most, stages) if self.ramp else [most] * stages
        return Policy(self.patience, self.waiting, round(self.idle * mean), leads, self.backlog, self.deep)


def _grid(chunks: bool) -> Iterator[_Choice]:
    """Policies to begin with, those first that are good most often."""
    for idle, (patience, waiting), (lead, ramp), deep in product(
        (1.1, 0.5, 64),
        ((1, 1), (0, 0.25), (1, 0.5), (0.5, 0), (0, 0)),
        ((2, False), (1, True)),
        (True, False) if chunks else (True,),
    ):
        yield _Choice(patience, waiting, idle, lead, ramp, deep)


class _Search:
    def __init__(self, line: Line, microbatches: int, limits: Sequence[int] | None, objective: Objective, seed: int):
        self.line, self.microbatches, self.limits, self.objective = line, microbatches, limits, objective
        self.rng, self.seed = random.Random(seed), seed
        self.numbered = Numbered(line, microbatches, objective)
        busiest = max(range(line.ranks), key=line.work)
        self.goal = max(rank_bounds(line, microbatches, limits, objective, {0, busiest, line.ranks - 1}))
        """No orders cost less: the bound of the ranks that mostly give the highest."""
        self.pool: dict[int, Numbers] = {}
        """The best orders by their cost."""
        self.used = 0

    @property
    def cost(self) -> int:
        return min(self.pool, default=1 << 62)

    @property
    def orders(self) -> Orders:
        return self.numbered.orders(self.pool[self.cost])

    def search(self, effort: int) -> None:
        self._begin()
        if self.limits is None or all(stage.kept <= stage.activation for stage in self.line.stages):
            self._list(round(effort * LISTED))
        self._improve(effort - self.used)

    def _take(self, numbers: Numbers) -> None:
        """Keep orders if they are among the best so far."""
        self.used += len(self.numbered.cells) // TRIED
        ends = self.numbered.ends(numbers)
        if ends is not None:
            self.pool.setdefault(max(self.numbered.costs(numbers, ends)), numbers)
            if len(self.pool) > POOL:
                del self.pool[max(self.pool)]

    def _begin(self) -> None:
        for orders in first_orders(self.line, self.microbatches, self.limits):
            self._take(self.numbered.numbers(orders))

    def _list(self, effort: int) -> None:
        """List under the grid, then under changes of the best policy."""
        best: tuple[int, _Choice] | None = None
        grid = _grid(len(self.line.stages) > self.line.ranks)
        while self.cost > self.goal and self.used < effort:
            choice = next(grid, None)
            if choice is None:
                assert best is not None
                choice = self._changed(best[1])
            found = listed(self.line, self.microbatches, self.limits, choice.policy(self.line))
            self.used += len(self.numbered.cells)
            cost = found.span if self.objective == "span" else found.makespan
            if best is None or cost <= best[0]:
                best = cost, choice
            if len(self.pool) < POOL or cost < max(self.pool):
                self._take(self.numbered.numbers(found.orders))

    def _changed(self, choice: _Choice) -> _Choice:
        """One term of a choice changed."""
        rng = self.rng
        term = rng.randrange(6)
        if term == 0:
            return replace(choice, patience=round(rng.random(), 2))
        if term == 1:
            return replace(choice, waiting=round(rng.random(), 2))
        if term == 2:
            return replace(choice, idle=round(choice.idle * 2 ** rng.gauss(0, 0.5), 3))
        if term == 3:
            return replace(choice, lead=min(3.0, choice.lead * 2 ** rng.uniform(-0.5, 0.5)))
        if term == 4:
            return replace(choice, ramp=not choice.ramp)
        return replace(choice, backlog=rng.choice((None, rng.randint(0, 2 * self.line.ranks))))

    def _improve(self, effort: int) -> None:
        """Local search with what effort is left, from the best orders in turn."""
        tries = effort * TRIED // len(self.numbered.cells) // POOL
        for _, numbers in sorted(self.pool.items()):
            if tries <= 0 or self.cost <= self.goal:
                break
            self._take(improve(self.numbered, numbers, self.limits, tries, self.goal, self.seed))
