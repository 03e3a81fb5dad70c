"""Tensors of a real run: how values are stored, and the inputs and parameters that everyone makes alike.

Every number is a floating-point one: f64 and the integers i32 and i64 are ``float64``, all others ``float32``. So
integers are exact (below 2^53; i8 and i1 below 2^24), no result is rounded to an integer, which could fall on either
side where sums are added up in another order, and a real type is a whole multiple as wide as that of the IR.

Nothing is read from files: inputs and parameters follow from a seed and names, on every process the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from compiler.runtime.fits import width
from compiler.runtime.job import Job, Operator, Value

_FLOATS = ("bf16", "f16", "f32", "f64")

IDS = 100
"""Integers of inputs are below it where no table or classes of their readers say otherwise."""


def real_type(element: str) -> torch.dtype:
    """What a type of the language is in a real run."""
    return torch.float64 if width(element) == 8 else torch.float32


def is_float(value: Value) -> bool:
    """Whether a value is one of floating-point numbers in the language."""
    return value.element in _FLOATS


def to_bytes(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, ``uint8 [bytes]``; they share its memory where it is contiguous."""
    return tensor.reshape(-1).view(torch.uint8)


def from_bytes(data: Tensor, value: Value) -> Tensor:
    """All bytes of a value as a tensor of its shape."""
    return data.view(real_type(value.element)).reshape(value.shape)


# --- made from a seed ------------------------------------------------------------------------


def generator(seed: int, *names: object) -> torch.Generator:
    """Random numbers that depend on these names and nothing else."""
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class Key(NamedTuple):
    """A parameter: the operator or the group it belongs to, its role there, shape and type."""

    owner: tuple[str, str]
    role: str
    shape: tuple[int, ...]
    dtype: torch.dtype


Part = tuple[int, int, int] | None
"""Dimension, begin and end of a share of a parameter; None for all of it."""


def share_of(
    operator: Operator,
    role: str,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    dim: int = 0,
    share: slice | None = None,
) -> tuple[Key, Part]:
    """The parameter ``role`` of an operator, and a share of it; those of a group are one."""
    owner = ("operator", operator.name) if operator.group is None else ("group", operator.group)
    return Key(owner, role, tuple(shape), dtype), None if share is None else (dim, share.start, share.stop)


def cut(whole: Tensor, part: Part) -> Tensor:
    """A share of a parameter, as a view."""
    return whole if part is None else whole.narrow(part[0], part[1], part[2] - part[1])


class Parameters:
    """The parameters of operators on a device, made when they are first asked for.

    All are normally distributed with variance 1: operators scale what they read. Those of a group are one tensor
    wherever they have one shape, as the table of an embedding and the weight of a head tied to it.
    """

    def __init__(self, seed: int, device: str = "cpu"):
        self.seed, self.device = seed, device
        self.held: dict[tuple[Key, Part], Tensor] = {}

    def get(
        self,
        operator: Operator,
        role: str,
        shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        dim: int = 0,
        share: slice | None = None,
    ) -> Tensor:
        """The parameter ``role`` of ``shape``, or its ``share`` along ``dim``, which alone is kept."""
        key, part = share_of(operator, role, shape, dtype, dim, share)
        if (key, part) not in self.held:
            # Copies on other accelerators begin with the same numbers.
            names = key.owner if operator.tied is None else ("group", operator.tied)
            whole = torch.randn(key.shape, generator=generator(self.seed, *names, role), dtype=dtype)
            own = cut(whole, part)
            self.held[key, part] = (own.clone() if own.numel() < whole.numel() else whole).to(self.device)
        return self.held[key, part]


def input_value(job: Job, number: int, microbatch: int) -> Tensor:
    """Input ``number`` of a micro-batch: normally distributed, or integers that all its readers can look up."""
    value = job.inputs[number]
    source = generator(job.settings.seed, "input", number, microbatch)
    dtype = real_type(value.element)
    if is_float(value):
        return torch.randn(value.shape, generator=source, dtype=dtype)
    return torch.randint(_below(job, number), value.shape, generator=source).to(dtype)


def _below(job: Job, number: int) -> int:
    """What integers of an input must be below: rows of tables, classes of labels."""
    value = job.inputs[number]
    bounds = [2 if value.element == "i1" else IDS]
    for operator in job.operators:
        for place, read in enumerate(operator.reads):
            if read.subject == -1 - number:
                if operator.kind == "embedding":
                    bounds.append(operator.arguments["vocab"])
                elif operator.kind == "cross_entropy" and place == 1:
                    bounds.append(read_value(job, operator, 0).shape[-1])
    return bounds[0] if len(bounds) == 1 else min(bounds[1:])


def read_value(job: Job, operator: Operator, place: int) -> Value:
    """The value that operand ``place`` of an operator is."""
    read = operator.reads[place]
    return job.inputs[-1 - read.subject] if read.subject < 0 else job.operators[read.subject].results[read.result]


def initial_value(value: Value) -> Tensor:
    """What the first micro-batches find in a state: zeros."""
    return torch.zeros(value.shape, dtype=real_type(value.element))
