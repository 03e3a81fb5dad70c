"""How gradients are shared by k accelerators: as the operator that they are of, with its communication turned round.

A gradient of a value lies as the value itself. Where the forward operator reads an operand whole and splits its work,
each accelerator has a part of the sum that is the operand's gradient, and these are all-reduced; where it reads parts,
nothing is added; where it adds parts up, the gradient is read whole on all. (Shoeybi et al. 2019, section 3: f and g
are conjugate.) Gradients of parameters that every accelerator holds whole are added up once a batch, with the
optimizer, and not here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import ClassVar

from dialects.nn.needs import Role
from passes.costs.call import Backward, Call, Layout, Plan
from passes.costs.collectives import Collective
from passes.costs.kinds.base import Rule, divide
from passes.costs.kinds.pointwise import Carry

VIEWS = ("reshape", "concat")
"""Kinds whose input gradient is the gradient that arrives, seen in another way."""

STATED = ("linear", "conv2d", "router", "experts")
"""Kinds whose parameters the input gradient reads."""


class Gradient(Rule):
    """What the gradients of operands and of weights have in common. ``rule`` is that of the forward operator."""

    products: ClassVar[Mapping[str, int]] = {}
    """Floating-point operations, as a multiple of those of the forward operator, by kind; 1 where left out."""

    def __init__(self, rule: Rule, kernel: bool):
        self.rule = rule
        self.kernel = kernel
        self.reads = rule.reads

    def of(self, call: Call) -> Backward:
        assert call.backward is not None
        return call.backward

    def accepts(self, call: Call, operand: int, dim: int) -> bool:
        backward = self.of(call)
        role = backward.roles[operand]
        if role.what == "operand":
            return self.rule.accepts(backward.forward, role.number, dim)
        if role.what == "gradient" and self._adds(call):
            return dim == backward.forward.rows
        return self._layout(call, self._plan(call, {role: dim}, {}), role) == dim

    def wishes(self, call: Call, operand: int) -> bool:
        return self.of(call).roles[operand].what in ("gradient", "handed")

    def wants(self, call: Call, operand: int, wanted: Sequence[Layout]) -> Layout:
        backward = self.of(call)
        role = backward.roles[operand]
        if role.what == "gradient" and self._adds(call):
            return backward.forward.rows
        made = dict(zip(backward.made, wanted, strict=False)) if call.kind == "input_gradient" else {}
        return self._layout(call, self._plan(call, {}, made), role)

    def plan(self, call: Call, arriving: Sequence[Layout], wanted: Sequence[Layout]) -> Plan:
        roles = self.of(call).roles
        made = dict(zip(self.of(call).made, wanted, strict=False)) if call.kind == "input_gradient" else {}
        forward = self._plan(call, dict(zip(roles, arriving, strict=True)), made)
        return Plan(
            tuple(self._layout(call, forward, role) for role in roles),
            self.makes(call, forward, wanted),
        )

    def makes(self, call: Call, forward: Plan, wanted: Sequence[Layout]) -> tuple[Layout, ...]:
        """The layouts of the results, where the forward operator would run by the plan ``forward``."""
        return (None,) * len(call.results)

    def _plan(self, call: Call, arriving: Mapping[Role, Layout], wanted: Mapping[int, Layout]) -> Plan:
        """The plan of the forward operator that fits what the gradient reads and what is wanted of it."""
        forward = self.of(call).forward
        operands = [arriving.get(Role("operand", i), wanted.get(i)) for i in range(len(forward.operands))]
        good = [None if d is None or not self.rule.accepts(forward, i, d) else d for i, d in enumerate(operands)]
        # Several results, as of `split`, have one layout; that of a gradient which does not arrive is unknown.
        here = (d for role, d in arriving.items() if role.what in ("gradient", "result"))
        common = next((d for d in here if d is not None), None)
        return self.rule.plan(forward, good, (common,) * len(forward.results))

    def _layout(self, call: Call, forward: Plan, role: Role) -> Layout:
        """The layout in which an operand is read."""
        if role.what == "operand":
            return forward.uses[role.number]
        if role.what == "handed":
            return 0
        return None if self._adds(call) else forward.makes[role.number]

    def _adds(self, call: Call) -> bool:
        """Whether the forward operator adds up parts, so that gradients of its result are read whole."""
        forward = self.of(call).forward
        return forward.kind == "embedding" or (forward.kind == "linear" and forward.arguments["split"] == "row")

    def _forward(self, call: Call, plan: Plan) -> Plan:
        """The forward operator's plan that led to ``plan``."""
        wanted = dict(zip(self.of(call).made, plan.makes, strict=False)) if call.kind == "input_gradient" else {}
        return self._plan(call, dict(zip(self.of(call).roles, plan.uses, strict=True)), wanted)

    def admits(self, call: Call, plan: Plan, k: int) -> bool:
        backward = self.of(call)
        return self.rule.admits(backward.forward, self._forward(call, plan), k)

    def flops(self, call: Call, plan: Plan, k: int) -> int:
        forward = self.of(call).forward
        return self.products.get(forward.kind, 1) * self.rule.flops(forward, self._forward(call, plan), k)

    def params(self, call: Call, plan: Plan, k: int) -> int:
        return self.rule.params(self.of(call).forward, self._forward(call, plan), k)

    def operands_moved(self, call: Call, plan: Plan, k: int) -> int:
        """Bytes read of the operands."""
        forward = self.of(call).forward
        if forward.kind in ("attention", "experts", "embedding"):
            return self.rule.moved(forward, self._forward(call, plan), k)
        return self.reads * sum(t.part(dim, k) for t, dim in zip(call.operands, plan.uses, strict=True))

    def workspace(self, call: Call, plan: Plan, k: int) -> int:
        return self.rule.workspace(self.of(call).forward, self._forward(call, plan), k)


