"""Operations that fill their block: each runs on all accelerators of its stage, none on part of them.

What runtimes can express that know layers on meshes only. ``filled`` of a problem asks for it, ``blocks.py`` has the
widths that blocks may have then, and ``granted.py`` takes them as allotments; here are the choice of a stage, and the
reasons why there may be none. Bounds do not know the rule: they hold for schedules without it too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from passes.scheduling.data import Violation
from passes.scheduling.elementary import usable
from passes.scheduling.problem import MemoryProblem, MoldableProblem


def all_by_width(times: dict[int, int], widths: Sequence[int]) -> list[int | None]:
    """Each of ``widths`` that is an allotment itself; None for the others."""
    return [width if width in times else None for width in widths]


@dataclass(frozen=True)
class Reach:
    """How far blocks of some widths come in ``order``: ``far[q]`` is the number of a cut, for ``q`` accelerators."""

    order: Sequence[int]
    cuts: Sequence[int]
    far: Sequence[int]

    @property
    def rest(self) -> Sequence[int]:
        """The operations between the furthest cut and the next; empty when all are reached."""
        begin, *ends = self.cuts[self.far[-1] : self.far[-1] + 2]
        return self.order[begin : ends[0] if ends else begin]


def first_unfilled(problem: MoldableProblem, tried: Iterable[Reach]) -> Violation | None:
    """The first operation that no block is left for, in the order in which most come before it; None: all are reached.

    Where the operations that may not be cut apart have no allotment in common it is the first one that differs.
    """
    best = max(tried, key=lambda reach: reach.cuts[reach.far[-1]], default=None)
    if best is None or not best.rest:
        return None
    first, *others = best.rest
    common = set(problem.operations[first].table)
    for v in others:
        if common.isdisjoint(problem.operations[v].table):
            message = f"which those before it in its stage, on {_listed(common)}, cannot"
            return Violation("allotments", f"{_runs_on(problem, v, problem.operations[v].table)}, {message}", (v,))
        common.intersection_update(problem.operations[v].table)
    left = len(best.far) - 1 - best.far.index(best.far[-1])
    message = f"and what comes before it leaves {left} of {problem.accelerators}: no block can be as wide"
    return Violation("allotments", f"{_runs_on(problem, first, problem.operations[first].table)}, {message}", (first,))


def not_on_every_block(problem: MemoryProblem) -> Violation:
    """The first operation that cannot run on blocks of the width that suits most, as plans with chunks need it."""
    count, memory = problem.accelerators, problem.memory
    tables = [usable(table, count, memory) or usable(table, count) for table in problem.item_tables]
    width = max({k for table in tables for k in table}, key=lambda k: (sum(k in table for table in tables), k))
    (v, *_), table = next(pair for pair in zip(problem.items, tables, strict=True) if width not in pair[1])
    message = f"most others on blocks of {width}: in this plan, unlike 'stages', each must be able to run on every one"
    return Violation("allotments", f"{_runs_on(problem, v, table)}, {message}", (v,))


def _runs_on(problem: MoldableProblem, v: int, allotments: Iterable[int]) -> str:
    return f"operation '{problem.operations[v].name}' runs on {_listed(allotments)} accelerators"


def _listed(allotments: Iterable[int]) -> str:
    return ", ".join(str(k) for k in sorted(allotments))
