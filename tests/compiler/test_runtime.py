"""Running programs: jobs, the engine on threads and on real processes, and what is said when a rank fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler import compile_model
from compiler.runtime import launch as launching
from compiler.runtime.backend import Backend, Place
from compiler.runtime.board import SET, Board, Phase
from compiler.runtime.clock import now
from compiler.runtime.engine import Engine
from compiler.runtime.faults import Failure, Faults
from compiler.runtime.job import (
    Job,
    Operator,
    Rows,
    Settings,
    Transfer,
    Value,
    events_file,
    read_job,
    read_program,
    write_job,
)
from compiler.runtime.launch import launch
from compiler.runtime.prepare import job_of
from dialects.diagnostics import TaktError
from dialects.programs import ALL_GATHER, COMPUTE, FREE, RECV, SEND, Instruction
from frontend.source import Source
from passes.lower_to_programs import lower_to_programs

PLATFORM = """
accelerator small {{ memory = 1 GiB  bandwidth = 10 GB/s  launch = 1 us  peak bf16 = 1 TFLOP/s }}
platform few {{
  accelerators = {accelerators} of small
  transfers = {transfers}
  link node {{ latency = 100 us  bandwidth = 10 GB/s }}
}}
"""

UNEQUAL = """
model unequal {
  input x: tensor<8 x 64, bf16>
  a = op(x) time {1: 5ms} output 4 MiB
  b = op(a) time {2: 8ms} output 4 MiB
  c = op(b, a) time {1: 6ms} output 1 MiB
  output c
}
"""

STATE = """
model cached {
  input x: tensor<8 x 64, bf16>
  state kept: tensor<1024, i8>
  a = op(x) time {1: 5ms} output 1 KiB
  b = op(a, kept) time {1: 5ms} output 1 KiB
  c = op(b) time {1: 4ms} output 1 KiB
  next kept = c
  output c
}
"""

LAYERS = """
model layers {
  input x: tensor<64 x 256, bf16>
  repeat 4 carry x { x = layer(x) }
  output x
}
block layer(x: tensor<s x d, t>) -> y {
  h = linear(x, features = 4 * d)
  y = linear(h, features = d, split = "row")
}
"""

Prepared = tuple[Job, dict[int, Rows]]


def prepared(
    model: str, accelerators: int, microbatches: int, transfers: str = "overlapped", **settings: Any
) -> Prepared:
    text = model + PLATFORM.format(accelerators=accelerators, transfers=transfers)
    module = compile_model(Source("model.takt", text))
    lower_to_programs(module, microbatches)
    return job_of(module, Settings(**settings))


def prepared_with_copies(build: Callable[..., Any], operator: Any, microbatches: int) -> Prepared:
    """Copies, and a value cut into pieces that its readers gather."""
    from xdsl.dialects.builtin import IntAttr, StringAttr

    from dialects.links import LinkAttr

    link = LinkAttr(StringAttr("node"), IntAttr(8), IntAttr(0), IntAttr(10**9))
    operators = [
        operator("a", [], 2000, [[0]], 0, results=[8192]),
        operator("b", ["a"], 20000, [[1, 2], [3, 4]], 20000, results=[4096], sharded=[0]),
        operator("c", ["b"], 4000, [[5]], 50000, results=[16]),
    ]
    moves = [("a", [[1, 2], [3, 4]], "node", 2000, 10000), ("b", [[5]], "node", 41000, 8192)]
    module = build(operators, pattern=12000, accelerators=8, outputs=["c"], links=[link], moves=moves)
    lower_to_programs(module, microbatches)
    return job_of(module, Settings())


# --- jobs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "accelerators", "transfers"),
    [(UNEQUAL, 4, "overlapped"), (UNEQUAL, 4, "buffered"), (STATE, 3, "overlapped"), (LAYERS, 4, "blocking")],
)
def test_a_job_is_read_back_and_knows_all_that_programs_name(
    tmp_path: Path, model: str, accelerators: int, transfers: str
):
    job, programs = prepared(model, accelerators, 9, transfers)
    write_job(tmp_path, job, programs)
    assert read_job(tmp_path) == job
    assert all((read_program(tmp_path, p) == rows).all() for p, rows in programs.items())
    check_names(job, programs)


def test_a_job_with_copies(tmp_path: Path, build: Callable[..., Any], operator: Any):
    job, programs = prepared_with_copies(build, operator, 12)
    write_job(tmp_path, job, programs)
    assert read_job(tmp_path) == job
    check_names(job, programs)
    assert {x.kind for rows in programs.values() for x in instructions(rows)} >= {SEND, RECV, ALL_GATHER}


def instructions(rows: Rows) -> list[Instruction]:
    return [Instruction._make(row) for row in rows.tolist()]


def check_names(job: Job, programs: Mapping[int, Rows]) -> None:
    """Every operator, result and destination of the programs is one of the job, on the accelerators it says."""
    seen = 0
    for p, rows in programs.items():
        for x in instructions(rows):
            if x.subject < 0:
                assert x.kind == FREE
                assert job.inputs[-1 - x.subject]
                continue
            operator = job.operators[x.subject]
            if x.kind == COMPUTE:
                assert p in operator.on(x.microbatch)
            elif x.destination:
                turns = operator.results[x.result].destinations[x.destination - 1]
                assert (x.peer if x.kind == SEND else p) in turns[x.microbatch % len(turns)]
                seen += 1
            else:
                assert operator.results[x.result]
                assert p in operator.on(x.microbatch)
    assert seen
    read = {(r.subject, r.result, r.destination) for o in job.operators for r in o.reads if r.destination}
    assert read == {
        (v, r, 1 + d)
        for v, o in enumerate(job.operators)
        for r, x in enumerate(o.results)
        for d in range(len(x.destinations))
    }


# --- the engine on threads -------------------------------------------------------------------


class Wires:
    """Carries payloads between threads in order; a send has left when its receive was posted."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.sent: dict[tuple[int, int], list[Any]] = {}
        self.posted: dict[tuple[int, int], int] = {}
        self.met: dict[tuple[Any, ...], list[int]] = {}
        self.broken = False

    def until(self, holds: Callable[[], bool]) -> None:
        with self.changed:
            if not self.changed.wait_for(lambda: holds() or self.broken, 10) or self.broken:
                raise ConnectionError("nobody came")

    def change(self, act: Callable[[], Any]) -> Any:
        with self.changed:
            found = act()
            self.changed.notify_all()
            return found


