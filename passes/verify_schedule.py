"""Check a schedule against every rule, and prove its lower bound again."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import ModulePass

from dialects.diagnostics import TaktError, at
from dialects.levels import verify_level
from dialects.placement import in_flight, latency, loads
from dialects.structure import GraphOp, find_graph
from dialects.units import show_time
from passes.instance import Instance, read_instance
from passes.scheduling.bounds import bound_named, bounds_by_name, limits_named, proves
from passes.scheduling.budget import Budget
from passes.scheduling.steps.graph_bounds import graph_bounds
from passes.step_instance import read_batch


def broken_limit(instance: Instance, name: str) -> str | None:
    """How the schedule breaks the limit under which the bound ``name`` holds; None when it does not."""
    limits = limits_named(name)
    flying, long = in_flight(instance.graph), latency(instance.graph)
    if limits.in_flight is not None and flying > limits.in_flight:
        return f"has {flying} micro-batches in flight"
    if limits.latency is not None and long > limits.latency:
        return f"has a latency of {show_time(long)}"
    return None


def verify_certificate(instance: Instance, work: float) -> None:
    """Raise :class:`TaktError` unless the argument that the schedule names proves the bound that it claims."""
    schedule = instance.graph.schedule
    assert schedule is not None
    claimed, name = schedule.bound.data, schedule.bound_by.data
    if bound_named(name) is None:
        known = ", ".join(f'"{n}"' for n in bounds_by_name)
        message = f'the schedule claims a lower bound of {show_time(claimed)} by "{name}", which is no bound known here'
        hint = f'known are {known}, "at most N in flight", "latency at most N ns"'
        raise TaktError(at(instance.graph, message, hint, rule="certificate"))
    broken = broken_limit(instance, name)
    if broken is not None:
        message = f'the schedule claims a lower bound by "{name}", but it {broken}'
        raise TaktError(at(instance.graph, message, rule="certificate"))
    proven = proves(instance.problem, name, claimed, Budget(work=work))
    if proven is None or proven.value < claimed:
        if proven is None:
            found = f'"{name}" proves nothing here'
        else:
            found = f'"{proven.name}" proves {show_time(proven.value)} ({proven.value} ns)'
        message = f'the schedule claims a lower bound of {show_time(claimed)} ({claimed} ns) by "{name}", but {found}'
        hint = "a bound that takes a search may need more work, see the option work"
        costly = bounds_by_name[name].costly if name in bounds_by_name else False
        raise TaktError(at(instance.graph, message, hint if costly else None, rule="certificate"))


def step_bound(graph: GraphOp) -> int:
    """ns that a step takes at least with operators where they are: the work of the busiest accelerator."""
    schedule = graph.schedule
    assert schedule is not None
    return ceil(max(loads(graph).values(), default=0) * schedule.pattern.data)


def verify_step_certificate(module: ModuleOp, graph: GraphOp) -> None:
    """Raise :class:`TaktError` where the bound that a step claims is more than can be proven again.

    Those of any step of the graph are, by their names; of others no more than :func:`step_bound`.
    """
    schedule = graph.schedule
    assert schedule is not None
    claimed, name = schedule.bound.data, schedule.bound_by.data
    found, proven = "the work of the busiest accelerator", step_bound(graph)
    if claimed > proven:
        _, batch = read_batch(module, schedule.microbatches.data, level="scheduled")
        for bound in graph_bounds(batch):
            if bound.name == name:
                found, proven = f'"{name}"', bound.value
    if claimed > proven:
        message = (
            f"the step claims a lower bound of {show_time(claimed)} ({claimed} ns) by "
            f'"{name}", which cannot be proven again from the IR: {found} proves {show_time(proven)} ({proven} ns)'
        )
        hint = "without the option certificate, all rules are checked, and that the step is no shorter than its bound"
        raise TaktError(at(graph, message, hint, rule="certificate"))


@dataclass(frozen=True)
class VerifySchedulePass(ModulePass):
    """Check every rule of level scheduled and, with certificate, prove the claimed lower bound again.

    The bound is proved from the IR alone, by the argument that the schedule names. One that depends on a limit, such
    as "at most 4 in flight", is proved for schedules that keep the limit, which this one must. Of a step the bounds
    of any step of its graph are proved, or that the busiest accelerator has its work to do. The IR is left as it is.

    options:
      certificate: prove the lower bound again
      work: most work for the proof, in units of about one second of one core
    """

    name = "verify-schedule"

    certificate: bool = False
    work: float | int = 60

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        verify_level(op, "scheduled")
        graph = find_graph(op)
        if self.certificate and graph is not None and graph.schedule is not None and graph.schedule.is_step:
            verify_step_certificate(op, graph)
        elif self.certificate:
            verify_certificate(read_instance(op, "scheduled", or_later=True), self.work)
