"""From the IR to the plain data of the cost model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from xdsl.ir import Attribute, OpResult, SSAValue

from dialects.attributes import values
from dialects.gradients import BackwardOp, ForwardAttr, GradientOp, RecomputeOp
from dialects.nn.base import COMMON
from dialects.operators import OperatorOp, element_bytes
from dialects.operators import Tensor as TensorType
from dialects.structure import GraphOp, PlatformOp
from passes.costs.call import Backward, Call, Tensor
from passes.costs.layout import Node
from passes.costs.machine import Link, Machine


def read_machine(platform: PlatformOp) -> Machine:
    """The platform's numbers."""
    return Machine(
        accelerators=platform.count,
        bandwidth=platform.bandwidth.value.data,
        launch=platform.launch.value.data,
        peak=platform.peak_rates(),
        compute_efficiency=platform.compute_efficiency.value.data,
        memory_efficiency=platform.memory_efficiency.value.data,
        saturation=platform.saturation.value.data,
        links=tuple(Link(*link.plain()) for link in platform.links.data),
        measured={table.key: table.points() for table in platform.collectives()},
    )


def _read(op: OperatorOp) -> Sequence[SSAValue]:
    """The operands that an operator reads: what a recomputed one only awaits costs nothing."""
    return op.computed if isinstance(op, RecomputeOp) else op.inputs


class Reader:
    """Reads operators; equal ones become one :class:`Call`. ``sequence``: with sequence parallelism."""

    def __init__(self, sequence: bool = False) -> None:
        self._sequence = sequence
        self._calls: dict[tuple[object, ...], Call] = {}
        self._tensors: dict[Attribute, Tensor] = {}

    def nodes(self, graph: GraphOp) -> list[Node]:
        """The graph's operators in program order; values are named by themselves."""
        operators = tuple(graph.operators())
        groups = {op.group for op in operators if isinstance(op, RecomputeOp)}
        first: dict[tuple[object, ForwardAttr], tuple[OpResult, ...]] = {}
        for op in operators:
            if op.group in groups and not isinstance(op, BackwardOp):
                first.setdefault((op.group, ForwardAttr.of(op, (), ())), tuple(op.results))
        return [
            Node(
                self.call(op),
                tuple(_read(op)),
                tuple(op.results),
                first.get((op.group, op.of), ()) if isinstance(op, RecomputeOp) else (),
            )
            for op in operators
        ]

    def call(self, op: OperatorOp) -> Call:
        """The plain data of one operator."""
        key = (
            type(op),
            tuple(v.type for v in op.operands),
            tuple(r.type for r in op.results),
            op.params.value.data,
            tuple((name, value) for name, value in op.properties.items() if name not in COMMON or name == "of"),
        )
        found = self._calls.get(key)
        if found is None:
            operands, results = (tuple(self._tensor(v.type) for v in vs) for vs in (_read(op), op.results))
            kind, arguments = op.kind(), op.arguments()
            if isinstance(op, RecomputeOp):
                kind, arguments = op.of.kind.data, op.of.values_of_arguments()
            backward = self._backward(op)
            found = Call(kind, operands, results, arguments, op.params.value.data, backward, self._sequence)
            self._calls[key] = found
        return found

    def _backward(self, op: OperatorOp) -> Backward | None:
        """What a gradient is of; None for a forward operator."""
        if not isinstance(op, GradientOp):
            return None
        of = op.of
        operands, results = (tuple(self._tensor(t) for t in types) for types in (of.operands, of.results))
        params = op.params.value.data
        forward = Call(of.kind.data, operands, results, of.values_of_arguments(), params, sequence=self._sequence)
        return Backward(forward, of.roles(op.WEIGHT), values(of.made))

    def _tensor(self, type_: Attribute) -> Tensor:
        found = self._tensors.get(type_)
        if found is None:
            tensor = cast(TensorType, type_)
            element = tensor.element_type
            found = self._tensors[type_] = Tensor(tensor.get_shape(), str(element), element_bytes(element))
        return found
