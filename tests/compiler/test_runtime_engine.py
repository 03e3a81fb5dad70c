"""Jobs, and the engine on threads: whatever takes how long, it keeps the order of programs and of messages."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler.runtime.backend import Backend, Place
from compiler.runtime.board import Board
from compiler.runtime.clock import now
from compiler.runtime.engine import Engine
from compiler.runtime.job import Job, Rows, Settings, Update, read_job, read_program, write_job
from compiler.runtime.messages import Given
from compiler.runtime.prepare import job_of
from dialects.programs import ALL_GATHER, COMPUTE, COPY, FREE, RECV, SEND, UPDATE, Instruction
from passes.lower_to_programs import lower_to_programs

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
    tmp_path: Path, prepare: Prepare, model: str, accelerators: int, transfers: str
):
    job, programs = prepare(model, accelerators, 9, transfers)
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
        self.given: dict[tuple[int, int], list[Given]] = {}
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

    def give(self, what: Given, accelerator: int) -> None:
        given = self.wires.given.setdefault((self.accelerator, accelerator), [])
        self.wires.change(lambda: given.append(what))

    def taken(self, accelerator: int) -> Given:
        given = self.wires.given.setdefault((accelerator, self.accelerator), [])
        self.wires.until(lambda: bool(given))
        return self.wires.change(lambda: given.pop(0))

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
            if x.kind in (RECV, COPY, ALL_GATHER):
                self.wanted[self.key(x)] = self.wanted.get(self.key(x), 0) + 1
        self.computed: list[tuple[int, int]] = []
        self.updated: list[tuple[int, int]] = []
        """Optimizer steps, and how many operators ran before."""

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

    def update(self, number: int) -> None:
        time.sleep(self.random.exponential(0.0003))
        self.updated.append((number, len(self.computed)))

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


@pytest.mark.parametrize(
    ("ahead", "eager", "lazy"), [(0, True, True), (1, False, False), (4, True, True), (4, True, False)]
)
def test_engines_agree_whatever_takes_how_long(
    tmp_path: Path,
    prepare: Prepare,
    build: Callable[..., Any],
    operator: Any,
    check_events: Callable[..., None],
    ahead: int,
    eager: bool,
    lazy: bool,
):
    jobs = [prepare(UNEQUAL, 4, 9), prepare(STATE, 3, 9), prepared_with_copies(build, operator, 12)]
    for seed, (job, programs) in enumerate(jobs):
        job = replace_settings(job, ahead=ahead)
        events, backends = run_threads(tmp_path, job, programs, seed, eager, lazy)
        check_events(job, programs, events)
        for p, rows in programs.items():
            order = [(x.subject, x.microbatch) for x in instructions(rows) if x.kind == COMPUTE]
            assert backends[p].computed == order
            kept = {key for key in backends[p].held if (key[0], key[1]) not in job.outputs}
            assert not kept, "what is no output is freed"


def test_messages_that_do_not_match_are_noticed(tmp_path: Path, prepare: Prepare):
    """The threads of these tests would see it if the engine changed the order of messages."""
    job, programs = prepare(UNEQUAL, 4, 9)
    p, rows = next((p, rows.copy()) for p, rows in programs.items() if (rows[:, 0] == SEND).any())
    first, second = np.flatnonzero((rows[:, 0] == SEND) & (rows[:, 5] == rows[rows[:, 0] == SEND][0, 5]))[:2]
    rows[[first, second], 4] = rows[[second, first], 4]
    with pytest.raises((AssertionError, KeyError, ConnectionError)):
        run_threads(tmp_path, job, {**programs, p: rows}, 0)


def replace_settings(job: Job, **changed: Any) -> Job:
    return replace(job, settings=replace(job.settings, **changed))


def test_paced_micro_batches_enter_a_period_apart(tmp_path: Path, prepare: Prepare):
    job, programs = prepare(UNEQUAL, 4, 5, paced=True)
    events, _ = run_threads(tmp_path, job, programs, 0)
    first = next(v for v, o in enumerate(job.operators) if o.source)
    p = job.operators[first].on(0)[0]
    starts = events[p]["start"][(programs[p][:, 0] == COMPUTE) & (programs[p][:, 1] == first)]
    assert all(t >= i * job.period for i, t in enumerate(starts))
    assert starts[-1] < 5 * job.period


def test_optimizer_steps_wait_for_gradients_of_copies(tmp_path: Path, build: Callable[..., Any], operator: Any):
    operators = [operator("a", [], 2000, [[0]], 0, results=[8]), operator("b", ["a"], 2000, [[1]], 2000)]
    module = build(operators, pattern=2000, accelerators=2, outputs=["b"])
    lower_to_programs(module, 6)
    job, programs = job_of(module, Settings())
    updates = tuple(Update(f"u{p}", f"g{p}", (p,), (0, 1), 10, 0, (p, 1 - p)) for p in range(2))
    job = replace(job, updates=updates, step=True, per_pattern=2, pattern=4000)
    ends: dict[int, list[int]] = {}
    for p, rows in programs.items():
        ends[p] = [k for k, x in enumerate(instructions(rows)) if x.kind == COMPUTE and x.microbatch % 2]
        update = [(UPDATE, p, 0, 0, rows[k, 4], 0, 0, 0) for k in ends[p]]
        programs[p] = np.insert(rows, [k + 1 for k in ends[p]], update, axis=0)
    for seed in range(5):
        events, backends = run_threads(tmp_path, job, programs, seed)
        for p, other in ((0, 1), (1, 0)):
            assert backends[p].updated == [(p, 2), (p, 4), (p, 6)]
            started = events[p]["start"][programs[p][:, 0] == UPDATE]
            last = (programs[other][:, 0] == COMPUTE) & (programs[other][:, 4] % 2 == 1)
            assert (started >= events[other]["end"][last]).all()
