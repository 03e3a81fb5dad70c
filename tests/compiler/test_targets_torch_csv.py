"""Schedules for torch.distributed.pipelining: their text, refusals, replays, and runs on real processes."""

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from xdsl.dialects.builtin import IntAttr, ModuleOp, StringAttr

from compiler import compile_model
from compiler.pipeline import Options
from compiler.runtime.torch_pipelining import Cell, check, load, parse
from compiler.targets.torch_csv import emit
from compiler.view import view_of
from dialects.diagnostics import TaktError
from dialects.links import LinkAttr
from frontend import Source

ROOT = Path(__file__).parent.parent.parent
GOLDEN = ROOT / "../shared/instances/pytorch-pipelining"
Build = Callable[..., ModuleOp]
Rows = Sequence[Sequence[str]]
Reads = Mapping[str, Sequence[str]]


# --- schedules -------------------------------------------------------------------------------

CHAIN: Reads = {"a": ["x"], "b": ["a"], "c": ["b"], "d": ["c"], "e": ["d"], "f": ["e"]}
SKIP: Reads = {"a": ["x"], "b": ["a"], "c": ["b"], "d": ["c", "a"], "e": ["d"], "f": ["e", "b"]}
TWO_INPUTS: Reads = {"a": ["x"], "b": ["a"], "c": ["z"], "d": ["c"], "e": ["d", "b"], "f": ["e", "b"]}
WIDE: Reads = {"a": ["x"], "b": ["a"], "c": ["b"]}
EVEN = "[100us]"
CASES: dict[str, tuple[Reads, str, int, Options]] = {
    "stages": (CHAIN, EVEN, 3, Options(plan="stages")),
    "interleaved": (CHAIN, EVEN, 2, Options(plan="interleaved", chunks=3)),
    "v": (CHAIN, EVEN, 2, Options(plan="v", chunks=3)),
    "skip": (SKIP, EVEN, 3, Options(plan="stages")),
    "skip-v": (SKIP, EVEN, 3, Options(plan="v", chunks=2)),
    "encoder-decoder": (TWO_INPUTS, EVEN, 3, Options(plan="stages")),
    "unequal": (WIDE, "", 4, Options(plan="stages", stages=3)),
}
"""Operators and what each reads, their times, accelerators, plan."""


@cache
def scheduled(name: str) -> ModuleOp:
    """A case, compiled; of "unequal" the middle stage takes two accelerators."""
    reads, times, accelerators, options = CASES[name]
    own = {"a": "[100us]", "b": "{2: 100us}", "c": "[100us]"} if not times else {}
    inputs = sorted({r for row in reads.values() for r in row if r not in reads})
    lines = [f"input {x}: tensor<512 x 512, bf16>" for x in inputs]
    lines += [f"{op} = op({', '.join(r)}) time {own.get(op, times)} output 512 KiB" for op, r in reads.items()]
    text = "model m {\n  " + "\n  ".join([*lines, f"output {list(reads)[-1]}"]) + "\n}\n"
    link = "link board { latency = 5 us  bandwidth = 40 GB/s }"
    board = f'import "takt/accelerators.takt"\nplatform p {{\n  accelerators = {accelerators} of pebble\n  {link}\n}}\n'
    return compile_model(Source("m.takt", text), platform=Source("p.takt", board), options=options)


def rows_of(text: str) -> Rows:
    assert text.endswith("\n")
    rows = [line.split(",") for line in text.splitlines()]
    assert all(cell for row in rows for cell in row)
    return rows


def forms(module: ModuleOp, microbatches: int) -> tuple[Rows, Rows]:
    """Both forms as rows of cells."""
    compute, comms = (
        rows_of(emit(module, microbatches=microbatches, form=form)) for form in ("compute-only", "compute-comms")
    )
    return compute, comms


def stages_of(module: ModuleOp) -> list[dict[str, Any]]:
    return json.loads(emit(module, form="stages"))["stages"]


# --- what the format means, written anew -----------------------------------------------------

WORD = re.compile(r"(\d+)(F|SEND_F|RECV_F)(\d+)")


def split(cell: str) -> tuple[int, str, int]:
    match = WORD.fullmatch(cell)
    assert match, cell
    return int(match[1]), match[2], int(match[3])


def homes(rows: Rows) -> dict[int, int]:
    return {split(cell)[0]: rank for rank, row in enumerate(rows) for cell in row if split(cell)[1] == "F"}


