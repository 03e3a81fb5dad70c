"""Every example: published parameter counts, a checked schedule, agreement with the simulator, dumps that re-enter."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pytest
from xdsl.dialects.builtin import ModuleOp

from compiler.ir_input import parse_ir
from compiler.output import print_ir
from compiler.pipeline import Observer, level_of, new_context, run_pipeline
from compiler.simulate import self_timed, time_triggered
from compiler.simulate.replay import replay
from compiler.view import ScheduleView, view_of
from dialects.levels import check_level
from dialects.operators import element_bytes
from dialects.structure import LEVELS, find_graph
from frontend import Source, load

ROOT = Path(__file__).parent.parent
PLATFORMS = {
    "gpt2_tied": "dgx_a100_16",
    "gpt2_xl": "dgx_a100_64",
    "gpt3_175b": "dgx_a100_64",
    "llama3_8b": "dgx_a100_64",
    "llama3_8b_decode": "dgx_a100_64",
    "llama3_70b": "dgx_h100_64",
    "mixtral_8x7b": "dgx_h100_64",
    "encoder_decoder": "dgx_a100_64",
    "resnet50": "tiny_board",
    "research_dag": "tiny_board",
}

LONG = ("encoder_decoder", "llama3_8b_decode")
"""Their partitions take as long as all others together: they are compiled on from their stages."""

BOARDS = ("torus_4x4", "host_8", "dgx_a100_16")
"""Platforms to look at, each tried with a small model."""

SMALL = """model small {
  input x: tensor<512 x 512, bf16>
  repeat 4 carry x {
    h = linear(x, features = 2048)
    a = gelu(h)
    x = linear(a, features = 512, split = "row")
  }
  output x
}
"""


def example(name: str) -> Source:
    return Source.read(str(ROOT / "examples" / f"{name}.takt"))


def test_every_example_is_tested() -> None:
    files = {p.stem for p in (ROOT / "examples").glob("*.takt")}
    assert files == set(PLATFORMS) | set(PLATFORMS.values()) | set(BOARDS)


# --- parameters ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "published", "extra"),
    [
        # The head is a second copy of the embedding it is tied to.
        ("gpt2_xl", 1_557_611_200, 50257 * 1600),
        # The shared table counted for both of its operators, and padded from 50257 rows to 50304.
        ("gpt2_tied", 124_439_808, 50304 * 768 + (50304 - 50257) * 768),
        # As gpt2_xl, and a vocabulary padded from 50257 to 51200 (in both copies).
        ("gpt3_175b", 174_604_259_328, 51200 * 12288 + (51200 - 50257) * 12288),
        ("llama3_8b", 8_030_261_248, 0),
        ("llama3_70b", 70_553_706_496, 0),
        ("mixtral_8x7b", 46_702_792_704, 0),
        # Two more copies of the shared embedding; no tables of relative position biases (32 buckets, 128 heads).
        ("encoder_decoder", 11_307_321_344, 2 * 32128 * 1024 - 2 * 32 * 128),
        # Running mean and variance of 26560 channels, which are buffers elsewhere.
        ("resnet50", 25_557_032, 2 * 26560),
    ],
)
def test_parameters_are_those_published(name: str, published: int, extra: int) -> None:
    graph = find_graph(load(example(name)))
    assert graph is not None
    counted = 0
    for op in graph.operators():
        counted += op.params.value.data // element_bytes(op.results[0].type.element_type)
    assert counted == published + extra


@pytest.mark.parametrize("board", BOARDS)
def test_a_small_model_on_every_board(board: str) -> None:
    module = run_pipeline(new_context(), load(Source("small.takt", SMALL), platform=example(board)))
    assert check_level(module, "scheduled") == []
    again = parse_ir(new_context(), print_ir(module), "small.mlir")
    assert print_ir(again) == print_ir(module)
    view = view_of(again)
    assert view.platform.links
    assert view.platform.transfers == ("buffered" if board == "host_8" else "overlapped")


# --- compiling -------------------------------------------------------------------------------


@dataclass
class Compiled:
    """An example at level 4, and the text of the module at every level on the way."""

    module: ModuleOp
    view: ScheduleView
    texts: dict[str, str]


class Texts(Observer):
    """Keeps the text of the module at every level."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def ran(self, step: str, module: ModuleOp, seconds: float) -> None:
        self.texts[level_of(module)] = print_ir(module, locations=True)


