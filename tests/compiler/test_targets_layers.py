"""Layer formats: what Megatron-core, torchtitan and vLLM read in them is what was scheduled, or they are refused."""

from __future__ import annotations

import ast
import json
import shlex
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from xdsl.dialects.builtin import ModuleOp

from compiler.ir_input import parse_ir
from compiler.pipeline import new_context
from compiler.targets import emitter
from compiler.targets.megatron_layout import layout
from compiler.targets.registry import make_target
from dialects.diagnostics import TaktError

Tool = Callable[..., Any]
Made = Callable[..., ModuleOp]
Planned = Callable[[str], ModuleOp]

FORMATS = ("megatron-layout", "torchtitan", "vllm-partition")

ROW = """
accelerator chip { memory = 16 GiB  bandwidth = 1 TB/s  launch = 1 us  peak i8 = 100 TFLOP/s }
platform board { accelerators = 8 of chip }

block embed(x: tensor<n, i8>) -> y {
  y = op(x) time {2: 40us} output 1 KiB
}
block layer(x: tensor<n, i8>) -> y {
  a = op(x) time {2: 60us} output 1 KiB
  y = op(a) time {2: 50us} output 1 KiB
}
block head(x: tensor<n, i8>) -> y {
  a = op(x) time {2: 20us} output 1 KiB
  y = op(a) time {2: 90us} output 1 KiB
}

model row {
  param layers = 10
  input tokens: tensor<1024, i8>
  x = embed(tokens)
  repeat layers carry x {
    x = layer(x)
  }
  y = head(x)
  output y
}
"""
"""Every operator runs on two accelerators and no other number."""

WHOLE = ("--granularity", "block")
CIRCLE = (*WHOLE, "--plan", "interleaved")
PLANS = {
    "four ranks": WHOLE,
    "three ranks": (*WHOLE, "--stages", "3", "--set", "layers=11"),
    "two ranks": (*WHOLE, "--stages", "2"),
    "one rank": (*WHOLE, "--stages", "1"),
    "two chunks a rank": CIRCLE,
    "head alone": (*CIRCLE, "--set", "layers=7"),
}


@pytest.fixture(scope="module")
def known() -> dict[str, ModuleOp]:
    """Schedules found before."""
    return {}


@pytest.fixture
def planned(taktc: Tool, known: dict[str, ModuleOp]) -> Planned:
    """The scheduled ``ROW`` by the name of a plan."""

    def find(plan: str) -> ModuleOp:
        if plan not in known:
            result = taktc("-", "--quiet", "--effort", "0.5", *PLANS[plan], stdin=ROW.encode())
            assert result.code == 0, result.err
            known[plan] = parse_ir(new_context(), result.out, "row.mlir")
        return known[plan]

    return find


def emitted(module: ModuleOp, target: str) -> str:
    return make_target(target).text(module)


Calls = list[tuple[str, int]]


def scheduled(module: ModuleOp) -> tuple[list[Calls], list[int]]:
    """From the schedule as JSON, for every stage: its calls of blocks, in program order; its first accelerator."""
    document = json.loads(emitted(module, "json"))
    stages: list[Calls] = [[] for _ in document["stages"]]
    for op in document["operators"]:
        call = op["block"]["name"], op["block"]["index"]
        if call not in stages[op["stage"]]:
            stages[op["stage"]].append(call)
    return stages, [min(stage["accelerators"]) for stage in document["stages"]]


def arguments(text: str) -> dict[str, str]:
    """What a shell makes of arguments."""
    words = shlex.split(text, comments=True)
    return dict(zip(words[::2], words[1::2], strict=True))


# --- what the consumers make of it -----------------------------------------------------------


@pytest.fixture(scope="session")
def megatron() -> Any:
    """Megatron-core's class of layouts."""
    return pytest.importorskip("megatron.core.transformer.pipeline_parallel_layer_layout").PipelineParallelLayerLayout


