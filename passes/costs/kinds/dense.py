"""Operators with matrix products, and table look-up: their own work is split, not only their operands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from passes.costs.call import Call, Layout, Plan
from passes.costs.collectives import Collective
from passes.costs.kinds.base import Rule, divide


class ColumnLinear(Rule):
    """Each accelerator has columns of the weight; the operand is whole, the result split along its last dimension.

    With sequence parallelism (Korthikanti et al., MLSys 2023, section 4.2.2) rows of the operand arrive split and are
    gathered.
    """

    def accepts(self, call: Call, operand: int, dim: int) -> bool:
        return dim == call.rows

    def wants(self, call: Call, operand: int, wanted: Sequence[Layout]) -> Layout:
        return call.rows

    def plan(self, call: Call, arriving: Sequence[Layout], wanted: Sequence[Layout]) -> Plan:
        return Plan((None,), (call.last,))

    def flops(self, call: Call, plan: Plan, k: int) -> int:
        return divide(2 * prod(call.operands[0].shape) * call.arguments["features"], k)

    def params(self, call: Call, plan: Plan, k: int) -> int:
        return divide(call.params, k)


class RowLinear(ColumnLinear):
    """Each accelerator has rows of the weight, used with its columns of the operand; partial sums are added.

    A whole operand is cut locally, at no cost. The sums are all-reduced, or reduce-scattered when
    all consumers want the result split. Every accelerator has the whole bias.
    """

    def accepts(self, call: Call, operand: int, dim: int) -> bool:
        return dim == call.last

    def wants(self, call: Call, operand: int, wanted: Sequence[Layout]) -> Layout:
        return call.last

    def plan(self, call: Call, arriving: Sequence[Layout], wanted: Sequence[Layout]) -> Plan:
        return Plan((call.last,), (wanted[0],))

    def params(self, call: Call, plan: Plan, k: int) -> int:
        bias = call.arguments["features"] * call.operands[0].width if call.arguments["bias"] else 0
        return divide(call.params - bias, k) + bias

    def collectives(self, call: Call, plan: Plan, arriving: Sequence[Layout], k: int) -> tuple[Collective, ...]:
        own = super().collectives(call, plan, arriving, k)
        pattern = "all_reduce" if plan.makes[0] is None else "reduce_scatter"
        return (*own, Collective(pattern, call.results[0].size, k))


LINEAR: Mapping[str, Rule] = {"column": ColumnLinear(), "row": RowLinear()}
"""The rule of a linear operator by its argument ``split``."""


class Matmul(Rule):
    """Product of two values, split along one dimension of the result.

    The dimension is the one an operand arrives split along, or the one wanted, or else the largest
    leading dimension (heads, batch), or else the columns.
    """

    def _columns(self, call: Call) -> int:
        return len(call.operands[1].shape) - (2 if call.arguments["transpose_b"] else 1)

    def _result_dim(self, call: Call, operand: int, dim: int) -> Layout:
        last = call.last
        if operand == 0:
            return dim if dim < last else None
        if dim == self._columns(call):
            return last
        return dim if dim < len(call.operands[1].shape) - 2 else None

    def accepts(self, call: Call, operand: int, dim: int) -> bool:
        return self._result_dim(call, operand, dim) is not None

    def plan(self, call: Call, arriving: Sequence[Layout], wanted: Sequence[Layout]) -> Plan:
        arrived = (self._result_dim(call, i, d) for i, d in enumerate(arriving) if d is not None)
        dim = next((d for d in arrived if d is not None), wanted[0])
        last = call.last
        if dim is None:
            leading = call.operands[0].shape[:-2]
            dim = leading.index(max(leading)) if leading and max(leading) > 1 else last
        if dim == last:
            return Plan((None, self._columns(call)), (dim,))
        return Plan((dim, dim if dim < len(call.operands[1].shape) - 2 else None), (dim,))

    def flops(self, call: Call, plan: Plan, k: int) -> int:
        return divide(2 * prod(call.results[0].shape) * call.operands[0].shape[-1], k)


EXPONENTIAL = 256
"""The floating-point operations of a matrix product that take as long as one exponential.

