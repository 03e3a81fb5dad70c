"""Constants and their arithmetic: exact integers, fractions, quantities, texts, truths and lists."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any, Protocol, TypeGuard, cast

from dialects.diagnostics import Diagnostic
from frontend import ast
from frontend.report import suggest
from frontend.source import Place
from frontend.units import EXAMPLES, UNITS, Quantity, unknown_unit

Value = int | Fraction | bool | str | Quantity | list[Any]

LIMIT = 10**30
"""Numbers stay below this in size, and so do the denominators of fractions."""

FUNCTIONS = ("min", "max", "div")
"""Functions of constants."""


class Problem(Exception):
    """Something wrong at one place; becomes a diagnostic."""

    def __init__(self, place: Place, message: str, hint: str | None = None, notes: tuple[Diagnostic, ...] = ()):
        super().__init__(message)
        self.place, self.message, self.hint, self.notes = place, message, hint, notes


class Poisoned(Exception):
    """The value depends on something already reported: say nothing more."""


class Lookup(Protocol):
    """What an expression may name."""

    def constant(self, name: ast.Name) -> Value:
        """The constant of that name; raises Problem or Poisoned."""
        ...


def evaluate(node: ast.Expr, scope: Lookup) -> Value:
    """The value of an expression; raises Problem or Poisoned."""
    match node:
        case ast.Number() | ast.Text() | ast.Truth():
            return node.value
        case ast.Name():
            return scope.constant(node)
        case ast.Measure():
            return _measure(node)
        case ast.Items():
            return [evaluate(item, scope) for item in node.items]
        case ast.Negate():
            value = evaluate(node.operand, scope)
            if isinstance(value, Quantity):
                return Quantity(value.dimension, -value.amount)
            if is_number(value):
                return -value
            raise Problem(node.place, f"'-' needs a number, got {describe(value)}")
        case ast.Binary():
            return _binary(node, evaluate(node.left, scope), evaluate(node.right, scope))
        case ast.Call():
            return _function(node, scope)


def is_number(value: object) -> TypeGuard[int | Fraction]:
    """Whether a value is a plain number; true and false are not."""
    return isinstance(value, int | Fraction) and not isinstance(value, bool)


def describe(value: Any) -> str:
    """A value for messages: ``the number 5``."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'the text "{value}"'
    if isinstance(value, Quantity):
        return f"the {value.dimension} {value}"
    if isinstance(value, list):
        return f"a list of {len(cast('list[Any]', value))}"
    return f"the number {show_number(value)}"


def show_number(value: int | Fraction) -> str:
    """A number for messages, shortened where it is long."""
    if isinstance(value, int):
        return str(value) if abs(value) < 10**20 else f"{value:.3e}"
    return f"{float(value):g}"


def _measure(node: ast.Measure) -> Value:
    known = UNITS.get(node.unit.name)
    if known is None:
        raise Problem(node.unit.place, *unknown_unit(node.unit.name))
    return Quantity(known[0], _tidy(node.place, node.value * known[1]))


def _tidy(place: Place, value: int | Fraction) -> Any:
    """Integers as integers; refuse what grows out of all use."""
    if isinstance(value, Fraction):
        if value.denominator == 1:
            value = value.numerator
        elif value.denominator > LIMIT:
            raise Problem(place, "this number has too many decimals to be exact")
    if abs(value) > LIMIT:
        raise Problem(place, f"this number is larger than 10^{len(str(LIMIT)) - 1}")
    return value


def _divide(node: ast.Binary, left: int | Fraction, right: int | Fraction) -> int | Fraction:
    if right == 0:
        raise Problem(node.right.place, "division by zero")
    result = Fraction(left) / Fraction(right)
    if isinstance(left, int) and isinstance(right, int) and result.denominator != 1:
        raise Problem(
            node.place,
            f"{show_number(left)} / {show_number(right)} is not a whole number",
            f"div({show_number(left)}, {show_number(right)}) rounds down",
        )
    return result


def _remainder(node: ast.Binary, left: int | Fraction, right: int | Fraction) -> int | Fraction:
    if right == 0:
        raise Problem(node.right.place, "division by zero")
    return left % right


_ARITHMETIC: dict[str, Callable[[ast.Binary, Any, Any], int | Fraction]] = {
    "+": lambda _, a, b: a + b,
    "-": lambda _, a, b: a - b,
    "*": lambda _, a, b: a * b,
    "/": _divide,
    "%": _remainder,
}


