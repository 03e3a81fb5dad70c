"""Moving values between accelerator sets: transfers that a schedule reserves, and the operations they become.

What a transfer is, takes and occupies is defined in ``docs/ir.md``.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import Self

from xdsl.dialects.builtin import ArrayAttr, IntegerAttr, StringAttr, TensorType, i64
from xdsl.ir import Attribute, SSAValue
from xdsl.irdl import IRDLOperation, irdl_op_definition, operand_def, opt_prop_def, prop_def, result_def
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.utils.exceptions import VerifyException

from dialects.attributes import (
    Ints,
    check_set,
    ints,
    members,
    parse_integer,
    parse_set,
    parse_starts,
    parse_text,
    print_set,
    show_starts,
    values,
)


class MoveOp(IRDLOperation, ABC):
    """Base of all that moves a value: where to, over which links, when and for how long.

    ``to [8:16] over "node" at 4789 for 1310 landing 9000``: micro-batch ``i`` leaves during
    ``[4789 + iT, 4789 + 1310 + iT)`` for copy ``i mod copies`` of the sets given, and arrives in as many ns from its
    landing on. Without a landing both ends take part at the same time. In a step each micro-batch has a start, and a
    landing, of its own, as in ``at [4789, 9000] for 1310 landing [9000, 14000]``.
    """

    moved = operand_def(TensorType)
    targets = prop_def(ArrayAttr[Ints])
    """Sorted accelerators that receive micro-batch 0, 1, ...; in turn."""
    link = prop_def(StringAttr)
    """Name of the level of the network."""
    start = prop_def(IntegerAttr.constr(i64))
    time = prop_def(IntegerAttr.constr(i64))
    landing = opt_prop_def(IntegerAttr.constr(i64))
    later = opt_prop_def(Ints)
    """Starts of micro-batches 1, 2, ... of a step."""
    later_landings = opt_prop_def(Ints)
    """Their landings, where micro-batch 0 has one."""

    def sets(self) -> tuple[tuple[int, ...], ...]:
        """The accelerators that receive the value, for each turn."""
        return tuple(members(s) for s in self.targets.data)

    @property
    def lands(self) -> int:
        """Start of the arrival, ns."""
        return (self.start if self.landing is None else self.landing).value.data

    @property
    def ready(self) -> int:
        """End of the arrival, ns."""
        return self.lands + self.time.value.data

    @property
    def starts(self) -> tuple[int, ...]:
        """Starts of micro-batches 0, 1, ... of a step; of micro-batch 0 alone where they follow by the period."""
        return (self.start.value.data, *(() if self.later is None else values(self.later)))

    @property
    def landings(self) -> tuple[int, ...]:
        """Starts of the arrivals, as many as :attr:`starts`."""
        if self.landing is None:
            return self.starts
        return (self.landing.value.data, *(() if self.later_landings is None else values(self.later_landings)))

    @classmethod
    def make(
        cls,
        moved: SSAValue,
        targets: Sequence[Sequence[int]],
        link: str,
        start: int | Sequence[int],
        time: int,
        landing: int | Sequence[int] | None = None,
    ) -> Self:
        """Create the operation; ``landing`` None, or equal to ``start``, where both ends take part at once.

        In a step both are sequences, one number for each micro-batch.
        """
        properties: dict[str, Attribute] = {
            "targets": ArrayAttr([ints(sorted(s)) for s in targets]),
            "link": StringAttr(link),
            **_times("start", "later", [start] if isinstance(start, int) else start),
            "time": IntegerAttr(time, i64),
        }
        if landing is not None and landing != start:
            properties |= _times("landing", "later_landings", [landing] if isinstance(landing, int) else landing)
        results = [moved.type] if issubclass(cls, TransferOp) else []
        return cls.create(operands=[moved], properties=properties, result_types=results)

    def verify_(self) -> None:
        if not self.targets.data:
            raise VerifyException("a transfer has at least one target")
        for accelerators in self.targets.data:
            check_set(accelerators)
        if self.time.value.data < 0:
            raise VerifyException(f"the time of a transfer is not negative, got {self.time.value.data}")
        if len(self.landings) != len(self.starts):
            raise VerifyException(f"{len(self.starts)} starts and {len(self.landings)} landings of one transfer")
        for listed in (self.later, self.later_landings):
            if listed is not None and listed.elt_type != i64:
                raise VerifyException("starts and landings are integers of 64 bits")
        for result in self.results:
            if result.type != self.moved.type:
                raise VerifyException(f"a {self.moved.type} leaves, but a {result.type} arrives")

    def print(self, printer: Printer) -> None:
        printer.print_string(" ")
        printer.print_operand(self.moved)
        printer.print_string(" to ")
        printer.print_list(self.sets(), lambda s: print_set(printer, s))
        printer.print_string(" over ")
        printer.print_string_literal(self.link.data)
        printer.print_string(f" at {show_starts(self.starts)} for {self.time.value.data}")
        if self.landing is not None:
            printer.print_string(f" landing {show_starts(self.landings)}")
        printer.print_op_attributes(self.attributes)
        printer.print_string(" : ")
        printer.print_attribute(self.moved.type)

    @classmethod
    def parse(cls, parser: Parser) -> Self:
        position = parser.pos
        operand = parser.parse_unresolved_operand()
        parser.parse_keyword("to")
        targets = [parse_set(parser)]
        while parser.parse_optional_punctuation(",") is not None:
            targets.append(parse_set(parser))
        parser.parse_keyword("over")
        properties: dict[str, Attribute] = {"targets": ArrayAttr(targets), "link": parse_text(parser)}
        parser.parse_keyword("at")
        properties |= _times("start", "later", parse_starts(parser))
        parser.parse_keyword("for")
        properties["time"] = IntegerAttr(parse_integer(parser), i64)
        if parser.parse_optional_keyword("landing") is not None:
            properties |= _times("landing", "later_landings", parse_starts(parser))
        attributes = parser.parse_optional_attr_dict()
        parser.parse_punctuation(":")
        type_ = parser.parse_type()
        moved = parser.resolve_operand(operand, type_)
        results = [type_] if issubclass(cls, TransferOp) else []
        made = cls.create(operands=[moved], properties=properties, attributes=attributes, result_types=results)
        try:
            made.verify_()
        except VerifyException as error:
            parser.raise_error(str(error), position, parser.pos)
        return made


def _times(first: str, later: str, listed: Sequence[int]) -> dict[str, Attribute]:
    """The properties for moments of micro-batches 0, 1, ...; one of the name ``later`` only where there are several."""
    given: dict[str, Attribute] = {first: IntegerAttr(listed[0], i64)}
    return given if len(listed) == 1 else {**given, later: ints(listed[1:])}


@irdl_op_definition
class ReserveOp(MoveOp):
    """Level 4: links (and where need be accelerators) reserved for a value that is read on another set.

    ```
    takt.reserve %h to [8:16] over "node" at 4789 for 1310 : tensor<8x64xbf16>
    ```
    """

    name = "takt.reserve"


class TransferOp(MoveOp, ABC):
    """Level 5: a reservation made explicit. Consumers on the target set read its result."""

    arrived = result_def(TensorType)


@irdl_op_definition
class SendRecvOp(TransferOp):
    """One accelerator sends to one.

    ```
    %h.to.1 = takt.send_recv %h to [1:2] over "node" at 4789 for 1310 : tensor<8x64xbf16>
    ```
    """

    name = "takt.send_recv"


@irdl_op_definition
class BroadcastOp(TransferOp):
    """A value that is whole on its set goes whole to each of several accelerators, piece by piece or at once."""

    name = "takt.broadcast"


@irdl_op_definition
class ScatterOp(TransferOp):
    """One accelerator cuts a value into shares for several, which keep them."""

    name = "takt.scatter"


@irdl_op_definition
class GatherOp(TransferOp):
    """Several accelerators send their shares of a value to one."""

    name = "takt.gather"


@irdl_op_definition
class ReshardOp(TransferOp):
    """Several accelerators send shares of a value to several, which keep shares of another size."""

    name = "takt.reshard"


COMMUNICATION = (ReserveOp, SendRecvOp, BroadcastOp, ScatterOp, GatherOp, ReshardOp)
"""Every operation of this file."""