@pytest.mark.megatron
@pytest.mark.parametrize("plan", PLANS)
def test_megatron_core_reads_the_schedule(
    planned: Planned, megatron: Any, monkeypatch: pytest.MonkeyPatch, plan: str
) -> None:
    from megatron.core import parallel_state

    module = planned(plan)
    stages, firsts = scheduled(module)
    found = arguments(emitted(module, "megatron-layout"))
    ranks, layers = int(found["--pipeline-model-parallel-size"]), int(found["--num-layers"])
    assert found["--tensor-model-parallel-size"] == "2"
    parsed = megatron(found["--pipeline-model-parallel-layout"], ranks)
    parsed.validate_layer_layout(layers, None)
    chunks = parsed.virtual_pipeline_model_parallel_size
    assert (ranks, chunks) == (len(set(firsts)), len(stages) // len(set(firsts)))
    monkeypatch.setattr(parallel_state, "get_virtual_pipeline_model_parallel_world_size", lambda: chunks)
    names = {"embedding": "embed", "decoder": "layer", "loss": "head"}
    for stage, calls in enumerate(stages):
        chunk, rank = divmod(stage, ranks)
        assert firsts[stage] == firsts[rank], "stages of a rank are on the same accelerators"
        assert [names[kind.name] for kind in parsed.layout[rank][chunk]] == [block for block, _ in calls]
        assert parsed.get_layer_id_list(vp_stage=chunk, pp_rank=rank) == [i for block, i in calls if block == "layer"]


def test_the_plans_differ(planned: Planned) -> None:
    """Else the tests of all plans would test one."""
    shapes = [scheduled(planned(plan)) for plan in PLANS]
    found = [(len(set(firsts)), [len(calls) for calls in stages]) for stages, firsts in shapes]
    assert found == [
        (4, [3, 3, 3, 3]),
        (3, [5, 4, 4]),
        (2, [6, 6]),
        (1, [12]),
        (4, [2, 1, 2, 1, 1, 2, 1, 2]),
        (4, [2, 1, 1, 1, 1, 1, 1, 1]),
    ]


@pytest.mark.megatron
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from([0, 1, 2, 3, 12]) | st.integers(0, 120), min_size=1, max_size=24))
def test_megatron_core_expands_what_is_compressed(megatron: Any, layers: list[int]) -> None:
    stages = megatron.parse_str_to_list(layout(layers))
    names = [["decoder"] * n for n in layers]
    names[0].insert(0, "embedding")
    names[-1].append("loss")
    assert [[kind.name for kind in stage] for stage in stages] == names


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ([32], "Et*32L"),
        ([3, *[2] * 29, 0], "Et*3|(tt|)*29,L"),
        ([0, 5, 5, 5, 4], "E|(t*5|)*3,t*4L"),
        ([1, 2, 2, 1], "Et|tt|tt|tL"),
    ],
)
def test_layouts_are_short(layers: list[int], text: str) -> None:
    assert layout(layers) == text


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("form", ["python", "toml"])
def test_torchtitan_modules_are_the_schedule(planned: Planned, plan: str, form: str) -> None:
    """Each rank keeps of every module list what it names, chunk by chunk, as torchtitan does: looped over the ranks."""
    module = planned(plan)
    found = _torchtitan(emitted(module, f"torchtitan{{form={form}}}"), form)
    parts, ranks = found["module_fqns_per_model_part"], found["pipeline_parallel_degree"]
    stages, firsts = scheduled(module)
    assert len(parts) == len(stages)
    assert len(parts) % ranks == 0
    assert found["tensor_parallel_degree"] == 2
    assert found["pipeline_parallel_schedule"] == ("1F1B" if len(parts) == ranks else "Interleaved1F1B")
    names = {"embed": lambda _: ["tok_embeddings"], "layer": lambda i: [f"layers.{i}"]}
    names["head"] = lambda _: ["norm", "lm_head" if form == "python" else "output"]
    for rank in range(ranks):
        for stage in range(rank, len(parts), ranks):
            assert firsts[stage] == firsts[rank]
            assert parts[stage] == [name for block, i in stages[stage] for name in names[block](i)]


def _torchtitan(text: str, form: str) -> dict[str, Any]:
    if form == "toml":
        return tomllib.loads(text)["parallelism"]
    call = ast.parse(text, mode="eval").body
    assert isinstance(call, ast.Call)
    assert ast.unparse(call.func) == "ParallelismConfig"
    assert not call.args
    return {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}


