"""One process of a run: ``torchrun ... -m compiler.runtime.worker FOLDER`` with as many processes as the job has ranks.

On several machines the folder is one that all of them see, and their clocks should agree.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist

from compiler.runtime.backend import Backend, Place
from compiler.runtime.board import Board, Phase
from compiler.runtime.clock import now, wall_offset
from compiler.runtime.engine import Engine
from compiler.runtime.job import Job, events_file, failure_file, read_job, read_program, write_whole
from compiler.runtime.messages import Given
from compiler.runtime.parent import die_with_parent
from dialects.programs import SEND

T = TypeVar("T")

_LINGER = 3.0
"""Seconds that a rank stays after it has failed: others must not take its end for the cause."""

_COUNTDOWN = 20_000_000
"""From the moment that all are ready to the common start, ns."""


def run_rank(folder: str, parent: int, together: bool = False) -> None:
    """Be the rank that the environment of torchrun says, in a process that ``parent`` started.

    ``together``: all ranks divide from one process. They wait for the last of them before they do anything, as the
    threads of that process begin to answer those that ask: a lock that one of them holds while the process divides,
    as for looking up a name, is never given back in the copy.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    die_with_parent(parent)
    rank = int(os.environ["RANK"])
    worker = _Worker(Path(folder), rank)
    try:
        worker.run(together)
    except BaseException as error:
        worker.report(error)
        time.sleep(_LINGER)
        os._exit(1)


class _Worker:
    def __init__(self, folder: Path, rank: int):
        self.folder, self.rank = folder, rank
        self.engine: Engine | None = None

    def run(self, together: bool) -> None:
        job = read_job(self.folder)
        if (size := int(os.environ["WORLD_SIZE"])) != len(job.accelerators):
            raise ValueError(f"{size} processes were started for {len(job.accelerators)} accelerators")
        board = Board(self.folder, len(job.accelerators))
        board.begin(self.rank)
        if together:
            board.gather()
        accelerator = job.accelerators[self.rank]
        device = _join(job)
        place = Place(job, accelerator, _groups(job), device, _ties(job))
        transport = TorchTransport(place)
        rows = read_program(self.folder, accelerator)
        self.engine = Engine(job, accelerator, rows, _backend(place), transport, board)
        transport.connect(self.folder)
        np.save(events_file(self.folder, self.rank), self.engine.run(_common_start(device)))
        self.engine.backend.finish(self.folder)
        board.write(self.rank, len(rows), Phase.FINISHED)
        _lost(dist.barrier)  # whoever leaves closes its connections
        dist.destroy_process_group()

    def report(self, error: BaseException) -> None:
        """Leave why this rank fails."""
        index = None if self.engine is None or self.engine.at < 0 else self.engine.at
        message = f"{type(error).__name__}: {_short(str(error))}" if str(error) else type(error).__name__
        # A backend may exchange tensors itself, and see the end of another rank as torch reports it.
        lost = isinstance(error, ConnectionError | dist.DistError) or "gloo" in str(error)
        text = json.dumps({"time": time.time(), "message": message, "index": index, "lost": lost})
        write_whole(failure_file(self.folder, self.rank), text)


class TorchTransport:
    """Messages and meetings over ``torch.distributed``.

    NCCL matches the messages of two ranks by their order in a group, and runs the operations of one group one after the
    other: there is a group for messages to higher ranks and one for those to lower ones, so that a receive that is
    posted ahead keeps no send of the same two ranks from leaving.
    """

    def __init__(self, place: Place):
        self.place = place
        everyone = list(range(len(place.job.accelerators)))
        self.rank_of = place.job.rank_of
        self.up, self.down = _group(everyone), _group(everyone)
        self.handed = _group(everyone) if self._ways() else None
        """Another group for what is said of gradients, which has no place in the order of messages."""
        self.giving: list[dist.Work | None] = []
        self.offset = wall_offset()
        self.token = torch.zeros(1, device=place.device)

    def connect(self, folder: Path) -> None:
        """A message along every way that the programs use, in one order everywhere.

        The first message between two ranks makes them wait for each other; later none does.
        """
        ways = {
            (self.rank_of[p], self.rank_of[int(q)])
            for p in self.place.job.accelerators
            for rows in (read_program(folder, p),)
            for q in np.unique(rows[rows[:, 0] == SEND, 5])
        }
        for source, target in sorted(ways):
            if self.place.rank in (source, target):
                move, peer = (self.send, target) if self.place.rank == source else (self.receive, source)
                move(self.token, self.place.job.accelerators[peer]).wait()
        for source, target in self._ways():
            if self.place.rank == source:
                self.give(Given(-1, -1, -1), self.place.job.accelerators[target])
            elif self.place.rank == target:
                self.taken(self.place.job.accelerators[source])

    def _ways(self) -> list[tuple[int, int]]:
        """The ranks that give gradients, and those that they give them to."""
        job = self.place.job
        if not (job.step and job.settings.emulate):
            return []
        giving = [(giver, p) for n, u in enumerate(job.updates) for giver in job.givers(n).values() for p in u.on]
        return sorted({(self.rank_of[giver], self.rank_of[p]) for giver, p in giving if giver != p})

    def send(self, tensor: torch.Tensor, accelerator: int) -> _Work:
        peer = self.rank_of[accelerator]
        group = self.up if peer > self.place.rank else self.down
        return _Work(_lost(lambda: dist.isend(tensor, peer, group=group)), self.place.device)

    def receive(self, tensor: torch.Tensor, accelerator: int) -> _Work:
        peer = self.rank_of[accelerator]
        group = self.down if peer > self.place.rank else self.up
        return _Work(_lost(lambda: dist.irecv(tensor, peer, group=group)), self.place.device)

    def meet(self, among: tuple[int, ...], moment: int) -> int:
        latest = torch.tensor([moment + self.offset], device=self.place.device)
        _lost(lambda: dist.all_reduce(latest, dist.ReduceOp.MAX, group=self.place.groups[among]))
        return int(latest.item()) - self.offset

    def give(self, what: Given, accelerator: int) -> None:
        tensor, peer = torch.tensor(what, device=self.place.device), self.rank_of[accelerator]
        self.giving.append(_lost(lambda: dist.isend(tensor, peer, group=self.handed)))

    def taken(self, accelerator: int) -> Given:
        tensor, peer = torch.zeros(3, dtype=torch.int64, device=self.place.device), self.rank_of[accelerator]
        _Work(_lost(lambda: dist.irecv(tensor, peer, group=self.handed)), self.place.device).wait()
        return Given._make(tensor.tolist())


