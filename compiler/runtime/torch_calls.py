"""One part of an operator on tensors, and how the parts make the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compiler.runtime.job import Operator
from compiler.runtime.torch_values import Key, Parameters, Part, share_of
from passes.programs.messages import share


@dataclass(frozen=True)
class Rule:
    """How results of several parts make the whole: added, or joined along ``dim``. Else each part is the whole.

    Joined parts share out ``units`` of ``length`` elements along ``dim``, those that go together, such as a head.
    """

    added: bool = False
    dim: int | None = None
    units: int = 0
    length: int = 0

    def sizes(self, parts: int) -> list[int]:
        """Elements along ``dim`` of each part."""
        return [(end - begin) * self.length for begin, end in (share(self.units, j, parts) for j in range(parts))]

    def part(self, whole: Tensor, part: int, parts: int) -> Tensor:
        """What one part has of a whole that is joined from all; else the whole."""
        if self.dim is None:
            return whole
        begin, end = (x * self.length for x in share(self.units, part, parts))
        return whole.narrow(self.dim, begin, end - begin)


WHOLE, ADDED = Rule(), Rule(added=True)


@dataclass(frozen=True)
class Call:
    """Part ``part`` of ``parts`` of an operator on its operands."""

    operator: Operator
    inputs: Sequence[Tensor]
    parameters: Parameters
    part: int = 0
    parts: int = 1

    def argument(self, name: str) -> Any:
        return self.operator.arguments.get(name)

    def share(self, count: int) -> slice:
        """Which of ``count`` things are this part's."""
        return slice(*share(count, self.part, self.parts))

    def parameter(
        self, role: str, shape: Sequence[int], dtype: torch.dtype, dim: int = 0, share: slice | None = None
    ) -> Tensor:
        """A parameter, of which this part has its ``share`` along ``dim``."""
        return self.parameters.get(self.operator, role, shape, dtype, dim, share if self.parts > 1 else None)

    def name(
        self, role: str, shape: Sequence[int], dtype: torch.dtype, dim: int = 0, share: slice | None = None
    ) -> tuple[Key, Part]:
        """What :meth:`parameter` gives."""
        return share_of(self.operator, role, shape, dtype, dim, share if self.parts > 1 else None)


Made = tuple[Sequence[Tensor], Rule]
"""Results of a part, and how parts make the whole."""
