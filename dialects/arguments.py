"""The keyword arguments of operators: one constraint class per kind of value.

An operator declares ``features = prop_def(IntArg())``; from that one line come the property's
verification, its place in the assembly, and the keyword argument of the source language.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from typing_extensions import TypeVar
from xdsl.dialects.builtin import BoolAttr, DenseArrayBase, IntegerAttr, StringAttr, i64
from xdsl.ir import Attribute
from xdsl.irdl import AttrConstraint, IntConstraint
from xdsl.irdl.constraints import VerificationContext
from xdsl.utils.exceptions import VerifyException

from dialects.attributes import Ints, ints, values


class ArgumentConstraint(AttrConstraint[Any]):
    """A property that is also a keyword argument: knows its Python value and its attribute."""

    @abstractmethod
    def encode(self, value: Any) -> Attribute:
        """The attribute of a Python value; raises ValueError, saying what is expected, when it does not fit."""

    @abstractmethod
    def decode(self, attr: Attribute) -> Any:
        """The Python value of a verified attribute."""

    @abstractmethod
    def expected(self) -> str:
        """What a user may write here, for messages."""

    def mapping_type_vars(
        self, type_var_mapping: Mapping[TypeVar, AttrConstraint[Any] | IntConstraint]
    ) -> ArgumentConstraint:
        return self

    def verify(self, attr: Attribute, constraint_context: VerificationContext) -> None:
        try:
            ok = self.encode(self.decode(attr)) == attr
        except (ValueError, AttributeError, TypeError):
            ok = False
        if not ok:
            raise VerifyException(f"expected {self.expected()}, got {attr}")


_A = TypeVar("_A", bound=Attribute)


def _of(kind: type[_A], attr: Attribute) -> _A:
    """``attr``, which must be of ``kind``; TypeError otherwise (the property is not verified yet)."""
    if not isinstance(attr, kind):
        raise TypeError(f"{attr} is no {kind.__name__}")
    return attr


@dataclass(frozen=True)
class IntArg(ArgumentConstraint):
    """An integer of at least ``minimum`` (None: any 64-bit integer)."""

    minimum: int | None = 1

    def encode(self, value: Any) -> IntegerAttr[Any]:
        least = -(2**63) if self.minimum is None else self.minimum
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
            raise ValueError(self.expected())
        return IntegerAttr(value, i64)

    def decode(self, attr: Attribute) -> int:
        return cast(IntegerAttr[Any], _of(IntegerAttr, attr)).value.data

    def expected(self) -> str:
        return "an integer" if self.minimum is None else f"an integer of at least {self.minimum}"


@dataclass(frozen=True)
class BoolArg(ArgumentConstraint):
    """``true`` or ``false``."""

    def encode(self, value: Any) -> BoolAttr:
        if not isinstance(value, bool):
            raise ValueError(self.expected())
        return IntegerAttr.from_bool(value)

    def decode(self, attr: Attribute) -> bool:
        return bool(cast(IntegerAttr[Any], _of(IntegerAttr, attr)).value.data)

    def expected(self) -> str:
        return "true or false"


@dataclass(frozen=True)
class ChoiceArg(ArgumentConstraint):
    """One of a few words."""

    choices: tuple[str, ...]

    def encode(self, value: Any) -> StringAttr:
        if value not in self.choices:
            raise ValueError(self.expected())
        return StringAttr(value)

    def decode(self, attr: Attribute) -> str:
        return _of(StringAttr, attr).data

    def expected(self) -> str:
        return "one of " + ", ".join(f'"{c}"' for c in self.choices)


@dataclass(frozen=True)
class IntListArg(ArgumentConstraint):
    """A list of integers, each at least ``minimum``."""

    minimum: int = 0

    def encode(self, value: Any) -> Ints:
        if not isinstance(value, list | tuple):
            raise ValueError(self.expected())
        listed = cast(Sequence[Any], value)
        if any(isinstance(v, bool) or not isinstance(v, int) or not self.minimum <= v < 2**63 for v in listed):
            raise ValueError(self.expected())
        return ints(listed)

    def decode(self, attr: Attribute) -> tuple[int, ...]:
        return values(cast(Ints, _of(DenseArrayBase, attr)))

    def expected(self) -> str:
        return f"a list of integers of at least {self.minimum}"
