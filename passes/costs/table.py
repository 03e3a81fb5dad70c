"""The moldable cost table of one operator."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from passes.costs.collectives import Collective, collective_ns
from passes.costs.kinds import rule_of
from passes.costs.layout import Placed
from passes.costs.machine import Machine


@dataclass(frozen=True)
class Row:
    """One allotment. ``kernel`` and ``communication`` in ns; sizes in bytes on each accelerator."""

    kernel: float
    communication: float
    params: int
    output: int
    workspace: int

    @property
    def time(self) -> int:
        """ns, rounded to the nearest integer."""
        return round(self.kernel + self.communication)


def candidates(machine: Machine, limit: int, every: bool) -> list[int]:
    """The allotments to consider, at most ``limit`` and the platform's size.

    On a platform of groups: the divisors of the group's size, then its multiples, so that sets tile
    the groups. On a platform of one group, or with ``every``: all.
    """
    most, group = min(machine.accelerators, limit), machine.group_size
    if every or group == machine.accelerators:
        return list(range(1, most + 1))
    return [k for k in range(1, most + 1) if group % k == 0 or k % group == 0]


def collectives(placed: Placed, k: int) -> tuple[Collective, ...]:
    """Everything the operator communicates on k accelerators."""
    rule = rule_of(placed.call)
    return (*rule.collectives(placed.call, placed.plan, placed.arriving, k), *placed.gathers(k))


def cost_row(machine: Machine, placed: Placed, k: int) -> Row | None:
    """Cost on k accelerators; None when the operator does not divide by k.

    Raises :class:`~passes.costs.machine.MissingRateError` for an element type without a peak rate.
    """
    call, plan, rule = placed.call, placed.plan, rule_of(placed.call)
    if not rule.admits(call, plan, k):
        return None
    kernel = 0.0
    if rule.kernel:
        dtype = call.operands[0].dtype if call.operands else ""
        kernel = machine.kernel_ns(rule.flops(call, plan, k), dtype, rule.moved(call, plan, k))
    output = sum(t.part(dim, k) for t, dim in zip(call.results, placed.leaving, strict=True))
    communication = sum(collective_ns(machine, c) for c in collectives(placed, k))
    return Row(kernel, communication, rule.params(call, plan, k), output, rule.workspace(call, plan, k))


def cost_table(machine: Machine, placed: Placed, allotments: Iterable[int]) -> dict[int, Row]:
    """Costs on every admissible allotment among ``allotments``."""
    rows = ((k, cost_row(machine, placed, k)) for k in allotments)
    return {k: row for k, row in rows if row is not None}
