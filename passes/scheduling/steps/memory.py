"""What a step holds on every accelerator, as ``docs/ir.md`` counts it: parameters, and the peak of what is alive."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from passes.scheduling.crossings import share
from passes.scheduling.data import Solution
from passes.scheduling.lifetimes import held_sets
from passes.scheduling.steps.layout import Members
from passes.scheduling.steps.place import Step
from passes.scheduling.together import once, stored


def peaks(step: Step, pattern: int) -> dict[Members, tuple[int, int]]:
    """Accelerators that hold the same → bytes of parameters, peak of all others; steps begin every ``pattern`` ns."""
    problem = step.layout.batch.problem
    allotments = tuple(len(members) for members in step.layout.sets)
    starts = tuple(starts[0] for starts in step.starts)
    params = stored(problem.operations, problem.items, Solution(pattern, allotments, step.layout.sets, starts))
    held: dict[Members, list[tuple[Any, Any, int]]] = {}
    for members, begins, ends, size in _holdings(step):
        if size:
            held.setdefault(members, []).append((begins, ends, size))
    keys = list({**held, **params})
    found: dict[Members, tuple[int, int]] = {}
    for members, sharing in held_sets(keys):
        live = [holding for number in sharing for holding in held.get(keys[number], ())]
        mine = once(pair for number in sharing for pair in params.get(keys[number], ()))
        found[tuple(members)] = mine, _peak(live, pattern)
    return found


def _holdings(step: Step) -> Iterator[tuple[Members, Any, Any, int]]:
    """Set, and begin and end of what each of its accelerators holds of every micro-batch, with the bytes."""
    import numpy as np

    layout, batch = step.layout, step.layout.batch
    starts = np.array(step.starts, dtype=np.int64)
    ends = starts + np.array([layout.time(v) for v in range(len(step.starts))], dtype=np.int64)[:, None]
    moves = {(move.producer, move.result, move.target): move for move in step.moves}
    for v, mine in enumerate(layout.sets):
        cost = batch.problem.operations[v].table[len(mine)]
        yield mine, starts[v], ends[v], cost.workspace
        last = ends[v]
        away: dict[Members, tuple[dict[int, int], list[Any], Any]] = {}
        for d in batch.readers[v]:
            there = layout.sets[d.consumer]
            if there == mine:
                last = np.maximum(last, ends[d.consumer])
                continue
            sizes, landings, until = away.get(there, ({}, [], ends[d.consumer]))
            move = moves.get((v, d.result, there))
            sizes[d.result] = share(d, there)
            if sizes[d.result]:
                landings.append(ends[v] if move is None else np.array(move.landings, dtype=np.int64))
            if move is not None:
                last = np.maximum(last, np.array(move.starts, dtype=np.int64) + move.time)
            away[there] = sizes, landings, np.maximum(until, ends[d.consumer])
        yield mine, starts[v], last, cost.output
        for there, (sizes, landings, until) in away.items():
            if landings:
                yield there, np.minimum.reduce(landings), until, sum(sizes.values())
    for value in batch.problem.inputs:
        by_set: dict[Members, list[int]] = {}
        for c in value.consumers:
            by_set.setdefault(layout.sets[c], []).append(c)
        for there, readers in by_set.items():
            yield there, starts[readers].min(axis=0), ends[readers].max(axis=0), value.bytes


def _peak(live: list[tuple[Any, Any, int]], pattern: int) -> int:
    """Most bytes alive at once where everything repeats each ``pattern``; intervals are half-open."""
    import numpy as np

    if not live:
        return 0
    large = sum(size * len(begins) for begins, _, size in live) >= 2**60
    begins = np.concatenate([begins for begins, _, _ in live])
    lengths = np.concatenate([ends for _, ends, _ in live]) - begins
    sizes = np.repeat(np.array([size for *_, size in live], dtype=object if large else np.int64), len(live[0][0]))
    whole, rest = lengths // pattern, lengths % pattern
    begins = begins % pattern
    wraps = (begins + rest >= pattern) & (rest > 0)
    always = int((whole * sizes).sum() + (sizes * wraps).sum())
    some = rest > 0
    times = np.concatenate([begins[some], (begins[some] + rest[some]) % pattern])
    changes = np.concatenate([sizes[some], -sizes[some]])
    order = np.lexsort((np.concatenate([np.ones(int(some.sum())), np.zeros(int(some.sum()))]), times))
    levels = np.cumsum(changes[order])
    return always + max(0, int(levels.max(initial=0)) if len(levels) else 0)
