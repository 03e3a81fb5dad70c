"""From the reductions of the grammar to the syntax tree of :mod:`frontend.ast`."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any, cast

from lark import Token, Tree
from lark.tree import Meta

from frontend import ast
from frontend.report import Reporter
from frontend.source import Place, Source

MAX_DEPTH = 100
"""Levels of nested arithmetic."""

MAX_DIGITS = 30
"""Digits of a number before and after the point."""

_NUMBER = re.compile(r"([0-9][0-9_]*)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]+)(?![0-9A-Za-z_]))?")


class Builder:
    """One method for each rule of the grammar, called with the rule's extent and the results of its parts."""

    def __init__(self, source: Source, reporter: Reporter) -> None:
        self.source, self.reporter = source, reporter
        self._too_deep = False
        self._depths: dict[int, tuple[int, Any]] = {}
        """Node identity → depth and the node, held so that its identity is not used again."""

    def build(self, tree: Tree[Token]) -> ast.File:
        """The syntax tree of a parsed text. A loop, not a recursion, so that depth costs nothing."""
        order: list[Any] = []
        pending: list[Any] = [tree]
        while pending:
            node = pending.pop()
            order.append(node)
            if isinstance(node, Tree):
                pending += cast("Tree[Token]", node).children
        built: list[Any] = []
        for node in reversed(order):
            if isinstance(node, Tree):
                rule = cast("Tree[Token]", node)
                first = len(built) - len(rule.children)
                parts = built[first:]
                del built[first:]
                built.append(getattr(self, rule.data)(rule.meta, *parts))
            elif isinstance(node, Token) and node.type == "MEASURE":
                built.append(self._measure(node))
            elif isinstance(node, Token) and node.type == "NUMBER":
                built.append(ast.Number(self._at(node), self._value(node)[0]))
            else:
                built.append(node)
        return built[0]

    def _place(self, meta: Meta) -> Place:
        if meta.empty:
            return Place(self.source, 0, 0)
        return Place(self.source, meta.start_pos, meta.end_pos)

    def _at(self, token: Token) -> Place:
        start = token.start_pos or 0
        return Place(self.source, start, token.end_pos or start)

    def _ident(self, token: Token) -> ast.Ident:
        return ast.Ident(str(token), self._at(token))

    def _deep(self, node: Any, *children: Any) -> Any:
        """Keep track of how deep arithmetic nests; too deep a part is reported and cut off."""
        depth = 1 + max((self._depths[id(c)][0] for c in children if id(c) in self._depths), default=0)
        if depth > MAX_DEPTH:
            if not self._too_deep:
                self.reporter.error(node.place, f"arithmetic nests deeper than {MAX_DEPTH} levels")
            self._too_deep = True
            return ast.Number(node.place, 1)
        self._depths[id(node)] = (depth, node)
        return node

    # --- declarations --------------------------------------------------------------------------

    def start(self, meta: Meta, *declarations: Any) -> ast.File:
        return ast.File(self.source, declarations)

    def import_(self, meta: Meta, path: Token) -> ast.Import:
        return ast.Import(self._place(meta), self._text(path))

    def const(self, meta: Meta, name: Token, value: Any) -> ast.Const:
        return ast.Const(self._place(meta), self._ident(name), value)

    def accelerator(self, meta: Meta, name: Token, *fields: ast.Field) -> ast.Accelerator:
        return ast.Accelerator(self._place(meta), self._ident(name), fields)

    def platform(self, meta: Meta, name: Token, *parts: ast.Field | ast.Link) -> ast.Platform:
        fields = tuple(p for p in parts if isinstance(p, ast.Field))
        links = tuple(p for p in parts if isinstance(p, ast.Link))
        return ast.Platform(self._place(meta), self._ident(name), fields, links)

    def field(self, meta: Meta, name: Token, value: Any) -> ast.Field:
        return ast.Field(self._place(meta), self._ident(name), value)

    def peak(self, meta: Meta, element: Token, value: Any) -> ast.Field:
        name = ast.Ident("peak", self._place(meta))
        return ast.Field(self._place(meta), name, value, element=self._ident(element))

    def machine(self, meta: Meta, name: Token, value: Any, model: Token) -> ast.Field:
        return ast.Field(self._place(meta), self._ident(name), value, model=self._ident(model))

    def link(self, meta: Meta, name: Token, size: Any, *parts: ast.Field | ast.Measured) -> ast.Link:
        fields = tuple(p for p in parts if isinstance(p, ast.Field))
        measured = tuple(p for p in parts if isinstance(p, ast.Measured))
        return ast.Link(self._place(meta), self._ident(name), size, fields, measured)

    def measured(self, meta: Meta, pattern: Token, group: Any, table: ast.Table) -> ast.Measured:
        return ast.Measured(self._place(meta), self._ident(pattern), group, table)

    def block(
        self, meta: Meta, name: Token, values: Any, constants: Any, results: tuple[ast.Ident, ...], body: Any
    ) -> ast.Block:
        return ast.Block(self._place(meta), self._ident(name), values, constants or (), results, body)

    def value_parameters(self, meta: Meta, *parameters: Any) -> tuple[ast.ValueParameter, ...]:
        return tuple(p for p in parameters if p is not None)

    def constant_parameters(self, meta: Meta, *parameters: Any) -> tuple[ast.ConstantParameter, ...]:
        return tuple(p for p in parameters if p is not None)

    def value_parameter(self, meta: Meta, name: Token, type_: ast.Type | None) -> ast.ValueParameter:
        return ast.ValueParameter(self._place(meta), self._ident(name), type_)

    def constant_parameter(self, meta: Meta, name: Token, default: Any) -> ast.ConstantParameter:
        return ast.ConstantParameter(self._place(meta), self._ident(name), default)

    def results(self, meta: Meta, *names: Token) -> tuple[ast.Ident, ...]:
        return tuple(self._ident(n) for n in names)

    def model(self, meta: Meta, name: Token, body: Any) -> ast.Model:
        return ast.Model(self._place(meta), self._ident(name), body)

    # --- statements ----------------------------------------------------------------------------

    def body(self, meta: Meta, *statements: Any) -> tuple[Any, ...]:
        return statements

    def param(self, meta: Meta, name: Token, default: Any) -> ast.Param:
        return ast.Param(self._place(meta), self._ident(name), default)

    def input(self, meta: Meta, name: Token, type_: ast.Type) -> ast.Input:
        return ast.Input(self._place(meta), self._ident(name), type_)

    def output(self, meta: Meta, names: tuple[ast.Ident, ...]) -> ast.Output:
        return ast.Output(self._place(meta), names)

    def state(self, meta: Meta, name: Token, type_: ast.Type, distance: Any) -> ast.State:
        return ast.State(self._place(meta), self._ident(name), type_, distance)

    def next(self, meta: Meta, name: Token, value: Any) -> ast.Next:
        return ast.Next(self._place(meta), self._ident(name), value)

    def repeat(self, meta: Meta, count: Any, index: Token | None, carried: Any, body: Any) -> ast.Repeat:
        return ast.Repeat(self._place(meta), count, self._ident(index) if index else None, carried or (), body)

    def assign(self, meta: Meta, targets: tuple[ast.Ident, ...], value: Any, *clauses: ast.Clause) -> ast.Assign:
        return ast.Assign(self._place(meta), targets, value, clauses)

    def names(self, meta: Meta, *names: Token) -> tuple[ast.Ident, ...]:
        return tuple(self._ident(n) for n in names)

    def clause(self, meta: Meta, kind: Token, value: Any) -> ast.Clause:
        return ast.Clause(self._at(kind), str(kind), value)

    def table(self, meta: Meta, *entries: Any) -> ast.Table:
        return ast.Table(self._place(meta), tuple(e for e in entries if e is not None))

    def entry(self, meta: Meta, key: Any, value: Any) -> tuple[Any, Any]:
        return key, value

    def scalar(self, meta: Meta, element: Token) -> ast.Type:
        return ast.Type(self._place(meta), (), self._ident(element))

    def tensor(self, meta: Meta, *parts: Any) -> ast.Type:
        return ast.Type(self._place(meta), parts[:-1], self._ident(parts[-1]))

    # --- expressions ---------------------------------------------------------------------------

    def _measure(self, token: Token) -> ast.Measure:
        value, length = self._value(token)
        rest = token[length:]
        unit = rest.lstrip(" \t")
        start = self._at(token).end - len(unit)
        ident = ast.Ident(unit, Place(self.source, start, start + len(unit)))
        return ast.Measure(self._at(token), value, ident)

    def _value(self, token: Token) -> tuple[int | Fraction, int]:
        """The number that a token begins with, and its length in characters."""
        digits = len(token) - len(token.lstrip("0123456789"))
        if digits <= MAX_DIGITS and (digits == len(token) or token[digits] in " \tnumsKMGTPBF"):
            return int(token[:digits]), digits
        match = _NUMBER.match(token)
        assert match is not None
        whole, decimals, exponent = (match[1].replace("_", ""), match[2] or "", match[3] or "0")
        place = Place(self.source, self._at(token).start, self._at(token).start + match.end())
        if len(whole) + len(decimals) > MAX_DIGITS:
            self.reporter.error(place, f"a number has at most {MAX_DIGITS} digits")
            return 1, match.end()
        if len(exponent) > 3 or abs(int(exponent)) > MAX_DIGITS:
            self.reporter.error(place, f"an exponent lies between -{MAX_DIGITS} and {MAX_DIGITS}")
            return 1, match.end()
        value = Fraction(int(whole + decimals)) * Fraction(10) ** (int(exponent) - len(decimals))
        return (int(value) if value.denominator == 1 else value), match.end()

    def _text(self, token: Token) -> ast.Text:
        return ast.Text(self._at(token), str(token)[1:-1])

    def text(self, meta: Meta, token: Token) -> ast.Text:
        return self._text(token)

    def truth(self, meta: Meta, token: Token) -> ast.Truth:
        return ast.Truth(self._at(token), token == "true")

    def name(self, meta: Meta, token: Token) -> ast.Name:
        return ast.Name(self._at(token), str(token))

    def call(self, meta: Meta, callee: Token, *arguments: Any) -> ast.Call:
        given = tuple(a for a in arguments if a is not None)
        node = ast.Call(self._place(meta), self._ident(callee), given)
        return self._deep(node, *(a.value for a in given))

    def argument(self, meta: Meta, name: Token | None, value: Any) -> ast.Argument:
        return ast.Argument(self._ident(name) if name else None, value)

    def group(self, meta: Meta, inner: Any) -> Any:
        return inner

    def items(self, meta: Meta, *items: Any) -> ast.Items:
        given = tuple(i for i in items if i is not None)
        return self._deep(ast.Items(self._place(meta), given), *given)

    def negate(self, meta: Meta, sign: Token, operand: Any) -> Any:
        return self._deep(ast.Negate(self._place(meta), operand), operand)

    def chain(self, meta: Meta, *parts: Any) -> Any:
        """Operands and operators in turn: products first, then sums, each from the left."""
        operands, signs = [parts[0]], [""]
        for sign, operand in zip(parts[1::2], parts[2::2], strict=True):
            if sign in "*/%":
                operands[-1] = self._binary(operands[-1], str(sign), operand)
            else:
                operands.append(operand)
                signs.append(str(sign))
        result = operands[0]
        for sign, operand in zip(signs[1:], operands[1:], strict=True):
            result = self._binary(result, sign, operand)
        return result

    def _binary(self, left: Any, operator: str, right: Any) -> Any:
        place = Place(self.source, left.place.start, right.place.end)
        return self._deep(ast.Binary(place, operator, left, right), left, right)