@pytest.mark.parametrize("plan", ["four ranks", "three ranks", "one rank"])
def test_vllm_partitions_are_the_schedule(planned: Planned, plan: str) -> None:
    module = planned(plan)
    text = emitted(module, "vllm-partition")
    (line,) = (line for line in text.splitlines() if not line.startswith("#"))
    name, _, value = line.partition("=")
    assert name == "VLLM_PP_LAYER_PARTITION"
    stages, _ = scheduled(module)
    layers = [[i for block, i in calls if block == "layer"] for calls in stages]
    assert f"--tensor-parallel-size 2 --pipeline-parallel-size {len(stages)}\n" in text
    assert [_vllm_layers(value, sum(map(len, layers)), r, len(stages)) for r in range(len(stages))] == layers


def _vllm_layers(partition: str, layers: int, rank: int, ranks: int) -> list[int]:
    """The layers that vLLM loads on a rank, with what it checks."""
    counts = [int(number) for number in partition.split(",")]
    assert len(counts) == ranks
    assert sum(counts) == layers
    return list(range(sum(counts[:rank]), sum(counts[: rank + 1])))


def test_what_a_user_pastes(planned: Planned) -> None:
    """One text of each format, whole."""
    module = planned("two ranks")
    title = "# row, 10 layers: tensor parallel 2, pipeline parallel 2, 1 stage a rank\n"
    assert emitted(module, "megatron-layout") == title + (
        "--num-layers 10\n"
        "--tensor-model-parallel-size 2\n"
        "--pipeline-model-parallel-size 2\n"
        "--pipeline-model-parallel-layout 'Et*5|t*5L'\n"
    )
    assert emitted(module, "vllm-partition") == title + (
        "# vllm serve MODEL --tensor-parallel-size 2 --pipeline-parallel-size 2\nVLLM_PP_LAYER_PARTITION=5,5\n"
    )
    assert emitted(module, "torchtitan") == title + (
        "ParallelismConfig(\n"
        "    tensor_parallel_degree=2,\n"
        "    pipeline_parallel_degree=2,\n"
        '    pipeline_parallel_schedule="1F1B",\n'
        "    module_fqns_per_model_part=[\n"
        '        ["tok_embeddings", "layers.0", "layers.1", "layers.2", "layers.3", "layers.4"],\n'
        '        ["layers.5", "layers.6", "layers.7", "layers.8", "layers.9", "norm", "lm_head"],\n'
        "    ],\n"
        ")\n"
    )


def test_mixtures_of_experts_are_layers_too(taktc: Tool, examples: Path) -> None:
    model = ("--platform", str(examples / "dgx_a100_16.takt"), "--set", "layers=16", "--granularity", "block")
    result = taktc(examples / "mixtral_8x7b.takt", *model, "--quiet", "--emit", "vllm-partition")
    assert result.code == 0, result.err
    assert result.out.endswith("VLLM_PP_LAYER_PARTITION=" + ",".join(["1"] * 16) + "\n")


# --- what is refused, and where --------------------------------------------------------------

CUT = "--granularity block keeps every call of a block in one stage"
SECOND = " is of a second kind of layers, and torchtitan is for a row of one kind"
ROW_ONLY = "a layer is a call of the one block that the model repeats, not a block inside another"


def refused(taktc: Tool, source: str, target: str, *options: str) -> list[tuple[str, str, str]]:
    """Line and column, message and hint of every error."""
    result = taktc("-", "--quiet", "--effort", "0.1", *options, "--emit", target, stdin=source.encode())
    assert (result.code, result.out) == (1, "")
    lines = [line for line in result.err.splitlines() if "error: " in line or "hint: " in line]
    found = []
    for error, hint in zip(lines[::2], lines[1::2], strict=True):
        place, _, message = error.partition(": error: ")
        found.append((place.removeprefix("<stdin>:"), message, hint.strip().removeprefix("hint: ")))
    return found


def place_of(text: str, source: str = ROW) -> str:
    """Line and column of the one place with ``text``."""
    ((number, line),) = ((i, line) for i, line in enumerate(source.splitlines(), 1) if text in line)
    return f"{number}:{line.index(text) + 1}"


@pytest.mark.parametrize("target", FORMATS)
def test_a_cut_layer_is_refused(taktc: Tool, target: str) -> None:
    what = f"'layer.2.y' is in stage 1, other operators of layer 2 in stage 0: {target} has whole layers"
    assert refused(taktc, ROW, target) == [(place_of("y = op(a) time {2: 50us}"), what, CUT)]


