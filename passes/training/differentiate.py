"""The backward operators of a graph, in the order of reverse-mode differentiation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from xdsl.dialects.builtin import AnyFloatConstr, StringAttr, i8
from xdsl.ir import Operation, OpResult, SSAValue

from dialects.attributes import CostAttr, CostEntry, values
from dialects.diagnostics import TaktError, at
from dialects.gradients import ForwardAttr, GradientOp, InputGradientOp, WeightGradientOp
from dialects.nn.base import LARGEST
from dialects.nn.needs import INDICES, PASSED_ON
from dialects.operators import AddOp, OpaqueOp, OperatorOp, Tensor, is_group_name, operator_names, tensor_bytes
from dialects.structure import GraphOp, InputOp


class Differentiable:
    """Which values of a graph need a gradient: numbers that a loss can depend on smoothly, to which parameters lead.

    What an opaque operator makes counts as numbers, whatever its bytes are.
    """

    def __init__(self, operators: Sequence[OperatorOp]):
        self._numbers: set[SSAValue] = set()
        self._needed: set[SSAValue] = set()
        for op in operators:
            opaque = isinstance(op, OpaqueOp) or any(v in self._numbers for v in op.inputs)
            numbers = [r for r in op.outputs if is_float(r) or (opaque and cast(Tensor, r.type).element_type == i8)]
            self._numbers.update(numbers)
            if op.params.value.data or self.operands(op):
                self._needed.update(numbers)

    def needs(self, value: SSAValue) -> bool:
        """Whether ``value`` holds such numbers and depends on parameters."""
        return value in self._needed

    def operands(self, op: OperatorOp) -> list[int]:
        """Numbers of the operands of ``op`` whose gradients it makes."""
        return [i for i, v in enumerate(op.inputs) if self.needs(v) and INDICES.get(op.kind()) != i]


def is_float(value: SSAValue) -> bool:
    """Whether ``value`` is a tensor of floating-point numbers."""
    return AnyFloatConstr.verifies(cast(Tensor, value.type).element_type)


def is_loss(value: SSAValue) -> bool:
    """Whether ``value`` is one floating-point number, which training makes small."""
    return is_float(value) and cast(Tensor, value.type).get_shape() == ()


class Backward:
    """Builds the backward operators of ``graph``; ``ratio``: their time where the forward one's is written."""

    def __init__(self, graph: GraphOp, ratio: float):
        self.graph, self.ratio = graph, ratio
        self.operators = tuple(graph.operators())
        self.names = operator_names(graph)
        self.able = Differentiable(self.operators)
        self.arrived: dict[SSAValue, list[SSAValue]] = {}
        self.inputs: list[InputOp] = []
        self.made: list[OperatorOp] = []
        self._taken = {value.name_hint for op in graph.body.block.ops for value in op.results}
        self._groups = {op.group.data for op in self.operators if op.group is not None}
        self._families: dict[OperatorOp, list[OperatorOp]] = {}

    def build(self) -> None:
        """Fill ``inputs`` and ``made``, and put the operators of the forward pass into groups with their gradients."""
        starts = [v for v in dict.fromkeys(self.graph.outputs.operands) if self.able.needs(v)]
        self.losses = {v for v in starts if is_loss(v)}
        for value in starts if not self.losses else ():
            source = InputOp.create(result_types=[value.type])
            source.location = value.owner.location if isinstance(value.owner, Operation) else self.graph.location
            source.output.name_hint = self.unique(f"{value.name_hint or 'output'}.gradient")
            self.inputs.append(source)
            self.arrived[value] = [source.output]
        for op in reversed(self.operators):
            if any(r in self.arrived or r in self.losses for r in op.outputs):
                self._of(op)

    def untie(self) -> dict[StringAttr, list[StringAttr]]:
        """Give every operator of a written group its own copy of the parameters, in a group with its gradients.

        Returns new group → the groups of all its copies, in program order. A group stays as it is where one of its
        operators with parameters has no gradient of them.
        """
        written: dict[StringAttr, list[OperatorOp]] = {}
        for op in self.operators:
            if op.group is not None and op.params.value.data:
                written.setdefault(op.group, []).append(op)
        copies: dict[StringAttr, list[StringAttr]] = {}
        for members in written.values():
            if len(members) < 2 or not all(self._trained(op) for op in members):
                continue
            made: list[StringAttr] = []
            for op in members:
                tied, op.group = op.group, self._new_group(op)
                for gradient in self._families[op]:
                    if gradient.group == tied:
                        gradient.group = op.group
                made.append(op.group)
            copies |= dict.fromkeys(made, made)
        return copies

    def _trained(self, op: OperatorOp) -> bool:
        return any(isinstance(gradient, WeightGradientOp) for gradient in self._families.get(op, ()))

    def _of(self, op: OperatorOp) -> None:
        """The gradients of one operator, those of its results being complete."""
        before = len(self.made)
        arriving = {r.index: self._sum(r, op) for r in op.outputs if r in self.arrived}
        needed = self.able.operands(op)
        if op.kind() in PASSED_ON and op.cost is None:
            for i in needed:
                if arriving:
                    self._arrive(op.inputs[i], arriving[0])
                else:  # a sum of losses
                    self.losses.add(op.inputs[i])
            needed = []
        weight = op.params.value.data > 0
        written = op.cost
        handed: Sequence[SSAValue] = ()
        if needed or (weight and op.kind() == "experts"):
            gradient = self._gradient(InputGradientOp, op, arriving, needed, (), written)
            handed = gradient.outputs[len(needed) :]
            for i, result in zip(needed, gradient.outputs, strict=False):
                self._arrive(op.inputs[i], result)
        if weight:
            self._gradient(WeightGradientOp, op, arriving, (), handed, written)
        if len(self.made) > before:
            self._group(op, self.made[before:])

    def _arrive(self, value: SSAValue, gradient: SSAValue) -> None:
        self.arrived.setdefault(value, []).append(gradient)

    def _sum(self, value: OpResult, op: OperatorOp) -> SSAValue:
        """The gradient of a value: the sum over all that read it."""
        first, *others = self.arrived[value]
        for other in others:
            add = AddOp.make([first, other], {}, [cast(Tensor, value.type)], 0, block=op.block, cost=None)
            first = self._append(add, op, f"{self.names[op]}.sum")
        self.arrived[value] = [first]
        return first

    def _gradient(
        self,
        cls: type[GradientOp],
        op: OperatorOp,
        arriving: dict[int, SSAValue],
        needed: Sequence[int],
        handed: Sequence[SSAValue],
        written: CostAttr | None,
    ) -> GradientOp:
        of = ForwardAttr.of(op, sorted(arriving), needed)
        operands: list[SSAValue] = []
        for role in of.roles(cls.WEIGHT):
            known = {"gradient": arriving, "operand": op.inputs, "result": op.outputs, "handed": handed}
            operands.append(known[role.what][role.number])
        types = [cast(Tensor, t) for t in cls.types_of(of)]
        gradient = cls.create(
            operands=operands,
            result_types=types,
            properties={"params": op.params, "of": of} | ({} if op.block is None else {"block": op.block}),
        )
        if written is not None:
            gradient.cost = _of_results(self._written(op, written, cls.WEIGHT), sum(tensor_bytes(t) for t in types))
        self._append(gradient, op, f"{self.names[op]}.{'W' if cls.WEIGHT else 'I'}")
        return gradient

    def _written(self, op: OperatorOp, cost: CostAttr, weight: bool) -> CostAttr:
        """The table of a gradient of an operator with a written one: half the time where there are parameters."""
        table = cost.table().items()
        if op.backward_times is None:
            ratio = self.ratio if op.backward is None else op.backward.value.data
            share = ratio / 2 if op.params.value.data else ratio
            times = [round(c.time * share) for _, c in table]
            if max(times) > LARGEST:
                message = f"the gradients of '{self.names[op]}' take {ratio} times its written time, 2^63 ns or more"
                raise TaktError(at(op, message, "write a smaller 'backward', or a shorter time"))
        else:
            times = _part(op, values(op.backward_times), weight)
        entries = zip(table, times, strict=True)
        return CostAttr.from_table({k: CostEntry(time, c.params, 0, c.workspace) for (k, c), time in entries})

    def _append(self, op: OperatorOp, forward: OperatorOp, name: str) -> SSAValue:
        op.location = forward.location
        for result in op.outputs:
            result.name_hint = self.unique(name)
        self.made.append(op)
        return op.outputs[0]

    def unique(self, name: str) -> str:
        """``name``, with a number where it is taken."""
        unique, count = name, 1
        while unique in self._taken:
            count += 1
            unique = f"{name}.v{count}"
        self._taken.add(unique)
        return unique

    def _group(self, op: OperatorOp, gradients: Sequence[OperatorOp]) -> None:
        """One group of an operator, its gradients, and the sums of those that arrive."""
        self._families[op] = list(gradients)
        if op.group is None:
            op.group = self._new_group(op)
        # A sum is priced for the allotments of the machine, among which need not be one of a written table.
        alone = op.cost is not None and 1 not in op.cost.table()
        for gradient in gradients:
            if not (alone and isinstance(gradient, AddOp)):
                gradient.group = op.group

    def _new_group(self, op: OperatorOp) -> StringAttr:
        """A group that is named after ``op``, and that nothing is in."""
        name = self.names[op] if is_group_name(self.names[op]) else f"operator {self.operators.index(op)}"
        while name in self._groups:
            name += "'"
        self._groups.add(name)
        return StringAttr(name)


def _part(op: OperatorOp, whole: Sequence[int], weight: bool) -> list[int]:
    """What of the written times of both gradients one of them takes; all is of the inputs without parameters."""
    if not op.params.value.data:
        return list(whole)
    weights = [t // 2 for t in whole] if op.weights_times is None else values(op.weights_times)
    return list(weights) if weight else [t - w for t, w in zip(whole, weights, strict=True)]


def _of_results(cost: CostAttr, size: int) -> CostAttr:
    """``cost`` with results of ``size`` bytes, shared evenly."""
    table = cost.table().items()
    return CostAttr.from_table({k: CostEntry(c.time, c.params, -(-size // k), c.workspace) for k, c in table})
