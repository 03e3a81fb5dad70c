"""Piper's BERT-32 with its links: contiguous stages that know what a cut costs, and operations moved one by one."""

from __future__ import annotations

import time
from pathlib import Path

from passes.scheduling.budget import Budget
from passes.scheduling.linked_stages import partition_linked
from passes.scheduling.problem import MemoryProblem
from suites.instances import Absent, instance_folder, read_rows
from suites.outside import seconds_text
from suites.piper_model import BANDWIDTH, MICROBATCHES, Model, bound, read_piper_linked, spelled_out
from suites.piper_search import Placed, search
from suites.piper_stages import contiguous, replicated
from suites.table import Options, Table, skipped

ACCELERATORS = (8, 16, 32, 64)

GB = 2**30

MOVES = 10_000
"""Moves of single operations for each second that a solver is given."""

ENOUGH = 80 * GB
"""The greater of the two limits on memory, which is as good as none in Piper's plans."""


def _piper(path: Path, **wanted: str) -> dict[int, float]:
    """Accelerators → period of Piper's plan in s, in the rows with links that have the ``wanted`` values."""
    rows = read_rows(path.with_name("reference_values.csv"))
    asked = {"bandwidth_GiB_s": "25.0", "tensor_parallel": "1", **wanted}
    found = (row for row in rows if all(row[key] == value for key, value in asked.items()))
    return {int(row["k"]): float(row["TPS_s"]) for row in found if row["TPS_s"] != "OOM"}


def _cases(path: Path) -> list[tuple[str, int, bool, dict[int, float]]]:
    """Name, bytes of memory, whether operations may recompute, and Piper's periods."""
    alone = {"data_parallel": "0"}
    return [
        ("any", 0, False, _piper(path, memGB="1000000.0", activation_recomp="0", **alone)),
        ("8 GB", 8 * GB, False, _piper(path, memGB="8.0", activation_recomp="0", **alone)),
        ("8 GB, recomputing", 8 * GB, True, _piper(path, memGB="8.0", activation_recomp="1", **alone)),
    ]


def _ours(model: Model, options: Options, least: int) -> tuple[Placed | None, Placed | None]:
    """Contiguous stages by Piper's rules, and the best plan with operations moved; a verified schedule of it exists."""
    stages = contiguous(model)
    if stages is None:
        return None, None
    best = stages
    if stages.period > least:
        best = search(model, [stages], round(MOVES * options.seconds), options.seed) or stages
    _, schedule = spelled_out(model.problem, [v.time for v in best.variants], best.sets)
    assert schedule.period == best.period
    assert not model.missing(best.sets, best.variants)
    return stages, best


def alone(options: Options) -> Table:
    """No copies of stages: with any memory and with little, each edge priced for itself or each destination once."""
    table = Table(
        "5a Piper's BERT-32 with links of 25 GiB/s, no replication (s)",
        (
            "accelerators",
            "memory",
            "priced",
            "compiler's stages",
            "stages",
            "ours",
            "our bound",
            "proven",
            "Piper",
            "against Piper",
            "seconds",
        ),
    )
    try:
        path = instance_folder("piper") / "bert32a100.json"
    except Absent as reason:
        return skipped(table.title, str(reason))
    wasteful: list[int] = []
    for per_edge in (True, False):
        for name, memory, recompute, known in _cases(path)[: 1 if options.quick else None]:
            for count in ACCELERATORS[: 2 if options.quick else None]:
                begun = time.process_time()
                model = read_piper_linked(path, count, memory=memory, recompute=recompute, per_edge=per_edge)
                least = bound(model)
                stages, best = _ours(model, options, least)
                spent = time.process_time() - begun
                piper = known.get(count) if per_edge else None
                if stages is None or best is None:
                    table.add(count, name, _priced(per_edge), *[None] * 7, spent)
                    continue
                if not memory and Model(model.problem, model.variants, model.params, ENOUGH).missing(
                    best.sets, best.variants
                ):
                    wasteful.append(count)
                table.add(
                    count,
                    name,
                    _priced(per_edge),
                    None if memory else seconds_text(_compiled(model.problem)),
                    seconds_text(stages.period),
                    seconds_text(best.period),
                    seconds_text(least),
                    best.period == least,
                    None if piper is None else f"{piper:.9f}".rstrip("0"),
                    None if piper is None else f"{best.period / 1e9 / piper - 1:+.2%}",
                    spent,
                )
    table.notes += [
        "stages: contiguous, by Piper's rules; compiler's: any memory, and a copy takes as long at both ends",
        "ours: operations moved one by one from those; bound: no link, or the fan-out of one value; no memory",
        f"plans with any memory need more than 80 GB on {wasteful or 'no'} accelerators",
    ]
    return table


def _priced(per_edge: bool) -> str:
    return "each edge" if per_edge else "each destination"


def _compiled(problem: MemoryProblem) -> int:
    return partition_linked(problem, tolerance=0, budget=Budget()).period


def copied(options: Options) -> Table:
    """Stages with copies, which synchronise their parameters once for all micro-batches of a batch."""
    table = Table(
        "5b Piper's BERT-32 with links of 25 GiB/s, stages with copies (s)",
        ("accelerators", "memory", "ours", "stages", "copies", "Piper", "against Piper", "seconds"),
    )
    try:
        path = instance_folder("piper") / "bert32a100.json"
    except Absent as reason:
        return skipped(table.title, str(reason))
    cases = [
        ("any", 0, False, _piper(path, memGB="1000000.0", activation_recomp="0", data_parallel="1")),
        ("8 GB, recomputing", 8 * GB, True, _piper(path, memGB="8.0", activation_recomp="1", data_parallel="1")),
        ("2 GB, recomputing", 2 * GB, True, _piper(path, memGB="2.0", activation_recomp="1", data_parallel="1")),
    ]
    for name, memory, recompute, known in cases[: 1 if options.quick else None]:
        for count in ACCELERATORS[: 2 if options.quick else None]:
            begun = time.process_time()
            model = read_piper_linked(path, count, memory=memory, recompute=recompute)
            plan = replicated(model, BANDWIDTH, MICROBATCHES)
            spent = time.process_time() - begun
            piper = known.get(count)
            table.add(
                count,
                name,
                None if plan is None else seconds_text(plan.period),
                None if plan is None else len(plan.copies),
                None if plan is None else sum(plan.copies),
                None if piper is None else f"{piper:.9f}".rstrip("0"),
                None if piper is None or plan is None else f"{plan.period / 1e9 / piper - 1:+.2%}",
                spent,
            )
    table.notes.append("contiguous as Piper plans; exact over the topological orders tried and over what to recompute")
    return table


def run(options: Options) -> list[Table]:
    """The tables of this section."""
    return [alone(options), copied(options)]