def complete(rows: Rows, microbatches: int, *, comms: bool) -> None:
    """Every stage does every micro-batch once, and every message between two ranks is sent and received once."""
    rank_of = homes(rows)
    wanted: list[Counter[str]] = [Counter() for _ in rows]
    for stage, rank in rank_of.items():
        for i in range(microbatches):
            wanted[rank][f"{stage}F{i}"] += 1
            if comms and stage + 1 in rank_of and rank_of[stage + 1] != rank:
                wanted[rank][f"{stage}SEND_F{i}"] += 1
                wanted[rank_of[stage + 1]][f"{stage + 1}RECV_F{i}"] += 1
    assert sorted(rank_of) == list(range(len(rank_of)))
    assert [Counter(row) for row in rows] == wanted


def hang(rows: Rows) -> str | None:
    """Replay where a send and its receive end only together: None, or the cells at which all ranks stand for ever."""
    left, done = [list(row) for row in rows], set[str]()
    rank_of = homes(rows)
    while any(left):
        heads = {row[0] for row in left if row}
        free = set[str]()
        for cell in heads:
            stage, kind, i = split(cell)
            if kind == "F":
                local = not stage or rank_of[stage - 1] == rank_of[stage]
                before = f"{stage - 1}F{i}" if local else f"{stage}RECV_F{i}"
                if not stage or before in done:
                    free.add(cell)
            elif kind == "SEND_F" and f"{stage + 1}RECV_F{i}" in heads and f"{stage}F{i}" in done:
                free |= {cell, f"{stage + 1}RECV_F{i}"}
        if not free:
            return " ".join(sorted(heads))
        done |= free
        left = [row[1:] if row and row[0] in free else row for row in left]
    return None


def self_timed(rows: Rows, durations: Mapping[int, int], transfers: Mapping[int, int]) -> list[int]:
    """When the last stage ends each micro-batch, where sends and receives are posted and a stage waits for its message.

    A message begins when both ends have posted it and takes
    ``transfers`` ns, by the stage that receives it.
    """
    clock, at, ends, posted = [0] * len(rows), [0] * len(rows), dict[str, int](), dict[str, int]()
    rank_of = homes(rows)

    def ready(rank: int, stage: int, i: int) -> int | None:
        if not stage:
            return clock[rank]
        if rank_of[stage - 1] == rank:
            return ends.get(f"{stage - 1}F{i}")
        sent, taken = posted.get(f"{stage - 1}SEND_F{i}"), posted.get(f"{stage}RECV_F{i}")
        return None if sent is None or taken is None else max(sent, taken) + transfers[stage]

    moved = True
    while moved:
        moved = False
        for rank, row in enumerate(rows):
            while at[rank] < len(row):
                stage, kind, i = split(row[at[rank]])
                if kind == "F":
                    begin = ready(rank, stage, i)
                    if begin is None:
                        break
                    clock[rank] = ends[row[at[rank]]] = max(clock[rank], begin) + durations[stage]
                else:
                    posted[row[at[rank]]] = clock[rank]
                at[rank], moved = at[rank] + 1, True
    last = max(rank_of)
    return [ends[f"{last}F{i}"] for i in range(sum(cell.startswith(f"{last}F") for cell in rows[rank_of[last]]))]


# --- text ------------------------------------------------------------------------------------


def test_a_chain_has_a_row_for_each_rank(taktc: Callable[..., Any], tmp_path: Path, build: Build, operator: Any):
    a, b = operator("a", ["x"], 40, [[0]], 0, stage=0), operator("b", ["a"], 40, [[1]], 40, stage=1)
    module = build([a, b], 40, 2, inputs={"x": 1}, outputs=["b"], stages=[[0], [1]])
    assert emit(module, microbatches=3) == "0F0,0F1,0F2\n1F0,1F1,1F2\n"
    dump = tmp_path / "dump.mlir"
    dump.write_text(str(module))
    name = "torch-csv{form=compute-comms}"
    result = taktc(dump, "--compile-from", "scheduled", "--emit", name, "--microbatches", 3, "--quiet")
    sent, taken = "0F0,0SEND_F0,0F1,0SEND_F1,0F2,0SEND_F2", "1RECV_F0,1F0,1RECV_F1,1F1,1RECV_F2,1F2"
    assert (result.code, result.out) == (0, f"{sent}\n{taken}\n"), result.err


