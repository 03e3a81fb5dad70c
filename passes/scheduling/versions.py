"""Versions of parameters: asynchronous training keeps those that micro-batches in flight began with.

PipeDream (Narayanan et al., SOSP 2019) makes a version with every micro-batch, PipeDream-2BW (Narayanan et al., ICML
2021, section 3.1) with every M-th, which leaves two where M is no less than the micro-batches in flight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from passes.scheduling.data import Operation, Solution


@dataclass(frozen=True)
class Updated:
    """``operations`` share parameters, whose next version is there when ``gradients`` of M micro-batches have ended."""

    operations: tuple[int, ...]
    gradients: tuple[int, ...]


def kept_back(operations: Sequence[Operation], s: Solution, updated: Updated, every: int) -> int:
    """How many versions beside the newest are held at most, in the steady state.

    Micro-batch 0 begins with the newest version whose gradients have ended, ``behind`` micro-batches back or more. So
    what it holds may be superseded while it runs, once in ``every`` periods.
    """

    def end(v: int) -> int:
        return s.starts[v] + operations[v].table[s.allotments[v]].time

    begin = min(s.starts[v] for v in updated.operations)
    complete = max(map(end, updated.gradients))
    behind = max(1, -((begin - complete) // s.period))
    # The last micro-batch that begins with a version is `behind - 1` after the one whose gradients replace it.
    late = max(map(end, updated.operations)) + (behind - 1) * s.period
    return max(0, -((complete - late) // (every * s.period)))


def further(
    operations: Sequence[Operation], s: Solution, groups: Sequence[Updated], every: int
) -> Iterator[tuple[tuple[int, ...], int, int]]:
    """(Set, number of a group, bytes on each accelerator) of the versions beside the newest."""
    for number, updated in enumerate(groups):
        versions = kept_back(operations, s, updated, every)
        for v in updated.operations:
            size = versions * operations[v].table[s.allotments[v]].version
            for members in s.copies(v) if size else ():
                yield members, number, size
