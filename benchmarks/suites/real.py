"""Schedules run with real tensors: outputs beside those of the model in one piece."""

from __future__ import annotations

from suites.pipelines import REAL, run_case
from suites.table import Options, Table


def run(options: Options) -> list[Table]:
    """Every case once, with few micro-batches: what counts is what comes out."""
    table = Table(
        "runs with real tensors, outputs compared with the unpipelined model",
        ("model", "processes", "plan", "outputs", "greatest relative error", "allowed", "agree"),
    )
    for case in REAL[:1] if options.quick else REAL:
        found = run_case(case, "--real", "--microbatches", "8")
        outputs = found.data["outputs"]
        table.add(
            *(case.name, found.data["processes"], case.plan),
            *(outputs["compared"], f"{outputs['error']:.1e}", f"{outputs['tolerance']:.0e}", outputs["agree"]),
        )
    return [table]
