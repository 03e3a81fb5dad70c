"""Helpers for the tests of the IR: text to module and back, and a sketchpad for small modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO

import pytest
from xdsl.context import Context
from xdsl.dialects.builtin import Builtin, IntAttr, IntegerAttr, ModuleOp, StringAttr, TensorType, i8, i64
from xdsl.ir import Operation, SSAValue
from xdsl.parser import Parser
from xdsl.printer import Printer

from dialects.attributes import CostAttr, CostEntry, ScheduleAttr, SlotAttr, ints
from dialects.communication import ReserveOp
from dialects.links import LinkAttr
from dialects.operators import OpaqueOp
from dialects.structure import GraphOp, InputOp, NextOp, OutputOp, StageOp, StateOp, make_platform
from dialects.takt import Takt


class Text:
    """IR text to module and back."""

    def __init__(self) -> None:
        self.context = Context()
        self.context.load_dialect(Builtin)
        self.context.load_dialect(Takt)

    def parse(self, text: str) -> ModuleOp:
        return Parser(self.context, text, "test.mlir").parse_module()

    @staticmethod
    def show(module: ModuleOp, *, generic: bool = False) -> str:
        out = StringIO()
        Printer(out, print_generic_format=generic).print_op(module)
        return out.getvalue() + "\n"


def link(group: str, size: int) -> LinkAttr:
    return LinkAttr(StringAttr(group), IntAttr(size), IntAttr(100), IntAttr(10**9))


@dataclass
class Sketch:
    """A module of opaque operators, put together line by line.

    A table entry is ``time`` or ``(time, params, output, workspace)``; sizes of values in bytes. Without ``links`` the
    platform has groups of ``group``, but in a scheduled graph none, so that values move for free.
    """

    accelerators: int = 8
    group: int = 4
    memory: int = 10**6
    links: Sequence[LinkAttr] | None = None
    transfers: str = "overlapped"
    ops: list[Operation] = field(default_factory=list)

    def stage(self, *granted: Sequence[int]) -> None:
        for members in granted:
            self.ops.append(StageOp.make(sum(isinstance(o, StageOp) for o in self.ops), members))

    def input(self, name: str, size: int = 0) -> SSAValue:
        op = InputOp.create(result_types=[TensorType(i8, [size])])
        op.output.name_hint = name
        self.ops.append(op)
        return op.output

    def state(self, name: str, distance: int, size: int) -> SSAValue:
        op = StateOp.make(name, distance, TensorType(i8, [size]))
        self.ops.append(op)
        return op.output

    def leave(self, state: str, value: SSAValue) -> None:
        self.ops.append(NextOp.make(state, value))

    def reserve(
        self,
        value: SSAValue,
        targets: Sequence[Sequence[int]],
        over: str,
        start: int,
        time: int,
        landing: int | None = None,
    ) -> None:
        self.ops.append(ReserveOp.make(value, targets, over, start, time, landing))

    def op(
        self,
        name: str,
        *operands: SSAValue,
        table: Mapping[int, int | tuple[int, ...]] | None = None,
        results: Sequence[int] = (0,),
        stage: int | None = None,
        shared: int | None = None,
        group: str | None = None,
        sets: Sequence[Sequence[int]] | None = None,
        start: int = 0,
        sharded: Sequence[int] = (),
    ) -> SSAValue:
        """Add an operator; returns its first result."""
        entries = {
            k: CostEntry(e) if isinstance(e, int) else CostEntry(*e) for k, e in (table or {1: 100, 2: 60}).items()
        }
        types = [TensorType(i8, [size]) for size in results]
        op = OpaqueOp.make(operands, {}, types, 0, group=group, cost=CostAttr.from_table(entries))
        if stage is not None:
            op.properties["stage"] = IntegerAttr(stage, i64)
        if shared is not None:
            op.properties["shared"] = IntegerAttr(shared, i64)
        if sets is not None:
            op.properties["slot"] = SlotAttr.make(sets, start)
        if sharded:
            op.properties["sharded"] = ints(sharded)
        for number, result in enumerate(op.results):
            result.name_hint = name if number == 0 else f"{name}.r{number}"
        self.ops.append(op)
        return op.results[0]

    def module(
        self,
        level: str,
        *outputs: SSAValue,
        pattern: int | None = None,
        microbatches: int = 1,
        bound: int = 0,
        platform: bool = True,
    ) -> ModuleOp:
        graph = GraphOp.make("g", [*self.ops, OutputOp.make(outputs)], level)
        if pattern is not None:
            graph.properties["schedule"] = ScheduleAttr(
                IntAttr(pattern),
                IntAttr(microbatches),
                IntAttr(bound),
                StringAttr("area"),
                StringAttr("stages"),
                StringAttr("hand"),
                IntAttr(0),
            )
        links = self.links
        if links is None:
            sizes = {"node": self.group, "cluster": self.accelerators}
            links = [link(name, size) for name, size in sizes.items() if name == "cluster" or size < self.accelerators]
            links = [] if level == "scheduled" else links
        machine = make_platform(
            "p",
            accelerator="small",
            accelerators=self.accelerators,
            memory=self.memory,
            bandwidth=10**9,
            launch=0,
            peak={"bf16": 10**12},
            links=links,
            transfers=self.transfers,
        )
        return ModuleOp([machine, graph] if platform else [graph])


@pytest.fixture(scope="session")
def text() -> Text:
    return Text()


@pytest.fixture(scope="session")
def sketch() -> Callable[..., Sketch]:
    return Sketch
