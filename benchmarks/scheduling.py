"""What the scheduler reaches, beside what others or earlier prototypes reached on the same instances.

    python benchmarks/scheduling.py [--only SECTION ...] [--quick] [--seconds S] [--plot FILE.svg] [--json]

Sections: transformers, small, outside, rivals, growth. Instances are not part of the repository; where they
are absent a table says so. Every schedule is verified before its figures are shown. ``--seconds`` limits the work of
each solver on each instance, in seconds of one core, which is also what columns of seconds show, so that
other processes do not matter; ``--quick`` takes a sample of every section.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from suites.command import run  # noqa: E402

SECTIONS = ("transformers", "small", "outside", "rivals", "growth")

if __name__ == "__main__":
    assert __doc__ is not None
    sys.exit(run(__doc__.splitlines()[0], SECTIONS, "growth"))