def _binary(node: ast.Binary, left: Value, right: Value) -> Value:
    operator = node.operator
    if is_number(left) and is_number(right):
        return _tidy(node.place, _ARITHMETIC[operator](node, left, right))
    if isinstance(left, Quantity) and isinstance(right, Quantity) and operator in "+-/%":
        if left.dimension != right.dimension:
            raise Problem(node.place, f"'{operator}' of a {left.dimension} and a {right.dimension}: {left} and {right}")
        if operator == "/":
            if right.amount == 0:
                raise Problem(node.right.place, "division by zero")
            return _tidy(node.place, Fraction(left.amount) / Fraction(right.amount))
        return Quantity(left.dimension, _tidy(node.place, _ARITHMETIC[operator](node, left.amount, right.amount)))
    if isinstance(left, Quantity) and is_number(right) and operator in "*/":
        amount = left.amount * right if operator == "*" else _ratio(node, left.amount, right)
        return Quantity(left.dimension, _tidy(node.place, amount))
    if is_number(left) and isinstance(right, Quantity) and operator == "*":
        return Quantity(right.dimension, _tidy(node.place, left * right.amount))
    if isinstance(left, list) and isinstance(right, list) and operator == "+":
        if len(left) + len(right) > 10**5:
            raise Problem(node.place, "this list is longer than 100000")
        return [*left, *right]
    raise Problem(node.place, f"'{operator}' cannot combine {describe(left)} and {describe(right)}")


def _ratio(node: ast.Binary, left: Any, right: Any) -> Fraction:
    if right == 0:
        raise Problem(node.right.place, "division by zero")
    return Fraction(left) / Fraction(right)


def _function(node: ast.Call, scope: Lookup) -> Value:
    name = node.callee.name
    if name not in FUNCTIONS:
        raise Problem(
            node.callee.place,
            f"'{name}' is not a function of constants",
            suggest(name, FUNCTIONS) or f"give the result of '{name}' a name of its own: h = {name}(...)",
        )
    for argument in node.arguments:
        if argument.name is not None:
            raise Problem(argument.name.place, f"'{name}' has no named arguments")
    values = [evaluate(a.value, scope) for a in node.arguments]
    if name == "div":
        return _div(node, values)
    if not values:
        raise Problem(node.place, f"'{name}' needs at least one argument")
    dimensions = {v.dimension if isinstance(v, Quantity) else "number" if is_number(v) else "" for v in values}
    if len(dimensions) != 1 or "" in dimensions:
        raise Problem(node.place, f"'{name}' needs numbers, or quantities of one dimension")
    pick = min if name == "min" else max
    return pick(values, key=_magnitude)


def _magnitude(value: Value) -> Any:
    return value.amount if isinstance(value, Quantity) else value


def _div(node: ast.Call, values: list[Value]) -> Value:
    if len(values) != 2:
        raise Problem(node.place, f"'div' takes 2 arguments, got {len(values)}")
    left, right = values
    if not is_number(left) or not is_number(right):
        raise Problem(node.place, f"'div' needs two numbers, got {describe(left)} and {describe(right)}")
    if right == 0:
        raise Problem(node.arguments[1].value.place, "division by zero")
    return left // right


# --- values of a wanted kind -----------------------------------------------------------------


def whole(value: Value, place: Place, what: str, least: int, most: int = 2**63 - 1) -> int:
    """``value`` as an integer in range; raises Problem that says what ``what`` must be."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise Problem(place, f"{what} must be a whole number, got {describe(value)}")
    if value < least:
        raise Problem(place, f"{what} must be at least {least}, got {show_number(value)}")
    if value > most:
        raise Problem(place, f"{what} must be at most {most}, got {show_number(value)}")
    return value


_BASE = {"time": "nanoseconds", "size": "bytes", "bandwidth": "bytes per second", "work": "operations"}


def amount(value: Value, place: Place, what: str, dimension: str, least: int = 0) -> int:
    """``value`` as a whole amount of ``dimension`` in its base unit; raises Problem."""
    if not isinstance(value, Quantity) or value.dimension != dimension:
        wanted = f"{'an' if dimension[0] in 'aeiou' else 'a'} {dimension}"
        expected = f"expected {wanted}" if what == wanted else f"{what} must be {wanted}"
        hint = "a number needs a unit" if is_number(value) else None
        raise Problem(place, f"{expected} such as {EXAMPLES[dimension]}, got {describe(value)}", hint)
    if not isinstance(value.amount, int):
        base = _BASE.get(dimension, "operations per second")
        raise Problem(place, f"{what} must be a whole number of {base}, got {value}")
    if value.amount < least:
        word = "must not be negative" if least == 0 else "must be positive"
        raise Problem(place, f"{what} {word}, got {value}")
    if value.amount >= 2**63:
        raise Problem(place, f"{what} is too large: {value}")
    return value.amount


def fraction(value: Value, place: Place, what: str) -> float:
    """``value`` as a fraction in (0, 1]; raises Problem."""
    if not is_number(value) or not 0 < value <= 1:
        raise Problem(place, f"{what} must be a number above 0 and at most 1, got {describe(value)}")
    return float(value)