def compiled_example(name: str) -> Compiled:
    observer = Texts()
    module = load(example(name), platform=example(PLATFORMS[name]))
    observer.ran("front end", module, 0.0)
    module = run_pipeline(new_context(), module, observer=observer)
    return Compiled(module, view_of(module), observer.texts)


@pytest.mark.parametrize("name", PLATFORMS)
def test_an_example(name: str) -> None:
    """All in one, so that an example is compiled once whatever number of processes run the tests."""
    compiled = compiled_example(name)
    passes_the_checker(compiled)
    time_triggered_simulation_agrees_exactly(compiled)
    self_timed_simulation_is_no_slower(compiled)
    programs_do_not_hang(compiled)
    read_back = {level: parse_ir(new_context(), text, f"{level}.mlir") for level, text in compiled.texts.items()}
    dumps_re_enter_at_every_level(compiled, read_back)
    compiling_on_from_a_dump_gives_the_same_schedule(compiled, read_back)


def passes_the_checker(compiled: Compiled) -> None:
    assert check_level(compiled.module, "scheduled") == []
    assert compiled.view.bound <= compiled.view.period


def test_decoding_is_bound_by_its_recurrence() -> None:
    """Twice the groups: half the least period, twice the caches of every layer."""
    periods: list[Fraction] = []
    for groups in ("1", "2"):
        overrides = {"groups": groups, "layers": "4"}
        module = load(example("llama3_8b_decode"), platform=example("dgx_a100_64"), overrides=overrides)
        view = view_of(run_pipeline(new_context(), module))
        assert view.bound_by == "recurrence"
        assert sum(e.distance > 0 for e in view.edges) == 1 + 2 * 4
        assert view.reach == int(groups)
        periods.append(view.period)
    assert periods[1] < periods[0] * Fraction(6, 10)


def time_triggered_simulation_agrees_exactly(compiled: Compiled) -> None:
    report = time_triggered(compiled.view)
    assert report.steady
    assert report.period == compiled.view.period
    assert report.latency_min == report.latency_max == compiled.view.latency


def self_timed_simulation_is_no_slower(compiled: Compiled) -> None:
    report = self_timed(compiled.view)
    assert report.steady
    assert report.period <= compiled.view.period


def programs_do_not_hang(compiled: Compiled) -> None:
    """Every level is verified on the way, the programs by a replay in which a send waits for its receive."""
    module = run_pipeline(new_context(), compiled.module.clone(), to="programs")
    assert level_of(module) == "programs"
    report = replay(module, trips=2)
    view = compiled.view
    assert len(report.completed) == report.microbatches >= view.in_flight
    assert {p: busy for p, busy in report.busy.items() if busy} == {
        p: load * report.microbatches for p, load in view.load.items() if load
    }


def dumps_re_enter_at_every_level(compiled: Compiled, read_back: dict[str, ModuleOp]) -> None:
    assert list(read_back) == list(LEVELS[:4])
    for level, module in read_back.items():
        assert level_of(module) == level
        assert print_ir(module, locations=True) == compiled.texts[level]
        assert check_level(module) == []


def compiling_on_from_a_dump_gives_the_same_schedule(compiled: Compiled, read_back: dict[str, ModuleOp]) -> None:
    level = "staged" if compiled.view.graph in LONG else "moldable"
    module = run_pipeline(new_context(), read_back[level].clone())
    assert print_ir(module) == print_ir(compiled.module)