def test_the_default_is_three_times_the_micro_batches_in_flight(build: Build, operator: Any):
    ops = [operator("a", [], 40, [[0]], 0, stage=0), operator("b", ["a"], 40, [[1]], 40, stage=1)]
    assert emit(build(ops, 40, 2, stages=[[0], [1]])).splitlines()[0] == ",".join(f"0F{i}" for i in range(6))


def test_what_takes_no_time_has_a_batch_too(build: Build, operator: Any):
    assert emit(build([operator("a", [], 0, [[0]], 0, stage=0)], 40, 1, stages=[[0]])) == "0F0,0F1,0F2\n"


def test_neighbours_on_one_rank_send_nothing(build: Build, operator: Any):
    sets = [[0], [1], [1], [0]]
    ops = [operator(f"s{i}", [f"s{i - 1}"] if i else [], 40, [p], 40 * i, stage=i) for i, p in enumerate(sets)]
    module = build(ops, 80, 2, stages=sets)
    assert emit(module, microbatches=1, form="compute-comms") == (
        "0F0,0SEND_F0,3RECV_F0,3F0\n1RECV_F0,1F0,2F0,2SEND_F0\n"
    )


@pytest.mark.parametrize(
    ("period", "first", "moved", "second", "row"),
    [
        # From 40 to 50, then b until 90: it comes while b computes, and is asked for before.
        (40, (0, 40), 40, (50, 40), "1RECV_F0,1RECV_F1,1F0,1RECV_F2,1F1,1F2"),
        # At 140 b has not had anything to do for long.
        (100, (0, 40), 40, (50, 40), "1RECV_F0,1F0,1RECV_F1,1F1,1RECV_F2,1F2"),
        # The link is busy until 65, and a begins its next cell at 60: it sends before.
        (60, (0, 40), 65, (80, 10), "1RECV_F0,1F0,1RECV_F1,1F1,1RECV_F2,1F2"),
        # When a has begun and ended, b is still in its cell, which ends when the next begins: a period more is needed.
        (100, (50, 10), 60, (100, 100), "1RECV_F0,1RECV_F1,1F0,1RECV_F2,1F1,1F2"),
    ],
)
def test_a_receive_stands_before_the_cell_in_which_it_comes(
    period: int, first: tuple[int, int], moved: int, second: tuple[int, int], row: str, build: Build, operator: Any
):
    (a, long), (b, longer) = first, second
    ops = [
        operator("a", [], long, [[0]], a, stage=0, results=(10,)),
        operator("b", ["a"], longer, [[1]], b, stage=1),
    ]
    link, moves = (
        LinkAttr(StringAttr("wire"), IntAttr(2), IntAttr(0), IntAttr(10**9)),
        [("a", [[1]], "wire", moved, 10)],
    )
    module = build(ops, period, 2, stages=[[0], [1]], links=[link], moves=moves)
    rows = emit(module, microbatches=3, form="compute-comms").splitlines()
    assert rows == ["0F0,0SEND_F0,0F1,0SEND_F1,0F2,0SEND_F2", row]


def test_a_stage_that_is_early_waits_whole_periods(build: Build, operator: Any):
    """Stage 1 reads nothing of stage 0, and still runs behind it; what its rank does in a period stays."""
    sets = [[0], [1], [1]]
    ops = [
        *(operator("a", [], 60, [[0]], 0, stage=0), operator("b", [], 30, [[1]], 0, stage=1)),
        operator("c", ["a", "b"], 30, [[1]], 60 + 30, stage=2),
    ]
    module = build(ops, 60, 2, stages=sets, outputs=["c"])
    compute, comms = forms(module, 4)
    assert compute[1] == ["1F0", "2F0", "1F1", "2F1", "1F2", "2F2", "1F3", "2F3"]
    assert hang(comms) is None


def test_a_stage_without_time_waits_for_the_cell_that_it_stands_in(build: Build, operator: Any):
    """The rank of z runs c from 110 to 160 every 120: what z makes at 0 and 120 is there at 40 and 160."""
    ops = [
        operator("z", [], 0, [[0]], 0, stage=0),
        *(operator("b", ["z"], 110, [[1]], 0, stage=1), operator("c", ["b"], 50, [[0]], 110, stage=2)),
    ]
    module = build(ops, 120, 2, outputs=["c"], stages=[[0], [1], [0]])
    _, comms = forms(module, 24)
    ends = self_timed(comms, {0: 0, 1: 110, 2: 50}, {1: 0, 2: 0})
    assert ends[-1] - ends[3] <= 20 * 120


