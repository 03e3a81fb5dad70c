"""Section 5: solve time and memory as operations and accelerators grow, with a plot as SVG."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections import defaultdict
from math import ceil, floor, log10
from pathlib import Path

from passes.scheduling.bounds import best_bound
from passes.scheduling.budget import Budget
from suites.instances import Absent, from_generator, generator
from suites.plans import PLANS, measure
from suites.table import Options, Table, skipped

AROUND, LAYER = 4, 13
"""Operations outside the layers of the generator's models, and in each."""

OPERATIONS = ((100, 64), (1000, 64), (10_000, 64))
ACCELERATORS = ((1000, 8), (1000, 256), (1000, 1024), (10_000, 256), (10_000, 1024))


def one(plan: str, operations: int, accelerators: int, seconds: float) -> tuple[int, float, int, float, float, int]:
    """Operations, period over bound, in flight, seconds of plan and of bound, peak bytes; in a process of its own."""
    layers = max(1, (operations - AROUND) // LAYER)
    problem = from_generator(generator().gpt(layers, accelerators, h=8192, kmax=8))
    begun = time.perf_counter()
    bound = best_bound(problem, Budget(seconds)).value
    bounding = time.perf_counter() - begun
    found = measure(plan, PLANS[plan], problem, seconds)
    assert found is not None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return len(problem.operations), found.period / bound, found.in_flight, found.seconds, bounding, peak


def run(options: Options) -> list[Table]:
    """The table of this section; writes the plot when one is asked for."""
    table = Table(
        "5 Growth (transformers, allotments up to 8)",
        ("plan", "operations", "accelerators", "period / bound", "in flight", "seconds", "bound s", "peak MiB"),
    )
    try:
        generator()
    except Absent as reason:
        return [skipped(table.title, str(reason))]
    sizes = [(100, 8)] if options.quick else [*OPERATIONS, *ACCELERATORS]
    context = multiprocessing.get_context("spawn")
    lines: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for plan in PLANS:
        for operations, accelerators in sizes:
            if options.quick:
                found = one(plan, operations, accelerators, options.seconds)
            else:
                with context.Pool(1) as pool:
                    found = pool.apply(one, (plan, operations, accelerators, options.seconds))
            n, ratio, flying, seconds, bounding, peak = found
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
    return [table]


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