def test_every_obstacle_is_named_at_once(taktc: Tool) -> None:
    """The embedding likes one accelerator; of the numbers that all operators can run on, most are on two."""
    source = ROW.replace("time {2: 40us}", "time {1: 40us, 2: 45us, 4: 45us}").replace("{2: 60us}", "{1: 1ms, 2: 60us}")
    even = "'embed.0.y' runs on 1 accelerator, 22 of 23 operators on 2"
    even += ": torchtitan has one tensor-parallel degree for all"
    cut = "'layer.2.y' is in stage 1, other operators of layer 2 in stage 0: torchtitan has whole layers"
    assert refused(taktc, source, "torchtitan") == [
        (place_of("y = op(a) time {2: 50us}", source), cut, CUT),
        (place_of("y = op(x) time {1: 40us", source), even, "--allotments 2 gives every operator 2"),
    ]


def test_operators_without_a_common_degree_are_refused(taktc: Tool) -> None:
    source = ROW.replace("time {2: 40us}", "time {1: 40us}")
    what = "'embed.0.y' cannot run on 2 accelerators, as 22 of 23 operators do"
    (found,) = refused(taktc, source, "megatron-layout", *WHOLE)
    assert found == (
        place_of("y = op(x) time {1: 40us}", source),
        f"{what}: megatron-layout has one tensor-parallel degree for all",
        "no number of accelerators suits all operators; write a time for one into each",
    )


@pytest.mark.parametrize(
    ("options", "target", "what", "hint"),
    [
        (
            ("--plan", "v"),
            "megatron-layout",
            "'layer.4.a' begins stage 2 on rank 0, and it is the turn of rank 2",
            "--plan interleaved goes through the ranks in a circle",
        ),
        (
            ("--plan", "v"),
            "vllm-partition",
            "'layer.4.a' begins stage 2 on rank 0, which has one already",
            "--plan stages gives every rank one stage",
        ),
        (
            ("--plan", "interleaved"),
            "vllm-partition",
            "'layer.5.a' begins stage 4 on rank 0, which has one already",
            "--plan stages gives every rank one stage",
        ),
        (
            ("--plan", "interleaved", "--set", "layers=7"),
            "vllm-partition",
            "'layer.4.a' begins stage 4 on rank 0, which has one already",
            "--plan stages gives every rank one stage",
        ),
        (
            ("--plan", "interleaved", "--set", "layers=11"),
            "torchtitan",
            "'layer.9.a' begins stage 4 on rank 0, and rank 3 has one stage less",
            "--plan stages gives every rank one stage",
        ),
    ],
)
def test_other_orders_of_ranks_are_refused(
    taktc: Tool, options: tuple[str, ...], target: str, what: str, hint: str
) -> None:
    place = place_of("a = op(x) time {2: 60us}")
    assert refused(taktc, ROW, target, *WHOLE, *options) == [(place, f"{what}: {target} has no such order", hint)]


def test_hints_name_a_plan_that_takes_the_option(taktc: Tool) -> None:
    ((_, _, hint),) = refused(taktc, ROW, "megatron-layout", "--plan", "shared")
    assert hint == "--plan stages --granularity block keeps every call of a block in one stage"


def test_hints_for_a_step_are_options_of_steps(taktc: Tool) -> None:
    step = ("--microbatches", "2", "--order")
    found = refused(taktc, ROW, "megatron-layout", *step, "zb-v")
    cut, order = "--cut equal cuts a step between layers", "--order 1f1b gives every rank of a step one stage"
    assert [hint for _, _, hint in found] == [cut, order]
    found = refused(taktc, ROW, "megatron-layout", *step, "1f1b", "--cut", "equal", "--stages", "2")
    assert [hint for _, _, hint in found] == ["--stages 4 has stages of 2"]


@pytest.mark.parametrize("plan", ["list", "laminar"])
def test_plans_of_other_structure_are_refused(taktc: Tool, plan: str) -> None:
    ((_, message, hint),) = refused(taktc, ROW, "megatron-layout", "--plan", plan)
    assert message.endswith("without accelerator 0 that leads 0:8: megatron-layout has whole stages only")
    assert hint == "use --plan stages"