def test_stages_say_what_they_hand_on():
    lines = stages_of(scheduled("skip"))
    assert [x["operators"] for x in lines] == [["a", "b"], ["c", "d"], ["e", "f"]]
    assert [x["inputs"] for x in lines] == [["x"], [], []]
    assert [x["receives"] for x in lines] == [[], ["a", "b"], ["b", "d"]]
    assert [x["returns"] for x in lines] == [["a", "b"], ["b", "d"], ["f"]]
    assert [x["accelerators"] for x in stages_of(scheduled("unequal"))] == [[0], [1, 2], [3]]


def test_outputs_and_values_of_earlier_micro_batches_are_handed_on(build: Build, operator: Any):
    ops = [
        *(operator("a", ["x"], 40, [[0]], 0, stage=0, results=(1, 1)), operator("b", ["a"], 40, [[1]], 40, stage=1)),
        operator("c", ["b", "s"], 40, [[2]], 80, stage=2),
    ]
    sets = [[0], [1], [2]]
    module = build(ops, 40, 3, inputs={"x": 1, "y": 1}, outputs=["a:1", "c", "y"], stages=sets, states={"s": ("a", 2)})
    first, second, third = stages_of(module)
    assert first["returns"] == ["a#0", "a#1"]
    assert second["returns"] == ["a#0", "a#1", "b"]
    assert (third["keeps"], third["inputs"], third["returns"]) == ({"a#0": 2}, ["y"], ["a#1", "c", "y"])


@pytest.mark.parametrize("distances", [(1, 3), (3, 1)])
def test_a_value_is_kept_for_the_greatest_distance(distances: tuple[int, int], build: Build, operator: Any):
    ops = [operator("a", ["s", "t"], 40, [[0]], 0, stage=0)]
    states = {name: ("a", distance) for name, distance in zip("st", distances, strict=True)}
    assert [x["keeps"] for x in stages_of(build(ops, 40, 1, stages=[[0]], states=states))] == [{"a": 3}]


# --- refusals --------------------------------------------------------------------------------


def test_a_plan_of_single_operators_is_refused(taktc: Callable[..., Any], tmp_path: Path, build: Build, operator: Any):
    ops = [operator("a", [], 40, [[0]], 0, stage=0), operator("b", ["a"], 40, [[1]], 40, stage=0)]
    dump = tmp_path / "dump.mlir"
    dump.write_text(str(build(ops, 40, 2, stages=[[0, 1]])).replace('plan "stages"', 'plan "list"'))
    result = taktc(dump, "--compile-from", "scheduled", "--emit", "torch-csv", "--quiet")
    assert result.code == 1
    assert "error: 'b' runs on accelerators 1:2, without accelerator 0 that leads 0:2" in result.err
    assert "hint: use --plan stages" in result.err


def test_values_for_earlier_stages_are_refused(build: Build, operator: Any):
    ops = [operator("a", ["s"], 40, [[0]], 0, stage=0), operator("b", ["a"], 40, [[1]], 40, stage=1)]
    module = build(ops, 80, 2, stages=[[0], [1]], states={"s": ("b", 1)})
    with pytest.raises(TaktError, match="'a' reads 'b' of an earlier micro-batch from a later stage"):
        emit(module)
    single = [operator("a", ["s"], 40, [[0]], 0, stage=0), operator("b", ["a"], 40, [[0]], 40, stage=0)]
    together = build(single, 80, 2, stages=[[0]], states={"s": ("b", 1)})
    assert emit(together, microbatches=2) == "0F0,0F1\n"


def test_copies_and_no_micro_batches_are_refused(build: Build, operator: Any):
    with pytest.raises(TaktError, match="'a' has 2 copies"):
        emit(build([operator("a", [], 40, [[0], [1]], 0, stage=0)], 40, 2, stages=[[0, 1]]))
    one = build([operator("a", [], 40, [[0]], 0, stage=0)], 40, 1, stages=[[0]])
    assert emit(one, microbatches=2, form="compute-comms") == "0F0,0F1\n"
    with pytest.raises(TaktError, match="0 micro-batches: there must be at least 1"):
        emit(one, microbatches=0)
    with pytest.raises(TaktError, match="1,000,001 cells"):
        emit(one, microbatches=1_000_001)


