"""Gradients and optimizer steps of the unpipelined model: torch differentiates it as a whole, and torch.optim steps.

Of a training graph only the forward operators are run. What is trained follows from the model itself, not from the
backward operators of the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from compiler.runtime.job import Job, Operator
from compiler.runtime.torch_training import BETAS, EPSILON, MOMENTUM, RATE
from compiler.runtime.torch_values import Key, Parameters, input_value, is_float

Results = Mapping[tuple[int, int], Tensor]
"""By operator and result."""


class Leaves(Parameters):
    """Parameters by which the model is differentiated, where the model says that an operator has any."""

    def get(
        self,
        operator: Operator,
        role: str,
        shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        dim: int = 0,
        share: slice | None = None,
    ) -> Tensor:
        # Copies on other accelerators are one parameter.
        operator = operator if operator.tied is None else replace(operator, group=operator.tied, tied=None)
        found = super().get(operator, role, shape, dtype, dim, share)
        return found.requires_grad_() if operator.params else found


class Reference:
    """Training of the unpipelined model."""

    def __init__(self, job: Job, parameters: Leaves):
        self.job, self.parameters = job, parameters
        self.forward = forward_operators(job)
        self.smooth = self._smooth()
        self.optimizer: torch.optim.Optimizer | None = None

    def _smooth(self) -> dict[tuple[int, int], bool]:
        """The results that hold numbers which a loss can depend on smoothly → whether they depend on parameters.

        Those are floating-point numbers, and what opaque operators make of anything, whose bytes may be some.
        """
        found: dict[tuple[int, int], bool] = {}
        for v in self.forward:
            operator = self.job.operators[v]
            read = [found.get((r.subject, r.result)) for r in operator.reads]
            opaque = operator.kind == "op" or any(x is not None for x in read)
            ids = {"embedding": 0, "cross_entropy": 1}.get(operator.kind)
            needed = operator.params > 0 or any(x for i, x in enumerate(read) if i != ids)
            for number, value in enumerate(operator.results):
                if is_float(value) or (opaque and value.element == "i8"):
                    found[v, number] = needed
        return found

    def differentiate(self, results: Results, microbatch: int) -> None:
        """Add the gradients of a micro-batch; after the last one of a step, let the optimizer work."""
        if self.job.step and microbatch % self.job.per_pattern == 0:
            for key in self.updated():
                self.gradients()[key].zero_()
        starts = [which for which in dict.fromkeys(self.job.outputs) if self.smooth.get(which)]
        losses = [
            (v, r) for v, r in starts if not (value := self.job.operators[v].results[r]).shape and is_float(value)
        ]
        # Without a loss, the first inputs are the gradients of the outputs.
        seeds = {which: torch.ones_like(results[which]) for which in losses} or {
            which: input_value(self.job, number, microbatch) for number, which in enumerate(starts)
        }
        pairs = [(results[which], seed) for which, seed in seeds.items() if results[which].requires_grad]
        if pairs:
            tensors, gradients = zip(*pairs, strict=True)
            torch.autograd.backward(tensors, gradients)
        if self.job.step and (microbatch + 1) % self.job.per_pattern == 0 and (changed := self.updated()):
            if self.optimizer is None:
                self.optimizer = _optimizer(self.job.optimizer, [self.parameters.held[key, None] for key in changed])
            self.optimizer.step()

    def gradients(self) -> dict[Key, Tensor]:
        """What has been added up; of what the optimizer changes, in the last step."""
        return {key: x.grad for (key, _), x in self.parameters.held.items() if x.grad is not None}

    def updated(self) -> list[Key]:
        """The parameters that the optimizer changes."""
        if not self.job.step:
            return []
        owners = {("group", name) for name in self.job.ties.values()}
        return [key for key in self.gradients() if key.owner in owners]


def forward_operators(job: Job) -> list[int]:
    """The operators on which the outputs depend, in order; of a training graph these are of the forward pass."""
    found: set[int] = set()
    open_ = {v for v, _ in job.outputs if v >= 0}
    while open_:
        found |= open_
        open_ = {r.subject for v in open_ for r in job.operators[v].reads if r.subject >= 0} - found
    return sorted(found)


def _optimizer(rule: str | None, parameters: list[Tensor]) -> torch.optim.Optimizer:
    assert rule is not None
    if rule == "adam":
        return torch.optim.Adam(parameters, lr=RATE[rule], betas=BETAS, eps=EPSILON)
    return torch.optim.SGD(parameters, lr=RATE[rule], momentum=MOMENTUM if rule == "momentum" else 0.0)
