"""The steps of the optimizer: one for every group of parameters that is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from xdsl.dialects.builtin import IntegerAttr, StringAttr, i64
from xdsl.ir import Attribute, SSAValue

from dialects.gradients import ACCUMULATED, GradientOp, OptimizerStepOp, WeightGradientOp
from dialects.operators import OperatorOp


def updates(
    operators: Sequence[OperatorOp], tied: Mapping[StringAttr, Sequence[StringAttr]], unique: Callable[[str], str]
) -> list[OptimizerStepOp]:
    """One step of the optimizer for each group with gradients of parameters, in the order of its first operator.

    It reads all gradients of its group, then those of the groups that ``tied`` says hold copies of its parameters. It
    is named after the first operator; ``unique`` makes names of values.
    """
    groups: dict[StringAttr, list[OperatorOp]] = {}
    gradients: dict[StringAttr, list[SSAValue]] = {}
    for op in operators:
        if op.group is not None and op.params.value.data:
            groups.setdefault(op.group, []).append(op)
            if isinstance(op, WeightGradientOp):
                gradients.setdefault(op.group, []).append(op.outputs[0])
    made: list[OptimizerStepOp] = []
    for group, members in groups.items():
        if group not in gradients:
            continue
        first = next(op for op in members if not isinstance(op, GradientOp))
        params = max(op.params.value.data for op in members)
        properties: dict[str, Attribute] = {"params": IntegerAttr(params, i64), "group": group}
        read = [v for g in (group, *(g for g in tied.get(group, ()) if g != group)) for v in gradients[g]]
        step = OptimizerStepOp.create(operands=read, result_types=[ACCUMULATED], properties=properties)
        step.location = first.location
        step.outputs[0].name_hint = unique(f"{first.outputs[0].name_hint or group.data}.step")
        made.append(step)
    return made
