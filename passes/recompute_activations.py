"""Compute values of the forward pass again in the backward pass, instead of keeping them."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import ModulePass

from dialects.diagnostics import TaktError, at
from dialects.gradients import RecomputeOp
from dialects.structure import GraphOp, PlatformOp, find_graph, find_platform
from dialects.units import show_bytes
from passes.choices import RecomputationChoice
from passes.costs.machine import MissingRateError
from passes.costs.reading import read_machine
from passes.training.choose import cheapest
from passes.training.recompute import Recomputed
from passes.training.regions import NOTHING, Plan, Region, read_regions, work_of


def check(graph: GraphOp) -> None:
    """Refuse a graph that has no backward pass at level model, or copies already."""
    name = graph.sym_name.data
    if graph.training is None:
        message = f"graph @{name} has no backward operators that could read recomputed values"
        raise TaktError(at(graph, message, "run expand-training before: --training OPTIMIZER"))
    if graph.level.data != "model":
        message = f"graph @{name} is at level '{graph.level.data}', but recompute-activations needs 'model'"
        raise TaktError(at(graph, message, "run it right after expand-training"))
    if any(isinstance(op, RecomputeOp) for op in graph.operators()):
        raise TaktError(at(graph, f"graph @{name} has recomputed values already"))


@dataclass(frozen=True)
class RecomputeActivationsPass(ModulePass):
    """Have gradients read recomputed values instead of kept ones: level model, which stays.

    A forward operator whose results are not kept gets a copy, `recompute`, right before the first gradient operator
    that needs it, in the same group: it runs on the same accelerators, where the parameters lie once. It reads what is
    kept, or other copies. The first of a row of copies also awaits the gradient that arrives at that operator, so that
    none runs before the backward pass of its micro-batch. What a gradient of another block reads is kept, and so is
    what the gradient of a loss reads, which follows at once. Nobody computes again what no gradient needs.

    options:
      policy: "none": keep all; "full": keep of every call of a block of the model what it reads from outside, and all
        outside blocks; "selective": keep all but what light operators make of kept values. Light are norms,
        activations, softmax, sums, products by element, rearrangements, and products of two values that take at most
        256 operations for each byte they make, such as the scores of attention. A block that computes a loss keeps all;
        "solver": of every block one of the three, so that `save` bytes are not kept, in the least time on one
        accelerator
      save: bytes of a micro-batch that "solver" must not keep, of whole values

    rewrite:
      %h = takt.linear(%x) group "h" block <"b", 0>   ->   %h = takt.linear(%x) group "h" block <"b", 0>
      %y = takt.gelu(%h) group "y" block <"b", 0>          %y = takt.gelu(%h) group "y" block <"b", 0>
      ...                                                  ...
                                                           %h.R = takt.recompute(%x, %g) of <"linear" ...> group "h"
      %y.I = takt.input_gradient(%g, %h) of ...            %y.I = takt.input_gradient(%g, %h.R) of ...
    """

    name = "recompute-activations"

    policy: RecomputationChoice = "selective"
    save: int = 0

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        graph = find_graph(op)
        if graph is None:
            raise TaktError("there is no model: the module has no takt.graph")
        check(graph)
        if self.save < 0:
            raise TaktError(at(graph, f"save must be 0 or more bytes, got {self.save}"))
        if self.save and self.policy != "solver":
            message = f"save is what the policy 'solver' must not keep, and the policy is '{self.policy}'"
            raise TaktError(at(graph, message, "leave save out, or take 'solver'"))
        if self.policy == "none":
            return
        regions = read_regions(graph)
        if self.policy == "full" and all(r.block is None for r in regions):
            message = f"the policy 'full' keeps what blocks read, and @{graph.sym_name.data} calls no block"
            raise TaktError(at(graph, message, "write its layers as calls of a block, or take 'selective'"))
        if self.policy == "solver":
            plans = solved(graph, find_platform(op), regions, self.save)
        else:
            plans = [r.full if self.policy == "full" else r.selective for r in regions]
        Recomputed(graph).build(zip(regions, plans, strict=True))


def solved(graph: GraphOp, platform: PlatformOp | None, regions: list[Region], save: int) -> list[Plan]:
    """The plan of every region, such that ``save`` bytes are not kept, in about the least time on one accelerator."""
    name = graph.sym_name.data
    if platform is None:
        message = f"what it takes to compute parts of @{name} again depends on a platform, and the module has none"
        raise TaktError(at(graph, message, "give one with --platform or define one in the model file"))
    choices = [(NOTHING, r.selective, r.full) for r in regions]
    again = {op for plans in choices for plan in plans for op in plan.again}
    try:
        work = work_of(graph, read_machine(platform), again)
    except MissingRateError as error:
        message = f"accelerator '{platform.accelerator.data}' states no peak rate for {error.dtype}"
        raise TaktError(at(platform, message, "add one, or name a policy other than 'solver'")) from None
    ways = [[(plan.saved, sum(work[op] for op in plan.again)) for plan in plans] for plans in choices]
    taken = cheapest(ways, save)
    if taken is None:
        most = sum(max(saved for saved, _ in some) for some in ways)
        message = f"at most {show_bytes(most)} that a micro-batch of @{name} keeps can be computed again"
        raise TaktError(at(graph, message, f"save={save} asks for {show_bytes(save)}"))
    return [plans[way] for plans, way in zip(choices, taken, strict=True)]
