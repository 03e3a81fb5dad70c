"""Lower bound by an integer program over classes of operations, proven in integers.

Each class of equal operations decides how many of them run at each allotment; every :class:`Row` limits what they
may take. The linear program of ``dual.py`` mixes allotments inside one operation, this one does not, and it may ask for
more rows: whenever it finds allotments, ``configurations.py`` looks for a row that they violate. When it has no
solution, no schedule has the period or a shorter one. CP-SAT decides in exact integer arithmetic.

With a period that is not excluded, the program hands out allotments that no known argument speaks against.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from passes.scheduling.budget import Budget
from passes.scheduling.configurations import Covering, Pool, memory_of, time_of
from passes.scheduling.dual import memory_measure, time_measures
from passes.scheduling.elementary import OperationClass, operation_classes, possible
from passes.scheduling.problem import MemoryProblem, PeriodicProblem
from passes.scheduling.rows import Row, measure_row, meeting

MOST_OPERATIONS = 400
"""Larger problems are left to the cheaper bounds: there the linear program is as good."""

MOST_COLUMNS = 2_000
"""Columns of all classes beyond which the program is not tried."""

MOST_CUTS = 40
"""Rows of configurations added for one period."""

WORK = 2.0
"""Units for one integer program."""

Counts = list[list[int]]
"""How many operations of each class run at each of its columns."""


@dataclass
class ClassProgram:
    """The program of one problem; it remembers configurations from one period to the next."""

    problem: PeriodicProblem
    configurations: bool = True
    """Whether to look for rows of configurations too."""
    classes: list[OperationClass] = field(init=False)
    pool: Pool = field(default_factory=dict[tuple[tuple[int, int, int], ...], None])
    memory_pool: Pool = field(default_factory=dict[tuple[tuple[int, int, int], ...], None])

    def __post_init__(self) -> None:
        self.classes = operation_classes(self.problem)

    @property
    def memory(self) -> int:
        """Bytes of an accelerator; 0: not limited."""
        return self.problem.memory if isinstance(self.problem, MemoryProblem) else 0

    def too_large(self) -> bool:
        """Whether the program is not worth its time; also when an operation has no allotment at all."""
        return (
            not self.classes
            or len(self.problem.operations) > MOST_OPERATIONS
            or sum(len(c.columns) for c in self.classes) > MOST_COLUMNS
            or not all(c.columns for c in self.classes)
        )

    def rows(self, classes: Sequence[OperationClass], period: int) -> list[Row]:
        """The rows of the fixed dual feasible functions."""
        times = sorted({t for c in classes for _, t, _, _ in c.columns})
        measures = time_measures(period, times)
        if self.memory:
            measures.append(memory_measure(period, self.memory))
        return [measure_row(classes, m) for m in measures]

    def coverings(self, classes: Sequence[OperationClass], period: int) -> list[Covering]:
        """The configuration programs of time and, where it is limited, of memory."""
        if not self.configurations:
            return []
        accelerators = self.problem.accelerators
        found = [Covering(classes, time_of(classes, period), accelerators, self.pool)]
        if self.memory:
            resource = memory_of(classes, period, self.memory)
            found.append(Covering(classes, resource, accelerators, self.memory_pool))
        return found

    def decide(self, period: int, budget: Budget) -> Counts | str | None:
        """The name of what excludes ``period``, else how many operations of each class run at each column that meets
        the period. None when the budget ended the search before.
        """
        classes = meeting(self.classes, period)
        if classes is None:
            return "longest operation"
        rows = self.rows(classes, period)
        coverings = self.coverings(classes, period)
        for covering in coverings:
            row = covering.row(None, budget)
            if row is not None:
                return row.name
        cut = False
        for _ in range(MOST_CUTS):
            counts = feasible(classes, rows, self.problem.accelerators, budget)
            if not isinstance(counts, list):
                return None if counts is None else "integer program over configurations" if cut else "integer program"
            violated = [row for covering in coverings if (row := cut_off(covering, classes, counts, budget))]
            if not violated:
                return None if budget.spent() else counts
            rows += violated
            cut = True
        return None


def cut_off(
    covering: Covering, classes: Sequence[OperationClass], counts: Sequence[Sequence[int]], budget: Budget
) -> Row | None:
    """A row of configurations that ``counts`` violate.

    It is looked for at shares a little away from the counts, so that columns not used get a weight too.
    """
    for away in (0.05, 0.0):
        covering.fix(
            [
                [(1 - away) * x + away * each.count / len(taken) for x in taken]
                for each, taken in zip(classes, counts, strict=True)
            ]
        )
        row = covering.row(counts, budget)
        if row is not None:
            return row
    return None


def feasible(
    classes: Sequence[OperationClass], rows: Sequence[Row], accelerators: int, budget: Budget, least: bool = False
) -> Counts | bool | None:
    """Counts that keep every row; False: proven that there are none; None: not known within the budget.

    With ``least``, the counts whose most used row is used least, as far as the budget allows.
    """
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    x = [[model.new_int_var(0, each.count, "") for _ in each.columns] for each in classes]
    for each, variables in zip(classes, x, strict=True):
        model.add(sum(variables) == each.count)
    most = model.new_int_var(0, 10**6, "") if least else None
    for row in rows:
        terms = [
            (column[0] * weight, variable)
            for each, weights, variables in zip(classes, row.weights, x, strict=True)
            for column, weight, variable in zip(each.columns, weights, variables, strict=True)
            if weight
        ]
        used = cp_model.LinearExpr.weighted_sum([v for _, v in terms], [w for w, _ in terms])
        model.add(used <= accelerators * row.most)
        if most is not None and accelerators * row.most >= 10**6:
            model.add(used <= accelerators * row.most // 10**6 * most)
    if most is not None:
        model.minimize(most)
    solver = cp_model.CpSolver()
    _limit(solver, budget)
    status = solver.solve(model)
    budget.spend(max(0.001, solver.response_proto.deterministic_time))
    if status == cp_model.INFEASIBLE:
        return False
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return [[solver.value(v) for v in variables] for variables in x]
    return None


def _limit(solver: Any, budget: Budget) -> None:
    left, work = budget.left(), budget.work_left()
    solver.parameters.num_workers = budget.workers
    solver.parameters.interleave_search = True
    solver.parameters.random_seed = budget.seed
    solver.parameters.max_deterministic_time = WORK if work is None else min(WORK, work)
    if left is not None:
        solver.parameters.max_time_in_seconds = left
