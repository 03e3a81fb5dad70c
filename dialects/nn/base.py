"""What all operators share: common properties, arguments, verification, assembly.

Every operator is a subclass of :class:`OperatorOp`; its shape rule :meth:`OperatorOp.infer` is the
only statement of its shapes: the front end calls it to type a model, the verifier to check the IR.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import prod
from typing import Any, ClassVar, Protocol, Self, cast, runtime_checkable

from xdsl.dialects.builtin import FloatAttr, IntegerAttr, StringAttr, TensorType, bf16, f16, f32, f64, i1, i8, i32, i64
from xdsl.ir import Attribute, SSAValue
from xdsl.irdl import (
    IRDLOperation,
    OptPropertyDef,
    opt_prop_def,
    prop_def,
    var_operand_def,
    var_result_def,
)
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.utils.exceptions import VerifyException

from dialects.arguments import ArgumentConstraint
from dialects.attributes import (
    BlockAttr,
    CostAttr,
    Ints,
    SlotAttr,
    ints,
    parse_integer,
    parse_ints,
    parse_optional_ints,
    values,
)

Tensor = TensorType[Attribute]

COMMON = (
    *("of", "params", "group", "block", "cost", "backward", "backward_times", "weights_times"),
    *("sharded", "stage", "shared", "slot"),
)
"""Properties every operator has, and what a gradient is ``of``; all others are the operator's own arguments."""


MOST_RATIO = 1000.0
"""No backward pass is that many times as long as its forward pass."""

DECIMALS = 6
"""Of such a ratio, as it is printed."""


def show_ratio(ratio: float) -> str:
    """A ratio as a decimal number, without an exponent: ``2.0``."""
    digits = f"{ratio:.{DECIMALS}f}".rstrip("0")
    return digits + "0" if digits.endswith(".") else digits


@runtime_checkable
class HasOperators(Protocol):
    """Anything with operators in program order: a graph."""

    def operators(self) -> Iterator[OperatorOp]: ...


class ShapeError(ValueError):
    """The operands or arguments of an operator do not fit together; the message names the shapes."""


ELEMENT_BYTES: Mapping[Attribute, int] = {bf16: 2, f16: 2, f32: 4, f64: 8, i1: 1, i8: 1, i32: 4, i64: 8}
"""Element types of tensors and the bytes of one element; a boolean takes one byte."""

ELEMENT_TYPES: Mapping[str, Attribute] = {str(element): element for element in ELEMENT_BYTES}
"""Element types by the name the source language gives them."""

LARGEST = 2**63 - 1
"""Sizes and times are 64-bit integers."""


@dataclass(frozen=True)
class Inference:
    """What follows from an operator's operands and arguments: result types and parameter bytes."""

    results: tuple[Tensor, ...]
    params: int = 0

    def __post_init__(self) -> None:
        if self.params > LARGEST:
            raise ShapeError(f"{self.params} bytes of parameters do not fit in 64 bits")
        for result in self.results:
            if tensor_bytes(result) > LARGEST:
                raise ShapeError(f"{show(result)} has more bytes than fit in 64 bits")


