"""The backward operators of a training graph: gradients of the operands (I) and of the weights (W) of an operator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, ClassVar, Self, cast

from xdsl.dialects.builtin import DictionaryAttr, FunctionType, IntAttr, StringAttr, TensorType, i8
from xdsl.ir import Attribute, SSAValue
from xdsl.irdl import irdl_attr_definition, irdl_op_definition, prop_def
from xdsl.irdl.constraints import VerificationContext
from xdsl.parser import AttrParser, Parser
from xdsl.printer import Printer
from xdsl.utils.exceptions import VerifyException

from dialects.attributes import (
    BracketedAttribute,
    Ints,
    check_integers,
    ints,
    parse_integer,
    parse_ints,
    print_ints,
    values,
)
from dialects.nn.needs import Role, roles
from dialects.operators import OPERATORS, OperatorOp, ShapeError, Tensor, check_tensor

KINDS: Mapping[str, type[OperatorOp]] = {cls.kind(): cls for cls in OPERATORS}

ACCUMULATED = TensorType(i8, (0,))
"""What a gradient of weights gives: no bytes. It is added to what lies with the parameters."""

OPTIMIZERS = ("none", "sgd", "momentum", "adam")
"""Rules of an optimizer, by what it holds for each parameter; ``none`` holds nothing, not even a master copy."""

PRECISIONS = ("mixed", "full")
"""Whether parameters of 16 bits have a master copy, and optimizers their state, in 32 bits."""


@irdl_attr_definition
class TrainingAttr(BracketedAttribute):
    """The graph is one of a training step, and what lies beside each parameter: ``#takt.training<adam, mixed>``.

    ``#takt.training<adam, mixed, asynchronous 4>``: parameters are updated every 4 micro-batches, and nobody waits for
    it; 0 where they are updated once a step.
    """

    name = "takt.training"

    optimizer: StringAttr
    precision: StringAttr
    asynchronous: IntAttr

    def __init__(self, optimizer: StringAttr, precision: StringAttr, asynchronous: IntAttr | None = None) -> None:
        super().__init__(optimizer, precision, asynchronous or IntAttr(0))

    @classmethod
    def parse_fields(cls, parser: AttrParser) -> Self:
        def word(known: Sequence[str]) -> StringAttr:
            expected = f"expected one of {', '.join(known)}"
            return StringAttr(parser.expect(lambda: parser.parse_optional_keyword_in(known), expected))

        optimizer = word(OPTIMIZERS)
        parser.parse_punctuation(",")
        precision = word(PRECISIONS)
        if parser.parse_optional_punctuation(",") is None:
            return cls(optimizer, precision)
        parser.parse_keyword("asynchronous")
        return cls(optimizer, precision, IntAttr(parse_integer(parser)))

    def print_parameters(self, printer: Printer) -> None:
        with printer.in_angle_brackets():
            every = f", asynchronous {self.asynchronous.data}" if self.asynchronous.data else ""
            printer.print_string(f"{self.optimizer.data}, {self.precision.data}{every}")

    def verify(self) -> None:
        if self.optimizer.data not in OPTIMIZERS or self.precision.data not in PRECISIONS:
            raise VerifyException(f"an optimizer is one of {OPTIMIZERS}, a precision of {PRECISIONS}")
        check_integers(asynchronous=(self.asynchronous, 0))
        if self.asynchronous.data and self.optimizer.data == "none":
            raise VerifyException("without an optimizer nothing is updated, asynchronously or not")


@irdl_attr_definition
class ForwardAttr(BracketedAttribute):
    """The operator that a gradient is of: kind, the arguments that are not default, types of operands and results.

    ``arriving`` are the results whose gradients are given, ``made`` the operands whose gradients are made.

    ```
    #takt.forward<"linear" {features = 8 : i64} (tensor<4x2xbf16>) -> tensor<4x8xbf16>, gradients [0] to [0]>
    ```
    """

    name = "takt.forward"

    kind: StringAttr
    arguments: DictionaryAttr
    types: FunctionType
    arriving: Ints
    made: Ints

    @staticmethod
    def of(op: OperatorOp, arriving: Sequence[int], made: Sequence[int]) -> ForwardAttr:
        signature, arguments = op.signature(), op.arguments()
        given = {n: signature[n][0].encode(v) for n, v in arguments.items() if v != signature[n][1]}
        types = FunctionType.from_lists(op.operand_types, op.result_types)
        return ForwardAttr(StringAttr(op.kind()), DictionaryAttr(given), types, ints(arriving), ints(made))

    @classmethod
    def parse_fields(cls, parser: AttrParser) -> Self:
        kind = StringAttr(parser.parse_str_literal())
        arguments = DictionaryAttr(parser.parse_optional_dictionary_attr_dict())
        types = parser.parse_function_type()
        parser.parse_punctuation(",")
        parser.parse_keyword("gradients")
        arriving = parse_ints(parser)
        parser.parse_keyword("to")
        return cls(kind, arguments, types, arriving, parse_ints(parser))

    def print_parameters(self, printer: Printer) -> None:
        with printer.in_angle_brackets():
            printer.print_string_literal(self.kind.data)
            printer.print_string(" ")
            if self.arguments.data:
                printer.print_attr_dict(self.arguments.data)
                printer.print_string(" ")
            printer.print_function_type(self.types.inputs.data, self.types.outputs.data)
            printer.print_string(", gradients ")
            print_ints(printer, self.arriving)
            printer.print_string(" to ")
            print_ints(printer, self.made)

    def verify(self) -> None:
        if self.kind.data not in KINDS:
            raise VerifyException(f"there is no operator '{self.kind.data}' to have a gradient")
        signature = KINDS[self.kind.data].signature()
        for name, value in self.arguments.data.items():
            if name not in signature:
                raise VerifyException(f"'{self.kind.data}' has no argument '{name}'")
            signature[name][0].verify(value, VerificationContext())
        for name, (_, default, required) in signature.items():
            if required and default is None and name not in self.arguments.data:
                raise VerifyException(f"'{self.kind.data}' needs the argument '{name}'")
        try:
            for type_ in (*self.types.inputs.data, *self.types.outputs.data):
                check_tensor(type_)
        except ShapeError as error:
            raise VerifyException(str(error)) from error
        for array, types in ((self.arriving, self.types.outputs), (self.made, self.types.inputs)):
            numbers = values(array)
            if any(not 0 <= n < len(types.data) for n in numbers) or list(numbers) != sorted(set(numbers)):
                raise VerifyException(f"gradients are listed by increasing numbers, got {list(numbers)}")

    @property
    def operands(self) -> tuple[Tensor, ...]:
        """Types of the operands of the forward operator."""
        return cast(tuple[Tensor, ...], self.types.inputs.data)

    @property
    def results(self) -> tuple[Tensor, ...]:
        """Types of its results."""
        return cast(tuple[Tensor, ...], self.types.outputs.data)

    def values_of_arguments(self) -> dict[str, Any]:
        """Python value of every argument of the forward operator."""
        given = self.arguments.data
        return {
            name: constraint.decode(given[name]) if name in given else default
            for name, (constraint, default, _) in KINDS[self.kind.data].signature().items()
        }

    def roles(self, weight: bool) -> tuple[Role, ...]:
        """What the operands of the gradient are."""
        maximum = self.values_of_arguments().get("kind") == "max"
        return roles(self.kind.data, weight, len(self.operands), values(self.arriving), maximum)

    @property
    def handed(self) -> TensorType[Attribute] | None:
        """What the input gradient hands to that of the weights: of experts the hidden layers and their gradients.

        ``[tokens * top_k, matrices * hidden]``; None for other kinds.
        """
        if self.kind.data != "experts":
            return None
        arguments, x = self.values_of_arguments(), self.operands[0]
        visits = prod(x.get_shape()[:-1]) * arguments["top_k"]
        return TensorType(x.element_type, (visits, (3 if arguments["gated"] else 2) * arguments["hidden"]))

    def type_of(self, role: Role) -> Attribute:
        """The type of an operand of a gradient."""
        if role.what == "operand":
            return self.operands[role.number]
        if role.what == "handed":
            assert self.handed is not None
            return self.handed
        return self.results[role.number]


class BackwardOp(OperatorOp, ABC):
    """Base of what the backward pass adds for one operator ``of`` the forward pass."""

    ARITY: ClassVar[tuple[int, int | None]] = (0, None)

    of = prop_def(ForwardAttr)

    def verify_(self) -> None:
        super().verify_()
        self._verify_forward()

    def _verify_forward(self) -> None:
        cls = KINDS[self.of.kind.data]
        if not cls.infers():
            return
        least, most = cls.ARITY
        if not least <= len(self.of.operands) <= (most or len(self.of.operands)):
            raise VerifyException(f"'{cls.kind()}' does not take {len(self.of.operands)} operands")
        try:
            arguments = self.of.values_of_arguments()
            found = cls.infer(self.of.operands, arguments).results
        except (ShapeError, TypeError) as error:
            raise VerifyException(f"gradient of '{cls.kind()}': {error}") from error
        if found != self.of.results:
            raise VerifyException(f"'{cls.kind()}' gives {_listed(found)}, not {_listed(self.of.results)}")

    def print_own(self, printer: Printer) -> None:
        printer.print_string(" of ")
        self.of.print_parameters(printer)

    @classmethod
    def parse_own(cls, parser: Parser) -> dict[str, Attribute]:
        parser.parse_keyword("of")
        return {"of": ForwardAttr.parse_body(parser)}


class GradientOp(BackwardOp, ABC):
    """Base of both: operands are the gradients that arrive, then the values of the forward pass that it needs."""

    WEIGHT: ClassVar[bool]

    @classmethod
    @abstractmethod
    def types_of(cls, of: ForwardAttr) -> tuple[Attribute, ...]:
        """Types of the results."""

    def verify_(self) -> None:
        super().verify_()
        expected = tuple(self.of.type_of(role) for role in self.of.roles(self.WEIGHT))
        if (found := tuple(self.operand_types)) != expected:
            raise VerifyException(f"'{self.kind()}' reads {_listed(expected)}, got {_listed(found)}")
        if (found := tuple(self.result_types)) != self.types_of(self.of):
            raise VerifyException(f"'{self.kind()}' gives {_listed(self.types_of(self.of))}, got {_listed(found)}")


@irdl_op_definition
class InputGradientOp(GradientOp):
    """Gradients of the operands of an operator (I), in the types of these operands.

    ```
    %h.I = takt.input_gradient(%y.I) of <"linear" {features = 8 : i64} (tensor<4x2xbf16>) -> tensor<4x8xbf16>,
             gradients [0] to [0]> params 32 group "h" : (tensor<4x8xbf16>) -> tensor<4x2xbf16>
    ```
    """

    name = "takt.input_gradient"
    WEIGHT: ClassVar[bool] = False

    @classmethod
    def types_of(cls, of: ForwardAttr) -> tuple[Attribute, ...]:
        made = tuple(of.operands[i] for i in values(of.made))
        return made if of.handed is None else (*made, of.handed)


@irdl_op_definition
class WeightGradientOp(GradientOp):
    """Gradient of the parameters of an operator (W), added to what lies with them; its result has no bytes.

    ```
    %h.W = takt.weight_gradient(%y.I, %x) of <"linear" {features = 8 : i64} (tensor<4x2xbf16>) -> tensor<4x8xbf16>,
             gradients [0] to []> params 32 group "h" : (tensor<4x8xbf16>, tensor<4x2xbf16>) -> tensor<0xi8>
    ```
    """

    name = "takt.weight_gradient"
    WEIGHT: ClassVar[bool] = True

    @classmethod
    def types_of(cls, of: ForwardAttr) -> tuple[Attribute, ...]:
        return (ACCUMULATED,)


@irdl_op_definition
class RecomputeOp(BackwardOp):
    """A forward operator once more, in the backward pass, so that its results need not be kept until then.

    Operands are those of the forward operator, then gradients that it awaits: they are not read, but before they
    arrive the results would only lie about.

    ```
    %h.R = takt.recompute(%x, %z.I) of <"linear" {features = 8 : i64} (tensor<4x2xbf16>) -> tensor<4x8xbf16>,
             gradients [] to []> params 32 group "h" : (tensor<4x2xbf16>, tensor<4x8xbf16>) -> tensor<4x8xbf16>
    ```
    """

    name = "takt.recompute"

    @property
    def computed(self) -> Sequence[SSAValue]:
        """The operands of the forward operator."""
        return self.inputs[: len(self.of.operands)]

    @property
    def awaited(self) -> Sequence[SSAValue]:
        """The gradients that have to arrive before."""
        return self.inputs[len(self.of.operands) :]

    def verify_(self) -> None:
        super().verify_()
        if values(self.of.arriving) or values(self.of.made):
            raise VerifyException(f"'{self.kind()}' makes no gradients")
        if (found := tuple(v.type for v in self.computed)) != self.of.operands:
            raise VerifyException(f"'{self.kind()}' reads {_listed(self.of.operands)} first, got {_listed(found)}")
        if (found := tuple(self.result_types)) != self.of.results:
            raise VerifyException(f"'{self.kind()}' gives {_listed(self.of.results)}, got {_listed(found)}")


@irdl_op_definition
class OptimizerStepOp(OperatorOp):
    """The step of the optimizer for the parameters of a group, once for all micro-batches of a step.

    It reads the accumulated gradient of its own parameters, then those of their copies on other accelerators, with
    which it is summed before. :meth:`GraphOp.operators` leaves it out: it is no part of a micro-batch. Its slot has
    one start, in a step alone.

    ```
    %h.step = takt.optimizer_step(%h.W) params 32 group "h" cost <[1, 2] time [9, 5]> : (tensor<0xi8>) -> tensor<0xi8>
    ```
    """

    name = "takt.optimizer_step"
    ARITY: ClassVar[tuple[int, int | None]] = (1, None)

    def verify_(self) -> None:
        super().verify_()
        for type_ in (*self.operand_types, *self.result_types):
            if type_ != ACCUMULATED:
                raise VerifyException(f"'{self.kind()}' reads and gives {ACCUMULATED}, got {type_}")


GRADIENTS: tuple[type[BackwardOp], ...] = (InputGradientOp, WeightGradientOp, RecomputeOp)
"""The operators that only ``expand-training`` and ``recompute-activations`` write."""


def _listed(types: Sequence[Attribute]) -> str:
    return "(" + ", ".join(str(t) for t in types) + ")"
