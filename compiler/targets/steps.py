"""A comparison of steps as a table for people and as JSON for programs."""

from __future__ import annotations

import json
from fractions import Fraction
from importlib.resources import files
from io import StringIO
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from compiler.step_comparison import NAMES, OWN, STAGGERED, UNIFORM, Comparison, Made, Refused
from compiler.targets.console import text_console
from compiler.targets.text import counted, percent, short_bytes, short_time

VERSION = 1
COLUMNS = ("schedule", "ranks", "step", "ours ahead", "period", "bubble", "busiest", "memory")


def table(comparison: Comparison, *, width: int | None = None, colour: bool = False) -> str:
    """The comparison as a table, ``width`` columns wide (None: the terminal's), with terminal colours if asked for."""
    stream = StringIO()
    console = text_console(stream, width, colour)
    console.print(Text(comparison.title, "bold"))
    of = counted(comparison.microbatches, "micro-batch", "micro-batches")
    what = ""
    if comparison.training is not None:
        optimizer = comparison.training[0]
        what = "training without an optimizer, " if optimizer == "none" else f"training with {optimizer}, "
    bound = (
        f"; no step is shorter than {short_time(comparison.bound)} ({comparison.bound_by})" if comparison.bound else ""
    )
    console.print(Text(f"  {what}a step of {of}{bound}", "dim"))
    made = [step for step in comparison.steps if isinstance(step, Made)]
    if made:
        console.print(_rows(comparison, made))
    for step in comparison.steps:
        if isinstance(step, Refused):
            console.print(
                Text.assemble((step.name, "bold"), f": {step.reason}", (f" ({step.hint})" if step.hint else "", "dim"))
            )
    for note in _notes(comparison, made):
        console.print(Text(note, "dim"))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def _rows(comparison: Comparison, made: list[Made]) -> Table:
    rows = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, header_style="bold", collapse_padding=True)
    for name in COLUMNS:
        rows.add_column(name, justify="left" if name == "schedule" else "right", no_wrap=True)
    for step in made:
        ahead = comparison.ahead(step)
        rows.add_row(
            (f"{UNIFORM}: {step.plan.split(' by ')[0]}" if step.name == UNIFORM else step.name) + " *" * step.overlaps,
            str(step.ranks) if step.chunks == 1 else f"{step.ranks} x {step.chunks}",
            short_time(step.time),
            "" if ahead is None else percent(ahead),
            short_time(step.period),
            percent(step.bubble, 2),
            percent(step.least_bubble, 2),
            short_bytes(step.most_memory),
            style="bold" if step.name in (OWN, STAGGERED) else None,
        )
    return rows


def _notes(comparison: Comparison, made: list[Made]) -> list[str]:
    """What the columns mean, and what the simulator says."""
    notes = [
        "period: the busiest accelerator's work for a micro-batch; bubble: idle share of the step, on average and of "
        "the busiest accelerator; memory: of the fullest"
    ]
    if any(step.overlaps for step in made):
        notes.append("*: the next step begins before all of one has ended; ours is then the shorter of both")
    if bad := [step for step in made if step.disagreement]:
        notes += [f"the simulator disagrees on {step.name}: {step.disagreement}" for step in bad]
    elif made:
        notes.append(
            "checker and simulator agree on step time and on the peak memory of every accelerator in all of them"
        )
    if not comparison.complete:
        notes.append(f"interrupted after {len(comparison.steps)} of {len(NAMES)}")
    return notes


def json_text(comparison: Comparison) -> str:
    """The comparison as JSON, described by ``steps.schema.json`` beside this file; a step a line."""
    head = {
        "format": "takt-steps",
        "version": VERSION,
        "model": comparison.model,
        "platform": {
            "name": comparison.platform,
            "accelerator": comparison.accelerator,
            "accelerators": comparison.accelerators,
        },
        "training": None
        if comparison.training is None
        else dict(zip(("optimizer", "precision"), comparison.training, strict=True)),
        "microbatches": comparison.microbatches,
        "bound": comparison.bound,
        "bound_by": comparison.bound_by,
        "complete": comparison.complete,
    }
    fields = [f"  {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in head.items()]
    steps = [_step(comparison, s) for s in comparison.steps if isinstance(s, Made)]
    refused = [{"name": s.name, "reason": s.reason, "hint": s.hint} for s in comparison.steps if isinstance(s, Refused)]
    for name, rows in (("steps", steps), ("refused", refused)):
        lines = ",\n    ".join(json.dumps(row, ensure_ascii=False) for row in rows)
        fields.append(f'  "{name}": [\n    {lines}\n  ]' if rows else f'  "{name}": []')
    return "{\n" + ",\n".join(fields) + "\n}\n"


def _step(comparison: Comparison, step: Made) -> dict[str, Any]:
    ahead = comparison.ahead(step)
    return {
        "name": step.name,
        "plan": step.plan,
        "ranks": step.ranks,
        "chunks": step.chunks,
        "time": step.time,
        "makespan": step.makespan,
        "ahead": None if ahead is None else _share(ahead),
        "period": step.period.numerator if step.period.denominator == 1 else float(step.period),
        "bubble": _share(step.bubble),
        "least_bubble": _share(step.least_bubble),
        "peak_memory": [step.peak_memory[p] for p in sorted(step.peak_memory)],
        "disagreement": step.disagreement,
    }


def _share(value: Fraction) -> float:
    return round(float(value), 9)


def schema() -> dict[str, Any]:
    """The JSON schema of what :func:`json_text` writes."""
    return json.loads(files("compiler.targets").joinpath("steps.schema.json").read_text("utf-8"))
