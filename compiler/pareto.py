"""``taktc --pareto``: what a shorter period costs, as schedules that no other beats in all figures asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from xdsl.dialects.builtin import ModuleOp

from compiler.pipeline import Options
from passes.instance import read_instance
from passes.partition_stages import PartitionStagesPass, check_options
from passes.requests import bound_of, incumbents
from passes.scheduling.bounds import Bound
from passes.scheduling.data import InvalidProblem
from passes.scheduling.objective import Figures, Limits
from passes.scheduling.portfolio import axis, collect, front, kept


@dataclass(frozen=True)
class Point:
    """A verified schedule: its plan, what found it, how many stages it has, and its figures."""

    plan: str
    engine: str
    stages: int
    figures: Figures

    def value(self, name: str) -> int:
        """The figure called ``name``: ns, micro-batches, or bytes."""
        return axis(self.figures, name)


@dataclass(frozen=True)
class Front:
    """The points that no other beats in all ``axes``, by increasing value of the first axis."""

    model: str
    platform: str
    accelerators: int
    accelerator: str
    axes: tuple[str, ...]
    bound: Bound
    """A lower bound on the period of any schedule."""
    limits: Limits
    points: tuple[Point, ...]

    @property
    def title(self) -> str:
        """Model and machine."""
        return f"{self.model} on {self.platform}: {self.accelerators} x {self.accelerator}"

    def above(self, point: Point) -> float:
        """How far the period of ``point`` is above the bound, as a share."""
        return point.figures.period / max(1, self.bound.value) - 1


def trade_off(module: ModuleOp, axes: tuple[str, ...], options: Options) -> Front:
    """The front of a moldable module over ``axes``, within the limits of ``options``, of one plan or of all.

    On an interrupt, or when work or time are spent, it is the front of what was found so far. Raises
    :class:`dialects.diagnostics.TaktError` when there is no schedule, or none within the limits.
    """
    given: dict[str, Any] = {"plan": "auto"} | options.of("partition-stages")
    asked = PartitionStagesPass(**given)
    instance = read_instance(module, "moldable", filled=asked.fills(module, asked.plan))
    if options.time_limit is not None:  # all of it: no second pass follows
        asked = replace(asked, time_limit=options.time_limit)
    check_options(instance, asked)
    request = replace(asked.asked(), front=True)
    bound = bound_of(request.allowing(instance.problem), asked.budget(incumbents(0)), request)
    request = replace(request, bound=bound.value)
    try:
        found = collect(instance.problem, request, asked.budget(incumbents(bound.value, "front")))
        best = front(kept(found, request.limits), axes)
    except InvalidProblem as failure:
        raise instance.error(failure) from None
    return Front(
        instance.graph.sym_name.data,
        instance.platform.sym_name.data,
        instance.platform.count,
        instance.platform.accelerator.data,
        axes,
        bound,
        request.limits,
        tuple(Point(c.plan, c.engine, len(c.staged.blocks), c.figures) for c in best),
    )
