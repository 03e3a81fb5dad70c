"""The operators of the language on tensors: whole, or as the part of one of several accelerators.

:func:`run` computes part ``part`` of ``parts`` from whole operands and its share of the parameters, and says by a
:class:`Rule` how the parts make the whole; the only part of one is the operator itself. Split is what the cost model
prices as split by itself (``docs/costs.md``), element-wise operators by elements; of anything else each part is the
whole. Shares are as equal as can be, so that any number of parts will do.

Random parameters keep values near 1 in deep models: products with them are divided by the root of what they sum over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

import torch
import torch.nn.functional as functional
from torch import Tensor

from compiler.runtime.torch_calls import ADDED, WHOLE, Call, Made, Rule
from compiler.runtime.torch_mixture import mixture
from compiler.runtime.torch_values import real_type


def run(call: Call) -> Made:
    """The results of a part of an operator; raises KeyError for a kind that is no operator of the language."""
    made, rule = KINDS[call.operator.kind](call)
    return [x.to(real_type(v.element)) for x, v in zip(made, call.operator.results, strict=True)], rule


# --- matrix products -------------------------------------------------------------------------


def _linear(call: Call) -> Made:
    (x,) = call.inputs
    features, inner = call.argument("features"), x.shape[-1]
    by_rows = call.argument("split") == "row"
    own = call.share(inner if by_rows else features)
    # [features, inner], as the table of an embedding that is tied to it.
    weight = call.parameter("table", (features, inner), x.dtype, 1 if by_rows else 0, own)
    y = (x[..., own] if by_rows else x) @ weight.T / inner**0.5
    if call.argument("bias"):
        # Every part holds all of the bias of rows, and one adds it.
        bias = call.parameter("bias", (features,), x.dtype, 0, None if by_rows else own)
        y = y if by_rows and call.part else y + 0.1 * bias
    return [y], ADDED if by_rows else Rule(dim=y.ndim - 1, units=features, length=1)


def _matmul(call: Call) -> Made:
    a, b = call.inputs
    b = b.mT if call.argument("transpose_b") else b
    y = a @ b[..., call.share(b.shape[-1])]
    return [y], Rule(dim=y.ndim - 1, units=b.shape[-1], length=1)


def _attention(call: Call) -> Made:
    heads = call.argument("heads")
    kv_heads = call.argument("kv_heads") or heads
    own = call.share(heads)
    q, k, v = (
        x.unflatten(2, (count, x.shape[2] // count)).transpose(1, 2)
        for x, count in zip(call.inputs, (heads, kv_heads, kv_heads), strict=True)
    )
    rows, columns = q.shape[2], k.shape[2]
    of_head = torch.arange(own.start, own.stop, device=q.device) // (heads // kv_heads)
    seen = None
    blind = max(0, rows - columns) if call.argument("causal") else 0
    if call.argument("causal"):
        # The last row sees all columns, each one above one less. Rows that see none are made zero, and see here what
        # they like: of nothing there would be no gradient.
        seen = torch.ones(rows, columns, dtype=torch.bool, device=q.device).tril(columns - rows)
        seen[:blind] = True
    y = functional.scaled_dot_product_attention(q[:, own], k[:, of_head], v[:, of_head], seen)
    y = functional.pad(y[:, :, blind:], (0, 0, blind, 0))
    return [y.transpose(1, 2).flatten(2)], Rule(dim=2, units=heads, length=q.shape[-1])


def _embedding(call: Call) -> Made:
    vocab, dim = call.argument("vocab"), call.argument("dim")
    own = call.share(vocab)
    table = call.parameter("table", (vocab, dim), real_type(call.operator.results[0].element), 0, own)
    rows = call.inputs[0].long() % vocab - own.start
    mine = (rows >= 0) & (rows < own.stop - own.start)
    y = table.new_zeros(*rows.shape, dim)
    y[mine] = table[rows[mine]]
    return [y], ADDED


def _router(call: Call) -> Made:
    """By how much the chosen exceed the next one, which counts as given: no rounding makes a choice, or the gradient of
    one, jump."""
    (x,) = call.inputs
    experts, top = call.argument("experts"), call.argument("top_k")
    logits = x @ call.parameter("weight", (experts, x.shape[-1]), x.dtype).T / x.shape[-1] ** 0.5
    if top == experts:
        return [torch.softmax(logits, -1)], WHOLE
    bound = logits.detach().topk(top + 1).values[..., -1:]
    return [torch.relu(logits - bound).tanh().square()], WHOLE


def _experts(call: Call) -> Made:
    part = mixture(call)
    matrices, y = part.matrices(), torch.zeros_like(part.x)
    for visit in part.visits():
        h = part.activated(part.before(part.x[visit.token], matrices, visit))
        y = y.index_add(0, visit.token, h @ matrices[1][visit.rows] / part.hidden**0.5 * visit.route)
    return [y], ADDED


def _conv2d(call: Call) -> Made:
    """Output channels are shared out, with groups whole groups and their input channels."""
    (x,) = call.inputs
    channels, groups, kernel = call.argument("channels"), call.argument("groups"), call.argument("kernel")
    units = channels if groups == 1 else groups
    own, out = call.share(units), channels // units
    inner = x.shape[1] // groups
    shape = (channels, inner, kernel, kernel)
    made = slice(own.start * out, own.stop * out)
    weight = call.parameter("weight", shape, x.dtype, 0, made) / (inner * kernel**2) ** 0.5
    bias = 0.1 * call.parameter("bias", (channels,), x.dtype, 0, made) if call.argument("bias") else None
    rule = Rule(dim=1, units=units, length=out)
    if own.start == own.stop:
        return [x.new_empty(x.shape[0], 0, *call.operator.results[0].shape[2:])], rule
    if groups > 1:
        x = x[:, own.start * inner : own.stop * inner]
    count = 1 if groups == 1 else own.stop - own.start
    return [functional.conv2d(x, weight, bias, call.argument("stride"), call.argument("padding"), 1, count)], rule


# --- element by element ----------------------------------------------------------------------


def _elementwise(function: Callable[..., Tensor]) -> Callable[[Call], Made]:
    def part(call: Call) -> Made:
        count = call.inputs[0].numel()
        own = call.share(count)
        return [function(*(x.reshape(-1)[own] for x in call.inputs))], Rule(dim=0, units=count, length=1)

    return part


def _position_embedding(call: Call) -> Made:
    (x,) = call.inputs
    return [x + call.parameter("table", x.shape[-2:], x.dtype)], WHOLE


def _rotary(call: Call) -> Made:
    """Numbers ``2i`` and ``2i + 1`` at position ``s`` are turned by ``s / 10000^(2i / d)``."""
    (x,) = call.inputs
    rows, width = x.shape[-2:]
    rates = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.arange(rows, dtype=torch.float64)[:, None] * rates
    cosine, sine = angles.cos().to(x), angles.sin().to(x)
    even, odd = x[..., 0::2], x[..., 1::2]
    return [torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), -1).flatten(-2)], WHOLE


# --- norms, reductions, losses ---------------------------------------------------------------

EPSILON = 1e-5


def _layer_norm(call: Call) -> Made:
    (x,) = call.inputs
    gain, shift = call.parameter("norm", (2, x.shape[-1]), x.dtype) * 0.1
    return [functional.layer_norm(x, x.shape[-1:], 1 + gain, shift, EPSILON)], WHOLE


def _rms_norm(call: Call) -> Made:
    (x,) = call.inputs
    gain = call.parameter("norm", (x.shape[-1],), x.dtype) * 0.1
    return [x * (x.square().mean(-1, keepdim=True) + EPSILON).rsqrt() * (1 + gain)], WHOLE


def _batch_norm(call: Call) -> Made:
    """With the running mean and variance, as a model that is not trained."""
    (x,) = call.inputs
    numbers = call.parameter("norm", (4, x.shape[1]), x.dtype) * 0.1
    gain, shift, mean, variance = (n.reshape(-1, *(1,) * (x.ndim - 2)) for n in numbers)
    return [(x - mean) * (1 + variance.abs() + EPSILON).rsqrt() * (1 + gain) + shift], WHOLE


def _reduce(call: Call) -> Made:
    (x,) = call.inputs
    functions: Mapping[str, Callable[..., Tensor]] = {"sum": torch.sum, "mean": torch.mean, "max": torch.amax}
    return [functions[call.argument("kind")](x, dim=call.argument("axis"))], WHOLE


def _cross_entropy(call: Call) -> Made:
    logits, labels = call.inputs
    classes = logits.shape[-1]
    return [functional.cross_entropy(logits.reshape(-1, classes), labels.long().reshape(-1) % classes)], WHOLE


# --- layout ----------------------------------------------------------------------------------


def _whole(function: Callable[[Call], Tensor]) -> Callable[[Call], Made]:
    return lambda call: ([function(call)], WHOLE)


def _max_pool(call: Call) -> Tensor:
    return functional.max_pool2d(call.inputs[0], *(call.argument(a) for a in ("kernel", "stride", "padding")))


def _avg_pool(call: Call) -> Tensor:
    kernel, stride, padding = (call.argument(a) for a in ("kernel", "stride", "padding"))
    return functional.avg_pool2d(call.inputs[0], kernel, stride, padding, count_include_pad=False)


def _split(call: Call) -> Made:
    (x,) = call.inputs
    return x.chunk(call.argument("parts"), call.argument("axis")), WHOLE


def _slice(call: Call) -> Tensor:
    return call.inputs[0].narrow(*(call.argument(a) for a in ("axis", "start", "length")))


# --- known only by times ---------------------------------------------------------------------


def _opaque(call: Call) -> Made:
    """Every number of every operand, mixed into every result, so that one that is lost or misplaced shows there.

    A result is mostly what was mixed, and little of its own, so that a change goes on through hundreds of operators.
    """
    made: list[Tensor] = []
    for number, value in enumerate(call.operator.results):
        count = prod(value.shape)
        y = 0.1 * call.parameter(f"bias.{number}", (count,), torch.float32)
        for place, x in enumerate(call.inputs):
            if x.numel() and count:
                y = y + _mixed(call, f"mix.{place}.{number}", x.reshape(-1).float(), count)
        made.append(y.reshape(value.shape))
    return made, WHOLE


def _mixed(call: Call, role: str, x: Tensor, count: int) -> Tensor:
    """``count`` numbers from those of ``x``: pieces of that length are added, or ``x`` is repeated, each time with
    another factor."""
    pieces = -(-x.numel() // count)
    times = 1 if pieces > 1 else -(-count // x.numel())
    factors = call.parameter(role, (pieces * times,), torch.float32)
    factors = factors.sign() * (0.5 + factors.abs())
    factors = factors / factors.square().mean().sqrt()
    # Neither numbers that grow nor a single one may lose what they tell: it is halfway between as is and normalised.
    x = x * (2 / (1 + x.square().mean())).sqrt()
    if pieces > 1:
        return factors @ functional.pad(x, (0, pieces * count - x.numel())).reshape(pieces, count) / pieces**0.5
    return (factors[:, None] * x).reshape(-1)[:count]


KINDS: Mapping[str, Callable[[Call], Made]] = {
    "op": _opaque,
    "linear": _linear,
    "matmul": _matmul,
    "attention": _attention,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "batch_norm": _batch_norm,
    "softmax": _whole(lambda call: torch.softmax(call.inputs[0], call.argument("axis"))),
    "embedding": _embedding,
    "position_embedding": _position_embedding,
    "rotary": _rotary,
    "add": _elementwise(torch.add),
    "sub": _elementwise(torch.sub),
    "mul": _elementwise(torch.mul),
    "residual": _elementwise(torch.add),
    "gelu": _elementwise(functional.gelu),
    "relu": _elementwise(torch.relu),
    "silu": _elementwise(functional.silu),
    "tanh": _elementwise(torch.tanh),
    "sigmoid": _elementwise(torch.sigmoid),
    "router": _router,
    "experts": _experts,
    "conv2d": _conv2d,
    "max_pool": _whole(_max_pool),
    "avg_pool": _whole(_avg_pool),
    "global_avg_pool": _whole(lambda call: call.inputs[0].mean((2, 3))),
    "concat": _whole(lambda call: torch.cat(list(call.inputs), call.argument("axis"))),
    "split": _split,
    "reshape": _whole(lambda call: call.inputs[0].reshape(tuple(call.argument("shape")))),
    "transpose": _whole(lambda call: call.inputs[0].permute(tuple(call.argument("order")))),
    "slice": _whole(_slice),
    "reduce": _reduce,
    "cross_entropy": _cross_entropy,
    "mse_loss": _whole(lambda call: functional.mse_loss(call.inputs[0], call.inputs[1])),
}
"""What each kind of operator computes."""
