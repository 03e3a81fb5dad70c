"""Small models that `benchmarks/run_emulated.py` runs, and how it runs them.

Those for processes that sleep have written times of at least 20 ms, so that a run takes the same everywhere: a process
sleeps no shorter than the machine lets it, and messages on the loopback take some tenths of a millisecond. Those for
real tensors are small transformers, whose times come from the cost model.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

PLATFORM = """accelerator sleeper {{
  memory = 16 GiB
  bandwidth = 400 GB/s
  launch = 5 us
  peak bf16 = 40 TFLOP/s
}}

platform board {{
  accelerators = {count} of sleeper
  link board {{ latency = 20 us  bandwidth = 4 GB/s }}
}}
"""


@dataclass(frozen=True)
class Case:
    """A model on ``accelerators`` accelerators, and the options of ``taktc`` that make its schedule."""

    name: str
    accelerators: int
    options: tuple[str, ...]
    model: str
    board: str = PLATFORM

    @property
    def platform(self) -> str:
        return self.board.format(count=self.accelerators)

    @property
    def plan(self) -> str:
        return self.options[1]


@dataclass(frozen=True)
class Figures:
    """What a run reported; times in ns."""

    data: dict[str, Any]

    @property
    def predicted(self) -> float:
        return self.data["predicted"]["period_ns"]

    @property
    def measured(self) -> float:
        return self.data["measured"]["period_ns"]

    @property
    def predicted_latency(self) -> float:
        return self.data["predicted"]["latency_ns"]

    @property
    def latency(self) -> float:
        return self.data["measured"]["latency_ns"]


def run_case(case: Case, *options: str) -> Figures:
    """Compile and run a case by `taktc run`, in processes of its own."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model.takt").write_text(case.model)
        (folder / "platform.takt").write_text(case.platform)
        command = [sys.executable, "-m", "compiler.taktc", "run", str(folder / "model.takt")]
        command += ["--platform", str(folder / "platform.takt"), "--json", str(folder / "found.json")]
        subprocess.run([*command, *case.options, *options], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        return Figures(json.loads((folder / "found.json").read_text()))


def chain(times: list[str], name: str = "chain") -> str:
    """Operators in a row, each with its table of times, 8 MiB from one to the next."""
    lines = [f"  v{n + 1} = op(v{n}) time {time} params 8 MiB output 8 MiB" for n, time in enumerate(times)]
    body = "\n".join(["  input v0: tensor<1024 x 1024, bf16>", *lines, f"  output v{len(times)}"])
    return f"model {name} {{\n{body}\n}}\n"


SKIP = """model skip {
  input x: tensor<1024 x 1024, bf16>
  down1 = op(x)           time [40ms] params 8 MiB output 16 MiB
  down2 = op(down1)       time [35ms] params 8 MiB output 8 MiB
  middle = op(down2)      time [45ms] params 8 MiB output 8 MiB
  up2 = op(middle, down2) time [38ms] params 8 MiB output 8 MiB
  up1 = op(up2, down1)    time [42ms] params 8 MiB output 16 MiB
  output up1
}
"""

ENCODER_DECODER = """model encoder_decoder {
  input source: tensor<512 x 1024, bf16>
  input target: tensor<512 x 1024, bf16>
  e1 = op(source)     time [30ms] params 8 MiB output 4 MiB
  e2 = op(e1)         time [30ms] params 8 MiB output 4 MiB
  e3 = op(e2)         time [30ms] params 8 MiB output 4 MiB
  d0 = op(target)     time [20ms] params 8 MiB output 4 MiB
  d1 = op(d0, e3)     time [36ms] params 8 MiB output 4 MiB
  d2 = op(d1, e3)     time [36ms] params 8 MiB output 4 MiB
  d3 = op(d2, e3)     time [36ms] params 8 MiB output 4 MiB
  head = op(d3)       time [25ms] params 8 MiB output 4 MiB
  output head
}
"""

BRANCHES = """model branches {
  input x: tensor<1024 x 1024, bf16>
  a = op(x)        time [50ms, 28ms, 24ms] params 8 MiB output 8 MiB
  b = op(a)        time [70ms, 36ms, 30ms] params 8 MiB output 8 MiB
  c = op(a)        time [60ms, 33ms, 24ms] params 8 MiB output 8 MiB
  d = op(b, c)     time {1: 64ms, 2: 34ms} params 8 MiB output 8 MiB
  e = op(a, d)     time {1: 90ms, 2: 47ms, 4: 26ms} params 8 MiB output 8 MiB
  f = op(e)        time [22ms] params 8 MiB output 8 MiB
  output f
}
"""

CASES = (
    Case("equal chain", 4, ("--plan", "stages"), chain(["[30ms]"] * 4)),
    Case("unequal chain", 5, ("--plan", "stages"), chain(["[40ms]", "[24ms]", "[52ms]", "[33ms]", "[21ms]"])),
    Case("skip connection", 5, ("--plan", "stages"), SKIP),
    Case("encoder-decoder", 8, ("--plan", "stages"), ENCODER_DECODER),
    Case(
        "unequal allotments",
        6,
        ("--plan", "stages", "--allotments", "stage"),
        chain(["[40ms, 22ms]", "[110ms, 58ms, 41ms]", "[44ms, 24ms]", "[75ms, 39ms]"]),
    ),
    Case("shared boundary", 4, ("--plan", "shared"), chain(["{1: 44ms, 2: 24ms, 3: 21ms, 4: 20ms}"] * 9)),
    Case("interleaved", 4, ("--plan", "interleaved"), chain(["[20ms]", "[26ms]", "[34ms]", "[22ms]", "[28ms]"] * 2)),
    Case("there and back", 4, ("--plan", "v"), chain(["[20ms]", "[26ms]", "[34ms]", "[22ms]", "[28ms]"] * 2)),
    Case(
        "copies that take turns",
        5,
        ("--plan", "replicated", "--replicate", "2"),
        chain(["[22ms]", "[66ms]", "[24ms]", "[30ms]"]),
    ),
    Case("branches, any sets", 5, ("--plan", "free"), BRANCHES),
)
"""Chains, skips and branches; stages of equal and of unequal width, and every other kind of plan."""

TRANSFORMER = """import "takt/embedding.takt"
import "takt/head.takt"
import "takt/transformer.takt"

model transformer {
  input tokens: tensor<1 x 64, i32>
  x = token_position_embedding(tokens, vocab = 256, dim = 64)
  repeat 4 carry x {
    x = gpt_decoder(x, heads = 4)
  }
  logits = lm_head(x, vocab = 256)
  output logits
}
"""

LONG_SKIP = """import "takt/transformer.takt"

model long_skip {
  input x: tensor<1 x 64 x 64, bf16>
  a = encoder(x, heads = 4)
  b = encoder(a, heads = 4)
  c = encoder(b, heads = 4)
  d = residual(c, a)
  e = encoder(d, heads = 4)
  y = residual(e, x)
  output y
}
"""

SLOW = PLATFORM.replace("40 TFLOP/s", "2 GFLOP/s").replace("5 us", "1 us")
"""Where small operators are long enough to be worth several accelerators."""

REAL = (
    Case("transformer, a chain", 4, ("--plan", "stages"), TRANSFORMER, SLOW),
    Case(
        "transformer, unequal allotments",
        *(5, ("--plan", "stages", "--stages", "3", "--allotments", "stage"), TRANSFORMER, SLOW),
    ),
    Case("skip connections", 4, ("--plan", "stages"), LONG_SKIP, SLOW),
)
"""Small models of real operators."""
