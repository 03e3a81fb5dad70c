"""Output formats of a schedule: one file an emitter, each with ``emit(module, **options) -> str``."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

TARGETS: tuple[str, ...] = (
    *("json", "perfetto", "svg", "summary"),
    *("mpmd", "torch-csv", "megatron-layout", "torchtitan", "vllm-partition"),
)
"""The formats that need a schedule, by the name of ``--emit`` and ``-t``."""


def emitter(name: str) -> Callable[..., str]:
    """The ``emit`` of a format of :data:`TARGETS`; imports it only now."""
    if name not in TARGETS:
        raise KeyError(name)
    return import_module(f"compiler.targets.{name.replace('-', '_')}").emit
