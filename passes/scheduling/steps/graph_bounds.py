"""How long any step of a graph takes at least, whatever its cut, order, sets and overlap with other steps.

A group is on one set of accelerators, which runs all its operations for all micro-batches and then its step of the
optimizer, before which the next step does not begin there.

* *area*: every group takes at least its least product of accelerators and time, and all of them share the platform.
* *group work*: the time of a group on its best allotment.
* *path*: the time of one micro-batch from an operation of a group to its gradients of weights, each operation at its
  fastest, and the step of the optimizer after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from passes.scheduling.elementary import Bound
from passes.scheduling.steps.batch import Batch, Update


def graph_bound(batch: Batch) -> Bound:
    """The greatest of the bounds, by name."""
    return max(graph_bounds(batch), key=lambda bound: bound.value)


def graph_bounds(batch: Batch) -> list[Bound]:
    """Lower bounds on the distance at which steps of a batch follow each other, ns."""
    area = longest = 0
    count = batch.problem.accelerators
    for number, table in enumerate(batch.tables):
        steps = batch.updates_of.get(number, [])
        times = {
            k: batch.microbatches * cost.time + sum(step.times[k] for step in steps)
            for k, cost in table.items()
            if k <= count
        }
        area += min(k * time for k, time in times.items())
        longest = max(longest, min(times.values()))
    return [
        Bound("area", max(1, -(-area // count)), "the order of operations, and their memory"),
        Bound("group work", longest, "everything but one group"),
        Bound("path", _path(batch), "everything but one micro-batch"),
    ]


def _path(batch: Batch) -> int:
    """The longest way from a group to what its optimizer waits for, and its step."""
    fastest = [min(cost.time for cost in operation.table.values()) for operation in batch.problem.operations]
    ends = _longest(batch, fastest, range(len(fastest)))
    most: list[tuple[int, Update, tuple[int, ...]]] = []
    for update in batch.updates:
        members = batch.problem.items[batch.item_of[update.member]]
        begin = min(ends[v] - fastest[v] for v in members)
        until = max(ends[w] for w in (*update.reads, *members))
        most.append((until - begin + min(update.times.values()), update, members))
    found = 0
    for limit, update, members in sorted(most, key=lambda each: -each[0]):
        if limit <= found:
            break
        ways = _longest(batch, fastest, members)
        until = max(ways[w] for w in (*update.reads, *members) if w in ways)
        found = max(found, until + min(update.times.values()))
    return found


def _longest(batch: Batch, times: Sequence[int], sources: Iterable[int]) -> dict[int, int]:
    """The longest way from any of ``sources`` to the end of each operation that has one."""
    longest = dict.fromkeys(sources, 0)
    for v in batch.problem.topological:
        before = [longest[d.producer] for d in batch.reads[v] if d.producer in longest]
        if before or v in longest:
            longest[v] = max(before, default=0) + times[v]
    return longest