class Waits:
    def __init__(self, wait: Callable[[], None]):
        self.wait = wait


class Threaded:
    """The transport of one accelerator."""

    def __init__(self, wires: Wires, accelerator: int):
        self.wires, self.accelerator = wires, accelerator
        self.meetings: dict[tuple[int, ...], int] = {}

    def send(self, tensor: Any, accelerator: int) -> Waits:
        way = (self.accelerator, accelerator)
        queue = self.wires.sent.setdefault(way, [])
        number = self.wires.change(lambda: queue.append(tensor) or len(queue))
        return Waits(lambda: self.wires.until(lambda: self.wires.posted.get(way, 0) >= number))

    def receive(self, tensor: Any, accelerator: int) -> Waits:
        way = (accelerator, self.accelerator)
        number = self.wires.change(
            lambda: self.wires.posted.update({way: self.wires.posted.get(way, 0) + 1}) or self.wires.posted[way]
        )

        def wait() -> None:
            self.wires.until(lambda: len(self.wires.sent.get(way, ())) >= number)
            tensor.append(self.wires.sent[way][number - 1])

        return Waits(wait)

    def meet(self, among: tuple[int, ...], moment: int) -> int:
        self.meetings[among] = self.meetings.get(among, 0) + 1
        here = self.wires.met.setdefault((among, self.meetings[among]), [])
        self.wires.change(lambda: here.append(moment))
        self.wires.until(lambda: len(here) == len(among))
        return max(here)


