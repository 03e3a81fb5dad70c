"""Operators that keep a split: element-wise ones, normalisation, pooling, rearrangement.

Such an operator works on a split operand without communication, as long as the split dimension is
not one it computes along. Given whole operands, it stays whole unless all consumers want it split.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from passes.costs.call import Call, Layout, Plan
from passes.costs.collectives import Collective
from passes.costs.kinds.base import Rule, divide


class Carry(Rule):
    """Element-wise operators: a split along any dimension is kept."""

    def carry(self, call: Call, operand: int, dim: int) -> Layout:
        """The result dimension that is split when the operand is split along ``dim``; None when that cannot be."""
        return dim

    def back(self, call: Call, operand: int, dim: int) -> Layout:
        """The last dimension of ``operand`` that :meth:`carry` takes to result dimension ``dim``."""
        rank = len(call.operands[operand].shape)
        return next((d for d in reversed(range(rank)) if self.carry(call, operand, d) == dim), None)

    def accepts(self, call: Call, operand: int, dim: int) -> bool:
        return self.carry(call, operand, dim) is not None

    def wants(self, call: Call, operand: int, wanted: Sequence[Layout]) -> Layout:
        dim = _common(wanted)
        return None if dim is None else self.back(call, operand, dim)

    def plan(self, call: Call, arriving: Sequence[Layout], wanted: Sequence[Layout]) -> Plan:
        carried = (self.carry(call, i, d) for i, d in enumerate(arriving) if d is not None)
        dim = next((d for d in carried if d is not None), _common(wanted))
        uses = tuple(None if dim is None else self.back(call, i, dim) for i in range(len(call.operands)))
        made = dim if any(u is not None for u in uses) else None
        return Plan(uses, (made,) * len(call.results))


def _common(wanted: Sequence[Layout]) -> Layout:
    return wanted[0] if len(set(wanted)) == 1 else None


class PositionEmbedding(Carry):
    """Adds a table of ``[s, d]``, which is split with the operand when s or d is."""

    def params(self, call: Call, plan: Plan, k: int) -> int:
        dim = plan.uses[0]
        return divide(call.params, k) if dim is not None and dim >= call.last - 1 else call.params


class Norm(Carry):
    """layer_norm, rms_norm: along the last dimension; once for its moments, once to scale."""

    reads = 2

    def carry(self, call: Call, operand: int, dim: int) -> Layout:
        return None if dim == call.last else dim


class BatchNorm(Carry):
    """Channels are independent; a split batch would need common statistics."""

    def carry(self, call: Call, operand: int, dim: int) -> Layout:
        return 1 if dim == 1 else None

    def params(self, call: Call, plan: Plan, k: int) -> int:
        return call.params if plan.uses[0] is None else divide(call.params, k)


class Softmax(Carry):
    """Along ``axis``; once for the maximum, once for the sum, once for the result."""

    reads = 3

    def carry(self, call: Call, operand: int, dim: int) -> Layout:
        return None if dim == call.arguments["axis"] % len(call.operands[0].shape) else dim


class Pool(Carry):
    """Windows slide over height and width; images and channels are independent."""

    def carry(self, call: Call, operand: int, dim: int) -> Layout:
        return dim if dim < 2 else None


class Concat(Carry):
    """Copies; a split along the joined axis would not stay in equal parts."""

    def carry(self, call: Call, operand: int, dim: int) -> Layout:
        return None if dim == call.arguments["axis"] % len(call.operands[0].shape) else dim


class Transpose(Carry):
    """Copies."""

    def carry(self, call: Call, operand: int, dim: int) -> Layout:
        return call.arguments["order"].index(dim)


class View(Carry):
    """Runs nothing: the result is the operand, seen in another way."""

    kernel = False

    def moved(self, call: Call, plan: Plan, k: int) -> int:
        return 0


class Reshape(View):
    """A split survives when as many elements lie outside it before as after: [.., h*e] to [.., h, e] and back."""

    def carry(self, call: Call, operand: int, dim: int) -> Layout:
        before, after = call.operands[0].shape, call.results[0].shape
        outside = prod(before[:dim])
        # Leading ones have the same number outside; the dimension to cut is the last such one.
        fits = [d for d in range(len(after)) if prod(after[:d]) == outside]
        return fits[-1] if fits else None


class Cut(View):
    """split: along its own axis too.

    The columns of the weight that made the operand are stored so that every accelerator has its
    part of each result, as for the fused query-key-value projection of Megatron-LM.
    """


class Slice(View):
    """Elements along ``axis``, which must be whole."""

    def carry(self, call: Call, operand: int, dim: int) -> Layout:
        return None if dim == call.arguments["axis"] % len(call.operands[0].shape) else dim


class Reduce(Carry):
    """Along ``axis``; partial results are all-reduced when that axis is the split one."""

    def _axis(self, call: Call) -> int:
        return call.arguments["axis"] % len(call.operands[0].shape)

    def carry(self, call: Call, operand: int, dim: int) -> Layout:
        axis = self._axis(call)
        return None if dim == axis else dim - (dim > axis)

    def accepts(self, call: Call, operand: int, dim: int) -> bool:
        return True

    def plan(self, call: Call, arriving: Sequence[Layout], wanted: Sequence[Layout]) -> Plan:
        if arriving[0] == self._axis(call):
            return Plan((arriving[0],), (None,))
        return super().plan(call, arriving, wanted)

    def collectives(self, call: Call, plan: Plan, arriving: Sequence[Layout], k: int) -> tuple[Collective, ...]:
        own = super().collectives(call, plan, arriving, k)
        partial = plan.uses[0] is not None and plan.makes[0] is None
        return (*own, Collective("all_reduce", call.results[0].size, k)) if partial else own


class MseLoss(Carry):
    """Splits with its operands; the sum is all-reduced."""

    def plan(self, call: Call, arriving: Sequence[Layout], wanted: Sequence[Layout]) -> Plan:
        dim = next((d for d in arriving if d is not None), None)
        return Plan((dim, dim), (None,))

    def wants(self, call: Call, operand: int, wanted: Sequence[Layout]) -> Layout:
        return None

    def collectives(self, call: Call, plan: Plan, arriving: Sequence[Layout], k: int) -> tuple[Collective, ...]:
        own = super().collectives(call, plan, arriving, k)
        return (*own, Collective("all_reduce", call.results[0].size, k)) if plan.splits else own


class CrossEntropy(Rule):
    """Vocabulary-parallel: each accelerator has the logits of its classes (Shoeybi et al. 2019, section 3).

    Three numbers a row are all-reduced: the largest logit, the sum of exponentials, the label's logit.
    The first two take one reading each.
    """

    reads = 2

    def accepts(self, call: Call, operand: int, dim: int) -> bool:
        return operand == 0 and dim == call.last

    def wants(self, call: Call, operand: int, wanted: Sequence[Layout]) -> Layout:
        return call.last if operand == 0 else None

    def plan(self, call: Call, arriving: Sequence[Layout], wanted: Sequence[Layout]) -> Plan:
        return Plan((call.last, None), (None,))

    def _rows(self, call: Call) -> int:
        """Bytes of one f32 for each row of logits."""
        return 4 * prod(call.operands[0].shape[:-1])

    def workspace(self, call: Call, plan: Plan, k: int) -> int:
        return 3 * self._rows(call)

    def collectives(self, call: Call, plan: Plan, arriving: Sequence[Layout], k: int) -> tuple[Collective, ...]:
        own = super().collectives(call, plan, arriving, k)
        return (*own, *(Collective("all_reduce", self._rows(call), k) for _ in range(3)))
