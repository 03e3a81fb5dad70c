"""The syntax tree of a takt file: plain data, each node with its place in the text."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from frontend.source import Place, Source


@dataclass(frozen=True, slots=True)
class Ident:
    """A name as written at one place."""

    name: str
    place: Place


# --- expressions -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Number:
    """An integer or decimal literal; decimals are exact."""

    place: Place
    value: int | Fraction


@dataclass(frozen=True, slots=True)
class Measure:
    """A literal with a unit, ``80 GiB``; the unit may turn out to be unknown."""

    place: Place
    value: int | Fraction
    unit: Ident


@dataclass(frozen=True, slots=True)
class Text:
    """A string literal."""

    place: Place
    value: str


@dataclass(frozen=True, slots=True)
class Truth:
    """``true`` or ``false``."""

    place: Place
    value: bool


@dataclass(frozen=True, slots=True)
class Name:
    """A use of a constant or a value."""

    place: Place
    name: str


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a call; ``name`` is None for a positional one."""

    name: Ident | None
    value: Expr


@dataclass(frozen=True, slots=True)
class Call:
    """An application of an operator, a block, or a function of constants."""

    place: Place
    callee: Ident
    arguments: tuple[Argument, ...]


@dataclass(frozen=True, slots=True)
class Negate:
    """``-x``"""

    place: Place
    operand: Expr


@dataclass(frozen=True, slots=True)
class Binary:
    """``x + y`` and the other arithmetic."""

    place: Place
    operator: str
    left: Expr
    right: Expr


@dataclass(frozen=True, slots=True)
class Items:
    """A list, ``[1, 2]``."""

    place: Place
    items: tuple[Expr, ...]


Expr = Number | Measure | Text | Truth | Name | Call | Negate | Binary | Items


@dataclass(frozen=True, slots=True)
class Table:
    """A sparse table by allotment, ``{1: 812us, 4: 251us}``."""

    place: Place
    entries: tuple[tuple[Expr, Expr], ...]


@dataclass(frozen=True, slots=True)
class Type:
    """``tensor<b x s x d, bf16>``"""

    place: Place
    dims: tuple[Expr, ...]
    element: Ident


# --- statements ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Const:
    """``const n = 4``"""

    place: Place
    name: Ident
    value: Expr


@dataclass(frozen=True, slots=True)
class Param:
    """``param layers = 12``: a constant that the command line may replace."""

    place: Place
    name: Ident
    default: Expr | None


@dataclass(frozen=True, slots=True)
class Input:
    """``input tokens: tensor<1 x 2048, i32>``"""

    place: Place
    name: Ident
    type: Type


@dataclass(frozen=True, slots=True)
class Output:
    """``output logits, loss``"""

    place: Place
    names: tuple[Ident, ...]


@dataclass(frozen=True, slots=True)
class State:
    """``state cache: tensor<8 x 1024, bf16> distance 2``; the distance is 1 when left out."""

    place: Place
    name: Ident
    type: Type
    distance: Expr | None


@dataclass(frozen=True, slots=True)
class Next:
    """``next cache = appended``"""

    place: Place
    name: Ident
    value: Expr


@dataclass(frozen=True, slots=True)
class Clause:
    """A part of a written cost, such as ``time``, ``params`` or ``backward``, or ``group``, and its value."""

    place: Place
    kind: str
    value: Expr | Table


@dataclass(frozen=True, slots=True)
class Assign:
    """``p, q = two(x) time [...]``"""

    place: Place
    targets: tuple[Ident, ...]
    value: Expr
    clauses: tuple[Clause, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """``repeat 12 as i carry x { ... }``"""

    place: Place
    count: Expr
    index: Ident | None
    carried: tuple[Ident, ...]
    body: tuple[Statement, ...]


Statement = Const | Param | Input | Output | State | Next | Assign | Repeat


# --- declarations ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Import:
    """``import "takt/transformer.takt"``"""

    place: Place
    path: Text


@dataclass(frozen=True, slots=True)
class Field:
    """``memory = 80 GiB``; ``element`` is set for ``peak bf16 = ...``, ``model`` for ``accelerators = 64 of a100``."""

    place: Place
    name: Ident
    value: Expr
    element: Ident | None = None
    model: Ident | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """``measured all_reduce on 8 {64 KiB: 30us, 1 MiB: 55us}``"""

    place: Place
    pattern: Ident
    group: Expr
    table: Table


@dataclass(frozen=True, slots=True)
class Link:
    """``link node = 8 { ... }``"""

    place: Place
    name: Ident
    size: Expr | None
    fields: tuple[Field, ...]
    measured: tuple[Measured, ...]


@dataclass(frozen=True, slots=True)
class Accelerator:
    """The rates of one accelerator."""

    place: Place
    name: Ident
    fields: tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class Platform:
    """Accelerators and the links between them."""

    place: Place
    name: Ident
    fields: tuple[Field, ...]
    links: tuple[Link, ...]


@dataclass(frozen=True, slots=True)
class ValueParameter:
    """A tensor that a block takes; the type is optional."""

    place: Place
    name: Ident
    type: Type | None


@dataclass(frozen=True, slots=True)
class ConstantParameter:
    """A constant that a block takes."""

    place: Place
    name: Ident
    default: Expr | None


@dataclass(frozen=True, slots=True)
class Block:
    """A reusable part of a model."""

    place: Place
    name: Ident
    values: tuple[ValueParameter, ...]
    constants: tuple[ConstantParameter, ...]
    results: tuple[Ident, ...]
    body: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class Model:
    """A whole model."""

    place: Place
    name: Ident
    body: tuple[Statement, ...]


Declaration = Import | Const | Accelerator | Platform | Block | Model


@dataclass(frozen=True, slots=True)
class File:
    """A parsed file."""

    source: Source
    declarations: tuple[Declaration, ...]