class InputGradient(Gradient):
    """A product has one for each operand, ``matmul`` and attention two.

    Attention: dV, dP, dQ and dK, four products to the forward pass's two. That a kernel which keeps no scores computes
    them again is left out. Experts compute their hidden layer again.
    """

    products: ClassVar[Mapping[str, int]] = {"matmul": 2, "attention": 2}

    def makes(self, call: Call, forward: Plan, wanted: Sequence[Layout]) -> tuple[Layout, ...]:
        backward = self.of(call)
        partial = self._partial(call, forward)
        found: list[Layout] = []
        for i, want in zip(backward.made, wanted, strict=False):
            found.append(want if partial and forward.uses[i] is None else forward.uses[i])
        return (*found, 0) if len(call.results) > len(found) else tuple(found)

    def _partial(self, call: Call, forward: Plan) -> bool:
        """Whether gradients of operands that are read whole are sums over the accelerators."""
        return self.of(call).forward.kind == "experts" or any(d is not None for d in forward.makes)

    def admits(self, call: Call, plan: Plan, k: int) -> bool:
        made = zip(call.results, plan.makes, strict=True)
        if self.of(call).forward.kind != "experts" and any(d is not None and t.shape[d] % k for t, d in made):
            return False
        return super().admits(call, plan, k)

    def flops(self, call: Call, plan: Plan, k: int) -> int:
        found = super().flops(call, plan, k)
        if self.of(call).forward.kind != "experts":
            return found
        matrices = 3 if self.of(call).forward.arguments["gated"] else 2
        return found + divide(found * (matrices - 1), matrices)

    def moved(self, call: Call, plan: Plan, k: int) -> int:
        forward = self.of(call).forward
        written = sum(t.part(dim, k) for t, dim in zip(call.results, plan.makes, strict=True))
        if forward.kind == "attention":
            # dq, dk and dv lie as q, k and v, and the gradient as q.
            return 2 * self.operands_moved(call, plan, k)
        weights = self.params(call, plan, k) if forward.kind in STATED and forward.kind != "experts" else 0
        return self.operands_moved(call, plan, k) + written + weights

    def collectives(self, call: Call, plan: Plan, arriving: Sequence[Layout], k: int) -> tuple[Collective, ...]:
        found = list(super().collectives(call, plan, arriving, k))
        backward, forward = self.of(call), self._forward(call, plan)
        if backward.forward.kind == "attention":
            # Of heads that several accelerators hold, each has a part of the sum.
            kv_heads = self.of(call).forward.arguments["kv_heads"] or backward.forward.arguments["heads"]
            if k > kv_heads:
                sizes = (backward.forward.operands[i].size for i in backward.made if i > 0)
                found += [Collective("reduce_scatter", size // kv_heads, k // kv_heads) for size in sizes]
        elif backward.forward.kind == "cross_entropy":
            found += self.rule.collectives(backward.forward, forward, forward.uses, k)
        elif self._partial(call, forward):
            for i, tensor, dim in zip(backward.made, call.results, plan.makes, strict=False):
                if forward.uses[i] is None:
                    found.append(Collective("all_reduce" if dim is None else "reduce_scatter", tensor.size, k))
        return tuple(found)


class WeightGradient(Gradient):
    """As many products as the forward operator has; the gradient so far is read, added to and written."""

    def wishes(self, call: Call, operand: int) -> bool:
        """That of an operator which keeps any split takes the gradient as the input gradient does."""
        return super().wishes(call, operand) and not isinstance(self.rule, Carry)

    def moved(self, call: Call, plan: Plan, k: int) -> int:
        forward = self.of(call).forward
        if forward.kind == "embedding":
            rows = divide(forward.results[0].size, k)
            return forward.operands[0].size + 3 * rows
        return self.operands_moved(call, plan, k) + 2 * self.params(call, plan, k)


@cache
def gradient_rule(weight: bool, kind: str, rule: Rule) -> Gradient:
    """The rule of a gradient of an operator of ``kind`` whose own rule is ``rule``."""
    return WeightGradient(rule, True) if weight else InputGradient(rule, kind not in VIEWS)
