"""The rules of level 4 on figures of a whole schedule: the bytes that it needs, and the limits that it carries."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

from dialects.attributes import show_set
from dialects.operators import tensor_bytes
from dialects.placement import Placement
from dialects.rules import Finding, Rule, Subject, timed
from dialects.structure import GraphOp, PlatformOp
from dialects.units import show_bytes, show_time

if TYPE_CHECKING:
    from dialects.memory import Memory


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
            need = max(totals)
            hint = f"this schedule needs accelerators of {show_bytes(need)}{f' ({need} bytes)' * (need >= 1024)}"
            yield Finding(subject.graph, _shortage(memory, group, total, platform), hint)


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
    when = f"{show_time(placement.nanoseconds(moment))} of the {'step' if placement.step else 'pattern'}"
    who = f"accelerator {members[0]} lacks" if len(members) == 1 else f"accelerators {show_set(members)} each lack"
    return (
        f"{who} {show_bytes(total - limit)} of memory: at {when} it needs {show_bytes(total)} of "
        f"{show_bytes(limit)} ({', '.join(parts)}{named if largest else ''})"
    )


@timed
def _limits(placement: Placement, subject: Subject) -> Iterator[Finding]:
    """Every limit that the schedule carries; each figure is computed only where it is limited."""
    schedule = subject.graph.schedule
    most = {} if schedule is None else schedule.limits.given()
    if "in_flight" in most and (flying := placement.in_flight) > most["in_flight"]:
        yield Finding(
            subject.graph, f"{flying} micro-batches are in flight, the schedule claims at most {most['in_flight']}"
        )
    if "latency" in most and placement.latency > most["latency"] * placement.ticks:
        yield Finding(
            subject.graph,
            f"the latency is {show_time(placement.nanoseconds(placement.latency))}, "
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
    for instance in range(placement.turns):
        for placed in placement.placed.values():
            home = placed.sets[instance % placed.copies]
            for result in placed.op.outputs:
                readers = placement.consumers(result)
                there = {c.sets[(instance + distance) % c.copies] for c, distance in readers}
                total += tensor_bytes(result.type) * len(there - {home})
    return Fraction(total, placement.turns)


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


MEMORY_RULES = (
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
"""The last of the rules of level 4 on operators."""
