"""Runs schedules on real processes, for test_targets_torch_csv.py: ``python gloo_pipelines.py CASES FOLDER``.

torch is imported once; four processes are forked after that and work through all cases. A case is a model of linear
operators ``tanh(sum of what it reads @ weight)``, the schedule as CSV and its stages as JSON. Every block of
accelerators is that many processes: leaders are in the group of the pipeline, the others help them with their share of
each operator. Prints a JSON list with, for each case, the greatest difference to the model without a pipeline, relative
to its greatest value.
"""

import json
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import _PipelineScheduleRuntime

from compiler.runtime.torch_pipelining import load

WORLD, WIDTH, ROWS, LIMIT = 4, 8, 2, 40


def weight(name):
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    return torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH**0.5


def batch(case):
    generator = torch.Generator().manual_seed(1)
    return {x: torch.randn(ROWS * case["microbatches"], WIDTH, generator=generator) for x in case["inputs"]}


def whole(case):
    values = batch(case)
    for name, reads in case["operators"].items():
        values[name] = torch.tanh(sum(values[x] for x in reads) @ weight(name))
    return [values[x] for x in case["outputs"]]


def share(name, x, block, group):
    """An operator on a block: the rows of the weight are split over its processes."""
    if len(block) == 1:
        return torch.tanh(x @ weight(name))
    size = WIDTH // len(block)
    mine = slice(size * block.index(dist.get_rank()), size * (block.index(dist.get_rank()) + 1))
    dist.broadcast(x, src=block[0], group=group)
    y = x[:, mine] @ weight(name)[mine]
    dist.all_reduce(y, group=group)
    return torch.tanh(y)


class Stage(torch.nn.Module):
    """The module of a stage, as its line of the JSON says."""

    def __init__(self, case, line, block, group):
        super().__init__()
        self.case, self.line, self.block, self.group = case, line, block, group

    def forward(self, *args, **inputs):
        line = self.line
        values = dict(zip(line["inputs"] if line["stage"] == 0 else line["receives"], args, strict=True)) | inputs
        for name in line["operators"]:
            x = sum(values[r] for r in self.case["operators"][name]) + torch.zeros(())
            values[name] = share(name, x, self.block, self.group)
        return tuple(values[x] for x in line["returns"])


def run(case):
    """Outputs on the process that leads the last stage, None on the others."""
    stages, me = case["stages"], dist.get_rank()
    accelerators = list(
        dict.fromkeys(p for rank in range(len(stages)) for x in stages if x["rank"] == rank for p in x["accelerators"])
    )
    blocks = {x["rank"]: [accelerators.index(p) for p in x["accelerators"]] for x in stages}
    groups = {rank: dist.new_group(block) for rank, block in sorted(blocks.items()) if len(block) > 1}
    leaders = dist.new_group([block[0] for _, block in sorted(blocks.items())])
    rank = next((r for r, block in blocks.items() if me in block), None)
    if rank is None:
        return None
    group = groups.get(rank)
    modules = {x["stage"]: Stage(case, x, blocks[rank], group) for x in stages if x["rank"] == rank}
    if me != blocks[rank][0]:
        cells = [c for c in case["csv"].splitlines()[rank].split(",") if "_" not in c]
        for name in (n for c in cells for n in modules[int(c.split("F")[0])].line["operators"]):
            share(name, torch.empty(ROWS, WIDTH), blocks[rank], group)
        return None
    tensor = torch.zeros(ROWS, WIDTH)
    made = [
        PipelineStage(
            module,
            index,
            len(stages),
            torch.device("cpu"),
            input_args=(tensor,) * len(module.line["receives"] or module.line["inputs"]),
            output_args=(tensor,) * len(module.line["returns"]),
            group=leaders,
        )
        for index, module in sorted(modules.items())
    ]
    schedule = _PipelineScheduleRuntime(made, case["microbatches"])
    load(schedule, case["csv"])
    given = batch(case)
    args = [given[x] for x in modules[0].line["inputs"]] if 0 in modules else []
    kwargs = {x: given[x] for s, module in modules.items() if s for x in module.line["inputs"]}
    return schedule.step(*args, **kwargs)


def work(rank, cases, folder):
    signal.alarm(LIMIT)
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=WORLD, timeout=timedelta(seconds=LIMIT / 2)
    )
    with torch.no_grad():
        for number, case in enumerate(cases):
            outputs = run(case)
            if outputs is not None:
                pairs = zip(outputs, whole(case), strict=True)
                worst = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
                (folder / f"{number}.txt").write_text(str(worst))
            dist.barrier()
    dist.destroy_process_group()


def main():
    cases, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    torch.set_num_threads(1)
    children = []
    for rank in range(WORLD):
        child = os.fork()
        if not child:
            code = 1
            try:
                work(rank, cases, folder)
                code = 0
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    codes = []
    while len(codes) < WORLD:
        child, status = os.wait()
        codes.append(status)
        if status:
            for other in children:
                if other != child:
                    try:
                        os.kill(other, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
    if any(codes):
        sys.exit("a process failed")
    print(json.dumps([float((folder / f"{n}.txt").read_text()) for n in range(len(cases))]))


if __name__ == "__main__":
    main()
