"""The checker of level 4: one function a rule, written from the definitions of the problem alone.

It reads the scheduled IR and nothing else; no solver's data, no solver's code. Arithmetic is exact.
"""

from __future__ import annotations

from collections.abc import Iterator

from dialects.attributes import show_set
from dialects.memory_rules import MEMORY_RULES, peak_memory
from dialects.placement import MOST_COPIES, Placed, Placement, in_flight, latency, loads
from dialects.rules import Finding, Rule, Subject, timed
from dialects.units import show_time

__all__ = ["SCHEDULE_RULES", "in_flight", "latency", "loads", "peak_memory"]


def _members(mask: int) -> list[int]:
    """The accelerators of a bit mask, increasing."""
    return [i for i, bit in enumerate(reversed(f"{mask:b}")) if bit == "1"]


# --- slots -----------------------------------------------------------------------------------


def _schedule_present(subject: Subject) -> Iterator[Finding]:
    if subject.graph.schedule is None:
        yield Finding(subject.graph, "the graph has no schedule: its period is unknown")


def _asynchronous(subject: Subject) -> Iterator[Finding]:
    graph = subject.graph
    if graph.training is not None and graph.training.asynchronous.data and graph.schedule and graph.schedule.is_step:
        yield Finding(
            graph,
            f"@{graph.sym_name.data} is trained asynchronously, and a step is synchronous",
            "leave out --asynchronous, or schedule the steady state",
        )


def _slot_present(subject: Subject) -> Iterator[Finding]:
    for op in subject.operators:
        if op.slot is None:
            yield Finding(op, f"'{subject.names[op]}' has no slot")


def _allotment_admissible(subject: Subject) -> Iterator[Finding]:
    for op in subject.operators:
        if op.slot is not None and op.cost is not None:
            table = op.cost.table()
            if op.slot.allotment.data not in table:
                admissible = ", ".join(str(k) for k in table)
                yield Finding(
                    op,
                    f"'{subject.names[op]}' runs on {op.slot.allotment.data} accelerators, "
                    f"but its cost table has times for {admissible} only",
                )


def _sets_fixed(subject: Subject) -> Iterator[Finding]:
    count = None if subject.platform is None else subject.platform.count
    for op in subject.operators:
        if op.slot is None:
            continue
        name, seen = subject.names[op], set[int]()
        for number, members in enumerate(op.slot.copies()):
            copy = f"copy {number} of '{name}'" if len(op.slot.sets) > 1 else f"'{name}'"
            if len(members) != op.slot.allotment.data:
                yield Finding(
                    op,
                    f"{copy} has allotment {op.slot.allotment.data} but a set of {len(members)}: {show_set(members)}",
                )
            if count is not None and members[-1] >= count:
                yield Finding(op, f"{copy} runs on {show_set(members)}, but the platform has {count} accelerators")
            if both := seen.intersection(members):
                yield Finding(op, f"{copy} shares accelerators {show_set(sorted(both))} with an earlier copy")
            seen.update(members)


def _group_set(subject: Subject) -> Iterator[Finding]:
    for group, members in subject.groups.items():
        slotted = [(op, op.slot.copies()) for op in members if op.slot is not None]
        for op, copies in slotted[1:]:
            first, expected = slotted[0]
            if copies != expected:
                sets, wanted = (", ".join(show_set(c) for c in each) for each in (copies, expected))
                yield Finding(
                    op,
                    f"'{subject.names[op]}' runs on {sets}, but shares the parameters of group '{group}' with "
                    f"'{subject.names[first]}', which runs on {wanted}",
                )


def _inside_granted_block(subject: Subject) -> Iterator[Finding]:
    fits: dict[tuple[frozenset[int], bytes], bool] = {}
    for op in subject.operators:
        home = subject.home(op)
        if op.slot is None or home is None:
            continue
        for attr, members in zip(op.slot.sets.data, op.slot.copies(), strict=True):
            key = (home, attr.data.data)
            if key not in fits:
                fits[key] = home.issuperset(members)
            if not fits[key]:
                assert op.stage is not None
                stages = f"stage {op.stage.value.data}"
                if op.shared is not None:
                    stages = f"stages {op.stage.value.data} and {op.shared.value.data}"
                yield Finding(
                    op,
                    f"'{subject.names[op]}' runs on {show_set(members)}, outside the block "
                    f"{show_set(sorted(home))} granted to {stages}",
                )


def _copies(subject: Subject) -> Iterator[Finding]:
    turns = subject.placement.turns
    if turns > MOST_COPIES:
        yield Finding(
            subject.graph,
            f"the pattern repeats only after {turns} periods, the least common multiple of the "
            f"numbers of copies; at most {MOST_COPIES} are allowed",
        )


