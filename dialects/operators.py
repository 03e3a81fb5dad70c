"""The operators of a model: what each computes, its arguments, shapes and parameters.

Every operator is a subclass of :class:`OperatorOp`; its shape rule :meth:`OperatorOp.infer` is the
only statement of its shapes: the front end calls it to type a model, the verifier to check the IR.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Self, cast

from xdsl.dialects.builtin import AnyFloat, IntegerAttr, IntegerType, StringAttr, TensorType, i64
from xdsl.ir import Attribute, SSAValue
from xdsl.irdl import (
    IRDLOperation,
    irdl_op_definition,
    opt_prop_def,
    prop_def,
    var_operand_def,
    var_result_def,
)
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.utils.exceptions import VerifyException

from dialects.arguments import ArgumentConstraint, BoolArg, ChoiceArg, IntArg
from dialects.attributes import BlockAttr, CostAttr, SlotAttr

Tensor = TensorType[Attribute]

COMMON = ("params", "block", "cost", "stage", "shared", "slot")
"""Properties every operator has; all others are the operator's own arguments."""


class ShapeError(ValueError):
    """The operands or arguments of an operator do not fit together; the message names the shapes."""


@dataclass(frozen=True)
class Inference:
    """What follows from an operator's operands and arguments: result types and parameter bytes."""

    results: tuple[Tensor, ...]
    params: int = 0


