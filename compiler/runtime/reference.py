"""The unpipelined model: all operators of one micro-batch after the other in one process, and what a run must equal.

It shares the operators and what is made from seeds with a run, and nothing of what places, splits, sends and frees.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from pathlib import Path

import torch
from torch import Tensor

from compiler.runtime.compared import Agreement, compare_trained
from compiler.runtime.job import Job, outputs_file
from compiler.runtime.reference_training import Leaves, Reference
from compiler.runtime.torch_calls import Call
from compiler.runtime.torch_operators import run
from compiler.runtime.torch_values import Parameters, initial_value, input_value, read_value

TOLERANCE = 1e-5
"""Relative error up to which outputs agree: rounding of float32 in another order leaves about 1e-6."""


@dataclass(frozen=True)
class Deviation:
    """Output ``output`` of a micro-batch as ``accelerator`` left it, and its relative error."""

    output: int
    microbatch: int
    accelerator: int
    error: float


@dataclass(frozen=True)
class Comparison:
    """How far a run is from the unpipelined model.

    The error of an output of a micro-batch is the Euclidean norm of its difference from that of the unpipelined model,
    divided by the norm of the latter; infinite where either holds what is no finite number, or where only the latter is
    zero. ``compared`` outputs were there, on every accelerator that computed them; ``worst`` has the greatest error.
    """

    compared: int
    worst: Deviation | None
    missing: tuple[tuple[int, int, int], ...]
    """Output, micro-batch and accelerator of those that should have been there."""
    tolerance: float = TOLERANCE
    gradients: Agreement | None = None
    """Of a training run: the gradients that parameters have in the end, those of the last step."""
    parameters: Agreement | None = None
    """Where the optimizer worked: the parameters after it."""

    @property
    def error(self) -> float:
        """The greatest relative error."""
        return 0.0 if self.worst is None else self.worst.error

    @property
    def agrees(self) -> bool:
        """Whether all is there, and within the tolerance."""
        trained = all(x is None or x.agrees for x in (self.gradients, self.parameters))
        return trained and not self.missing and self.error <= self.tolerance


def compare(folder: Path, job: Job, tolerance: float = TOLERANCE) -> Comparison:
    """Compare what the processes of a real run left in ``folder`` with the unpipelined model.

    That is the outputs, and of a training run gradients and parameters. Inputs passed through as outputs are not
    compared: no accelerator computes them.
    """
    left = {p: _outputs(folder, rank) for rank, p in enumerate(job.accelerators)}
    worst: Deviation | None = None
    missing: list[tuple[int, int, int]] = []
    compared = 0
    training = None if job.optimizer is None else Reference(job, Leaves(job.settings.seed))
    for microbatch, outputs in enumerate(reference_outputs(job, training)):
        for output, expected in outputs.items():
            for p in job.operators[job.outputs[output][0]].on(microbatch):
                found = left[p].get((output, microbatch))
                if found is None:
                    missing.append((output, microbatch, p))
                    continue
                compared += 1
                error = relative_error(found, expected)
                if worst is None or error > worst.error:
                    worst = Deviation(output, microbatch, p, error)
    if training is None:
        return Comparison(compared, worst, tuple(missing), tolerance)
    changed = {key: training.parameters.held[key, None].detach() for key in training.updated()}
    gradients, parameters = compare_trained(folder, job, training.gradients(), changed, tolerance)
    return Comparison(compared, worst, tuple(missing), tolerance, gradients, parameters if changed else None)


def reference_outputs(job: Job, training: Reference | None = None) -> Iterator[dict[int, Tensor]]:
    """The outputs of each micro-batch in turn, by number; without inputs that are passed through.

    ``training`` takes the gradients of each micro-batch, and steps after the last of a step.
    """
    parameters = Parameters(job.settings.seed) if training is None else training.parameters
    kept = max((read.distance for operator in job.operators for read in operator.reads), default=0)
    results: dict[int, dict[tuple[int, int], Tensor]] = {}
    """Micro-batch → operator and result → value."""
    carried = {(read.subject, read.result) for operator in job.operators for read in operator.reads if read.distance}
    for microbatch in range(job.microbatches):
        results[microbatch] = _step(job, parameters, microbatch, results, training)
        if training is not None:
            training.differentiate(results[microbatch], microbatch)
        yield {n: results[microbatch][which].detach() for n, which in enumerate(job.outputs) if which[0] >= 0}
        results[microbatch] = {which: x for which, x in results[microbatch].items() if which in carried}
        results.pop(microbatch - kept, None)


def _step(
    job: Job,
    parameters: Parameters,
    microbatch: int,
    before: dict[int, dict[tuple[int, int], Tensor]],
    training: Reference | None,
) -> dict[tuple[int, int], Tensor]:
    """All results of a micro-batch; ``before`` has what earlier ones left in states."""
    made: dict[tuple[int, int], Tensor] = {}
    for v in range(len(job.operators)) if training is None else training.forward:
        operator = job.operators[v]
        inputs: list[Tensor] = []
        for place, read in enumerate(operator.reads):
            moment = microbatch - read.distance
            if read.subject < 0:
                inputs.append(input_value(job, -1 - read.subject, microbatch))
            elif moment < 0:
                inputs.append(initial_value(read_value(job, operator, place)))
            else:
                inputs.append((before[moment] if read.distance else made)[read.subject, read.result])
        computed, _ = run(Call(operator, inputs, parameters))
        for number, (value, tensor) in enumerate(zip(operator.results, computed, strict=True)):
            given = training is not None and (v, number) not in training.smooth
            made[v, number] = (tensor.detach() if given else tensor).reshape(value.shape)
    return made


def relative_error(found: Tensor, expected: Tensor) -> float:
    """``|found - expected| / |expected|`` in Euclidean norms; infinite where that is no number."""
    size = torch.linalg.vector_norm(expected.double()).item()
    difference = torch.linalg.vector_norm(found.double() - expected.double()).item()
    if difference == 0.0 and size < inf:
        return 0.0
    error = difference / size if size else inf
    return error if error < inf else inf


def _outputs(folder: Path, rank: int) -> dict[tuple[int, int], Tensor]:
    file = outputs_file(folder, rank)
    return torch.load(file, weights_only=True) if file.exists() else {}
