"""What a training run holds beside parameters, on one accelerator: gradients that add up, and the optimizer's numbers.

The optimizers are written down here; the unpipelined model takes those of torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

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


Named = tuple[str, tuple[int, ...], torch.dtype]
"""Role, shape and type of a parameter: what copies have in common."""


class Exchange(Protocol):
    """What accelerators do together."""

    def add(self, part: Tensor, members: Members) -> Tensor:
        """The sum of the tensors of all members."""
        ...

    def names(self, own: set[Named], members: Members) -> Sequence[Named]:
        """What any member has, in an order that is the same for all."""
        ...


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
        self.job, self.parameters, self.ties = job, parameters, job.ties
        self.gradients: dict[tuple[Key, Part, Members], Tensor] = {}
        self.used: set[tuple[Key, Part, Members]] = set()
        """Gradients of which the optimizer has made a step: the next micro-batch begins anew."""
        self.state: dict[tuple[Key, Part], list[Tensor]] = {}
        self.steps: dict[tuple[Key, Part], int] = {}
        self.updated: dict[tuple[Key, Part], Members] = {}
        self.sums: dict[str, Mapping[Named, Tensor]] = {}
        """Group that stands for copies → whole gradients, as long as copies on this accelerator wait for them."""
        self.waiting: dict[str, set[str]] = {}

    def add(self, found: Gradients, members: Members) -> None:
        """Add the gradients of a micro-batch that ``members`` ran."""
        for (key, part), gradient in found.items():
            name = (key, part, members)
            if name in self.gradients and name not in self.used:
                self.gradients[name] += gradient
            else:
                self.used.discard(name)
                self.gradients[name] = gradient.clone()

    def update(self, update: Update, accelerator: int, exchange: Exchange) -> None:
        """A step of the optimizer for the parameters of a group, with the sum of the gradients of all copies."""
        owner = ("group", update.group)
        held = {name: x for name, x in self.parameters.held.items() if name[0].owner == owner}
        tied = list(self.ties.values()).count(self.ties[update.group]) > 1
        if tied or len({key for key, _ in held}) < len(held):
            sums = self._sums(update, accelerator, exchange)
            found = {(key, part): cut(sums[key[1:]], part) for key, part in held if key[1:] in sums}
        else:
            found = {(key, part): x for (key, part, _), x in self.gradients.items() if key.owner == owner}
        for name, gradient in found.items():
            self._step(name, held[name], gradient)
            self.updated[name] = update.on
        self.used |= {name for name in self.gradients if name[0].owner == owner}

    def _sums(self, update: Update, accelerator: int, exchange: Exchange) -> Mapping[Named, Tensor]:
        """The whole gradients of all copies and shares, which the first copy here that is updated sums up for all."""
        tie = self.ties[update.group]
        if tie not in self.sums:
            groups = {u.group for u in self.job.updates if self.ties[u.group] == tie and accelerator in u.on}
            self.sums[tie] = self._summed(groups, accelerator, update.among, exchange)
            self.waiting[tie] = groups
        found = self.sums[tie]
        self.waiting[tie].remove(update.group)
        if not self.waiting[tie]:
            del self.sums[tie]
        return found

    def _summed(self, groups: set[str], accelerator: int, among: Members, exchange: Exchange) -> Mapping[Named, Tensor]:
        mine = {name: x for name, x in self.gradients.items() if name[0].owner[1] in groups}
        wholes: dict[Named, Tensor] = {}
        for named in exchange.names({key[1:] for key, _, _ in mine}, among):
            whole = torch.zeros(named[1], dtype=named[2], device=self.parameters.device)
            for (key, part, members), gradient in mine.items():
                # What all members have whole counts once.
                if key[1:] == named and (part is not None or accelerator == members[0]):
                    cut(whole, part).add_(gradient)
            wholes[named] = exchange.add(whole, among) if len(among) > 1 else whole
        return wholes

    def _step(self, name: tuple[Key, Part], parameter: Tensor, gradient: Tensor) -> None:
        rule = self.job.optimizer
        assert rule is not None
        count = self.steps[name] = self.steps.get(name, 0) + 1
        if rule == "sgd":
            parameter -= RATE[rule] * gradient
        elif rule == "momentum":
            (velocity,) = self.state.setdefault(name, [torch.zeros_like(parameter)])
            velocity.mul_(MOMENTUM).add_(gradient)
            parameter -= RATE[rule] * velocity
        elif rule == "adam":
            mean, square = self.state.setdefault(name, [torch.zeros_like(parameter) for _ in range(2)])
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
