"""Copies of operations: disjoint sets of equal size that serve micro-batches in turn.

With ``r`` copies instance ``i`` runs on copy ``i mod r``, so each copy works with period ``r·T``: a time of at
most ``r·T`` is enough, and an accelerator is busy for ``t / r`` of each period. It is paid for in memory, since
each copy holds the parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import lcm

from passes.scheduling.data import Operation, Solution, Violation

MOST_REPETITION = 1024
"""Greatest least common multiple of numbers of copies: a schedule is checked that many micro-batches long."""

LARGE = 300_000
"""Operations times repetition up to which solvers choose copies: what is checked grows with both."""

HIGHLY_COMPOSITE = (1, 2, 4, 6, 12, 24, 36, 48, 60, 120, 180, 240, 360, 720, 840, 960)
"""Numbers with more divisors than most below them, and so with most choices of copies."""


def unrolled(s: Solution) -> tuple[list[tuple[int, int]], list[tuple[int, ...]]]:
    """Instance and operation of every run of one pattern, and the set of each run."""
    if not s.more:
        return [(0, v) for v in range(len(s.sets))], list(s.sets)
    runs = [(i, v) for i in range(s.repetition) for v in range(len(s.sets))]
    return runs, [s.set_of(v, i) for i, v in runs]


def broken_copies(operations: Sequence[Operation], s: Solution, accelerators: int, most: int) -> Iterator[Violation]:
    """Copies: at most ``most``, on disjoint sets of the platform, each as large as the allotment; few patterns."""
    for v in s.more:
        if not 0 <= v < len(operations):
            yield Violation("copies", f"copies of operation {v} of {len(operations)}")
            continue
        copies, name = s.copies(v), operations[v].name
        if len(copies) > most:
            yield Violation("copies", f"operation '{name}' has {len(copies)} copies, at most {most} are allowed", (v,))
        taken: dict[int, int] = {}
        for number, members in enumerate(copies):
            copy = f"copy {number} of operation '{name}'"
            if len(set(members)) != len(members) or len(members) != s.allotments[v]:
                yield Violation("copies", f"{copy} has allotment {s.allotments[v]} but the set {list(members)}", (v,))
            elif any(not 0 <= p < accelerators for p in members):
                yield Violation("copies", f"{copy} uses accelerators outside the platform", (v,))
            for p in members:
                if taken.setdefault(p, number) != number:
                    yield Violation("copies", f"copies {taken[p]} and {number} of '{name}' share accelerator {p}", (v,))
                    break
    if s.repetition > MOST_REPETITION:
        message = f"the use of copies repeats after {s.repetition} micro-batches, at most {MOST_REPETITION} are allowed"
        yield Violation("copies", message)


def copy_numbers(operations: int, accelerators: int, most: int) -> list[tuple[int, ...]]:
    """Increasing numbers of copies of at most ``most`` that may be used together, several choices.

    Each choice holds the divisors of one number, which bounds their least common multiple.
    """
    most = max(1, min(most, accelerators))
    limit = max(12, min(MOST_REPETITION, LARGE // max(1, operations)))
    if lcm(*range(1, most + 1)) <= limit:
        return [tuple(range(1, most + 1))]
    bases = [b for b in HIGHLY_COMPOSITE if b <= limit][-2:]
    if accelerators <= limit:
        bases.append(limit // accelerators * accelerators)
    return list(dict.fromkeys(tuple(r for r in range(1, most + 1) if base % r == 0) for base in bases))


Column = tuple[int, int, int, int]
"""Allotment, time, parameter bytes, live bytes times ns."""


def copied_columns(columns: Sequence[Column], accelerators: int, most: int) -> tuple[Column, ...]:
    """``columns`` and those of ``r`` copies for ``r`` up to ``most``: ``r·k`` accelerators, each busy ``⌊t/r⌋``.

    On an accelerator ``Σ t/r ≤ T`` over the operations there, whatever their numbers of copies, so bounds that
    look at loads hold with these columns, and each holds its live bytes in one of ``r`` periods; rounding down
    keeps them bounds. Of ``r`` copies on ``k`` accelerators
    nothing is gained when as many copies as fit of another allotment take no more of anything; bounds grow
    with every entry of a column, so such columns are left out.
    """
    found: dict[Column, None] = {}
    for k, time, params, live in columns:
        for r in range(1, min(most, accelerators // k) + 1):
            width, busy, mine = r * k, time // r, live // r
            better = any(
                (r2 := min(most, width // k2)) > 0
                and (r2 * k2, time2 // r2, params2, live2 // r2) != (width, busy, params, mine)
                and r2 * k2 <= width
                and time2 // r2 <= busy
                and params2 <= params
                and live2 // r2 <= mine
                for k2, time2, params2, live2 in columns
            )
            if not better:
                found[width, busy, params, mine] = None
    return tuple(found)


def grouped(block: Sequence[int], width: int, group: int) -> list[tuple[int, ...]]:
    """As many disjoint sets of ``width`` accelerators of ``block`` as fit.

    One no wider than a group lies in one; wider ones begin with a group each and take whole groups, or, where the
    block has too few of those, there is one on its first accelerators.
    """
    by_group: dict[int, list[int]] = {}
    for p in block:
        by_group.setdefault(p // group, []).append(p)
    if width <= group:
        return [
            tuple(part[i : i + width]) for part in by_group.values() for i in range(0, len(part) - width + 1, width)
        ]
    whole = [part for part in by_group.values() if len(part) == group]
    step = -(-width // group)
    found = [whole[i : i + step] for i in range(0, len(whole) - step + 1, step)]
    sets = [tuple(p for part in parts for p in part)[:width] for parts in found]
    return sets or ([tuple(block[:width])] if width <= len(block) else [])
