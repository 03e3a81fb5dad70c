"""What only a real process shows: start-up, pipes, signals, entry points."""

import os
import signal
import subprocess
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
TAKTC = [sys.executable, "-m", "compiler.taktc"]
TAKT_OPT = [sys.executable, "-m", "compiler.takt_opt"]


def run(command: list[str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=stdin, capture_output=True, text=True, env=ENVIRONMENT, timeout=60)


@pytest.mark.parametrize("option", ["--help", "--version", "--no-such-option"])
def test_help_imports_nothing_heavy(option: str) -> None:
    code = (
        "import sys\nfrom compiler.taktc import main\n"
        f"try:\n    main([{option!r}])\nexcept SystemExit:\n    pass\n"
        "heavy = {'xdsl', 'lark', 'numpy', 'rich', 'ortools', 'highspy', 'networkx', 'pulp', 'frontend'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))\n"
    )
    assert run([sys.executable, "-c", code]).stdout.splitlines()[-1] == "HEAVY []"


def test_help_takes_less_than_half_a_second() -> None:
    times = []
    for _ in range(3):
        started = time.perf_counter()
        assert run([*TAKTC, "--help"]).returncode == 0
        times.append(time.perf_counter() - started)
    assert min(times) < 0.5


def test_compiling_does_not_import_what_it_does_not_use(examples: Path) -> None:
    code = (
        "import sys\nfrom compiler.taktc import main\n"
        f"main([{str(examples / 'research_dag.takt')!r}, '--emit', 'model', '-o', {os.devnull!r}])\n"
        "heavy = {'numpy', 'rich', 'ortools', 'highspy', 'networkx', 'pulp', 'jaxlib', 'torch'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))\n"
    )
    assert run([sys.executable, "-c", code]).stdout.splitlines()[-1] == "HEAVY []"


def test_exit_codes(examples: Path) -> None:
    model, board = str(examples / "research_dag.takt"), str(examples / "tiny_board.takt")
    good = run([*TAKTC, model, "--platform", board])
    assert good.returncode == 0
    assert good.stdout.startswith("builtin.module")
    assert run([*TAKTC, model]).returncode == 1
    assert run([*TAKTC, "--nope"]).returncode == 2
    assert run([*TAKT_OPT, "-p", "nope"]).returncode == 2
    assert run([*TAKT_OPT], "nonsense").returncode == 1
    assert run([*TAKT_OPT], good.stdout).stdout == good.stdout


def test_no_colour_and_no_progress_without_a_terminal(examples: Path) -> None:
    result = run([*TAKTC, str(examples / "research_dag.takt")])
    assert "\x1b" not in result.stderr


def test_broken_pipe_is_quiet(examples: Path) -> None:
    command = [*TAKTC, str(examples / "research_dag.takt"), "--platform", str(examples / "tiny_board.takt"), "--quiet"]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, timeout=60)
    finally:
        os.close(writer)
    assert result.stderr == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_full_device_is_an_error(examples: Path) -> None:
    command = [*TAKTC, str(examples / "research_dag.takt"), "--emit", "model"]
    with open("/dev/full", "w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, timeout=60)
    assert result.returncode == 1
    assert result.stderr == "taktc: error: cannot write the output: No space left on device\n"


def test_interrupt(tmp_path: Path) -> None:
    started = tmp_path / "started"
    code = (
        "import sys, pathlib, compiler.driver as driver\nfrom compiler.taktc import main\n"
        "def read(*args):\n"
        f"    pathlib.Path({str(started)!r}).touch()\n"
        "    return sys.stdin.buffer.read()\n"
        "import compiler.loading\ncompiler.loading._read_bytes = read\n"
        # a suite that was started in the background of a shell hands down that interrupts are ignored
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\nsys.exit(main(['-']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    deadline = time.monotonic() + 30
    while not started.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.1)  # from the touch to the read
    process.send_signal(signal.SIGINT)
    # stdin stays open until the process has ended, so that only the signal can end it
    assert process.wait(timeout=30) == 130
    assert process.stderr is not None
    assert process.stderr.read() == "taktc: interrupted\n"
    process.stderr.close()
    assert process.stdin is not None
    process.stdin.close()


installed = any(e.name == "takt" for e in entry_points(group="xdsl.universe"))


@pytest.mark.skipif(not installed, reason="needs the installed package: its entry point")
def test_stock_xdsl_opt_runs_our_passes(examples: Path) -> None:
    model = run([*TAKT_OPT, str(examples / "research_dag.takt"), "--platform", str(examples / "tiny_board.takt")])
    stock = [sys.executable, "-c", "from xdsl.xdsl_opt_main import xDSLOptMain; xDSLOptMain().run()"]
    result = run([*stock, "-p", "annotate-costs"], model.stdout)
    assert result.returncode == 0, result.stderr
    assert "takt.graph @research_dag moldable" in result.stdout


@pytest.mark.parametrize("plan", ["stages", "assigned", "pushed"])
def test_another_order_of_sets_gives_the_same_schedule(tmp_path: Path, plan: str) -> None:
    """Strings hash differently in every process; no choice may depend on it."""
    board = (ROOT / "examples" / "tiny_board.takt").read_text().replace("40 GB", "4 GB")
    (tmp_path / "slow.takt").write_text(board)
    command = [*TAKTC, "examples/research_dag.takt", "--platform", str(tmp_path / "slow.takt"), "--plan", plan]
    found = set[str]()
    for seed in ("1", "2"):
        environment = {**ENVIRONMENT, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [*command, "--quiet", "--effort", "1"],
            capture_output=True,
            text=True,
            env=environment,
            cwd=ROOT,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1


def test_a_program_found_infeasible_while_it_loads_does_not_abort(tmp_path: Path) -> None:
    """Two workers of CP-SAT that search side by side: one ends the search before the other has loaded."""
    model = tmp_path / "model.takt"
    model.write_text(
        """model m {
  input x: tensor<2 x 2 x 8, bf16>
  a = op(x) time {2: 350 ns, 3: 281 ns, 4: 306 ns} params 1 B
  b = op(x, a) time [22375 ns, 14038 ns, 11995 ns, 7410 ns] params 1000 B output 1 B
  c = attention(x, x, x, heads = 4)
  d = attention(x, x, x, heads = 4)
  h = linear(x, features = 32)
  v = linear(h, features = 8, split = "row")
  g = linear(d, features = 32)
  w = linear(g, features = 8, split = "row")
  output h, v
}
accelerator a { memory = 1 GiB bandwidth = 10 GB/s launch = 1 us peak bf16 = 1 TFLOP/s }
platform p {
  accelerators = 4 of a
  link board { latency = 5 us  bandwidth = 50 GB/s }
}
"""
    )
    done = run([*TAKTC, str(model), "--plan", "auto", "--effort", "0.1", "--emit", "summary"])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("m on p: 4 x a, plan ")
