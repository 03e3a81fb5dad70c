"""Section 5: time and memory as operations and accelerators grow, of plans and of the whole compiler; a plot as SVG."""

from __future__ import annotations

import multiprocessing
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, floor, log10
from pathlib import Path
from typing import Any, TypeVar

from compile_time import PLATFORM, Stopwatch, model_text, peak_bytes

from passes.scheduling.bounds import best_bound
from passes.scheduling.budget import Budget
from suites.instances import Absent, from_generator, generator
from suites.plans import measure, with_bound
from suites.table import Options, Table, skipped

Result = TypeVar("Result")

AROUND, LAYER = 4, 13
"""Operations outside the layers of the generator's models, and in each."""

OPERATIONS = ((100, 64), (1000, 64), (10_000, 64))
ACCELERATORS = ((1000, 8), (1000, 256), (1000, 1024), (10_000, 256), (10_000, 1024))


GROWING = ("stages", "shared", "pushed", "v", "laminar")
"""The plans whose growth is shown."""

SIZES: tuple[tuple[int, int], ...] = ((10_000, 256), (10_000, 1024))
"""(Operations, accelerators) that the whole compiler is given; ``auto`` may look for at most ``LOOKING`` seconds."""

LOOKING = 30.0
MOST_SECONDS, MOST_BYTES = 60, 4e9


