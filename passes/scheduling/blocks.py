"""Widths of blocks that can always be packed on a platform, and their packing.

A block no wider than the innermost group must lie inside one group; wider blocks take whole groups.
Widths of which each divides the next, up to the group size, and multiples of the group size can be
packed widest first whenever they sum to at most the number of accelerators: after all wider blocks
there is an aligned place of width ``d`` exactly when ``d`` accelerators are left, since all earlier
widths are multiples of ``d``.

Where operations must run on all accelerators of their block, blocks are as wide as some allotment, and widths that
do not nest so stand alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

from passes.scheduling.problem import MoldableProblem


def width_families(problem: MoldableProblem) -> list[tuple[int, ...]]:
    """Increasing widths worth trying, one family for each way to nest blocks in a group."""
    allotments = sorted({k for t in {id(o.table): o.table for o in problem.operations}.values() for k in t})
    allotments = [k for k in allotments if k <= problem.accelerators]
    count, group = problem.accelerators, problem.group
    if group == count:
        return [tuple(allotments)]
    if problem.filled:
        return _allotments_as_widths(allotments, count, group)
    families: list[tuple[int, ...]] = []
    for chain in divisor_chains(group):
        widths: set[int] = set()
        for k in allotments:
            if k <= group:
                widths.add(next(d for d in chain if d >= k))
            elif -(-k // group) * group <= count:
                widths.add(-(-k // group) * group)
            else:
                widths.add(count)
        families.append(tuple(sorted(widths)))
    return sorted(set(families), key=lambda f: (-len(f), f))


def _allotments_as_widths(allotments: Sequence[int], count: int, group: int) -> list[tuple[int, ...]]:
    """Families of blocks as wide as some allotment; a width that no chain has is a family of its own."""
    families = [
        tuple(k for k in allotments if k in chain or k % group == 0 or k == count) for chain in divisor_chains(group)
    ]
    nested = {k for family in families for k in family}
    families += [(k,) for k in allotments if k not in nested]
    return sorted({family for family in families if family}, key=lambda f: (-len(f), f))


def capacity(problem: MoldableProblem, widths: Sequence[int]) -> int:
    """How many accelerators blocks of ``widths``, a family, may take together: fewer than all where one nests badly."""
    count, group = problem.accelerators, problem.group
    if not problem.filled or len(widths) != 1 or group == count:
        return count
    (width,) = widths
    if group % width == 0 or width % group == 0 or width == count:
        return count
    number = count // width
    while pack_blocks([width] * number, count, group) is None:
        number -= 1
    return number * width


@cache
def divisor_chains(size: int) -> tuple[tuple[int, ...], ...]:
    """All maximal chains 1 | d | ... | ``size``, at most eight of them."""

    def grow(top: int) -> Iterator[tuple[int, ...]]:
        if top == 1:
            yield (1,)
            return
        for prime in (d for d in range(2, top + 1) if top % d == 0 and all(d % e for e in range(2, d))):
            for chain in grow(top // prime):
                yield (*chain, top)

    chains: list[tuple[int, ...]] = []
    for chain in grow(size):
        chains.append(chain)
        if len(chains) == 8:
            break
    return tuple(chains)


def pack_blocks(widths: Sequence[int], count: int, group: int) -> list[tuple[int, ...]] | None:
    """Accelerators for blocks of these ``widths``, or None when they cannot be packed.

    Blocks follow each other in the given order where the groups allow that, or fill earlier gaps; what
    cannot be packed so is packed widest first.
    """
    return _in_order(widths, count, group) or _first_fit(widths, count, group) or _widest_first(widths, count, group)


def _in_order(widths: Sequence[int], count: int, group: int) -> list[tuple[int, ...]] | None:
    position = 0
    blocks: list[tuple[int, ...]] = []
    for width in widths:
        if width > group or position % group + width > group:
            position = -(-position // group) * group
        if position + width > count:
            return None
        blocks.append(tuple(range(position, position + width)))
        position += width
    return blocks


def _first_fit(widths: Sequence[int], count: int, group: int) -> list[tuple[int, ...]] | None:
    """Each block at its first free aligned place."""
    free = [True] * count
    blocks: list[tuple[int, ...]] = []
    for width in widths:
        if width > group:
            whole = [range(g, min(g + group, count)) for g in range(0, count, group)]
            members = [p for part in whole if all(free[p] for p in part) for p in part][:width]
        else:
            places = (
                range(p, p + width) for g in range(0, count, group) for p in range(g, g + group - width + 1, width)
            )
            members = list(next((r for r in places if r.stop <= count and all(free[p] for p in r)), ()))
        if len(members) < width:
            return None
        for p in members:
            free[p] = False
        blocks.append(tuple(members))
    return blocks


def _widest_first(widths: Sequence[int], count: int, group: int) -> list[tuple[int, ...]] | None:
    """Each block at the first place that is free; narrow ones in the fullest group that still has room."""
    free = [list(range(g, min(g + group, count))) for g in range(0, count, group)]
    blocks: list[tuple[int, ...]] = [()] * len(widths)
    for index in sorted(range(len(widths)), key=lambda i: (-widths[i], i)):
        width = widths[index]
        if width > group:
            taken: list[int] = []
            for members in free:
                if len(members) in (group, count % group) and len(taken) < width:
                    take = min(len(members), width - len(taken))
                    taken += members[:take]
                    del members[:take]
            if len(taken) < width:
                return None
            blocks[index] = tuple(taken)
            continue
        room = [m for m in free if len(m) >= width]
        if not room:
            return None
        members = min(room, key=len)
        blocks[index] = tuple(members[:width])
        del members[:width]
    return blocks
