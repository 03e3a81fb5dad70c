"""A run that is not started here: its folder is prepared, torchrun starts the processes, and the report comes later."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from xdsl.dialects.builtin import ModuleOp

from compiler.output import print_ir
from compiler.runtime.job import JOB, Job, Rows, events_file, write_job
from dialects.diagnostics import Diagnostic, TaktError

PROGRAMS = "programs.mlir"
"""The module of the job, in its folder."""


def check_folder(folder: Path) -> None:
    """Raise TaktError unless ``folder`` is a new or an empty directory; it exists afterwards."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = next(folder.iterdir(), None)
    except OSError as error:
        raise TaktError(Diagnostic(f"cannot write to '{folder}': {error.strerror or error}")) from None
    if found is not None:
        raise TaktError(Diagnostic(f"'{folder}' is not empty", hint="a run needs a folder of its own"))


def prepare(folder: Path, module: ModuleOp, job: Job, programs: Mapping[int, Rows]) -> str:
    """Write all that the processes need to ``folder``; returns how they are started, for people."""
    write_job(folder, job, programs)
    (folder / PROGRAMS).write_text(print_ir(module), encoding="utf-8")
    ranks, name = len(job.accelerators), shlex.quote(str(folder))
    return (
        f"'{folder}' is prepared for {ranks} processes. On one machine:\n"
        f"  torchrun --standalone --nproc-per-node {ranks} -m compiler.runtime.worker {name}\n"
        "On each machine R of N that see the folder and have P accelerators each:\n"
        "  torchrun --nnodes N --node-rank R --nproc-per-node P --master-addr HOST --master-port PORT "
        f"-m compiler.runtime.worker {name}\n"
        f"Afterwards: taktc run --collect {name}\n"
    )


def check_finished(folder: Path, job: Job) -> None:
    """Raise TaktError unless all processes of the job in ``folder`` have come to their end."""
    missing = [rank for rank in range(len(job.accelerators)) if not events_file(folder, rank).exists()]
    if missing:
        message = f"the run in '{folder}' has not finished: nothing is there of rank {missing[0]}"
        raise TaktError(Diagnostic(message, hint=f"start all {len(job.accelerators)} processes first"))


def check_prepared(folder: Path) -> None:
    """Raise TaktError unless a run was prepared in ``folder``."""
    if not (folder / JOB).is_file() or not (folder / PROGRAMS).is_file():
        raise TaktError(Diagnostic(f"no run was prepared in '{folder}'", hint="taktc run MODEL --prepare DIR does so"))
