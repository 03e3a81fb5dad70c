"""What ``taktc run`` says after a run: prediction and measurement side by side, as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from math import ceil, isfinite, log10
from typing import TYPE_CHECKING, Any

from compiler.comparison import Row, table
from compiler.runtime.job import Job
from compiler.runtime.measured import Figures, Measured
from compiler.targets.text import counted, percent, short_time

if TYPE_CHECKING:
    from compiler.runtime.compared import Agreement  # imports torch
    from compiler.runtime.reference import Comparison

ROWS: tuple[tuple[str, Callable[[Figures], float], bool], ...] = (
    ("period", lambda f: f.period, True),
    ("latency, median", lambda f: f.latency, True),
    ("latency, most", lambda f: f.latency_max, True),
    ("highest load", lambda f: f.highest_load, False),
    ("mean load", lambda f: f.mean_load, False),
)
"""Name, value, and whether it is a time."""

LATE = 1.2
"""A period or a latency this many times the predicted one is explained."""

SHORT = 20_000_000
"""An emulated period shorter than that, ns, is easily lost in what processes and messages take."""

Column = tuple[str, Figures]


def rows_of(job: Job) -> tuple[tuple[str, Callable[[Figures], float], bool], ...]:
    """:data:`ROWS`, in a step behind its time."""
    if not job.step:
        return ROWS
    return (("step", lambda f: f.period * job.per_pattern, True), *ROWS)


def columns_of(prediction: Figures, replay: Figures | None, found: Measured) -> list[Column]:
    """The columns of the table; the last but one is what the measured one is compared with.

    ``replay`` is the prediction at the speed of this machine, of a real run.
    """
    columns: list[Column] = [("predicted", prediction)]
    if replay is not None:
        columns = [("on the platform", prediction), ("at measured times", replay)]
    return [*columns, ("measured", found)]


def text(job: Job, columns: list[Column], found: Measured) -> str:
    """The report: what was run, the table, and the accelerator that sets the pace."""
    compared = columns[-2]
    rows: list[Row] = [("", *(name for name, _ in columns), "measured / " + compared[0])]
    for name, value, time in rows_of(job):
        values = [value(figures) for _, figures in columns]
        shown = [short_time(round(v)) if time else percent(v) for v in values]
        rows.append((name, *shown, percent(values[-1] / values[-2]) if values[-2] else ""))
    rows.append(("critical", *(_accelerator(figures) for _, figures in columns), ""))
    rows.append(("micro-batches", *("" for _ in columns[1:]), str(found.microbatches), ""))
    lines = [what_ran(job), *table(rows)]
    if found.critical is not None:
        waits, moves = (percent(shares[found.critical]) for shares in (found.waiting, found.moving))
        of = "a step" if job.step else "a period"
        lines.append(f"accelerator {found.critical} is critical: of {of}, it waits {waits} and moves values {moves}")
    lines.extend(_advice(job, columns[-2][1], found))
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _advice(job: Job, said: Figures, found: Measured) -> Iterator[str]:
    """What to change where a run is far from what was said, or short."""
    if not found.steady:
        yield "too few micro-batches for a steady state: the later half was measured; more with --microbatches"
    if job.settings.emulate and said.period < SHORT and found.period > LATE * said.period:
        factor = job.settings.scale * 10 ** ceil(log10(SHORT / said.period))
        short = f"a period of {short_time(round(said.period))} is short beside what processes and messages take here"
        yield f"{short}: --scale {factor:g} makes all times longer"
    elif not job.settings.paced and found.latency > LATE * said.latency:
        pace = "as scheduled" if job.step else "a period apart"
        yield f"micro-batches entered as fast as they could, and wait on their way; --pace: {pace}"


def agreement(job: Job, found: Comparison) -> str:
    """How a real run compares with the unpipelined model: a line on its outputs, and on what it trained."""
    lines = [_outputs(job, found)]
    if found.gradients is not None:
        lines.append(_trained(found.gradients, "accumulated gradient"))
    if found.parameters is not None:
        lines.append(_trained(found.parameters, "parameter after the last step", "parameters after the last step"))
    return "".join(f"{line}\n" for line in lines)


def _outputs(job: Job, found: Comparison) -> str:
    def called(output: int, microbatch: int, accelerator: int) -> str:
        v, result = job.outputs[output]
        return f"'{job.operators[v].results[result].name}' of micro-batch {microbatch} on accelerator {accelerator}"

    if not found.compared and not found.missing:
        return "no operator computes an output of the graph: nothing is compared with the unpipelined model"
    within = not found.missing and found.error <= found.tolerance
    missing = called(*found.missing[0]) if found.missing else ""
    worst = "" if found.worst is None else called(found.worst.output, found.worst.microbatch, found.worst.accelerator)
    return _compared(found, ("output", "outputs"), within, missing, worst)


def _trained(found: Agreement, noun: str, plural: str = "") -> str:
    missing = found.missing[0] if found.missing else ""
    return _compared(found, (noun, plural or f"{noun}s"), found.agrees, missing, found.worst)


def _compared(
    found: Comparison | Agreement, noun: tuple[str, str], within: bool, first_missing: str, worst: str
) -> str:
    one, several = noun
    bound = f"of at most {found.tolerance:g}"
    if within:
        those = counted(found.compared, f"{one} agrees", f"{several} agree")
        return f"{those} with the unpipelined model: greatest relative error {found.error:.1e} {bound}"
    faults: list[str] = []
    if found.missing:
        missing = counted(len(found.missing), f"{one} is", f"{several} are")
        faults.append(f"{missing} missing, the first {first_missing}")
    if found.error > found.tolerance:
        faults.append(f"the greatest relative error is {found.error:.1e} {bound}, in {worst}")
    return f"{several} differ from the unpipelined model: {'; '.join(faults)}"


def agreement_data(found: Comparison) -> dict[str, Any]:
    """The same for programs; ``agree`` is null where there was nothing to compare."""

    def data(x: Comparison | Agreement) -> dict[str, Any]:
        return {
            "agree": not x.missing and x.error <= x.tolerance if x.compared or x.missing else None,
            "compared": x.compared,
            "missing": len(x.missing),
            "error": x.error if isfinite(x.error) else None,
            "tolerance": x.tolerance,
        }

    parts = {"outputs": found, "gradients": found.gradients, "parameters": found.parameters}
    return {name: data(x) for name, x in parts.items() if x is not None}


def what_ran(job: Job) -> str:
    """One line on how it was run: ``mlp on quad: 4 processes on torch.distributed, emulated``."""
    how = ["emulated" if job.settings.emulate else "real tensors"]
    if job.settings.scale != 1:
        how.append(f"times scaled by {job.settings.scale:g}")
    if job.step:
        how.append(f"steps of {counted(job.per_pattern, 'micro-batch', 'micro-batches')}")
    if job.settings.paced:
        how.append("micro-batches as scheduled" if job.step else "a micro-batch a period")
    processes = counted(len(job.accelerators), "process", "processes")
    return f"{job.name} on {job.platform}: {processes} on torch.distributed, {', '.join(how)}"


def _accelerator(figures: Figures) -> str:
    return "" if figures.critical is None else str(figures.critical)


# --- JSON ------------------------------------------------------------------------------------


def json_text(job: Job, columns: list[Column], found: Measured, more: dict[str, Any]) -> str:
    """The same for programs: times in ns, loads and waiting as shares of the period, by accelerator."""
    data: dict[str, Any] = {
        "model": job.name,
        "platform": job.platform,
        "emulated": job.settings.emulate,
        "paced": job.settings.paced,
        "scale": job.settings.scale,
        "processes": len(job.accelerators),
        "microbatches": found.microbatches,
        "steady": found.steady,
    }
    data |= {"step": job.per_pattern} if job.step else {}
    data |= {name.replace(" ", "_"): _figures(job, figures) for name, figures in columns}
    data["measured"] |= {
        name: {str(p): share for p, share in shares.items()}
        for name, shares in (("waiting", found.waiting), ("moving", found.moving))
    }
    return json.dumps(data | more, indent=2) + "\n"


def _figures(job: Job, figures: Figures) -> dict[str, Any]:
    step = {"step_ns": figures.period * job.per_pattern} if job.step else {}
    return step | {
        "period_ns": figures.period,
        "latency_ns": figures.latency,
        "latency_max_ns": figures.latency_max,
        "highest_load": figures.highest_load,
        "mean_load": figures.mean_load,
        "critical": figures.critical,
        "load": {str(p): share for p, share in figures.load.items()},
    }
