"""Our own orders of a training step: within the memory, never behind what is known, and short as solvers prove."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ortools.sat.python import cp_model

from passes.scheduling.interruptible import solve
from passes.scheduling.steps.bounds import Objective, preemptive, step_bound
from passes.scheduling.steps.cells import Cell, Line, Orders, Stage
from passes.scheduling.steps.known import KNOWN
from passes.scheduling.steps.run import Run, run
from passes.scheduling.steps.search import DoesNotFit, schedule_step

OBJECTIVES: tuple[Objective, ...] = ("makespan", "span")

QUICK = 60_000
"""Effort that suffices for steps of a few hundred cells."""


def equal(ranks: int, delay: int, kept: int = 1) -> Line:
    """Stages with T_F = T_B = T_W."""
    return Line(tuple(Stage(rank, 10, 10, 10, 2, kept) for rank in range(ranks)), delay)


def cost(taken: Run, objective: Objective) -> int:
    return taken.span if objective == "span" else taken.makespan


def checked(line: Line, microbatches: int, limits: Sequence[int] | None, orders: Orders) -> Run:
    """What orders take, after a look at them that shares nothing with the search."""
    kinds: dict[tuple[int, int], Counter[str]] = {}
    for rank, cells in enumerate(orders):
        held = 0
        for kind, s, i in cells:
            stage = line.stages[s]
            assert stage.rank == rank
            kinds.setdefault((s, i), Counter())[kind] += 1
            most = held + (stage.activation if kind == "F" else max(0, stage.kept - stage.activation) * (kind == "I"))
            assert limits is None or most <= limits[rank]
            held += {"F": stage.activation, "I": stage.kept - stage.activation, "W": -stage.kept}.get(
                kind, -stage.activation
            )
        assert held == 0
    assert set(kinds) == set(product(range(len(line.stages)), range(microbatches)))
    assert all(count in (Counter("FIW"), Counter("FB")) for count in kinds.values())
    return run(line, orders)


def found(line: Line, microbatches: int, limits: Sequence[int] | None, objective: Objective, effort: int) -> int:
    """What our orders take; never less than the bound."""
    orders = schedule_step(line, microbatches, limits, objective=objective, effort=effort)
    taken = cost(checked(line, microbatches, limits, orders), objective)
    assert taken >= step_bound(line, microbatches, limits, objective)
    return taken


ROWS = [
    (8, 32, (18513, 18086, 9331), 626, (2304, 24), 0.1242, 0.0039, 40_000),
    (8, 32, (29802, 29428, 19530), 577, (4096, 32), 0.1045, 0.0022, 40_000),
    (16, 48, (11347, 11248, 8132), 377, (5120, 40), 0.1397, 0.0066, 200_000),
]
"""Of the paper's table: p, m, times in us, hidden size and heads, rates of ZB-1p and ZB-2p; and the effort for 2p."""


@pytest.mark.parametrize(("p", "m", "times", "delay", "sizes", "once", "twice", "effort"), ROWS)
def test_rates_of_the_zero_bubble_paper_within_its_memory(
    p: int,
    m: int,
    times: tuple[int, int, int],
    delay: int,
    sizes: tuple[int, int],
    once: float,
    twice: float,
    effort: int,
) -> None:
    """Qi, Wan, Huang, Lin, ICLR 2024: a micro-batch fills 34h + 5as, of which ``W`` frees 32h; p or 2p of them fit."""
    hidden, heads = sizes
    filled = 34 * hidden + 5 * heads * 1024
    line = Line(tuple(Stage(rank, *times, filled, 32 * hidden) for rank in range(p)), delay)
    for fit, printed, work in ((p, once, 10_000), (2 * p, twice, effort)):
        taken = found(line, m, [fit * filled] * p, "span", work)
        assert round(1 - m * sum(times) / taken, 4) <= printed