# --- times -----------------------------------------------------------------------------------


def _period_integer(subject: Subject) -> Iterator[Finding]:
    schedule = subject.graph.schedule
    if schedule is not None and not schedule.is_step and schedule.pattern.data % schedule.microbatches.data:
        yield Finding(
            subject.graph,
            f"the pattern of {show_time(schedule.pattern.data)} does not divide evenly "
            f"among its {schedule.microbatches.data} micro-batches",
        )


def _bound(subject: Subject) -> Iterator[Finding]:
    schedule, placement = subject.graph.schedule, subject.placement
    if schedule is None:
        return
    what, ticks = ("step", placement.cycle) if placement.step else ("period", placement.period)
    if schedule.bound.data * placement.ticks > ticks:
        yield Finding(
            subject.graph,
            f"the {what} of {_time(placement, ticks)} is below its own lower bound of {show_time(schedule.bound.data)}",
        )


def _starts(subject: Subject) -> Iterator[Finding]:
    placement = subject.placement
    least: tuple[int, Placed, int] | None = None
    for placed in placement.placed.values() if placement.listed else ():
        for instance in placement.unlike:
            start = placement.begin(placed, instance)
            if start < 0:
                name = placement.run_name(placed, instance)
                yield Finding(placed.op, f"{name} starts at {_time(placement, start)}, before 0")
            if least is None or start < least[0]:
                least = (start, placed, instance)
    if least is not None and least[0] > 0:
        start, placed, instance = least
        yield Finding(
            placed.op,
            f"the first start of a {'step' if placement.step else 'micro-batch'} must be 0, but "
            f"{placement.run_name(placed, instance)} starts first, at {_time(placement, start)}",
        )


def _time(placement: Placement, ticks: int) -> str:
    return show_time(placement.nanoseconds(ticks))


def _precedence(subject: Subject) -> Iterator[Finding]:
    placement = subject.placement
    for placed in placement.placed.values() if placement.listed else ():
        late: set[tuple[Placed, int]] = set()
        for result, producer, distance in placement.reads(placed):
            if (distance and not placement.period) or (producer, distance) in late:
                continue
            moves = placement.arrivals(result, placed, distance)
            for instance in placement.unlike:
                begun = placement.begin(producer, instance - distance)
                ended, start = begun + producer.time, placement.begin(placed, instance)
                arrived = max((placement.landing(m, instance - distance) + m.time for m in moves), default=ended)
                ready = ended if start < ended else arrived
                if start < ready:
                    late.add((producer, distance))
                    earlier = f" {distance} micro-batch{'es' * (distance > 1)} earlier" if distance else ""
                    end = "ends" if ready == ended else "has arrived"
                    yield Finding(
                        placed.op,
                        f"{placement.run_name(placed, instance)} starts at {_time(placement, start)}, before its "
                        f"operand '{producer.name}'{earlier} {end} at {_time(placement, ready)} "
                        f"(started at {_time(placement, begun)})",
                    )
                    break