On an H100: 989 TFLOP/s of products against 3.9 T/s of special functions (Shah et al. 2024,
"FlashAttention-3", section 3.1). Without that paper's overlap of the two, the times add up.
"""


class Attention(Rule):
    """Each accelerator has some of the heads (Shoeybi et al. 2019, section 3).

    With k beyond the number of key-value heads, each of these is held by k / kv_heads accelerators,
    which gather it when it arrives split into columns. The kernel keeps no matrix of scores, only one
    f32 a row and head (Dao et al. 2022, "FlashAttention").
    """

    def accepts(self, call: Call, operand: int, dim: int) -> bool:
        return dim == 2

    def wants(self, call: Call, operand: int, wanted: Sequence[Layout]) -> Layout:
        return 2

    def plan(self, call: Call, arriving: Sequence[Layout], wanted: Sequence[Layout]) -> Plan:
        return Plan((2, 2, 2), (2,))

    def _kv_heads(self, call: Call) -> int:
        return call.arguments["kv_heads"] or call.arguments["heads"]

    def admits(self, call: Call, plan: Plan, k: int) -> bool:
        kv_heads = self._kv_heads(call)
        return call.arguments["heads"] % k == 0 and (kv_heads % k == 0 or k % kv_heads == 0)

    def flops(self, call: Call, plan: Plan, k: int) -> int:
        batch, rows, width = call.operands[0].shape
        columns = call.operands[1].shape[1]
        # For each pair two products of the head size, q k^T and p v, and for each head an exponential.
        # With causal, the last row sees all columns, each one above one less.
        pairs = rows * columns
        if call.arguments["causal"]:
            seen = min(rows, columns)
            pairs = seen * columns - seen * (seen - 1) // 2
        return divide(batch * pairs * (4 * width + EXPONENTIAL * call.arguments["heads"]), k)

    def moved(self, call: Call, plan: Plan, k: int) -> int:
        q, key, value = call.operands
        return 2 * divide(q.size, k) + divide(key.size + value.size, min(k, self._kv_heads(call)))

    def workspace(self, call: Call, plan: Plan, k: int) -> int:
        batch, rows, _ = call.operands[0].shape
        return 4 * batch * rows * call.arguments["heads"] // k

    def collectives(self, call: Call, plan: Plan, arriving: Sequence[Layout], k: int) -> tuple[Collective, ...]:
        kv_heads = self._kv_heads(call)
        if k <= kv_heads:
            return ()
        return tuple(
            Collective("all_gather", tensor.size // kv_heads, k // kv_heads)
            for tensor, here in zip(call.operands[1:], arriving[1:], strict=True)
            if here is not None
        )


class Embedding(Rule):
    """Each accelerator has rows of the table and writes zeros for tokens of others; the results are all-reduced.

    With sequence parallelism they are reduce-scattered.
    """

    def plan(self, call: Call, arriving: Sequence[Layout], wanted: Sequence[Layout]) -> Plan:
        rows = call.rows is not None and wanted[0] == call.rows
        return Plan((None,) * len(call.operands), (call.rows if rows else None,))

    def admits(self, call: Call, plan: Plan, k: int) -> bool:
        return call.arguments["vocab"] % k == 0

    def params(self, call: Call, plan: Plan, k: int) -> int:
        return divide(call.params, k)

    def moved(self, call: Call, plan: Plan, k: int) -> int:
        rows = call.results[0].size
        return call.operands[0].size + divide(rows, k) + rows

    def collectives(self, call: Call, plan: Plan, arriving: Sequence[Layout], k: int) -> tuple[Collective, ...]:
        pattern = "all_reduce" if plan.makes[0] is None else "reduce_scatter"
        return (Collective(pattern, call.results[0].size, k),)


class Router(Rule):
    """A small product that every accelerator repeats."""

    def flops(self, call: Call, plan: Plan, k: int) -> int:
        return 2 * prod(call.operands[0].shape) * call.arguments["experts"]


class Experts(Rule):
    """Each accelerator has some experts, or, with k beyond their number, columns of one expert's hidden layer.

    The tokens are whole on every accelerator, so dispatch needs no communication; the outputs are
    partial sums and are all-reduced. Tokens are assumed to spread evenly over the experts.
    """

    def _ways(self, call: Call, k: int) -> tuple[int, int]:
        """Groups of experts and parts of a hidden layer, ``groups * parts = k``."""
        groups = min(k, call.arguments["experts"])
        return groups, k // groups

    def admits(self, call: Call, plan: Plan, k: int) -> bool:
        groups, parts = self._ways(call, k)
        return call.arguments["experts"] % groups == 0 and k == groups * parts and call.arguments["hidden"] % parts == 0

    def _tokens(self, call: Call, k: int) -> int:
        """Tokens that visit the experts of one accelerator, counted once for each visit."""
        groups, _ = self._ways(call, k)
        return divide(prod(call.operands[0].shape[:-1]) * call.arguments["top_k"], groups)

    def flops(self, call: Call, plan: Plan, k: int) -> int:
        matrices = 3 if call.arguments["gated"] else 2
        visits = prod(call.operands[0].shape[:-1]) * call.arguments["top_k"]
        return divide(2 * visits * matrices * call.operands[0].shape[-1] * call.arguments["hidden"], k)

    def params(self, call: Call, plan: Plan, k: int) -> int:
        return divide(call.params, k)

    def moved(self, call: Call, plan: Plan, k: int) -> int:
        x, routes = call.operands
        visits = prod(x.shape[:-1]) * call.arguments["top_k"]
        # With fewer visits than experts, some weights are not read.
        weights = divide(call.params * min(visits, call.arguments["experts"]), k * call.arguments["experts"])
        return routes.size + 2 * self._tokens(call, k) * x.shape[-1] * x.width + weights

    def workspace(self, call: Call, plan: Plan, k: int) -> int:
        _, parts = self._ways(call, k)
        hidden = call.arguments["hidden"] // parts * (2 if call.arguments["gated"] else 1)
        return self._tokens(call, k) * (call.operands[0].shape[-1] + hidden) * call.operands[0].width

    def collectives(self, call: Call, plan: Plan, arriving: Sequence[Layout], k: int) -> tuple[Collective, ...]:
        return (Collective("all_reduce", call.results[0].size, k),)


class Conv2d(Rule):
    """Each accelerator has some output channels; with groups, some groups, and then only their input channels."""

    def accepts(self, call: Call, operand: int, dim: int) -> bool:
        return dim == 1 and call.arguments["groups"] > 1

    def wants(self, call: Call, operand: int, wanted: Sequence[Layout]) -> Layout:
        return 1 if call.arguments["groups"] > 1 else None

    def plan(self, call: Call, arriving: Sequence[Layout], wanted: Sequence[Layout]) -> Plan:
        return Plan((1 if call.arguments["groups"] > 1 else None,), (1,))

    def admits(self, call: Call, plan: Plan, k: int) -> bool:
        groups = call.arguments["groups"]
        return super().admits(call, plan, k) and (groups == 1 or groups % k == 0)

    def flops(self, call: Call, plan: Plan, k: int) -> int:
        depth = call.operands[0].shape[1] // call.arguments["groups"]
        return divide(2 * prod(call.results[0].shape) * depth * call.arguments["kernel"] ** 2, k)

    def params(self, call: Call, plan: Plan, k: int) -> int:
        return divide(call.params, k)