def test_stages_that_read_from_each_other_are_refused(build: Build, operator: Any):
    ops = [
        *(operator("a", [], 10, [[0]], 0, stage=0), operator("b", ["a"], 10, [[1]], 10, stage=1)),
        *(operator("c", [], 10, [[1]], 30, stage=1), operator("d", ["c"], 10, [[0]], 40, stage=0)),
    ]
    with pytest.raises(TaktError, match="'b' is in one of the stages 0, 1, which read from each other in a circle"):
        emit(build(ops, 80, 2, stages=[[0], [1]]))


# --- replays ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_both_forms_run_where_sends_wait_for_receives(name: str):
    compute, comms = forms(scheduled(name), 7)
    complete(compute, 7, comms=False)
    complete(comms, 7, comms=True)
    assert hang(comms) is None
    assert [[cell for cell in row if "_" not in cell] for row in comms] == [list(row) for row in compute]


@pytest.mark.parametrize(("model", "plan"), [("gpt2_xl", "stages"), ("resnet50", "interleaved"), ("mixtral_8x7b", "v")])
def test_schedules_of_models_run_where_sends_wait_for_receives(model: str, plan: Any, examples: Path):
    module = compile_model(
        examples / f"{model}.takt", platform=examples / "dgx_a100_16.takt", options=Options(plan=plan)
    )
    compute, comms = forms(module, 9)
    complete(comms, 9, comms=True)
    assert hang(comms) is None
    assert check(parse(emit(module, microbatches=9)), len(homes(compute)), 9) == homes(compute)


