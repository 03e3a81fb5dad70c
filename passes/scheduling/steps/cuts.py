"""Where a model is cut into chunks: contiguous parts of its forward operations, in program order.

*Equal* chunks have the same number of layers, as uniform plans do (Narayanan et al., SC 2021): a layer is a block of
the model that is there several times, or, where none is, a forward operation. *Balanced* chunks make the longest one
as short as it can be: for a trial length, fill one chunk after the other; bisection finds the least.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

from passes.scheduling.data import InvalidProblem, Violation
from passes.scheduling.steps.batch import Batch

NEVER = 1 << 100
"""More than anything costs."""

UNEVEN = 4
"""How much less it counts that a cut is away from where an even one would be, than what moves there."""

Bounds = list[int]
"""Where each chunk begins among the forward operations, and the end of all."""


def places_to_cut(batch: Batch, *, ties: bool = False) -> list[int]:
    """Positions among the forward operations at which no group is cut; with ``ties`` groups may be cut.

    Nor may what the backward pass makes in the order of the forward pass, as recomputed values, be cut: backwards of
    later chunks come first.
    """
    count = len(batch.forward)
    if ties:
        return list(range(count + 1))
    first: dict[int, int] = {}
    reach = list(range(count))
    for position, v in enumerate(batch.forward):
        item = batch.item_of[v]
        reach[first.setdefault(item, position)] = position
    for d in batch.problem.dependences:
        if batch.kinds[d.producer] != "F":
            a, b = (first.get(batch.item_of[v]) for v in (d.producer, d.consumer))
            if a is not None and b is not None:
                reach[a] = max(reach[a], b)
    places, until = [0], -1
    for position in range(count):
        if position > until and position:
            places.append(position)
        until = max(until, reach[position])
    return [*places, count]


def layers(batch: Batch) -> list[int]:
    """Where each layer begins among the forward operations."""
    numbers: dict[str, set[str]] = {}
    for v in batch.forward:
        name, _, number = batch.problem.operations[v].block.rpartition(".")
        if name:
            numbers.setdefault(name, set()).add(number)
    repeated = {name for name, found in numbers.items() if len(found) > 1}
    begins: dict[str, int] = {}
    for position, v in enumerate(batch.forward):
        block = batch.problem.operations[v].block
        if block.rpartition(".")[0] in repeated:
            begins.setdefault(block, position)
    return sorted(begins.values()) if begins else places_to_cut(batch)[:-1]


def equal(batch: Batch, chunks: int) -> Bounds:
    """Chunks of as many layers each; what is before and behind them is in the first and the last chunk.

    Raises :class:`InvalidProblem` where the layers cannot be shared out evenly.
    """
    begins = layers(batch)
    if len(begins) % chunks:
        message = f"{len(begins)} layers cannot be cut into {chunks} chunks of equally many"
        raise InvalidProblem([Violation("equal", message)])
    each = len(begins) // chunks
    return [0, *(begins[c * each] for c in range(1, chunks)), len(batch.forward)]


def crossings(batch: Batch) -> list[int]:
    """Bytes that go from the forward operations before each position to those from there on."""
    position = {v: i for i, v in enumerate(batch.forward)}
    last: dict[tuple[int, int], tuple[int, int]] = {}
    for d in batch.problem.dependences:
        if d.producer in position and d.consumer in position:
            until, _ = last.get((d.producer, d.result), (0, 0))
            last[d.producer, d.result] = max(until, position[d.consumer]), d.bytes
    changes = [0] * (len(position) + 2)
    for (v, _), (until, size) in last.items():
        changes[position[v] + 1] += size
        changes[until + 1] -= size
    return list(accumulate(changes))[:-1]


def balanced(works: Sequence[int], places: Sequence[int], chunks: int) -> Bounds:
    """The cut at ``places`` whose longest chunk is shortest; ``works`` are those of the forward operations.

    Among those each chunk is as close to the mean of what is left as it may be. Raises :class:`InvalidProblem` where
    there are fewer parts than chunks.
    """
    at = _sums(works, places, chunks)
    low = _longest(at, chunks)
    needed, end = _needed(at, low), len(places) - 1
    bounds, here = [0], 0
    for left in range(chunks, 1, -1):
        goal = at[here] + (at[-1] - at[here]) // left
        most = min(bisect_right(at, at[here] + low) - 1, end - (left - 1))
        least = next(i for i in range(here + 1, most + 1) if needed[i] <= left - 1)
        best = min(range(least, most + 1), key=lambda i: (abs(at[i] - goal), i))
        bounds.append(places[best])
        here = best
    return [*bounds, places[-1]]


def cheapest(
    works: Sequence[int], places: Sequence[int], chunks: int, slack: float, price: Callable[[int, int], int]
) -> Bounds:
    """As :func:`balanced`, but chunks may be longer by ``slack``, a fraction, where cutting is cheap.

    ``price`` is what it costs, ns, to end a chunk, by its number, at a place. Shortest path over chunks and places.
    """
    at = _sums(works, places, chunks)
    longest = int(_longest(at, chunks) * (1 + slack))
    end = len(places) - 1
    costs = [0, *[NEVER] * end]
    origins: list[list[int]] = []
    for chunk in range(chunks):
        now, came = [NEVER] * (end + 1), [-1] * (end + 1)
        window: deque[int] = deque()  # places where this chunk may begin, the cheapest first
        for j in range(1, end + 1):
            while window and costs[window[-1]] >= costs[j - 1]:
                window.pop()
            window.append(j - 1)
            while window and at[j] - at[window[0]] > longest:
                window.popleft()
            if window and costs[window[0]] < NEVER:
                uneven = abs(at[j] - at[-1] * (chunk + 1) // chunks)
                extra = 0 if chunk == chunks - 1 else price(chunk, places[j]) + uneven // UNEVEN
                now[j], came[j] = costs[window[0]] + extra, window[0]
        costs = now
        origins.append(came)
    bounds = [end]
    for came in reversed(origins):
        bounds.append(came[bounds[-1]])
    return [places[i] for i in reversed(bounds)]


def _sums(works: Sequence[int], places: Sequence[int], chunks: int) -> list[int]:
    """Work before each place."""
    if len(places) <= chunks:
        message = f"the model can be cut into {len(places) - 1} at most, fewer than {chunks} chunks"
        raise InvalidProblem([Violation("chunks", message)])
    sums = list(accumulate(works, initial=0))
    return [sums[place] for place in places]


def _longest(at: Sequence[int], chunks: int) -> int:
    """The least length of the longest of so many chunks."""
    low, high = max(b - a for a, b in pairwise(at)), at[-1]
    while low < high:
        middle = (low + high) // 2
        if _needed(at, middle)[0] <= chunks:
            high = middle
        else:
            low = middle + 1
    return low


def _needed(at: Sequence[int], longest: int) -> list[int]:
    """How many chunks of at most that length what follows each place takes."""
    end = len(at) - 1
    needed = [0] * len(at)
    for i in range(end - 1, -1, -1):
        needed[i] = 1 + needed[min(bisect_right(at, at[i] + longest) - 1, end)]
    return needed
