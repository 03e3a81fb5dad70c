"""Operations that share parameters: one allotment, one set of accelerators, parameters stored once.

Tied weights, or the forward and backward operations of a layer, form a *group*. All its operations run on
the same accelerators in every period, so a group is placed like a single operation that takes as long as
all its members together. An *item* is a group, or an operation that is in none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from passes.scheduling.data import Cost, Operation, Solution, Table, Violation

Items = tuple[tuple[int, ...], ...]
"""The operations of each item."""


def items_of(count: int, together: Sequence[Sequence[int]]) -> Items:
    """The items among ``count`` operations, each sorted, in the order of their first operations."""
    first = {min(group): tuple(sorted(group)) for group in together}
    grouped = {v for group in together for v in group}
    return tuple(first.get(v, (v,)) for v in range(count) if v in first or v not in grouped)


def item_tables(operations: Sequence[Operation], items: Items) -> tuple[Table, ...]:
    """The :func:`merged` table of each item, the operation's own for a single one; equal members share one object."""
    known: dict[tuple[int, ...], Table] = {}
    tables: list[Table] = []
    for item in items:
        rows = [operations[v].table for v in item]
        key = tuple(sorted(id(row) for row in rows))
        if key not in known:
            known[key] = rows[0] if len(rows) == 1 else merged(rows)
        tables.append(known[key])
    return tuple(tables)


def merged(tables: Sequence[Table]) -> dict[int, Cost]:
    """What operations of these ``tables`` cost as one, at every allotment that all of them have.

    Times add up, and parameters are stored once: the greatest. ``output`` and ``workspace`` are those of the
    member that needs most of both while it runs, so the sum of all three bytes is the least that an accelerator
    must have. They are *not* what is live on average: that is the sum over members of bytes times time.
    """
    found: dict[int, Cost] = {}
    for k in sorted(set(tables[0]).intersection(*tables[1:])):
        costs = [table[k] for table in tables]
        running = [c for c in costs if c.time] or costs
        most = max(running, key=lambda c: c.output + c.workspace)
        params = max(c.params for c in costs)
        found[k] = Cost(sum(c.time for c in costs), params, most.output, most.workspace)
    return found


def broken_groups(
    operations: Sequence[Operation], together: Sequence[Sequence[int]], accelerators: int
) -> Iterator[Violation]:
    """Groups have two or more existing members, no operation is in two, members have a common possible allotment."""
    count = Counter(v for group in together for v in group)
    for group in together:
        if len(group) < 2:
            yield Violation("together", f"a group of {len(group)} operations")
        elif any(not 0 <= v < len(operations) for v in group):
            yield Violation("together", f"the group {list(group)} has an unknown member: there are {len(operations)}")
        elif twice := [v for v in group if count[v] > 1]:
            name = operations[twice[0]].name
            yield Violation("together", f"operation '{name}' is twice in groups", (twice[0],))
        else:
            yield from _without_allotment(operations, group, accelerators)


def _without_allotment(operations: Sequence[Operation], group: Sequence[int], accelerators: int) -> Iterator[Violation]:
    """The first member that leaves the group without a possible allotment."""
    common = {k for k in operations[group[0]].table if k <= accelerators}
    for v in group[1:]:
        rest = common & set(operations[v].table)
        if not rest:
            theirs = ", ".join(str(k) for k in sorted(common)) or "none"
            yield Violation(
                "together",
                f"operation '{operations[v].name}' shares parameters with '{operations[group[0]].name}', but runs on"
                f" {', '.join(str(k) for k in sorted(operations[v].table))} accelerators and the group on {theirs}",
                (v, group[0]),
            )
            return
        common = rest


def gathered(order: Sequence[int], items: Items) -> tuple[int, ...]:
    """``order`` with the operations of each group moved to the first of them."""
    item_of = {v: item for item in items for v in item}
    position = {v: i for i, v in enumerate(order)}
    first = {min(item, key=position.__getitem__): sorted(item, key=position.__getitem__) for item in items}
    return tuple(v for u in order if u in first for v in first[u]) if len(item_of) > len(items) else tuple(order)


def runs(order: Sequence[int], block: Sequence[int]) -> list[tuple[int, int, int]]:
    """Beginning and end in ``order``, and block, of the longest runs of operations of one ``block``."""
    found: list[tuple[int, int, int]] = []
    for _, group in groupby(enumerate(order), key=lambda pair: block[pair[1]]):
        positions = [i for i, _ in group]
        found.append((positions[0], positions[-1] + 1, block[order[positions[0]]]))
    return found


def apart(operations: Sequence[Operation], items: Items, s: Solution) -> Iterator[Violation]:
    """Members whose set, or that of some copy, is not that of the first of their group."""
    for first, *others in items:
        for v in others:
            if list(map(set, s.copies(v))) != list(map(set, s.copies(first))):
                yield Violation(
                    "together",
                    f"'{operations[first].name}' and '{operations[v].name}' are of one group, but run on"
                    f" {list(s.sets[first])} and {list(s.sets[v])}",
                    (first, v),
                )


def stored(operations: Sequence[Operation], items: Items, s: Solution) -> dict[tuple[int, ...], list[tuple[int, int]]]:
    """Set → (item, parameter bytes on each accelerator) of what is stored there; a group counts once, its greatest."""
    found: dict[tuple[int, ...], dict[int, int]] = {}
    for number, item in enumerate(items):
        for v in item:
            for members in s.copies(v):
                here = found.setdefault(members, {})
                here[number] = max(here.get(number, 0), operations[v].table[s.allotments[v]].params)
    return {members: list(here.items()) for members, here in found.items()}


def once(sizes: Iterable[tuple[int, int]]) -> int:
    """Bytes of (item, bytes) pairs when each item counts once, with its greatest."""
    most: dict[int, int] = {}
    for item, size in sizes:
        most[item] = max(most.get(item, 0), size)
    return sum(most.values())