def one(plan: str, operations: int, accelerators: int, seconds: float) -> tuple[int, float, int, float, float, int]:
    """Operations, period over bound, in flight, seconds of plan and of bound, peak bytes; in a process of its own."""
    layers = max(1, (operations - AROUND) // LAYER)
    problem = from_generator(generator().gpt(layers, accelerators, h=8192, kmax=8))
    begun = time.process_time()
    bound = best_bound(problem, Budget(seconds)).value
    bounding = time.process_time() - begun
    found = measure(plan, with_bound(plan, bound), problem, seconds)
    assert found is not None
    return len(problem.operations), found.period / bound, found.in_flight, found.seconds, bounding, peak_bytes()


@dataclass(frozen=True)
class Compiled:
    """What compiling one model took, all passes and checks of every level included."""

    operators: int
    front: float
    scheduling: float
    checking: float
    rest: float
    core: float
    peak: int
    gap: float

    @property
    def seconds(self) -> float:
        """End to end, from the source to the printed IR; start-up left out (in ``core``, of one core, it is not)."""
        return self.front + self.scheduling + self.checking + self.rest


def compiled(plan: Any, operators: int, accelerators: int, limit: float | None) -> Compiled:
    """Compile a GPT of about so many operators; in a process of its own."""
    from compiler.output import print_ir
    from compiler.pipeline import SOLVING, Observer, new_context, run_pipeline, verify
    from compiler.pipeline import Options as Choices
    from compiler.view import view_of
    from frontend import Source, load

    watch = Stopwatch()

    class Laps(Observer):
        """Charges every pass and every check to the watch."""

        def ran(self, step: str, module: object, seconds: float) -> None:
            watch.lap("scheduling" if step.startswith(SOLVING) else "rest")

        def verified(self, seconds: float) -> None:
            watch.lap("checking")

    context = new_context()
    text = PLATFORM.read_text().replace("accelerators = 64", f"accelerators = {accelerators}")
    watch.lap("start-up")
    module = load(Source("gpt.takt", model_text(operators)), platform=Source("platform.takt", text))
    watch.lap("front")
    verify(module, Laps())
    module = run_pipeline(context, module, options=Choices(plan=plan, time_limit=limit), observer=Laps())
    print_ir(module)
    watch.lap("rest")
    core, peak, view, took = time.process_time(), peak_bytes(), view_of(module), watch.seconds
    assert view.platform.accelerators == accelerators
    parts = (took.get(part, 0.0) for part in ("front", "scheduling", "checking", "rest"))
    return Compiled(len(view.tasks), *parts, core, peak, float(view.gap))


def apart(function: Callable[..., Result], *given: Any) -> Result:
    """``function(*given)`` in a fresh process, so that its peak of memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, given)


def end_to_end(options: Options) -> Table:
    """The whole compiler: front end, passes, checks of every level, printed IR."""
    table = Table(
        "5b The whole compiler on 10,000 operators",
        (
            "plan",
            "operators",
            "accelerators",
            "front end s",
            "scheduling s",
            "checks s",
            "other s",
            "end to end s",
            "of a core s",
            "peak MiB",
            "gap of the period",
            f"under {MOST_SECONDS} s, 4 GB",
        ),
    )
    sizes = ((30, 64),) if options.quick else SIZES
    limit = options.seconds if options.quick else LOOKING
    for plan in ("stages", "auto"):
        for operators, accelerators in sizes:
            given = (plan, operators, accelerators, limit if plan == "auto" else None)
            found = compiled(*given) if options.quick else apart(compiled, *given)
            small = found.seconds < MOST_SECONDS and found.peak < MOST_BYTES
            table.add(
                plan,
                found.operators,
                accelerators,
                found.front,
                found.scheduling,
                found.checking,
                found.rest,
                found.seconds,
                found.core,
                found.peak / 2**20,
                found.gap,
                small,
            )
    table.notes.append(f"auto with a limit of {limit:g} s for the scheduler")
    return table


def plans(options: Options) -> Table:
    """Plans alone on the generator's transformers; writes the plot when one is asked for."""
    table = Table(
        "5a Growth of the plans (transformers, allotments up to 8)",
        ("plan", "operations", "accelerators", "period / bound", "in flight", "seconds", "bound s", "peak MiB"),
    )
    try:
        generator()
    except Absent as reason:
        return skipped(table.title, str(reason))
    sizes = [(100, 8)] if options.quick else [*OPERATIONS, *ACCELERATORS]
    lines: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for plan in GROWING:
        for operations, accelerators in sizes:
            given = (plan, operations, accelerators, options.seconds)
            n, ratio, flying, seconds, bounding, peak = one(*given) if options.quick else apart(one, *given)
            table.add(plan, n, accelerators, ratio, flying, seconds, bounding, peak / 2**20)
            if (operations, accelerators) in OPERATIONS or options.quick:
                lines["seconds against operations, 64 accelerators"][plan].append((n, seconds))
                lines["MiB against operations, 64 accelerators"][plan].append((n, peak / 2**20))
            if operations == 1000:
                lines["seconds against accelerators, 1000 operations"][plan].append((accelerators, seconds))
    if options.plot is not None:
        Path(options.plot).write_text(picture({title: dict(plot) for title, plot in lines.items()}))
        table.notes.append(f"plot written to {options.plot}")
    table.notes.append("reference: laminar 10,000 operations in 5 s; 10,000 on 256 and 1,024 in 60 s and 4 GB")
    return table


def run(options: Options) -> list[Table]:
    """The tables of this section."""
    return [plans(options), end_to_end(options)]


COLORS = ("#1b6ca8", "#d1495b", "#2e8b57", "#edae49", "#6a4c93")
WIDTH, HEIGHT, LEFT, TOP = 360, 240, 56, 34


def picture(plots: dict[str, dict[str, list[tuple[float, float]]]]) -> str:
    """Plots beside each other as SVG, both axes logarithmic: title → line → points."""
    span = WIDTH + LEFT + 24
    parts = [_plot(title, plot, i * span) for i, (title, plot) in enumerate(plots.items())]
    size = f'width="{max(1, len(plots)) * span}" height="{HEIGHT + TOP + 40}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>", ""])


def _plot(title: str, plot: dict[str, list[tuple[float, float]]], x0: int) -> str:
    points = [(x, max(y, 1e-3)) for line in plot.values() for x, y in line]
    low = [floor(log10(min(p[axis] for p in points))) for axis in (0, 1)]
    high = [max(lo + 1, ceil(log10(max(p[axis] for p in points)))) for axis, lo in zip((0, 1), low, strict=True)]

    def at(x: float, y: float) -> tuple[float, float]:
        across = (log10(x) - low[0]) / (high[0] - low[0])
        up = (log10(max(y, 1e-3)) - low[1]) / (high[1] - low[1])
        return x0 + LEFT + across * WIDTH, TOP + (1 - up) * HEIGHT

    shapes = [f'<text x="{x0 + LEFT}" y="18" font-size="13">{title}</text>']
    for e in range(low[0], high[0] + 1):
        x, y = at(10.0**e, 10.0 ** low[1])
        shapes.append(
            f'<path d="M{x:.1f} {TOP}V{y:.1f}" stroke="#ddd"/><text x="{x:.1f}" y="{y + 16:.1f}">1e{e}</text>'
        )
    for e in range(low[1], high[1] + 1):
        x, y = at(10.0 ** low[0], 10.0**e)
        shapes.append(f'<path d="M{x:.1f} {y:.1f}H{x + WIDTH:.1f}" stroke="#ddd"/>')
        shapes.append(f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">1e{e}</text>')
    for i, (name, line) in enumerate(plot.items()):
        color = COLORS[i % len(COLORS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*p) for p in sorted(line)))
        shapes.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        shapes.append(f'<text x="{x0 + LEFT + 8}" y="{TOP + 14 + 14 * i}" fill="{color}">{name}</text>')
    return "\n".join(shapes)
