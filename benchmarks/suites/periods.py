"""Equal stages and batches without end: the periods of the known schedules in the long run, and of our own."""

from __future__ import annotations

import time

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp

from compiler.pipeline import Options as Compilation
from compiler.pipeline import new_context, run_pipeline
from compiler.view import view_of
from dialects.memory_rules import peak_memory
from dialects.structure import find_graph, find_platform
from frontend import Source, load
from passes.annotate_costs import AnnotateCostsPass
from passes.expand_training import ExpandTrainingPass
from passes.schedule_step import ScheduleStepPass
from passes.scheduling.steps.cells import Stage
from passes.scheduling.steps.known import KNOWN
from passes.scheduling.steps.run import run as simulate
from suites.table import Options, Table

TIME = 10
"""F, I and W of a rank, us."""

PLATFORM = """accelerator chip {{ memory = {} B  bandwidth = 10 GB/s  launch = 1 us  peak bf16 = 1 TFLOP/s }}
platform free {{ accelerators = {} of chip }}
"""


def known_period(name: str, ranks: int) -> float:
    """What a micro-batch more takes in long batches, ns; ranks with chunks share their work among these."""
    schedule = KNOWN[name]
    chunks = schedule.chunks or 2
    time = 1000 * TIME // chunks
    line = schedule.line(ranks, Stage(0, time, time, time, 2, 1), chunks=chunks)
    short, long = 4 * ranks, 8 * ranks
    ends = [simulate(line, schedule.generate(line, m)).makespan for m in (short, long)]
    return (ends[1] - ends[0]) / (long - short)


def equal_stages(ranks: int, memory: int = 1 << 20) -> ModuleOp:
    """The training graph of a chain of equal operators, one for each accelerator, at level ``moldable``.

    Accelerators have ``memory`` bytes. An operator of no time before them gives the first a gradient to make.
    """
    lines = ["model chain {", "  input x: tensor<8 x 64, bf16>", "  a0 = op(x) time [0us] params 8 B output 8 B"]
    for n in range(1, ranks + 1):
        lines.append(f"  a{n} = op(a{n - 1}) time [{TIME}us] backward 2.0x params 4 KiB output 1 KiB")
    text = "\n".join([*lines, f"  output a{ranks}", "}", PLATFORM.format(memory, ranks)])
    module = load(Source("equal.takt", text))
    ExpandTrainingPass(optimizer="none").apply(Context(), module)
    AnnotateCostsPass().apply(Context(), module)
    return module


def fullest(module: ModuleOp) -> int:
    """Bytes on the fullest accelerator."""
    graph, platform = find_graph(module), find_platform(module)
    assert graph is not None
    assert platform is not None
    return max(sum(held) for held in peak_memory(graph, platform).values())


def run(options: Options) -> list[Table]:
    """The tables of this section."""
    table = Table(
        "Equal stages, F = I = W = 10 us, batches without end: us from micro-batch to micro-batch",
        ("p", *KNOWN, "ours", "bound", "bytes of 1F1B", "ours, bytes", "seconds"),
    )
    behind = 0
    for ranks in (2, 4) if options.quick else range(2, 17):
        step = equal_stages(ranks)
        ScheduleStepPass(microbatches=2 * ranks, order="1f1b", stages=ranks).apply(Context(), step)
        begun = time.process_time()
        tight = equal_stages(ranks, fullest(step))
        made = run_pipeline(new_context(), tight, options=Compilation(plan="stages"))
        seconds, view = time.process_time() - begun, view_of(made)
        known = [round(known_period(name, ranks) / 1000, 3) for name in KNOWN]
        ours = round(float(view.period) / 1000, 3)
        behind += ours > min(known)
        table.add(ranks, *known, ours, round(view.bound / 1000, 3), fullest(step), fullest(made), round(seconds, 2))
    table.notes.append(f"{behind} of {len(table.rows)} behind a known schedule; ours within the bytes of 1F1B")
    return [table]