class Checking(Backend):
    """Holds buffers by name, and is slow at random."""

    def __init__(self, place: Place, program: Sequence[Instruction], seed: int, eager: bool, lazy: bool):
        super().__init__(place)
        self.eager, self.lazy = eager, lazy
        self.random = np.random.default_rng([seed, place.accelerator])
        self.held: dict[tuple[int, ...], int] = {}
        self.wanted: dict[tuple[int, ...], int] = {}
        for x in program:
            if x.kind in (RECV, ALL_GATHER) or x.kind == 3:
                self.wanted[self.key(x)] = self.wanted.get(self.key(x), 0) + 1
        self.computed: list[tuple[int, int]] = []

    def key(self, x: Instruction) -> tuple[int, ...]:
        return (x.subject, x.result, x.destination, x.microbatch)

    def put(self, key: tuple[int, ...]) -> None:
        self.held[key] = self.held.get(key, 0) + 1

    def message(self, x: Instruction) -> Any:
        assert (x.subject, x.result, 0, x.microbatch) in self.held
        return (self.key(x), x.begin, x.end)

    def landing(self, x: Instruction) -> Any:
        return []

    def arrived(self, x: Instruction, tensor: Any) -> int:
        assert tensor == [(self.key(x), x.begin, x.end)]
        self.put(self.key(x))
        return now()

    def compute(self, x: Instruction) -> None:
        operator = self.place.job.operators[x.subject]
        for read in operator.reads:
            if read.subject >= 0 and x.microbatch >= read.distance:
                key = (read.subject, read.result, read.destination, x.microbatch - read.distance)
                assert self.held[key] == self.wanted.get(key, 1)
        time.sleep(self.random.exponential(0.0003))
        self.computed.append((x.subject, x.microbatch))
        for result in range(len(operator.results)):
            self.put((x.subject, result, 0, x.microbatch))

    def copy(self, x: Instruction) -> None:
        self.put(self.key(x))

    def all_gather(self, x: Instruction, among: tuple[int, ...]) -> None:
        assert self.held[self.key(x)] == self.wanted[self.key(x)] - 1
        self.put(self.key(x))

    def free(self, x: Instruction) -> None:
        assert x.subject < 0 or self.held.pop(self.key(x)) == self.wanted.get(self.key(x), 1)


