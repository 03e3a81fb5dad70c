"""The rules of level 6: programs of random schedules keep them, and every mutation that does harm breaks one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from xdsl.context import Context
from xdsl.dialects.builtin import ArrayAttr, IntegerAttr, ModuleOp, StringAttr, i64

from dialects.attributes import ints
from dialects.levels import check_level
from dialects.placement import Placement
from dialects.program_checks import check_messages
from dialects.program_reading import Listing, expected_of, listing_of
from dialects.program_replay import check_progress, replay
from dialects.program_rules import check_programs
from dialects.programs import (
    COMPUTE,
    COPY,
    FREE,
    KINDS,
    RECV,
    SECTIONS,
    SEND,
    Instruction,
    ProgramOp,
    from_rows,
)
from dialects.structure import find_graph
from passes.insert_communication import InsertCommunicationPass
from passes.lower_to_programs import lower_to_programs

ACCELERATORS = 5
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def programs_of(module: ModuleOp) -> list[ProgramOp]:
    return [op for op in module.body.ops if isinstance(op, ProgramOp)]


def trips_of(module: ModuleOp) -> int | None:
    trips = programs_of(module)[0].trips
    return None if trips is None else trips.value.data


def rules_of(module: ModuleOp) -> set[str]:
    return {d.rule for d in check_level(module)}


# --- programs of random schedules ------------------------------------------------------------


@quick
@given(data=st.data())
def test_programs_of_random_schedules_keep_every_rule(random_cases, harm, data: st.DataObject):
    case = data.draw(random_cases(), label="case")
    module = case.module()
    assert check_level(module) == []
    InsertCommunicationPass().apply(Context(), module)
    assert check_level(module) == []
    depth = max(op.end for op in case.ops) // case.period + 2
    wanted = data.draw(st.one_of(st.none(), st.integers(1, 2 * (depth + case.step))), label="micro-batches")
    lower_to_programs(module, wanted)
    assert check_level(module) == []
    trips = trips_of(module)
    first = programs_of(module)[0]
    if wanted is not None:
        assert first.base.value.data + first.step.value.data * trips == wanted
    for run in (0, 1, 3) if trips is None else (trips,):
        assert harm(case, module, run) == []


@pytest.mark.parametrize("second", [[(1,)], [(1,), (2,)]], ids=["one set", "copies"])
def test_every_number_of_microbatches_from_one_on(second: list[tuple[int, ...]], chain_of, harm):
    case = chain_of([[(0,)], second, [(3, 4)]], 3, 3)
    for wanted in range(1, 12):
        module = case.module()
        lower_to_programs(module, wanted)
        assert check_level(module) == []
        assert harm(case, module, trips_of(module)) == []


# --- mutations -------------------------------------------------------------------------------


def mutate(op: ProgramOp, section: str, rows: list[Instruction]) -> None:
    """Replace a section; whatever its instructions are about has a name."""
    op.properties[section] = from_rows(rows)
    names = op.name_of()
    for listed in (list(op.instructions(s)) for s in SECTIONS):
        for x in listed:
            names.setdefault(x.subject, "other")
    op.subjects = ints(sorted(names))
    op.names = ArrayAttr([StringAttr(names[n]) for n in sorted(names)])


@st.composite
def places(draw: st.DrawFn, module: ModuleOp) -> tuple[ProgramOp, str, int]:
    """An instruction: a program, a section and a place in it."""
    found = [(op, s) for op in programs_of(module) for s in SECTIONS if len(op.rows(s))]
    op, section = draw(st.sampled_from(found))
    return op, section, draw(st.integers(0, len(op.rows(section)) - 1))


def changed(case: Any, x: Instruction) -> Iterator[Instruction]:
    """Instructions that differ from ``x`` in one thing that matters."""
    yield x._replace(microbatch=x.microbatch + 1)
    if x.microbatch:
        yield x._replace(microbatch=x.microbatch - 1)
    if x.kind in (SEND, RECV):
        yield from (x._replace(peer=p) for p in range(ACCELERATORS) if p != x.peer)
        yield x._replace(kind=SEND + RECV - x.kind)
        yield x._replace(destination=x.destination + 1)
    if x.kind in (SEND, RECV, COPY) and x.begin < x.end:
        yield x._replace(begin=x.begin + 1)
        yield x._replace(end=x.end - 1)
    if x.kind == COMPUTE:
        yield from (x._replace(subject=v) for v in range(len(case.ops)) if v != x.subject)
    if x.kind == FREE:
        yield x._replace(destination=x.destination + 1)


@settings(quick, max_examples=60)
@given(data=st.data())
def test_every_mutation_that_is_no_swap_is_caught(random_cases, harm, data: st.DataObject):
    case = data.draw(random_cases(), label="case")
    module = case.module()
    lower_to_programs(module, data.draw(st.one_of(st.none(), st.integers(1, 9)), label="micro-batches"))
    op, section, place = data.draw(places(module), label="place")
    rows = list(op.instructions(section))
    x = rows[place]
    mutants = [rows[:place] + rows[place + 1 :]]
    mutants += [[*rows[:other], x, *rows[other:]] for other in {0, place, len(rows)}]
    mutants += [[*rows[:place], y, *rows[place + 1 :]] for y in changed(case, x)]
    for mutant in mutants:
        mutate(op, section, mutant)
        # Only a copy of what a micro-batch reads that never comes may be less than it was.
        trips = trips_of(module)
        kept = x.kind == COPY and not any(harm(case, module, n) for n in ((0, 1, 3) if trips is None else (trips,)))
        assert rules_of(module) or kept, f"{KINDS[x.kind]} {x} in the {section}"
    mutate(op, section, rows)
    assert check_level(module) == []


@settings(quick, max_examples=80)
@given(data=st.data())
def test_a_swap_is_refused_exactly_when_it_does_harm(random_cases, harm, data: st.DataObject):
    case = data.draw(random_cases(), label="case")
    module = case.module()
    lower_to_programs(module, data.draw(st.one_of(st.none(), st.integers(1, 9)), label="micro-batches"))
    op, section, place = data.draw(places(module), label="place")
    rows = list(op.instructions(section))
    assume(len(rows) > 1)
    place = min(place, len(rows) - 2)
    other = data.draw(st.sampled_from([place + 1, len(rows) - 1]), label="other")
    rows[place], rows[other] = rows[other], rows[place]
    mutate(op, section, rows)
    trips = trips_of(module)
    wrong = [harm(case, module, run) for run in ((0, 1, 2, 4) if trips is None else (trips,))]
    broken = rules_of(module)
    event(f"harm: {any(wrong)}")
    assert bool(broken) == any(wrong), (broken, wrong)


@quick
@given(data=st.data())
def test_programs_that_do_not_belong_together_are_caught(random_cases, harm, data: st.DataObject):
    case = data.draw(random_cases(), label="case")
    module = case.module()
    lower_to_programs(module, data.draw(st.one_of(st.none(), st.integers(1, 9)), label="micro-batches"))
    programs = programs_of(module)
    op = data.draw(st.sampled_from(programs), label="program")
    kind = data.draw(st.sampled_from(["drop", "double", "base", "step", "trips", "other accelerator"]), label="kind")
    if kind == "drop":
        op.detach()
    elif kind == "double":
        module.body.block.add_op(op.clone())
    elif kind == "other accelerator":
        op.accelerator = IntegerAttr((op.accelerator.value.data + 1) % ACCELERATORS, i64)
    else:
        value = 0 if op.properties.get(kind) is None else op.properties[kind].value.data
        for each in programs if data.draw(st.booleans(), label="all") else [op]:
            each.properties[kind] = IntegerAttr(value + 1, i64)
    alike = {(p.base, p.step, p.trips) for p in programs_of(module)}
    if kind in ("base", "step", "trips") and len(alike) == 1:
        trips = trips_of(module)
        assume(trips or kind != "step")  # the step of a kernel that never runs matters to nobody
        wrong = [harm(case, module, run) for run in ((1, 2, 3) if trips is None else (trips,))]
        assert bool(rules_of(module)) == any(wrong)
    else:
        assert rules_of(module)


# --- by hand ---------------------------------------------------------------------------------


def exchange(first: str, second: str) -> list[Listing]:
    """Two accelerators that give each other a value; ``first`` and ``second`` are the order on accelerator 1."""
    lines = {
        "send": Instruction(SEND, 1, 0, 1, 3, 0, 0, 8),
        "recv": Instruction(RECV, 0, 0, 1, 3, 0, 0, 8),
    }
    names = {0: "a", 1: "b"}
    zero = [Instruction(SEND, 0, 0, 1, 3, 1, 0, 8), Instruction(RECV, 1, 0, 1, 3, 1, 0, 8)]
    one = [lines[first], lines[second]]
    return [
        Listing(p, 4, 1, 0, {"prologue": listed, "kernel": [], "epilogue": []}, (), names)
        for p, listed in enumerate((zero, one))
    ]


def test_the_circle_of_waiting_instructions_is_named():
    stuck = exchange("send", "recv")
    ((accelerator, message),) = check_progress(None, stuck, replay(None, stuck))
    assert accelerator == 0
    assert message == (
        "deadlock: accelerator 0 waits in send '0->1 a' of micro-batch 3 to 1, "
        "accelerator 1 waits in send '1->1 b' of micro-batch 3 to 0, and so on in a circle"
    )
    fine = exchange("recv", "send")
    assert list(check_progress(None, fine, replay(None, fine))) == []
    assert list(check_messages(None, stuck)) == []


def test_a_wait_for_a_program_that_has_ended_is_named():
    listings = exchange("recv", "send")
    ended = replace(listings[1], sections={"prologue": [], "kernel": [], "epilogue": []})
    ((accelerator, message),) = check_progress(None, [listings[0], ended], replay(None, [listings[0], ended]))
    assert accelerator == 0
    assert message == "deadlock: accelerator 0 waits in send '0->1 a' of micro-batch 3 to 1, which has ended"
    _, message = next(check_messages(None, [listings[0], ended]))
    assert "nothing is received there" in message


def test_accelerators_of_an_operator_wait_for_each_other(chain_of):
    case = chain_of([[(0, 1)], [(0, 1)]], 3, 6)
    case.ops[1].start = 9
    module = case.module()
    lower_to_programs(module)
    first = programs_of(module)[0]
    rows = list(first.instructions("kernel"))
    assert [(x.kind, x.subject, x.microbatch) for x in rows[:2]] == [(COMPUTE, 0, 1), (COMPUTE, 1, 0)]
    mutate(first, "kernel", [rows[1], rows[0], *rows[2:]])
    assert [d.message for d in check_level(module)] == [
        "program of accelerator 0: deadlock: accelerator 0 waits in compute '1 v1' of micro-batch 0, "
        "accelerator 1 waits in compute '0 v0' of micro-batch 1, and so on in a circle"
    ]
    # In the same order on both, nothing is wrong: the two do not depend on each other.
    second = programs_of(module)[1]
    rows = list(second.instructions("kernel"))
    mutate(second, "kernel", [rows[1], rows[0], *rows[2:]])
    assert check_level(module) == []


@pytest.mark.parametrize(
    ("kind", "rule", "message"),
    [
        (COMPUTE, "runs-once", "'v0' of micro-batch 1 runs 0 times, not once"),
        (SEND, "messages", "message 0 to accelerator 1 in the kernel: nothing is sent"),
        (FREE, "buffers", "'0 v0' of micro-batch 0 is left at the end"),
    ],
)
def test_messages_name_what_is_missing(kind: int, rule: str, message: str, chain_of):
    module = chain_of([[(0,)], [(1,)]], 3, 3).module()
    lower_to_programs(module, 3)
    op = programs_of(module)[0]
    mutate(op, "kernel", [x for x in op.instructions("kernel") if x.kind != kind])
    found = [d.message for d in check_level(module) if d.rule == rule]
    assert any(message in text for text in found), found


def test_plain_data_is_checked_like_the_ir(chain_of):
    module = chain_of([[(0,)], [(1,), (2,)]], 3, 3).module()
    lower_to_programs(module)
    graph = find_graph(module)
    for kind in (None, COMPUTE, SEND, FREE):
        op = programs_of(module)[0]
        mutate(op, "kernel", [x for x in op.instructions("kernel") if x.kind != kind])
        expected = expected_of(graph, Placement(graph))
        found = {
            (name, f"program of accelerator {p}: {text}")
            for name, (p, text) in check_programs(expected, [listing_of(op) for op in programs_of(module)])
        }
        assert found == {(d.rule, d.message) for d in check_level(module)}
        assert bool(found) == (kind is not None)
