"""Lower bounds by configurations: dual feasible functions made for the instance at hand.

A *configuration* is what fits on one accelerator within a period: pieces of total size at most the capacity, of a
class of equal operations no more than it has, because an operation has at most one piece on an accelerator. The
linear program of Gilmore and Gomory ("A linear programming approach to the cutting stock problem", Operations
Research 9 (1961)) covers the pieces of all operations by as few configurations as possible, here with the
allotments shared out at the same time::

    minimise Σ_q y_q   subject to   Σ_q a_q,ck·y_q ≥ k·x_ck,   Σ_k x_ck = size of c

More than ``P`` configurations prove the period too short. The duals of the first rows are weights of which no
configuration has more than 1: no dual feasible function proves more. The program starts with few configurations; the
one that a knapsack finds heaviest joins as long as it weighs more than 1. Floating point only proposes the
weights: they are rounded, and the exact maximum of the knapsack over them makes a valid :class:`Row`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from passes.scheduling.budget import Budget
from passes.scheduling.dual import Column
from passes.scheduling.elementary import OperationClass
from passes.scheduling.knapsack import Filling, heaviest, useful
from passes.scheduling.rows import Row

SCALE = 10**6
"""Weights are rounded to this fraction."""

MOST_ROUNDS = 1000
"""Configurations added before the search settles for the weights it has."""

ENTRIES_A_UNIT = 120_000_000
"""Rows times columns of linear programs that count as one unit of work."""

Counts = Sequence[Sequence[int]]
"""How many operations of each class run at each of its columns."""

Known = tuple[tuple[int, Column, int], ...]
"""A configuration as (class, column, pieces), which means the same for every period."""

Pool = dict[Known, None]
"""Configurations found for other periods; those that fit give a program a start."""

MOST_KNOWN = 1500
"""Configurations that a pool holds; the latest are kept."""


@dataclass(frozen=True)
class Resource:
    """What pieces take of an accelerator: the size of each column of each class, and what there is."""

    name: str
    sizes: tuple[tuple[int, ...], ...]
    capacity: int


def time_of(classes: Sequence[OperationClass], period: int) -> Resource:
    """Time on an accelerator in one period."""
    return Resource("configurations", tuple(tuple(t for _, t, _, _ in c.columns) for c in classes), period)


def memory_of(classes: Sequence[OperationClass], period: int, memory: int) -> Resource:
    """Parameters, and output and workspace for the part of the period in which the operation runs."""
    sizes = tuple(tuple(p + live // period for _, _, p, live in c.columns) for c in classes)
    return Resource("configurations of memory", sizes, memory)


class Covering:
    """The linear program of one resource; it keeps its configurations from one question to the next."""

    def __init__(
        self, classes: Sequence[OperationClass], resource: Resource, accelerators: int, pool: Pool | None = None
    ):
        from ortools.linear_solver import pywraplp  # pyright: ignore[reportMissingTypeStubs]

        self.classes, self.resource, self.accelerators = classes, resource, accelerators
        self.pool: Pool = {} if pool is None else pool
        library: Any = pywraplp  # which has no types
        self.optimal: int = library.Solver.OPTIMAL
        self.solver: Any = library.Solver.CreateSolver("GLOP")
        infinity = self.solver.infinity()
        self.solver.Minimize(self.solver.Sum([]))
        self.rows: list[list[Any]] = []
        self.shares: list[list[Any]] = []
        for each in classes:
            self.rows.append([self.solver.Constraint(0.0, infinity) for _ in each.columns])
            self.shares.append([self.solver.NumVar(0.0, float(each.count), "") for _ in each.columns])
            whole = self.solver.Constraint(float(each.count), float(each.count))
            for (k, *_), row, share in zip(each.columns, self.rows[-1], self.shares[-1], strict=True):
                row.SetCoefficient(share, -float(k))
                whole.SetCoefficient(share, 1.0)
        for c, (each, sizes) in enumerate(zip(classes, resource.sizes, strict=True)):
            for j, size in enumerate(sizes):
                if 0 < size <= resource.capacity:
                    self.add(Filling(0, ((c, j, min(each.count, resource.capacity // size)),)))
                elif size:  # too large: never used
                    self.shares[c][j].SetBounds(0.0, 0.0)
                else:  # takes no room: no configuration has to hold it
                    self.rows[c][j].SetBounds(-infinity, infinity)
        for known in self.pool:
            self._use_known(known)

    def _use_known(self, known: Known) -> None:
        """Let the program use a configuration of the pool, if it fits."""
        if not all(column in self.classes[c].columns for c, column, _ in known):
            return
        pieces = [(c, self.classes[c].columns.index(column), count) for c, column, count in known]
        if sum(self.resource.sizes[c][j] * count for c, j, count in pieces) <= self.resource.capacity:
            self.add(Filling(0, tuple(pieces)))

    def _keep(self, filling: Filling) -> None:
        """Put a configuration into the pool."""
        self.pool[tuple((c, self.classes[c].columns[j], n) for c, j, n in filling.pieces)] = None
        if len(self.pool) > MOST_KNOWN:
            del self.pool[next(iter(self.pool))]

    def add(self, filling: Filling) -> None:
        """Let the program use a configuration."""
        use = self.solver.NumVar(0.0, self.solver.infinity(), "")
        self.solver.Objective().SetCoefficient(use, 1.0)
        for c, j, count in filling.pieces:
            self.rows[c][j].SetCoefficient(use, float(count))

    def fix(self, shares: Sequence[Sequence[float]] | None) -> None:
        """Ask for these shares of each class at its columns; None: share out freely."""
        for c, (each, variables) in enumerate(zip(self.classes, self.shares, strict=True)):
            for j, variable in enumerate(variables):
                if shares is not None:
                    variable.SetBounds(shares[c][j], shares[c][j])
                elif self.resource.sizes[c][j] <= self.resource.capacity:
                    variable.SetBounds(0.0, float(each.count))

    def weights(self, budget: Budget) -> tuple[float, list[list[int]]] | None:
        """Configurations needed, and integer weights of the pieces; None when the program has no solution."""
        budget.spend(self.solver.NumConstraints() * self.solver.NumVariables() / ENTRIES_A_UNIT)
        if self.solver.Solve() != self.optimal:
            return None
        return self.solver.Objective().Value(), [
            [max(0, round(row.dual_value() * SCALE)) for row in rows] for rows in self.rows
        ]

    def row(self, counts: Counts | None, budget: Budget) -> Row | None:
        """A row that ``counts`` violate (None: that all allotments violate), if there is one.

        It may be missing because the budget is over or the knapsack is too large.
        """
        for _ in range(MOST_ROUNDS):
            found = self.weights(budget)
            if found is None or found[0] <= self.accelerators:
                return None
            made = self.weighed(found[1], budget)
            if made is None:
                return None
            row, filling = made
            if row.excludes(self.classes, self.accelerators) or (
                counts is not None and row.use(self.classes, counts) > self.accelerators * row.most
            ):
                return row
            if not filling.pieces:
                return None
            self.add(filling)
            self._keep(filling)
        return None

    def weighed(self, weights: list[list[int]], budget: Budget) -> tuple[Row, Filling] | None:
        """The valid row of these weights and a configuration of more weight than 1, without pieces if none is."""
        groups = [
            useful(c, each.count, sizes, mine, self.resource.capacity)
            for c, (each, sizes, mine) in enumerate(zip(self.classes, self.resource.sizes, weights, strict=True))
        ]
        filling = heaviest([g for g in groups if g is not None], self.resource.capacity, SCALE, budget)
        if filling is None:
            return None
        return Row(self.resource.name, tuple(map(tuple, weights)), filling.weight), filling
