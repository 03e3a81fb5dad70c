"""Training steps: the known schedules beside the closed forms and the measured rows of the papers.

    python benchmarks/training.py [--only SECTION ...] [--quick] [--plot FILE.svg] [--json]

Sections: closed_forms (idle time and activations held of every known schedule, beside what its paper says), zero_bubble
(the twelve rows of Qi et al., ICLR 2024), own_steps (our own orders within the memory of theirs, and on equal stages
against the known schedules: about ten minutes), memory (GPT-3 175B on 64 accelerators, period against memory with the
proven bound, and a plot: about three minutes), megatron (measured steps and bytes of Korthikanti et al., MLSys 2023,
beside our predictions), periods (equal stages and batches without end), models (GPT-3, Llama 3, Mixtral: ours beside
every known schedule, and where the time goes: some minutes). Rows of papers are not part of the repository; where they
are absent a table says so.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from suites.command import run  # noqa: E402

SECTIONS = ("closed_forms", "zero_bubble", "own_steps", "periods", "models", "memory", "megatron")

if __name__ == "__main__":
    assert __doc__ is not None
    sys.exit(run(__doc__.splitlines()[0], SECTIONS, "memory"))