def element_bytes(element: Attribute) -> int:
    """Bytes of one element of a tensor; raises :class:`ShapeError` for a type the language lacks."""
    size = ELEMENT_BYTES.get(element)
    if size is None:
        raise ShapeError(f"element type {element} is none of {', '.join(ELEMENT_TYPES)}")
    return size


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor of static shape."""
    return prod(tensor.get_shape()) * element_bytes(tensor.element_type)


def check_tensor(type_: Attribute) -> None:
    """Raise :class:`ShapeError` unless ``type_`` is a tensor of static shape, known element type and sane size."""
    if not isinstance(type_, TensorType):
        raise ShapeError(f"expected a tensor, got {type_}")
    tensor = cast(Tensor, type_)
    if any(d < 0 for d in tensor.get_shape()):
        raise ShapeError(f"every dimension of {tensor} must be known")
    if tensor_bytes(tensor) > LARGEST:
        raise ShapeError(f"{show(tensor)} has more bytes than fit in 64 bits")


def show(tensor: Tensor) -> str:
    """A tensor type as the source language writes it: ``tensor<2 x 128, bf16>``."""
    dims = " x ".join(str(d) for d in tensor.get_shape())
    return f"tensor<{dims}, {tensor.element_type}>" if dims else f"tensor<{tensor.element_type}>"


def is_group_name(name: str) -> bool:
    """Whether a text can name a group: xDSL reads no other characters back from a string attribute."""
    return bool(name) and name.isascii() and name.isprintable()


def operator_names(operators: Iterable[OperatorOp] | HasOperators) -> dict[OperatorOp, str]:
    """A unique name for each operator of a graph (or of an iterable of them, in program order).

    It is the user's name, kept as the SSA name of the first result; text that went through another
    tool may have lost it, and then the name is the kind and the position.
    """
    listed = operators.operators() if isinstance(operators, HasOperators) else operators
    names: dict[OperatorOp, str] = {}
    taken: set[str] = set()
    for position, op in enumerate(listed):
        hint = op.results[0].name_hint if op.results else None
        name = hint if hint is not None and hint not in taken else f"{hint or op.kind()}.{position}"
        while name in taken:
            name += "'"
        taken.add(name)
        names[op] = name
    return names


@cache
def _signature(cls: type[OperatorOp]) -> Mapping[str, tuple[ArgumentConstraint, Any, bool]]:
    found: dict[str, tuple[ArgumentConstraint, Any, bool]] = {}
    for name, definition in cls.get_irdl_definition().properties.items():
        if name not in COMMON:
            constraint = cast(ArgumentConstraint, definition.constr)
            default = definition.default_value
            optional = default is not None or isinstance(definition, OptPropertyDef)
            found[name] = (constraint, None if default is None else constraint.decode(default), not optional)
    return found


class OperatorOp(IRDLOperation, ABC):
    """Base of all operators.

    ```
    %q = takt.linear(%x) {features = 4096, bias = false} params 33554432 group "tied" block <"decoder", 3>
           cost <[1, 2] time [812000, 430000]> stage 2 slot <2 on [4:6] at 9000>
           : (tensor<1x128x4096xbf16>) -> tensor<1x128x4096xbf16>
    ```
    """

    ARITY: ClassVar[tuple[int, int | None]] = (1, 1)
    """Least and greatest number of operands; None: any number."""

    inputs = var_operand_def(TensorType)
    outputs = var_result_def(TensorType)

    params = prop_def(IntegerAttr.constr(i64), default_value=IntegerAttr(0, i64))
    """Parameter bytes of the whole operator."""
    group = opt_prop_def(StringAttr)
    """Operators that name one group share their parameters: one allotment, one set, stored once."""
    block = opt_prop_def(BlockAttr)
    """Which call of which block of the source this operator came from."""
    cost = opt_prop_def(CostAttr)
    """Level 0: a table written by the user. Level 2 and later: the operator's moldable cost."""
    backward = opt_prop_def(FloatAttr)
    """Time of the operator's gradients together, as a multiple of its own written one; left out where it is usual."""
    backward_times = opt_prop_def(Ints)
    """Instead: ns for each allotment of the written cost table, in its order."""
    weights_times = opt_prop_def(Ints)
    """The part of these which the gradient of the weights takes; half where left out."""
    sharded = opt_prop_def(Ints)
    """Level 2: numbers of the results of which each accelerator of a set holds its share only; left out when none."""
    stage = opt_prop_def(IntegerAttr.constr(i64))
    """Level 3: the home stage."""
    shared = opt_prop_def(IntegerAttr.constr(i64))
    """Level 3: a second stage whose granted block this operator may use too."""
    slot = opt_prop_def(SlotAttr)
    """Level 4: allotment, accelerator sets, start."""

    @classmethod
    def infer(cls, operands: Sequence[Tensor], arguments: Mapping[str, Any]) -> Inference:
        """Result types and parameter bytes; raises :class:`ShapeError` when the operands do not fit.

        ``arguments`` holds a Python value for every argument the operator declares (None when an
        optional one is absent).
        """
        raise TypeError(f"{cls.name} states its result types itself")

    @classmethod
    def infers(cls) -> bool:
        """Whether result types follow from the operands; not so for an opaque operator."""
        return cls.infer.__func__ is not OperatorOp.infer.__func__  # pyright: ignore[reportFunctionMemberAccess]

    def is_sharded(self, result: int) -> bool:
        """Whether each accelerator holds only its share of a result."""
        return self.sharded is not None and result in values(self.sharded)

    # --- arguments ---------------------------------------------------------------------------

    @classmethod
    def kind(cls) -> str:
        """The operator's name in the source language."""
        return cls.name.removeprefix("takt.")

    @classmethod
    def signature(cls) -> Mapping[str, tuple[ArgumentConstraint, Any, bool]]:
        """Argument → (constraint, default value or None, whether it must be given)."""
        return _signature(cls)

    def arguments(self) -> dict[str, Any]:
        """Python value of every declared argument; None for an optional one that is absent."""
        return {
            name: constraint.decode(self.properties[name]) if name in self.properties else default
            for name, (constraint, default, _) in self.signature().items()
        }

    @classmethod
    def make(
        cls,
        operands: Sequence[SSAValue],
        arguments: Mapping[str, Any],
        results: Sequence[Tensor],
        params: int,
        *,
        group: str | None = None,
        block: BlockAttr | None = None,
        cost: CostAttr | None = None,
        backward: float | None = None,
        gradients: tuple[Sequence[int], Sequence[int] | None] | None = None,
    ) -> Self:
        """Create the operator. Arguments left out take their default; values must already be valid."""
        given: dict[str, Attribute] = {}
        for name, (constraint, default, _) in cls.signature().items():
            value = arguments.get(name, default)
            if value is not None:
                given[name] = constraint.encode(value)
        if group is not None:
            given["group"] = StringAttr(group)
        if block is not None:
            given["block"] = block
        if cost is not None:
            given["cost"] = cost
        if backward is not None:
            given["backward"] = FloatAttr(backward, f64)
        if gradients is not None:
            given["backward_times"] = ints(gradients[0])
            if gradients[1] is not None:
                given["weights_times"] = ints(gradients[1])
        return cls.create(operands=operands, result_types=results, properties=cls._ordered(given, params))

    @classmethod
    def _ordered(cls, given: Mapping[str, Attribute], params: int) -> dict[str, Attribute]:
        """Properties in one order, defaults included, so that the generic form prints alike however it was made."""
        properties: dict[str, Attribute] = {"params": IntegerAttr(params, i64)}
        for name, (constraint, default, _) in cls.signature().items():
            if name in given:
                properties[name] = given[name]
            elif default is not None:
                properties[name] = constraint.encode(default)
        return {**properties, **given}

    # --- verification ------------------------------------------------------------------------

    def verify_(self) -> None:
        least, most = self.ARITY
        n = len(self.inputs)
        if n < least or (most is not None and n > most):
            expected = f"{least}" if least == most else f"{least} or more" if most is None else f"{least} to {most}"
            noun = "operand" if expected == "1" else "operands"
            raise VerifyException(f"'{self.kind()}' takes {expected} {noun}, got {n}")
        if not self.outputs:
            raise VerifyException(f"'{self.kind()}' needs at least one result")
        if self.params.value.data < 0:
            raise VerifyException("parameter bytes must not be negative")
        if self.group is not None and not is_group_name(self.group.data):
            raise VerifyException("the name of a group is printable ASCII text and not empty")
        if self.backward is not None:
            ratio = self.backward.value.data
            if not 0 <= ratio <= MOST_RATIO or ratio != round(ratio, DECIMALS):
                message = f"'backward' lies between 0 and {MOST_RATIO:.0f}, with {DECIMALS} decimals at most"
                raise VerifyException(f"{message}, got {ratio}")
        self._verify_times()
        if self.sharded is not None:
            numbers = values(self.sharded)
            known = self.sharded.elt_type == i64 and all(0 <= r < len(self.outputs) for r in numbers)
            if not known or not numbers or any(a >= b for a, b in pairwise(numbers)):
                raise VerifyException(f"'sharded' lists results by increasing numbers, got {list(numbers)}")
        try:
            for value in (*self.inputs, *self.outputs):
                check_tensor(value.type)
            if not self.infers():
                return
            expected_types = self.infer([cast(Tensor, v.type) for v in self.inputs], self.arguments()).results
        except ShapeError as error:
            raise VerifyException(f"'{self.kind()}': {error}") from error
        actual = tuple(r.type for r in self.outputs)
        if actual != expected_types:
            wanted = ", ".join(show(t) for t in expected_types)
            found = ", ".join(show(t) for t in actual)
            raise VerifyException(f"'{self.kind()}' gives {wanted}, but the result is {found}")

    def _verify_times(self) -> None:
        """Raise VerifyException for times of gradients that do not fit the cost table."""
        if self.backward_times is None:
            if self.weights_times is not None:
                raise VerifyException("'weights' is a part of the times of 'backward', which are missing")
            return
        if self.backward is not None:
            raise VerifyException("'backward' is a ratio or a list of times, not both")
        whole = values(self.backward_times)
        part = whole if self.weights_times is None else values(self.weights_times)
        allotments = 0 if self.cost is None else len(self.cost.table())
        if not len(whole) == len(part) == allotments:
            raise VerifyException(f"there are {len(whole)} times of gradients for {allotments} allotments")
        if any(not 0 <= p <= t for p, t in zip(part, whole, strict=True)):
            raise VerifyException("times of gradients are not negative, and those of weights are a part of them")

    # --- assembly ----------------------------------------------------------------------------

    def print(self, printer: Printer) -> None:
        with printer.in_parens():
            printer.print_list(self.inputs, printer.print_operand)
        signature, arguments = self.signature(), self.arguments()
        given = [(n, v) for n, v in arguments.items() if v != signature[n][1]]
        if given:
            printer.print_string(" ")
            with printer.in_braces():
                printer.print_list(given, lambda argument: _print_argument(printer, *argument))
        self.print_own(printer)
        if self.params.value.data:
            printer.print_string(f" params {self.params.value.data}")
        if self.group is not None:
            printer.print_string(" group ")
            printer.print_string_literal(self.group.data)
        if self.block is not None:
            printer.print_string(" block ")
            self.block.print_parameters(printer)
        if self.cost is not None:
            printer.print_string(" cost ")
            self.cost.print_parameters(printer)
        if self.backward is not None:
            printer.print_string(f" backward {show_ratio(self.backward.value.data)}")
        if self.backward_times is not None:
            printer.print_string(f" backward {list(values(self.backward_times))}")
        if self.weights_times is not None:
            printer.print_string(f" weights {list(values(self.weights_times))}")
        if self.sharded is not None:
            printer.print_string(f" sharded {list(values(self.sharded))}")
        if self.stage is not None:
            printer.print_string(f" stage {self.stage.value.data}")
        if self.shared is not None:
            printer.print_string(f" shared {self.shared.value.data}")
        if self.slot is not None:
            printer.print_string(" slot ")
            self.slot.print_parameters(printer)
        printer.print_op_attributes(self.attributes, print_keyword=True)
        printer.print_string(" : ")
        printer.print_function_type(self.operand_types, self.result_types)

    def print_own(self, printer: Printer) -> None:
        """Print what only this class of operators has, behind the arguments; here nothing."""

    @classmethod
    def parse_own(cls, parser: Parser) -> dict[str, Attribute]:
        """Parse what :meth:`print_own` prints, as properties."""
        return {}

    @classmethod
    def parse(cls, parser: Parser) -> Self:
        properties: dict[str, Attribute] = {}
        params = 0
        signature = cls.signature()

        def parse_argument() -> None:
            position = parser.pos
            name = parser.parse_identifier(" as argument name")
            if name not in signature:
                known = ", ".join(signature) or "none"
                parser.raise_error(f"'{cls.kind()}' has no argument '{name}' (it has: {known})", position)
            if name in properties:
                parser.raise_error(f"argument '{name}' is given twice", position)
            parser.parse_punctuation("=")
            try:
                properties[name] = signature[name][0].encode(_parse_value(parser))
            except ValueError as error:
                parser.raise_error(f"argument '{name}' must be {error}", position)

        start = parser.pos
        operands = parser.parse_comma_separated_list(parser.Delimiter.PAREN, parser.parse_unresolved_operand)
        parser.parse_optional_comma_separated_list(parser.Delimiter.BRACES, parse_argument)
        for name, (_, default, required) in signature.items():
            if required and default is None and name not in properties:
                parser.raise_error(f"'{cls.kind()}' needs the argument '{name}'", start)
        properties |= cls.parse_own(parser)
        if parser.parse_optional_keyword("params") is not None:
            params = parse_integer(parser)
        if parser.parse_optional_keyword("group") is not None:
            properties["group"] = StringAttr(parser.parse_str_literal())
        if parser.parse_optional_keyword("block") is not None:
            properties["block"] = BlockAttr.parse_body(parser)
        if parser.parse_optional_keyword("cost") is not None:
            properties["cost"] = CostAttr.parse_body(parser)
        if parser.parse_optional_keyword("backward") is not None:
            if (times := parse_optional_ints(parser)) is not None:
                properties["backward_times"] = times
            else:
                properties["backward"] = FloatAttr(float(parser.parse_number()), f64)
        if parser.parse_optional_keyword("weights") is not None:
            properties["weights_times"] = parse_ints(parser)
        if parser.parse_optional_keyword("sharded") is not None:
            properties["sharded"] = parse_ints(parser)
        for name in ("stage", "shared"):
            if parser.parse_optional_keyword(name) is not None:
                properties[name] = IntegerAttr(parse_integer(parser), i64)
        if parser.parse_optional_keyword("slot") is not None:
            properties["slot"] = SlotAttr.parse_body(parser)
        attributes = parser.parse_optional_attr_dict_with_keyword()
        parser.parse_punctuation(":")
        type_ = parser.parse_function_type()
        resolved = parser.resolve_operands(operands, type_.inputs.data, start)
        return cls.create(
            operands=resolved,
            result_types=type_.outputs.data,
            properties=cls._ordered(properties, params),
            attributes=attributes.data if attributes is not None else {},
        )


def _print_argument(printer: Printer, name: str, value: Any) -> None:
    printer.print_string(f"{name} = ")
    if isinstance(value, bool):
        printer.print_string("true" if value else "false")
    elif isinstance(value, str):
        printer.print_string_literal(value)
    elif isinstance(value, tuple):
        with printer.in_square_brackets():
            printer.print_list(cast(tuple[int, ...], value), lambda v: printer.print_string(str(v)))
    else:
        printer.print_string(str(value))


def _parse_value(parser: Parser) -> Any:
    if (flag := parser.parse_optional_boolean()) is not None:
        return flag
    if (word := parser.parse_optional_str_literal()) is not None:
        return word
    items = parser.parse_optional_comma_separated_list(parser.Delimiter.SQUARE, lambda: parse_integer(parser))
    return items if items is not None else parse_integer(parser)
