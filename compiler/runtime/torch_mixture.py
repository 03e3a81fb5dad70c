"""A part of a mixture of experts: what its forward pass and both its gradients have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from compiler.runtime.torch_calls import Call
from compiler.runtime.torch_values import Key, Part


@dataclass(frozen=True)
class Visit:
    """The tokens that visit one expert, as far as a part computes it: columns ``columns`` of its hidden layer, which
    are ``rows`` of the part's matrices."""

    expert: int
    token: Tensor
    slot: Tensor
    route: Tensor
    rows: slice
    columns: slice


@dataclass(frozen=True)
class Mixture:
    """A part of a mixture of experts: the hidden columns of all experts, one expert after the other, are shared out."""

    call: Call
    x: Tensor
    """``[tokens, width]``."""
    routes: Tensor
    """``[tokens, experts]``, of which the greatest ``top_k`` of a token count."""

    @property
    def hidden(self) -> int:
        return self.call.argument("hidden")

    @property
    def top(self) -> int:
        return self.call.argument("top_k")

    def matrices(self) -> list[Tensor]:
        """``up``, ``down`` and, if gated, ``gate``: ``[own hidden columns, width]``."""
        return [self.call.parameter(*named) for named in self._named()]

    def shares(self) -> list[tuple[Key, Part]]:
        """What these are of which parameters."""
        return [self.call.name(*named) for named in self._named()]

    def _named(self) -> Iterator[tuple[str, tuple[int, int], torch.dtype, int, slice]]:
        count = self.call.argument("experts") * self.hidden
        for role in ("up", "down", *(("gate",) if self.call.argument("gated") else ())):
            yield role, (count, self.x.shape[-1]), self.x.dtype, 0, self.call.share(count)

    def visits(self) -> Iterator[Visit]:
        """Those of each expert of which this part has columns."""
        experts, hidden = self.call.argument("experts"), self.hidden
        own = self.call.share(experts * hidden)
        weights, chosen = self.routes.topk(self.top, -1)
        for expert in range(experts):
            begin, end = max(own.start, expert * hidden), min(own.stop, (expert + 1) * hidden)
            token, slot = ((chosen == expert) & (weights != 0)).nonzero(as_tuple=True)
            if begin < end and len(token):
                rows, columns = (slice(begin - first, end - first) for first in (own.start, expert * hidden))
                yield Visit(expert, token, slot, weights[token, slot, None], rows, columns)

    def before(self, given: Tensor, matrices: Sequence[Tensor], visit: Visit) -> list[Tensor]:
        """What the activation reads: products of the tokens with ``up`` and ``gate``."""
        return [given @ m[visit.rows].T / given.shape[-1] ** 0.5 for m in (matrices[0], *matrices[2:])]

    def activated(self, before: Sequence[Tensor]) -> Tensor:
        up, *gate = before
        return functional.silu(gate[0]) * up if gate else functional.gelu(up)


def mixture(call: Call) -> Mixture:
    """The part of a mixture that ``call`` is."""
    x, routes = call.inputs
    return Mixture(call, x.reshape(-1, x.shape[-1]), routes.reshape(-1, call.argument("experts")).to(x.dtype))
