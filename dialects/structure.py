"""Operations around the operators: the graph, its inputs, outputs and states, the platform, the stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from math import prod
from typing import TypeVar, cast

from xdsl.dialects.builtin import (
    ArrayAttr,
    DictionaryAttr,
    FloatAttr,
    IntegerAttr,
    ModuleOp,
    StringAttr,
    SymbolNameConstraint,
    TensorType,
    f64,
    i64,
)
from xdsl.ir import Attribute, Block, Operation, OpResult, Region, SSAValue
from xdsl.irdl import (
    IRDLOperation,
    ParsePropInAttrDict,
    irdl_op_definition,
    operand_def,
    opt_prop_def,
    prop_def,
    region_def,
    result_def,
    traits_def,
    var_operand_def,
)
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.traits import IsolatedFromAbove, IsTerminator, NoTerminator, SymbolOpInterface
from xdsl.utils.exceptions import VerifyException

from dialects.attributes import (
    MOST_ACCELERATORS,
    Ints,
    ScheduleAttr,
    check_set,
    ints,
    members,
    parse_integer,
    parse_set,
    print_set,
    values,
)
from dialects.communication import ReserveOp, TransferOp
from dialects.gradients import OptimizerStepOp, TrainingAttr
from dialects.links import LinkAttr
from dialects.measured import MeasuredAttr
from dialects.operators import OperatorOp, ShapeError, check_tensor

LEVELS = ("model", "moldable", "staged", "scheduled", "communicating", "programs")
"""The levels of the IR that exist today, in order."""


def reaches(level: str, wanted: str) -> bool:
    """Whether ``level`` is ``wanted`` or a later one."""
    return LEVELS.index(level) >= LEVELS.index(wanted)


TRANSFERS = ("overlapped", "blocking", "buffered")
"""What a transfer keeps accelerators from doing: nothing; both ends stand still; each end while it copies."""

MOST_DISTANCE = 4096
"""Greatest distance of a state: the simulator runs that many micro-batches more."""

_Op = TypeVar("_Op", bound=IRDLOperation)


def _errors_at_position(cls: type[_Op]) -> type[_Op]:
    """Make a value that does not verify a parse error at the operation; xDSL's generated parser gives no place."""
    generated = cls.parse.__func__  # pyright: ignore[reportFunctionMemberAccess]

    def parse(cls: type[_Op], parser: Parser) -> _Op:
        position = parser.pos
        try:
            return cast(_Op, generated(cls, parser))
        except VerifyException as error:
            parser.raise_error(str(error), position, parser.pos)

    cls.parse = classmethod(parse)  # pyright: ignore[reportAttributeAccessIssue]
    return cls


