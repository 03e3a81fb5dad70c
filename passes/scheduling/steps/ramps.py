"""Orders made from a rule: ramps, and the known schedules of a placement, split and kept if they fit.

A *ramp* is what 1F1B, ZB-H1 and ZB-H2 have in common: a rank begins with some forwards *ahead*, is *late* with some
gradients of weights, and works a forward and both gradients in turn between. Ranks further on are less ahead and more
late, so that all hold about the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from passes.scheduling.steps.cells import Cell, Line, Orders
from passes.scheduling.steps.known import KNOWN
from passes.scheduling.steps.phases import spelled
from passes.scheduling.steps.run import peak


def first_orders(line: Line, microbatches: int, limits: Sequence[int] | None) -> Iterator[Orders]:
    """Orders of ``F``, ``I``, ``W`` within the limits, each made at once; some may wait in a circle."""
    for orders in _known(line, microbatches):
        if _fits(line, orders, limits):
            yield orders
    if len(line.stages) == line.ranks:
        yield from _ramps(line, microbatches, limits)


def _fits(line: Line, orders: Orders, limits: Sequence[int] | None) -> bool:
    return limits is None or all(peak(line, cells) <= limit for cells, limit in zip(orders, limits, strict=True))


def _known(line: Line, microbatches: int) -> Iterator[Orders]:
    """The known schedules of the placement, their ``B`` split: what reads of an ``I`` has it earlier, for no memory."""
    places = tuple(stage.rank for stage in line.stages)
    chunks, rest = divmod(len(places), line.ranks)
    if rest:
        return
    for schedule in KNOWN.values():
        if schedule.chunks in (None, chunks) and schedule.placement(line.ranks, chunks) == places:
            yield [list(_split(cells)) for cells in schedule.generate(line, microbatches)]


def _split(cells: Sequence[Cell]) -> Iterator[Cell]:
    for cell in cells:
        if cell.kind == "B":
            yield cell._replace(kind="I")
            yield cell._replace(kind="W")
        else:
            yield cell


def falling(first: int, count: int) -> list[int]:
    """``count`` numbers that fall evenly from ``first`` to 1, rounded up."""
    return [1 + -(-(first - 1) * (count - 1 - k) // max(1, count - 1)) for k in range(count)]


def _ramps(line: Line, microbatches: int, limits: Sequence[int] | None) -> Iterator[Orders]:
    """Ramps from one forward at the first rank to what fits; ``W`` wait until all hold as many, or as much as fits."""
    ranks = line.ranks
    room = [_room(line, rank, microbatches, limits) for rank in range(ranks)]
    for lead in sorted({max(1, round(ranks * part / 8)) for part in range(2, 20, 2)} | {2 * ranks - 1}):
        held = falling(lead, ranks)
        for rank in range(ranks):
            held[rank] = min(held[rank], room[rank], *held[:rank])
        even = [max(0, min(lead, room[rank]) - held[rank]) for rank in range(ranks)]
        full = [_late(line, rank, held[rank], limits, microbatches) for rank in range(ranks)]
        for late in (even, full):
            orders = [_ramp(rank, microbatches, held[rank] - 1, late[rank]) for rank in range(ranks)]
            if _fits(line, orders, limits):
                yield orders


def _room(line: Line, rank: int, microbatches: int, limits: Sequence[int] | None) -> int:
    """How many micro-batches a rank can hold."""
    bytes = line.stages[rank].activation
    return microbatches if limits is None or not bytes else min(microbatches, limits[rank] // bytes)


def _late(line: Line, rank: int, held: int, limits: Sequence[int] | None, microbatches: int) -> int:
    """How many ``W`` may wait on a rank beside so many forwards."""
    stage = line.stages[rank]
    most = microbatches - held + 1
    if limits is None or not stage.kept:
        return most
    return min(most, (limits[rank] - held * stage.activation) // stage.kept)


def _ramp(rank: int, microbatches: int, ahead: int, late: int) -> list[Cell]:
    many = max(microbatches, ahead + late)
    both = many - ahead - late
    phases = [(ahead, "F0"), (late, "F0 I0"), (both, "F0 I0 W0"), (ahead, "I0 W0"), (late, "W0")]
    return spelled([rank], microbatches, phases)
