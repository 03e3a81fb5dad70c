"""Lower bounds by an integer program over classes of operations, and by configurations, proven in integers.

Each class of equal operations decides how many of them run at each allotment; every :class:`Row` limits what they
may take. The linear program of ``dual.py`` mixes allotments inside one operation, this one does not, and it may ask for
more rows: whenever it finds allotments, ``configurations.py`` looks for a row that they violate. When it has no
solution, no schedule has the period or a shorter one. CP-SAT decides in exact integer arithmetic.

For a period that is not excluded the program hands out allotments that no known argument speaks against.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from passes.scheduling.budget import Budget
from passes.scheduling.configurations import Covering, Known, Pool, memory_of, time_of
from passes.scheduling.dual import Column, memory_measure, time_measures
from passes.scheduling.elementary import Bound, OperationClass, area_bound, operation_classes
from passes.scheduling.exclusion import greatest_excluded
from passes.scheduling.interruptible import solve
from passes.scheduling.problem import MemoryProblem, PeriodicProblem
from passes.scheduling.rows import Row, measure_row, meeting

MOST_OPERATIONS = 400
"""Larger problems are left to the cheaper bounds: there the linear program is as good."""

MOST_COLUMNS = 2_000
"""Columns of all classes beyond which the program is not tried."""

MOST_CUTS = 60
"""Rounds of rows of configurations added for one period."""

WORK = 2.0
"""Most units for one integer program."""

MOST_RECALLED = 60
"""Rows of configurations of other periods that a period starts with; the latest are taken."""

AWAY = (0.05, 0.0)
"""Rows are looked for at shares this far from the allotments to cut off, so that other columns get weights too."""

Method = Literal["integer program", "configurations", "integer program over configurations"]
"""How a period is excluded: fixed rows and integers, configurations without integers, or both."""

Counts = list[list[int]]
"""How many operations of each class run at each of its columns."""


Weights = tuple[dict[Column, int], ...]
"""Weight of a piece of each class at each column."""


def _no_configurations() -> Pool:
    return dict[Known, None]()


def _no_weights() -> dict[str, list[Weights]]:
    return {}


@dataclass
class ClassProgram:
    """The program of one problem; it remembers configurations from one period to the next."""

    problem: PeriodicProblem
    method: Method = "integer program over configurations"
    classes: list[OperationClass] = field(init=False)
    pool: Pool = field(default_factory=_no_configurations)
    memory_pool: Pool = field(default_factory=_no_configurations)
    found: dict[str, list[Weights]] = field(default_factory=_no_weights)
    """Name of a resource → weights of the rows found for it."""

    def __post_init__(self) -> None:
        self.classes = operation_classes(self.problem)

    @property
    def memory(self) -> int:
        """Bytes of an accelerator; 0: not limited."""
        return self.problem.memory if isinstance(self.problem, MemoryProblem) else 0

    def worth_it(self) -> bool:
        """Whether the problem is small enough; False also when an operation has no possible allotment."""
        return (
            0 < len(self.problem.operations) <= MOST_OPERATIONS
            and sum(len(c.columns) for c in self.classes) <= MOST_COLUMNS
            and all(c.columns for c in self.classes)
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
        accelerators = self.problem.accelerators
        found = [Covering(classes, time_of(classes, period), accelerators, self.pool)]
        if self.memory:
            resource = memory_of(classes, period, self.memory)
            found.append(Covering(classes, resource, accelerators, self.memory_pool))
        return found

    def excludes(self, period: int, budget: Budget) -> str | None:
        """The name of the argument that excludes ``period`` ≥ 1; None without any."""
        classes = meeting(self.classes, period)
        if classes is None:
            return "longest operation"
        coverings = [] if self.method == "integer program" else self.coverings(classes, period)
        if any(covering.row(None, budget) is not None for covering in coverings):
            return "configurations"
        if self.method == "configurations":
            return None
        decided = self._decide(classes, self.rows(classes, period), coverings, budget)
        return self.method if decided is False else None

    def feasible(
        self, period: int, budget: Budget
    ) -> tuple[list[OperationClass], list[Row], Counts] | Literal[False] | None:
        """Classes of columns that meet ``period``, rows, and counts that keep them and all configurations.

        False: the period is excluded. None: the budget was over before.
        """
        classes = meeting(self.classes, period)
        if classes is None:
            return False
        rows = self.rows(classes, period)
        found = self._decide(classes, rows, self.coverings(classes, period), budget)
        return (classes, rows, found) if isinstance(found, list) else found

    def _decide(
        self, classes: list[OperationClass], rows: list[Row], coverings: list[Covering], budget: Budget
    ) -> Counts | Literal[False] | None:
        """Counts that keep all rows, False when there are none; rows of configurations are added to ``rows``."""
        rows += [row for covering in coverings for row in self._recalled(covering, budget)]
        for _ in range(MOST_CUTS):
            counts = solve_counts(classes, rows, self.problem.accelerators, budget)
            if not isinstance(counts, list):
                return counts
            violated = [row for covering in coverings if (row := cut_off(covering, counts, budget)) is not None]
            if budget.spent():
                return None
            if not violated:
                return counts
            rows += violated
            for row in violated:
                weights = tuple(
                    dict(zip(each.columns, mine, strict=True)) for each, mine in zip(classes, row.weights, strict=True)
                )
                self.found.setdefault(row.name, []).append(weights)
        return None

    def _recalled(self, covering: Covering, budget: Budget) -> list[Row]:
        """Rows of the weights found for other periods; what fits within this one is found anew."""
        rows: list[Row] = []
        for weights in self.found.get(covering.resource.name, [])[-MOST_RECALLED:]:
            mine = [
                [known.get(column, 0) for column in each.columns]
                for each, known in zip(covering.classes, weights, strict=True)
            ]
            made = covering.weighed(mine, budget)
            if made is not None:
                rows.append(made[0])
        return rows


def cut_off(covering: Covering, counts: Counts, budget: Budget) -> Row | None:
    """A row of configurations that ``counts`` violate."""
    for away in AWAY:
        covering.fix(
            [
                [(1 - away) * x + away * each.count / len(taken) for x in taken]
                for each, taken in zip(covering.classes, counts, strict=True)
            ]
        )
        row = covering.row(counts, budget)
        if row is not None:
            return row
    return None


def solve_counts(
    classes: Sequence[OperationClass], rows: Sequence[Row], accelerators: int, budget: Budget
) -> Counts | Literal[False] | None:
    """Counts that keep every row; False: proven that there are none; None: not known within the budget."""
    from ortools.sat.python import cp_model

    model: Any = cp_model.CpModel()  # whose linear expressions have no types
    x = [[model.new_int_var(0, each.count, "") for _ in each.columns] for each in classes]
    for each, variables in zip(classes, x, strict=True):
        model.add(sum(variables) == each.count)
    flat = [v for variables in x for v in variables]
    columns = [column for each in classes for column in each.columns]
    for row in rows:
        weights = [w for weights in row.weights for w in weights]
        used = sum(c[0] * w * v for c, w, v in zip(columns, weights, flat, strict=True) if w)
        if any(weights):
            model.add(used <= accelerators * row.most)
    solver: Any = cp_model.CpSolver()
    solver.parameters.num_workers = 1  # these programs are small: more workers only cost time
    solver.parameters.random_seed = budget.seed
    work, seconds = budget.work_left(), budget.left()
    solver.parameters.max_deterministic_time = WORK if work is None else min(WORK, work)
    if seconds is not None:
        solver.parameters.max_time_in_seconds = seconds
    status = solve(solver, model)
    budget.spend(max(0.001, solver.response_proto.deterministic_time))
    if status == cp_model.INFEASIBLE:
        return False
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return [[int(solver.value(v)) for v in variables] for variables in x]
    return None


def program_bound(problem: PeriodicProblem, method: Method, budget: Budget, known: int | None = None) -> Bound | None:
    """The greatest period above ``known`` (else the area bound) that ``method`` excludes, plus one.

    None when it excludes none, or the problem is too large.
    """
    program = ClassProgram(problem, method)
    if not program.worth_it():
        return None
    low = max(0, (area_bound(problem).value if known is None else known) - 1)
    serial = sum(each.count * max(t for _, t, _, _ in each.columns) for each in program.classes)
    found = greatest_excluded(low, max(1, serial), program.excludes, budget)
    if found is None:
        return None
    leaves_out = "how the pieces of an operation meet in time" + ("" if program.memory else ", memory")
    return Bound(found[1], found[0] + 1, leaves_out)
