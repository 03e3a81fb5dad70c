"""From a module with programs to a job: everything the processes need, without the IR."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
from xdsl.dialects.builtin import AnyFloatConstr, ModuleOp
from xdsl.ir import OpResult, SSAValue

from compiler.runtime.job import Forward, Job, Operator, Read, Rows, Settings, Transfer, Turns, Update, Value
from compiler.view import ScheduleView, view_of
from dialects.attributes import members, values
from dialects.diagnostics import Diagnostic, TaktError
from dialects.gradients import BackwardOp, ForwardAttr
from dialects.operators import OperatorOp, Tensor, operator_names, tensor_bytes
from dialects.programs import ProgramOp
from dialects.structure import GraphOp, InputOp, find_graph
from passes.lower_to_programs import turns


def programs_of(module: ModuleOp) -> dict[int, ProgramOp]:
    """Accelerator → its program; TaktError unless they are for a number of micro-batches."""
    found = {op.accelerator.value.data: op for op in module.body.ops if isinstance(op, ProgramOp)}
    if not found:
        raise TaktError(Diagnostic("the module holds no programs", hint="run lower-to-programs first"))
    if any(op.trips is None for op in found.values()):
        raise TaktError(
            Diagnostic("the programs have no end", hint="give a number of micro-batches: --microbatches 32")
        )
    return found


def unrolled(op: ProgramOp) -> Rows:
    """All instructions of a program, with micro-batches counted from 0."""
    assert op.trips is not None
    trips, step = op.trips.value.data, op.step.value.data
    last = op.base.value.data + trips * step - 1
    kernel = []
    for trip in range(trips):
        rows = op.rows("kernel").copy()
        rows[:, 4] += trip * step
        kernel.append(rows)
    epilogue = op.rows("epilogue").copy()
    epilogue[:, 4] = last - epilogue[:, 4]
    return np.concatenate([op.rows("prologue"), *kernel, epilogue]).astype(np.int64)


def job_of(module: ModuleOp, settings: Settings) -> tuple[Job, dict[int, Rows]]:
    """The job of a module with programs for a number of micro-batches, and the program of each accelerator."""
    graph, programs, view = find_graph(module), programs_of(module), view_of(module)
    assert graph is not None
    first = next(iter(programs.values()))
    assert first.trips is not None
    reading = _Reading(graph, view, not settings.emulate and graph.training is not None and _bends(graph))
    operators = reading.operators()
    job = Job(
        name=view.graph,
        platform=view.platform.name,
        transfers=view.platform.transfers,  # pyright: ignore[reportArgumentType]
        pattern=view.pattern,
        per_pattern=view.microbatches,
        microbatches=first.base.value.data + first.step.value.data * first.trips.value.data,
        accelerators=tuple(sorted(programs)),
        operators=operators,
        inputs=tuple(
            reading.value(op.output, op.output.name_hint or f"input.{n}") for n, op in enumerate(graph.inputs())
        ),
        outputs=tuple(reading.output(value) for value in graph.outputs.operands),
        moves=reading.moves(),
        groups={p: tuple(members(group) for group in op.groups.data) for p, op in programs.items()},
        settings=settings,
        optimizer=None if graph.training is None else graph.training.optimizer.data,
        precision=None if graph.training is None else graph.training.precision.data,
        updates=reading.updates(),
        step=view.step,
    )
    return job, {p: unrolled(op) for p, op in sorted(programs.items())}


def _bends(graph: GraphOp) -> bool:
    """Whether rounding can change gradients by more than rounding: where an operand is that near to a bend, as of relu.

    Real training runs of such models compute in 64 bits, in which none is.
    """
    return any(op.kind() in ("relu", "max_pool") or op.arguments().get("kind") == "max" for op in graph.operators())


def _tied(view: ScheduleView) -> dict[str, str]:
    """Group → the first of the groups of which it is a copy, as steps of the optimizer read the gradients of all."""
    found: dict[str, str] = {}
    for update in view.updates:
        groups = {view.tasks[v].group for v in update.gradients} | {update.group}
        known = [g for u in view.updates if (g := u.group) in groups]
        found |= {g: found.get(known[0], known[0]) for g in known[1:]}
    return found


class _Reading:
    """Numbers the destinations of every value as the programs do: by their first readers."""

    def __init__(self, graph: GraphOp, view: ScheduleView, wide: bool):
        self.graph, self.view, self.wide = graph, view, wide
        self.carried = graph.carried()
        self.names = operator_names(graph)
        self.number = {op: v for v, op in enumerate(self.names)}
        self.inputs: Mapping[SSAValue, int] = {op.output: -1 - n for n, op in enumerate(graph.inputs())}
        self.destinations: dict[tuple[int, int], list[Turns]] = {}
        self.tied = _tied(view)

    def value(self, value: SSAValue, name: str, sharded: bool = False, destinations: tuple[Turns, ...] = ()) -> Value:
        return self.tensor(cast(Tensor, value.type), name, sharded, destinations)

    def tensor(
        self, type_: Tensor, name: str = "", sharded: bool = False, destinations: tuple[Turns, ...] = ()
    ) -> Value:
        element = "f64" if self.wide and AnyFloatConstr.verifies(type_.element_type) else str(type_.element_type)
        return Value(name, type_.get_shape(), element, tensor_bytes(type_), sharded, destinations)

    def forward(self, of: ForwardAttr) -> Forward:
        arguments = {key: value for key, value in of.values_of_arguments().items() if value is not None}
        operands, results = (tuple(map(self.tensor, types)) for types in (of.operands, of.results))
        return Forward(of.kind.data, arguments, operands, results, tuple(values(of.arriving)), tuple(values(of.made)))

    def operators(self) -> tuple[Operator, ...]:
        reads = [tuple(self.read(v, value) for value in op.inputs) for v, op in enumerate(self.names)]
        return tuple(
            self.operator(op, name, found) for (op, name), found in zip(self.names.items(), reads, strict=True)
        )

    def read(self, reader: int, value: SSAValue) -> Read:
        origin, distance = self.carried.get(value, (value, 0))
        if isinstance(origin.owner, InputOp):
            return Read(self.inputs[origin], 0, 0, 0)
        assert isinstance(origin, OpResult)
        producer = self.number[cast(OperatorOp, origin.op)]
        there, home = self.view.tasks[reader].copies, self.view.tasks[producer].copies
        # As seen from the value: its micro-batch i is read where the reader runs micro-batch i + distance.
        seen = turns(there, distance)
        if seen == turns(home):
            return Read(producer, origin.index, 0, distance)
        known = self.destinations.setdefault((producer, origin.index), [])
        if seen not in known:
            known.append(seen)
        return Read(producer, origin.index, 1 + known.index(seen), distance)

    def operator(self, op: OperatorOp, name: str, reads: tuple[Read, ...]) -> Operator:
        v = self.number[op]
        task = self.view.tasks[v]
        results = tuple(
            self.value(r, r.name_hint or name, op.is_sharded(r.index), tuple(self.destinations.get((v, r.index), ())))
            for r in op.outputs
        )
        arguments = {key: value for key, value in op.arguments().items() if value is not None}
        return Operator(
            name,
            task.kind,
            arguments,
            task.start,
            task.time,
            task.copies,
            reads,
            results,
            task.group,
            task.params,
            None if task.group is None else self.tied.get(task.group),
            self.forward(op.of) if isinstance(op, BackwardOp) else None,
            task.later,
        )

    def updates(self) -> tuple[Update, ...]:
        return tuple(
            Update(u.name, u.group, u.place, self.view.taking_part(u), u.time, u.start or 0, u.gradients)
            for u in self.view.updates
        )

    def moves(self) -> tuple[Transfer, ...]:
        found: list[Transfer] = []
        lanes = {x.name: x.capacity if x.topology == "switch" else 0 for x in self.view.platform.links}
        for move in self.view.moves:
            known = self.destinations.get((move.producer, move.result), [])
            target = turns(move.targets)
            if target in known:
                number = 1 + known.index(target)
                found.append(Transfer(move.producer, move.result, number, move.time, move.link, lanes[move.link]))
        return tuple(found)

    def output(self, value: SSAValue) -> tuple[int, int]:
        if isinstance(value.owner, InputOp):
            return self.inputs[value], 0
        assert isinstance(value, OpResult)
        return self.number[cast(OperatorOp, value.op)], value.index
