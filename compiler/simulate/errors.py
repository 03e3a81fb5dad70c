"""What a simulation that goes wrong says."""

from __future__ import annotations

from typing import Literal

from dialects.diagnostics import Diagnostic, TaktError

Fault = Literal["data", "busy", "memory", "deadlock", "machine", "size", "link"]


class SimulationError(TaktError):
    """The schedule cannot be executed.

    ``fault`` is the kind of failure: ``data`` (an operand is late), ``busy`` (an accelerator is), ``memory`` (it
    overflows), ``deadlock`` (nothing can start), ``machine`` (no such accelerator), ``size`` (beyond 64-bit times),
    ``link`` (a port or wire is busy, or the time reserved for a transfer is too short).
    """

    def __init__(
        self, fault: Fault, message: str, *, operator: str = "", microbatch: int = -1, accelerator: int | None = None
    ):
        super().__init__(Diagnostic(f"simulation: {message}", rule=fault))
        self.fault: Fault = fault
        self.operator = operator
        self.microbatch = microbatch
        self.accelerator = accelerator
