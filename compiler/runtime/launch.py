"""Starts the processes of a run, watches them, and leaves none behind."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import DEVNULL, STDOUT, Popen

import numpy as np

from compiler.runtime.board import Board, Phase, States
from compiler.runtime.clock import now
from compiler.runtime.faults import Faults, failures, how
from compiler.runtime.job import Job, events_file, exits_file, read_program
from dialects.diagnostics import TaktError

_POLL = 0.05
_GRACE = 1.0
"""Seconds from the first failure that a rank reports until the run is ended: another may turn out to be the cause."""

_RESTART = 30.0
"""Seconds after which processes of which none has come to its first instruction are started once more: a process that
divides while a thread of it holds a lock may leave copies that wait for that lock for ever."""

_LOG = "log"


def launch(folder: Path, job: Job, *, on_progress: Callable[[int], None] | None = None) -> None:
    """Run the job in a folder (:func:`compiler.runtime.job.write_job`) on this machine, a process a rank.

    Afterwards the folder has the events of every rank. ``on_progress`` is called with the number of micro-batches that
    all ranks are through with. Raises TaktError when a rank dies, fails or makes no progress for
    ``job.settings.timeout``: it names the rank that is the cause, and its instruction.
    """
    for restart in (_RESTART, None):
        watch = _Watch(folder, job, on_progress)
        process = _start(folder)
        try:
            if watch.until_end(process, restart):
                return
        finally:
            _end(process)


def _start(folder: Path) -> Popen[bytes]:
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "compiler.runtime.start", str(folder), str(os.getpid())]
    with (folder / _LOG).open("wb") as log:
        # A session of its own: Ctrl-C reaches this process only, and one signal ends them all. torchrun's launcher
        # leaves a folder wherever temporary ones are.
        return Popen(
            command,
            stdin=DEVNULL,
            stdout=log,
            stderr=STDOUT,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": path, "TMPDIR": str(folder)},
        )


class _Watch:
    def __init__(self, folder: Path, job: Job, on_progress: Callable[[int], None] | None):
        self.folder, self.job, self.on_progress = folder, job, on_progress
        self.ranks = len(job.accelerators)
        self.board = Board.create(folder, self.ranks)
        self.board.states["time"], self.board.states["index"] = now(), -1
        programs = {p: read_program(folder, p) for p in job.accelerators}
        self.faults = Faults(job, programs)
        self.last = np.full((self.ranks, job.microbatches), -1)
        """Of every rank, the index of its last instruction for each micro-batch."""
        for rank, p in enumerate(job.accelerators):
            np.maximum.at(self.last[rank], programs[p][:, 4], np.arange(len(programs[p])))
        self.done = -1
        self.failed_at: float | None = None

    def until_end(self, process: Popen[bytes], restart: float | None) -> bool:
        """Watch the ranks that ``process`` starts; False if none has come to its first instruction in ``restart`` s."""
        begun = time.monotonic()
        while (code := process.poll()) is None:
            states = self.board.read()
            self.progress(states)
            if error := self.fault(states):
                raise error
            if restart is not None and time.monotonic() - begun > restart:
                if (states["phase"] == Phase.STARTING).all():
                    return False
                restart = None
            time.sleep(_POLL)
        self.progress(self.board.read())
        if code != 0 or not all(events_file(self.folder, rank).exists() for rank in range(self.ranks)):
            raise self.ended(code)
        return True

    def progress(self, states: States) -> None:
        done = int((self.last < states["index"][:, None]).all(axis=0).sum())
        if done > self.done and self.on_progress is not None:
            self.on_progress(done)
        self.done = max(done, self.done)

    def fault(self, states: States) -> TaktError | None:
        """What ends a run whose processes are still there."""
        if exits_file(self.folder).exists():
            return self.ended(1)
        if reported := failures(self.folder, self.ranks):
            self.failed_at = self.failed_at or time.monotonic()
            patience = 5 * _GRACE if reported[0].lost else _GRACE
            if time.monotonic() - self.failed_at > patience:
                return self.faults.died(states, {}, reported)
            return None
        return self.faults.hangs(states, now())

    def ended(self, code: int) -> TaktError:
        path = exits_file(self.folder)
        exits = {int(r): c for r, c in json.loads(path.read_text()).items()} if path.exists() else {}
        error = self.faults.died(self.board.read(), exits, failures(self.folder, self.ranks))
        if error is not None:
            return error
        said = (self.folder / _LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return TaktError(f"what starts the processes of the run ended ({how(code)}){': ' + said[-1] if said else ''}")


def _end(process: Popen[bytes]) -> None:
    """Kill what is left of the session of a process, and wait until it is gone."""
    deadline = time.monotonic() + 1
    try:
        while time.monotonic() < deadline:
            os.killpg(process.pid, signal.SIGKILL)
            process.poll()
            time.sleep(0.01)
    except ProcessLookupError:
        pass
    process.wait()
