"""What the backward pass reads of the forward pass, block by block, and what it could compute again instead."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import cast

from xdsl.ir import OpResult, SSAValue

from dialects.attributes import BlockAttr, values
from dialects.gradients import BackwardOp, GradientOp, RecomputeOp
from dialects.operators import OperatorOp, Tensor, tensor_bytes
from dialects.structure import GraphOp
from passes.costs.kinds import rule_of
from passes.costs.layout import Placed, place
from passes.costs.machine import Machine
from passes.costs.reading import Reader
from passes.costs.table import cost_row

LIGHT = 256
"""Floating-point operations for each byte of its result up to which a product of two values is light.

About as many as an accelerator computes while it moves a byte: 153 on an A100, 295 on an H100. The scores of attention
take the size of a head, in 16 bits. Products with weights never are, what has no product always is.
"""

Operators = frozenset[OperatorOp]


@dataclass(frozen=True)
class Plan:
    """What a region no longer keeps: results of ``forgotten`` are computed again from what it ``holds`` beside."""

    forgotten: Operators
    again: tuple[OperatorOp, ...]
    """Those of them that are computed again, in program order: the others nobody needs."""
    saved: int
    """Bytes of a micro-batch that are not kept, less those that are kept for this; of whole values."""


NOTHING = Plan(frozenset(), (), 0)


@dataclass(eq=False)
class Region:
    """The forward operators of one call of a block, or all that stand in no block.

    ``readers``: the gradients that read each forward value; ``ends``: whether gradients begin here, at a loss.
    """

    block: BlockAttr | None
    readers: Mapping[SSAValue, Sequence[GradientOp]]
    light: Collection[OperatorOp]
    ends: bool
    members: list[OperatorOp] = field(default_factory=list[OperatorOp])

    @cached_property
    def own(self) -> Operators:
        """The operators as a set."""
        return frozenset(self.members)

    def makes(self, value: SSAValue) -> bool:
        """Whether an operator of the region computes ``value``."""
        return isinstance(value, OpResult) and value.op in self.own

    def replaceable(self, value: SSAValue) -> bool:
        """Whether gradients could read another copy of ``value``: all that do are of this region and wait for others.

        What gradients of another region read is kept for them. What a loss reads was made a moment ago.
        """
        return all(self._waits(g) for g in self.readers.get(value, ()))

    def _waits(self, gradient: GradientOp) -> bool:
        return gradient.block == self.block and bool(values(gradient.of.arriving))

    def kept(self, value: SSAValue) -> bool:
        """Whether ``value`` is kept for gradients, if the region does not forget it."""
        readers = self.readers.get(value, ())
        if isinstance(value.owner, OperatorOp) and not self.makes(value):
            return any(g.block == self.block for g in readers)
        return bool(readers)

    # --- policies ----------------------------------------------------------------------------

    @cached_property
    def selective(self) -> Plan:
        """Forget what light operators make of values that are kept anyway, or forgotten for the same reason.

        A block in which gradients begin keeps all, as they follow at once.
        """
        if self.block is not None and self.ends:
            return NOTHING
        known: set[OperatorOp] = set()
        for op in self.members:
            if op in self.light and all(self.kept(v) or v.owner in known for v in op.inputs):
                known.add(op)
        return self._plan(known)

    @cached_property
    def full(self) -> Plan:
        """Forget all but what the block reads; :attr:`selective` where that saves more. Nothing outside blocks."""
        if self.block is None or self.ends:
            return NOTHING
        whole = self._plan(self.members)
        return whole if whole.saved > self.selective.saved else self.selective

    def lost(self, forgotten: Collection[OperatorOp]) -> list[OpResult]:
        """The values kept for gradients that are no longer."""
        results = (r for op in self.members if op in forgotten for r in op.outputs if r in self.readers)
        return [r for r in results if self.replaceable(r)]

    def _plan(self, forgotten: Collection[OperatorOp]) -> Plan:
        lost = self.lost(forgotten)
        again: set[OperatorOp] = set()
        held: dict[SSAValue, None] = {}
        todo: list[SSAValue] = [*lost]
        missing = set(todo)
        while todo:
            op = cast(OperatorOp, todo.pop().owner)
            if op in again:
                continue
            again.add(op)
            for value in op.inputs:
                if value in missing or (self.makes(value) and value.owner in forgotten and not self.kept(value)):
                    todo.append(value)
                else:
                    held[value] = None
        saved = sum(map(size_of, lost)) - sum(size_of(v) for v in held if not self.kept(v))
        return Plan(frozenset(forgotten), tuple(op for op in self.members if op in again), saved) if lost else NOTHING


def size_of(value: SSAValue) -> int:
    """Bytes of a whole value."""
    return tensor_bytes(cast(Tensor, value.type))


class Reading:
    """Which forward values the backward pass of a training graph reads.

    ``readers``: the gradients that read each forward value; ``forward``: the operators of the forward pass.
    """

    def __init__(self, graph: GraphOp):
        operators = tuple(graph.operators())
        self.gradients = [op for op in operators if isinstance(op, GradientOp)]
        self.readers: dict[SSAValue, list[GradientOp]] = defaultdict(list)
        arriving: set[SSAValue] = set()
        for op in self.gradients:
            for value, role in zip(op.inputs, op.of.roles(op.WEIGHT), strict=True):
                if role.what in ("operand", "result"):
                    self.readers[value].append(op)
                elif role.what == "gradient":
                    arriving.add(value)
        forward: list[OperatorOp] = []
        for op in reversed(operators):
            if isinstance(op, BackwardOp):
                continue
            if any(r in arriving for r in op.outputs):  # a sum of gradients
                arriving.update(op.inputs)
            else:
                forward.append(op)
        self.forward = forward[::-1]


def kept_values(graph: GraphOp) -> list[SSAValue]:
    """The values of the forward pass, inputs included, that the backward pass reads: they live until then."""
    reading = Reading(graph)
    again = [op for op in graph.operators() if isinstance(op, RecomputeOp)]
    read = {**dict.fromkeys(reading.readers), **dict.fromkeys(v for op in again for v in op.computed)}
    return [v for v in read if not isinstance(v.owner, RecomputeOp)]


def read_regions(graph: GraphOp) -> list[Region]:
    """The regions of a training graph, in program order."""
    reading = Reading(graph)
    ends = {op.block for op in reading.gradients if not values(op.of.arriving)}
    light: set[OperatorOp] = set()
    regions: dict[BlockAttr | None, Region] = {}
    kept = list(graph.outputs.operands)
    placed = dict(zip(graph.operators(), place(Reader().nodes(graph), kept), strict=True))
    for op in reading.forward:
        if _is_light(placed[op]):
            light.add(op)
        region = regions.setdefault(op.block, Region(op.block, reading.readers, light, op.block in ends))
        region.members.append(op)
    return list(regions.values())


def work_of(graph: GraphOp, machine: Machine, operators: Collection[OperatorOp]) -> dict[OperatorOp, int]:
    """ns of some operators on one accelerator, by their written tables where they have such with one.

    Raises :class:`~passes.costs.machine.MissingRateError`.
    """
    found: dict[OperatorOp, int] = {}
    placed = place(Reader().nodes(graph), list(graph.outputs.operands))
    for op, here in zip(graph.operators(), placed, strict=True):
        if op not in operators:
            continue
        if op.cost is not None:
            k, entry = min(op.cost.table().items())
            found[op] = k * entry.time
        else:
            row = cost_row(machine, here, 1)
            assert row is not None, "one accelerator is always possible"
            found[op] = row.time
    return found


def _is_light(placed: Placed) -> bool:
    call = placed.call
    flops = rule_of(call).flops(call, placed.plan, 1)
    if call.kind == "matmul":
        return flops <= LIGHT * sum(t.size for t in call.results)
    return not flops and call.kind != "op"
