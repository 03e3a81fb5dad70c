"""From a forward graph to one of a training step: backward operators, and what the optimizer keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from xdsl.context import Context
from xdsl.dialects.builtin import IntAttr, ModuleOp, StringAttr
from xdsl.passes import ModulePass

from dialects.diagnostics import TaktError, at
from dialects.gradients import TrainingAttr, WeightGradientOp
from dialects.nn.base import MOST_RATIO
from dialects.structure import GraphOp, find_graph
from passes.choices import Optimizer, Tie
from passes.training.differentiate import Backward
from passes.training.updates import updates


def check(graph: GraphOp) -> None:
    """Refuse a graph that cannot be differentiated."""
    if graph.level.data != "model":
        message = f"graph @{graph.sym_name.data} is at level '{graph.level.data}', but expand-training needs 'model'"
        raise TaktError(at(graph, message, "run it once, right after the front end"))
    if graph.training is not None:
        raise TaktError(at(graph, f"graph @{graph.sym_name.data} has its backward operators already"))
    if (state := next(graph.states(), None)) is not None:
        message = f"state '{state.state.data}' hands values to later micro-batches, from which gradients would return"
        raise TaktError(at(state, message, "a model with states is not trained; leave the states out"))


@dataclass(frozen=True)
class ExpandTrainingPass(ModulePass):
    """Add the backward operators of a training step: level model, which stays.

    Each operator that a gradient reaches gets an `input_gradient` (I), where its operands depend on parameters, and a
    `weight_gradient` (W), where it has parameters itself. They read the gradients of its results, summed up where
    several operators read one, and the values of the forward pass that they need, which live until then. An operator,
    its I and its W are one group: they run on the same accelerators, where the parameters lie. So do gradients and
    what the optimizer keeps, which annotate-costs counts with the parameters. The graph is differentiated from its
    losses, the outputs of one floating-point number; where it has none, gradients of its outputs arrive as inputs.
    For every group with gradients of parameters the optimizer has a step (`optimizer_step`), once a batch: it reads
    these gradients, and is no operator of a micro-batch.

    options:
      optimizer: what is kept for each parameter: "adam" (two numbers), "momentum" (one), "sgd" (none); "none" leaves
        out the master copy too, and the optimizer's steps
      precision: "mixed": parameters and gradients as the model writes them, a master copy and what the optimizer
        keeps in 32 bits; "full": all as the model writes them
      backward: the time of I and W together, as a multiple of the forward operator's, where that is written in the
        model and `backward` is not written beside it; half of it each, and all for I where there are no parameters
      tie: operators that share parameters (`group` in the model) have "copies" of them, whose gradients the optimizer's
        step sums up, or run on the same accelerators ("colocate"). Without an optimizer they always do
      asynchronous: parameters are updated every so many micro-batches, in the steady state, and nobody waits for it: a
        micro-batch keeps the version that it began with. 0: once a batch, between micro-batches

    rewrite:
      takt.graph @m model {                            takt.graph @m model training <adam, mixed> {
        %h = takt.linear(%x) params 8 ...        ->      %h = takt.linear(%x) params 8 group "h" ...
        %l = takt.mse_loss(%h, %y) ...                   %l = takt.mse_loss(%h, %y) group "l" ...
                                                         %l.I = takt.input_gradient(%h, %y) of <"mse_loss" ...
                                                         %h.W = takt.weight_gradient(%l.I, %x) of <"linear" ...
                                                         %h.step = takt.optimizer_step(%h.W) params 8 group "h" ...
    """

    name = "expand-training"

    optimizer: Optimizer = "adam"
    precision: Literal["mixed", "full"] = "mixed"
    backward: float = 2.0
    tie: Tie = "copies"
    asynchronous: int = 0

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        graph = find_graph(op)
        if graph is None:
            raise TaktError("there is no model: the module has no takt.graph")
        check(graph)
        if not 0 <= self.backward <= MOST_RATIO:
            raise TaktError(at(graph, f"backward must be between 0 and {MOST_RATIO:.0f}, got {self.backward}"))
        if self.asynchronous < 0:
            raise TaktError(at(graph, f"asynchronous must be 0 or more micro-batches, got {self.asynchronous}"))
        if self.asynchronous and self.optimizer == "none":
            message = "without an optimizer nothing is updated, asynchronously or not"
            raise TaktError(at(graph, message, "name an optimizer: --training sgd"))
        backward = Backward(graph, self.backward)
        backward.build()
        if not any(isinstance(gradient, WeightGradientOp) for gradient in backward.made):
            message = f"nothing to train: no output of @{graph.sym_name.data} depends on parameters"
            raise TaktError(at(graph, message, "outputs of integers have no gradients; leave the training options out"))
        body = graph.body.block
        first, last = body.first_op, body.last_op
        assert first is not None
        assert last is not None
        body.insert_ops_before(backward.inputs, first)
        body.insert_ops_before(backward.made, last)
        if self.optimizer != "none":
            tied = backward.untie() if self.tie == "copies" else {}
            body.insert_ops_before(updates(tuple(graph.operators()), tied, backward.unique), last)
        every = IntAttr(self.asynchronous)
        graph.training = TrainingAttr(StringAttr(self.optimizer), StringAttr(self.precision), every)
