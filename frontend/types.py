"""Tensor types: interned, written in the source or matched against it."""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.dialects.builtin import TensorType, i8
from xdsl.ir import Attribute

from dialects.operators import ELEMENT_TYPES, Tensor, show, tensor_bytes
from frontend import ast
from frontend.evaluate import Lookup, Problem, Value, describe, evaluate, whole
from frontend.report import choices
from frontend.source import Place

MAX_DIM = 2**40
"""The largest size of one dimension."""

MAX_RANK = 16
"""The most dimensions of a tensor."""


class Types:
    """Hands out one object for each tensor type, so that types compare by identity."""

    def __init__(self) -> None:
        self._interned: dict[tuple[tuple[int, ...], Attribute], Tensor] = {}

    def tensor(self, shape: Sequence[int], element: Attribute) -> Tensor:
        """The tensor type of a shape and an element type."""
        key = (tuple(shape), element)
        found = self._interned.get(key)
        if found is None:
            found = self._interned[key] = TensorType(element, list(shape))
        return found

    def intern(self, tensor: Tensor) -> Tensor:
        """The one object equal to ``tensor``."""
        return self.tensor(tensor.get_shape(), tensor.element_type)

    def written(self, type_: ast.Type, scope: Lookup) -> Tensor:
        """The type as written, its dimensions evaluated; raises Problem or Poisoned."""
        dims = [dimension(node, scope) for node in type_.dims]
        check_rank(type_, len(dims))
        tensor = self.tensor(dims, element_type(type_.element, scope))
        check_size(tensor, type_.place)
        return tensor


def check_rank(type_: ast.Type, rank: int) -> None:
    """Refuse tensors of too many dimensions."""
    if rank > MAX_RANK:
        raise Problem(type_.place, f"a tensor has at most {MAX_RANK} dimensions, got {rank}")


def check_size(tensor: Tensor, place: Place) -> None:
    """Refuse tensors whose bytes do not fit a 64-bit integer."""
    if tensor_bytes(tensor) >= 2**63:
        raise Problem(place, f"{show(tensor)} has 2^63 bytes or more")


def dimension(node: ast.Expr, scope: Lookup) -> int:
    """The size of one dimension; raises Problem when it is not a positive integer."""
    return whole(evaluate(node, scope), node.place, "a dimension", 1, MAX_DIM)


def element_type(name: ast.Ident, scope: Lookup) -> Attribute:
    """The element type of that name, or of the constant of that name; raises Problem."""
    if name.name in ELEMENT_TYPES:
        return ELEMENT_TYPES[name.name]
    value = scope.constant(ast.Name(name.place, name.name))
    if isinstance(value, str) and value in ELEMENT_TYPES:
        return ELEMENT_TYPES[value]
    raise Problem(
        name.place,
        f"'{name.name}' is not an element type but {describe(value)}",
        choices(name.name, ELEMENT_TYPES, "element types"),
    )


def element_name(element: Attribute) -> str:
    """How the source language writes an element type."""
    return str(element)


class Matcher:
    """Matches operand types against the parameter types of a block, binding their free names."""

    def __init__(self, bound: dict[str, Value], scope: Lookup):
        self.bound = bound
        self.scope = scope
        self._from: dict[str, str] = {}

    def match(self, parameter: ast.ValueParameter, actual: Tensor, place: Place) -> None:
        """Bind or check every dimension and the element type; raises Problem located at the operand."""
        type_ = parameter.type
        if type_ is None:
            return
        check_rank(type_, len(type_.dims))
        shape = actual.get_shape()
        expected = f"'{parameter.name.name}: {written_type(type_)}'"
        if len(shape) != len(type_.dims):
            raise Problem(place, f"expected {expected} of {len(type_.dims)} dimensions, got {show(actual)}")
        for node, size in zip(type_.dims, shape, strict=True):
            if isinstance(node, ast.Name) and node.name not in self.bound:
                self.bound[node.name] = size
                self._from[node.name] = f"{parameter.name.name}"
                continue
            wanted = self.bound[node.name] if isinstance(node, ast.Name) else dimension(node, self.scope)
            if wanted != size:
                name = f"{node.name} = {describe_size(wanted)}" if isinstance(node, ast.Name) else str(wanted)
                source = self._from.get(node.name) if isinstance(node, ast.Name) else None
                origin = f" (from '{source}')" if source else ""
                raise Problem(place, f"expected {expected} with {name}{origin}, got {show(actual)}")
        self._match_element(type_, actual, place, expected)

    def _match_element(self, type_: ast.Type, actual: Tensor, place: Place, expected: str) -> None:
        name = type_.element.name
        found = element_name(actual.element_type)
        if name not in ELEMENT_TYPES and name not in self.bound:
            self.bound[name] = found
            return
        wanted = name if name in ELEMENT_TYPES else self.bound[name]
        if wanted != found:
            raise Problem(place, f"expected {expected} with elements {wanted}, got {show(actual)}")


def describe_size(value: Value) -> str:
    """A dimension for messages."""
    return str(value) if isinstance(value, int) else describe(value)


def written_type(type_: ast.Type) -> str:
    """A type as its text has it, on one line."""
    return " ".join(type_.place.source.text[type_.place.start : type_.place.end].split())


def bytes_tensor(types: Types, size: int) -> Tensor:
    """The type of an opaque result of ``size`` bytes."""
    return types.tensor((size,), i8)
