"""Programs of steps: those of random ones do what the step says, and every mutation that does harm breaks a rule."""

from __future__ import annotations

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from xdsl.dialects.builtin import ArrayAttr, ModuleOp, StringAttr

from dialects.attributes import ints
from dialects.placement import Placement
from dialects.program_reading import expected_of, listing_of
from dialects.program_rules import check_programs
from dialects.programs import SECTIONS, UPDATE, Instruction, ProgramOp, from_rows
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
