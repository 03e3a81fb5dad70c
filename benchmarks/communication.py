"""What links cost: periods with every transfer priced and scheduled, beside those of others and lower bounds.

    python benchmarks/communication.py [--only SECTION ...] [--quick] [--seconds S] [--plot FILE.svg] [--json]

Sections: linked_partitioning (the suite dnn-partitioning under its own cost model), linked_piper (Piper's BERT-32 with
its links), bandwidth (GPT-3 on 64 accelerators, links from fast to slow). Instances are not part of the repository;
where they are absent a table says so. Every schedule is verified before its figures are shown. ``--seconds`` limits
the work of each solver on each instance, in seconds of one core; ``--quick`` takes a sample of every section.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from suites.command import run  # noqa: E402

SECTIONS = ("linked_partitioning", "linked_piper", "bandwidth")

if __name__ == "__main__":
    assert __doc__ is not None
    sys.exit(run(__doc__.splitlines()[0], SECTIONS, "bandwidth"))
