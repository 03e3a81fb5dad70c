"""How long compiling takes, pass by pass, and how much memory it needs, as models grow.

    python benchmarks/compile_time.py [--sizes 100 1000 10000] [--time-limit S] [--json]

The model is a GPT with as many layers as make up the wanted number of operators (12 a layer and 4
around them), on 64 A100. Every size runs in a process of its own, so that its peak memory is its
own. The last columns give the growth of time from one size to the next: with sizes in steps of 10,
10 is linear. Steps in parentheses are no part of compiling: reading the printed IR back, simulating.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PLATFORM = ROOT / "examples" / "dgx_a100_64.takt"
SIZES = (100, 1_000, 10_000)
AROUND, LAYER = 4, 12
"""Operators outside the layers, and in each."""

MODEL = """
import "takt/embedding.takt"
import "takt/head.takt"
import "takt/transformer.takt"

model gpt {{
  input tokens: tensor<1 x 2048, i32>
  x = token_position_embedding(tokens, vocab = 51200, dim = 4096)
  repeat {layers} carry x {{
    x = gpt_decoder(x, heads = 32)
  }}
  logits = lm_head(x, vocab = 51200)
  output logits
}}
"""


def model_text(operators: int) -> str:
    """A model of the greatest number of operators that is at most ``operators``, at least one layer."""
    return MODEL.format(layers=max(1, (operators - AROUND) // LAYER))


class Stopwatch:
    """Seconds of named steps, in the order they were first seen."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Charge the time since the last lap to ``name``."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now


def measure(operators: int, time_limit: float | None) -> dict[str, Any]:
    """Compile one model in this process; seconds of every step, operators, peak memory in bytes."""
    watch = Stopwatch()
    sys.path.insert(0, str(ROOT))
    from compiler.ir_input import parse_ir
    from compiler.output import print_ir
    from compiler.pipeline import Observer, Options, new_context, run_pipeline, verify
    from frontend import Source, load

    class Laps(Observer):
        """Charges every pass and every check to the watch."""

        def ran(self, step: str, module: object, seconds: float) -> None:
            watch.lap(step.split("{")[0])

        def verified(self, seconds: float) -> None:
            watch.lap("level checks")

    context = new_context()
    watch.lap("start-up")
    module = load(Source("gpt.takt", model_text(operators)), platform=Source.read(str(PLATFORM)))
    watch.lap("front end")
    verify(module, Laps())
    module = run_pipeline(context, module, options=Options(time_limit=time_limit), observer=Laps())
    text = print_ir(module)
    watch.lap("print IR")
    peak = peak_bytes()
    parse_ir(context, text, "gpt.mlir")
    watch.lap("(read IR)")
    from compiler.simulate import time_triggered
    from compiler.view import view_of

    view = view_of(module)
    time_triggered(view)
    watch.lap("(simulate)")
    return {
        "operators": len(view.tasks),
        "seconds": watch.seconds,
        "total_seconds": sum(s for name, s in watch.seconds.items() if not name.startswith("(")),
        "peak_bytes": peak,
        "period_ns": view.pattern / view.microbatches,
        "gap": float(view.gap),
    }


def peak_bytes() -> int:
    """The most memory this process ever held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def measure_apart(operators: int, time_limit: float | None) -> dict[str, Any]:
    """:func:`measure` in a fresh process."""
    command = [sys.executable, __file__, "--worker", "--sizes", str(operators)]
    if time_limit is not None:
        command += ["--time-limit", str(time_limit)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"compiling {operators} operators failed")
    return json.loads(done.stdout)


def show(results: list[dict[str, Any]]) -> None:
    """Print one row a step, one column a size, and the growth between sizes."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Seconds to compile, by operators")
    table.add_column("step", no_wrap=True)
    for result in results:
        table.add_column(f"{result['operators']:,}", justify="right")
    for number in range(1, len(results)):
        table.add_column(f"growth {number}", justify="right")

    def row(name: str, values: list[float], digits: int, end: bool = False) -> None:
        growth = [f"{b / a:.1f}" if a >= 0.001 else "" for a, b in pairwise(values)]
        table.add_row(name, *(f"{v:.{digits}f}" for v in values), *growth, end_section=end)

    steps = list(results[-1]["seconds"])
    for name in steps:
        row(name, [r["seconds"].get(name, 0.0) for r in results], 3, name == steps[-1])
    row("compile, end to end", [r["total_seconds"] for r in results], 3)
    row("peak memory, MiB", [r["peak_bytes"] / 2**20 for r in results], 0)
    row("gap of the period, %", [100 * r["gap"] for r in results], 2)
    Console(width=None if sys.stdout.isatty() else 100).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time every pass of the compiler on models of growing size.")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="numbers of operators")
    parser.add_argument("--time-limit", type=float, help="seconds for the solver (default: the compiler's own)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(measure(args.sizes[0], args.time_limit)))
        return
    results = [measure_apart(size, args.time_limit) for size in args.sizes]
    if args.json:
        print(json.dumps(results, indent=2))
    else:
        show(results)


if __name__ == "__main__":
    main()
