"""Check that the IR keeps the rules of its level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import ModulePass

from dialects.levels import verify_level

Level = Literal["model", "moldable", "staged", "scheduled", "communicating", "programs"]


@dataclass(frozen=True)
class VerifyLevelPass(ModulePass):
    """Check every rule of a level and of the levels below it; the IR is left as it is.

    options:
      level: the level to check (default: the one the graph says it has)
    """

    name = "verify-level"

    level: Level | None = None

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        verify_level(op, self.level)
