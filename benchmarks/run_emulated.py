"""Schedules run on torch.distributed (gloo), a process an accelerator: measured against predicted.

    python benchmarks/run_emulated.py [--only SECTION ...] [--quick] [--json]

Sections: emulated (ten kinds of schedules whose operators sleep: period, ratios of periods, latency), real (small
models with real tensors: outputs against the unpipelined model). Needs torch: pip install -e '.[torch]'. Each run is a
`taktc run` with processes of its own; periods are those of steady state, so that starting them does not count.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from suites.command import run  # noqa: E402

SECTIONS = ("emulated", "real")

if __name__ == "__main__":
    assert __doc__ is not None
    sys.exit(run(__doc__.splitlines()[0], SECTIONS))
