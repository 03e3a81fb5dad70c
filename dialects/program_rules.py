"""The rules of the level ``programs``: stricter than a runtime, which would hang or compute something else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from dialects.program_checks import (
    Fault,
    check_buffers,
    check_collectives,
    check_form,
    check_messages,
    check_runs,
    check_updates,
)
from dialects.program_reading import Expected, Listing, expected_of, listing_of
from dialects.program_replay import Replay, check_in_flight, check_progress, replay
from dialects.programs import ProgramOp
from dialects.rules import Finding, Rule, Subject


def check_programs(expected: Expected, listings: Sequence[Listing]) -> Iterator[tuple[str, Fault]]:
    """The name of every broken rule, with the accelerator and what is wrong, for programs that are plain data.

    There is one listing for each accelerator that runs an operator. Programs whose form is wrong are not looked into.
    """
    malformed = list(check_form(expected, listings))
    yield from (("program-form", fault) for fault in malformed)
    if malformed:
        return
    for name, check in _CHECKS.items():
        yield from ((name, fault) for fault in check(expected, listings))
    run = replay(expected, listings)
    for name, judge in _JUDGEMENTS.items():
        yield from ((name, fault) for fault in judge(expected, listings, run))


_CHECKS: Mapping[str, Callable[[Expected, Sequence[Listing]], Iterator[Fault]]] = {
    "runs-once": check_runs,
    "updated-once": check_updates,
    "messages": check_messages,
    "collectives": check_collectives,
    "buffers": check_buffers,
}

_JUDGEMENTS: Mapping[str, Callable[[Expected, Sequence[Listing], Replay], Iterator[Fault]]] = {
    "in-flight": check_in_flight,
    "no-deadlock": check_progress,
}


@dataclass(frozen=True)
class _Inspection:
    """Graph and programs of a module as plain data, read once for all rules."""

    subject: Subject
    programs: dict[int, ProgramOp]
    repeated: tuple[ProgramOp, ...]

    @cached_property
    def listings(self) -> list[Listing]:
        return [listing_of(self.programs[p]) for p in sorted(self.programs)]

    @cached_property
    def expected(self) -> Expected | None:
        """None where operators lack their place in the schedule, which other rules report."""
        placement = self.subject.placement
        whole = placement.period and len(placement.placed) == len(self.subject.operators)
        if placement.step:
            whole = whole and all(placed.starts and placed.copies == 1 for placed in placement.placed.values())
        return expected_of(self.subject.graph, placement) if whole else None

    @cached_property
    def sound(self) -> bool:
        """Whether there is a graph to compare with and programs of a form that can be looked into."""
        if self.expected is None or self.repeated or not self.listings:
            return False
        return next(check_form(self.expected, self.listings), None) is None

    @cached_property
    def replay(self) -> Replay:
        assert self.expected is not None
        return replay(self.expected, self.listings)


def _inspect(subject: Subject) -> _Inspection:
    programs: dict[int, ProgramOp] = {}
    repeated: list[ProgramOp] = []
    for op in subject.module.body.ops:
        if isinstance(op, ProgramOp) and programs.setdefault(op.accelerator.value.data, op) is not op:
            repeated.append(op)
    return _Inspection(subject, programs, tuple(repeated))


def _program_each(subject: Subject) -> Iterator[Finding]:
    found = subject.once(_inspect)
    for op in found.repeated:
        yield Finding(op, f"accelerator {op.accelerator.value.data} has another program")
    if found.expected is None:
        return
    busy = {p for task in found.expected.tasks for members in task.turns for p in members}
    for p in sorted(busy - found.programs.keys()):
        yield Finding(subject.graph, f"accelerator {p} runs operators but has no program")
    for p in sorted(found.programs.keys() - busy):
        yield Finding(found.programs[p], f"accelerator {p} has a program but runs no operator")


def _program_form(subject: Subject) -> Iterator[Finding]:
    found = subject.once(_inspect)
    if found.expected is not None and found.listings:
        yield from _findings(found, check_form(found.expected, found.listings))


def _findings(found: _Inspection, faults: Iterator[Fault]) -> Iterator[Finding]:
    for p, message in faults:
        yield Finding(found.programs[p], f"program of accelerator {p}: {message}")


def _checked(name: str) -> Callable[[Subject], Iterator[Finding]]:
    """A rule from a check that takes a sound form for granted."""

    def run(subject: Subject) -> Iterator[Finding]:
        found = subject.once(_inspect)
        if found.sound and found.expected is not None:
            yield from _findings(found, _CHECKS[name](found.expected, found.listings))

    return run


def _replayed(name: str) -> Callable[[Subject], Iterator[Finding]]:
    """A rule from a check that looks at a run."""

    def run(subject: Subject) -> Iterator[Finding]:
        found = subject.once(_inspect)
        if found.sound and found.expected is not None:
            yield from _findings(found, _JUDGEMENTS[name](found.expected, found.listings, found.replay))

    return run


PROGRAM_RULES = (
    Rule(
        "program-each",
        "Every accelerator that runs an operator has one program, and no other accelerator has any.",
        _program_each,
    ),
    Rule(
        "program-form",
        "All programs are for the same micro-batches, whole steps of them, a trip of the kernel begins a multiple of "
        "the copies of every operator, and instructions name operators, results, destinations, bytes, accelerators and "
        "micro-batches that exist.",
        _program_form,
    ),
    Rule(
        "runs-once",
        "Every operator runs exactly once for each micro-batch on each accelerator of the set whose turn it is.",
        _checked("runs-once"),
    ),
    Rule(
        "updated-once",
        "In a step, every accelerator of the set of an optimizer step does it once for each step, behind the "
        "operators of its group and before the first of them in the next; elsewhere there is none.",
        _checked("updated-once"),
    ),
    Rule(
        "messages",
        "In every section, the sends from one accelerator to another are the receives there, in the same order, with "
        "the same value, micro-batch and bytes.",
        _checked("messages"),
    ),
    Rule(
        "collectives",
        "In every section, the members of an all-gather take part in the same ones in the same order.",
        _checked("collectives"),
    ),
    Rule(
        "buffers",
        "An accelerator reads only what it holds, in all its parts; it writes nothing that it holds, frees once all "
        "that it got but outputs of the graph, and a trip of the kernel leaves the buffers it found, for later "
        "micro-batches.",
        _checked("buffers"),
    ),
    Rule(
        "in-flight",
        "No program, and not all of them in the order of the schedule, have more micro-batches begun and not finished "
        "than the schedule has.",
        _replayed("in-flight"),
    ),
    Rule(
        "no-deadlock",
        "Run in order, each send waiting for its receive and the other way round, the members of an all-gather, of "
        "the set of an operator, or of an optimizer step, for each other, and an optimizer step for all the weight "
        "gradients that it reads, all programs come to their end.",
        _replayed("no-deadlock"),
    ),
)
"""The rules of the level ``programs``, in the order in which they are checked."""
