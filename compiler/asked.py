"""What is asked of a compilation beside what its input is already: the passes before the pipeline, and refusals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xdsl.dialects.builtin import ModuleOp

from dialects.diagnostics import TaktError, at
from dialects.gradients import RecomputeOp
from dialects.structure import find_graph
from passes.choices import KNOWN_ORDERS

if TYPE_CHECKING:
    from compiler.pipeline import Options


def trained(module: ModuleOp, options: Options) -> list[str]:
    """The pass that makes ``module`` the training graph asked for, unless it is; TaktError when it cannot become it."""
    graph = find_graph(module)
    assert graph is not None
    if options.training is None:
        return []
    if graph.training is not None:
        if (found := graph.training.optimizer.data) != options.training:
            raise TaktError(at(graph, f"the input is a training graph for '{found}' already, not '{options.training}'"))
        every = graph.training.asynchronous.data
        if options.asynchronous not in (None, every):
            how = f"every {every} micro-batches" if every else "once a step"
            raise TaktError(at(graph, f"the input is a training graph whose parameters are updated {how} already"))
        return []
    if graph.level.data != "model":
        message = f"the input is a forward graph at level '{graph.level.data}', past 'model'"
        raise TaktError(at(graph, message, "--training needs the model itself"))
    return ["expand-training"]


def recomputed(module: ModuleOp, options: Options) -> list[str]:
    """The pass that has gradients read recomputed values, unless they do; TaktError when it cannot."""
    graph = find_graph(module)
    assert graph is not None
    again = next((op for op in graph.operators() if isinstance(op, RecomputeOp)), None)
    if again is not None and options.recompute == "none":
        raise TaktError(at(again, "the input computes values again already", "leave --recompute none out"))
    if options.recompute in (None, "none") or again is not None:
        return []
    if graph.training is None and options.training is None:
        message = f"@{graph.sym_name.data} has no backward pass, for which values could be computed again"
        raise TaktError(at(graph, message, "give --training OPTIMIZER too"))
    if graph.level.data != "model":
        message = f"the input is at level '{graph.level.data}', past 'model', and computes nothing again"
        raise TaktError(at(graph, message, "--recompute needs the model, or its training graph at level 'model'"))
    return ["recompute-activations"]


def check_step(module: ModuleOp, options: Options) -> None:
    """Raise TaktError where a step is asked for and ``module`` has another schedule already."""
    graph = find_graph(module)
    assert graph is not None
    if graph.schedule is None or not options.step:
        return
    schedule, message = graph.schedule, ""
    microbatches, plan = schedule.microbatches.data, schedule.plan.data
    if not schedule.is_step:
        message = "the input has a schedule with a period already, and a step is asked for"
    elif options.microbatches not in (None, microbatches):
        message = f"the input is a step of {microbatches} micro-batches already, not of {options.microbatches}"
    elif options.order is not None and plan != KNOWN_ORDERS.get(options.order, options.order):
        message = f"the input is a step in the order '{plan}' already, not in '{options.order}'"
    if message:
        raise TaktError(at(graph, message, "compile from the model, or from level 'model' or 'moldable'"))
