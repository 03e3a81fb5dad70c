"""Memory against period: GPT-3 175B trained on 64 accelerators that have ever more memory.

Every point is the whole compiler (plan ``stages``, no other option) with its checks of every level, on the platform
``dgx_a100_64`` with another memory. The least memory is what ``taktc`` says would do when there is too little.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from xdsl.dialects.builtin import IntegerAttr, ModuleOp, i64

from compiler.pipeline import Options as Choices
from compiler.pipeline import new_context, run_pipeline
from compiler.targets.svg_parts import FAINT, FONT, INK, RULE, text_at
from compiler.view import view_of
from dialects.schedule_rules import peak_memory
from dialects.structure import find_graph, find_platform
from frontend import Source, load
from passes.instance import read_instance
from passes.scheduling.budget import Budget
from passes.scheduling.fitting import smallest_memory
from passes.scheduling.portfolio import Request, stages_engine
from suites.table import Options, Table

EXAMPLES = Path(__file__).parents[2] / "examples"

GIB = 2**30

MEMORIES = (46, 48, 50, 55, 60, 65, 70, 80, 100, 128, 160)
"""GiB on an accelerator, beside the least."""


@dataclass(frozen=True)
class Case:
    """A model, a platform, and how much memory is tried."""

    title: str
    model: str
    platform: str
    memories: Sequence[float]
    """GiB."""
    layers: int | None = None
    """Layers of the model, where fewer than it has."""


FULL = Case("GPT-3 175B on 64 A100, training with Adam", "gpt3_175b.takt", "dgx_a100_64.takt", MEMORIES)
QUICK = Case("GPT-2 XL of 6 layers on 6 accelerators, training with Adam", "gpt2_xl.takt", "tiny_board.takt", (2,), 6)


@dataclass(frozen=True)
class Point:
    """One schedule: bytes on an accelerator, ns, blocks."""

    memory: int
    period: int
    bound: int
    bound_by: str
    in_flight: int
    blocks: int
    fullest: int
    seconds: float
    """Of one core, of all passes and checks."""


def moldable(case: Case) -> ModuleOp:
    """The training graph with its tables of costs."""
    text = (EXAMPLES / case.model).read_text(encoding="utf-8")
    if case.layers is not None:
        text = re.sub(r"param layers = \d+", f"param layers = {case.layers}", text)
    module = load(Source(case.model, text), platform=Source.read(str(EXAMPLES / case.platform)))
    return run_pipeline(new_context(), module, to="moldable", options=Choices(training="adam"))


def least(module: ModuleOp) -> int:
    """About the least bytes on an accelerator for which there is a schedule."""
    problem, request, budget = (
        read_instance(module, "moldable", memory=False).problem,
        Request("stages"),
        Budget(work=10),
    )
    found = smallest_memory(problem, stages_engine(request, budget), budget)
    assert found is not None
    return found[0]


def point(module: ModuleOp, memory: int) -> Point:
    """The schedule on accelerators of ``memory`` bytes, verified."""
    begun = time.process_time()
    copy = module.clone()
    platform = find_platform(copy)
    assert platform is not None
    platform.memory = IntegerAttr(memory, i64)
    done = run_pipeline(new_context(), copy, options=Choices(training="adam"))
    seconds = time.process_time() - begun
    view, graph, made = view_of(done), find_graph(done), find_platform(done)
    assert graph is not None
    assert made is not None
    fullest = max(params + rest for params, rest in peak_memory(graph, made).values())
    blocks = len({stage.granted for stage in view.stages})
    return Point(memory, view.pattern, view.bound, view.bound_by, view.in_flight, blocks, fullest, seconds)


def sweep(case: Case) -> list[Point]:
    """From the least memory on."""
    module = moldable(case)
    fewest = least(module)
    more = [int(gib * GIB) for gib in case.memories]
    return [point(module, size) for size in (fewest, *(size for size in more if size > fewest))]


def run(options: Options) -> list[Table]:
    """The table of this section; writes the plot when one is asked for."""
    case = QUICK if options.quick else FULL
    table = Table(
        case.title,
        ("memory GiB", "period ms", "bound ms", "bound", "above", "in flight", "blocks", "fullest GiB", "seconds"),
    )
    points = sweep(case)
    for p in points:
        gap, full = p.period / p.bound - 1, p.fullest / GIB
        row = (p.period / 1e6, p.bound / 1e6, p.bound_by, gap, p.in_flight, p.blocks, full, p.seconds)
        table.add(p.memory / GIB, *row)
    table.notes.append(
        "seconds of one core for all passes and checks; the first row has about the least memory that does"
    )
    if options.plot is not None:
        Path(options.plot).write_text(picture(case.title, points), encoding="utf-8")
        table.notes.append(f"plot written to {options.plot}")
    return [table]


# --- the plot --------------------------------------------------------------------------------------

WIDTH, HEIGHT, LEFT, RIGHT, TOP, FOOT = 760, 420, 84, 120, 72, 60
OURS, BELOW = "#2f6fb0", "#c2405a"


def picture(title: str, points: Sequence[Point]) -> str:
    """Period and bound over memory as SVG, the period as far up as four times the least."""
    top = 4 * min(p.period for p in points) / 1e6
    first, last = points[0].memory / GIB, points[-1].memory / GIB

    def x(memory: float) -> float:
        return LEFT + (memory - first) / max(1e-9, last - first) * (WIDTH - LEFT - RIGHT)

    def y(period: float) -> float:
        return HEIGHT - FOOT - min(1.0, period / top) * (HEIGHT - FOOT - TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
        f' font-family="{escape(FONT)}" fill="{INK}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#ffffff"/>',
        text_at(16, 28, title, size=17, weight="600"),
        text_at(16, 49, "period, ms, over memory of an accelerator, GiB", size=12.5, colour=FAINT),
    ]
    for step in range(5):
        level = top * step / 4
        parts.append(f'<path d="M{LEFT} {y(level):.1f}H{WIDTH - RIGHT}" stroke="{RULE}" stroke-width=".6"/>')
        parts.append(text_at(LEFT - 8, y(level) + 3.6, f"{level:.0f}", size=10.5, anchor="end", colour=FAINT))
    for step in range(6):
        at = first + (last - first) * step / 5
        parts.append(f'<path d="M{x(at):.1f} {TOP}V{HEIGHT - FOOT}" stroke="{RULE}" stroke-width=".6"/>')
        parts.append(text_at(x(at), HEIGHT - FOOT + 18, f"{at:.1f}", size=10.5, anchor="middle", colour=FAINT))
    for values, colour, name in (
        ([p.period / 1e6 for p in points], OURS, "takt"),
        ([p.bound / 1e6 for p in points], BELOW, "lower bound"),
    ):
        line = " ".join(f"{x(p.memory / GIB):.1f},{y(v):.1f}" for p, v in zip(points, values, strict=True))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        for p, v in zip(points, values, strict=True):
            shown = f"{name}: {v:.1f} ms at {p.memory / GIB:.2f} GiB"
            here = f'cx="{x(p.memory / GIB):.1f}" cy="{y(v):.1f}" r="3.6" fill="{colour}"'
            parts.append(f"<circle {here}><title>{escape(shown)}</title></circle>")
        parts.append(
            text_at(WIDTH - RIGHT + 8, y(values[-1]) + (-6 if name == "takt" else 12), name, size=11.5, colour=colour)
        )
    return "\n".join([*parts, "</svg>"]) + "\n"
