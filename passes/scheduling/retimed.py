"""Retiming for memory: by how many periods each operation and transfer runs later, so that least is held.

Sets, period and places on the circle stay, so accelerators and links stay as free as they were. Let ``x`` count the
periods by which something runs later. A value made by ``u`` and read last by ``v`` is held for
``end_v - start_u + (x_v - x_u)·T``, and precedence asks for ``x_v - x_u ≥ ⌈(ready_u - start_v) / T⌉``: to hold the
least bytes on average is a linear program whose matrix is that of a network, so its corners are whole numbers
(Leiserson and Saxe, "Retiming synchronous circuitry", Algorithmica 6 (1991), count registers so). The result is
rounded, and verified by whoever asks. Accelerators may be weighed: those that have too little memory more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from passes.scheduling.budget import Budget
from passes.scheduling.crossings import share
from passes.scheduling.data import Solution, Transfer
from passes.scheduling.problem import MemoryProblem

FAR = 4096
"""Most periods that something may run later or earlier."""

WORK = 1e-4
"""Work for each dependence."""

UNIT = 2**20
"""Bytes that count as 1 in the program."""


def retimed(
    problem: MemoryProblem,
    solution: Solution,
    weights: Mapping[int, float] = MappingProxyType({}),
    budget: Budget | None = None,
) -> Solution:
    """``solution`` with starts whole periods later or earlier, so that the least bytes are held on average.

    ``weights`` of accelerators count 1 where they are not given. A schedule with copies is returned as it is, and so
    is one for which the program finds no answer.
    """
    if solution.more or not problem.operations:
        return solution
    if budget is not None:
        budget.spend(WORK * len(problem.dependences))
    return _Program(problem, solution, weights).solve()


class _Program:
    """Variables of operations and transfers, and of the last use of every value."""

    def __init__(self, problem: MemoryProblem, solution: Solution, weights: Mapping[int, float]):
        from ortools.linear_solver import pywraplp  # pyright: ignore[reportMissingTypeStubs]

        library: Any = pywraplp  # which has no types
        self.optimal: int = library.Solver.OPTIMAL
        self.solver: Any = library.Solver.CreateSolver("GLOP")
        self.problem, self.solution, self.period, self.weights = problem, solution, solution.period, weights
        self.runs = [self._variable() for _ in problem.operations]
        self.moves = [self._variable() for _ in solution.transfers]
        self.number = {id(t): i for i, t in enumerate(solution.transfers)}
        self.costs: list[tuple[Any, float]] = []
        self._values()

    def _variable(self) -> Any:
        return self.solver.NumVar(-float(FAR), float(FAR), "")

    def _after(self, later: Any, earlier: Any, periods: float) -> None:
        row = self.solver.Constraint(periods, self.solver.infinity())
        row.SetCoefficient(later, 1.0)
        row.SetCoefficient(earlier, -1.0)

    def _weight(self, members: tuple[int, ...]) -> float:
        return sum(self.weights.get(p, 1.0) for p in members)

    def _hold(self, begin: Any, ends: list[tuple[Any, int]], size: float) -> None:
        """Pay ``size`` for each period from ``begin`` on until the last of ``ends``, (variable, ns later)."""
        if not size or not ends:
            return
        last = self.solver.NumVar(-2.0 * FAR, 2.0 * FAR, "")
        for end, later in ends:
            self._after(last, end, later / self.period)
        self.costs += [(last, size), (begin, -size)]

    def _values(self) -> None:
        s, problem, period = self.solution, self.problem, self.period
        ends = [problem.end(s, v) for v in range(len(s.starts))]
        here: dict[int, list[tuple[Any, int]]] = {}
        there: dict[tuple[int, tuple[int, ...]], list[tuple[Transfer | None, Any, int, int, int]]] = {}
        for t in s.transfers:
            move = self.moves[self.number[id(t)]]
            self._after(move, self.runs[t.producer], -((t.start - ends[t.producer]) // period))
            here.setdefault(t.producer, []).append((move, t.start + t.time - s.starts[t.producer]))
        for d in problem.dependences:
            u, v, moved = d.producer, d.consumer, problem.transfer_of(s, d)
            reads, done = s.starts[v] + d.distance * period, ends[v] + d.distance * period
            before = self.runs[u] if moved is None else self.moves[self.number[id(moved)]]
            ready = ends[u] if moved is None else moved.ready
            self._after(self.runs[v], before, -((reads - ready) // period))
            if s.sets[u] == s.sets[v]:
                here.setdefault(u, []).append((self.runs[v], done - s.starts[u]))
            else:
                size = share(d, s.sets[v])
                there.setdefault((u, s.sets[v]), []).append((moved, self.runs[v], done, size, d.result))
        for u, uses in here.items():
            size = problem.operations[u].table[s.allotments[u]].output * self._weight(s.sets[u]) / UNIT
            self._hold(self.runs[u], uses, size)
        for (u, members), uses in there.items():
            sizes = {result: size for _, _, _, size, result in uses}
            moved = uses[0][0]
            begin = self.runs[u] if moved is None else self.moves[self.number[id(moved)]]
            at = ends[u] if moved is None else moved.landing
            last = [(run, done - at) for _, run, done, _, _ in uses]
            self._hold(begin, last, sum(sizes.values()) * self._weight(members) / UNIT)

    def solve(self) -> Solution:
        """The schedule at a corner of the program."""
        s, objective = self.solution, self.solver.Objective()
        for variable, cost in self.costs:
            objective.SetCoefficient(variable, objective.GetCoefficient(variable) + cost)
        objective.SetMinimization()
        if self.solver.Solve() != self.optimal:
            return s
        runs = [round(x.solution_value()) * self.period for x in self.runs]
        moves = [round(x.solution_value()) * self.period for x in self.moves]
        starts = [start + later for start, later in zip(s.starts, runs, strict=True)]
        first = min(starts)
        transfers = tuple(
            replace(t, start=t.start + later - first, landing=t.landing + later - first)
            for t, later in zip(s.transfers, moves, strict=True)
        )
        return replace(s, starts=tuple(start - first for start in starts), transfers=transfers)
