"""Starts the processes of a run on this machine, as ``torchrun --standalone`` does.

torchrun starts an interpreter a rank, each of which imports torch. Here its own launcher does the same work in one
process that has imported torch before it divides.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import uuid
from pathlib import Path

from compiler.runtime.job import exits_file, read_job, write_whole
from compiler.runtime.parent import die_with_parent


def start(folder: Path) -> int:
    """Run all ranks; returns 1 if one of them failed, whose exit codes are then in the folder."""
    # CUDA must not be set up before the process divides; asked for devices, torch otherwise does so.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    # What goes wrong is said by the ranks; to format a message torch would import its compiler, which takes seconds.
    logging.disable()
    # All ranks are here, so the name of this machine need not be looked up in a network.
    if loopback := [name for _, name in socket.if_nameindex() if name.startswith("lo")]:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback[0])
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from compiler.runtime.worker import run_rank

    ranks = len(read_job(folder).accelerators)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=0.05,
        start_method="fork" if sys.platform == "linux" else "spawn",
    )
    try:
        elastic_launch(config, run_rank)(str(folder), os.getpid(), True)
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        write_whole(exits_file(folder), json.dumps(codes))
        return 1
    return 0


if __name__ == "__main__":
    die_with_parent(int(sys.argv[2]))
    os._exit(start(Path(sys.argv[1])))  # nothing is left to tidy up, and that takes a second