@_errors_at_position
@irdl_op_definition
class PlatformOp(IRDLOperation):
    """The machine: identical accelerators, their memory and rates, and the links between them.

    ```
    takt.platform @dgx {accelerators = 64 : i64, memory = 85899345920 : i64, ...}
    ```
    """

    name = "takt.platform"

    sym_name = prop_def(SymbolNameConstraint(), prop_name="platform_name")
    """Stored under another name: to MLIR a ``sym_name`` is a symbol, and a model may have the name of a machine."""
    accelerator = prop_def(StringAttr)
    """Name of the accelerator model."""
    accelerators = prop_def(IntegerAttr.constr(i64))
    memory = prop_def(IntegerAttr.constr(i64))
    """Bytes of memory on each accelerator."""
    bandwidth = prop_def(IntegerAttr.constr(i64))
    """Memory bandwidth of one accelerator, bytes per second."""
    launch = prop_def(IntegerAttr.constr(i64))
    """Fixed time of every operator, ns."""
    peak = prop_def(DictionaryAttr)
    """Element type → peak rate, floating-point operations per second (i64)."""
    compute_efficiency = prop_def(FloatAttr)
    """Fraction of the peak rate that a large matrix product reaches."""
    memory_efficiency = prop_def(FloatAttr)
    """Fraction of the memory bandwidth that a large copy reaches."""
    saturation = prop_def(IntegerAttr.constr(i64))
    """Operations per accelerator at which a matrix product reaches half of that fraction."""
    links = prop_def(ArrayAttr[LinkAttr])
    """Network levels, innermost first; the last spans the platform."""
    transfers = opt_prop_def(StringAttr)
    """One of :data:`TRANSFERS`; left out when transfers and computing overlap."""
    measured = opt_prop_def(ArrayAttr[MeasuredAttr])
    """Measured times of collectives; left out when there are none."""

    irdl_options = (ParsePropInAttrDict(),)
    assembly_format = "$platform_name attr-dict"

    def verify_(self) -> None:
        for name in ("accelerators", "memory", "bandwidth"):
            if cast(IntegerAttr, self.properties[name]).value.data < 1:
                raise VerifyException(f"'{name}' must be positive")
        if self.count > MOST_ACCELERATORS:
            raise VerifyException(f"more than {MOST_ACCELERATORS} accelerators: {self.count}")
        if self.launch.value.data < 0 or self.saturation.value.data < 0:
            raise VerifyException("'launch' and 'saturation' must not be negative")
        for efficiency in (self.compute_efficiency, self.memory_efficiency):
            if not 0 < efficiency.value.data <= 1:
                raise VerifyException("an efficiency lies in (0, 1]")
        for rate in self.peak.data.values():
            if not IntegerAttr.constr(i64).verifies(rate) or rate.value.data < 1:
                raise VerifyException("'peak' maps element types to positive integer rates")
        if self.transfers is not None and self.transfers.data not in TRANSFERS:
            raise VerifyException(f"'transfers' is one of {', '.join(TRANSFERS)}, got '{self.transfers.data}'")
        sizes = [link.size.data for link in self.links.data]
        if any(a >= b for a, b in pairwise(sizes)):
            raise VerifyException(f"link groups must grow from the innermost outwards, got sizes {sizes}")
        if sizes and sizes[-1] < self.accelerators.value.data:
            raise VerifyException("the outermost link level must span all accelerators")
        for link, inside in zip(self.links.data, (1, *sizes), strict=False):
            members, sides = -(-link.size.data // inside), values(link.shape)
            if sides and prod(sides) != members:
                raise VerifyException(
                    f"a torus of sides {list(sides)} does not have the {members} members of its level"
                )
        keys = [table.key for table in self.collectives()]
        if len(set(keys)) < len(keys):
            raise VerifyException("a collective is measured once for each number of accelerators")
        if any(k > self.count for _, k in keys):
            raise VerifyException(f"a collective is measured on more than the {self.count} accelerators there are")

    def collectives(self) -> tuple[MeasuredAttr, ...]:
        """The measured times of collectives."""
        return () if self.measured is None else self.measured.data

    def peak_rates(self) -> Mapping[str, int]:
        """Element type → operations per second."""
        return {k: cast(IntegerAttr, v).value.data for k, v in self.peak.data.items()}

    @property
    def count(self) -> int:
        """Number of accelerators."""
        return self.accelerators.value.data

    @property
    def mode(self) -> str:
        """What a transfer keeps accelerators from doing: one of :data:`TRANSFERS`."""
        return TRANSFERS[0] if self.transfers is None else self.transfers.data

    @property
    def group_size(self) -> int:
        """Size of the innermost group of accelerators; all of them when there are no groups."""
        return min(self.links.data[0].size.data, self.count) if self.links.data else self.count


def make_platform(
    name: str,
    *,
    accelerator: str,
    accelerators: int,
    memory: int,
    bandwidth: int,
    launch: int,
    peak: Mapping[str, int],
    compute_efficiency: float = 1.0,
    memory_efficiency: float = 1.0,
    saturation: int = 0,
    links: Sequence[LinkAttr] = (),
    transfers: str = TRANSFERS[0],
    measured: Sequence[MeasuredAttr] = (),
) -> PlatformOp:
    """Create a :class:`PlatformOp`; units as in its fields."""

    def integer(value: int) -> IntegerAttr:
        return IntegerAttr(value, i64)

    optional: dict[str, Attribute] = {} if transfers == TRANSFERS[0] else {"transfers": StringAttr(transfers)}
    if measured:
        optional["measured"] = ArrayAttr(measured)
    return PlatformOp.create(
        properties={
            "platform_name": StringAttr(name),
            "accelerator": StringAttr(accelerator),
            "accelerators": integer(accelerators),
            "memory": integer(memory),
            "bandwidth": integer(bandwidth),
            "launch": integer(launch),
            "peak": DictionaryAttr({k: integer(v) for k, v in sorted(peak.items())}),
            "compute_efficiency": FloatAttr(compute_efficiency, f64),
            "memory_efficiency": FloatAttr(memory_efficiency, f64),
            "saturation": integer(saturation),
            "links": ArrayAttr(links),
            **optional,
        }
    )


@_errors_at_position
@irdl_op_definition
class InputOp(IRDLOperation):
    """A value that arrives with every micro-batch: ``%tokens = takt.input : tensor<1x2048xi32>``."""

    name = "takt.input"
    output = result_def(TensorType)
    assembly_format = "attr-dict `:` type($output)"

    def verify_(self) -> None:
        try:
            check_tensor(self.output.type)
        except ShapeError as error:
            raise VerifyException(f"input: {error}") from error


@_errors_at_position
@irdl_op_definition
class StateOp(IRDLOperation):
    """The value that the micro-batch ``distance`` before this one left behind in a state.

    ```
    %cache = takt.state @cache distance 1 : tensor<8x128xbf16>
    ```

    The first ``distance`` micro-batches find an initial value there, which takes no time to make.
    """

    name = "takt.state"
    state = prop_def(StringAttr)
    """Name of the state. A plain string: the symbols of MLIR name operations, and this names what two share."""
    distance = prop_def(IntegerAttr.constr(i64))
    output = result_def(TensorType)

    @staticmethod
    def make(state: str, distance: int, type_: Attribute) -> StateOp:
        properties: dict[str, Attribute] = {"state": StringAttr(state), "distance": IntegerAttr(distance, i64)}
        return StateOp.create(properties=properties, result_types=[type_])

    def verify_(self) -> None:
        if not 1 <= self.distance.value.data <= MOST_DISTANCE:
            raise VerifyException(
                f"the distance of a state lies between 1 and {MOST_DISTANCE}, got {self.distance.value.data}"
            )
        try:
            check_tensor(self.output.type)
        except ShapeError as error:
            raise VerifyException(f"state: {error}") from error

    def print(self, printer: Printer) -> None:
        printer.print_string(" ")
        printer.print_symbol_name(self.state.data)
        printer.print_string(f" distance {self.distance.value.data}")
        printer.print_op_attributes(self.attributes)
        printer.print_string(" : ")
        printer.print_attribute(self.output.type)

    @classmethod
    def parse(cls, parser: Parser) -> StateOp:
        state = StringAttr(parser.parse_symbol_name().data)
        parser.parse_keyword("distance")
        distance = IntegerAttr(parse_integer(parser), i64)
        attributes = parser.parse_optional_attr_dict()
        parser.parse_punctuation(":")
        return cls.create(
            properties={"state": state, "distance": distance},
            attributes=attributes,
            result_types=[parser.parse_type()],
        )


@_errors_at_position
@irdl_op_definition
class NextOp(IRDLOperation):
    """What this micro-batch leaves behind in a state: ``takt.next @cache, %appended : tensor<8x128xbf16>``."""

    name = "takt.next"
    state = prop_def(StringAttr)
    left = operand_def(TensorType)

    @staticmethod
    def make(state: str, left: SSAValue) -> NextOp:
        return NextOp.create(properties={"state": StringAttr(state)}, operands=[left])

    def print(self, printer: Printer) -> None:
        printer.print_string(" ")
        printer.print_symbol_name(self.state.data)
        printer.print_string(", ")
        printer.print_operand(self.left)
        printer.print_op_attributes(self.attributes)
        printer.print_string(" : ")
        printer.print_attribute(self.left.type)

    @classmethod
    def parse(cls, parser: Parser) -> NextOp:
        state = StringAttr(parser.parse_symbol_name().data)
        parser.parse_punctuation(",")
        unresolved = parser.parse_unresolved_operand()
        attributes = parser.parse_optional_attr_dict()
        parser.parse_punctuation(":")
        left = parser.resolve_operand(unresolved, parser.parse_type())
        return cls.create(properties={"state": state}, attributes=attributes, operands=[left])


@irdl_op_definition
class StageOp(IRDLOperation):
    """A pipeline stage and the accelerators granted to it: ``takt.stage 3 on [24:32]``.

    Several stages may be granted the same block.
    """

    name = "takt.stage"
    index = prop_def(IntegerAttr.constr(i64))
    granted = prop_def(Ints)

    @staticmethod
    def make(index: int, granted: Sequence[int]) -> StageOp:
        return StageOp.create(properties={"index": IntegerAttr(index, i64), "granted": ints(sorted(granted))})

    def accelerators(self) -> tuple[int, ...]:
        """The granted block, sorted."""
        return members(self.granted)

    def verify_(self) -> None:
        if self.index.value.data < 0:
            raise VerifyException(f"a stage index must not be negative, got {self.index.value.data}")
        check_set(self.granted)

    def print(self, printer: Printer) -> None:
        printer.print_string(f" {self.index.value.data} on ")
        print_set(printer, self.accelerators())
        printer.print_op_attributes(self.attributes)

    @classmethod
    def parse(cls, parser: Parser) -> StageOp:
        index = IntegerAttr(parse_integer(parser), i64)
        parser.parse_keyword("on")
        granted = parse_set(parser)
        attributes = parser.parse_optional_attr_dict()
        return cls.create(properties={"index": index, "granted": granted}, attributes=attributes)


@_errors_at_position
@irdl_op_definition
class OutputOp(IRDLOperation):
    """The values a micro-batch leaves behind; ends the graph."""

    name = "takt.output"
    values_ = var_operand_def(TensorType)
    traits = traits_def(IsTerminator())
    assembly_format = "($values_^ `:` type($values_))? attr-dict"

    @staticmethod
    def make(outputs: Sequence[SSAValue]) -> OutputOp:
        return OutputOp.create(operands=outputs)


@irdl_op_definition
class GraphOp(IRDLOperation):
    """A model: one block of inputs, stages and operators in topological order.

    ```
    takt.graph @gpt scheduled <8123000 for 1, bound ...> { ... takt.output %loss : tensor<f32> }
    ```
    """

    name = "takt.graph"

    sym_name = prop_def(SymbolNameConstraint())
    level = prop_def(StringAttr)
    training = opt_prop_def(TrainingAttr)
    """Left out of a graph that is forward only."""
    schedule = opt_prop_def(ScheduleAttr)
    body = region_def("single_block")

    traits = traits_def(SymbolOpInterface(), IsolatedFromAbove(), NoTerminator())

    @staticmethod
    def make(name: str, ops: Sequence[Operation], level: str = "model") -> GraphOp:
        return GraphOp.create(
            properties={"sym_name": StringAttr(name), "level": StringAttr(level)}, regions=[Region(Block(ops))]
        )

    def verify_(self) -> None:
        if self.level.data not in LEVELS:
            raise VerifyException(f"unknown level '{self.level.data}' (levels are {', '.join(LEVELS)})")
        if not isinstance(self.body.block.last_op, OutputOp):
            raise VerifyException("a graph must end with takt.output")

    def operators(self) -> Iterator[OperatorOp]:
        """The operators that every micro-batch runs, in program order."""
        ops = self.body.block.ops
        return (op for op in ops if isinstance(op, OperatorOp) and not isinstance(op, OptimizerStepOp))

    def updates(self) -> Iterator[OptimizerStepOp]:
        """What the optimizer does once a step, in program order."""
        return (op for op in self.body.block.ops if isinstance(op, OptimizerStepOp))

    def inputs(self) -> Iterator[InputOp]:
        """The inputs, in program order."""
        return (op for op in self.body.block.ops if isinstance(op, InputOp))

    def stages(self) -> Iterator[StageOp]:
        """The stages, in program order."""
        return (op for op in self.body.block.ops if isinstance(op, StageOp))

    def states(self) -> Iterator[StateOp]:
        """The states, in program order."""
        return (op for op in self.body.block.ops if isinstance(op, StateOp))

    def nexts(self) -> Iterator[NextOp]:
        """What is left in the states, in program order."""
        return (op for op in self.body.block.ops if isinstance(op, NextOp))

    def transfers(self) -> Iterator[ReserveOp | TransferOp]:
        """What moves between accelerator sets, in program order."""
        return (op for op in self.body.block.ops if isinstance(op, ReserveOp | TransferOp))

    def carried(self) -> dict[SSAValue, tuple[OpResult, int]]:
        """Value of a state or of a transfer → the operator's result that it is, and the distance at which it is read.

        A value that no operator computes is left out.
        """
        left = {op.state.data: op.left for op in self.nexts()}
        found: dict[SSAValue, tuple[OpResult, int]] = {}

        def add(value: SSAValue, source: SSAValue, distance: int) -> None:
            origin, before = found.get(source, (source, 0))
            if isinstance(origin, OpResult) and isinstance(origin.op, OperatorOp):
                found[value] = (origin, before + distance)

        for op in self.body.block.ops:
            if isinstance(op, TransferOp):
                add(op.arrived, op.moved, 0)
        for op in self.states():
            value = left.get(op.state.data)
            if value is not None:
                add(op.output, value, op.distance.value.data)
        return found

    @property
    def outputs(self) -> OutputOp:
        """The terminator."""
        return cast(OutputOp, self.body.block.last_op)

    def print(self, printer: Printer) -> None:
        printer.print_string(" ")
        printer.print_symbol_name(self.sym_name.data)
        printer.print_string(f" {self.level.data} ")
        if self.training is not None:
            printer.print_string("training ")
            self.training.print_parameters(printer)
            printer.print_string(" ")
        if self.schedule is not None:
            self.schedule.print_parameters(printer)
            printer.print_string(" ")
        printer.print_region(self.body)
        printer.print_op_attributes(self.attributes)

    @classmethod
    def parse(cls, parser: Parser) -> GraphOp:
        properties: dict[str, Attribute] = {"sym_name": parser.parse_symbol_name()}
        position = parser.pos
        level = parser.parse_identifier(" as level of the graph")
        if level not in LEVELS:
            parser.raise_error(f"unknown level '{level}' (levels are {', '.join(LEVELS)})", position)
        properties["level"] = StringAttr(level)
        if parser.parse_optional_keyword("training") is not None:
            properties["training"] = TrainingAttr.parse_body(parser)
        if parser._current_token.text == "<":  # pyright: ignore[reportPrivateUsage]
            properties["schedule"] = ScheduleAttr.parse_body(parser)
        position = parser.pos
        region = parser.parse_region()
        if len(region.blocks) != 1:
            parser.raise_error(f"a graph has one block, got {len(region.blocks)}", position)
        attributes = parser.parse_optional_attr_dict()
        return cls.create(properties=properties, regions=[region], attributes=attributes)


# --- finding things in a module --------------------------------------------------------------


def find_graph(module: ModuleOp) -> GraphOp | None:
    """The first graph of a module."""
    return next((op for op in module.body.block.ops if isinstance(op, GraphOp)), None)


def find_platform(module: ModuleOp) -> PlatformOp | None:
    """The first platform of a module."""
    return next((op for op in module.body.block.ops if isinstance(op, PlatformOp)), None)
