"""The command line that benchmarks of several sections share."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence

from rich.console import Console

from suites.table import Options, Section


def run(purpose: str, sections: Sequence[str], plotted: str | None = None) -> int:
    """Measure the sections chosen on the command line, modules of ``suites``, and print their tables.

    ``plotted`` is the section that has a plot.
    """
    parser = argparse.ArgumentParser(description=purpose)
    parser.add_argument(
        "--only", nargs="+", choices=sections, default=sections, metavar="SECTION", help="|".join(sections)
    )
    parser.add_argument("--quick", action="store_true", help="a sample of every section")
    parser.add_argument("--seconds", type=float, default=None, help="work of one solver on one instance (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the solvers that take one")
    if plotted:
        parser.add_argument("--plot", metavar="FILE", help=f"write the plot of the section {plotted} as SVG")
    parser.add_argument("--json", action="store_true", help="print the tables as JSON")
    given = parser.parse_args()
    seconds = given.seconds if given.seconds is not None else (0.2 if given.quick else 10.0)
    options = Options(given.quick, seconds, given.seed, given.plot if plotted else None)
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
