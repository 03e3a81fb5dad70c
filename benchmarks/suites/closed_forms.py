"""Idle time and activations of the known schedules on equal stages: simulated, and as the papers say.

Once as orders of cells, and once as graphs that went through the compiler, its checker and its simulator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from xdsl.dialects.builtin import ModuleOp

from compiler.pipeline import Options as Choice
from compiler.pipeline import new_context, run_pipeline
from compiler.simulate import time_triggered
from compiler.view import view_of
from frontend import Source, load
from passes.choices import KNOWN_ORDERS
from passes.scheduling.steps.cells import Stage
from passes.scheduling.steps.known import KNOWN
from passes.scheduling.steps.run import run as simulate
from suites.table import Options, Table

UNEQUAL = Stage(0, 10_000, 12_000, 7_000, activation=10, kept=6)
"""Where F, I and W may differ."""

EQUAL = Stage(0, 10_000, 10_000, 10_000, activation=1, kept=1)
"""The assumption under which ZB-V and DualPipe-V are made: F = I = W, and W needs all that I does."""

CHUNKS = 3
"""Of interleaved 1F1B."""


@dataclass(frozen=True)
class Form:
    """What a paper says of a schedule: idle time of the busiest rank, and the most bytes each rank holds."""

    name: str
    stage: Stage
    idle: Callable[[int, Stage], int]
    idle_formula: str
    held: Callable[[int, int, int, Stage], int]
    held_formula: str


FORMS = (
    Form(
        "GPipe",
        UNEQUAL,
        lambda p, s: (p - 1) * s.work,
        "(p-1)(F+B), GPipe 2.3",
        lambda p, m, r, s: m * s.activation,
        "m, GPipe 2.3",
    ),
    Form(
        "1F1B",
        UNEQUAL,
        lambda p, s: (p - 1) * s.work,
        "(p-1)(F+B), Narayanan SC21 2.2.1",
        lambda p, m, r, s: min(m, p - r) * s.activation,
        "min(m, p-s), Narayanan SC21 2.2.1",
    ),
    Form(
        "1F1B*",
        UNEQUAL,
        lambda p, s: (p - 1) * s.work,
        "(p-1)(F+B), is 1F1B on equal stages",
        lambda p, m, r, s: min(m, p - r) * s.activation,
        "min(m, p-s), is 1F1B on equal stages",
    ),
    Form(
        "interleaved 1F1B",
        UNEQUAL,
        lambda p, s: (p - 1) * s.work,
        "(p-1)(F+B) of a chunk, Narayanan SC21 2.2.2",
        lambda p, m, r, s: min(CHUNKS * m, (CHUNKS - 1) * p + 2 * (p - 1 - r) + 1) * s.activation,
        "vp+p-1 chunks on rank 0, Korthikanti 4.2.3",
    ),
    Form(
        "ZB-H1",
        UNEQUAL,
        lambda p, s: (p - 1) * (s.forward + s.inputs - s.weights),
        "(p-1)(F+I-W), Qi table 2",
        lambda p, m, r, s: (p - r) * s.activation + r * s.kept,
        "p-s, and s of W, Qi 2.3",
    ),
    Form(
        "ZB-H2",
        UNEQUAL,
        lambda p, s: (p - 1) * (s.forward + s.inputs - 2 * s.weights),
        "(p-1)(F+I-2W), Qi table 2",
        lambda p, m, r, s: (2 * (p - r) - 1) * s.activation + 2 * r * s.kept,
        "2(p-s)-1, and 2s of W, Qi 2.3",
    ),
    Form("ZB-H1", EQUAL, lambda p, s: (p - 1) * s.forward, "(p-1)F, Qi table 2", lambda p, m, r, s: p, "p, Qi table 2"),
    Form("ZB-H2", EQUAL, lambda p, s: 0, "0, Qi table 2", lambda p, m, r, s: 2 * p - 1, "2p-1, Qi table 2"),
    Form("ZB-V", EQUAL, lambda p, s: 0, "0, Qi (arXiv) 6", lambda p, m, r, s: 2 * p, "2p chunks, Qi (arXiv) 6"),
    Form(
        "DualPipe-V",
        EQUAL,
        lambda p, s: (p - 1) * s.forward,
        "(p-1)(F+I-W), docs/training.md",
        lambda p, m, r, s: 2 * p + 1,
        "2p+1 chunks, table of DualPipe",
    ),
)


def run(options: Options) -> list[Table]:
    """One row a formula and size; times in us."""
    columns = (
        *("schedule", "p", "m", "idle us", "by formula", "formula"),
        *("held on ranks 0, p-1", "held by formula", "formula of held"),
    )
    table = Table("Closed forms of the known schedules on equal stages", columns)
    wrong = 0
    for form in FORMS:
        known = KNOWN[form.name]
        for p in (4,) if options.quick else (2, 4, 8, 16):
            for m in (2 * p, 4 * p):
                line = known.line(p, form.stage, chunks=CHUNKS)
                taken = simulate(line, known.generate(line, m))
                idle, said = known.cost(taken) - max(taken.busy), form.idle(p, form.stage)
                held = tuple(form.held(p, m, rank, form.stage) for rank in range(p))
                wrong += idle != said or taken.peaks != held
                table.add(
                    *(form.name, p, m, idle / 1000, said / 1000, form.idle_formula),
                    *(f"{taken.peaks[0]}, {taken.peaks[-1]}", f"{held[0]}, {held[-1]}", form.held_formula),
                )
    table.notes.append(f"{wrong} of {len(table.rows)} rows differ from their formulas on any rank.")
    return [table, compiled(options)]


def compiled(options: Options) -> Table:
    """Idle time of graphs of equal stages, by the compiler's simulator, in us."""
    columns = ("schedule", "p", "m", "step us", "simulated us", "idle us", "by formula")
    table = Table("The same schedules of graphs, through checker and simulator", columns)
    wrong = 0
    for form in FORMS:
        for p in (4,) if options.quick else (2, 4, 8):
            m = 2 * p
            view = view_of(graph(form, p, m))
            found = time_triggered(view, 3 * m).step
            idle = view.pattern - max(view.load.values()) * m
            said = form.idle(p, form.stage)
            wrong += found != view.pattern or idle != said
            measured = None if found is None else float(found) / 1000
            table.add(form.name, p, m, view.pattern / 1000, measured, float(idle) / 1000, said / 1000)
    table.notes.append(f"{wrong} of {len(table.rows)} rows differ from their formulas, or from step to step.")
    return table


