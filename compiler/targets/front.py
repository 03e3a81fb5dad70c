"""A front of schedules as a table for people and as JSON for programs."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.resources import files
from io import StringIO
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from compiler.pareto import Front
from compiler.targets.console import text_console
from compiler.targets.text import percent, short_bytes, short_time

VERSION = 1


def show(name: str, value: int) -> str:
    """A figure with its unit."""
    if name == "in-flight":
        return str(value)
    return short_time(value) if name in ("period", "latency") else short_bytes(value)


def table(front: Front, *, width: int | None = None, colour: bool = False) -> str:
    """The front as a table, ``width`` columns wide (None: the terminal's), with terminal colours if asked for."""
    stream = StringIO()
    console = text_console(stream, width, colour)
    console.print(Text(front.title, "bold"))
    console.print(Text(f"  lower bound of the period {short_time(front.bound.value)} ({front.bound.name})", "dim"))
    rows = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, header_style="bold", collapse_padding=True)
    for name in ("plan", "engine", "stages", *front.axes, "above bound"):
        left, may_wrap = name in ("plan", "engine"), name == "engine"  # the only long one, and no figure
        rows.add_column(name, justify="left" if left else "right", no_wrap=not may_wrap)
    for point in front.points:
        figures = [show(name, point.value(name)) for name in front.axes]
        rows.add_row(point.plan, point.engine, str(point.stages), *figures, percent(front.above(point), 2))
    console.print(rows)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def json_text(front: Front) -> str:
    """The front as JSON, described by ``front.schema.json`` beside this file; a point a line."""
    head = {
        "format": "takt-front",
        "version": VERSION,
        "model": front.model,
        "platform": {
            "name": front.platform,
            "accelerator": front.accelerator,
            "accelerators": front.accelerators,
        },
        "axes": list(front.axes),
        "bound": front.bound.value,
        "bound_by": front.bound.name,
        "limits": {name: most for name, most in asdict(front.limits).items() if most is not None},
    }
    fields = [f"  {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in head.items()]
    points = [{"plan": p.plan, "engine": p.engine, "stages": p.stages} | asdict(p.figures) for p in front.points]
    lines = ",\n    ".join(json.dumps(point, ensure_ascii=False) for point in points)
    return "{\n" + ",\n".join([*fields, f'  "points": [\n    {lines}\n  ]']) + "\n}\n"


def schema() -> dict[str, Any]:
    """The JSON schema of what :func:`json_text` writes."""
    return json.loads(files("compiler.targets").joinpath("front.schema.json").read_text("utf-8"))
