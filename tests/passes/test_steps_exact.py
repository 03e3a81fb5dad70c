"""Steps of tiny graphs beside the best step of all, by CP-SAT: any sets and any starts."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain, combinations, product

from hypothesis import given, settings
from hypothesis import strategies as st
from ortools.sat.python import cp_model
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp

from dialects.structure import find_graph
from frontend import Source, load
from passes.annotate_costs import AnnotateCostsPass
from passes.expand_training import ExpandTrainingPass
from passes.schedule_step import ScheduleStepPass
from passes.scheduling.interruptible import solve
from passes.scheduling.steps.batch import Batch
from passes.step_instance import read_batch

PLATFORM = """accelerator chip { memory = 1 GiB  bandwidth = 10 GB/s  launch = 1 us  peak bf16 = 1 TFLOP/s }
platform two { accelerators = 2 of chip }
"""
Model = list[tuple[int, int]]
"""Times of the operators of a chain on one accelerator and on two, us."""


def graph(model: Model, optimizer: str) -> ModuleOp:
    lines = ["model tiny {", "  input x: tensor<8 x 64, bf16>", "  a0 = op(x) time [0us, 0us] params 8 B output 8 B"]
    for n, (one, two) in enumerate(model):
        lines.append(f"  a{n + 1} = op(a{n}) time [{one}us, {two}us] params 16 KiB output 1 KiB")
    module = load(Source("tiny.takt", "\n".join([*lines, f"  output a{len(model)}", "}", PLATFORM])))
    ExpandTrainingPass(optimizer=optimizer).apply(Context(), module)  # pyright: ignore[reportArgumentType]
    AnnotateCostsPass().apply(Context(), module)
    return module


def least(batch: Batch) -> int:
    """The least time of a step before whose end no other begins. Transfers are free, and nothing holds memory."""
    model, items = cp_model.CpModel(), range(len(batch.problem.items))
    sets = list(chain.from_iterable(combinations(range(batch.problem.accelerators), k) for k in (1, 2)))
    on = {(n, s): model.new_bool_var("") for n in items for s in sets if len(s) in batch.tables[n]}
    for n in items:
        model.add_exactly_one(on[n, s] for s in sets if (n, s) in on)
    longest = batch.microbatches * sum(max(c.time for c in op.table.values()) for op in batch.problem.operations)
    longest += sum(max(update.times.values()) for update in batch.updates)
    goal = model.new_int_var(0, longest, "")
    busy: dict[int, list[cp_model.IntervalVar]] = {p: [] for p in range(batch.problem.accelerators)}

    def run(item: int, times: Mapping[int, int]) -> tuple[cp_model.IntVar, cp_model.IntVar]:
        start, end = model.new_int_var(0, longest, ""), model.new_int_var(0, longest, "")
        model.add(end <= goal)
        for s in sets:
            if (item, s) in on:
                here = model.new_optional_interval_var(start, times[len(s)], end, on[item, s], "")
                for p in s:
                    busy[p].append(here)
        return start, end

    tasks, number = range(len(batch.problem.operations)), range(batch.microbatches)
    begin: dict[tuple[int, int], cp_model.IntVar] = {}
    end: dict[tuple[int, int], cp_model.IntVar] = {}
    for v, i in product(tasks, number):
        times = {k: cost.time for k, cost in batch.problem.operations[v].table.items()}
        begin[v, i], end[v, i] = run(batch.item_of[v], times)
    for d, i in product(batch.problem.dependences, number):
        model.add(begin[d.consumer, i] >= end[d.producer, i])
    for update in batch.updates:
        start, _ = run(batch.item_of[update.member], update.times)
        for v, i in product(tasks, number):
            if batch.item_of[v] == batch.item_of[update.member]:
                model.add(start >= end[v, i])
    for v, i in product(tasks, number[1:]):
        model.add(begin[v, i] >= begin[v, i - 1])  # micro-batches are alike
    for intervals in busy.values():
        model.add_no_overlap(intervals)
    model.minimize(goal)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    assert solve(solver, model) == cp_model.OPTIMAL
    return round(solver.objective_value)


def step_time(module: ModuleOp, microbatches: int) -> tuple[int, int]:
    """Our step, and the bound written with it."""
    made = module.clone()
    ScheduleStepPass(microbatches=microbatches, effort=0.02).apply(Context(), made)
    found = find_graph(made)
    assert found is not None
    assert found.schedule is not None
    return found.schedule.pattern.data, found.schedule.bound.data


times = st.integers(2, 9).flatmap(lambda one: st.tuples(st.just(one), st.integers(1, one)))


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.lists(times, min_size=1, max_size=2), st.integers(1, 2), st.sampled_from(["none", "adam"]))
def test_between_the_bound_and_our_step_lies_the_best_of_all(model: Model, m: int, optimizer: str) -> None:
    module = graph(model, optimizer)
    ours, bound = step_time(module, m)
    assert bound <= least(read_batch(module, m)[1]) <= ours


def test_two_equal_stages() -> None:
    """Three micro-batches on a rank each: one forward of the first rank has to pass before the second begins."""
    module = graph([(6, 6), (6, 6)], "none")
    assert least(read_batch(module, 3)[1]) == step_time(module, 3)[0] == 3 * 18_000 + 6_000
