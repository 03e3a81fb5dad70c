"""What a training run holds beside parameters, on one accelerator: gradients that add up, and the optimizer's numbers.

The optimizers are written down here; the unpipelined model takes those of torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from threading import Thread
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
    """What accelerators do together: in turn with all else that they do, or for a ``tie``, beside it."""

    def add(self, part: Tensor, members: Members, tie: str | None = None) -> Tensor:
        """The sum of the tensors of all members."""
        ...

    def names(self, own: set[Named], members: Members, tie: str | None = None) -> Sequence[Named]:
        """What any member has, in an order that is the same for all."""
        ...


class _Sums:
    """Whole gradients that are summed beside what the accelerator does meanwhile."""

    def __init__(self, act: Callable[[], Mapping[Named, Tensor]]):
        self._act, self._found, self._failure = act, dict[Named, Tensor](), list[BaseException]()
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._found.update(self._act())
        except BaseException as failure:
            self._failure.append(failure)

    def wait(self) -> Mapping[Named, Tensor]:
        self._thread.join()
        if self._failure:
            raise self._failure[0]
        return self._found


class Piece(NamedTuple):
    """What one accelerator of ``members`` has of a parameter or its gradient."""

    key: Key
    part: Part
    accelerator: int
    members: Members
    tensor: Tensor


class Trained:
    """The gradients and the optimizer's numbers that lie with the ``parameters`` of an ``accelerator``.

    Gradients of copies are summed from when the last of them here is complete, beside all else: optimizer steps of
    one tie may come at other moments, and in another order, on each accelerator, and work may go on between them.
    """

    def __init__(self, job: Job, parameters: Parameters, accelerator: int, exchange: Exchange):
        self.job, self.parameters, self.ties, self.tied = job, parameters, job.ties, job.tied
        self.accelerator, self.exchange = accelerator, exchange
        self.copies = {
            tie: {u.group for u in job.updates if self.ties[u.group] == tie and accelerator in u.on} for tie in job.tied
        }
        """Tie → groups that hold a copy here."""
        self.left: Counter[str] = Counter()
        """Tie → runs of weight gradients here until those of the step are complete."""
        self.gradients: dict[tuple[Key, Part, Members], Tensor] = {}
        self.used: set[tuple[Key, Part, Members]] = set()
        """Gradients of which the optimizer has made a step: the next micro-batch begins anew."""
        self.state: dict[tuple[Key, Part], list[Tensor]] = {}
        self.steps: dict[tuple[Key, Part], int] = {}
        self.updated: dict[tuple[Key, Part], Members] = {}
        self.sums: dict[str, _Sums] = {}
        """Tie → whole gradients, as long as copies on this accelerator wait for them."""
        self.waiting: dict[str, set[str]] = {}

    def add(self, found: Gradients, members: Members, group: str) -> None:
        """Add the gradients of a micro-batch that ``members`` ran, for the parameters of ``group``."""
        for (key, part), gradient in found.items():
            name = (key, part, members)
            if name in self.gradients and name not in self.used:
                self.gradients[name] += gradient
            else:
                self.used.discard(name)
                self.gradients[name] = gradient.clone()

        if self.job.step and (tie := self.ties.get(group)) in self.tied:
            self._complete(tie)

    def _complete(self, tie: str) -> None:
        """Count a run of a weight gradient; behind the last one of the step the exchange begins."""
        self.left[tie] = (self.left[tie] or self._runs(tie)) - 1
        if not self.left[tie]:
            self.waiting[tie] = set(self.copies[tie])
            mine, among = self._mine(self.copies[tie]), self.tied[tie]
            self.sums[tie] = _Sums(lambda: self._summed(mine, among, tie))

    def _runs(self, tie: str) -> int:
        """How often weight gradients of copies run here in a step."""
        found = [o for o in self.job.operators if o.kind == "weight_gradient" and o.group in self.copies[tie]]
        return sum(self.accelerator in o.on(i) for o in found for i in range(self.job.per_pattern))

    def update(self, update: Update) -> None:
        """A step of the optimizer for the parameters of a group, with the sum of the gradients of all copies."""
        owner = ("group", update.group)
        held = {name: x for name, x in self.parameters.held.items() if name[0].owner == owner}
        if self.ties[update.group] in self.tied or len({key for key, _ in held}) < len(held):
            sums = self._sums(update)
            found = {(key, part): cut(sums[key[1:]], part) for key, part in held if key[1:] in sums}
        else:
            found = {(key, part): x for (key, part, _), x in self.gradients.items() if key.owner == owner}
        for name, gradient in found.items():
            self._step(name, held[name], gradient)
            self.updated[name] = update.on
        self.used |= {name for name in self.gradients if name[0].owner == owner}

    def _sums(self, update: Update) -> Mapping[Named, Tensor]:
        """The whole gradients of all copies and shares."""
        tie = self.ties[update.group]
        if tie not in self.tied:
            return self._summed(self._mine({update.group}), update.among)
        found = self.sums[tie].wait()
        self.waiting[tie].remove(update.group)
        if not self.waiting[tie]:
            del self.sums[tie]
        return found

    def _mine(self, groups: set[str]) -> dict[tuple[Key, Part, Members], Tensor]:
        return {name: x for name, x in self.gradients.items() if name[0].owner[1] in groups}

    def _summed(
        self, mine: Mapping[tuple[Key, Part, Members], Tensor], among: Members, tie: str | None = None
    ) -> Mapping[Named, Tensor]:
        wholes: dict[Named, Tensor] = {}
        for named in self.exchange.names({key[1:] for key, _, _ in mine}, among, tie):
            whole = torch.zeros(named[1], dtype=named[2], device=self.parameters.device)
            for (key, part, members), gradient in mine.items():
                # What all members have whole counts once.
                if key[1:] == named and (part is not None or self.accelerator == members[0]):
                    cut(whole, part).add_(gradient)
            wholes[named] = self.exchange.add(whole, among, tie) if len(among) > 1 else whole
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

    def pieces(self) -> dict[str, Sequence[tuple[object, ...]]]:
        """What it has of gradients, those of the last step, and of parameters that the optimizer changed.

        Plain tuples, from which :func:`piece_of` makes a :class:`Piece`.
        """
        here = self.accelerator
        gradients = [(*key, part, here, members, x.cpu()) for (key, part, members), x in self.gradients.items()]
        parameters = [
            (*key, part, here, members, self.parameters.held[key, part].cpu())
            for (key, part), members in self.updated.items()
        ]
        return {"gradients": gradients, "parameters": parameters}


def piece_of(given: tuple[object, ...]) -> Piece:
    """The piece that :meth:`Trained.pieces` left."""
    return Piece(Key(*given[:4]), *given[4:])  # pyright: ignore[reportArgumentType]
