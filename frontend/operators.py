"""Applying an operator of the dialect: its operands, arguments, result types and cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from xdsl.dialects.builtin import IntegerAttr, StringAttr, i64
from xdsl.ir import Attribute, SSAValue

from dialects.attributes import BlockAttr
from dialects.operators import Inference, OperatorOp, ShapeError, Tensor, tensor_bytes
from frontend import ast
from frontend.costs import WrittenCost
from frontend.evaluate import Lookup, Poisoned, Problem, describe, evaluate
from frontend.report import choices, note, suggest
from frontend.types import Types, bytes_tensor, check_size

Properties = Mapping[str, Attribute]


@dataclass(frozen=True)
class _Signature:
    arguments: Mapping[str, tuple[Any, Any, bool]]
    opaque: bool
    least: int
    most: int | None


class Operators:
    """Creates operators; what depends only on kind, operand types and arguments is worked out once."""

    def __init__(self, types: Types):
        self._types = types
        self._signatures: dict[type[OperatorOp], _Signature] = {}
        self._inferred: dict[Any, tuple[Inference, Properties]] = {}

    def signature(self, cls: type[OperatorOp]) -> _Signature:
        """The arguments and operands an operator takes."""
        found = self._signatures.get(cls)
        if found is None:
            found = self._signatures[cls] = _Signature(cls.signature(), not cls.infers(), *cls.ARITY)
        return found

    def arguments(
        self, cls: type[OperatorOp], call: ast.Call, scope: Lookup, complain: Callable[[Problem], None]
    ) -> dict[str, Any] | None:
        """Python values of the keyword arguments; None after a complaint."""
        known = self.signature(cls).arguments
        given: dict[str, Any] = {}
        seen: dict[str, ast.Ident] = {}
        good = True
        for argument in call.arguments:
            name = argument.name
            if name is None:
                continue
            try:
                given[name.name] = self._argument(cls, name, argument.value, seen, scope)
            except Problem as problem:
                complain(problem)
                good = False
            except Poisoned:
                good = False
            seen.setdefault(name.name, name)
        misnamed = any(n not in known for n in seen) or any(
            a.name is None and not isinstance(a.value, ast.Name | ast.Call) for a in call.arguments
        )
        for name, (constraint, _, required) in known.items():
            if required and name not in seen and not misnamed:
                complain(
                    Problem(
                        call.callee.place,
                        f"'{cls.kind()}' needs the argument '{name}'",
                        f"write {name} = ..., {constraint.expected()}",
                    )
                )
                good = False
        return given if good else None

    def _argument(
        self, cls: type[OperatorOp], name: ast.Ident, node: ast.Expr, seen: Mapping[str, ast.Ident], scope: Lookup
    ) -> Any:
        known = self.signature(cls).arguments
        if name.name not in known:
            hint = choices(name.name, known, "it has") if known else f"'{cls.kind()}' takes operands only"
            raise Problem(name.place, f"'{cls.kind()}' has no argument '{name.name}'", hint)
        if name.name in seen:
            first = note(seen[name.name].place, "first given here")
            raise Problem(name.place, f"argument '{name.name}' is given twice", notes=(first,))
        value = evaluate(node, scope)
        constraint = known[name.name][0]
        try:
            return constraint.decode(constraint.encode(value))
        except (ValueError, OverflowError):
            text = f"argument '{name.name}' must be {constraint.expected()}, got {describe(value)}"
            raise Problem(node.place, text, suggest(str(value), getattr(constraint, "choices", ()))) from None

    def check_arity(self, cls: type[OperatorOp], call: ast.Call, operands: int) -> None:
        """Refuse the wrong number of operands."""
        signature = self.signature(cls)
        least, most = signature.least, signature.most
        if operands >= least and (most is None or operands <= most):
            return
        if least == most:
            expected = f"{least} operand" + ("" if least == 1 else "s")
        else:
            expected = f"{least} operand{'s' * (least != 1)} or more" if most is None else f"{least} to {most} operands"
        raise Problem(call.callee.place, f"'{cls.kind()}' takes {expected}, got {operands}")

    def create(
        self,
        cls: type[OperatorOp],
        node: ast.Assign,
        operands: Sequence[SSAValue],
        arguments: Mapping[str, Any],
        cost: WrittenCost | None,
        group: str | None,
        block: BlockAttr | None,
    ) -> OperatorOp:
        """The operator of a statement; raises Problem when the shapes do not fit."""
        call = cast(ast.Call, node.value)
        if self.signature(cls).opaque:
            inference, properties = self._opaque(cls, node, arguments, cost), None
        else:
            inference, properties = self._infer(cls, call, operands, arguments)
        if len(inference.results) != len(node.targets):
            results, names = len(inference.results), len(node.targets)
            extra = node.targets[min(results, names - 1)]
            raise Problem(
                extra.place,
                f"'{cls.kind()}' gives {results} result{'s' * (results != 1)}, "
                f"but {names} name{' is' if names == 1 else 's are'} assigned",
            )
        if cost is None and properties is not None:
            if group is not None:
                properties = {**properties, "group": StringAttr(group)}
            if block is not None:
                properties = {**properties, "block": block}
            return cls.create(operands=operands, result_types=inference.results, properties=properties)
        params, attribute, backward, gradients = inference.params, None, None, None
        if cost is not None:
            params = params if cost.params is None else cost.params
            sizes = cost.outputs or tuple(tensor_bytes(t) for t in inference.results)
            attribute = cost.attribute(params, sum(sizes))
            backward, gradients = cost.backward, cost.gradients
        return cls.make(
            operands,
            arguments,
            inference.results,
            params,
            group=group,
            block=block,
            cost=attribute,
            backward=backward,
            gradients=gradients,
        )

    def _opaque(
        self, cls: type[OperatorOp], node: ast.Assign, arguments: Mapping[str, Any], cost: WrittenCost | None
    ) -> Inference:
        call = cast(ast.Call, node.value)
        if cost is None:
            raise Problem(
                call.callee.place, f"'{cls.kind()}' needs a table of times", "write time [812us, 430us, ...] after it"
            )
        sizes = cost.outputs or (0,) * len(node.targets)
        return Inference(tuple(bytes_tensor(self._types, size) for size in sizes), cost.params or 0)

    def _infer(
        self, cls: type[OperatorOp], call: ast.Call, operands: Sequence[SSAValue], arguments: Mapping[str, Any]
    ) -> tuple[Inference, Properties]:
        types = [cast(Tensor, v.type) for v in operands]
        key = (cls, *map(id, types), *sorted(arguments.items()))
        found = self._inferred.get(key)
        if found is not None:
            return found
        every = {name: arguments.get(name, default) for name, (_, default, _) in self.signature(cls).arguments.items()}
        try:
            inference = cls.infer(types, every)
        except ShapeError as error:
            raise Problem(call.callee.place, f"'{cls.kind()}': {error}") from None
        results = tuple(self._types.intern(t) for t in inference.results)
        for result in results:
            if any(d < 1 for d in result.get_shape()):
                raise Problem(call.callee.place, f"'{cls.kind()}' gives an empty result: {result}")
            check_size(result, call.callee.place)
        if inference.params >= 2**63:
            raise Problem(call.callee.place, f"'{cls.kind()}' has 2^63 bytes of parameters or more")
        properties: dict[str, Attribute] = {"params": IntegerAttr(inference.params, i64)}
        for name, (constraint, _, _) in self.signature(cls).arguments.items():
            if every[name] is not None:
                properties[name] = constraint.encode(every[name])
        found = self._inferred[key] = (Inference(results, inference.params), properties)
        return found
