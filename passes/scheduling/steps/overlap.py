"""How soon the next step may begin: the least distance at which a step does not get into its own way."""

from __future__ import annotations

from passes.scheduling.network import COMPUTE
from passes.scheduling.steps.place import Step

ROUNDS = 1000
"""How often the distance is raised before steps no longer overlap on anything."""


def span(step: Step) -> int:
    """The longest time from the first start to the last end on an accelerator."""
    spans = (_span(intervals) for resource, intervals in step.busy.items() if resource[0] == COMPUTE)
    return max(spans, default=0)


def _span(intervals: list[tuple[int, int]]) -> int:
    return max(start + time for start, time in intervals) - min(start for start, _ in intervals)


def _renewal(step: Step) -> int:
    """The longest time from the first start of an operation to the end of the step of its optimizer.

    It may be longer than the span: an operation without time keeps no accelerator.
    """
    batch, found = step.layout.batch, 0
    for update, start in step.updates:
        first = min(min(step.starts[v]) for v in batch.problem.items[batch.item_of[update.member]])
        found = max(found, start + step.layout.update_time(update) - first)
    return found


def least_pattern(step: Step) -> int:
    """The least distance, at least the :func:`span`, at which steps may follow each other.

    No accelerator, port or wire is then occupied twice at a time, and the next step finds new parameters.
    """
    network = step.layout.batch.problem.network
    pattern = max(span(step), _renewal(step))
    single: list[list[tuple[int, int]]] = []
    for resource, intervals in step.busy.items():
        if network is None or network.capacity(resource) == 1:
            if resource[0] != COMPUTE:
                single.append(sorted(intervals))
        else:
            pattern = max(pattern, _span(intervals))
    for _ in range(ROUNDS):
        longer = max((_without_clash(intervals, pattern) for intervals in single), default=pattern)
        if longer == pattern:
            return min(pattern, step.makespan)
        pattern = longer
    return step.makespan


def _without_clash(intervals: list[tuple[int, int]], pattern: int) -> int:
    """The pattern if intervals keep apart modulo it, else the least greater one that parts two that do not."""
    folded = sorted((start % pattern, start, time) for start, time in intervals)
    first = folded[0]
    for a, b in zip(folded, [*folded[1:], (first[0] + pattern, *first[1:])], strict=True):
        if a[0] + a[2] > b[0]:
            (_, one, time), (_, other, length) = a, b
            apart, after = (other - one, length) if other >= one else (one - other, time)
            laps = max(1, round(apart / pattern))
            return max(pattern + 1, -(-(apart + after) // laps))
    return pattern
