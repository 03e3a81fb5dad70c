"""What a training run holds beside parameters, on one accelerator: gradients that add up, and the optimizer's numbers.

The optimizers are written down here; the unpipelined model takes those of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from compiler.runtime.job import Job, Update
from compiler.runtime.torch_gradients import Gradients
from compiler.runtime.torch_values import Key, Parameters, Part, cut

Members = tuple[int, ...]

RATE = {"sgd": 0.1, "momentum": 0.1, "adam": 0.01}
"""Learning rates: one step is seen in parameters of variance 1."""

MOMENTUM, BETAS = 0.9, (0.9, 0.999)

EPSILON = 1e-3
"""Beside the root of Adam's second moment: gradients that are zero but for rounding must not become whole steps."""


class Piece(NamedTuple):
    """What one accelerator of ``members`` has of a parameter or its gradient."""

    key: Key
    part: Part
    accelerator: int
    members: Members
    tensor: Tensor


class Trained:
    """The gradients and the optimizer's numbers that lie with the ``parameters`` of an accelerator."""

    def __init__(self, job: Job, parameters: Parameters):
        self.job, self.parameters = job, parameters
        self.gradients: dict[tuple[Key, Part, Members], Tensor] = {}
        self.used: set[tuple[Key, Part, Members]] = set()
        """Gradients of which the optimizer has made a step: the next micro-batch begins anew."""
        self.state: dict[tuple[Key, Part], list[Tensor]] = {}
        self.steps: dict[tuple[Key, Part], int] = {}
        self.updated: dict[tuple[Key, Part], Members] = {}

    def add(self, found: Gradients, members: Members) -> None:
        """Add the gradients of a micro-batch that ``members`` ran."""
        for (key, part), gradient in found.items():
            name = (key, part, members)
            if name in self.gradients and name not in self.used:
                self.gradients[name] += gradient
            else:
                self.used.discard(name)
                self.gradients[name] = gradient.clone()

    def update(self, update: Update, accelerator: int, add: Callable[[Tensor, Members], Tensor]) -> None:
        """A step of the optimizer, for which ``add`` sums over accelerators."""
        owner = _owner(self.job, update)
        keys = sorted(
            {key for key, _, _ in self.gradients if key.owner == owner}, key=lambda key: (key[:3], str(key.dtype))
        )
        for key in keys:
            held = [part for k, part in self.parameters.held if k == key]
            whole = self._summed(key, update, accelerator, add) if len(held) > 1 or update.among != update.on else None
            for part in held:
                gradient = self.gradients[key, part, update.on] if whole is None else cut(whole, part)
                self._step(key, part, gradient)
                self.updated[key, part] = update.on
        self.used |= {name for name in self.gradients if name[0].owner == owner}

    def _summed(self, key: Key, update: Update, accelerator: int, add: Callable[[Tensor, Members], Tensor]) -> Tensor:
        """The whole gradient of a parameter, over all shares and copies."""
        whole = torch.zeros(key.shape, dtype=key.dtype, device=self.parameters.device)
        for (k, part, members), gradient in self.gradients.items():
            # What all members have whole counts once.
            if k == key and (part is not None or accelerator == members[0]):
                cut(whole, part).add_(gradient)
        return add(whole, update.among) if len(update.among) > 1 else whole

    def _step(self, key: Key, part: Part, gradient: Tensor) -> None:
        rule, parameter = self.job.optimizer, self.parameters.held[key, part]
        assert rule is not None
        count = self.steps[key, part] = self.steps.get((key, part), 0) + 1
        if rule == "sgd":
            parameter -= RATE[rule] * gradient
        elif rule == "momentum":
            (velocity,) = self.state.setdefault((key, part), [torch.zeros_like(parameter)])
            velocity.mul_(MOMENTUM).add_(gradient)
            parameter -= RATE[rule] * velocity
        elif rule == "adam":
            mean, square = self.state.setdefault((key, part), [torch.zeros_like(parameter) for _ in range(2)])
            mean.mul_(BETAS[0]).add_(gradient * (1 - BETAS[0]))
            square.mul_(BETAS[1]).add_(gradient * gradient * (1 - BETAS[1]))
            size = (square / (1 - BETAS[1] ** count)).sqrt() + EPSILON
            parameter -= RATE[rule] * mean / (1 - BETAS[0] ** count) / size

    def pieces(self, accelerator: int) -> dict[str, Sequence[tuple[object, ...]]]:
        """What it has of gradients, those of the last step, and of parameters that the optimizer changed.

        Plain tuples, from which :func:`piece_of` makes a :class:`Piece`.
        """
        gradients = [(*key, part, accelerator, members, x.cpu()) for (key, part, members), x in self.gradients.items()]
        parameters = [
            (*key, part, accelerator, members, self.parameters.held[key, part].cpu())
            for (key, part), members in self.updated.items()
        ]
        return {"gradients": gradients, "parameters": parameters}


def piece_of(given: tuple[object, ...]) -> Piece:
    """The piece that :meth:`Trained.pieces` left."""
    return Piece(Key(*given[:4]), *given[4:])  # pyright: ignore[reportArgumentType]


def _owner(job: Job, update: Update) -> tuple[str, str]:
    tied = next((o.tied for o in job.operators if o.group == update.group), None)
    return "group", tied or update.group
