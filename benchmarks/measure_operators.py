"""Time the operators of real models on the accelerator of this machine, one shard at a time.

A moldable operator on k accelerators runs the same kernel on each, on a k-th of its work. One
accelerator is therefore enough to measure the compute part of a table of times: this program runs
each operator at the shapes that k = 1, 2, 4, 8 leave on one accelerator and prints the median time.
Collectives are not in these figures.

    python benchmarks/measure_operators.py [--json measured.json]

Needs torch with a CUDA device; nothing else of takt.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F

MODELS = {
    # name: tokens, model width, hidden width, heads, key-value heads, vocabulary
    "gpt3_175b": (2048, 12288, 49152, 96, 96, 50257),
    "llama2_70b": (4096, 8192, 28672, 64, 8, 32000),
    "llama3_8b": (4096, 4096, 14336, 32, 8, 128256),
}


def tensor(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def median_us(run: Callable[[], object]) -> float:
    """Median time of one call in microseconds, over 15 batches of calls that last about 10 ms each."""

    def batch(n: int) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(n):
            run()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) * 1000 / n

    batch(3)
    n = max(3, min(500, int(10_000 / max(batch(5), 1.0))))
    return statistics.median(batch(n) for _ in range(15))


def operators(model: str, k: int) -> dict[str, Callable[[], object]]:
    """The operators of one block (and the head) as one of ``k`` accelerators sees them."""
    tokens, d, hidden, heads, kv_heads, vocab = MODELS[model]
    head_dim = d // heads
    kv = max(1, kv_heads // k)
    x, x_split = tensor(tokens, d), tensor(tokens, d // k)
    hidden_split = tensor(tokens, hidden // k)
    weights = {
        "q": tensor(d // k, d),
        "kv": tensor(kv * head_dim, d),
        "o": tensor(d, d // k),
        "up": tensor(hidden // k, d),
        "down": tensor(d, hidden // k),
        "head": tensor(-(-vocab // k), d),
    }
    q = tensor(1, heads // k, tokens, head_dim)
    keys = tensor(1, kv, tokens, head_dim).repeat_interleave(heads // k // kv, dim=1)
    norm = tensor(d)
    logits = F.linear(x, weights["head"])
    found: dict[str, Callable[[], object]] = {
        "linear.q": lambda: F.linear(x, weights["q"]),
        "linear.kv": lambda: F.linear(x, weights["kv"]),
        "linear.o": lambda: F.linear(x_split, weights["o"]),
        "linear.up": lambda: F.linear(x, weights["up"]),
        "linear.down": lambda: F.linear(hidden_split, weights["down"]),
        "linear.head": lambda: F.linear(x, weights["head"]),
        "attention.causal": lambda: F.scaled_dot_product_attention(q, keys, keys, is_causal=True),
        "gelu": lambda: F.gelu(hidden_split),
        "mul": lambda: torch.mul(hidden_split, hidden_split),
        "softmax": lambda: torch.softmax(logits, dim=-1),
    }
    if k == 1:  # these do not split
        found["layer_norm"] = lambda: F.layer_norm(x, (d,), norm, norm)
        found["residual"] = lambda: torch.add(x, x)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="also write the rows to this file")
    args = parser.parse_args()
    rows: list[dict[str, object]] = []
    device = torch.cuda.get_device_name()
    print(f"{device}, torch {torch.__version__}, bf16; median microseconds of one call on one accelerator")
    for model, sizes in MODELS.items():
        for k in (1, 2, 4, 8):
            for name, run in operators(model, k).items():
                us = median_us(run)
                rows.append({"model": model, "tokens": sizes[0], "operator": name, "k": k, "us": round(us, 2)})
                print(f"{model:12} {name:18} k={k}  {us:10.1f} us", flush=True)
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"device": device, "torch": torch.__version__, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
