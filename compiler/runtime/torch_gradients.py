"""Gradients of the operators on tensors: whole, or as the part of one of several accelerators.

A gradient operator computes from what it reads and nothing else. Where that is all that the gradient depends on, the
forward operator's part is computed once more from it and differentiated, what is not read being no number; gradients
that depend on the result, or on what was handed on, are written down. A part has the gradients of its share of the
parameters, and of parameters that every part holds, all of it. It has those of operands that it reads parts of, and of
others a part of the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan

import torch
from torch import Tensor

from compiler.runtime.job import Forward, Operator, Value
from compiler.runtime.torch_calls import ADDED, WHOLE, Call, Rule
from compiler.runtime.torch_mixture import mixture
from compiler.runtime.torch_operators import run
from compiler.runtime.torch_values import Key, Parameters, Part, real_type, share_of
from dialects.nn.needs import roles

Gradients = Mapping[tuple[Key, Part], Tensor]
"""By parameter and share of it."""

ELEMENTWISE = frozenset({"add", "sub", "mul", "residual", "gelu", "relu", "silu", "tanh", "sigmoid"})


def run_input(call: Call) -> tuple[list[Tensor], list[Rule]]:
    """The results of a part of an ``input_gradient``, and how the parts of each make the whole."""
    given = _read(call, weight=False)
    made, rules = _INPUT.get(given.of.kind, _differentiated)(given)
    values = call.operator.results
    return [x.to(real_type(v.element)) for x, v in zip(made, values, strict=True)], rules


def run_weight(call: Call) -> Gradients:
    """What a part of a ``weight_gradient`` adds to the gradients of its parameters."""
    given = _read(call, weight=True)
    return _WEIGHT.get(given.of.kind, _of_parameters)(given)


def again(call: Call) -> Call:
    """The part of the forward operator that a ``recompute`` runs once more, without the gradients that it awaits."""
    of = call.operator.of
    assert of is not None
    operator = replace(call.operator, kind=of.kind, arguments=of.arguments, of=None)
    return replace(call, operator=operator, inputs=call.inputs[: len(of.operands)])


# --- what a gradient reads -------------------------------------------------------------------


@dataclass(frozen=True)
class _Read:
    """A part of the forward operator as its gradient knows it."""

    of: Forward
    call: Call
    """On the operands that are read; others hold no numbers."""
    arriving: list[Tensor]
    """Gradients of all results: of a loss that none arrives for 1, of others 0."""
    results: Mapping[int, Tensor]
    """Those results that are read."""
    handed: Tensor | None

    def own(self, whole: Tensor, rule: Rule) -> Tensor:
        return rule.part(whole, self.call.part, self.call.parts)


def _read(call: Call, weight: bool) -> _Read:
    of = call.operator.of
    assert of is not None
    found: dict[str, dict[int, Tensor]] = {"gradient": {}, "operand": {}, "result": {}, "handed": {}}
    maximum = of.arguments.get("kind") == "max"
    for role, tensor in zip(roles(of.kind, weight, len(of.operands), of.arriving, maximum), call.inputs, strict=True):
        found[role.what][role.number] = tensor
    operator = replace(call.operator, kind=of.kind, arguments=of.arguments, results=of.results, of=None)
    device = call.parameters.device

    def full(value: Value, number: float) -> Tensor:
        return torch.full(value.shape, number, dtype=real_type(value.element), device=device)

    inputs = [found["operand"].get(i, full(v, nan)) for i, v in enumerate(of.operands)]
    own = [found["gradient"].get(r, full(v, 0 if v.shape else 1)) for r, v in enumerate(of.results)]
    return _Read(of, replace(call, operator=operator, inputs=inputs), own, found["result"], found["handed"].get(0))


# --- by differentiation of the part ----------------------------------------------------------


def _differentiated(given: _Read) -> tuple[list[Tensor], list[Rule]]:
    inputs = list(given.call.inputs)
    for i in given.of.made:
        inputs[i] = inputs[i].detach().requires_grad_()
    found = _differentiate(given, replace(given.call, inputs=inputs), lambda: [inputs[i] for i in given.of.made])
    rules = [_together(given, i) for i in given.of.made]
    if given.of.kind in ELEMENTWISE:
        found = [x.reshape(-1) for x in found]
    return [given.own(x, rule) for x, rule in zip(found, rules, strict=True)], rules


def _differentiate(given: _Read, call: Call, variables: Callable[[], list[Tensor]]) -> list[Tensor]:
    """Gradients of the variables that are there once ``call``, the part of the forward operator, has run."""
    with torch.enable_grad():
        made, rule = run(call)
    pairs = [
        (y, given.own(g.reshape(-1) if y.ndim == 1 else g, rule).reshape(y.shape))
        for y, g in zip(made, given.arriving, strict=True)
        if y.requires_grad
    ]
    if not pairs:
        return [torch.zeros_like(x) for x in variables()]
    ys, gs = zip(*pairs, strict=True)
    return list(torch.autograd.grad(ys, variables(), gs, allow_unused=True, materialize_grads=True))


def _together(given: _Read, operand: int) -> Rule:
    """How the gradient of an operand is made of those of the parts."""
    kind, arguments, shape = given.of.kind, given.of.arguments, given.of.operands[operand].shape
    if kind in ELEMENTWISE:
        return _elements(shape)
    if kind == "linear" and arguments["split"] == "row":
        return Rule(dim=len(shape) - 1, units=shape[-1], length=1)
    if kind == "matmul" and operand == 1:
        dim = len(shape) - (2 if arguments["transpose_b"] else 1)
        return Rule(dim=dim, units=shape[dim], length=1)
    if kind == "attention":
        heads = arguments["heads"] if operand == 0 else arguments.get("kv_heads", arguments["heads"])
        # With fewer heads of keys than accelerators, several have a part of the sum of one.
        return ADDED if heads % given.call.parts and operand else Rule(dim=2, units=heads, length=shape[2] // heads)
    if kind == "conv2d" and arguments["groups"] > 1:
        return Rule(dim=1, units=arguments["groups"], length=shape[1] // arguments["groups"])
    return ADDED if kind in ("linear", "matmul", "conv2d") else WHOLE


def _elements(shape: Sequence[int]) -> Rule:
    return Rule(dim=0, units=torch.Size(shape).numel(), length=1)


# --- written down ----------------------------------------------------------------------------


def _of_result(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[_Read], tuple[list[Tensor], list[Rule]]]:
    """Of operators that go element by element: ``function`` of the gradient of the result, and the result."""

    def part(given: _Read) -> tuple[list[Tensor], list[Rule]]:
        rule = _elements(given.of.results[0].shape)
        g, y = (given.own(x.reshape(-1), rule) for x in (given.arriving[0], given.results[0]))
        return [function(g, y)], [rule]

    return part


def _through_softmax(g: Tensor, y: Tensor, dim: int) -> Tensor:
    return y * (g - (g * y).sum(dim, keepdim=True))


def _softmax(given: _Read) -> tuple[list[Tensor], list[Rule]]:
    return [_through_softmax(given.arriving[0], given.results[0], given.of.arguments["axis"])], [WHOLE]


def _reduce(given: _Read) -> tuple[list[Tensor], list[Rule]]:
    axis, kind = given.of.arguments["axis"], given.of.arguments["kind"]
    if kind != "max":
        return _differentiated(given)
    x, y, g = given.call.inputs[0], given.results[0].unsqueeze(axis), given.arriving[0].unsqueeze(axis)
    greatest = x == y
    # Equal ones share it, as in torch.
    return [greatest * g / greatest.sum(axis, keepdim=True)], [WHOLE]


def _router_logits(given: _Read) -> Tensor:
    """The gradient of what a router chooses by, from the weights of the chosen."""
    y, g = given.results[0], given.arriving[0]
    if given.of.arguments["top_k"] == given.of.arguments["experts"]:
        return _through_softmax(g, y, -1)
    # The weight is the square of a hyperbolic tangent.
    t = y.sqrt()
    return g * 2 * t * (1 - y)


def _router_input(given: _Read) -> tuple[list[Tensor], list[Rule]]:
    width = given.of.operands[0].shape[-1]
    weight = given.call.parameter("weight", (given.of.arguments["experts"], width), given.arriving[0].dtype)
    return [_router_logits(given) @ weight / width**0.5], [WHOLE]


def _experts_input(given: _Read) -> tuple[list[Tensor], list[Rule]]:
    """Beside the gradients, hands on the hidden layer and the gradients of what its activation reads."""
    part = mixture(given.call)
    matrices, width, hidden = part.matrices(), part.x.shape[-1], part.hidden
    g = given.arriving[0].reshape(-1, width)
    dx, routes = torch.zeros_like(part.x), torch.zeros_like(part.routes)
    handed = g.new_zeros(len(g), part.top, len(matrices), hidden)
    for visit in part.visits():
        x, out = part.x[visit.token], g[visit.token] / hidden**0.5
        with torch.enable_grad():
            before = [b.detach().requires_grad_() for b in part.before(x, matrices, visit)]
            h = part.activated(before)
        down = matrices[1][visit.rows]
        gradients = torch.autograd.grad(h, before, out @ down.T * visit.route)
        for b, matrix in zip(gradients, (matrices[0], *matrices[2:]), strict=True):
            dx.index_add_(0, visit.token, b @ matrix[visit.rows] / width**0.5)
        routes[visit.token, visit.expert] = (h.detach() @ down * out).sum(-1)
        kept = torch.stack([h.detach(), *gradients], 1)
        handed[visit.token, visit.slot, :, visit.columns] = kept
    made = [(dx, routes)[i] for i in given.of.made]
    return [*made, handed], [ADDED] * (len(made) + 1)


_INPUT: Mapping[str, Callable[[_Read], tuple[list[Tensor], list[Rule]]]] = {
    "relu": _of_result(lambda g, y: g * (y > 0)),
    "tanh": _of_result(lambda g, y: g * (1 - y * y)),
    "sigmoid": _of_result(lambda g, y: g * y * (1 - y)),
    "softmax": _softmax,
    "reduce": _reduce,
    "router": _router_input,
    "experts": _experts_input,
}
"""Kinds whose gradients of operands are written down."""


# --- of parameters ---------------------------------------------------------------------------


class _Traced(Parameters):
    """The parameters that an operator asks for, as variables to differentiate by."""

    def __init__(self, parameters: Parameters):
        super().__init__(parameters.seed, parameters.device)
        self.parameters = parameters

    def get(
        self,
        operator: Operator,
        role: str,
        shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        dim: int = 0,
        share: slice | None = None,
    ) -> Tensor:
        name = share_of(operator, role, shape, dtype, dim, share)
        if name not in self.held:
            found = self.parameters.get(operator, role, shape, dtype, dim, share)
            self.held[name] = found.detach().requires_grad_()
        return self.held[name]


def _of_parameters(given: _Read) -> dict[tuple[Key, Part], Tensor]:
    traced = _Traced(given.call.parameters)
    found = _differentiate(given, replace(given.call, parameters=traced), lambda: list(traced.held.values()))
    return dict(zip(traced.held, found, strict=True))


def _linear_weight(given: _Read) -> Gradients:
    found = _of_parameters(given)
    if given.of.arguments["split"] == "row" and given.of.arguments["bias"]:
        features = given.of.arguments["features"]
        g = given.arriving[0]
        # All parts hold it, and only one adds it: each has the gradient whole.
        bias = given.call.name("bias", (features,), g.dtype)
        found[bias] = 0.1 * g.reshape(-1, features).sum(0)
    return found


def _router_weight(given: _Read) -> Gradients:
    x, logits = given.call.inputs[0], _router_logits(given)
    shape = (logits.shape[-1], x.shape[-1])
    found = logits.reshape(-1, shape[0]).T @ x.reshape(-1, shape[1]) / shape[1] ** 0.5
    return {given.call.name("weight", shape, x.dtype): found}


def _experts_weight(given: _Read) -> Gradients:
    assert given.handed is not None
    part = mixture(given.call)
    matrices, width = part.matrices(), part.x.shape[-1]
    g = given.arriving[0].reshape(-1, width)
    handed = given.handed.reshape(len(g), part.top, len(matrices), part.hidden)
    found = [torch.zeros_like(m) for m in matrices]
    for visit in part.visits():
        h, *gradients = handed[visit.token, visit.slot, :, visit.columns].unbind(1)
        found[1][visit.rows] = h.T @ (g[visit.token] * visit.route) / part.hidden**0.5
        for number, b in zip((0, 2), gradients, strict=False):
            found[number][visit.rows] = b.T @ part.x[visit.token] / width**0.5
    return dict(zip(part.shares(), found, strict=True))


_WEIGHT: Mapping[str, Callable[[_Read], Gradients]] = {
    "linear": _linear_weight,
    "router": _router_weight,
    "experts": _experts_weight,
}
"""Kinds of which some or all gradients of parameters are written down."""