def element_bytes(element: Attribute) -> int:
    """Bytes of one element of a tensor; a boolean takes one byte."""
    if isinstance(element, IntegerType):
        return max(1, element.width.data // 8)
    return cast(AnyFloat, element).size


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor of static shape."""
    return prod(tensor.get_shape()) * element_bytes(tensor.element_type)


def show(tensor: Tensor) -> str:
    """A tensor type as the source language writes it: ``tensor<2 x 128, bf16>``."""
    dims = " x ".join(str(d) for d in tensor.get_shape())
    return f"tensor<{dims}, {tensor.element_type}>" if dims else f"tensor<{tensor.element_type}>"


def operator_names(operators: Iterable[OperatorOp]) -> dict[OperatorOp, str]:
    """A unique name for each of ``operators`` (a whole graph's, in order).

    It is the user's name, kept as the SSA name of the first result; text that went through another
    tool may have lost it, and then the name is the kind and the position.
    """
    return {op: op.results[0].name_hint or f"{op.kind()}.{i}" for i, op in enumerate(operators)}


class OperatorOp(IRDLOperation, ABC):
    """Base of all operators.

    ```
    %q = takt.linear(%x) {features = 4096, bias = false} params 33554432 block <"decoder", 3>
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
    block = opt_prop_def(BlockAttr)
    """Which call of which block of the source this operator came from."""
    cost = opt_prop_def(CostAttr)
    """Level 0: a table written by the user. Level 2 and later: the operator's moldable cost."""
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

    # --- arguments ---------------------------------------------------------------------------

    @classmethod
    def kind(cls) -> str:
        """The operator's name in the source language."""
        return cls.name.removeprefix("takt.")

    @classmethod
    def signature(cls) -> Mapping[str, tuple[ArgumentConstraint, Any, bool]]:
        """Argument → (constraint, default value or None, whether it must be given)."""
        found: dict[str, tuple[ArgumentConstraint, Any, bool]] = {}
        for name, definition in cls.get_irdl_definition().properties.items():
            if name not in COMMON:
                constraint = cast(ArgumentConstraint, definition.constr)
                default = definition.default_value
                optional = default is not None or type(definition).__name__ == "OptPropertyDef"
                found[name] = (constraint, None if default is None else constraint.decode(default), not optional)
        return found

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
        block: BlockAttr | None = None,
        cost: CostAttr | None = None,
    ) -> Self:
        """Create the operator. Arguments left out take their default; values must already be valid."""
        properties: dict[str, Attribute | None] = {"params": IntegerAttr(params, i64), "block": block, "cost": cost}
        for name, (constraint, default, _) in cls.signature().items():
            value = arguments.get(name, default)
            if value is not None:
                properties[name] = constraint.encode(value)
        return cls.create(
            operands=operands,
            result_types=results,
            properties={k: v for k, v in properties.items() if v is not None},
        )

    # --- verification ------------------------------------------------------------------------

    def verify_(self) -> None:
        least, most = self.ARITY
        n = len(self.inputs)
        if n < least or (most is not None and n > most):
            expected = f"{least}" if least == most else f"{least} or more" if most is None else f"{least} to {most}"
            raise VerifyException(f"'{self.kind()}' takes {expected} operands, got {n}")
        if self.params.value.data < 0:
            raise VerifyException("parameter bytes must not be negative")
        if type(self).infer.__func__ is OperatorOp.infer.__func__:
            return
        try:
            expected_types = self.infer([cast(Tensor, v.type) for v in self.inputs], self.arguments()).results
        except ShapeError as error:
            raise VerifyException(f"'{self.kind()}': {error}") from error
        actual = tuple(r.type for r in self.outputs)
        if actual != expected_types:
            wanted = ", ".join(show(t) for t in expected_types)
            found = ", ".join(show(cast(Tensor, t)) for t in actual)
            raise VerifyException(f"'{self.kind()}' gives {wanted}, but the result is {found}")

    # --- assembly ----------------------------------------------------------------------------

    def print(self, printer: Printer) -> None:
        with printer.in_parens():
            printer.print_list(self.inputs, printer.print_operand)
        given = [(n, c.decode(self.properties[n])) for n, (c, _, _) in self.signature().items() if n in self.properties]
        if given:
            printer.print_string(" ")
            with printer.in_braces():
                printer.print_list(given, lambda argument: _print_argument(printer, *argument))
        if self.params.value.data:
            printer.print_string(f" params {self.params.value.data}")
        if self.block is not None:
            printer.print_string(" block ")
            self.block.print_parameters(printer)
        if self.cost is not None:
            printer.print_string(" cost ")
            self.cost.print_parameters(printer)
        if self.stage is not None:
            printer.print_string(f" stage {self.stage.value.data}")
        if self.shared is not None:
            printer.print_string(f" shared {self.shared.value.data}")
        if self.slot is not None:
            printer.print_string(" slot ")
            self.slot.print_parameters(printer)
        printer.print_op_attributes(self.attributes, print_keyword=True)
        printer.print_string(" : ")
        printer.print_operation_type(self)

    @classmethod
    def parse(cls, parser: Parser) -> Self:
        properties: dict[str, Attribute] = {"params": IntegerAttr(0, i64)}
        signature = cls.signature()

        def parse_argument() -> None:
            position = parser.pos
            name = parser.parse_identifier(" as argument name")
            if name not in signature:
                known = ", ".join(signature) or "none"
                parser.raise_error(f"'{cls.kind()}' has no argument '{name}' (it has: {known})", position)
            parser.parse_punctuation("=")
            try:
                properties[name] = signature[name][0].encode(_parse_value(parser))
            except ValueError as error:
                parser.raise_error(f"argument '{name}' must be {error}", position)

        start = parser.pos
        operands = parser.parse_comma_separated_list(parser.Delimiter.PAREN, parser.parse_unresolved_operand)
        parser.parse_optional_comma_separated_list(parser.Delimiter.BRACES, parse_argument)
        if parser.parse_optional_keyword("params") is not None:
            properties["params"] = IntegerAttr(parser.parse_integer(allow_boolean=False), i64)
        if parser.parse_optional_keyword("block") is not None:
            properties["block"] = BlockAttr(*BlockAttr.parse_parameters(parser))
        if parser.parse_optional_keyword("cost") is not None:
            properties["cost"] = CostAttr(*CostAttr.parse_parameters(parser))
        for name in ("stage", "shared"):
            if parser.parse_optional_keyword(name) is not None:
                properties[name] = IntegerAttr(parser.parse_integer(allow_boolean=False), i64)
        if parser.parse_optional_keyword("slot") is not None:
            properties["slot"] = SlotAttr(*SlotAttr.parse_parameters(parser))
        attributes = parser.parse_optional_attr_dict_with_keyword()
        parser.parse_punctuation(":")
        type_ = parser.parse_function_type()
        resolved = parser.resolve_operands(operands, type_.inputs.data, start)
        return cls.create(
            operands=resolved,
            result_types=type_.outputs.data,
            properties=properties,
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
    items = parser.parse_optional_comma_separated_list(
        parser.Delimiter.SQUARE, lambda: parser.parse_integer(allow_boolean=False)
    )
    return items if items is not None else parser.parse_integer(allow_boolean=False)


# --- opaque ----------------------------------------------------------------------------------


@irdl_op_definition
class OpaqueOp(OperatorOp):
    """An operator known only by its written table of times; its result types are stated, not inferred."""

    name = "takt.op"
    ARITY: ClassVar[tuple[int, int | None]] = (0, None)


# --- matrix products -------------------------------------------------------------------------


@irdl_op_definition
class LinearOp(OperatorOp):
    """Product with a weight of shape ``in x features``: ``[..., in] -> [..., features]``.

    ``split`` says how several accelerators share it: by columns of the weight (the result comes out
    split) or by rows (partial sums are all-reduced).
    """

    name = "takt.linear"

    features = prop_def(IntArg())
    bias = prop_def(BoolArg(), default_value=IntegerAttr.from_bool(False))
    split = prop_def(ChoiceArg(("column", "row")), default_value=StringAttr("column"))

    @classmethod
    def infer(cls, operands: Sequence[Tensor], arguments: Mapping[str, Any]) -> Inference:
        (x,) = operands
        shape = x.get_shape()
        if not shape:
            raise ShapeError(f"needs a tensor of at least one dimension, got {show(x)}")
        features: int = arguments["features"]
        weights = (shape[-1] + (1 if arguments["bias"] else 0)) * features
        result = TensorType(x.element_type, (*shape[:-1], features))
        return Inference((result,), weights * element_bytes(x.element_type))


# --- element-wise ----------------------------------------------------------------------------


class ElementwiseOp(OperatorOp, ABC):
    """All operands have one type; so has the result."""

    @classmethod
    def infer(cls, operands: Sequence[Tensor], arguments: Mapping[str, Any]) -> Inference:
        for other in operands[1:]:
            if other != operands[0]:
                raise ShapeError(f"operands differ: {show(operands[0])} and {show(other)}")
        return Inference((operands[0],))


@irdl_op_definition
class AddOp(ElementwiseOp):
    """Sum of two tensors of one type."""

    name = "takt.add"
    ARITY: ClassVar[tuple[int, int | None]] = (2, 2)


@irdl_op_definition
class GeluOp(ElementwiseOp):
    """Gaussian error linear unit."""

    name = "takt.gelu"


OPERATORS: tuple[type[OperatorOp], ...] = (OpaqueOp, LinearOp, AddOp, GeluOp)
"""Every operator of the language, in the order of the reference manual."""
