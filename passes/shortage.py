"""What to say when nothing fits in memory: which accelerator lacks how much, for what, and how much would do."""

from __future__ import annotations

from dataclasses import replace

from dialects.diagnostics import Diagnostic, TaktError, at
from dialects.gradients import GradientOp, WeightGradientOp
from dialects.units import show_bytes, show_time
from passes.annotate_costs import parameter_bytes
from passes.instance import DoesNotFit, Instance
from passes.scheduling.budget import Budget
from passes.scheduling.contents import Contents, fullest_contents
from passes.scheduling.data import InvalidProblem
from passes.scheduling.fitting import Misfit, smallest_memory
from passes.scheduling.portfolio import Request, blocks_asked, stages_engine
from passes.scheduling.repairs import fullest
from passes.training.held import Held

WORK = 10.0
"""Units of work that the search for the smallest memory may do."""


def shortage(instance: Instance, request: Request, failure: InvalidProblem) -> TaktError:
    """The error for a problem of which ``failure`` says that it does not fit."""
    missing = max((v.missing for v in failure.violations), default=0)
    if not missing:
        return instance.error(failure)
    problem, budget = request.limits.bounded(instance.problem), Budget(work=WORK)
    engine, blocks = stages_engine(request, budget), blocks_asked(problem, request)
    enough = smallest_memory(problem, engine, budget, blocks, request.stages)
    if enough is not None and enough[0] <= problem.memory:
        enough = None  # which was not found with as much
    nearest = failure.nearest if isinstance(failure, Misfit) else None
    if nearest is None and enough is not None and fullest(*enough[1][:2]) > problem.memory:
        nearest = (replace(enough[1][0], memory=problem.memory), enough[1][1])
    message = instance.error(failure).diagnostics[0].message
    notes: list[Diagnostic] = []
    if nearest is not None:
        contents = fullest_contents(*nearest)
        lacks = show_bytes(contents.total - problem.memory)
        short = f"accelerator {contents.accelerator} needs {show_bytes(contents.total)} and has"
        short += f" {show_bytes(problem.memory)}: {lacks} are missing"
        if isinstance(failure, Misfit):
            message, missing = (
                f"no schedule was found that fits: in the nearest {short}",
                contents.total - problem.memory,
            )
        else:
            notes.append(_note(instance, f"in the schedule that needs least {short}"))
        parts = ", ".join(f"{show_bytes(size)} of {what}" for what, size in made_of(instance, contents))
        notes.append(_note(instance, f"it would hold {parts}"))
    if enough is not None:
        size, (_, solution, _) = enough
        would = f"{show_bytes(size)} ({size} bytes) on each accelerator would do, with a period of"
        notes.append(_note(instance, f"{would} {show_time(solution.period)}"))
    error = replace(at(instance.graph, message, _hint(instance), rule="memory"), notes=tuple(notes))
    return DoesNotFit([error], missing)


def _note(instance: Instance, message: str) -> Diagnostic:
    return replace(at(instance.graph, message), severity="note")


def _hint(instance: Instance) -> str:
    hint = "use more accelerators, or accelerators with more memory"
    training = instance.graph.training
    if training is None:
        return f"{hint}, or a smaller model"
    less = "" if training.optimizer.data in ("sgd", "none") else "; --training sgd keeps less beside the parameters"
    return f"{hint}; the pass recompute-activations holds less of the forward pass{less}"


def made_of(instance: Instance, contents: Contents) -> list[tuple[str, int]]:
    """What an accelerator holds, in words, with the bytes of each, the largest first of values."""
    found: list[tuple[str, int]] = []
    graph = instance.graph
    if graph.training is None:
        found.append(("parameters", sum(contents.parameters.values())))
    else:
        held = Held(graph.training.optimizer.data, graph.training.precision.data == "mixed")
        sums = [0, 0, 0]
        for number, size in contents.parameters.items():
            members = [instance.operators[v] for v in instance.problem.items[number]]
            if any(isinstance(op, WeightGradientOp) for op in members):
                forward = next(op for op in members if not isinstance(op, GradientOp))
                parts = held.parts(size, parameter_bytes(forward))
            else:
                parts = (size, 0, 0)
            sums = [total + part for total, part in zip(sums, parts, strict=True)]
        found += zip(("parameters", "their gradients", "optimizer state"), sums, strict=True)
    flying = f"{contents.microbatches} micro-batch{'es' if contents.microbatches > 1 else ''}"
    words = {"result": f"results of {flying}", "received value": "received values", "workspace": "workspaces"}
    words["version"] = "versions of parameters beside the newest"
    values = [(words.get(kind, "inputs"), size) for kind, size in contents.alive.items()]
    return [pair for pair in (*found, *sorted(values, key=lambda pair: -pair[1])) if pair[1]]
