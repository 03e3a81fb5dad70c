"""Valid inequalities over classes of operations: what all pieces together may take of the accelerators.

An operation of class ``c`` on ``k`` accelerators is ``k`` *pieces* on ``k`` different accelerators. Give each
piece a weight ``w_ck ≥ 0`` such that pieces which meet on one accelerator never weigh more than ``most``. Then
for the number ``x_ck`` of operations of each class that run at each allotment::

    Σ k·w_ck·x_ck ≤ P·most

holds in every schedule. All numbers are integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from passes.scheduling.dual import Measure
from passes.scheduling.elementary import OperationClass

LARGEST = 10**12
"""Weights up to this are kept exactly; larger ones are scaled down, rounded so that the inequality stays valid."""


@dataclass(frozen=True)
class Row:
    """Weight of a piece of each class at each of its columns, and the most that fits on an accelerator."""

    name: str
    weights: tuple[tuple[int, ...], ...]
    most: int

    def use(self, classes: Sequence[OperationClass], counts: Sequence[Sequence[int]]) -> int:
        """The left side of the inequality for ``counts[c][j]`` operations of class ``c`` at its column ``j``."""
        return sum(
            column[0] * weight * count
            for each, weights, taken in zip(classes, self.weights, counts, strict=True)
            for column, weight, count in zip(each.columns, weights, taken, strict=True)
        )

    def excludes(self, classes: Sequence[OperationClass], accelerators: int) -> bool:
        """Whether the inequality fails even with every operation at its lightest allotment."""
        least = sum(
            each.count * min(column[0] * weight for column, weight in zip(each.columns, weights, strict=True))
            for each, weights in zip(classes, self.weights, strict=True)
        )
        return least > accelerators * self.most


def meeting(classes: Sequence[OperationClass], period: int) -> list[OperationClass] | None:
    """The classes with only those columns that take at most ``period``; None when a class has none."""
    found = [OperationClass(tuple(c for c in each.columns if c[1] <= period), each.count) for each in classes]
    return found if all(each.columns for each in found) else None


def measure_row(classes: Sequence[OperationClass], measure: Measure) -> Row:
    """The row of a dual feasible function; all weights lie in ``[0, most]``."""
    weights = [[measure.numerator(c) for c in each.columns] for each in classes]
    if measure.denominator > LARGEST:
        weights = [[w * LARGEST // measure.denominator for w in row] for row in weights]
        return Row(measure.name, tuple(map(tuple, weights)), LARGEST)
    return Row(measure.name, tuple(map(tuple, weights)), measure.denominator)
