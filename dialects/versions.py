"""Versions of parameters that are alive at once where training is asynchronous, as ``docs/ir.md`` defines them."""

from __future__ import annotations

from collections.abc import Mapping

from dialects.placement import Placed, Placement
from dialects.updates import gradients


def versions(placement: Placement) -> Mapping[str, int]:
    """Group → how many versions of its parameters are alive at once in the steady state; 1 where none is kept back.

    Version ``v`` is complete when the gradients of micro-batch ``v M - 1`` have ended, ``M`` periods after the one
    before. The last micro-batch that sees it is ``(v + 1) M - 1 + lag``; others begin when the next one is complete.
    """
    training, members = placement.graph.training, _members(placement)
    if training is None or not training.asynchronous.data or not placement.period:
        return {}
    found: dict[str, int] = {}
    for step in placement.graph.updates():
        read = [placement.placed[g] for g in gradients(step) if g in placement.placed]
        name = "" if step.group is None else step.group.data
        if not read or name not in members:
            continue
        complete = max(placed.end for placed in read)
        first = min(placed.start for placed in members[name])
        last = max(placed.end for placed in members[name])
        lag = max(0, -(-(complete - first) // placement.period) - 1)
        beyond = max(0, last + lag * placement.period - complete)
        found[name] = 1 + -(-beyond // (training.asynchronous.data * placement.period))
    return found


def _members(placement: Placement) -> dict[str, list[Placed]]:
    found: dict[str, list[Placed]] = {}
    for op, placed in placement.placed.items():
        if op.group is not None:
            found.setdefault(op.group.data, []).append(placed)
    return found
