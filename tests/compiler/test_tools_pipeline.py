"""The pipeline: verification after every pass, memory rounds, the Python API."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp, StringAttr
from xdsl.passes import ModulePass

from compiler import compile_model, pipeline
from compiler.output import print_ir
from compiler.pipeline import Observer, Options, level_of, new_context, run_pass
from dialects.diagnostics import Diagnostic, TaktError
from dialects.structure import LEVELS, find_graph
from frontend import Source
from passes.choices import Plan
from passes.instance import DoesNotFit

MODEL = """\
model m {
  input a: tensor<1048576, i8>
  b = op(a) time [4us, 2us] params 60 KiB output 20 KiB
  c = op(b) time [6us, 3us] params 60 KiB output 20 KiB
  d = op(c) time [6us, 3us] params 60 KiB output 20 KiB
  output d
}
accelerator chip { memory = 64 MiB bandwidth = 1 GB/s launch = 1 us peak f32 = 1 TFLOP/s }
platform p { accelerators = 2 of chip link bus { latency = 0 us bandwidth = 1000 GB/s } }
"""


class Recorder(Observer):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.checks = 0

    def ran(self, step: str, module: ModuleOp, seconds: float) -> None:
        self.steps.append(f"{step.split('{')[0]} -> {level_of(module)}")

    def verified(self, seconds: float) -> None:
        self.checks += 1


def test_the_phases_reach_the_levels_in_order() -> None:
    recorder = Recorder()
    module = compile_model(Source("m.takt", MODEL), observer=recorder)
    assert recorder.steps == [f"{name} -> {level}" for name, level in pipeline.PHASES[:3]]
    assert recorder.checks == 1 + 3
    assert level_of(module) == "scheduled"


@pytest.mark.parametrize("level", LEVELS[:4])
def test_a_module_goes_on_from_any_level(level: str) -> None:
    whole = compile_model(Source("m.takt", MODEL))
    part = compile_model(Source("m.takt", MODEL), to=level)
    assert level_of(part) == level
    assert print_ir(compile_model(part)) == print_ir(whole)


def test_paths_overrides_and_options(examples: Path) -> None:
    module = compile_model(
        examples / "gpt2_xl.takt",
        platform=examples / "dgx_a100_64.takt",
        overrides={"layers": 2},
        options=Options(stages=2),
        to="staged",
    )
    graph = find_graph(module)
    assert graph is not None
    assert len(list(graph.stages())) == 2


@dataclass(frozen=True)
class LyingPass(ModulePass):
    """Claim a level that the module is not at."""

    name = "lying"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        graph = find_graph(op)
        assert graph is not None
        graph.level = StringAttr("scheduled")


def test_a_pass_that_breaks_the_level_is_caught_and_still_observed() -> None:
    module = compile_model(Source("m.takt", MODEL), to="moldable")
    recorder = Recorder()
    with pytest.raises(TaktError):
        run_pass(new_context(), module, LyingPass(), recorder)
    assert recorder.steps == ["lying -> scheduled"]
    assert recorder.checks == 0


# --- memory rounds ---------------------------------------------------------------------------


@dataclass
class Fake:
    """Passes that keep books: scheduling fails until ``enough`` bytes are kept free."""

    enough: int
    missing: int
    impossible_from: int = 2**62
    reserves: list[int] | None = None
    fits: list[bool] | None = None

    def make(self, name: str, options: dict[str, Any] | None = None) -> ModulePass:
        fake, given = self, options or {}

        class Step(ModulePass):
            def apply(self, ctx: Context, op: ModuleOp) -> None:
                fake.step(name, given)

        Step.name = name
        return Step()

    def step(self, name: str, options: dict[str, Any]) -> None:
        self.reserves = self.reserves if self.reserves is not None else []
        self.fits = [*(self.fits or []), options.get("fit", False)]
        if name == "partition-stages":
            self.reserves.append(options.get("memory_reserve", 0))
            if self.reserves[-1] >= self.impossible_from:
                raise DoesNotFit([Diagnostic("no partition", rule="memory")], 1)
        elif name == "schedule-periodic" and self.reserves[-1] < self.enough:
            raise DoesNotFit([Diagnostic(f"round {len(self.reserves)}", rule="memory")], self.missing)


@pytest.fixture
def moldable() -> ModuleOp:
    return compile_model(Source("m.takt", MODEL), to="moldable")


def run_with(fake: Fake, module: ModuleOp, monkeypatch: pytest.MonkeyPatch, plan: Plan = "shared") -> ModuleOp:
    monkeypatch.setattr(pipeline, "make_pass", fake.make)
    return pipeline.partition_and_schedule(new_context(), module, Options(plan=plan), Observer())


def test_memory_is_kept_free_until_the_schedule_fits(moldable: ModuleOp, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(enough=350, missing=100)
    before = print_ir(moldable)
    assert print_ir(run_with(fake, moldable, monkeypatch)) == before
    assert fake.reserves == [0, 100, 200, 400]


def test_a_schedule_that_never_fits_gives_the_first_refusal(
    moldable: ModuleOp, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake(enough=2**60, missing=100)
    with pytest.raises(TaktError, match="round 1"):
        run_with(fake, moldable, monkeypatch)
    assert fake.reserves is not None
    assert len(fake.reserves) == pipeline.MEMORY_ROUNDS


def test_stages_are_chosen_anew_by_what_they_hold(moldable: ModuleOp, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(enough=2**60, missing=100)
    with pytest.raises(TaktError, match="round 2"):
        run_with(fake, moldable, monkeypatch, "stages")
    assert (fake.reserves, fake.fits) == ([0, 0], [False, False, True, True])


def test_real_passes_find_the_partition_that_fits() -> None:
    """The fastest partition holds 90 MiB of parameters on one accelerator, and the values in flight need more."""
    text = """\
    model m {
      a = op() time [3ms] output 1 KiB
      b = op(a) time [1ms] params 30 MiB output 15 MiB
      c = op(b) time [1ms] params 30 MiB output 15 MiB
      d = op(c) time [1ms] params 30 MiB output 1 KiB
      output d
    }
    accelerator chip { memory = 100 MiB bandwidth = 1 GB/s launch = 1 us peak f32 = 1 TFLOP/s }
    platform p { accelerators = 2 of chip link bus { latency = 0 us bandwidth = 1000 GB/s } }
    """
    recorder = Recorder()
    module = compile_model(Source("m.takt", text), observer=recorder)
    assert recorder.steps.count("partition-stages -> staged") > 1
    graph = find_graph(module)
    assert graph is not None
    assert graph.schedule is not None
    assert graph.schedule.pattern.data == 4_000_000
    roomy = compile_model(Source("m.takt", text.replace("100 MiB", "200 MiB")))
    graph = find_graph(roomy)
    assert graph is not None
    assert graph.schedule is not None
    assert 3_000_000 <= graph.schedule.pattern.data <= 3_015_000, "half a percent for fewer in flight"


def test_a_real_shortage_is_a_clear_error() -> None:
    tight = MODEL.replace("64 MiB", "64 KiB")
    with pytest.raises(TaktError) as caught:
        compile_model(Source("m.takt", tight))
    assert any("memory" in d.message or d.rule == "memory" for d in caught.value.diagnostics)
