"""The eight measured rows of Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models".

Step time of Megatron-LM on A100 (arXiv 2205.05198, table 5) beside our prediction and that of Calculon, and bytes on an
accelerator beside figures 1 and 7. All constants are those of ``models/dgx_a100_training.takt``, which was written,
with its sources, before any row was predicted.
"""

from __future__ import annotations

from collections.abc import Mapping

from suites.megatron_step import CASES, HELD, Case, Model, predict
from suites.table import Options, Table

MEASURED: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "22B": {"full": (1.42, 1.40), "selective": (1.10, 1.14)},
    "175B": {"full": (18.13, 18.03), "selective": (13.75, 13.64)},
    "530B": {"full": (49.05, 49.89), "selective": (37.83, 34.47)},
    "1T": {"full": (94.42, 90.08), "selective": (71.49, 66.04)},
}
"""Seconds of a step: measured (table 5), and as Calculon predicts them (commit caa4b11, ``llm-validation``)."""

PUBLISHED: Mapping[str, tuple[float, float, float, float]] = {
    "22B": (45.5625, 59.25, 9.5625, 7.64),
    "175B": (45.5625, 66.84375, 12.3515625, 8.71),
    "530B": (31.640625, 114.0234375, 23.076171875, 9.42),
    "1T": (32.958984375, 131.25, 26.5625, 9.42),
}
"""GiB of parameters and optimizer, of activations with tensor parallelism alone and with sequence parallelism and
selective recomputation (figure 1); activations with full recomputation in percent of the former (figure 7). As listed
in Calculon's ``llm/validation.py``."""

GIB = 2**30


def run(options: Options) -> list[Table]:
    """Both tables; ``quick``: of the smallest model."""
    cases = CASES[:1] if options.quick else CASES
    return [_times(cases), _memory(cases)]


def _times(cases: tuple[Case, ...]) -> Table:
    columns = ("model", "recomputation", "measured s", "ours s", "error %", "Calculon s", "its error %")
    table = Table(
        "Seconds of a training step of Megatron-LM on A100, 8 a stage",
        (*columns, "layer forward ms", "backward ms", "again ms", "bubble %", "optimizer ms"),
    )
    errors: list[float] = []
    theirs: list[float] = []
    for case in cases:
        for policy, (measured, calculon) in MEASURED[case.name].items():
            found = predict(case, policy)
            errors.append(100 * (found.seconds / measured - 1))
            theirs.append(100 * (calculon / measured - 1))
            table.add(
                *(case.name, policy if policy == "full" else "selective, sequence parallel"),
                *(measured, round(found.seconds, 2), round(errors[-1], 1), calculon, round(theirs[-1], 1)),
                *(round(t / 1e6, 2) for t in (found.forward, found.backward, found.again)),
                *(round(100 * found.taken.bubble(found.pipeline), 1), round(found.optimizer / 1e6)),
            )
    for who, some in (("ours", errors), ("Calculon", theirs)):
        absolute = [abs(e) for e in some]
        table.notes.append(f"{who}: mean error {sum(absolute) / len(absolute):.2f} %, greatest {max(absolute):.2f} %")
    table.notes.append("measured: table 5; a layer's forward and backward times and what it repeats are predictions")
    return table


def _memory(cases: tuple[Case, ...]) -> Table:
    table = Table(
        "GiB on an accelerator of the first rank",
        (
            *("model", "parameters, optimizer", "published", "activations, none", "published "),
            *("selective, sequence parallel", "published  ", "full % of none", "published   "),
        ),
    )
    worst = 0.0
    for case in cases:
        whole, split = Model(case, sequence=False), Model(case, sequence=True)
        states = case.layers // case.ranks * whole.params("layer") // 2 * HELD / GIB
        # As many layers as the first rank holds of all its micro-batches (section 4.2.3).
        held = case.layers * (1 + (case.ranks - 1) / (case.ranks * case.interleaved) * (case.interleaved > 1))
        none, selective, full = (
            held * model.activations(policy) / GIB
            for model, policy in ((whole, "none"), (split, "selective"), (whole, "full"))
        )
        found = (states, none, selective, 100 * full / none)
        worst = max(worst, *(abs(100 * (f / p - 1)) for f, p in zip(found, PUBLISHED[case.name], strict=True)))
        pairs = zip(found, PUBLISHED[case.name], strict=True)
        table.add(case.name, *(round(figure, 2) for pair in pairs for figure in pair))
    sources = f"published: figure 1, and figure 7 for full. Parameters of layers alone, {HELD} B each"
    table.notes.append(f"greatest error {worst:.1f} %; {sources}")
    return table