@timed
def _fits_period(placement: Placement, subject: Subject) -> Iterator[Finding]:
    for placed in placement.placed.values():
        if placed.time <= placed.copies * placement.period:
            continue
        if placement.step:
            yield Finding(
                placed.op,
                f"'{placed.name}' takes {_time(placement, placed.time)}, which the step of "
                f"{_time(placement, placement.cycle)} has no time for in each of its {placement.ticks} micro-batches",
                "it needs a longer step",
            )
            continue
        needed = -(-placed.time // placement.period)
        copies = "1 copy" if placed.copies == 1 else f"{placed.copies} copies"
        yield Finding(
            placed.op,
            f"'{placed.name}' takes {_time(placement, placed.time)}, longer than the period of "
            f"{_time(placement, placement.period)} with {copies}",
            f"it needs {needed} copies or a longer period",
        )


_Run = tuple[Placed, int, int]
"""An operator, its set and its micro-batch."""


@timed
def _exclusive(placement: Placement, subject: Subject) -> Iterator[Finding]:
    """Sweep one cycle of the pattern over all accelerators at once, busy ones held as a bit mask."""
    reported: set[tuple[Placed, Placed]] = set()
    running: dict[int, _Run] = {}
    busy = 0
    clashed = False
    for _, opens, key, run in _occupations(placement):
        placed, index, _ = run
        mask = placement.masks[index]
        if not opens:
            del running[key]
            busy &= ~mask
            if clashed:
                # Two operators may have held the same bit: rebuild from what still runs.
                busy = 0
                for _, other, _ in running.values():
                    busy |= placement.masks[other]
            continue
        if busy & mask:
            clashed = True
            for other_run in running.values():
                other, there, _ = other_run
                both = placement.masks[there] & mask
                if both and (other, placed) not in reported and (placed, other) not in reported:
                    reported.add((other, placed))
                    yield Finding(placed.op, _clash(placement, run, other_run, both))
        running[key] = run
        busy |= mask


def _occupations(placement: Placement) -> list[tuple[int, bool, int, _Run]]:
    """Begin and end events ``(tick, begins, interval, run)`` of one cycle, in time order.

    At one tick, ends come first: intervals are half-open. An interval that wraps around the end of
    the cycle becomes two. Operators that take no time, or more than their copies allow, are left out.
    """
    cycle = placement.cycle
    events: list[tuple[int, bool, int, _Run]] = []

    def occupy(run: _Run, start: int) -> None:
        begin = start % cycle
        end = begin + run[0].time
        pieces = [(begin, end)] if end <= cycle else [(begin, cycle), (0, end - cycle)]
        for a, b in pieces:
            key = len(events)
            events.append((a, True, key, run))
            events.append((b, False, key, run))

    for placed in placement.placed.values():
        if 0 < placed.time <= placed.copies * placement.period:
            for instance in range(placement.repetition):
                index = placed.sets[instance % placed.copies]
                occupy((placed, index, instance), placement.begin(placed, instance))
    for update in placement.updates.values():
        if 0 < update.time <= cycle:
            occupy((update, update.sets[0], 0), update.start)
    events.sort(key=lambda event: event[:3])
    return events


def _clash(placement: Placement, a_run: _Run, b_run: _Run, both: int) -> str:
    cycle = placement.cycle
    where = show_set(_members(both))
    noun = "accelerator" if both.bit_count() == 1 else "accelerators"
    (a, _, i), (b, _, j) = a_run, b_run
    if a is b and not placement.step:
        a_start, b_start = placement.begin(a, i), placement.begin(b, j)
        return (
            f"'{a.name}' overlaps its own next run on {noun} {where}: it starts at {_time(placement, a_start % cycle)} "
            f"and at {_time(placement, b_start % cycle)} of every {_time(placement, cycle)} "
            f"and takes {_time(placement, a.time)}"
        )

    def shown(placed: Placed, instance: int) -> str:
        begin = placement.begin(placed, instance) % cycle
        wraps = " of the next" if begin + placed.time > cycle else ""
        end = (begin + placed.time) % cycle if wraps else begin + placed.time
        first = placement.begin(placed, instance) if placement.step else placed.start
        return (
            f"{placement.run_name(placed, instance)} (start {_time(placement, first)}, that is "
            f"{_time(placement, begin)} to {_time(placement, end)}{wraps})"
        )

    return (
        f"{shown(a, i)} and {shown(b, j)} overlap on {noun} {where} "
        f"modulo the {'step' if placement.step else 'pattern'} of {_time(placement, cycle)}"
    )


SCHEDULE_RULES = (
    Rule("schedule-present", "The graph has a schedule.", _schedule_present),
    Rule("asynchronous", "A graph that is trained asynchronously has no step.", _asynchronous),
    Rule("slot-present", "Every operator has a slot.", _slot_present),
    Rule("allotment-admissible", "The allotment of every slot is in the operator's cost table.", _allotment_admissible),
    Rule(
        "sets-fixed",
        "Every copy of an operator has one set of as many accelerators as its allotment, inside the platform; "
        "the sets of different copies are disjoint.",
        _sets_fixed,
    ),
    Rule("group-set", "All operators of a group have the same sets, copy by copy.", _group_set),
    Rule(
        "inside-granted-block",
        "Every set lies inside the block granted to the operator's stage, or inside the union of two blocks "
        "when the operator is shared.",
        _inside_granted_block,
    ),
    Rule(
        "copies",
        f"The least common multiple of the numbers of copies is at most {MOST_COPIES}.",
        _copies,
    ),
    Rule(
        "period-integer",
        "The pattern, where it is no step, is a multiple of its number of micro-batches.",
        _period_integer,
    ),
    Rule("bound", "The period, or the time of a step, is at least the lower bound that is claimed for it.", _bound),
    Rule("starts", "No start is negative, and the least start is 0.", _starts),
    Rule(
        "precedence",
        "An operator starts no earlier than the end of every operator it reads from, and than what is moved to it has "
        "arrived; what it reads from a state was computed as many periods earlier as the distance says.",
        _precedence,
    ),
    Rule(
        "fits-period",
        "An operator takes no longer than the period times its number of copies.",
        _fits_period,
    ),
    Rule(
        "exclusive",
        "At any time an accelerator runs at most one operator, modulo the pattern; intervals are half-open and may "
        "wrap around its end.",
        _exclusive,
    ),
    *MEMORY_RULES,
)
"""The rules of level 4, in the order in which they are checked."""