@pytest.mark.parametrize("name", CASES)
def test_the_runtime_keeps_the_period(name: str):
    module = scheduled(name)
    count = 24
    rows = rows_of(emit(module, microbatches=count, form="compute-comms"))
    view = view_of(module)
    lines = stages_of(module)
    durations = {x["stage"]: sum(t.time for t in view.tasks if t.name in x["operators"]) for x in lines}
    # Values of 512 KiB over a link of 40 GB/s and 5 us.
    transfers = {x["stage"]: 5_000 + 13_108 * len(x["receives"]) for x in lines}
    ends = self_timed(rows, durations, transfers)
    assert (ends[-1] - ends[count // 2]) / (count - 1 - count // 2) <= float(view.period)


relaxed = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@relaxed
@given(data=st.data())
def test_any_times_make_a_schedule_without_deadlock(data: st.DataObject, build: Build, operator: Any):
    ranks = data.draw(st.integers(1, 3))
    home = data.draw(st.lists(st.integers(0, ranks - 1), min_size=1, max_size=5))
    period = data.draw(st.integers(1, 60))
    start, ops = 0, list[Any]()
    for stage, rank in enumerate(home):
        reads = data.draw(st.lists(st.sampled_from(range(stage)), unique=True, max_size=2)) if stage else []
        start = data.draw(st.integers(max(0, start - 30), start + 50))
        time = data.draw(st.integers(0, 40))
        ops.append(operator(f"s{stage}", [f"s{r}" for r in reads], time, [[rank]], start, stage=stage))
    module = build(ops, period, ranks, stages=[[rank] for rank in home])
    compute, comms = forms(module, 5)
    complete(compute, 5, comms=False)
    complete(comms, 5, comms=True)
    assert hang(comms) is None


@relaxed
@given(data=st.data())
def test_the_runtime_keeps_the_period_of_any_schedule(data: st.DataObject, build: Build, operator: Any):
    """Stages one after the other on each rank, in any order and from any period on; messages of any size."""
    period, ranks = 100, data.draw(st.integers(1, 3))
    home = data.draw(st.lists(st.integers(0, ranks - 1), min_size=1, max_size=5))
    free = [period] * ranks
    drawn: dict[int, tuple[int, int, int]] = {}
    for stage in data.draw(st.permutations(range(len(home)))):
        wait = data.draw(st.integers(0, free[home[stage]]))
        time = data.draw(st.integers(0, free[home[stage]] - wait))
        start = period - free[home[stage]] + wait + period * data.draw(st.integers(0, 3))
        free[home[stage]] -= wait + time
        drawn[stage] = start, time, data.draw(st.integers(0, 150))
    ops = [
        operator(f"s{stage}", [f"s{stage - 1}"] if stage else [], time, [[home[stage]]], start, (size,), stage=stage)
        for stage, (start, time, size) in sorted(drawn.items())
    ]
    link = LinkAttr(StringAttr("wire"), IntAttr(ranks), IntAttr(0), IntAttr(10**9))
    module = build(ops, period, ranks, stages=[[rank] for rank in home], links=[link])
    rows = forms(module, 30)[1]
    assert hang(rows) is None
    for row in rows:
        # Only receives stand between a cell and its send.
        text = ",".join(row)
        assert not re.search(r"(?<![_\d])(\d+)F(\d+),(\d+RECV_F\d+,)*\d+F\d+.*,\1SEND_F\2(?!\d)", text), text
    ends = self_timed(
        rows, {s: time for s, (_, time, _) in drawn.items()}, {s + 1: size for s, (_, _, size) in drawn.items()}
    )
    assert ends[-1] - ends[14] <= 15 * period


# --- files that others wrote -----------------------------------------------------------------


@pytest.mark.parametrize("form", ["compute", "comms"])
def test_the_forward_part_of_a_schedule_of_torch_passes_the_check(form: str):
    file = GOLDEN / f"zb1p_2rank_2stagep_{form}.csv"
    if not file.exists():
        pytest.skip("the schedules of torch are not in ../shared/instances")
    rows = [re.findall(r"(?<![A-Z_\d])\d+(?:SEND_F|RECV_F|F)\d+", line) for line in file.read_text().splitlines()]
    complete(rows, 8, comms=form == "comms")
    text = "\n".join(map(",".join, rows))
    assert check(parse(text), 4, 8) == {0: 0, 2: 0, 1: 1, 3: 1}
    if form == "comms":
        assert hang(rows) is None


GOOD = "0F0,0SEND_F0,0F1,0SEND_F1\n1RECV_F0,1F0,1RECV_F1,1F1\n"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("1F1", "1F1zzz", "'1F1zzz' is no cell of a schedule"),
        ("1F1", "1B1", "rank 0 lacks 0I0"),
        ("1RECV_F1,", "", "rank 1 lacks 1RECV_F1"),
        ("0F1", "0F0", "rank 0: 0F0 stands there twice"),
        ("0F1,", "0F1,0F2,", "rank 0 has 0F2, which has no place there"),
        ("1F1", "1F1,2F0", "rank 1 has 2F0"),
        ("0F1,", "0F1,1F0,", "stage 1 is on the ranks 0 and 1"),
        ("1RECV_F0,1F0", "1F0,1RECV_F0", "ranks wait for ever: rank 0 at 0SEND_F0, rank 1 at 1F0"),
        ("0F0,0SEND_F0,0F1,0SEND_F1", "0F0,0F1,0SEND_F1,0SEND_F0", "rank 0 at 0SEND_F1, rank 1 at 1RECV_F0"),
        ("\n1RECV_F0,1F0,1RECV_F1,1F1", "", "no rank runs stage 1"),
    ],
)
def test_a_wrong_file_is_refused(old: str, new: str, message: str):
    assert check(parse(GOOD), 2, 2) == {0: 0, 1: 1}
    assert old in GOOD
    with pytest.raises(ValueError, match=re.escape(message)):
        check(parse(GOOD.replace(old, new)), 2, 2)


def test_a_rank_without_stages_is_refused():
    with pytest.raises(ValueError, match="rank 1 has no stage"):
        check(parse("0F0\n\n"), 1, 1)


def test_cells_are_read_as_written():
    assert parse("0F0, 0SEND_F0 ,,\n1RECV_F0\n") == [
        [Cell(0, "F", 0), Cell(0, "SEND_F", 0)],
        [Cell(1, "RECV_F", 0)],
    ]


# --- torch -----------------------------------------------------------------------------------


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """As much of torch's module of schedules as the adapter uses; its actions are the texts of cells."""

    def add_send_recv(actions: Mapping[int, list[str]], rank_of: Callable[[int], int], stages: int) -> Any:
        found = {rank: list(row) for rank, row in actions.items()}, rank_of(stages - 1)
        for row in actions.values():
            row.clear()
        return found

    action = SimpleNamespace(from_str=lambda text: text)  # pyright: ignore
    parts = {"_PipelineScheduleRuntime": SimpleNamespace, "_Action": action, "_add_send_recv": add_send_recv}
    schedules = SimpleNamespace(**parts)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(__version__="9.9"))
    monkeypatch.setitem(sys.modules, "torch.distributed", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "torch.distributed.pipelining", SimpleNamespace(schedules=schedules))
    return schedules