@pytest.mark.parametrize(
    ("model", "layers", "what", "hint"),
    [
        (
            "encoder_decoder",
            ("--set", "encoder_layers=3", "--set", "decoder_layers=3"),
            "'t5_decoder.0.attn_norm'" + SECOND,
            "'encoder_decoder' calls 't5_encoder' 3 times, 't5_decoder' 3 times, 'token_embedding' 2 times; "
            + ROW_ONLY,
        ),
        (
            "resnet50",
            (),
            "'bottleneck_projected.0.a.conv_bn.f'" + SECOND,
            f"'resnet50' calls 'bottleneck' 12 times, 'bottleneck_projected' 4 times; {ROW_ONLY}",
        ),
        (
            "research_dag",
            (),
            "'research_dag' calls no block more than once, and torchtitan is for a row of layers",
            ROW_ONLY,
        ),
    ],
)
def test_models_that_are_no_row_of_layers_are_refused(
    taktc: Tool, examples: Path, model: str, layers: tuple[str, ...], what: str, hint: str
) -> None:
    """Whatever the plan: it is the first thing said."""
    platform = ("--platform", examples / "dgx_a100_16.takt", "--plan", "list", "--effort", "0.1")
    result = taktc(examples / f"{model}.takt", *platform, *layers, "--quiet", "--emit", "torchtitan")
    assert result.code == 1
    assert f"error: {what}\n" in result.err
    assert f"hint: {hint}\n" in result.err


