"""What of a training graph a real run cannot compute. Nothing here needs torch."""

from __future__ import annotations

from typing import cast

from xdsl.dialects.builtin import AnyFloatConstr, ModuleOp
from xdsl.ir import Operation, OpResult, SSAValue

from dialects.diagnostics import TaktError, at
from dialects.gradients import GradientOp
from dialects.nn.needs import PASSED_ON
from dialects.operators import OperatorOp, Tensor, operator_names
from dialects.structure import GraphOp, find_graph


def check_trainable(module: ModuleOp) -> None:
    """Raise TaktError for the first operator of a training graph whose gradients a real run cannot compute.

    That is a gradient in no group, as it lies with no parameters; an output that is made of gradients; and a loss that
    counts more than once, as a sum of losses beside its summands does, of which the graph says nothing.
    """
    graph = find_graph(module)
    assert graph is not None
    if graph.training is None:
        return
    names = operator_names(graph)
    for op in graph.operators():
        if isinstance(op, GradientOp) and op.group is None:
            message = f"'{names[op]}' is in no group, and a real run cannot tell of which parameters it is"
            raise TaktError(at(op, message, "put it into a group with the operator that it is of"))
    _check_outputs(graph)
    _check_losses(graph)


def _check_outputs(graph: GraphOp) -> None:
    backward = _backward(graph)
    for value in graph.outputs.operands:
        if isinstance(value, OpResult) and value.op in backward:
            message = f"output '{value.name_hint}' is made of gradients, and a real run compares results of the model"
            raise TaktError(at(value.op, message, "leave it out of the outputs"))


def _check_losses(graph: GraphOp) -> None:
    backward, names = _backward(graph), operator_names(graph)
    forward = [op for op in names if op not in backward]
    counts: dict[SSAValue, int] = {value: 1 for value in graph.outputs.operands if _is_loss(value)}
    leading = set(counts)
    """Values that losses are made of."""
    for op in reversed(forward):
        if not leading.isdisjoint(op.outputs):
            leading.update(op.inputs)
        if op.kind() in PASSED_ON and (count := counts.get(op.outputs[0], 0)):
            for value in op.inputs:
                counts[value] = counts.get(value, 0) + count
    for op in forward:
        more = [r for r in op.outputs if counts.get(r, 0) > 1 or (r in counts and _read_on(r, backward, leading))]
        if more:
            message = f"loss '{names[op]}' counts more than once, as other losses are made of it"
            hint = "leave it, or what is made of it, out of the outputs"
            raise TaktError(at(op, message, hint))


def _read_on(loss: SSAValue, backward: set[Operation], leading: set[SSAValue]) -> bool:
    """Whether an operator that does more than add makes something of a loss that other losses are made of."""
    readers = (use.operation for use in loss.uses if use.operation not in backward)
    return any(
        isinstance(op, OperatorOp) and op.kind() not in PASSED_ON and not leading.isdisjoint(op.outputs)
        for op in readers
    )


def _backward(graph: GraphOp) -> set[Operation]:
    """The operators of the backward pass: gradients, and what is made of them."""
    found: set[Operation] = set()
    for op in graph.operators():
        made = any(isinstance(x, OpResult) and x.op in found for x in op.inputs)
        if made or isinstance(op, GradientOp):
            found.add(op)
    return found


def _is_loss(value: SSAValue) -> bool:
    tensor = cast(Tensor, value.type)
    return AnyFloatConstr.verifies(tensor.element_type) and tensor.get_shape() == ()
