"""An operator as plain data, and how its tensors lie on several accelerators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

from dialects.nn.needs import Role

Layout = int | None
"""The dimension along which a value is cut into k equal parts, one on each accelerator; None: each holds it whole."""


@dataclass(frozen=True)
class Tensor:
    """``width`` is the bytes of one element, ``dtype`` its name."""

    shape: tuple[int, ...]
    dtype: str
    width: int

    @cached_property
    def size(self) -> int:
        """Bytes."""
        return prod(self.shape) * self.width

    def part(self, layout: Layout, k: int) -> int:
        """Bytes on each of k accelerators."""
        return self.size if layout is None else -(-self.size // k)


@dataclass(frozen=True, eq=False)
class Call:
    """One operator. Equal calls are one object, so identity is equality (see :mod:`passes.costs.reading`)."""

    kind: str
    operands: tuple[Tensor, ...]
    results: tuple[Tensor, ...]
    arguments: Mapping[str, Any]
    params: int = 0
    backward: Backward | None = None
    """Of a gradient: what it is of."""
    sequence: bool = False
    """Whether products split by columns gather rows: sequence parallelism."""

    @property
    def rows(self) -> Layout:
        """Of a result of products, the dimension of sequences, along which it may be split; None when it may not."""
        dims = len(self.results[0].shape)
        return dims - 2 if self.sequence and dims > 1 else None

    @property
    def last(self) -> int:
        """The last dimension of the first operand."""
        return len(self.operands[0].shape) - 1


@dataclass(frozen=True)
class Backward:
    """What a gradient is of: the ``forward`` call, what its own operands are there, and of which operands it is."""

    forward: Call
    roles: tuple[Role, ...]
    made: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """How an operator is shared when it has more than one accelerator; the same plan for every number of them.

    ``uses``: the layout in which it reads each operand. ``makes``: the layout in which its results
    come out, before any collective that its consumers make necessary.
    """

    uses: tuple[Layout, ...]
    makes: tuple[Layout, ...]

    @property
    def splits(self) -> bool:
        """Whether any tensor is split."""
        return any(d is not None for d in (*self.uses, *self.makes))
