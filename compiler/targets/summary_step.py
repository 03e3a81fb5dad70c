"""``--emit summary`` of a step: its figures, and what is critical."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from rich.table import Table
from rich.text import Text

from compiler.targets.analysis import Analysis
from compiler.targets.step_analysis import IDLE, WORK, StepAnalysis
from compiler.targets.summary import about_model, above, add_transfers, limits, memory
from compiler.targets.text import counted, percent, ranges, rate, short_time

NAMES: Mapping[str, str] = {
    "forward": "forward",
    "inputs": "gradients of inputs",
    "weights": "of weights",
    "optimizer": "optimizer",
    "fill": "filling",
    "drain": "draining",
    "between": "between steps",
    "moving": "waiting for transfers",
    "waiting": "waiting for other ranks",
    "beside": "beside narrower operators",
    "unused": "of no rank",
}


def figures(analysis: StepAnalysis) -> Table:
    """The figures of a step, a row each."""
    view, table = analysis.view, about_model(analysis)
    of = counted(view.microbatches, "micro-batch", "micro-batches")
    rates = f"({_per_second(view.pattern)} steps/s, {rate(view.period)})"
    table.add_row("step", Text.assemble((short_time(view.pattern), "bold"), f" for {of}  {rates}"))
    if analysis.overlaps:
        text = f"{short_time(view.makespan)} from its first start to its last end; the next step begins before that"
        table.add_row("overlap", text)
    table.add_row("lower bound", f"{short_time(view.bound)}  ({view.bound_by}); the step is {above(analysis)}")
    flight = "1 micro-batch" if view.in_flight == 1 else f"{view.in_flight} micro-batches"
    table.add_row("in flight", f"{flight}, each for at most {short_time(view.latency)}")
    if view.limits:
        table.add_row("limits", limits(analysis))
    table.add_row("memory", memory(analysis))
    table.add_row("busy", f"{percent(analysis.mean.busy)} on average: {_parts(analysis, WORK)}")
    table.add_row("bubble", _bubble(analysis))
    if analysis.mean.busy < 1:
        table.add_row("idle", _parts(analysis, IDLE))
    if analysis.mean.optimizer:
        table.add_row("optimizer", _optimizer(analysis))
    add_transfers(table, analysis)
    return table


def _per_second(ns: int) -> str:
    value = float(10**9 / Fraction(ns))
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _parts(analysis: StepAnalysis, names: tuple[str, ...]) -> str:
    parts = analysis.mean.parts(names)
    if names is IDLE:
        parts.sort(key=lambda part: -part[1])
    return ", ".join(f"{NAMES[name]} {percent(share)}" for name, share in parts)


def _bubble(analysis: StepAnalysis) -> str:
    bubbles = analysis.view.bubble
    used = {p: bubble for p, bubble in bubbles.items() if bubble < 1}
    text = f"mean {percent(1 - analysis.mean.busy)}"
    if len(set(used.values())) > 1:
        least, most = min(used, key=lambda p: used[p]), max(used, key=lambda p: used[p])
        text += (
            f"; least {percent(used[least])} on accelerator {least}, the busiest, most {percent(used[most])} on {most}"
        )
    if analysis.idle:
        text += f"; {counted(len(analysis.idle), 'accelerator')} idle ({ranges(analysis.idle)})"
    return text


def _optimizer(analysis: StepAnalysis) -> str:
    """Its share of the time, and when the first of its steps begins."""
    view = analysis.view
    most = max(analysis.spent, key=lambda p: analysis.spent[p].optimizer)
    share = analysis.spent[most].optimizer
    first = min(u.start for u in view.updates if u.start is not None)
    time = f"at most {short_time(share * view.pattern)} ({percent(share)} of the step) on accelerator {most}"
    return f"{counted(len(view.updates), 'update')}, {time}; the first at {short_time(first)}"


def told(analysis: Analysis) -> Text:
    """The busiest accelerators, what they do, and what they wait for."""
    assert isinstance(analysis, StepAnalysis)
    critical = analysis.critical
    spent = analysis.spent[min(critical)]
    where = f"accelerators {ranges(critical)}" if len(critical) > 1 else f"accelerator {min(critical)}"
    text = Text.assemble(("critical", "bold"), f" (*): {where}, busy for {percent(spent.busy, 2)} of the step: ")
    text.append(", ".join(f"{NAMES[name]} {percent(share)}" for name, share in spent.parts(WORK)))
    if idle := sorted(spent.parts(IDLE), key=lambda part: -part[1]):
        text.append("; idle: " + ", ".join(f"{NAMES[name]} {percent(share)}" for name, share in idle))
    shown = [f"{t.name} {short_time(t.time)} on {t.allotment}" for t in analysis.heaviest[:3]]
    text.append("; longest operators there: " + ", ".join(shown) + ".")
    return text
