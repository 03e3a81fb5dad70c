"""Steps of tiny graphs beside the best step of all, by CP-SAT: any sets, any starts, any overlap with other steps."""

from __future__ import annotations

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
from passes.scheduling.steps.graph_bounds import graph_bound
from passes.step_instance import read_batch

PLATFORM = """accelerator chip { memory = 1 GiB  bandwidth = 10 GB/s  launch = 1 us  peak bf16 = 1 TFLOP/s }
platform two { accelerators = 2 of chip }
"""
LAPS = range(-1, 2)
"""By how many steps what shares an accelerator may be apart."""

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
    """The least time from step to step. Transfers are free, and nothing holds memory."""
    model, items = cp_model.CpModel(), range(len(batch.problem.items))
    sets = list(chain.from_iterable(combinations(range(batch.problem.accelerators), k) for k in (1, 2)))
    on = {(n, s): model.new_bool_var("") for n in items for s in sets if len(s) in batch.tables[n]}
    for n in items:
        model.add_exactly_one(on[n, s] for s in sets if (n, s) in on)
    m = batch.microbatches
    longest = m * sum(max(c.time for c in op.table.values()) for op in batch.problem.operations)
    longest += sum(max(update.times.values()) for update in batch.updates)
    pattern = model.new_int_var(1, longest, "")
    runs: list[tuple[int, cp_model.IntVar, cp_model.LinearExpr]] = []

    def run(item: int, times: dict[int, int]) -> tuple[cp_model.IntVar, cp_model.LinearExpr]:
        start = model.new_int_var(0, 2 * longest, "")
        time = sum(times[len(s)] * here for (n, s), here in on.items() if n == item)
        if max(times.values()):
            runs.append((item, start, time))  # pyright: ignore[reportArgumentType]
        return start, start + time

    tasks = range(len(batch.problem.operations))
    begin, end = {}, {}
    for v, i in product(tasks, range(m)):
        table = batch.problem.operations[v].table
        begin[v, i], end[v, i] = run(batch.item_of[v], {k: cost.time for k, cost in table.items()})
    for d, i in product(batch.problem.dependences, range(m)):
        model.add(begin[d.consumer, i] >= end[d.producer, i])
    for update in batch.updates:
        start, stop = run(batch.item_of[update.member], dict(update.times))
        for v, i in product(tasks, range(m)):
            if batch.item_of[v] == batch.item_of[update.member]:
                model.add(start >= end[v, i])
                model.add(stop <= begin[v, i] + pattern)
    for (n, a, time), (other, b, after) in combinations(runs, 2):
        laps = [model.new_bool_var("") for _ in LAPS]
        for s, t in product(sets, sets):
            if (n, s) in on and (other, t) in on and set(s) & set(t):
                model.add_bool_or(*laps, on[n, s].Not(), on[other, t].Not())
        for lap, chosen in zip(LAPS, laps, strict=True):
            model.add(b + lap * pattern >= a + time).only_enforce_if(chosen)
            model.add(b + lap * pattern + after <= a + pattern).only_enforce_if(chosen)
    for n, _, time in runs:
        model.add(time <= pattern)
    for i in range(1, m):
        model.add(begin[0, i] >= begin[0, i - 1])  # micro-batches are alike
    model.minimize(pattern)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    assert solve(solver, model) == cp_model.OPTIMAL
    return round(solver.objective_value)


def step_time(module: ModuleOp, microbatches: int, **options: bool) -> tuple[int, int]:
    """Our step, and the bound written with it."""
    made = module.clone()
    ScheduleStepPass(microbatches=microbatches, effort=0.02, **options).apply(Context(), made)
    found = find_graph(made)
    assert found is not None
    assert found.schedule is not None
    return found.schedule.pattern.data, found.schedule.bound.data


times = st.integers(2, 9).flatmap(lambda one: st.tuples(st.just(one), st.integers(1, one)))


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    st.one_of(
        st.tuples(st.lists(times, min_size=1, max_size=1), st.integers(2, 3)),
        st.tuples(st.lists(times, min_size=2, max_size=2), st.just(1)),
    ),
    st.sampled_from(["none", "adam"]),
)
def test_between_the_bound_and_our_step_lies_the_best_of_all(tiny: tuple[Model, int], optimizer: str) -> None:
    model, m = tiny
    module = graph(model, optimizer)
    batch = read_batch(module, m)[1]
    exact = least(batch)
    for staggered in (False, True):
        ours, bound = step_time(module, m, staggered=staggered)
        assert bound == graph_bound(batch).value
        assert bound <= exact <= ours


def test_one_microbatch_on_two_accelerators() -> None:
    """Without an optimizer the best of all has the next step begin before this one has come back; ours waits."""
    module = graph([(6, 6), (6, 6)], "none")
    assert least(read_batch(module, 1)[1]) == 18_000
    assert step_time(module, 1) == (30_000, 18_000)
