"""What users may choose from, by name: the command line and the options of the passes offer the same.

Imports nothing, so that ``taktc --help`` stays quick.
"""

from __future__ import annotations

from typing import Literal, get_args

Plan = Literal[
    "auto", "stages", "interleaved", "v", "shared", "pushed", "replicated", "list", "laminar", "assigned", "free"
]
PLANS: tuple[Plan, ...] = get_args(Plan)
"""The plans, the best of all first, then the families of ``passes/scheduling/families.py`` from tame to free."""

Goal = Literal["period", "step", "latency"]
GOALS: tuple[Goal, ...] = get_args(Goal)
"""What a schedule may be chosen for."""

Solver = Literal["blocks", "beam", "list", "buddy", "neighbourhoods", "cp-sat", "milp"]
SOLVERS: tuple[Solver, ...] = get_args(Solver)
"""The engines that a user may restrict the search to."""

Granularity = Literal["operator", "block"]
GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)
"""What is placed as one."""

Optimizer = Literal["adam", "momentum", "sgd", "none"]
OPTIMIZERS: tuple[Optimizer, ...] = get_args(Optimizer)
"""What is kept for each parameter that is trained; "none" is less than "sgd", which has a master copy."""

Tie = Literal["copies", "colocate"]
TIES: tuple[Tie, ...] = get_args(Tie)
"""Whether operators that share parameters have copies of them in training, or one set of accelerators."""

Recomputation = Literal["none", "selective", "full"]
RECOMPUTATIONS: tuple[Recomputation, ...] = get_args(Recomputation)
"""Which values of the forward pass are computed again for the backward pass, from none to most."""

RecomputationChoice = Literal["none", "selective", "full", "solver"]
RECOMPUTATION_CHOICES: tuple[RecomputationChoice, ...] = get_args(RecomputationChoice)
"""The same, or whichever is best."""

Allotments = Literal["any", "stage"]
ALLOTMENTS: tuple[Allotments, ...] = get_args(Allotments)
"""How many accelerators of its stage an operator runs on: as many as it likes, or all of them."""

AXES = ("period", "in-flight", "latency", "memory", "crossing")
"""The figures of a schedule that a front may be asked for."""

Order = Literal["own", "gpipe", "1f1b", "1f1b*", "interleaved", "zb-h1", "zb-h2", "zb-v", "dualpipe-v"]
ORDERS: tuple[Order, ...] = get_args(Order)
"""The orders of a step: our own, and the known schedules."""

KNOWN_ORDERS: dict[Order, str] = {
    "gpipe": "GPipe",
    "1f1b": "1F1B",
    "1f1b*": "1F1B*",
    "interleaved": "interleaved 1F1B",
    "zb-h1": "ZB-H1",
    "zb-h2": "ZB-H2",
    "zb-v": "ZB-V",
    "dualpipe-v": "DualPipe-V",
}
"""The known schedules by the names of the option ``order``."""

Cut = Literal["balanced", "equal"]
CUTS: tuple[Cut, ...] = get_args(Cut)
"""Where a model is cut for a step: into chunks of equal time, or of equally many layers."""
