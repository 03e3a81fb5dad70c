"""Runs training steps on two processes, for test_targets_torch_training.py: ``python gloo_training.py CASES FOLDER``.

A case is a model of operators (linear, tanh, add, loss), the schedule as CSV and its stages as JSON. Prints a JSON list
with, for each case, the greatest difference of an accumulated gradient to that of the model without a pipeline,
relative to its greatest value.
"""

import json
import os
import signal
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import _PipelineScheduleRuntime

from compiler.runtime.torch_pipelining import load

WORLD, WIDTH, ROWS, LIMIT = 2, 8, 2, 40


def parameter(name):
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    return torch.nn.Parameter(torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH**0.5)


def batch(case):
    generator = torch.Generator().manual_seed(1)
    return {x: torch.randn(ROWS * case["microbatches"], WIDTH, generator=generator) for x in case["inputs"]}


def compute(kind, values, weight):
    if kind == "linear":
        return values[0] @ weight
    if kind == "tanh":
        return torch.tanh(values[0])
    return sum(values) if kind == "add" else ((values[0] - values[1]) ** 2).mean().reshape(1)


class Stage(torch.nn.Module):
    """The module of a stage, as its line of the JSON says."""

    def __init__(self, case, line):
        super().__init__()
        self.case, self.line = case, line
        linear = [n for n in line["operators"] if case["operators"][n][0] == "linear"]
        self.weights = torch.nn.ParameterDict({n: parameter(n) for n in linear})

    def forward(self, *args, **inputs):
        line = self.line
        values = dict(zip(line["inputs"] if line["stage"] == 0 else line["receives"], args, strict=True)) | inputs
        for name in line["operators"]:
            kind, reads = self.case["operators"][name]
            values[name] = compute(kind, [values[r] for r in reads], self.weights[name] if kind == "linear" else None)
        found = tuple(values[x] for x in line["returns"])
        return found if len(found) > 1 else found[0]


def whole(case):
    """Accumulated gradients without a pipeline: the sum over micro-batches."""
    weights = {n: parameter(n) for n, (kind, _) in case["operators"].items() if kind == "linear"}
    parts = {x: v.split(ROWS) for x, v in batch(case).items()}
    for i in range(case["microbatches"]):
        values = {x: v[i] for x, v in parts.items()}
        for name, (kind, reads) in case["operators"].items():
            values[name] = compute(kind, [values[r] for r in reads], weights.get(name))
        values[name].sum().backward()
    return {n: w.grad for n, w in weights.items()}


def run(case):
    """The greatest relative difference on this process."""
    lines, me = case["stages"], dist.get_rank()
    modules = {x["stage"]: Stage(case, x) for x in lines if x["rank"] == me}
    given, tensor = torch.zeros(ROWS, WIDTH), torch.zeros(ROWS, WIDTH, requires_grad=True)
    last = len(lines) - 1
    made = [
        PipelineStage(
            module,
            index,
            len(lines),
            torch.device("cpu"),
            input_args=(tensor,) * len(module.line["receives"]) or (given,) * len(module.line["inputs"]),
            output_args=(torch.zeros(1, requires_grad=True),)
            if index == last
            else (tensor,) * len(module.line["returns"]),
        )
        for index, module in sorted(modules.items())
    ]
    schedule = _PipelineScheduleRuntime(
        made, case["microbatches"], loss_fn=lambda found, _: found.sum(), scale_grads=False
    )
    load(schedule, case["csv"])
    given = batch(case)
    args = [given[x] for x in modules[0].line["inputs"]] if 0 in modules else []
    kwargs = {x: given[x] for s, module in modules.items() if s for x in module.line["inputs"]}
    target = torch.zeros(case["microbatches"], 1)
    schedule.step(*args, **kwargs, **({"target": target} if last in modules else {}))
    expected, worst = whole(case), 0.0
    for module in modules.values():
        for name, weight in module.weights.items():
            worst = max(worst, float((weight.grad - expected[name]).abs().max() / expected[name].abs().max()))
    return worst


def work(rank, cases, folder):
    signal.alarm(LIMIT)
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=WORLD, timeout=timedelta(seconds=LIMIT / 2)
    )
    for number, case in enumerate(cases):
        (folder / f"{number}.{rank}.txt").write_text(str(run(case)))
        dist.barrier()
    dist.destroy_process_group()


def main():
    cases, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    child = os.fork()
    code = 1
    try:
        work(1 if child else 0, cases, folder)
        code = 0
    except Exception:
        traceback.print_exc()
    if not child or code:
        sys.stderr.flush()
        os._exit(code)
    if os.waitpid(child, 0)[1]:
        sys.exit("a process failed")
    found = [max(float((folder / f"{n}.{r}.txt").read_text()) for r in range(WORLD)) for n in range(len(cases))]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
