"""Programs of steps: those of random ones do what the step says, and every mutation that does harm breaks a rule."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from xdsl.dialects.builtin import ArrayAttr, IntegerAttr, ModuleOp, StringAttr, i64

from dialects.attributes import ints
from dialects.diagnostics import TaktError
from dialects.placement import Placement
from dialects.program_reading import expected_of, listing_of
from dialects.program_rules import check_programs
from dialects.programs import COMPUTE, SECTIONS, UPDATE, Instruction, ProgramOp, from_rows
from dialects.structure import find_graph
from passes.lower_to_programs import lower_to_programs

quick = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def programs_of(module: ModuleOp) -> list[ProgramOp]:
    return [op for op in module.body.ops if isinstance(op, ProgramOp)]


def trips_of(module: ModuleOp) -> int | None:
    trips = programs_of(module)[0].trips
    return None if trips is None else trips.value.data


def faults(module: ModuleOp) -> list[tuple[str, str]]:
    """The rules that the programs of a module break, and what is said."""
    graph = find_graph(module)
    assert graph is not None
    expected = expected_of(graph, Placement(graph))
    return [
        (rule, text) for rule, (_, text) in check_programs(expected, [listing_of(op) for op in programs_of(module)])
    ]


def rewrite(op: ProgramOp, section: str, rows: list[Instruction]) -> None:
    """Replace a section; whatever its instructions are about has a name."""
    op.properties[section] = from_rows(rows)
    found = [x for s in SECTIONS for x in op.instructions(s)]
    subjects = sorted({x.subject for x in found if x.kind != UPDATE})
    updates = {x.subject for x in found if x.kind == UPDATE}
    op.subjects, op.names = ints(subjects), ArrayAttr([StringAttr("v")] * len(subjects))
    op.updates = ArrayAttr([StringAttr("u")] * len(updates)) if updates else None
    op.verify_()


@quick
@given(data=st.data())
def test_programs_of_random_steps_do_what_the_step_says(random_cases, harm, data: st.DataObject):
    case = data.draw(random_cases(step=True), label="case")
    event(f"updates: {len(case.updates)}")
    module = case.module()
    wanted = data.draw(st.one_of(st.none(), st.integers(1, 4)), label="steps")
    lower_to_programs(module, wanted and wanted * case.together)
    assert faults(module) == []
    first, trips = programs_of(module)[0], trips_of(module)
    base = first.base.value.data
    assert first.step.value.data == case.together
    event(f"prologue: {base > 0}")
    if wanted is not None:
        assert base + case.together * trips == wanted * case.together
    for run in (0, 1, 3) if trips is None else (trips,):
        assert harm(case, module, run) == []


@quick
@given(data=st.data())
def test_a_change_is_refused_exactly_when_it_does_harm(random_cases, harm, data: st.DataObject):
    case = data.draw(random_cases(step=True), label="case")
    module = case.module()
    lower_to_programs(
        module, data.draw(st.sampled_from([None, case.together, 3 * case.together]), label="micro-batches")
    )
    sections = [(op, s) for op in programs_of(module) for s in SECTIONS if len(op.rows(s))]
    op, section = data.draw(st.sampled_from(sections), label="section")
    rows = list(op.instructions(section))
    updates = [k for k, x in enumerate(rows) if x.kind == UPDATE]
    place = data.draw(st.sampled_from([*updates, *updates, *range(len(rows))]), label="place")
    x = rows[place]
    kind = data.draw(st.sampled_from(["drop", "double", "move", "other micro-batch"]), label="kind")
    rest = rows[:place] + rows[place + 1 :]
    other = data.draw(st.integers(0, len(rest)), label="other")
    if kind == "drop":
        rewrite(op, section, rest)
    elif kind == "double":
        rewrite(op, section, [*rows[:other], x, *rows[other:]])
    elif kind == "move":
        rewrite(op, section, [*rest[:other], x, *rest[other:]])
    else:
        rewrite(op, section, [*rows[:place], x._replace(microbatch=x.microbatch + 1), *rows[place + 1 :]])
    trips = trips_of(module)
    wrong = [found for run in ((0, 1, 2, 4) if trips is None else (trips,)) for found in harm(case, module, run)]
    event(f"harm: {bool(wrong)}, update: {x.kind == UPDATE}")
    assert bool(faults(module)) == bool(wrong), (faults(module), wrong)


# --- optimizer steps by hand -----------------------------------------------------------------


def unroll(module: ModuleOp) -> None:
    """Programs of two steps without a kernel."""
    for op in programs_of(module):
        rows = [x for part in listing_of(op).run(2) for x in part]
        op.kernel, op.epilogue = from_rows([]), from_rows([])
        op.base, op.trips = IntegerAttr(2 * op.step.value.data, i64), IntegerAttr(0, i64)
        rewrite(op, "prologue", rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("drop", "'u0' after micro-batch 1 is done 0 times, not once (in a run of 4 micro-batches)"),
        ("double", "'u0' after micro-batch 1 is done 2 times, not once (in a run of 4 micro-batches)"),
        ("before the last gradient", "'u0' of step 0 stands before 'v0' of micro-batch 1, which it reads"),
        ("behind the next operator", "'u0' of step 0 stands behind 'v0' of micro-batch 2, which is of the next"),
    ],
)
def test_what_is_wrong_with_an_optimizer_step_is_said(step_of_two, harm, change: str, message: str):
    case = step_of_two()
    module = case.module()
    lower_to_programs(module, 2)
    unroll(module)
    assert faults(module) == []
    op = programs_of(module)[0]
    rows = list(op.instructions("prologue"))
    place = next(k for k, x in enumerate(rows) if x.kind == UPDATE)
    computed = {x.microbatch: k for k, x in enumerate(rows) if x.kind == COMPUTE}
    x, rest = rows[place], rows[:place] + rows[place + 1 :]
    before, behind = computed[1], computed[2]
    changed = {
        "drop": rest,
        "double": [*rows[:place], x, *rows[place:]],
        "before the last gradient": [*rest[:before], x, *rest[before:]],
        "behind the next operator": [*rest[:behind], x, *rest[behind:]],
    }
    rewrite(op, "prologue", changed[change])
    assert ("updated-once", message) in faults(module)
    assert harm(case, module, 0)


def test_an_optimizer_step_waits_for_the_gradients_of_copies(step_of_two, harm):
    case = step_of_two(tied=True)
    module = case.module()
    lower_to_programs(module, 2)
    unroll(module)
    assert faults(module) == []
    for p, op in enumerate(programs_of(module)):
        assert [x.subject for x in op.instructions("prologue") if x.kind == UPDATE] == [p, p]
    # The first accelerator computes only after the optimizer step what the second needs for its gradient.
    op = programs_of(module)[0]
    rows = list(op.instructions("prologue"))
    update = next(x for x in rows if x.kind == UPDATE)
    rows.remove(update)
    rewrite(op, "prologue", [update, *rows])
    said = [text for rule, text in faults(module) if rule == "no-deadlock"]
    assert said == ["deadlock: accelerator 0 waits in update '0 u' after micro-batch 1, and so on in a circle"]
    assert "deadlock" in harm(case, module, 0)


def test_programs_are_for_whole_steps(step_of_two):
    module = step_of_two().module()
    with pytest.raises(TaktError, match="3 micro-batches are no whole steps: the schedule is a step of 2"):
        lower_to_programs(module, 3)
    lower_to_programs(module, 2)
    for op in programs_of(module):
        op.base = IntegerAttr(1, i64)
    said = [text for rule, text in faults(module) if rule == "program-form"]
    assert said[0] == "1 micro-batches are begun outside of the kernel, but a step has 2"


def test_outside_of_steps_nothing_is_updated(step_of_two):
    case = step_of_two()
    case.together = 0
    for op in case.ops:
        op.later = []
    module = case.module()
    lower_to_programs(module)
    assert not any(x.kind == UPDATE for op in programs_of(module) for s in SECTIONS for x in op.instructions(s))
    op = programs_of(module)[0]
    rewrite(op, "kernel", [*op.instructions("kernel"), Instruction(UPDATE, 0, 0, 0, 0)])
    assert faults(module) == [("program-form", "instruction 4 of the kernel (update) names optimizer step 0")]
