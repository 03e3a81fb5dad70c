"""A discrete-event simulator of scheduled graphs, in two modes.

* :func:`time_triggered` starts every operator and transfer exactly as scheduled and fails when data is late, an
  accelerator or a link is busy or memory overflows.
* :func:`self_timed` keeps only the order of operators and transfers on each accelerator and link and injects
  micro-batches one period apart; everything starts as soon as it can.

It reads :mod:`compiler.view` and shares no code with the solver, and with the checker only the definition of what a
transfer takes and occupies: that is what makes agreement of the three worth something.
"""

from compiler.simulate.errors import SimulationError
from compiler.simulate.report import Report
from compiler.simulate.self_timed import self_timed
from compiler.simulate.time_triggered import time_triggered

__all__ = ["Report", "SimulationError", "self_timed", "time_triggered"]
