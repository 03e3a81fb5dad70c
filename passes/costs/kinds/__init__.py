"""The splitting rules: how each kind of operator is shared by k accelerators."""

from __future__ import annotations

from collections.abc import Mapping

from passes.costs.call import Call
from passes.costs.kinds import dense, pointwise
from passes.costs.kinds.base import Rule
from passes.costs.kinds.gradients import gradient_rule

_ELEMENTWISE = ("add", "sub", "mul", "residual", "gelu", "relu", "silu", "tanh", "sigmoid", "rotary")

RULES: Mapping[str, Rule] = {
    # An opaque operator has a written table; its values enter and leave whole.
    "op": Rule(),
    "matmul": dense.Matmul(),
    "attention": dense.Attention(),
    "embedding": dense.Embedding(),
    "router": dense.Router(),
    "experts": dense.Experts(),
    "conv2d": dense.Conv2d(),
    **{kind: pointwise.Carry() for kind in _ELEMENTWISE},
    "position_embedding": pointwise.PositionEmbedding(),
    "layer_norm": pointwise.Norm(),
    "rms_norm": pointwise.Norm(),
    "batch_norm": pointwise.BatchNorm(),
    "softmax": pointwise.Softmax(),
    "max_pool": pointwise.Pool(),
    "avg_pool": pointwise.Pool(),
    "global_avg_pool": pointwise.Pool(),
    "concat": pointwise.Concat(),
    "split": pointwise.Cut(),
    "reshape": pointwise.Reshape(),
    "transpose": pointwise.Transpose(),
    "slice": pointwise.Slice(),
    "reduce": pointwise.Reduce(),
    "cross_entropy": pointwise.CrossEntropy(),
    "mse_loss": pointwise.MseLoss(),
}
"""The rule of every kind of operator; for ``linear`` see :func:`rule_of`."""


def rule_of(call: Call) -> Rule:
    """The rule of an operator; a linear one has one for each way to split it, a gradient that of its forward one."""
    if call.backward is not None:
        forward = call.backward.forward
        return gradient_rule(call.kind == "weight_gradient", forward.kind, rule_of(forward))
    return dense.LINEAR[call.arguments["split"]] if call.kind == "linear" else RULES[call.kind]
