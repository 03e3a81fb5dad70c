"""The rules of level 4 on steps of finite batches alone: what is listed, and when the optimizer may run."""

from __future__ import annotations

from collections.abc import Iterator

from dialects.attributes import show_set
from dialects.gradients import OptimizerStepOp
from dialects.operators import OperatorOp
from dialects.placement import Placed, Placement, update_name
from dialects.rules import Finding, Rule, Subject
from dialects.units import show_time


def _starts_listed(subject: Subject) -> Iterator[Finding]:
    placement = subject.placement
    expected = placement.ticks if placement.step else 1
    where = f"the step has {_count(expected, 'micro-batch')}" if placement.step else "the schedule is no step"
    for op in subject.operators:
        if op.slot is not None:
            name, sets = f"'{subject.names[op]}'", op.slot.copies()
            if len(op.slot.starts) != expected:
                yield Finding(op, f"{name} lists {_count(len(op.slot.starts), 'start')}, but {where}")
            if placement.step and len(sets) > 1:
                yield Finding(op, f"{name} has copies, on {_shown(sets)}: there are none in a step")
    for op in subject.graph.transfers():
        name = f"the transfer of '{op.moved.name_hint or 'a value'}' to {_shown(op.sets())}"
        if len(op.starts) != expected:
            yield Finding(op, f"{name} lists {_count(len(op.starts), 'start')}, but {where}")
        if placement.step and len(op.sets()) > 1:
            yield Finding(op, f"{name} goes to several sets in turn: there are no copies in a step")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 'es' if noun.endswith('ch') else 's'}"


def _shown(sets: tuple[tuple[int, ...], ...]) -> str:
    return ", ".join(show_set(members) for members in sets)


def _updates(subject: Subject) -> Iterator[Finding]:
    placement = subject.placement
    for op in subject.graph.updates():
        name, slot = f"'{update_name(op)}'", op.slot
        if not placement.step:
            if slot is not None and subject.graph.schedule is not None:
                yield Finding(op, f"{name} has a slot, but the schedule is no step")
            continue
        if slot is None:
            yield Finding(op, f"{name} has no slot")
            continue
        if len(slot.starts) > 1:
            yield Finding(op, f"{name} lists {len(slot.starts)} starts, but it runs once a step")
        yield from _where(subject, op, name)
        if op in placement.updates and placement.listed:
            yield from _when(subject, placement.updates[op], name)


def _where(subject: Subject, op: OptimizerStepOp, name: str) -> Iterator[Finding]:
    slot = op.slot
    assert slot is not None
    allotment, sets = slot.allotment.data, slot.copies()
    if op.cost is None:
        yield Finding(op, f"{name} has no cost table")
    elif allotment not in (table := op.cost.table()):
        admissible = ", ".join(str(k) for k in table)
        found = f"{name} runs on {_count(allotment, 'accelerator')}"
        yield Finding(op, f"{found}, but its cost table has times for {admissible} only")
    members = () if op.group is None else subject.groups.get(op.group.data, ())
    expected = next((member.slot.copies() for member in members if member.slot is not None), sets)
    if sets != expected:
        assert op.group is not None
        yield Finding(
            op, f"{name} runs on {_shown(sets)}, but the operators of its group '{op.group.data}' on {_shown(expected)}"
        )
    elif len(sets[0]) != allotment:
        yield Finding(op, f"{name} has allotment {allotment} but a set of {len(sets[0])}: {show_set(sets[0])}")


def _when(subject: Subject, update: Placed, name: str) -> Iterator[Finding]:
    placement, op = subject.placement, update.op
    members = () if op.group is None else subject.groups.get(op.group.data, ())
    sources = dict.fromkeys([*(value.owner for value in op.inputs), *members])
    before = [placement.placed[s] for s in sources if isinstance(s, OperatorOp) and s in placement.placed]
    ends = [(end, what) for placed in before for end, what in _ends(placement, placed)]
    latest, what = max(ends, key=lambda found: found[0], default=(update.start, ""))
    if update.start < latest:
        start, end = _time(placement, update.start), _time(placement, latest)
        yield Finding(op, f"{name} starts at {start}, before {what} ends at {end}")
    begins = [
        (placement.begin(member, i + placement.ticks), placement.run_name(member, i))
        for member in (placement.placed[m] for m in members if m in placement.placed)
        for i in placement.unlike
    ]
    first, what = min(begins, key=lambda found: found[0], default=(update.end, ""))
    if first < update.end:
        end, begin = _time(placement, update.end), _time(placement, first)
        yield Finding(op, f"{name} ends at {end}, after {what} of the next step starts at {begin}")


def _ends(placement: Placement, placed: Placed) -> Iterator[tuple[int, str]]:
    for i in placement.unlike:
        yield placement.begin(placed, i) + placed.time, placement.run_name(placed, i)


def _time(placement: Placement, ticks: int) -> str:
    return show_time(placement.nanoseconds(ticks))


STEP_RULES = (
    Rule(
        "starts-listed",
        "In a step every slot and every transfer lists one moment for each micro-batch, and every operator has one "
        "set; elsewhere they have one moment.",
        _starts_listed,
    ),
    Rule(
        "updates",
        "In a step every optimizer step has a slot, on the set of its group, with an allotment of its cost table and "
        "one start; elsewhere it has none. It starts no earlier than the end of every weight gradient that it reads "
        "and of every operator of its group, for all micro-batches of the step, and ends no later than the first "
        "start of an operator of its group in the next step; it occupies its accelerators (`exclusive`).",
        _updates,
    ),
)
"""The rules of level 4 on steps, in the order in which they are checked."""
