"""The checker of level 4: one function a rule, written from the definitions of the problem alone.

It reads the scheduled IR and nothing else; no solver's data, no solver's code. Arithmetic is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import wraps
from typing import TYPE_CHECKING

from dialects.attributes import show_set
from dialects.operators import tensor_bytes
from dialects.placement import MOST_COPIES, Placed, Placement, in_flight, latency, loads
from dialects.rules import Finding, Rule, Subject
from dialects.structure import GraphOp, PlatformOp
from dialects.units import show_bytes, show_time

if TYPE_CHECKING:
    from dialects.memory import Memory

__all__ = ["SCHEDULE_RULES", "in_flight", "latency", "loads", "peak_memory", "timed"]


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
    repetition = subject.placement.repetition
    if repetition > MOST_COPIES:
        yield Finding(
            subject.graph,
            f"the pattern repeats only after {repetition} periods, the least common multiple of the "
            f"numbers of copies; at most {MOST_COPIES} are allowed",
        )


# --- times -----------------------------------------------------------------------------------


def timed(check: Callable[[Placement, Subject], Iterator[Finding]]) -> Callable[[Subject], Iterator[Finding]]:
    """Run a rule that needs a period, and a repetition small enough to unroll, only when there is one."""

    @wraps(check)
    def guarded(subject: Subject) -> Iterator[Finding]:
        placement = subject.placement
        if placement.period and placement.repetition <= MOST_COPIES:
            yield from check(placement, subject)

    return guarded


def _period_integer(subject: Subject) -> Iterator[Finding]:
    schedule = subject.graph.schedule
    if schedule is not None and schedule.pattern.data % schedule.microbatches.data:
        yield Finding(
            subject.graph,
            f"the pattern of {show_time(schedule.pattern.data)} does not divide evenly "
            f"among its {schedule.microbatches.data} micro-batches",
        )


def _bound(subject: Subject) -> Iterator[Finding]:
    schedule = subject.graph.schedule
    if schedule is not None and schedule.bound.data * schedule.microbatches.data > schedule.pattern.data:
        period = subject.placement.nanoseconds(schedule.pattern.data)
        yield Finding(
            subject.graph,
            f"the period of {show_time(period)} is below its own lower bound of {show_time(schedule.bound.data)}",
        )


def _starts(subject: Subject) -> Iterator[Finding]:
    placement = subject.placement
    least: Placed | None = None
    for placed in placement.placed.values():
        if placed.start < 0:
            yield Finding(placed.op, f"'{placed.name}' starts at {_time(placement, placed.start)}, before 0")
        if least is None or placed.start < least.start:
            least = placed
    if least is not None and least.start > 0:
        yield Finding(
            least.op,
            f"the first start of a micro-batch must be 0, but '{least.name}' starts first, at "
            f"{_time(placement, least.start)}",
        )


def _time(placement: Placement, ticks: int) -> str:
    return show_time(placement.nanoseconds(ticks))


def _precedence(subject: Subject) -> Iterator[Finding]:
    placement = subject.placement
    for placed in placement.placed.values():
        late: set[tuple[Placed, int]] = set()
        for result, producer, distance in placement.reads(placed):
            if (distance and not placement.period) or (producer, distance) in late:
                continue
            shift = distance * placement.period
            arrived = max((m.ready for m in placement.arrivals(result, placed, distance)), default=producer.end)
            ready = producer.end if placed.start < producer.end - shift else arrived
            if placed.start < ready - shift:
                late.add((producer, distance))
                earlier = f" {distance} micro-batch{'es' * (distance > 1)} earlier" if distance else ""
                begun = _time(placement, producer.start - shift)
                end = "ends" if ready == producer.end else "has arrived"
                yield Finding(
                    placed.op,
                    f"'{placed.name}' starts at {_time(placement, placed.start)}, before its operand "
                    f"'{producer.name}'{earlier} {end} at {_time(placement, ready - shift)} (started at {begun})",
                )


@timed
def _fits_period(placement: Placement, subject: Subject) -> Iterator[Finding]:
    for placed in placement.placed.values():
        if placed.time > placed.copies * placement.period:
            needed = -(-placed.time // placement.period)
            copies = "1 copy" if placed.copies == 1 else f"{placed.copies} copies"
            yield Finding(
                placed.op,
                f"'{placed.name}' takes {_time(placement, placed.time)}, longer than the period of "
                f"{_time(placement, placement.period)} with {copies}",
                f"it needs {needed} copies or a longer period",
            )


@timed
def _exclusive(placement: Placement, subject: Subject) -> Iterator[Finding]:
    """Sweep one cycle of the pattern over all accelerators at once, busy ones held as a bit mask."""
    reported: set[tuple[Placed, Placed]] = set()
    running: dict[int, tuple[Placed, int, int]] = {}
    busy = 0
    clashed = False
    for _, opens, key, placed, index, start in _occupations(placement):
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
            for other, there, other_start in running.values():
                both = placement.masks[there] & mask
                if both and (other, placed) not in reported and (placed, other) not in reported:
                    reported.add((other, placed))
                    yield Finding(placed.op, _clash(placement, placed, start, other, other_start, both))
        running[key] = (placed, index, start)
        busy |= mask


def _occupations(placement: Placement) -> list[tuple[int, bool, int, Placed, int, int]]:
    """Begin and end events ``(tick, begins, interval, operator, set, true start)`` of one cycle, in time order.

    At one tick, ends come first: intervals are half-open. An interval that wraps around the end of
    the cycle becomes two. Operators that take no time, or more than their copies allow, are left out.
    """
    cycle = placement.period * placement.repetition
    events: list[tuple[int, bool, int, Placed, int, int]] = []
    for placed in placement.placed.values():
        if not 0 < placed.time <= placed.copies * placement.period:
            continue
        for instance in range(placement.repetition):
            start = placed.start + instance * placement.period
            index = placed.sets[instance % placed.copies]
            begin = start % cycle
            end = begin + placed.time
            pieces = [(begin, end)] if end <= cycle else [(begin, cycle), (0, end - cycle)]
            for a, b in pieces:
                key = len(events)
                events.append((a, True, key, placed, index, start))
                events.append((b, False, key, placed, index, start))
    events.sort(key=lambda event: event[:3])
    return events


def _clash(placement: Placement, a: Placed, a_start: int, b: Placed, b_start: int, both: int) -> str:
    cycle = placement.period * placement.repetition
    where = show_set(_members(both))
    noun = "accelerator" if both.bit_count() == 1 else "accelerators"
    if a is b:
        return (
            f"'{a.name}' overlaps its own next run on {noun} {where}: it starts at {_time(placement, a_start % cycle)} "
            f"and at {_time(placement, b_start % cycle)} of every {_time(placement, cycle)} "
            f"and takes {_time(placement, a.time)}"
        )

    def run(placed: Placed, start: int) -> str:
        begin = start % cycle
        wraps = " of the next" if begin + placed.time > cycle else ""
        end = (begin + placed.time) % cycle if wraps else begin + placed.time
        return (
            f"'{placed.name}' (start {_time(placement, placed.start)}, that is "
            f"{_time(placement, begin)} to {_time(placement, end)}{wraps})"
        )

    return (
        f"{run(a, a_start)} and {run(b, b_start)} overlap on {noun} {where} "
        f"modulo the pattern of {_time(placement, cycle)}"
    )


# --- memory ----------------------------------------------------------------------------------


@timed
def _memory(placement: Placement, subject: Subject) -> Iterator[Finding]:
    platform = subject.platform
    if platform is None or not placement.placed:
        return
    from dialects.memory import Memory  # numpy, only where memory is asked for

    memory = Memory(placement)
    limit = platform.memory.value.data
    totals = [params + peak for params, peak in zip(memory.parameters, memory.peaks, strict=True)]
    for group, total in enumerate(totals):
        if total > limit:
            yield Finding(subject.graph, _shortage(memory, group, total, platform))


def _shortage(memory: Memory, group: int, total: int, platform: PlatformOp) -> str:
    """Which accelerators lack how many bytes, and what the bytes at the peak are made of."""
    placement = memory.placement
    members = memory.groups[group]
    limit = platform.memory.value.data
    moment = memory.moments[group]
    by_content: dict[str, int] = {}
    alive = memory.alive(group, moment)
    for (content, _), size in alive.items():
        by_content[content] = by_content.get(content, 0) + size
    parts = [f"{show_bytes(memory.parameters[group])} parameters"]
    parts += [f"{show_bytes(size)} {content}s" for content, size in by_content.items()]
    largest = sorted(alive.items(), key=lambda item: -item[1])[:3]
    named = "; most of it " + ", ".join(f"{c} of '{name}' {show_bytes(size)}" for (c, name), size in largest)
    who = f"accelerator {members[0]} lacks" if len(members) == 1 else f"accelerators {show_set(members)} each lack"
    return (
        f"{who} {show_bytes(total - limit)} of memory: at {_time(placement, moment)} of the pattern it needs "
        f"{show_bytes(total)} of {show_bytes(limit)} ({', '.join(parts)}{named if largest else ''})"
    )


@timed
def _limits(placement: Placement, subject: Subject) -> Iterator[Finding]:
    """Every limit that the schedule carries; each figure is computed only where it is limited."""
    schedule = subject.graph.schedule
    most = {} if schedule is None else schedule.limits.given()
    if (flying := -(-placement.latency // placement.period)) > most.get("in_flight", flying):
        yield Finding(
            subject.graph, f"{flying} micro-batches are in flight, the schedule claims at most {most['in_flight']}"
        )
    if "latency" in most and placement.latency > most["latency"] * placement.ticks:
        yield Finding(
            subject.graph,
            f"the latency is {_time(placement, placement.latency)}, "
            f"the schedule claims at most {show_time(most['latency'])}",
        )
    if "memory" in most and placement.placed:
        from dialects.memory import Memory  # numpy, only where memory is asked for

        memory = Memory(placement)
        for group, members in enumerate(memory.groups):
            total = memory.parameters[group] + memory.peaks[group]
            if total > most["memory"]:
                yield Finding(
                    subject.graph,
                    f"an accelerator of {show_set(members)} needs {show_bytes(total)} of memory, "
                    f"the schedule claims at most {show_bytes(most['memory'])}",
                )
    if "crossing" in most and (crossing := _crossing(placement)) > most["crossing"]:
        yield Finding(
            subject.graph,
            f"{float(crossing):.17g} bytes cross between accelerator sets per micro-batch, "
            f"the schedule claims at most {most['crossing']}",
        )


def _crossing(placement: Placement) -> Fraction:
    """Bytes per micro-batch of results read on another set than their producer's, once for each such set."""
    total = 0
    for instance in range(placement.repetition):
        for placed in placement.placed.values():
            home = placed.sets[instance % placed.copies]
            for result in placed.op.outputs:
                readers = placement.consumers(result)
                there = {c.sets[(instance + distance) % c.copies] for c, distance in readers}
                total += tensor_bytes(result.type) * len(there - {home})
    return Fraction(total, placement.repetition)


