"""How long a step of the optimizer takes where it is placed: with the sum of the gradients of copies.

Parameters that several sets of accelerators hold have a step of the optimizer on each, which reads the gradients of all
(``docs/ir.md``, "Steps"). The checker, the simulator, the views and the passes that place such steps read this.
"""

from __future__ import annotations

from xdsl.ir import OpResult

from dialects.attributes import SlotAttr
from dialects.gradients import OptimizerStepOp, WeightGradientOp
from dialects.network import Accelerators, Network


def exchange_time(network: Network, size: int, own: Accelerators, others: list[Accelerators]) -> int:
    """ns until gradients of ``size`` bytes, split over each of the sets ``others``, have come to the set ``own``.

    They come one after the other, from every other set once; those on one set are summed before. Two sets
    that exchange them so have all-reduced them; of c sets each receives c - 1 times as much, where a ring would do
    with 2 (c - 1) / c.
    """
    return sum(network.way(size, True, other, own).time for other in dict.fromkeys(others))


def update_time(step: OptimizerStepOp, network: Network) -> int | None:
    """Time of ``step`` in ns: that of its cost table, and of the exchange with the copies of its parameters.

    It runs on the set of its slot, or, where it has none, on that of its own gradient. None where a slot is missing, or
    a time for so many accelerators.
    """
    place = place_of(step)
    entry = None if place is None or step.cost is None else step.cost.table().get(len(place))
    slots = [gradient.slot for gradient in gradients(step) if gradient.group != step.group]
    if place is None or entry is None or any(slot is None for slot in slots):
        return None
    others = [_home(slot) for slot in slots if slot is not None]
    return entry.time + exchange_time(network, step.params.value.data, place, others)


def place_of(step: OptimizerStepOp) -> Accelerators | None:
    """The set that ``step`` runs on: that of its slot, or else of its own gradient; None where neither has a slot."""
    slot = step.slot or next((g.slot for g in gradients(step) if g.group == step.group), None)
    return None if slot is None else _home(slot)


def gradients(step: OptimizerStepOp) -> list[WeightGradientOp]:
    """What ``step`` reads, its own gradients first."""
    return [v.op for v in step.inputs if isinstance(v, OpResult) and isinstance(v.op, WeightGradientOp)]


def _home(slot: SlotAttr) -> Accelerators:
    return slot.copies()[0]
