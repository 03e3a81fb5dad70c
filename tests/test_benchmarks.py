"""The benchmark of compile times measures what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "compile_time.py"
PASSES = {"front end", "annotate-costs", "partition-stages", "schedule-periodic", "level checks", "print IR"}


def benchmark(*options: str) -> str:
    return subprocess.run([sys.executable, str(SCRIPT), *options], check=True, capture_output=True, text=True).stdout


def test_json_has_every_step_of_every_size() -> None:
    small, large = json.loads(benchmark("--sizes", "100", "400", "--json"))
    assert (small["operators"], large["operators"]) == (100, 400)
    for result in (small, large):
        assert set(result["seconds"]) > PASSES
        assert all(seconds > 0 for seconds in result["seconds"].values())
        compiling = [s for step, s in result["seconds"].items() if not step.startswith("(")]
        assert result["total_seconds"] == sum(compiling)
        assert 0 <= result["gap"] < 1
    assert 2**20 < small["peak_bytes"] <= large["peak_bytes"] * 1.1


def test_table_has_one_column_a_size_and_the_growth_between() -> None:
    table = benchmark("--sizes", "28", "100")
    (header,) = [line for line in table.splitlines() if "step" in line]
    assert [cell.strip() for cell in header.strip("┃ ").split("┃")] == ["step", "28", "100", "growth 1"]
    assert all(any(step in line for line in table.splitlines()) for step in PASSES)