@pytest.mark.parametrize(("p", "delay"), [(2, 3), (3, 1), (5, 0), (6, 3)])
def test_never_behind_what_is_known_on_equal_stages(p: int, delay: int) -> None:
    for kept, m, objective in product((1, 0), (p, 2 * p), OBJECTIVES):
        line = equal(p, delay, kept)
        for fit in (p, p + p // 2, 2 * p):
            for limits in ([2 * fit] * p, [2 * max(1, fit - rank) for rank in range(p)]):
                known = [run(line, KNOWN[name].generate(line, m)) for name in ("1F1B", "ZB-H1", "ZB-H2")]
                fitting = [
                    cost(taken, objective)
                    for taken in known
                    if all(peak <= limit for peak, limit in zip(taken.peaks, limits, strict=True))
                ]
                assert found(line, m, limits, objective, 5_000) <= min(fitting)


def test_twice_the_memory_leaves_no_idle_time_on_equal_stages() -> None:
    for p in (2, 4, 8):
        line, m = equal(p, 0), 3 * p
        assert found(line, m, [4 * p] * p, "span", QUICK) == m * 30
        assert found(line, m, [2 * p] * p, "makespan", QUICK) == m * 30 + (p - 1) * 10


@pytest.mark.parametrize("name", ["ZB-V", "interleaved 1F1B", "DualPipe-V"])
def test_never_behind_what_is_known_on_several_stages_a_rank(name: str) -> None:
    for times, delay in (((10, 10, 10), 0), ((10, 12, 7), 1)):
        line = KNOWN[name].line(4, Stage(0, *times, 2, 1), delay, 2)
        known = run(line, KNOWN[name].generate(line, 8))
        for objective in OBJECTIVES:
            taken = found(line, 8, known.peaks, objective, QUICK)
            assert taken <= cost(known, objective)
            assert taken < cost(known, objective) or times == (10, 10, 10)


@st.composite
def unequal(draw: Callable[..., int]) -> Line:
    """One stage a rank; what ``W`` needs may be more than what ``F`` fills."""
    ranks = draw(st.integers(1, 5))
    sizes = st.builds(
        Stage, st.just(0), st.integers(0, 9), st.integers(1, 9), st.integers(0, 9), st.integers(1, 4), st.integers(0, 5)
    )
    stages = [draw(sizes) for _ in range(ranks)]
    placed = (Stage(rank, s.forward, s.inputs, s.weights, s.activation, s.kept) for rank, s in enumerate(stages))  # type: ignore[attr-defined]
    return Line(tuple(placed), draw(st.integers(0, 4)))


@settings(max_examples=40, deadline=None)
@given(unequal(), st.integers(1, 8), st.integers(0, 4), st.sampled_from(OBJECTIVES))
def test_never_behind_1f1b_within_its_memory(line: Line, m: int, more: int, objective: Objective) -> None:
    known = run(line, KNOWN["1F1B"].generate(line, m))
    limits = [peak + more for peak in known.peaks]
    assert found(line, m, limits, objective, 5_000) <= cost(known, objective)


def random_line(rng: Random, places: Sequence[int]) -> Line:
    filled = rng.randint(2, 3)
    kept = rng.randint(0, filled)
    parts = [[rng.randint(1, 6) for _ in range(3)] for _ in places]
    return Line(tuple(Stage(r, *t, filled, kept) for r, t in zip(places, parts, strict=True)), rng.choice((0, 1, 2)))


def least(line: Line, microbatches: int, limits: Sequence[int]) -> int:
    """The makespan of the best orders, by CP-SAT."""
    model = cp_model.CpModel()
    horizon = sum(stage.work + 2 * line.delay for stage in line.stages) * microbatches
    on: list[list[cp_model.IntervalVar]] = [[] for _ in range(line.ranks)]
    starts: dict[Cell, cp_model.IntVar] = {}
    goal = model.new_int_var(0, horizon, "goal")
    for s, stage in enumerate(line.stages):
        for i, kind in product(range(microbatches), "FIW"):
            start = starts[Cell(kind, s, i)] = model.new_int_var(0, horizon, "")  # type: ignore[arg-type]
            on[stage.rank].append(model.new_fixed_size_interval_var(start, stage.time(kind), ""))  # type: ignore[arg-type]
            model.add(start + stage.time(kind) <= goal)  # type: ignore[arg-type]
    for cell, start in starts.items():
        for need in line.needs(cell, whole=False):
            away = line.stages[need.stage].rank != line.stages[cell.stage].rank
            model.add(start >= starts[need] + line.stages[need.stage].time(need.kind) + line.delay * away)
        if cell.microbatch:  # micro-batches are alike
            model.add(start >= starts[cell._replace(microbatch=cell.microbatch - 1)])
    for rank, limit in enumerate(limits):
        model.add_no_overlap(on[rank])
        lives: list[cp_model.IntervalVar] = []
        bytes: list[int] = []
        for s, stage in enumerate(line.stages):
            for i in range(microbatches if stage.rank == rank else 0):
                for kind, held in (("I", stage.activation - stage.kept), ("W", stage.kept)):
                    size = model.new_int_var(0, horizon, "")
                    end = starts[Cell(kind, s, i)] + stage.time(kind)  # type: ignore[arg-type]
                    lives.append(model.new_interval_var(starts[Cell("F", s, i)], size, end, ""))
                    bytes.append(held)
        model.add_cumulative(lives, bytes, limit)
    model.minimize(goal)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    assert solve(solver, model) == cp_model.OPTIMAL
    return round(solver.objective_value)


def test_as_short_as_the_exact_optimum_where_that_can_be_known() -> None:
    rng = Random(1)
    for _ in range(25):
        line, m = random_line(rng, range(rng.randint(2, 4))), rng.randint(2, 4)
        limits = [line.stages[0].activation * rng.randint(1, line.ranks + 1) for _ in range(line.ranks)]
        assert found(line, m, limits, "makespan", QUICK) == least(line, m, limits)


def test_close_to_the_exact_optimum_on_several_stages_a_rank() -> None:
    rng = Random(5)
    worst = 1.0
    for places in ((0, 1, 0, 1), (0, 1, 1, 0), (0, 1, 2, 0)):
        for _ in range(4):
            line, m = random_line(rng, places), rng.randint(2, 3)
            limits = [line.stages[0].activation * rng.randint(2, 5) for _ in range(line.ranks)]
            exact, taken = least(line, m, limits), found(line, m, limits, "makespan", 30_000)
            assert step_bound(line, m, limits) <= exact <= taken
            worst = max(worst, taken / exact)
    assert worst <= 1.05


def test_without_limits_no_rank_is_idle_once_it_has_begun() -> None:
    line = KNOWN["ZB-V"].line(3, Stage(0, 5, 5, 5), 0)
    assert found(line, 6, None, "span", QUICK) == 6 * line.work(0)


def test_the_same_arguments_give_the_same_orders() -> None:
    line = equal(3, 3)
    first = schedule_step(line, 6, [6] * 3, effort=QUICK)
    assert schedule_step(line, 6, [6] * 3, effort=QUICK) == first


def test_backwards_in_one_piece_where_two_need_too_much() -> None:
    line = Line((Stage(0, 3, 3, 3, 2, 5), Stage(1, 3, 3, 3, 2, 1)), 1)
    orders = schedule_step(line, 4, [4, 4], effort=QUICK)
    checked(line, 4, [4, 4], orders)
    assert {cell.kind for cell in orders[0]} == {"F", "B"}
    assert {cell.kind for cell in orders[1]} == {"F", "I", "W"}


def test_a_rank_that_cannot_hold_one_microbatch() -> None:
    with pytest.raises(DoesNotFit, match="one micro-batch fills 2 B on rank 1, which has 1 B") as error:
        schedule_step(equal(3, 0), 4, [2, 1, 2])
    assert (error.value.rank, error.value.needed, error.value.limit) == (1, 2, 1)
    with pytest.raises(ValueError, match="at least one micro-batch"):
        schedule_step(equal(3, 0), 0)


def test_preemptive_schedules() -> None:
    assert preemptive([]) == 0
    assert preemptive([(0, 4, 0), (1, 2, 7)]) == 10, "the urgent one interrupts"
    assert preemptive([(0, 4, 3), (1, 2, 2), (9, 1, 0)]) == 10, "a gap, then the last head"
