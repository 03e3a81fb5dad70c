"""The known schedules: complete, never stuck, and as long and as large as the papers say."""

from __future__ import annotations

import re
from collections import Counter
from itertools import product
from pathlib import Path
from random import Random

import pytest

from passes.scheduling.steps.cells import Cell, Line, Orders, Stage
from passes.scheduling.steps.known import KNOWN, Known
from passes.scheduling.steps.one_forward_one_backward import interleaved, one_forward_one_backward_star
from passes.scheduling.steps.run import run
from passes.scheduling.steps.zero_bubble import dualpipe_v, zb_h1, zb_h2

ROOT = Path(__file__).parents[2]
PYTORCH = ROOT / "../shared/instances/pytorch-pipelining/dualpipev_4rank_10mb.csv"

UNEQUAL = (Stage(0, 7, 5, 3), Stage(0, 10, 14, 9), Stage(0, 6, 13, 0))
"""Times of F, I and W on equal stages, with none of them equal."""

SIZES = [(p, m) for p in (1, 2, 3, 4, 7) for m in (1, 2, 3, p, p + 1, 2 * p - 1, 2 * p, 4 * p)]

ENOUGH = [(p, m) for p in (2, 3, 5, 8) for m in (2 * p, 3 * p, 8 * p)]
"""Batches that are long enough for every schedule's steady state; multiples of p."""


def idle(known: Known, line: Line, microbatches: int) -> int:
    """How long the busiest rank is idle, as the schedule's paper counts it."""
    taken = run(line, known.generate(line, microbatches))
    assert set(taken.busy) == {microbatches * line.work(0)}
    return known.cost(taken) - taken.busy[0]


def peaks(known: Known, line: Line, microbatches: int) -> list[int]:
    """The most bytes that each rank holds."""
    return list(run(line, known.generate(line, microbatches)).peaks)


@pytest.mark.parametrize("name", KNOWN)
def test_every_cell_is_there_once_and_none_waits_for_ever(name: str) -> None:
    known = KNOWN[name]
    for (p, m), chunks in product(SIZES, (1, 2, 3) if known.chunks is None else (known.chunks,)):
        line = known.line(p, Stage(0, 3, 4, 2), delay=1, chunks=chunks)
        assert len(line.stages) == p * chunks
        orders = known.generate(line, m)
        starts = run(line, orders).starts
        assert len(starts) == sum(map(len, orders)), "no cell twice"
        kinds: dict[tuple[int, int], str] = {}
        for cell in sorted(starts):
            key = cell.stage, cell.microbatch
            kinds[key] = kinds.get(key, "") + cell.kind
        assert set(kinds) == set(product(range(p * chunks), range(m)))
        assert set(kinds.values()) <= {"BF", "FIW"}


@pytest.mark.parametrize("name", ["GPipe", "1F1B", "1F1B*"])
@pytest.mark.parametrize("stage", UNEQUAL)
def test_bubble_of_plain_schedules(name: str, stage: Stage) -> None:
    """(p-1)/(m+p-1) of the makespan, whatever F and B take (GPipe, section 2.3; Narayanan et al., SC 2021, 2.2.1)."""
    for p, m in SIZES:
        line = KNOWN[name].line(p, stage)
        makespan = run(line, KNOWN[name].generate(line, m)).makespan
        assert idle(KNOWN[name], line, m) * (m + p - 1) == makespan * (p - 1)


@pytest.mark.parametrize("chunks", [2, 3, 4])
@pytest.mark.parametrize("stage", UNEQUAL)
def test_bubble_of_interleaved(chunks: int, stage: Stage) -> None:
    """(p-1)/(vm+p-1) of the makespan for m a multiple of p (Narayanan et al., SC 2021, 2.2.2)."""
    known = KNOWN["interleaved 1F1B"]
    for p, rows in product((1, 2, 3, 5, 8), (1, 2, 3, 6)):
        m = p * rows
        line = known.line(p, stage, chunks=chunks)
        makespan = run(line, known.generate(line, m)).makespan
        assert idle(known, line, m) * (chunks * m + p - 1) == makespan * (p - 1)


@pytest.mark.parametrize("stage", [Stage(0, *times) for times in product((8, 10), (8, 13), (0, 5, 8))])
def test_idle_time_of_zb_h1_and_zb_h2(stage: Stage) -> None:
    """(p-1)(F+I-W) and (p-1)(F+I-2W): table 2 of Qi et al., for W no longer than F and I."""
    for p, m in ENOUGH:
        for name, weights in (("ZB-H1", 1), ("ZB-H2", 2)):
            line = KNOWN[name].line(p, stage)
            assert idle(KNOWN[name], line, m) == (p - 1) * (stage.forward + stage.inputs - weights * stage.weights)


