"""Gradients and new parameters of a real training run beside those of the unpipelined model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import hypot
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compiler.runtime.job import Job, trained_file
from compiler.runtime.torch_training import Members, Piece, piece_of
from compiler.runtime.torch_values import Key, cut


@dataclass(frozen=True)
class Agreement:
    """How far tensors that lie with the parameters are from those of the unpipelined model.

    The error of a gradient is the Euclidean norm of its difference from that of the unpipelined model, divided by the
    norm of the gradients of all parameters of its group: the bias of keys has none but for rounding. For a parameter
    after the last step of the optimizer, the difference is divided by its own norm. ``worst`` is the parameter with the
    greatest error.
    """

    compared: int
    worst: str
    error: float
    missing: tuple[str, ...]
    tolerance: float

    @property
    def agrees(self) -> bool:
        """Whether all are there, and within the tolerance."""
        return not self.missing and self.error <= self.tolerance


def compare_trained(
    folder: Path, job: Job, gradients: Mapping[Key, Tensor], parameters: Mapping[Key, Tensor], tolerance: float
) -> tuple[Agreement, Agreement]:
    """The accumulated gradients and the parameters that processes left in ``folder``, beside the expected ones."""
    left = [_left(folder, rank) for rank in range(len(job.accelerators))]
    ties = job.ties
    found = {
        what: _by_key([piece_of(x) for one in left for x in one.get(what, ())], ties)
        for what in ("gradients", "parameters")
    }
    sums = {key: _sums(wholes) for key, wholes in found["gradients"].items()}
    copies = {key: [x for one in wholes for x in one] for key, wholes in found["parameters"].items()}
    norms: dict[object, float] = {}
    for key, expected in gradients.items():
        norms[key.owner] = hypot(norms.get(key.owner, 0.0), _norm(expected))
    return (
        _agreement(sums, gradients, {key: norms[key.owner] for key in gradients}, tolerance),
        _agreement(copies, parameters, {key: _norm(x) for key, x in parameters.items()}, tolerance),
    )


def _agreement(
    found: Mapping[Key, Sequence[Tensor]], expected: Mapping[Key, Tensor], sizes: Mapping[Key, float], tolerance: float
) -> Agreement:
    errors = {
        key: max(relative(_norm(one - expected[key]), sizes[key]) for one in found[key])
        for key in expected
        if key in found
    }
    worst = max(errors, key=lambda key: errors[key], default=None)
    missing = tuple(called(key) for key in expected if key not in found)
    return Agreement(
        len(errors), "" if worst is None else called(worst), 0.0 if worst is None else errors[worst], missing, tolerance
    )


def called(key: Key) -> str:
    """``weight of 'h'``: the role of a parameter and its operator or group."""
    return f"{key.role} of '{key.owner[1]}'"


def relative(difference: float, size: float) -> float:
    """A difference as a share of a size; infinite where it is no number, and beside nothing."""
    if difference == 0.0:
        return 0.0
    error = difference / size if size else float("inf")
    return error if error < float("inf") else float("inf")


def _norm(x: Tensor) -> float:
    return torch.linalg.vector_norm(x.double()).item()


def _by_key(pieces: Sequence[Piece], ties: Mapping[str, str]) -> dict[Key, list[list[Tensor]]]:
    """For every parameter, each copy, and each set of accelerators that shares it in one way: the wholes these have.

    Of shares that is one, no number where one is missing; of what all have whole, that of each. ``ties`` has the group
    that stands for all copies.
    """
    sets: dict[Key, dict[tuple[Key, Members, int | None], list[Piece]]] = {}
    for piece in pieces:
        way = (piece.key, piece.members, None if piece.part is None else piece.part[0])
        kind, name = piece.key.owner
        key = piece.key._replace(owner=(kind, ties.get(name, name)))
        sets.setdefault(key, {}).setdefault(way, []).append(piece)
    return {key: [_wholes(key, way[1], of) for way, of in ways.items()] for key, ways in sets.items()}


def _wholes(key: Key, members: Members, pieces: Sequence[Piece]) -> list[Tensor]:
    lost = torch.full(key.shape, float("nan"), dtype=key.dtype)
    if pieces[0].part is None:
        there = {piece.accelerator: piece.tensor for piece in pieces}
        return [there.get(p, lost) for p in members]
    for piece in pieces:
        cut(lost, piece.part).copy_(piece.tensor)
    return [lost]


def _sums(wholes: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The sums over all sets, with that of each accelerator where all of a set should have the same."""
    return [
        sum((one[n % len(one)] for one in wholes[1:]), wholes[0][n % len(wholes[0])])
        for n in range(max(map(len, wholes)))
    ]


def _left(folder: Path, rank: int) -> dict[str, Any]:
    file = trained_file(folder, rank)
    return torch.load(file, weights_only=True) if file.exists() else {}
