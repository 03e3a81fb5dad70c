"""Bytes of a real run: of a value, and of all processes, counted before any is started. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from compiler.runtime.job import Job, Operator, Rows, Value
from dialects.diagnostics import Diagnostic, TaktError
from dialects.programs import COMPUTE, COPY, FREE, RECV
from dialects.units import show_bytes
from passes.training.held import STATES, Held

_WIDE = ("f64", "i32", "i64")

LIMIT = 4 * 2**30
"""Bytes of parameters and values that all processes together, or the unpipelined model, may hold."""


def width(element: str) -> int:
    """Bytes of a number, which is never narrower than in the IR."""
    return 8 if element in _WIDE else 4


def real_size(value: Value) -> int:
    """Bytes of a value."""
    return prod(value.shape) * width(value.element)


def scale(value: Value) -> int:
    """Bytes for each byte of the IR."""
    return real_size(value) // value.size if value.size else 1


def check_fits(job: Job, programs: Mapping[int, Rows], limit: int = LIMIT) -> None:
    """TaktError where a real run of ``job``, or the unpipelined model beside it, would hold more than ``limit`` bytes.

    Counted are parameters, and values as the programs make and free them; what an operator needs while it runs is not.
    """
    parameters = sum(parameter_bytes(job).values())
    values = sum(peak_bytes(job, rows) for rows in programs.values())
    # The unpipelined model keeps all that a micro-batch computes.
    values = max(values, sum(real_size(result) for operator in job.operators for result in operator.results))
    if parameters + values <= limit:
        return
    message = (
        f"a real run of '{job.name}' would hold {show_bytes(parameters)} of parameters and {show_bytes(values)} of "
        f"values in its {len(job.accelerators)} processes, more than {show_bytes(limit)} in all"
    )
    hint = "make the model smaller with its parameters, such as --set layers=2 --set dim=64, or give --emulate"
    raise TaktError(Diagnostic(message, hint=hint))


def parameter_bytes(job: Job) -> dict[int, int]:
    """Accelerator → bytes of the parameters it holds in a real run; those of a group once."""
    held = dict.fromkeys(job.accelerators, 0)
    largest: dict[tuple[int, str], int] = {}
    for operator in job.operators:
        size = _parameters(job, operator)
        for p in {p for turn in operator.turns for p in turn}:
            more = size
            if operator.group is not None:
                before = largest.get((p, operator.group), 0)
                more = max(0, size - before)
                largest[p, operator.group] = before + more
            held[p] += more
    return held


def _parameters(job: Job, operator: Operator) -> int:
    """Bytes on each accelerator; a stand-in for an opaque operator adds a number to each of its results.

    In a training run gradients lie beside parameters, and what the optimizer keeps.
    """
    if operator.of is not None:
        return 0
    beside = 0 if job.optimizer is None else 1 + STATES[job.optimizer]
    if operator.kind == "op":
        return sum(map(real_size, operator.results)) * (1 + beside)
    result = operator.results[0]
    narrow = max(1, result.size // max(1, prod(result.shape)))
    each = narrow if job.optimizer is None else Held(job.optimizer, job.precision == "mixed").each(narrow)
    return operator.params // each * width(result.element) * (1 + beside)


def peak_bytes(job: Job, rows: Rows) -> int:
    """The most bytes of values that an accelerator holds while it works through its program."""
    held: dict[tuple[int, int, int, int], int] = {}
    now = most = 0

    def add(subject: int, result: int, destination: int, microbatch: int, value: Value) -> None:
        nonlocal now
        key = (subject, result, destination, microbatch)
        if key not in held:
            held[key] = real_size(value)
            now += held[key]

    for kind, subject, result, destination, microbatch, *_ in rows.tolist():
        if kind == COMPUTE:
            operator = job.operators[subject]
            for read in operator.reads:
                if read.subject < 0:
                    add(read.subject, 0, 0, microbatch, job.inputs[-1 - read.subject])
            for number, value in enumerate(operator.results):
                add(subject, number, 0, microbatch, value)
        elif kind in (RECV, COPY):
            add(subject, result, destination, microbatch, job.operators[subject].results[result])
        elif kind == FREE:
            now -= held.pop((subject, result, destination, microbatch), 0)
        most = max(most, now)
    return most
