"""Interrupts while CP-SAT works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ortools.sat.python import cp_model

from passes.scheduling.interruptible import solve

ROOT = Path(__file__).parents[2]

INTERRUPTED_TWICE = """
import os, random, signal, threading, time
from ortools.sat.python import cp_model
from passes.scheduling.interruptible import solve

signal.signal(signal.SIGINT, signal.default_int_handler)
random.seed(1)
model = cp_model.CpModel()  # a knapsack of many dimensions: minutes to the optimum
x = [model.new_bool_var("") for _ in range(300)]
for _ in range(100):
    model.add(sum(random.randint(1, 1000) * b for b in x) <= 50000)
model.maximize(sum(random.randint(1, 1000) * b for b in x))
for _ in range(2):
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_time_in_seconds = 30
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    started = time.monotonic()
    try:
        solve(solver, model)
    except KeyboardInterrupt:
        print("heard" if time.monotonic() - started < 15 else "late")
    else:
        print("not heard")
"""


def test_interrupts_stop_the_search_and_are_heard() -> None:
    """In a process of its own; the second interrupt is heard as well as the first."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", INTERRUPTED_TWICE]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100, check=False)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["heard", "heard"], "")


def test_the_status_is_that_of_the_solver() -> None:
    model = cp_model.CpModel()
    x = model.new_int_var(0, 5, "x")
    model.maximize(x)
    solver = cp_model.CpSolver()
    assert solve(solver, model) == cp_model.OPTIMAL
    assert solver.value(x) == 5


def test_an_error_of_the_solver_reaches_the_caller() -> None:
    with pytest.raises(AttributeError):
        solve(cp_model.CpSolver(), None)
