"""What collective communication among k accelerators costs: alpha-beta formulas of ring algorithms.

Each accelerator sends the stated volume at the bandwidth beta of the link level that the group
spans, after one start-up time alpha. One alpha for the whole collective, not one for each of its
steps, is what measured tables show (``docs/costs.md``): software start-up dominates the hops.
Volumes: Thakur, Rabenseifner, Gropp, "Optimization of collective communication operations in
MPICH" (2005), section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from passes.costs.machine import NS_PER_S, Machine

Pattern = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all"]


@dataclass(frozen=True)
class Collective:
    """``size`` is the bytes of the whole tensor; ``group`` accelerators take part."""

    pattern: Pattern
    size: int
    group: int


def volume(collective: Collective) -> float:
    """Bytes that each accelerator sends.

    all_reduce 2(k-1)/k S; all_gather and reduce_scatter (k-1)/k S, half of it each;
    all_to_all (k-1)/k of the S/k bytes it holds.
    """
    k, size = collective.group, collective.size
    share = size * (k - 1) / k
    match collective.pattern:
        case "all_reduce":
            return 2 * share
        case "all_gather" | "reduce_scatter":
            return share
        case "all_to_all":
            return share / k


def collective_ns(machine: Machine, collective: Collective) -> float:
    """Time of ``collective``; nothing on one accelerator, for no bytes, or where no links are described."""
    link = machine.link(collective.group)
    if collective.group == 1 or collective.size == 0 or link is None:
        return 0.0
    return link.latency + NS_PER_S * volume(collective) / link.bandwidth
