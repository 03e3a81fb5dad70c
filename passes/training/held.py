"""Bytes that lie beside each parameter while a model is trained.

S. Rajbhandari, J. Rasley, O. Ruwase, Y. He, "ZeRO: memory optimizations toward training trillion parameter models",
SC 2020, section 3.1: parameters and gradients of 16 bits, and for Adam a master copy of the parameters, momentum and
variance in 32 bits: 2 + 2 + 12 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

STATES = {"none": 0, "sgd": 0, "momentum": 1, "adam": 2}
"""Numbers that an optimizer keeps for each parameter."""

MASTER = 4
"""Bytes of a master copy, and of each number that is kept beside it."""


@dataclass(frozen=True)
class Held:
    """``optimizer`` is a key of :data:`STATES`; with ``mixed`` what it works on has 32 bits at least."""

    optimizer: str
    mixed: bool

    def each(self, width: int) -> int:
        """Bytes for a parameter of ``width`` bytes: itself, its gradient, its master copy, the optimizer's numbers."""
        return 2 * width + self._copy(width) + self._states(width)

    def moved(self, params: int, width: int) -> int:
        """Bytes that a step of the optimizer reads and writes for ``params`` bytes of parameters.

        It reads the gradient, the parameter or its master copy, and the optimizer's numbers; it writes all but the
        gradient, which the next step begins anew.
        """
        copy = self._copy(width)
        return -(-params // width) * (width + (copy or width) + width + copy + 2 * self._states(width))

    def parts(self, held: int, width: int) -> tuple[int, int, int]:
        """Of ``held`` bytes, those of parameters of ``width`` bytes, of their gradients, and of the optimizer."""
        params = held * width // self.each(width)
        return params, params, held - 2 * params

    def bytes(self, params: int, width: int) -> int:
        """Bytes for ``params`` bytes of parameters of ``width`` bytes each; a part of one counts as a whole."""
        return -(-params // width) * self.each(width)

    def _wide(self, width: int) -> int:
        return max(width, MASTER) if self.mixed else width

    def _copy(self, width: int) -> int:
        wide = self._wide(width)
        return wide if wide > width and self.optimizer != "none" else 0

    def _states(self, width: int) -> int:
        return STATES[self.optimizer] * self._wide(width)
