"""``--emit json``: the schedule as JSON, described by ``schedule.schema.json`` beside this file.

Every operator, dependence, transfer, stage and accelerator stands on a line of its own, so that two schedules can be
compared with a line-by-line diff.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from fractions import Fraction
from importlib.resources import files
from typing import Any

from xdsl.dialects.builtin import ModuleOp

from compiler.links import loads, standstill
from compiler.view import LinkView, Move, ScheduleView, Task, Update, view_of
from dialects.schedule_rules import peak_memory
from dialects.structure import find_graph, find_platform

VERSION = 5


def emit(module: ModuleOp) -> str:
    """A scheduled module as JSON text."""
    graph, platform = find_graph(module), find_platform(module)
    view = view_of(module)
    assert graph is not None
    assert platform is not None
    return _layout(document(view, peak_memory(graph, platform)))


def schema() -> dict[str, Any]:
    """The JSON schema of what :func:`emit` writes."""
    return json.loads(files("compiler.targets").joinpath("schedule.schema.json").read_text("utf-8"))


def document(view: ScheduleView, memory: Mapping[int, tuple[int, int]]) -> dict[str, Any]:
    """The document as plain data; ``memory`` maps an accelerator to bytes of parameters and peak of all else."""
    names = [t.name for t in view.tasks]
    p = view.platform
    return {
        "format": "takt-schedule",
        "version": VERSION,
        "model": view.graph,
        "platform": {
            "name": p.name,
            "accelerator": p.accelerator,
            "accelerators": p.accelerators,
            "memory": p.memory,
            "group": p.group,
            "links": [_link(link) for link in p.links],
            "transfers": p.transfers,
        },
        "schedule": {
            "pattern": view.pattern,
            "microbatches": view.microbatches,
            "period": _number(view.period),
            "bound": view.bound,
            "bound_by": view.bound_by,
            "latency": view.latency,
            "in_flight": view.in_flight,
            "crossing": _number(view.crossing),
            "plan": view.plan,
            "engine": view.engine,
            "seed": view.seed,
            "limits": dict(view.limits),
        },
        "step": _step(view) if view.step else None,
        "training": None if view.training is None else _training(view),
        "stages": [{"index": s.index, "accelerators": s.granted} for s in view.stages],
        "accelerators": _accelerators(view, memory),
        "inputs": [{"name": i.name, "size": i.size, "consumers": [names[c] for c in i.consumers]} for i in view.inputs],
        "operators": [_operator(t, view.step) for t in view.tasks],
        "updates": [_update(u, names) for u in view.updates],
        "dependences": [
            {
                "producer": names[e.producer],
                "consumer": names[e.consumer],
                "results": e.results,
                "size": e.size,
                "distance": e.distance,
            }
            for e in view.edges
        ],
        "transfers": [_transfer(m, names[m.producer], view.step) for m in view.moves],
        "link_loads": [
            {"link": r.link, "kind": r.kind, "accelerators": r.members, "load": _share(load)}
            for r, load in loads(view).items()
            if r.kind != "accelerator"
        ],
        "outputs": [
            {
                "name": o.name,
                "producer": None if o.producer is None else names[o.producer],
                "result": o.result,
                "size": o.size,
            }
            for o in view.outputs
        ],
    }


def _accelerators(view: ScheduleView, memory: Mapping[int, tuple[int, int]]) -> list[dict[str, Any]]:
    """What each accelerator does and holds."""
    still = standstill(view)
    return [
        {
            "index": a,
            "load": _share(busy / view.period),
            "parameters": memory[a][0],
            "peak_memory": sum(memory[a]),
            **({"standstill": _share(still[a])} if a in still else {}),
        }
        for a, busy in sorted(view.load.items())
        if a in memory
    ]


def _number(value: Fraction) -> int | float:
    return value.numerator if value.denominator == 1 else float(value)


def _share(value: Fraction) -> float:
    return round(float(value), 9)


def _link(link: LinkView) -> dict[str, Any]:
    return {
        "name": link.name,
        "size": link.size,
        "latency": link.latency,
        "bandwidth": link.bandwidth,
        "links": link.links,
        "topology": link.topology,
        "shape": link.shape,
        "duplex": link.duplex,
        "shared": link.shared,
    }


def _step(view: ScheduleView) -> dict[str, Any]:
    begin, end = view.span
    return {
        "time": view.pattern,
        "microbatches": view.microbatches,
        "bound": view.bound,
        "gap": None if view.gap is None else _share(view.gap),
        "begin": begin,
        "end": end,
        "makespan": view.makespan,
        "bubble": _share(sum(view.bubble.values(), Fraction(0)) / max(1, len(view.bubble))),
    }


def _training(view: ScheduleView) -> dict[str, Any]:
    assert view.training is not None
    optimizer, precision = view.training
    return {"optimizer": optimizer, "precision": precision, "asynchronous": view.asynchronous}


def _update(update: Update, names: list[str]) -> dict[str, Any]:
    return {
        "name": update.name,
        "group": update.group,
        "gradients": [names[v] for v in update.gradients],
        "accelerators": update.place,
        "start": update.start,
        "time": update.time,
        "workspace": update.workspace,
    }


def _transfer(move: Move, producer: str, step: bool) -> dict[str, Any]:
    return {
        "producer": producer,
        "result": move.result,
        "targets": move.targets,
        "link": move.link,
        "start": move.start,
        "time": move.time,
        "landing": move.landing,
        **({"starts": move.starts, "landings": move.landings} if step else {}),
        "bytes": move.size,
        "sharded": move.sharded,
    }


def _operator(task: Task, step: bool) -> dict[str, Any]:
    return {
        "name": task.name,
        "kind": task.kind,
        "stage": task.stage,
        "block": None if task.block is None else {"name": task.block[0], "index": task.block[1]},
        "allotment": task.allotment,
        "copies": task.copies,
        "start": task.start,
        **({"starts": task.starts} if step else {}),
        "time": task.time,
        "parameters": task.params,
        "output": task.output,
        "workspace": task.workspace,
        "results": task.results,
        **({} if task.group is None else {"group": task.group}),
    }


def _layout(data: dict[str, Any]) -> str:
    """JSON with one line for every field of the document and every member of its lists."""
    fields: list[str] = []
    for name, value in data.items():
        if isinstance(value, list) and value:
            rows = ",\n    ".join(json.dumps(row, ensure_ascii=False) for row in value)  # pyright: ignore[reportUnknownVariableType]
            fields.append(f'  "{name}": [\n    {rows}\n  ]')
        else:
            fields.append(f'  "{name}": {json.dumps(value, ensure_ascii=False)}')
    return "{\n" + ",\n".join(fields) + "\n}\n"
