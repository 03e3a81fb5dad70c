"""The time of a step of the optimizer: bound by memory, and a sum of the gradients that several accelerators hold."""

from __future__ import annotations

from passes.costs.collectives import Collective, collective_ns
from passes.costs.machine import Machine


def held_whole(params: int, each: int, k: int) -> int:
    """Of ``params`` bytes of which each of k accelerators holds ``each``, those that all of them hold.

    From ``each = whole + (params - whole) / k``, where the parts are rounded up.
    """
    return max(0, k * each - params) // (k - 1) if k > 1 else 0


def update_ns(machine: Machine, moved: int, whole: int, k: int) -> int:
    """ns on k accelerators, each of which moves ``moved`` bytes.

    Before, gradients of ``whole`` bytes, of parameters that all k hold, are all-reduced.
    """
    return round(machine.kernel_ns(0, "", moved) + collective_ns(machine, Collective("all_reduce", whole, k)))
