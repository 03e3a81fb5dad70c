"""Real runs in one process: accelerators are threads, messages go through queues, collectives through barriers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from queue import Queue
from threading import Barrier, Thread
from typing import TYPE_CHECKING, Any

import pytest
from xdsl.dialects.builtin import IntAttr, StringAttr

from compiler.pipeline import new_context
from compiler.runtime.job import Job, Rows, Settings
from compiler.runtime.prepare import job_of
from dialects.attributes import CostAttr, CostEntry, ScheduleAttr, SlotAttr, ints
from dialects.operators import operator_names
from dialects.programs import ALL_GATHER, COMPUTE, COPY, FREE, RECV, SEND, Instruction
from dialects.structure import find_graph
from frontend import Source, load
from passes.expand_training import ExpandTrainingPass
from passes.lower_to_programs import lower_to_programs
from passes.recompute_activations import RecomputeActivationsPass

if TYPE_CHECKING:
    import torch

    from compiler.runtime.reference import Comparison

_BOARD = """
import "takt/transformer.takt"
accelerator chip { memory = 1 GiB  launch = 0 ns  bandwidth = 10 GB/s  peak bf16 = 1 TFLOP/s  peak f32 = 1 TFLOP/s }
platform board { accelerators = 6 of chip  link bus { latency = 1 ns  bandwidth = 1 GB/s } }
"""


@pytest.fixture(autouse=True)
def one_thread():
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- jobs ------------------------------------------------------------------------------------


def _placed(
    text: str,
    where: Mapping[str, Sequence[int] | Sequence[Sequence[int]]],
    microbatches: int = 4,
    windows: int = 3,
    sharded: Sequence[str] = (),
    optimizer: Any = None,
    tie: Any = "copies",
    recompute: Any = "none",
) -> tuple[Job, dict[int, Rows]]:
    """The job of a model whose operators run one after the other, so long that ``windows`` micro-batches overlap.

    ``where`` has a set, or one for each copy, by the beginnings of the operators' names; a later one counts.
    ``optimizer`` makes a training graph of it, in which gradients ``recompute`` what they read.
    """
    module = load(Source("model.takt", _BOARD + text))
    if optimizer is not None:
        ExpandTrainingPass(optimizer=optimizer, tie=tie).apply(new_context(), module)
        RecomputeActivationsPass(policy=recompute).apply(new_context(), module)
    graph = find_graph(module)
    assert graph is not None
    names = operator_names(graph)
    for start, (op, name) in enumerate(names.items()):
        found = [sets for prefix, sets in where.items() if name.startswith(prefix)][-1]
        copies: Any = [found] if isinstance(found[0], int) else found
        op.cost = CostAttr.from_table({len(copies[0]): CostEntry(1000, op.params.value.data)})
        op.slot = SlotAttr.make(copies, 1000 * start)
        if name in sharded:
            op.sharded = ints([0])
    for step in graph.updates():
        allotment = next(op.slot.allotment.data for op in names if op.group == step.group and op.slot is not None)
        step.cost = CostAttr.from_table({allotment: CostEntry(1000)})
    period = IntAttr(max(1, 1000 * len(names) // windows))
    one = IntAttr(1)
    graph.schedule = ScheduleAttr(
        period, one, one, StringAttr("area"), StringAttr("stages"), StringAttr("by-hand"), one
    )
    graph.level = StringAttr("scheduled")
    lower_to_programs(module, microbatches)
    return job_of(module, Settings(emulate=False, seed=3))


# --- a run in threads ------------------------------------------------------------------------


class _Meeting:
    """Where the threads of a set exchange tensors; all of them come in the same order."""

    def __init__(self, members: Sequence[int]):
        self.members, self.left = members, {}
        self.barrier = Barrier(len(members), timeout=20)

    def exchange(self, accelerator: int, tensor: torch.Tensor) -> list[torch.Tensor]:
        self.left[accelerator] = tensor
        self.barrier.wait()
        found = [self.left[p].clone() for p in self.members]
        self.barrier.wait()
        return found


class Board:
    """All accelerators of a job as threads; ``spoil`` may change what a message brings."""

    def __init__(self, job: Job, spoil: Callable[[Instruction, torch.Tensor], None] = lambda x, tensor: None):
        self.job, self.spoil = job, spoil
        sets = {o.on(i) for o in job.operators for i in range(len(o.turns))}
        sets |= {group for groups in job.groups.values() for group in groups}
        meetings = [*((None, members) for members in sets), *job.tied.items()]
        self.meetings = {(tie, members): _Meeting(members) for tie, members in meetings if len(members) > 1}
        self.messages = {(a, b): Queue() for a in job.accelerators for b in job.accelerators}
        self.failures: list[BaseException] = []
        self.sizes: list[int] = []
        self.left: dict[int, int] = {}

    def run(self, folder: Path, programs: Mapping[int, Rows]) -> Comparison:
        from compiler.runtime.reference import compare

        threads = [Thread(target=self.guarded, args=(folder, p, rows), daemon=True) for p, rows in programs.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        if self.failures:
            raise self.failures[0]
        assert not any(thread.is_alive() for thread in threads)
        assert all(queue.empty() for queue in self.messages.values())
        return compare(folder, self.job)

    def guarded(self, folder: Path, accelerator: int, rows: Rows) -> None:
        try:
            self.work(folder, accelerator, rows)
        except BaseException as failure:
            self.failures.append(failure)
            for meeting in self.meetings.values():
                meeting.barrier.abort()
            for b in self.job.accelerators:
                self.messages[accelerator, b].put(None)

    def work(self, folder: Path, accelerator: int, rows: Rows) -> None:
        from compiler.runtime.backend import Place
        from compiler.runtime.real import RealBackend

        board = self

        class Threaded(RealBackend):
            def add(self, part: torch.Tensor, members: tuple[int, ...], tie: str | None = None) -> torch.Tensor:
                parts = board.meetings[tie, members].exchange(accelerator, part)
                return sum(parts[1:], parts[0])

            def gather(
                self, part: torch.Tensor, sizes: Sequence[int], members: tuple[int, ...], tie: str | None = None
            ) -> list[torch.Tensor]:
                found = board.meetings[tie, members].exchange(accelerator, part)
                assert [len(one) for one in found] == list(sizes)
                return found

        backend = Threaded(Place(self.job, accelerator, {}))
        following = self.job.per_pattern if self.job.step else self.job.microbatches
        for x in map(Instruction._make, rows.tolist()):
            if x.microbatch >= following:
                self.update(backend, accelerator)
                following += self.job.per_pattern
            if x.kind == COMPUTE:
                backend.compute(x)
            elif x.kind == SEND:
                sent = backend.message(x)
                self.sizes.append(sent.numel())
                self.messages[accelerator, x.peer].put(sent.clone())
            elif x.kind == RECV:
                room, brought = backend.landing(x), self.messages[x.peer, accelerator].get(timeout=20)
                assert brought is not None
                room.copy_(brought)
                self.spoil(x, room)
                backend.arrived(x, room)
            elif x.kind == COPY:
                backend.copy(x)
            elif x.kind == ALL_GATHER:
                backend.all_gather(x, self.job.groups[accelerator][x.peer])
            elif x.kind == FREE:
                backend.free(x)
        self.update(backend, accelerator)
        self.left[accelerator] = len(backend.held)
        backend.finish(folder)

    def update(self, backend: Any, accelerator: int) -> None:
        """Between two steps, where no micro-batch of one overlaps with one of the other."""
        for number, update in enumerate(self.job.updates if self.job.step else ()):
            if accelerator in update.on:
                backend.update(number)


@pytest.fixture(scope="session")
def placed() -> Callable[..., tuple[Job, dict[int, Rows]]]:
    """``placed(text, where, microbatches=4)`` → a job and its programs; see :func:`_placed`."""
    return _placed


@pytest.fixture(scope="session")
def threads() -> type[Board]:
    """``threads(job).run(folder, programs)`` → how a run compares with the unpipelined model; see :class:`Board`."""
    return Board