class _Work:
    def __init__(self, work: dist.Work | None, device: str):
        assert work is not None
        self.work, self.device = work, device

    def wait(self) -> None:
        """NCCL's own wait keeps the device waiting, not this process."""
        _lost(self.work.wait)
        if self.device != "cpu":
            torch.cuda.current_stream().synchronize()


def _lost(act: Callable[[], T]) -> T:
    """What fails between ranks is the end of another rank, as a rule."""
    try:
        return act()
    except RuntimeError as error:
        raise ConnectionError(_short(str(error))) from error


def _short(message: str) -> str:
    """Without places in the sources of torch and advice."""
    first = (message.strip().splitlines() or [""])[0]
    return re.sub(r"^\[[^]]*\] *", "", first).partition(". This is typically")[0]


def _join(job: Job) -> str:
    """Join the process group of all ranks; returns the device to work on."""
    settings, local = job.settings, int(os.environ.get("LOCAL_WORLD_SIZE", len(job.accelerators)))
    torch.set_num_threads(1)
    gpus = not settings.emulate and dist.is_nccl_available() and torch.cuda.device_count() >= local
    device = f"cuda:{os.environ['LOCAL_RANK']}" if gpus else "cpu"
    if gpus:
        torch.cuda.set_device(device)
    # The launcher notices a rank that hangs. Without it, as on several machines, this ends the run.
    patience = timedelta(seconds=180 + 2 * settings.timeout)
    _lost(lambda: dist.init_process_group("nccl" if gpus else "gloo", timeout=patience))
    return device


def _groups(job: Job) -> Mapping[tuple[int, ...], dist.ProcessGroup]:
    """A group for each set of several accelerators, made in the same order by all ranks."""
    sets = {turn for operator in job.operators for turn in operator.turns}
    sets |= {group for groups in job.groups.values() for group in groups}
    ranks = job.rank_of
    return {s: _group([ranks[p] for p in s]) for s in sorted(sets) if len(s) > 1}


def _ties(job: Job) -> Mapping[str, dist.ProcessGroup]:
    """A group for each tie whose gradients are summed; real runs do that beside all else."""
    ties = job.tied if job.step and not job.settings.emulate else {}
    ranks = job.rank_of
    return {tie: _group([ranks[p] for p in among]) for tie, among in sorted(ties.items()) if len(among) > 1}


def _group(ranks: list[int]) -> dist.ProcessGroup:
    group = _lost(lambda: dist.new_group(ranks))
    return cast(dist.ProcessGroup, group)


def _backend(place: Place) -> Backend:
    if place.job.settings.emulate:
        from compiler.runtime.emulated import EmulatedBackend

        return EmulatedBackend(place)
    from compiler.runtime.real import RealBackend

    return RealBackend(place)


def _common_start(device: str) -> int:
    """A moment a little later than now, the same for all ranks."""
    _lost(dist.barrier)
    offset = wall_offset()
    moment = torch.tensor([now() + offset + _COUNTDOWN], device=device)
    _lost(lambda: dist.broadcast(moment, 0))
    return int(moment.item()) - offset


if __name__ == "__main__":
    run_rank(sys.argv[1], os.getppid())
