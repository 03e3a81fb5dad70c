"""Recomputed copies of forward operators, in front of the gradients that read them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from xdsl.dialects.builtin import StringAttr
from xdsl.ir import SSAValue

from dialects.gradients import ForwardAttr, GradientOp, RecomputeOp
from dialects.operators import OperatorOp, is_group_name, operator_names
from dialects.structure import GraphOp
from passes.training.regions import Plan, Region


class Recomputed:
    """Puts into ``graph`` the copies that gradients read instead of what their regions forget.

    There is one copy of an operator, right before the first gradient that needs it. It reads what is kept, and other
    copies. Where it reads no copy it awaits the gradient that arrives at the gradient operator which it is for: so it
    runs in the backward pass of its micro-batch, and not as soon as what it reads is there.
    """

    def __init__(self, graph: GraphOp):
        self._operators = tuple(graph.operators())
        self._numbers = {op: number for number, op in enumerate(self._operators)}
        self._names = operator_names(graph)
        self._taken = {value.name_hint for op in graph.body.block.ops for value in op.results}
        self._groups = {op.group.data for op in self._operators if op.group is not None}
        self._copies: dict[OperatorOp, RecomputeOp] = {}

    def build(self, plans: Iterable[tuple[Region, Plan]]) -> None:
        """Insert the copies of every region, and have gradients read them."""
        lost: set[SSAValue] = set()
        self._again: set[OperatorOp] = set()
        kept: set[SSAValue] = set()
        for region, plan in plans:
            mine = set(region.lost(plan.forgotten))
            lost |= mine
            self._again.update(plan.again)
            kept.update(r for op in plan.again for r in op.outputs if r in region.readers and r not in mine)
        self._kept = kept
        for gradient in self._operators:
            if isinstance(gradient, GradientOp):
                for i, value in enumerate(gradient.inputs):
                    if value in lost:
                        gradient.operands[i] = self._copy(value, gradient)

    def _copied(self, op: OperatorOp) -> list[SSAValue]:
        """The operands of a copy of ``op`` that are results of copies."""
        return [v for v in op.inputs if v.owner in self._again and v not in self._kept and _near(v, op)]

    def _copy(self, value: SSAValue, gradient: GradientOp) -> SSAValue:
        """The copy of ``value``; made in front of ``gradient`` with all that it needs, as far as they are new."""
        needed: set[OperatorOp] = set()
        todo = [cast(OperatorOp, value.owner)]
        while todo:
            op = todo.pop()
            if op not in needed and op not in self._copies:
                needed.add(op)
                todo += [cast(OperatorOp, v.owner) for v in self._copied(op)]
        for op in sorted(needed, key=self._numbers.__getitem__):
            self._make(op, gradient)
        return self._result(value)

    def _result(self, value: SSAValue) -> SSAValue:
        owner = cast(OperatorOp, value.owner)
        return self._copies[owner].outputs[owner.outputs.index(value)]

    def _make(self, op: OperatorOp, gradient: GradientOp) -> None:
        copied = self._copied(op)
        operands = [self._result(v) if v in copied else v for v in op.inputs]
        copy = RecomputeOp.create(
            operands=[*operands, *(() if copied else gradient.inputs[:1])],
            result_types=op.result_types,
            properties={"params": op.params, "of": ForwardAttr.of(op, (), ()), "group": self._group(op)}
            | {name: op.properties[name] for name in ("block", "cost") if name in op.properties},
        )
        copy.location = op.location
        name = self._name(f"{self._names[op]}.R")
        for result in copy.outputs:
            result.name_hint = name
        block = gradient.parent
        assert block is not None
        block.insert_op_before(copy, gradient)
        self._copies[op] = copy

    def _name(self, name: str) -> str:
        """``name``, with a number where it is taken."""
        unique, count = name, 1
        while unique in self._taken:
            count += 1
            unique = f"{name}.v{count}"
        self._taken.add(unique)
        return unique

    def _group(self, op: OperatorOp) -> StringAttr:
        """The group of an operator and its copy, a new one where it has none."""
        if op.group is None:
            name = self._names[op] if is_group_name(self._names[op]) else f"operator {self._numbers[op]}"
            while name in self._groups:
                name += "'"
            self._groups.add(name)
            op.group = StringAttr(name)
        return op.group


def _near(value: SSAValue, op: OperatorOp) -> bool:
    """Whether ``value`` is made in the region of ``op``."""
    return cast(OperatorOp, value.owner).block == op.block
