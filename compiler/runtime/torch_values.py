"""Tensors of a real run: how values are stored, and the inputs and parameters that everyone makes alike.

Every number is a floating-point one: f64 and the integers i32 and i64 are ``float64``, all others ``float32``. So
integers are exact (below 2^53; i8 and i1 below 2^24), no result is rounded to an integer, which could fall on either
side where sums are added up in another order, and a real type is a whole multiple as wide as that of the IR.

Nothing is read from files: inputs and parameters follow from a seed and names, on every process the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

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


class Parameters:
    """The parameters of operators on a device, made when they are first asked for.

    All are normally distributed with variance 1: operators scale what they read. Those of a group are one tensor
    wherever they have one shape, as the table of an embedding and the weight of a head tied to it.
    """

    def __init__(self, seed: int, device: str = "cpu"):
        self.seed, self.device = seed, device
        self._made: dict[tuple[object, ...], Tensor] = {}

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
        name = ("operator", operator.name) if operator.group is None else ("group", operator.group)
        part = None if share is None else (dim, share.start, share.stop)
        key = (*name, role, tuple(shape), dtype, part)
        if key not in self._made:
            whole = torch.randn(tuple(shape), generator=generator(self.seed, *name, role), dtype=dtype)
            cut = whole if share is None else whole.narrow(dim, share.start, share.stop - share.start)
            self._made[key] = (cut.clone() if cut.numel() < whole.numel() else whole).to(self.device)
        return self._made[key]


def input_value(job: Job, number: int, microbatch: int) -> Tensor:
    """Input ``number`` of a micro-batch: normally distributed, or integers that all its readers can look up."""
    value = job.inputs[number]
    source = generator(job.settings.seed, "input", number, microbatch)
    dtype = real_type(value.element)
    if value.element in _FLOATS:
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
