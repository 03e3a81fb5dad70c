"""Schedules inside granted blocks with copies: how many copies each block runs, and on how many accelerators each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from passes.scheduling.budget import Budget
from passes.scheduling.copies import copy_numbers, grouped
from passes.scheduling.data import Dependence, InvalidProblem, Solution, Violation
from passes.scheduling.elementary import usable
from passes.scheduling.granted import schedule_blocks, stage_order
from passes.scheduling.linked_loads import crossings, is_linked, with_moves, with_sets
from passes.scheduling.problem import StagedProblem
from passes.scheduling.profiles import fastest
from passes.scheduling.retime import windows

ROUNDS = 5
"""How often copies are chosen to make a schedule fit in memory."""


class Shape(NamedTuple):
    """Copies of what a block runs on ``width`` accelerators each, at most ``most``: ns of a run, bytes on each."""

    width: int
    most: int
    time: int
    params: int


@dataclass(frozen=True)
class Choice:
    """The copies of what a block runs: how many, their accelerators, and the allotment of each operation."""

    copies: int
    sets: tuple[tuple[int, ...], ...]
    allotments: dict[int, int]


def schedule_replicated(
    problem: StagedProblem, *, tolerance: float = 0.005, budget: Budget | None = None
) -> tuple[Solution, str]:
    """A schedule of small period with at most ``problem.copies`` copies of an operation, and the engine that found it.

    Each operation runs at its fastest allotment on a copy of its block. The period aimed at is the least for
    which every block has some number of copies; within ``tolerance`` of it a block takes the fewest copies, then the
    fewest bytes of parameters. When the schedule does not fit in memory, copies are chosen again with what was
    missing kept free of parameters: fewer, wider ones hold less each. A schedule without copies is taken when it
    is about as short, when no other fits, or when operations share parameters. Raises :class:`InvalidProblem` for
    operations shared by two stages, whose blocks would need equal numbers of copies.
    """
    if problem.shared:
        v = min(problem.shared)
        message = f"operation '{problem.operations[v].name}' is shared by two stages: their blocks cannot be replicated"
        raise InvalidProblem([Violation("copies", message, (v,))])
    budget = budget or Budget()
    best, engine = schedule_blocks(problem, budget=budget)
    reserve = 0
    for _ in range(ROUNDS):
        may = problem.copies > 1 and not problem.together and not budget.spent()
        found = choose_copies(problem, reserve, tolerance) if may else None
        if found is None:
            break
        missing = missing_bytes(problem, found)
        if not missing:
            if missing_bytes(problem, best) or found.period * (1 + tolerance) < best.period:
                best, engine = found, "copies"
                budget.report(engine, best.period)
            break
        reserve = max(reserve + missing, 2 * reserve)
    return best, engine


def missing_bytes(problem: StagedProblem, solution: Solution) -> int:
    """Bytes that the fullest accelerator lacks."""
    return max((v.missing for v in problem.verify_memory(solution)), default=0) if problem.memory else 0


def choose_copies(problem: StagedProblem, reserve: int, tolerance: float) -> Solution | None:
    """The schedule in which each block runs its best number of copies; live values may not fit.

    None when parameters do not fit beside ``reserve`` bytes.
    """
    found = copied_sets(problem, reserve, tolerance)
    return found and windows(problem, found.allotments, found.sets, stage_order(problem), more=found.more)


def copied_sets(problem: StagedProblem, reserve: int, tolerance: float) -> Solution | None:
    """Allotments and sets of :func:`choose_copies`, without times. Copies share the time that values take to move."""
    crossing = crossings(problem) if is_linked(problem) else {}
    members: dict[tuple[int, ...], list[int]] = {}
    for v, home in enumerate(problem.homes):
        members.setdefault(problem.blocks[home], []).append(v)
    best: tuple[int, int, dict[tuple[int, ...], tuple[int, Shape]]] | None = None
    for numbers in copy_numbers(len(problem.operations), problem.accelerators, problem.copies):
        shapes = {
            block: list(_shapes(problem, block, inside, numbers, reserve, crossing.get(block, ())))
            for block, inside in members.items()
        }
        if not all(shapes.values()):
            return None
        period = max(1, *(min(-(-s.time // s.most) for s in of) for of in shapes.values()))
        limit = int(period * (1 + tolerance))
        chosen = {block: _fewest(of, numbers, limit) for block, of in shapes.items()}
        rank = (limit, sum(copies for copies, _ in chosen.values()))
        if best is None or rank < best[:2]:
            best = (*rank, chosen)
    if best is None:
        return None
    return _sets(problem, {b: _choice(problem, b, members[b], *best[2][b]) for b in members})


def _shapes(
    problem: StagedProblem,
    block: tuple[int, ...],
    inside: Sequence[int],
    numbers: Sequence[int],
    reserve: int,
    crossing: Sequence[Dependence],
) -> Iterator[Shape]:
    """Every width of a copy that makes a difference and on which parameters fit in memory beside ``reserve``."""
    tables = {id(problem.operations[v].table): problem.operations[v].table for v in inside}
    times = {key: usable(table, len(block), problem.memory) for key, table in tables.items()}
    count = {key: sum(1 for v in inside if id(problem.operations[v].table) == key) for key in tables}
    for width in sorted({k for of in times.values() for k in of}):
        room = len(grouped(block, width, problem.group))
        most = max((r for r in numbers if r <= room), default=0)
        allotments = {key: fastest(of, width) for key, of in times.items()}
        columns = [(count[key], tables[key][k]) for key, k in allotments.items() if k is not None]
        params = sum(n * c.params for n, c in columns)
        if most and len(columns) == len(tables) and (not problem.memory or params + reserve <= problem.memory):
            time = sum(n * c.time for n, c in columns)
            if crossing:

                def allotment(v: int, width: int = width) -> int:
                    operation = problem.operations[v]
                    k = fastest(usable(operation.table, problem.accelerators, problem.memory), width)
                    return k or min(operation.table)

                time = with_moves(problem, block, crossing, allotment, time)
            yield Shape(width, most, time, params)


def _fewest(shapes: Sequence[Shape], numbers: Sequence[int], period: int) -> tuple[int, Shape]:
    """The fewest copies that meet ``period``; of equal ones the fewest bytes of parameters, then the shortest."""
    found: list[tuple[int, int, int, Shape]] = []
    for s in shapes:
        copies = next((r for r in numbers if r * period >= s.time), None)
        if copies is not None and copies <= s.most:
            found.append((copies, copies * s.width * s.params, s.time, s))
    copies, _, _, shape = min(found)
    return copies, shape


def _choice(problem: StagedProblem, block: tuple[int, ...], inside: Sequence[int], copies: int, shape: Shape) -> Choice:
    allotments: dict[int, int] = {}
    for v in inside:
        k = fastest(usable(problem.operations[v].table, len(block), problem.memory), shape.width)
        assert k is not None, "the shape has an allotment of every operation"
        allotments[v] = k
    return Choice(copies, tuple(grouped(block, shape.width, problem.group)[:copies]), allotments)


def _sets(problem: StagedProblem, chosen: dict[tuple[int, ...], Choice]) -> Solution:
    """Every operation on the first accelerators of each copy of its block."""
    allotments: list[int] = []
    sets: list[tuple[int, ...]] = []
    more: dict[int, tuple[tuple[int, ...], ...]] = {}
    for v, home in enumerate(problem.homes):
        choice = chosen[problem.blocks[home]]
        k = choice.allotments[v]
        allotments.append(k)
        sets.append(choice.sets[0][:k])
        if choice.copies > 1:
            more[v] = tuple(members[:k] for members in choice.sets[1:])
    return replace(with_sets(allotments, sets), more=more)
