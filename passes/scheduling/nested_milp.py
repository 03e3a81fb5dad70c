"""Few operations on nested blocks: the exact assignment, by integer programming.

The same family of sets as in ``laminar.py``. There time has disappeared: the period is the heaviest
load, and the load of an accelerator is what runs on the blocks around it. So for the number ``x`` of
operations of a class that run at an allotment on a block::

    minimise T   subject to   Σ x = size of the class,   T ≥ Σ over blocks around p of x·time  for every p

Equal operations are counted, not told apart, and sibling blocks are ordered by load, which removes most
of the symmetry. Worth its time for up to a few dozen operations; beyond that the sweep is as good.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from functools import reduce
from math import ceil, gcd
from typing import Any

from passes.scheduling.budget import Budget
from passes.scheduling.nested import Choice, Place

MOST_VARIABLES = 1000
"""Size beyond which the program is not tried."""

NODES = 40
"""Nodes of the search tree for a unit of work, so that the result does not depend on the machine."""

SECONDS = 20.0
"""Time for one program, should its nodes take unusually long."""

FEASIBLE = 2
"""What HiGHS says of a solution that satisfies all constraints."""


def assign(
    columns: Sequence[Sequence[Choice]], widths: Sequence[int], count: int, known: int, bound: int, budget: Budget
) -> tuple[list[Place] | None, int]:
    """The place of each operation for a period below ``known`` ns (None when none was found), and a bound on it.

    ``columns[v]`` are the choices of operation ``v``; operations with equal ones form a class. ``bound`` is a
    lower bound on the period. The one returned holds for assignments to these blocks, up to the tolerances
    of floating point; it is ``known`` when nothing shorter exists.
    """
    classes: defaultdict[tuple[Choice, ...], list[int]] = defaultdict(list)
    for v, choices in enumerate(columns):
        classes[tuple(c for c in choices if c.time < known)].append(v)
    blocks = {w: range(0, count - w + 1, w) for w in widths}
    if () in classes or bound >= known:
        return None, known
    if sum(len(blocks[c.width]) for each in classes for c in each) > MOST_VARIABLES:
        return None, bound
    numbers, proven = _solve(list(classes), [len(v) for v in classes.values()], blocks, count, known, bound, budget)
    if numbers is None:
        return None, proven
    members = list(classes.values())
    places: list[Place] = [(columns[0][0], 0)] * len(columns)
    for (c, pairs), taken in numbers.items():
        for place, many in zip(pairs, taken, strict=True):
            for _ in range(many):
                places[members[c].pop()] = place
    return places, proven


Numbers = dict[tuple[int, tuple[Place, ...]], tuple[int, ...]]
"""(class, its places) → how many operations each takes."""


def _solve(
    classes: Sequence[tuple[Choice, ...]],
    sizes: Sequence[int],
    blocks: dict[int, range],
    count: int,
    known: int,
    bound: int,
    budget: Budget,
) -> tuple[Numbers | None, int]:
    import pulp  # pyright: ignore[reportMissingTypeStubs]

    unit = reduce(gcd, [c.time for each in classes for c in each]) or 1
    program = pulp.LpProblem("nested", pulp.LpMinimize)
    period: Any = program.add_variable("period", ceil(bound / unit), ceil(known / unit) - 1)
    program += period
    load: defaultdict[tuple[int, int], list[Any]] = defaultdict(list)
    variables: dict[int, list[tuple[Choice, int, Any]]] = {}
    for c, (choices, size) in enumerate(zip(classes, sizes, strict=True)):
        variables[c] = []
        for column in choices:
            for block in blocks[column.width]:
                x: Any = program.add_variable(f"x{c}_{len(variables[c])}", 0, size, pulp.LpInteger)
                variables[c].append((column, block, x))
                load[column.width, block].append(column.time // unit * x)
        program += pulp.lpSum(x for _, _, x in variables[c]) == size
    for around in {tuple((w, p - p % w) for w in blocks if p - p % w + w <= count) for p in range(count)}:
        program += pulp.lpSum(term for block in sorted(around) for term in load[block]) <= period
    least = min(blocks)
    for block in blocks[least]:  # the narrowest siblings are alike: order them by load
        twin = block + least
        inside = {w: block - block % w == twin - twin % w for w in blocks if w > least}
        if twin in blocks[least] and all(inside.values()):
            program += pulp.lpSum(load[least, block]) >= pulp.lpSum(load[least, twin])
    left, work = budget.left(), budget.work_left()
    seconds = SECONDS if left is None else min(SECONDS, left)
    nodes = 10 * NODES if work is None else max(1, round(NODES * work))
    with _silent(), suppress(KeyError):  # PuLP does not know the status of a search that ran out of nodes
        program.solve(pulp.HiGHS(msg=False, timeLimit=seconds, gapRel=0.0, gapAbs=0.5, threads=1, mip_max_nodes=nodes))
    solver: Any = program.solverModel  # asked itself: PuLP says "optimal" after a time-out too
    if solver is None:
        return None, bound
    info, status = solver.getInfo(), solver.modelStatusToString(solver.getModelStatus())
    budget.spend(max(1, info.mip_node_count) / NODES)
    if status == "Infeasible":
        return None, known
    proven = max(bound, ceil(info.mip_dual_bound - 1e-4) * unit) if abs(info.mip_dual_bound) < known else bound
    if info.primal_solution_status != FEASIBLE:
        return None, proven
    value = solver.getSolution().col_value
    numbers = {
        (c, tuple((column, block) for column, block, _ in rows)): tuple(round(value[x.index]) for _, _, x in rows)
        for c, rows in variables.items()
    }
    return numbers, proven


@contextmanager
def _silent() -> Generator[None]:
    """HiGHS greets on the standard output of the process, where results go; send that nowhere."""
    sys.stdout.flush()
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