def run_threads(folder: Path, job: Job, programs: Mapping[int, Rows], seed: int, eager: bool = True, lazy: bool = True):
    """All engines of a job; returns their events and backends by accelerator."""
    wires, board, start = Wires(), Board.create(folder, len(job.accelerators)), now()
    backends = {p: Checking(Place(job, p, {}), instructions(rows), seed, eager, lazy) for p, rows in programs.items()}
    events: dict[int, Any] = {}
    errors: list[BaseException] = []

    def run(p: int) -> None:
        try:
            events[p] = Engine(job, p, programs[p], backends[p], Threaded(wires, p), board).run(start)
        except BaseException as error:
            errors.append(error)
            wires.change(lambda: setattr(wires, "broken", True))

    threads = [threading.Thread(target=run, args=(p,), daemon=True) for p in programs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    if errors:
        raise errors[0]
    return events, backends


def check_events(job: Job, programs: Mapping[int, Rows], events: Mapping[int, Any], slack: int = 0) -> None:
    """Nothing on an accelerator overlaps, and no operator begins before what it reads has ended where it comes from."""
    ended: dict[tuple[int, int, int], int] = {}
    for p, rows in programs.items():
        mine = events[p][rows[:, 0] == COMPUTE]
        assert (events[p]["arrive"] <= events[p]["start"]).all()
        assert (events[p]["start"] <= events[p]["end"]).all()
        assert (mine["start"][1:] >= mine["end"][:-1]).all()
        assert (events[p]["index"] == np.arange(len(rows))).all()
        assert (events[p]["end"] > 0).all()
        computed = rows[rows[:, 0] == COMPUTE].tolist()
        ended |= {(p, row[1], row[4]): end for row, end in zip(computed, mine["end"].tolist(), strict=True)}
    for p, rows in programs.items():
        senders: dict[tuple[int, ...], list[int]] = {}
        for x in instructions(rows):
            if x.kind == RECV:
                senders.setdefault((*x.buffer, x.microbatch), []).append(x.peer)
        for x, event in zip(instructions(rows), events[p], strict=True):
            for read in job.operators[x.subject].reads if x.kind == COMPUTE else ():
                i = x.microbatch - read.distance
                if read.subject >= 0 and i >= 0:
                    key = (read.subject, read.result, read.destination, i)
                    for q in senders.get(key, [p]):
                        assert event["start"] >= ended[q, read.subject, i] - slack


@pytest.mark.parametrize(
    ("ahead", "eager", "lazy"), [(0, True, True), (1, False, False), (4, True, True), (4, True, False)]
)
def test_engines_agree_whatever_takes_how_long(
    tmp_path: Path, build: Callable[..., Any], operator: Any, ahead: int, eager: bool, lazy: bool
):
    jobs = [prepared(UNEQUAL, 4, 9), prepared(STATE, 3, 9), prepared_with_copies(build, operator, 12)]
    for seed, (job, programs) in enumerate(jobs):
        job = replace_settings(job, ahead=ahead)
        events, backends = run_threads(tmp_path, job, programs, seed, eager, lazy)
        check_events(job, programs, events)
        for p, rows in programs.items():
            order = [(x.subject, x.microbatch) for x in instructions(rows) if x.kind == COMPUTE]
            assert backends[p].computed == order
            kept = {key for key in backends[p].held if (key[0], key[1]) not in job.outputs}
            assert not kept, "what is no output is freed"


def test_messages_that_do_not_match_are_noticed(tmp_path: Path):
    """The threads of these tests would see it if the engine changed the order of messages."""
    job, programs = prepared(UNEQUAL, 4, 9)
    p, rows = next((p, rows.copy()) for p, rows in programs.items() if (rows[:, 0] == SEND).any())
    first, second = np.flatnonzero((rows[:, 0] == SEND) & (rows[:, 5] == rows[rows[:, 0] == SEND][0, 5]))[:2]
    rows[[first, second], 4] = rows[[second, first], 4]
    with pytest.raises((AssertionError, KeyError, ConnectionError)):
        run_threads(tmp_path, job, {**programs, p: rows}, 0)


def replace_settings(job: Job, **changed: Any) -> Job:
    return replace(job, settings=replace(job.settings, **changed))


def test_paced_micro_batches_enter_a_period_apart(tmp_path: Path):
    job, programs = prepared(UNEQUAL, 4, 5, paced=True)
    events, _ = run_threads(tmp_path, job, programs, 0)
    first = next(v for v, o in enumerate(job.operators) if o.source)
    p = job.operators[first].on(0)[0]
    starts = events[p]["start"][(programs[p][:, 0] == COMPUTE) & (programs[p][:, 1] == first)]
    assert all(t >= i * job.period for i, t in enumerate(starts))
    assert starts[-1] < 5 * job.period


# --- emulated accelerators -------------------------------------------------------------------


def emulated(mode: str, accelerator: int, lanes: int = 1, floor: int = 0) -> Any:
    """Operator 0 of 4 ms, whose result goes to destinations 1 (in 6 ms) and 2 (in 2 ms), over one link."""
    pytest.importorskip("torch")
    from compiler.runtime.emulated import EmulatedBackend

    one = Operator("a", "op", {}, 0, 4_000_000, ((0,),), (), (Value("a", (8,), "i8", 8),))
    moves = (Transfer(0, 0, 1, 6_000_000, "node", lanes), Transfer(0, 0, 2, 2_000_000, "node", lanes))
    job = Job("j", "p", mode, 1, 1, 1, (0, 1), (one,), (), (), moves, {}, Settings())  # pyright: ignore
    backend = EmulatedBackend(Place(job, accelerator, {}))
    backend.floor = floor or now()
    return backend


def send(destination: int, microbatch: int = 0) -> Instruction:
    return Instruction(SEND, 0, 0, destination, microbatch, 1)


def moment(backend: Any, tensor: Any) -> float:
    """When a token may be used, in ms after the floor."""
    return round((int(tensor.item()) - backend.offset - backend.floor) / 1e6, 3)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("mode", "lanes", "leaves", "idle"),
    [
        # After 4 ms of computing: one transfer after the other, both at once, ...
        ("overlapped", 1, [10, 10, 12, 18], 4),
        ("overlapped", 2, [10, 10, 6, 12], 4),
        # ... the sender standing still, and the sender copying once for both, and once for the next micro-batch.
        ("blocking", 1, [10, 10, 12, 18], 18),
        ("buffered", 1, [10, 10, 10, 16], 16),
    ],
)
def test_when_what_is_sent_may_be_used(mode: str, lanes: int, leaves: list[int], idle: int):
    backend = emulated(mode, 0, lanes)
    backend.compute(Instruction(COMPUTE, 0, 0, 0, 0))
    assert now() >= backend.floor + 4_000_000
    sent = [backend.message(x) for x in (send(1), send(1), send(2), send(1, 1))]
    assert [moment(backend, tensor) for tensor in sent] == leaves
    assert (backend.begin() - backend.floor) / 1e6 == idle


