"""The compiler: the pipeline, the two tools, the targets and the simulator.

```
from compiler import compile_model

module = compile_model("examples/gpt3_175b.takt", platform="examples/dgx_a100_64.takt")
```
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xdsl.dialects.builtin import ModuleOp

    from compiler.pipeline import Observer, Options
    from frontend.source import Source

__all__ = ["__version__", "compile_model"]

__version__ = "0.1.0"


def compile_model(
    model: str | Path | Source | ModuleOp,
    *,
    platform: str | Path | Source | None = None,
    overrides: Mapping[str, object] | None = None,
    name: str | None = None,
    to: str = "scheduled",
    options: Options | None = None,
    observer: Observer | None = None,
) -> ModuleOp:
    """Compile a model to the level ``to`` and return the module.

    ``model`` is the path of a ``.takt`` file, a text as ``Source(name, text)``, or a module of any level,
    which is used up. ``platform`` is a path or a text too; ``overrides`` sets parameters of the model and
    ``name`` picks one of several models. ``options`` are those of :class:`compiler.pipeline.Options`.

    Raises :class:`dialects.diagnostics.TaktError` with everything that is wrong with the input, or when
    there is no schedule.
    """
    # Imported here: the command line comes through this package and must answer --help at once.
    from xdsl.dialects.builtin import ModuleOp

    from compiler import pipeline
    from frontend import Source, load

    context = pipeline.new_context()
    if isinstance(model, ModuleOp):
        module = model
    else:
        source = model if isinstance(model, Source) else Source.read(model)
        machine = platform if isinstance(platform, Source) or platform is None else Source.read(platform)
        texts = {key: str(value) for key, value in (overrides or {}).items()}
        module = load(source, platform=machine, overrides=texts, model=name)
    told = observer or pipeline.SILENT
    pipeline.verify(module, told)
    return pipeline.run_pipeline(context, module, to=to, options=options or pipeline.Options(), observer=told)
