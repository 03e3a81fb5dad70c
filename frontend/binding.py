"""Binding the arguments of a block call to the block's parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

from xdsl.ir import SSAValue

from dialects.operators import Tensor
from frontend import ast
from frontend.evaluate import Poisoned, Problem, Value, evaluate
from frontend.report import choices, note
from frontend.scope import Scope
from frontend.source import Place
from frontend.types import Matcher

Complain = Callable[[Problem], None]


def bind(block: ast.Block, call: ast.Call, outer: Scope, inner: Scope, complain: Complain) -> bool:
    """Fill ``inner`` with the parameters of ``block``; False after complaints.

    Constants given in the call come first, then the names that the types of the operands bind, then
    the defaults of what is left, from left to right. Raises Problem for a bad default or shape.
    """
    given, positional, good = _sort(block, call, complain)
    operands = _operands(block, call, positional, given, outer, complain)
    bound = cast("dict[str, Value]", inner.names)
    constants = {c.name.name for c in block.constants}
    for name, argument in given.items():
        if name in constants:
            try:
                bound[name] = evaluate(argument.value, outer)
            except Problem as problem:
                complain(problem)
                good = False
            except Poisoned:
                good = False
    if operands is None or not good:
        return False
    matcher = Matcher(bound, inner)
    for parameter, (operand, place) in zip(block.values, operands, strict=True):
        try:
            matcher.match(parameter, cast(Tensor, operand.type), place)
        except Problem as problem:
            complain(problem)
            good = False
    for parameter, (operand, _) in zip(block.values, operands, strict=True):
        inner.names[parameter.name.name] = operand
    return _defaults(block, call, inner, complain) and good


def _defaults(block: ast.Block, call: ast.Call, inner: Scope, complain: Complain) -> bool:
    """Give every constant that is still unknown its default; False when one has none."""
    good = True
    for constant in block.constants:
        name = constant.name.name
        if name in inner.names:
            continue
        if constant.default is not None:
            inner.names[name] = evaluate(constant.default, inner)
            continue
        message = f"'{block.name.name}' needs the argument '{name}'"
        notes = (note(constant.name.place, "declared here"),)
        complain(Problem(call.callee.place, message, f"write {name} = ...", notes))
        good = False
    return good


def _sort(
    block: ast.Block, call: ast.Call, complain: Complain
) -> tuple[dict[str, ast.Argument], list[ast.Argument], bool]:
    """Arguments given by name, those given by position, and whether all names are right."""
    known = [c.name.name for c in block.constants] + [v.name.name for v in block.values]
    given: dict[str, ast.Argument] = {}
    positional: list[ast.Argument] = []
    good = True
    for argument in call.arguments:
        name = argument.name
        if name is None:
            positional.append(argument)
        elif name.name in given:
            first = given[name.name].name
            notes = (note(first.place, "first given here"),) if first else ()
            complain(Problem(name.place, f"argument '{name.name}' is given twice", notes=notes))
            good = False
        elif name.name not in known:
            message = f"'{block.name.name}' has no argument '{name.name}'"
            complain(Problem(name.place, message, choices(name.name, known, "it has")))
            good = False
        else:
            given[name.name] = argument
    return given, positional, good


def _operands(
    block: ast.Block,
    call: ast.Call,
    positional: list[ast.Argument],
    given: Mapping[str, ast.Argument],
    outer: Scope,
    complain: Complain,
) -> list[tuple[SSAValue, Place]] | None:
    """The tensor of every value parameter and the place of its argument; None after a complaint."""
    name = block.name.name
    expected = len(block.values)
    named = [given[v.name.name] for v in block.values[len(positional) :] if v.name.name in given]
    got = len(positional) + sum(v.name.name in given for v in block.values)
    order = [*positional, *named]
    if got != expected or len(order) != expected:
        message = f"'{name}' takes {expected} operand{'s' * (expected != 1)}, got {got}"
        hint = "constants are given by name" if len(positional) > expected and block.constants else None
        complain(Problem(call.callee.place, message, hint, (note(block.name.place, "defined here"),)))
        return None
    operands: list[tuple[SSAValue, Place]] = []
    for argument in order:
        try:
            operands.append((outer.value(argument.value, f"an operand of '{name}'"), argument.value.place))
        except Problem as problem:
            complain(problem)
        except Poisoned:
            pass
    return operands if len(operands) == expected else None