@pytest.mark.torch
@pytest.mark.parametrize(("mode", "ready"), [("overlapped", [3, 3]), ("blocking", [6, 6]), ("buffered", [9, 9])])
def test_when_what_arrives_may_be_used(mode: str, ready: list[int]):
    import torch

    backend = emulated(mode, 1)
    token = torch.tensor([backend.floor + 3_000_000 + backend.offset])  # it left 3 ms later
    found = [backend.arrived(Instruction(RECV, 0, 0, 1, 0, 0), token) for _ in range(2)]
    assert [(moment - backend.floor) / 1e6 for moment in found] == ready


# --- who is to blame -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unequal() -> Prepared:
    return prepared(UNEQUAL, 4, 40, timeout=1.5)


def board_of(folder: Path, *lines: tuple[int, Phase, int, float]) -> Any:
    """States by index, phase, whom they wait for, and how many seconds ago."""
    board = Board.create(folder, len(lines))
    for rank, (index, phase, peer, ago) in enumerate(lines):
        board.states[rank] = (2**30, index, phase, now() - int(ago * 1e9), peer)
    return board.read()


def test_of_ranks_that_wait_the_one_they_wait_for_is_named(tmp_path: Path, unequal: Prepared):
    job, programs = unequal
    faults = Faults(job, programs)
    on_b = job.operators[1].turns[0]
    a, c = job.operators[0].turns[0][0], job.operators[2].turns[0][0]
    at = {p: int(np.flatnonzero((programs[p][:, 0] == COMPUTE) & (programs[p][:, 4] == 3))[0]) for p in programs}
    lines: dict[int, tuple[int, Phase, int, float]] = {
        a: (at[a], Phase.WAITING, on_b[0], 30),
        on_b[0]: (at[on_b[0]], Phase.WAITING, SET, 20),
        on_b[1]: (at[on_b[1]], Phase.WORKING, -1, 25),
        c: (at[c], Phase.WAITING, on_b[0], 10),
    }

    def verdict() -> str | None:
        error = faults.hangs(board_of(tmp_path, *(lines[p] for p in job.accelerators)), now())
        return None if error is None else str(error)

    rank = job.rank_of[on_b[1]]
    assert str(verdict()).startswith(
        f"rank {rank} (accelerator {on_b[1]}) makes no progress since 25 s at 'compute b of micro-batch 3', instr"
    )
    lines[on_b[1]] = (at[on_b[1]], Phase.WORKING, -1, 0.1)
    assert verdict() is None, "others may wait for long"
    lines[on_b[1]] = (at[on_b[1]] - 1, Phase.WAITING, a, 25)
    assert "makes no progress" in str(verdict()), "they wait in a circle"
    lines[on_b[1]] = (-1, Phase.STARTING, -1, 60)
    assert verdict() is None, "starting may take longer"


def test_who_is_gone_without_a_word_comes_first(tmp_path: Path, unequal: Prepared):
    job, programs = unequal
    states = board_of(tmp_path, *[(2, Phase.WORKING, -1, 0)] * 4)
    faults = Faults(job, programs)
    reported = [Failure(1, 5.0, "ValueError: no", 0, False), Failure(0, 4.0, "ConnectionError: gone", 3, True)]
    assert str(faults.died(states, {3: -9}, reported)).startswith("rank 3 (accelerator 3) died at '")
    assert "(SIGKILL)" in str(faults.died(states, {3: -9}, reported))
    assert "(exit code 7)" in str(faults.died(states, {3: 7}, []))
    assert "rank 1 (accelerator 1) failed at" in str(faults.died(states, {0: 1}, reported))
    assert faults.died(states, {}, []) is None


