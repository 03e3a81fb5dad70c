"""The base of the splitting rules: one rule for each kind of operator."""

from __future__ import annotations

from collections.abc import Sequence

from passes.costs.call import Call, Layout, Plan
from passes.costs.collectives import Collective


class Rule:
    """How a kind of operator is shared by k accelerators. This base: not at all, everything stays whole.

    Methods with ``k`` answer for each of k accelerators, and also for k = 1.
    """

    kernel = True
    """Whether it runs anything at all; a view of its operand does not."""

    reads = 1
    """How many times the kernel goes over its operands."""

    # --- layouts: independent of k -----------------------------------------------------------

    def accepts(self, call: Call, operand: int, dim: int) -> bool:
        """Whether operand number ``operand`` may arrive split along ``dim``."""
        return False

    def wants(self, call: Call, operand: int, wanted: Sequence[Layout]) -> Layout:
        """The layout in which a whole operand would be cut locally, when consumers want ``wanted`` of the results."""
        return None

    def wishes(self, call: Call, operand: int) -> bool:
        """Whether it has a say in how an operand is cut; what only keeps a value for the backward pass has none."""
        return True

    def plan(self, call: Call, arriving: Sequence[Layout], wanted: Sequence[Layout]) -> Plan:
        """The layouts used and made, when the operands arrive as ``arriving``."""
        return Plan((None,) * len(call.operands), (None,) * len(call.results))

    # --- work on each of k accelerators ------------------------------------------------------

    def admits(self, call: Call, plan: Plan, k: int) -> bool:
        """Whether what is split divides by k."""
        cut = (*zip(call.operands, plan.uses, strict=True), *zip(call.results, plan.makes, strict=True))
        return all(dim is None or tensor.shape[dim] % k == 0 for tensor, dim in cut)

    def flops(self, call: Call, plan: Plan, k: int) -> int:
        """Floating-point operations that count: those of matrix products. The rest is bound by memory."""
        return 0

    def params(self, call: Call, plan: Plan, k: int) -> int:
        """Parameter bytes held."""
        return call.params

    def moved(self, call: Call, plan: Plan, k: int) -> int:
        """Bytes read and written: operands ``reads`` times, parameters and results once."""
        read = self.reads * sum(t.part(dim, k) for t, dim in zip(call.operands, plan.uses, strict=True))
        written = sum(t.part(dim, k) for t, dim in zip(call.results, plan.makes, strict=True))
        return read + written + self.params(call, plan, k)

    def workspace(self, call: Call, plan: Plan, k: int) -> int:
        """Bytes of scratch memory while it runs."""
        return 0

    def collectives(self, call: Call, plan: Plan, arriving: Sequence[Layout], k: int) -> tuple[Collective, ...]:
        """Communication that is part of the operator: of operands that arrive in another layout, of partial sums."""
        found: list[Collective] = []
        for tensor, here, used in zip(call.operands, arriving, plan.uses, strict=True):
            if here is not None and here != used:
                found.append(Collective("all_gather" if used is None else "all_to_all", tensor.size, k))
        return tuple(found)


def divide(amount: int, k: int) -> int:
    """``amount / k``, rounded up."""
    return -(-amount // k)