def peak_memory(graph: GraphOp, platform: PlatformOp) -> dict[int, tuple[int, int]]:
    """For each accelerator of ``platform``: parameter bytes, and the peak of all other bytes in the steady state.

    An accelerator that no operator uses has (0, 0), and so have all of a graph without a schedule.
    """
    from dialects.memory import Memory  # numpy, only where memory is asked for

    found: dict[int, tuple[int, int]] = dict.fromkeys(range(platform.count), (0, 0))
    placement = Placement(graph)
    if placement.period:
        memory = Memory(placement)
        for group, params, peak in zip(memory.groups, memory.parameters, memory.peaks, strict=True):
            found.update(dict.fromkeys(group, (params, peak)))
    return found


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
    Rule("period-integer", "The pattern is a multiple of its number of micro-batches.", _period_integer),
    Rule("bound", "The period is at least the lower bound that is claimed for it.", _bound),
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
    Rule(
        "memory",
        "On every accelerator, parameters and the peak of live values and workspaces fit in memory.",
        _memory,
    ),
    Rule(
        "limits",
        "The schedule keeps the limits it carries: micro-batches in flight, latency, bytes on every accelerator, and "
        "bytes per micro-batch that cross between accelerator sets.",
        _limits,
    ),
)
"""The rules of level 4, in the order in which they are checked."""