def test_torch_is_asked_for(tmp_path: Path, unequal: Prepared, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(launching, "find_spec", lambda name: None)
    with pytest.raises(TaktError) as raised:
        launch(tmp_path, unequal[0])
    assert raised.value.diagnostics[0].hint == "pip install 'taktc[torch]'"


# --- real processes --------------------------------------------------------------------------


def gone(pids: Sequence[int]) -> bool:
    """Whether processes have ended; one that nobody has waited for is as good as gone."""

    def ended(pid: int) -> bool:
        try:
            os.kill(pid, 0)
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except (ProcessLookupError, FileNotFoundError):
            return True

    return all(map(ended, pids))


def pids(folder: Path, ranks: int) -> list[int]:
    return Board(folder, ranks).read()["pid"].tolist()


def stopped_by(folder: Path, prepared: Prepared, act: Callable[[list[int]], None]) -> str:
    """What is said when something happens to processes after the first micro-batch; none of them is left."""
    pytest.importorskip("torch")
    job, programs = prepared
    write_job(folder, job, programs)
    ranks, acted = len(job.accelerators), list[int]()

    def on_progress(done: int) -> None:
        if done and not acted:
            acted.append(done)
            act(pids(folder, ranks))

    with pytest.raises(TaktError) as raised:
        launch(folder, job, on_progress=on_progress)
    assert gone(pids(folder, ranks))
    return str(raised.value)


@pytest.mark.torch
def test_an_emulated_run_keeps_order_and_pace(tmp_path: Path):
    pytest.importorskip("torch")
    job, programs = prepared(UNEQUAL, 4, 12, timeout=20)
    write_job(tmp_path, job, programs)
    seen: list[int] = []
    launch(tmp_path, job, on_progress=seen.append)
    events = {p: np.load(events_file(tmp_path, rank)) for rank, p in enumerate(job.accelerators)}
    check_events(job, programs, events, slack=1_000_000)
    # The emulated accelerators may make up for delays of their host, but never be ahead.
    last = job.operators[2].turns[0][0]
    ends = events[last]["end"][programs[last][:, 0] == COMPUTE]
    fill = sum(operator.time for operator in job.operators)  # and transfers
    assert fill + 11 * job.period < ends[11] < 3 * (fill + 11 * job.period)
    assert seen[-1] == 12
    assert seen == sorted(set(seen))
    assert gone(pids(tmp_path, 4))


@pytest.mark.torch
def test_a_rank_that_is_killed_is_named(tmp_path: Path, unequal: Prepared):
    message = stopped_by(tmp_path, unequal, lambda pids: os.kill(pids[2], signal.SIGKILL))
    assert message.startswith("rank 2 (accelerator 2) died at '")
    assert message.endswith("(SIGKILL)")
    assert f"of {len(unequal[1][2])}" in message


@pytest.mark.torch
def test_a_rank_that_is_stopped_is_named(tmp_path: Path, unequal: Prepared):
    message = stopped_by(tmp_path, unequal, lambda pids: os.kill(pids[1], signal.SIGSTOP))
    assert message.startswith("rank 1 (accelerator 1) makes no progress since ")


@pytest.mark.torch
def test_a_rank_that_fails_says_why(tmp_path: Path, unequal: Prepared):
    job, programs = unequal
    p = job.operators[1].turns[0][0]
    rows = programs[p]
    at = int(np.flatnonzero((rows[:, 0] == COMPUTE) & (rows[:, 4] == 2))[0])
    (read,) = job.operators[1].reads
    wrong = [[ALL_GATHER, read.subject, read.result, read.destination, 2, 9, 0, 0]]  # there is no group 9
    changed = {**programs, p: np.concatenate([rows[:at], wrong, rows[at:]])}
    message = stopped_by(tmp_path, (job, changed), lambda pids: None)
    rank = job.rank_of[p]
    assert message.startswith(
        f"rank {rank} (accelerator {p}) failed at 'compute b of micro-batch 2', instruction {at + 2} "
    )
    assert message.endswith("IndexError: tuple index out of range")


@pytest.mark.torch
def test_ranks_end_with_their_launcher(tmp_path: Path, unequal: Prepared):
    pytest.importorskip("torch")
    job, programs = unequal
    write_job(tmp_path, job, programs)
    code = (
        "import sys; from pathlib import Path; from compiler.runtime.job import read_job;"
        "from compiler.runtime.launch import launch; f = Path(sys.argv[1]);"
        "launch(f, read_job(f), on_progress=lambda n: n and print(n, flush=True))"
    )
    path = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path}) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip()
        os.kill(pids(tmp_path, 4)[0], signal.SIGSTOP)
        process.kill()
    deadline = time.monotonic() + 10
    while not gone(pids(tmp_path, 4)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gone(pids(tmp_path, 4))
