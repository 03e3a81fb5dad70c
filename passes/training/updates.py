"""The steps of the optimizer: one for every group of parameters that is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from xdsl.dialects.builtin import IntegerAttr, StringAttr, i64
from xdsl.ir import Attribute

from dialects.gradients import ACCUMULATED, GradientOp, OptimizerStepOp, WeightGradientOp
from dialects.operators import OperatorOp


def updates(operators: Sequence[OperatorOp], unique: Callable[[str], str]) -> list[OptimizerStepOp]:
    """One step of the optimizer for each group with gradients of parameters, in the order of its first operator.

    It reads all gradients of its group and is named after the first operator; ``unique`` makes names of values.
    """
    groups: dict[StringAttr, list[OperatorOp]] = {}
    for op in operators:
        if op.group is not None and op.params.value.data:
            groups.setdefault(op.group, []).append(op)
    made: list[OptimizerStepOp] = []
    for group, members in groups.items():
        gradients = [op.outputs[0] for op in members if isinstance(op, WeightGradientOp)]
        if not gradients:
            continue
        first = next(op for op in members if not isinstance(op, GradientOp))
        params = max(op.params.value.data for op in members)
        properties: dict[str, Attribute] = {"params": IntegerAttr(params, i64), "group": group}
        step = OptimizerStepOp.create(operands=gradients, result_types=[ACCUMULATED], properties=properties)
        step.location = first.location
        step.outputs[0].name_hint = unique(f"{first.outputs[0].name_hint or group.data}.step")
        made.append(step)
    return made
