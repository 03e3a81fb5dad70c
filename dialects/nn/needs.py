"""What the gradients of each kind of operator read, beside the gradients that arrive.

A value that is listed here lives until the gradient has read it. Parameters lie with the operators and are not listed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Role:
    """What an operand of a gradient operator is to the forward operator, and its number there.

    ``gradient`` of a result, an ``operand``, a ``result``, or what the input gradient ``hands`` to that of the weights.
    """

    what: Literal["gradient", "operand", "result", "handed"]
    number: int


@dataclass(frozen=True)
class Needs:
    """Operands and results of the forward operator that one of its gradients reads; ``every``: all its operands."""

    operands: tuple[int, ...] = ()
    results: tuple[int, ...] = ()
    handed: bool = False
    every: bool = False


NOTHING, X, Y = Needs(), Needs((0,)), Needs(results=(0,))
BOTH = Needs((0, 1))

INPUT: Mapping[str, Needs] = {
    "op": Needs(every=True),
    "linear": NOTHING,
    "matmul": BOTH,
    "attention": Needs((0, 1, 2)),
    "layer_norm": X,
    "rms_norm": X,
    "batch_norm": X,
    "softmax": Y,
    "embedding": NOTHING,
    "rotary": NOTHING,
    "position_embedding": NOTHING,
    "add": NOTHING,
    "residual": NOTHING,
    "sub": NOTHING,
    "mul": BOTH,
    "gelu": X,
    "relu": Y,
    "silu": X,
    "tanh": Y,
    "sigmoid": Y,
    "router": Y,
    "experts": BOTH,
    "conv2d": NOTHING,
    "max_pool": X,
    "avg_pool": NOTHING,
    "global_avg_pool": NOTHING,
    "concat": NOTHING,
    "split": NOTHING,
    "reshape": NOTHING,
    "transpose": NOTHING,
    "slice": NOTHING,
    "reduce": NOTHING,
    "cross_entropy": BOTH,
    "mse_loss": BOTH,
}
"""Of the gradient of the operands, by kind. ``reduce`` by maximum reads more: :func:`roles`."""

WEIGHT: Mapping[str, Needs] = {
    "op": Needs(every=True),
    "linear": X,
    "layer_norm": X,
    "rms_norm": X,
    "batch_norm": X,
    "embedding": X,
    "position_embedding": NOTHING,
    "router": Needs((0,), (0,)),
    "experts": Needs((0, 1), handed=True),
    "conv2d": X,
}
"""Of the gradient of the weights, by kind. A written ``params`` gives others one too, which reads all operands."""

INDICES: Mapping[str, int] = {"embedding": 0, "cross_entropy": 1}
"""The operand that selects, by kind: it has no gradient, even where an opaque operator makes it."""

PASSED_ON = frozenset({"add", "residual", "position_embedding"})
"""Kinds whose operands have the gradient of the result, so that no operator is needed."""


def roles(kind: str, weight: bool, operands: int, arriving: Sequence[int], maximum: bool = False) -> tuple[Role, ...]:
    """The operands of a gradient of an operator of ``kind``, which has so many ``operands``, in order.

    ``weight``: that of the weights, else that of the operands; ``arriving``: the results whose gradients arrive;
    ``maximum``: it selects elements, as ``reduce`` may.
    """
    needs = (WEIGHT if weight else INPUT).get(kind, Needs(every=True))
    if maximum:
        needs = Needs((0,), (0,))
    numbers = range(operands) if needs.every else needs.operands
    return (
        *(Role("gradient", r) for r in arriving),
        *(Role("operand", i) for i in numbers),
        *(Role("result", r) for r in needs.results),
        *((Role("handed", 0),) if needs.handed else ()),
    )
