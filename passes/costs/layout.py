"""Which values stay split between operators, and who pays when one must be put together.

One decision for each value, the same for every allotment. Backwards: a value is *wanted* split when
every consumer would cut it along one same dimension anyway. Forwards: an operator makes its results
in the layout of its plan; a result stays split when every consumer accepts it so, and otherwise its
producer gathers it once for all of them. An output of the graph is always whole.

This gives the pattern of Megatron-LM (Shoeybi et al. 2019): columns, heads or element-wise
operators, rows, with one all-reduce at the end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass

from passes.costs.call import Call, Layout, Plan
from passes.costs.collectives import Collective
from passes.costs.kinds import rule_of


@dataclass(frozen=True)
class Node:
    """An operator and the values it reads and makes, under any names.

    ``like``: the results of the operator that it repeats for the backward pass, if it does.
    """

    call: Call
    reads: tuple[Hashable, ...]
    makes: tuple[Hashable, ...]
    like: tuple[Hashable, ...] = ()


@dataclass(frozen=True)
class Placed:
    """An operator with all its layouts: ``arriving`` of operands, its ``plan``, ``leaving`` of results."""

    call: Call
    plan: Plan
    arriving: tuple[Layout, ...]
    leaving: tuple[Layout, ...]

    def gathers(self, k: int) -> tuple[Collective, ...]:
        """The results that are made split but must leave whole."""
        return tuple(
            Collective("all_gather", tensor.size, k)
            for tensor, made, left in zip(self.call.results, self.plan.makes, self.leaving, strict=True)
            if made is not None and left is None
        )


def place(nodes: Sequence[Node], outputs: Collection[Hashable]) -> list[Placed]:
    """Decide the layouts of all values of a graph, given in topological order with its output values."""
    readers: dict[Hashable, list[tuple[Call, int]]] = defaultdict(list)
    for node in nodes:
        for i, value in enumerate(node.reads):
            readers[value].append((node.call, i))
    wanted = _wanted(nodes, set(outputs))
    layout: dict[Hashable, Layout] = {}
    placed: list[Placed] = []
    for node in nodes:
        arriving = tuple(layout.get(v) for v in node.reads)
        plan = rule_of(node.call).plan(node.call, arriving, tuple(wanted.get(v) for v in node.makes))
        for value, dim in zip(node.makes, plan.makes, strict=True):
            stays = dim is not None and value not in outputs
            stays = stays and all(rule_of(call).accepts(call, i, dim) for call, i in readers[value] if dim is not None)
            layout[value] = dim if stays else None
        placed.append(Placed(node.call, plan, arriving, tuple(layout[v] for v in node.makes)))
    return placed


def _wanted(nodes: Sequence[Node], outputs: Collection[Hashable]) -> dict[Hashable, Layout]:
    """The dimension along which all consumers of a value would cut it."""
    wishes: dict[Hashable, set[Layout]] = defaultdict(set)
    for value in outputs:
        wishes[value].add(None)
    wanted: dict[Hashable, Layout] = {}
    for node in reversed(nodes):
        if node.like:
            continue
        for value in node.makes:
            (wanted[value],) = wishes[value] if len(wishes[value]) == 1 else (None,)
        mine = tuple(wanted[v] for v in node.makes)
        rule = rule_of(node.call)
        for i, value in enumerate(node.reads):
            if rule.wishes(node.call, i):
                wishes[value].add(rule.wants(node.call, i, mine))
    # What is repeated lies as it did the first time, and has no say in that.
    return wanted | {v: wanted[first] for node in nodes for v, first in zip(node.makes, node.like, strict=False)}