def test_zb_v_is_never_idle_and_dualpipe_v_hardly() -> None:
    """F = I = W. ZB-V: zero (Qi et al., arXiv 2401.10241, section 6). DualPipe-V: (p-1)(F+I-W), see its docstring."""
    for p, m in ENOUGH:
        stage = Stage(0, 10, 10, 10)
        assert idle(KNOWN["ZB-V"], KNOWN["ZB-V"].line(p, stage), m) == 0
        assert idle(KNOWN["DualPipe-V"], KNOWN["DualPipe-V"].line(p, stage), m) == (p - 1) * 10


def test_dualpipe_v_with_joint_cells_idles_as_its_authors_say() -> None:
    """(PP/2-1)(F&B + B - 3W) with PP = 2p and F&B = F+B: the table of github.com/deepseek-ai/DualPipe."""
    for (p, m), weights in product(ENOUGH, (10, 8)):
        line = KNOWN["DualPipe-V"].line(p, Stage(0, 10, 10, weights))
        both, back = 20 + weights, 10 + weights
        taken = makespan_of_joint_cells(line, dualpipe_v(p, m))
        assert taken - m * line.work(0) == (p - 1) * (both + back - 3 * weights)


def makespan_of_joint_cells(line: Line, orders: Orders) -> int:
    """What orders take when a forward and the whole backward after it end together; but for the first on the last rank,
    which its authors keep apart."""
    joint: list[list[list[Cell]]] = []
    for cells in orders:
        groups: list[list[Cell]] = []
        for cell in cells:
            apart = len(joint) == len(orders) - 1 and not any(c.kind == "B" for group in groups for c in group)
            if cell.kind == "B" and groups[-1][-1].kind == "F" and not apart:
                groups[-1].append(cell)
            else:
                groups.append([cell])
        joint.append(groups)
    whole = {(c.stage, c.microbatch) for cells in orders for c in cells if c.kind == "B"}
    ends: dict[Cell, int] = {}
    free = [0] * len(orders)
    while any(joint):
        left = sum(map(len, joint))
        for rank, groups in enumerate(joint):
            while groups:
                needs = {n for c in groups[0] for n in line.needs(c, (c.stage + 1, c.microbatch) in whole)}
                if not needs - set(groups[0]) <= ends.keys():
                    break
                start = max([free[rank], *(ends[n] for n in needs - set(groups[0]))])
                free[rank] = start + sum(line.stages[c.stage].time(c.kind) for c in groups[0])
                ends.update(dict.fromkeys(groups.pop(0), free[rank]))
        assert sum(map(len, joint)) < left, "stuck"
    return max(free)


@pytest.mark.parametrize(
    ("name", "held"),
    [
        ("GPipe", lambda p, m, s: 10 * m),  # GPipe, section 2.3
        ("1F1B", lambda p, m, s: 10 * min(m, p - s)),  # Narayanan et al., SC 2021, 2.2.1
        ("ZB-H1", lambda p, m, s: 10 * (p - s) + 3 * s),  # Qi et al., section 2.3
        ("ZB-H2", lambda p, m, s: 10 * (2 * (p - s) - 1) + 3 * 2 * s),  # Qi et al., section 2.3
    ],
)
def test_what_ranks_hold(name: str, held) -> None:
    """Activations of 10 bytes, of which 3 stay for W."""
    for p, m in ENOUGH:
        line = KNOWN[name].line(p, Stage(0, 4, 4, 4, activation=10, kept=3))
        assert peaks(KNOWN[name], line, m) == [held(p, m, s) for s in range(p)]


@pytest.mark.parametrize(
    ("name", "held"),
    [
        ("ZB-H1", lambda p: p),  # table 2 of Qi et al.
        ("ZB-H2", lambda p: 2 * p - 1),  # table 2 of Qi et al.
        ("ZB-V", lambda p: 2 * p),  # chunks, half of a rank's stage each: p (Qi et al., arXiv 2401.10241, section 6)
        ("DualPipe-V", lambda p: 2 * p + 1),  # chunks: PP+1 in the table of github.com/deepseek-ai/DualPipe
    ],
)
def test_ranks_hold_the_same_when_weights_need_whole_activations(name: str, held) -> None:
    for p, m in ENOUGH:
        line = KNOWN[name].line(p, Stage(0, 4, 4, 4, activation=1, kept=1))
        assert peaks(KNOWN[name], line, m) == [held(p)] * p


def test_interleaved_holds_more_than_1f1b() -> None:
    """vp+p-1 activations of a chunk on rank 0: p(1+(p-1)/(pv)) of its stages together (Korthikanti et al., 4.2.3)."""
    known = KNOWN["interleaved 1F1B"]
    for (p, m), v in product(ENOUGH, (2, 3)):
        held = peaks(known, known.line(p, Stage(0, 1, 1, 1), chunks=v), m)
        assert held == [(v - 1) * p + 2 * (p - 1 - s) + 1 for s in range(p)]
        assert held[0] == v * p + p - 1


