"""What the fullest accelerator of a schedule holds when it holds most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from passes.scheduling.data import Solution
from passes.scheduling.problem import MemoryProblem
from passes.scheduling.versions import further


@dataclass(frozen=True)
class Contents:
    """Bytes on one accelerator: parameters of each item, and of each kind what is alive at the peak."""

    accelerator: int
    parameters: Mapping[int, int]
    """Number of an item (see ``MoldableProblem.items``) → parameter bytes."""
    alive: Mapping[str, int]
    """Content of a holding → bytes; "version" are versions of parameters beside the newest."""
    microbatches: int
    """Most micro-batches of which one result is alive."""

    @property
    def total(self) -> int:
        """All bytes."""
        return sum(self.parameters.values()) + sum(self.alive.values())


def fullest_contents(problem: MemoryProblem, solution: Solution) -> Contents:
    """What the accelerator that needs most holds, at the first moment of the pattern at which it is most."""
    sums = problem.peak_memory(solution)
    worst = max(sums, key=lambda p: (sum(sums[p]), -p))
    parameters: dict[int, int] = {}
    for number, item in enumerate(problem.items):
        sizes = [
            problem.operations[v].table[solution.allotments[v]].params
            for v in item
            if any(worst in members for members in solution.copies(v))
        ]
        if any(sizes):
            parameters[number] = max(sizes)
    cycle = solution.period * solution.repetition
    mine = [h for members, h in problem.holdings(solution) if worst in members and h.end > h.begin and h.bytes]
    changes: Counter[int] = Counter()
    for h in mine:
        rest = (h.end - h.begin) % cycle
        if rest:
            changes[h.begin % cycle] += h.bytes
            changes[(h.begin + rest) % cycle] -= h.bytes
    level, moment = 0, 0
    most: int | None = None
    for when, change in sorted(changes.items()):
        level += change
        if most is None or level > most:
            most, moment = level, when
    alive: Counter[str] = Counter()
    count = 0
    for h in mine:
        rounds, rest = divmod(h.end - h.begin, cycle)
        times = rounds + ((moment - h.begin) % cycle < rest)
        alive[h.content] += times * h.bytes
        if h.content == "result":
            count = max(count, times * solution.repetition)
    versions: dict[int, int] = {}
    for members, number, size in further(problem.operations, solution, problem.updated, problem.asynchronous):
        if worst in members:
            versions[number] = max(size, versions.get(number, 0))
    alive["version"] = sum(versions.values())
    return Contents(worst, parameters, {kind: size for kind, size in alive.items() if size}, count)