@pytest.fixture
def row(build: Made, operator: Any) -> Made:
    """Two stages, changed: ``row(head={"stage": 0}, stages=[[0, 1]])``; a name that is not yet there adds an operator.

    Operators: embed; a0 and b0, a1 and b1, a2 and b2, a3 and b3, which are layers; norm and head.
    """

    def make(
        stages: Sequence[Sequence[int]] = ((0, 1), (2, 3)),
        states: dict[str, tuple[str, int]] | None = None,
        **changes: dict[str, Any],
    ) -> ModuleOp:
        specs: dict[str, dict[str, Any]] = {"embed": {"reads": ["x"], "stage": 0, "block": ("embed", 0)}}
        last = "embed"
        for i in range(4):
            for name in (f"a{i}", f"b{i}"):
                specs[name] = {"reads": [last], "stage": i // 2, "block": ("layer", i)}
                last = name
        for name in ("norm", "head"):
            specs[name] = {"reads": [last], "stage": 1, "block": ("head", 0)}
            last = name
        for name, change in changes.items():
            specs[name] = specs.get(name, {}) | change
        order = sorted(specs, key=lambda name: specs[name].get("at", list(specs).index(name)))
        operators = []
        for start, name in enumerate(order):
            spec = {k: v for k, v in specs[name].items() if k != "at"}
            place = spec.pop("on", stages[spec["stage"]][:2])
            operators.append(operator(name, time=10, sets=[place], start=10 * start, results=[4], **spec))
        most = 1 + max(p for granted in stages for p in granted)
        options = {"inputs": {"x": 4}, "outputs": ["head"], "stages": stages, "states": states or {}}
        return build(operators, pattern=100, accelerators=most, **options)

    return make


def complaints(module: ModuleOp, target: str = "megatron-layout") -> list[tuple[str, str | None]]:
    with pytest.raises(TaktError) as caught:
        emitter(target)(module)
    return [(d.message.replace(target, "X"), d.hint) for d in caught.value.diagnostics]


def test_the_row_itself_is_not_refused(row: Made) -> None:
    assert [emitter(name)(row()) != "" for name in FORMATS] == [True] * 3
    assert "'Ett|ttL'" in emitter("megatron-layout")(row())


THREE = {"stages": ((0, 1), (2, 3), (4, 5))}
CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "the embedding is cut": (
        {"position": {"at": 0.5, "reads": ["embed"], "stage": 1}}
        | {name: {"stage": 1 + (name[1] > "1")} for name in ("a0", "b0", "a1", "b1", "a2", "b2", "a3", "b3")}
        | {"a0": {"reads": ["position"], "stage": 1}, "norm": {"stage": 2}, "head": {"stage": 2}}
        | THREE,
        "'position' is in stage 1 and part of the embedding: X has that in the first stage, 0",
        f"make the embedding a block: {CUT}",
    ),
    "the head is cut": (
        {"head": {"stage": 2}} | THREE,
        "'norm' is in stage 1 and part of the head: X has that in the last stage, 2",
        CUT,
    ),
    "a stage is wider than its operators": (
        {"stages": ((0, 1), (2, 3, 4, 5))},
        "'a2' runs on 2 of the 4 accelerators of its stage: the ranks of X have one width",
        "--allotments 2 has stages of 2",
    ),
    "an operator runs on fewer": (
        {"head": {"on": [2]}},
        "'head' cannot run on 2 accelerators, as 10 of 11 operators do: X has one tensor-parallel degree for all",
        "no number of accelerators suits all operators; write a time for one into each",
    ),
    "a rank has two stages in a row": (
        {"a3": {"stage": 2}, "b3": {"stage": 2}, "norm": {"stage": 2}, "head": {"stage": 2}}
        | {"stages": ((0, 1), (2, 3), (2, 3))},
        "'a3' begins stage 2 on rank 1, and it is the turn of rank 0: X has no such order",
        "--plan stages gives every rank one stage",
    ),
    "there is a second row": (
        {"c0": {"at": 2.5, "reads": ["x"], "stage": 0, "block": ("other", 0)}}
        | {"c1": {"at": 2.6, "reads": ["c0"], "stage": 0, "block": ("other", 1)}},
        "'c0' is of a second kind of layers, and X is for a row of one kind",
        f"'test' calls 'layer' 4 times, 'other' 2 times; {ROW_ONLY}",
    ),
    "layers do not follow each other": (
        {"a2": {"reads": ["x"]}},
        "'a2' begins layer 2, which reads nothing from layer 1",
        "X is for layers in one row",
    ),
    "the second layer does not follow the first": (
        {"a1": {"reads": ["x"]}},
        "'a1' begins layer 1, which reads nothing from layer 0",
        "X is for layers in one row",
    ),
    "a layer reads one far before": (
        {"a3": {"reads": ["b2", "a0"]}},
        "'a3' in layer 3 reads 'a0' in layer 0",
        "X hands on from one layer to the next only",
    ),
    "the head reads the embedding": (
        {"head": {"reads": ["norm", "embed"]}},
        "'head' in the head reads 'embed' in the embedding",
        "X hands on from one layer to the next only",
    ),
    "an operator stands between layers": (
        {"scale": {"at": 4.5, "reads": ["b1"], "stage": 0}, "a2": {"reads": ["scale"]}},
        "'scale' stands between two layers, and X is for layers in a row",
        "make it part of 'layer'",
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("target", ["megatron-layout", "torchtitan"])
def test_what_is_no_row_on_ranks_is_refused(row: Made, case: str, target: str) -> None:
    changes, message, hint = CASES[case]
    found = complaints(row(**changes), target)
    assert [(message, hint.replace("X", target))] == found


def test_a_rank_without_layers_is_for_others_than_vllm(row: Made) -> None:
    alone = {"norm": {"stage": 2}, "head": {"stage": 2}} | THREE
    assert "'Ett|tt|L'" in emitter("megatron-layout")(row(**alone))
    what = "'norm' is in stage 2, which has no layer: X has one in every stage"
    assert complaints(row(**alone), "vllm-partition") == [(what, "--plan stages --stages 2 makes fewer stages")]


def test_what_feeds_the_head_only_is_not_the_embedding(row: Made) -> None:
    """Labels are read in the last stage, wherever they stand in the source."""
    labels = {"labels": {"at": -1, "reads": ["x"], "stage": 1}, "head": {"reads": ["norm", "labels"]}}
    assert "'Ett|ttL'" in emitter("megatron-layout")(row(**labels))


def test_what_later_micro_batches_read_is_no_part_of_the_row(row: Made) -> None:
    """As in decoding: the next token is read by the embedding, keys and values by the layer itself, and worse."""
    states = {"token": ("head", 2), "keys": ("a3", 2), "first": ("a0", 1), "labels": ("late", 1)}
    late = {"at": -1, "reads": ["x"], "stage": 1}
    early = {"at": 1.5, "reads": ["first"], "stage": 0}
    reads = {"embed": ["x", "token"], "b0": ["a0", "early"], "a1": ["b0", "labels"], "head": ["norm", "late"]}
    reads["a3"] = ["b2", "keys", "first"]
    module = row(states=states, late=late, early=early, **{name: {"reads": found} for name, found in reads.items()})
    assert "PARTITION=2,2\n" in emitter("vllm-partition")(module)
