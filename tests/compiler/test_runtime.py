"""Running programs on processes that sleep, and what is said when one of them fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler.runtime import launch as launching
from compiler.runtime.backend import Place
from compiler.runtime.board import SET, Board, Phase
from compiler.runtime.clock import now
from compiler.runtime.faults import Failure, Faults
from compiler.runtime.job import Job, Operator, Rows, Settings, Transfer, Value, events_file, write_job
from compiler.runtime.launch import launch
from dialects.diagnostics import TaktError
from dialects.programs import ALL_GATHER, COMPUTE, RECV, SEND, Instruction

Prepared = tuple[Job, dict[int, Rows]]
Prepare = Callable[..., Prepared]

UNEQUAL = """
model unequal {
  input x: tensor<8 x 64, bf16>
  a = op(x) time {1: 5ms} output 4 MiB
  b = op(a) time {2: 8ms} output 4 MiB
  c = op(b, a) time {1: 6ms} output 1 MiB
  output c
}
"""

# --- emulated accelerators -------------------------------------------------------------------


class Clock:
    """A clock that only sleeping moves on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.time = 10**9
        monkeypatch.setattr("compiler.runtime.backend.now", lambda: self.time)
        monkeypatch.setattr("compiler.runtime.emulated.sleep_until", self.sleep_until)

    def sleep_until(self, moment: int) -> None:
        self.time = max(self.time, moment)


def emulated(mode: str, accelerator: int, clock: Clock, lanes: int = 1) -> Any:
    """Operator 0 of 4 ms, whose result goes to destinations 1 (in 6 ms) and 2 (in 2 ms), over one link."""
    from compiler.runtime.emulated import EmulatedBackend

    one = Operator("a", "op", {}, 0, 4_000_000, ((0,),), (), (Value("a", (8,), "i8", 8),))
    moves = (Transfer(0, 0, 1, 6_000_000, "node", lanes), Transfer(0, 0, 2, 2_000_000, "node", lanes))
    job = Job("j", "p", mode, 1, 1, 1, (0, 1), (one,), (), (), moves, {}, Settings())  # pyright: ignore
    backend = EmulatedBackend(Place(job, accelerator, {}))
    backend.floor = clock.time
    return backend


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    pytest.importorskip("torch")
    return Clock(monkeypatch)


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
def test_when_what_is_sent_may_be_used(clock: Clock, mode: str, lanes: int, leaves: list[int], idle: int):
    backend = emulated(mode, 0, clock, lanes)
    backend.compute(Instruction(COMPUTE, 0, 0, 0, 0))
    assert clock.time == backend.floor + 4_000_000
    sent = [backend.message(x) for x in (send(1), send(1), send(2), send(1, 1))]
    assert [moment(backend, tensor) for tensor in sent] == leaves
    assert (backend.begin() - backend.floor) / 1e6 == idle


@pytest.mark.torch
@pytest.mark.parametrize(("mode", "ready"), [("overlapped", [3, 3]), ("blocking", [6, 6]), ("buffered", [9, 9])])
def test_when_what_arrives_may_be_used(clock: Clock, mode: str, ready: list[int]):
    import torch

    backend = emulated(mode, 1, clock)
    clock.time += 3_000_000
    token = torch.tensor([clock.time + backend.offset])  # it is there 3 ms after the receiver came
    found = [backend.arrived(Instruction(RECV, 0, 0, 1, 0, 0), token) for _ in range(2)]
    assert [(moment - backend.floor) / 1e6 for moment in found] == ready


@pytest.mark.torch
def test_an_operator_takes_its_whole_time_however_late_it_begins(clock: Clock):
    backend = emulated("overlapped", 0, clock)
    for late in (0, 1_500_000, 700_000):
        clock.time += late
        before = clock.time
        backend.compute(Instruction(COMPUTE, 0, 0, 0, 0))
        assert clock.time == before + 4_000_000


# --- who is to blame -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unequal(prepare: Prepare) -> Prepared:
    return prepare(UNEQUAL, 4, 40, timeout=1.5)


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
    lines = dict.fromkeys(lines, (len(programs[a]), Phase.FINISHED, -1, 10))
    assert str(verdict()).endswith("makes no progress since 10 s after its last instruction")


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


def test_what_does_not_begin_is_started_once_more(tmp_path: Path, unequal: Prepared, monkeypatch: pytest.MonkeyPatch):
    """Here nothing begins the first time, and the second time all ends at once."""
    job, programs = unequal
    write_job(tmp_path, job, programs)
    (tmp_path / "log").touch()
    started = [subprocess.Popen([*command], start_new_session=True) for command in (["sleep", "60"], ["false"])]
    left = list(started)
    monkeypatch.setattr(launching, "_RESTART", 0.1)
    monkeypatch.setattr(launching, "_start", lambda folder: left.pop(0))
    with pytest.raises(TaktError, match=r"what starts the processes of the run ended \(exit code 1\)"):
        launch(tmp_path, job)
    assert [process.returncode for process in started] == [-signal.SIGKILL, 1]
    error = Faults(job, programs).hangs(Board(tmp_path, 4).read(), now() + 10**12)
    assert "before its first instruction" in str(error)


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
def test_an_emulated_run_keeps_order_and_pace(
    tmp_path: Path, prepare: Prepare, check_events: Callable[..., None], monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("torch")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    job, programs = prepare(UNEQUAL, 4, 12, timeout=20)
    write_job(tmp_path, job, programs)
    seen: list[int] = []
    launch(tmp_path, job, on_progress=seen.append)
    events = {p: np.load(events_file(tmp_path, rank)) for rank, p in enumerate(job.accelerators)}
    check_events(job, programs, events, slack=1_000_000)
    last = job.operators[2].turns[0][0]
    ends = events[last]["end"][programs[last][:, 0] == COMPUTE]
    fill = sum(operator.time for operator in job.operators)  # and transfers
    assert fill + 11 * job.period < ends[11] < 3 * (fill + 11 * job.period)
    assert seen[-1] == 12
    assert seen == sorted(set(seen))
    assert not list((tmp_path / "temporary").iterdir())
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
