"""The known schedules beside our own, as steps of one graph on the same costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from xdsl.dialects.builtin import ModuleOp

from dialects.attributes import LimitsAttr
from dialects.diagnostics import TaktError
from dialects.structure import find_graph
from passes.choices import KNOWN_ORDERS
from passes.schedule_step import refusal
from passes.scheduling.data import InvalidProblem
from passes.scheduling.steps.choose import known_step, uniform_step
from passes.scheduling.steps.graph_bounds import graph_bound
from passes.scheduling.steps.own import own_step
from passes.scheduling.steps.shapes import Wish
from passes.step_instance import read_batch, write_step

UNIFORM, OWN, STAGGERED = "uniform", "own", "own, staggered"
"""Names of the uniform plan of runtimes, of our own step, and of the one before whose end the next one begins."""


def baselines(
    module: ModuleOp,
    microbatches: int,
    *,
    memory: int | None = None,
    stages: int | None = None,
    effort: float = 3,
    seed: int = 0,
) -> Iterator[tuple[str, ModuleOp | TaktError]]:
    """Steps of ``module``, a graph at level ``moldable``, which is left as it is: name → scheduled module, or why not.

    Every known schedule on the number of stages, and with the allotments, that suit it best; the uniform plan (equal
    layers, one tensor-parallel degree, 1F1B or interleaved 1F1B); our own, and our own where steps overlap, as those of
    ZB-H2 and ZB-V do. ``memory`` is the most bytes on an
    accelerator, where that is less than it has. One after the other is made when it is asked for. Raises
    :class:`TaktError` for a module that has no step at all.
    """
    wish = Wish(stages=stages, effort=effort, seed=seed)
    instance, batch = read_batch(module, microbatches, memory)
    bound = graph_bound(batch)
    for name in (*KNOWN_ORDERS.values(), UNIFORM, OWN, STAGGERED):
        try:
            if name in (OWN, STAGGERED):
                found = own_step(batch, replace(wish, staggered=name == STAGGERED))
            elif name == UNIFORM:
                found = uniform_step(batch, wish)
            else:
                found = known_step(batch, name, wish)
        except InvalidProblem as failure:
            yield name, refusal(instance, failure)
            continue
        made = module.clone()
        graph = find_graph(made)
        assert graph is not None
        copy = replace(instance, graph=graph, operators=tuple(graph.operators()))
        write_step(copy, found, bound, seed, LimitsAttr.make({"memory": memory}))
        yield name, made
