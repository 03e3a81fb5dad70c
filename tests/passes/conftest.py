"""Strategies and oracles that the tests of the scheduler share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st

from passes.scheduling.data import Cost, Dependence, Input, Operation
from passes.scheduling.problem import MemoryProblem


@pytest.fixture(scope="session")
def tiny_problems() -> Callable[..., st.SearchStrategy[MemoryProblem]]:
    """Strategy of problems: tables with holes, not monotone, zero times; a random graph; no memory limit."""

    def strategy(
        operations: int = 6, accelerators: int = 4, longest: int = 9, group: int = 0, chain: bool = False
    ) -> st.SearchStrategy[MemoryProblem]:
        @st.composite
        def build(draw: Any) -> MemoryProblem:
            count = draw(st.integers(1, accelerators))
            costs = st.builds(Cost, st.integers(0, longest), st.integers(0, 50), st.integers(0, 9), st.integers(0, 9))
            table = st.dictionaries(st.integers(1, count), costs, min_size=1, max_size=3)
            tables = draw(st.lists(table, min_size=1, max_size=3))
            n = draw(st.integers(1, operations))
            kinds = [draw(st.sampled_from(tables)) for _ in range(n)]
            edges: set[tuple[int, int]] = {(v - 1, v) for v in range(1, n)} if chain else set()
            if not chain and n > 1:
                pairs = [(u, v) for v in range(n) for u in range(v)]
                edges = set(draw(st.lists(st.sampled_from(pairs), max_size=2 * n)))
            return MemoryProblem(
                tuple(Operation(f"o{v}", t) for v, t in enumerate(kinds)),
                tuple(Dependence(u, v, draw(st.integers(0, 9))) for u, v in sorted(edges)),
                (Input("x", 7, (0,)),),
                count,
                draw(st.integers(1, count)) if group else 0,
                0,
            )

        return build()

    return strategy


@pytest.fixture(scope="session")
def optimal_period() -> Callable[[MemoryProblem], int]:
    """The least period of free sets on the circle, by a constraint model of its own. Precedence does not matter.

    On each accelerator all operations lie in a window of one period, whose begin is free: a circle cut
    open where one operation ends. (An operation that runs without a gap before it can always be cut at.)
    """
    from ortools.sat.python import cp_model

    def solve(problem: MemoryProblem) -> int:
        model = cp_model.CpModel()
        horizon = sum(max(c.time for c in o.table.values()) for o in problem.operations) + 1
        period = model.new_int_var(1, horizon, "T")
        base = [model.new_int_var(0, horizon, "") for _ in range(problem.accelerators)]
        intervals: list[list[Any]] = [[] for _ in base]
        chosen: list[tuple[dict[int, Any], list[Any]]] = []
        for o in problem.operations:
            use = {k: model.new_bool_var("") for k in o.table}
            model.add_exactly_one(use.values())
            start, end = model.new_int_var(0, 2 * horizon, ""), model.new_int_var(0, 3 * horizon, "")
            time = model.new_int_var(0, horizon, "")
            model.add(time == sum(o.table[k].time * b for k, b in use.items()))
            model.add(end == start + time)
            on = [model.new_bool_var("") for _ in base]
            model.add(sum(on) == sum(k * b for k, b in use.items()))
            model.add(time <= period)
            chosen.append((use, on))
            for p, here in enumerate(on):
                intervals[p].append(model.new_optional_interval_var(start, time, end, here, ""))
                model.add(base[p] <= start).only_enforce_if(here)
                model.add(end <= base[p] + period).only_enforce_if(here)
        for v, w in ((group[0], w) for group in problem.together for w in group[1:]):
            for a, b in zip(chosen[v][1], chosen[w][1], strict=True):
                model.add(a == b)
        for line in intervals:
            model.add_no_overlap(line)
        model.minimize(period)
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.max_time_in_seconds = 20
        status = solver.solve(model)
        assert status == cp_model.OPTIMAL
        return round(solver.objective_value)

    return solve
