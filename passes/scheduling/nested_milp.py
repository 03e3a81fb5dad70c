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
from typing import Any

MOST_VARIABLES = 1000
"""Size beyond which the program is not tried."""

MOST_NODES = 400
"""Nodes of the search tree; work is counted in these so that the result does not depend on the machine."""

SECONDS = 20.0
"""Time for one program, should its nodes take unusually long."""

FEASIBLE = 2
"""What HiGHS says of a solution that satisfies all constraints."""

Choice = tuple[int, int, int]
"""Allotment, width of the block that holds it, time."""


def assign(
    columns: Sequence[Sequence[Choice]], widths: Sequence[int], count: int, known: int, bound: int, seconds: float
) -> tuple[list[Choice], list[int]] | None:
    """Choice and first accelerator of each operation, for a period below ``known`` ns; None when none was found.

    ``columns[v]`` are the choices of operation ``v``; operations with equal ones form a class. ``bound`` is a
    lower bound on the period, ``seconds`` how long the solver may run.
    """
    classes: defaultdict[tuple[Choice, ...], list[int]] = defaultdict(list)
    for v, choices in enumerate(columns):
        fastest = {c[1]: c for c in sorted(choices, key=lambda c: -c[2]) if c[2] < known}
        classes[tuple(fastest.values())].append(v)
    blocks = {w: range(0, count - w + 1, w) for w in widths}
    if () in classes or sum(len(blocks[c[1]]) for each in classes for c in each) > MOST_VARIABLES:
        return None
    numbers = _solve(list(classes), [len(v) for v in classes.values()], blocks, count, known, bound, seconds)
    if numbers is None:
        return None
    choice: list[Choice] = [(0, 0, 0)] * len(columns)
    first = [0] * len(columns)
    for (c, place), taken in numbers.items():
        members = classes[list(classes)[c]]
        for (column, block), many in zip(place, taken, strict=True):
            for v in members[:many]:
                choice[v], first[v] = column, block
            del members[:many]
    return choice, first


Numbers = dict[tuple[int, tuple[tuple[Choice, int], ...]], tuple[int, ...]]
"""(class, its (choice, block) pairs) → how many operations each takes."""


def _solve(
    classes: Sequence[tuple[Choice, ...]],
    sizes: Sequence[int],
    blocks: dict[int, range],
    count: int,
    known: int,
    bound: int,
    seconds: float,
) -> Numbers | None:
    import pulp  # pyright: ignore[reportMissingTypeStubs]

    program = pulp.LpProblem("nested", pulp.LpMinimize)
    period: Any = program.add_variable("period", bound, known - 1)
    program += period
    load: defaultdict[tuple[int, int], list[Any]] = defaultdict(list)
    variables: dict[int, list[tuple[Choice, int, Any]]] = {}
    for c, (choices, size) in enumerate(zip(classes, sizes, strict=True)):
        variables[c] = []
        for column in choices:
            for block in blocks[column[1]]:
                x: Any = program.add_variable(f"x{c}_{column[0]}_{block}", 0, size, pulp.LpInteger)
                variables[c].append((column, block, x))
                load[column[1], block].append(column[2] * x)
        program += pulp.lpSum(x for _, _, x in variables[c]) == size
    for around in {tuple((w, p - p % w) for w in blocks if p - p % w + w <= count) for p in range(count)}:
        program += pulp.lpSum(term for block in sorted(around) for term in load[block]) <= period
    least = min(blocks)
    for block in blocks[least]:  # the narrowest siblings are alike: order them by load
        twin = block + least
        inside = {w: block - block % w == twin - twin % w for w in blocks if w > least}
        if twin in blocks[least] and all(inside.values()):
            program += pulp.lpSum(load[least, block]) >= pulp.lpSum(load[least, twin])
    with _silent(), suppress(KeyError):  # PuLP does not know the status of a search that ran out of nodes
        program.solve(pulp.HiGHS(msg=False, timeLimit=seconds, gapRel=1e-4, threads=1, mip_max_nodes=MOST_NODES))
    solver: Any = program.solverModel  # asked itself: PuLP says "optimal" after a time-out too
    if solver is None or solver.getInfo().primal_solution_status != FEASIBLE:
        return None
    value = solver.getSolution().col_value
    return {
        (c, tuple((column, block) for column, block, _ in rows)): tuple(round(value[x.index]) for _, _, x in rows)
        for c, rows in variables.items()
    }


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
