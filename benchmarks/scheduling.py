"""What the scheduler reaches, beside what others or earlier prototypes reached on the same instances.

    python benchmarks/scheduling.py [--only SECTION ...] [--quick] [--seconds S] [--plot FILE.svg] [--json]

Sections: transformers, small, outside, linked_partitioning, rivals, growth. Instances are not part of the
repository; where they are absent a table says so. Every schedule is verified before its figures are shown.
``--seconds`` limits the work of each solver on each instance, in seconds of one core, which is also what columns of
seconds show, so that other processes do not matter; ``--quick`` takes a sample of every section.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from rich.console import Console  # noqa: E402
from suites.table import Options, Section  # noqa: E402

SECTIONS = ("transformers", "small", "outside", "linked_partitioning", "rivals", "growth")


def main() -> int:
    """Measure the chosen sections and print their tables."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", choices=SECTIONS, default=SECTIONS, metavar="SECTION", help="|".join(SECTIONS)
    )
    parser.add_argument("--quick", action="store_true", help="a sample of every section")
    parser.add_argument("--seconds", type=float, default=None, help="work of one solver on one instance (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the solvers that take one")
    parser.add_argument("--plot", metavar="FILE", help="write the plot of the section growth as SVG")
    parser.add_argument("--json", action="store_true", help="print the tables as JSON")
    given = parser.parse_args()
    seconds = given.seconds if given.seconds is not None else (0.2 if given.quick else 10.0)
    options = Options(given.quick, seconds, given.seed, given.plot)
    console = Console(width=None if sys.stdout.isatty() else 200)
    data: dict[str, object] = {}
    for name in given.only:
        section: Section = importlib.import_module(f"suites.{name}").run
        tables = section(options)
        data[name] = [table.as_data() for table in tables]
        if not given.json:
            for table in tables:
                table.show(console)
    if given.json:
        print(json.dumps(data, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