def test_interleaved_of_part_of_a_row_leaves_micro_batches_out() -> None:
    assert [str(cell) for cell in interleaved(2, 3, 2)[0]] == (
        ["0F0", "0F1", "2F0", "2F1", "0F2", "2B0", "2B1", "2F2", "0B0", "0B1", "2B2", "0B2"]
    )
    assert interleaved(3, 5, 1) == KNOWN["1F1B"].generate(KNOWN["1F1B"].line(3, Stage(0, 1, 1, 1)), 5)


def test_orders_of_figure_3() -> None:
    """Micro-batches (from 1) of F, B and W on every device in figure 3 of Qi et al., p = 4 and m = 8."""
    top = """
        1 2 3 4 1 1 5 2 2 6 3 3 7 4 4 8 5 5 6 6 7 7 8 8
        1 2 3 1 4 2 1 5 3 2 6 4 3 7 5 4 8 6 5 7 6 8 7 8
        1 2 1 3 2 4 3 1 5 4 2 6 5 3 7 6 4 8 7 5 8 6 7 8
        1 1 2 2 3 3 4 4 1 5 5 2 6 6 3 7 7 4 8 8 5 6 7 8
    """
    bottom = """
        1 2 3 4 5 6 7 1 1 8 2 2 3 3 4 4 5 5 6 6 7 7 8 8
        1 2 3 4 5 1 6 2 7 3 1 8 4 2 5 3 6 4 7 5 8 6 7 8
        1 2 3 1 4 2 5 3 6 4 7 5 1 8 6 2 7 3 8 4 5 6 7 8
        1 1 2 2 3 3 4 4 5 5 6 6 7 7 1 8 8 2 3 4 5 6 7 8
    """
    for figure, orders in ((top, zb_h1(4, 8)), (bottom, zb_h2(4, 8))):
        rows = [[int(number) for number in line.split()] for line in figure.split("\n") if line.strip()]
        assert [[cell.microbatch + 1 for cell in cells] for cells in orders] == rows


def test_dualpipe_v_is_the_schedule_of_pytorch() -> None:
    if not PYTORCH.is_file():
        pytest.skip("schedules of PyTorch are not in ../shared/instances")
    rows = PYTORCH.read_text().replace("OVERLAP_F_B", "").splitlines()
    assert [[str(cell) for cell in cells] for cells in dualpipe_v(4, 10)] == [
        re.findall(r"\d+[FBIW]\d+", row) for row in rows
    ]


def test_1f1b_star_keeps_the_period_and_nothing_less_does() -> None:
    """Among all numbers of activations held by three unequal stages, those of 1F1B* are the least for its period."""
    random = Random(6)
    seen: Counter[tuple[int, ...]] = Counter()
    for _ in range(24):
        stages = tuple(Stage(s, random.randint(1, 9), random.randint(1, 9), random.randint(0, 9)) for s in range(3))
        line = Line(stages, delay=random.randint(0, 2))
        period = max(stage.work for stage in stages) + random.randint(0, 36)
        least = run(line, one_forward_one_backward_star(line, 24, period)).peaks
        seen[least] += 1
        assert steady_time(line, least) <= 12 * period
        for held in product((1, 2, 3, 4), repeat=3):
            if held[0] >= held[1] >= held[2] and any(a < b for a, b in zip(held, least, strict=True)):
                assert steady_time(line, held) > 12 * period, (line, period, held)
    assert set(seen) >= {(1, 1, 1), (2, 1, 1), (2, 2, 1), (3, 2, 1)}, "the stages are of all kinds"


def steady_time(line: Line, held: tuple[int, ...]) -> int:
    """What twelve further micro-batches cost when each stage holds so many activations: twelve periods, as long runs
    repeat after one to four micro-batches."""

    def makespan(m: int) -> int:
        orders: list[list[Cell]] = []
        for s, most in enumerate(held):
            turns = [cell for i in range(m) for cell in (Cell("F", s, i + most - 1), Cell("B", s, i))]
            first = [Cell("F", s, i) for i in range(most - 1)]
            orders.append([cell for cell in first + turns if cell.microbatch < m])
        return run(line, orders).makespan

    return makespan(36) - makespan(24)


def test_1f1b_star_is_the_groups_of_its_paper_without_delays() -> None:
    random = Random(7)
    for _ in range(50):
        works = [random.randint(1, 20) for _ in range(random.randint(1, 8))]
        period = max(works) + random.randint(0, 40)
        groups, load = [0] * len(works), period
        for stage in reversed(range(len(works))):
            load += works[stage]
            fits = load <= period
            groups[stage] = max(groups[stage + 1 :], default=0) + (not fits)
            load = load if fits else works[stage]
        line = Line(tuple(Stage(s, work, 0, 0) for s, work in enumerate(works)))
        assert run(line, one_forward_one_backward_star(line, 10, period)).peaks == tuple(groups)


def test_1f1b_star_refuses_a_period_that_is_too_short() -> None:
    line = KNOWN["1F1B*"].line(2, Stage(0, 1, 1, 1))
    with pytest.raises(ValueError, match="3 ns in every period of 2 ns"):
        one_forward_one_backward_star(line, 4, 2)