def graph(form: Form, ranks: int, microbatches: int) -> ModuleOp:
    """A step of a chain of equal operators, a chunk each, on accelerators without links."""
    chunks = KNOWN[form.name].chunks or CHUNKS
    back = f"backward [{form.stage.inputs + form.stage.weights} ns] weights [{form.stage.weights} ns]"
    # The operator before them, of no time, gives the first a gradient to make.
    lines = ["input x: tensor<8 x 64, bf16>", "a0 = op(x) time [0us] params 8 B output 8 B"]
    for number in range(ranks * chunks):
        lines.append(f"a{number + 1} = op(a{number}) time [{form.stage.forward} ns] {back} params 8 B output 8 B")
    text = "model chain {\n" + "\n".join(lines) + f"\noutput a{ranks * chunks}\n}}\n"
    chip = "accelerator chip { memory = 1 GiB bandwidth = 10 GB/s launch = 1 us peak bf16 = 1 TFLOP/s }\n"
    board = f"platform board {{ accelerators = {ranks} of chip }}\n"
    order = next(name for name, known in KNOWN_ORDERS.items() if known == form.name)
    choice = Choice(training="none", microbatches=microbatches, order=order, stages=ranks, chunks=CHUNKS)
    if order != "interleaved":
        choice = Choice(training="none", microbatches=microbatches, order=order, stages=ranks)
    return run_pipeline(new_context(), load(Source("chain.takt", text + chip + board)), options=choice)