def second_rank(**other: Any) -> SimpleNamespace:
    """The schedule of rank 1 of a pipeline of two stages and micro-batches, not yet loaded."""
    made = {"_stages": [SimpleNamespace(stage_index=1)], "_num_stages": 2, "_n_microbatches": 2, "_loss_fn": None}
    group = {"pp_group_size": 2, "rank": 1, "stage_index_to_group_rank": {}, "pipeline_order": {}}
    return SimpleNamespace(**{**made, **group, **other})


def test_a_schedule_is_put_into_the_runtime(runtime: SimpleNamespace, tmp_path: Path):
    schedule, compute = second_rank(), {0: ["0F0", "0F1"], 1: ["1F0", "1F1"]}
    load(schedule, GOOD)
    assert schedule.pipeline_order == compute
    assert schedule.pipeline_order_with_comms == dict(enumerate(rows_of(GOOD)))
    assert schedule.stage_index_to_group_rank == schedule._stages[0].stage_index_to_group_rank == {0: 0, 1: 1}
    file = tmp_path / "schedule.csv"
    file.write_text("0F0,0F1\n1F0,1F1\n")
    load(schedule, file)
    assert schedule.pipeline_order == compute
    assert schedule.pipeline_order_with_comms == (compute, 1)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"pp_group_size": 3}, "the schedule has 2 ranks, and the group 3 processes"),
        ({"_loss_fn": print}, "a forward-only schedule has no loss"),
        ({"rank": 0}, "rank 0 runs the stages [0] in this order, and was given [1]"),
        ({"_n_microbatches": 3}, "rank 0 lacks 0F2"),
        ({"_num_stages": 3}, "no rank runs stage 2"),
    ],
)
def test_a_schedule_for_others_is_refused(other: dict[str, Any], message: str, runtime: SimpleNamespace):
    with pytest.raises(ValueError, match=re.escape(message)):
        load(second_rank(**other), GOOD)


def test_another_torch_is_named(runtime: SimpleNamespace):
    del runtime._add_send_recv
    with pytest.raises(RuntimeError, match=r"torch 9\.9 lacks _add_send_recv: this was written for torch 2\.13"):
        load(second_rank(), GOOD)
    with pytest.raises(RuntimeError, match="lacks _add_send_recv, _stages"):
        load(SimpleNamespace(**{k: v for k, v in vars(second_rank()).items() if k != "_stages"}), GOOD)


@pytest.mark.torch
def test_torch_reads_and_simulates_what_is_written():
    pytest.importorskip("torch")
    from torch.distributed.pipelining import schedules

    for name in CASES:
        for rows, comms in zip(forms(scheduled(name), 5), (False, True), strict=True):
            actions: Any = {rank: [schedules._Action.from_str(cell) for cell in row] for rank, row in enumerate(rows)}
            assert [[str(a) for a in row] for row in actions.values()] == [list(row) for row in rows]
            rank_of = homes(rows)
            if not comms:
                actions = schedules._add_send_recv(actions, rank_of.__getitem__, len(rank_of))
            steps = schedules._simulate_comms_compute(actions, rank_of.__getitem__, len(rank_of))
            ran = [a for row in steps.values() for a in row if a is not None]
            assert len(ran) == sum(map(len, actions.values()))


@pytest.mark.torch
def test_schedules_run_on_processes(tmp_path: Path):
    """Each case in both forms, in one run of four processes: outputs are those of the model without a pipeline."""
    pytest.importorskip("torch")
    cases: list[dict[str, Any]] = []
    for name, (reads, *_) in CASES.items():
        for form in ("compute-only", "compute-comms"):
            text = emit(scheduled(name), microbatches=5, form=form)
            inputs = sorted({r for row in reads.values() for r in row if r not in reads})
            given = {"inputs": inputs, "operators": reads, "outputs": [list(reads)[-1]]}
            cases.append({"csv": text, "stages": stages_of(scheduled(name)), "microbatches": 5, **given})
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    script = Path(__file__).with_name("gloo_pipelines.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), str(tmp_path / "cases.json"), str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, start_new_session=True, **pipes) as process:
        try:
            out, err = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, err[-4000:]
    differences = json.loads(out)
    assert len(differences) == len(cases)
    assert max(differences) < 1e-5
