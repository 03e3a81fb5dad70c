"""A discrete-event simulator of scheduled graphs, in two modes.

* :func:`time_triggered` starts every operator exactly as scheduled and fails when data is late, an accelerator is busy
  or memory overflows.
* :func:`self_timed` keeps only the order of operators on each accelerator and injects micro-batches one period apart;
  every operator starts as soon as it can.

It reads :mod:`compiler.view` and shares no code with the solver or the checker: that is what makes agreement of the
three worth something.
"""

from compiler.simulate.errors import SimulationError
from compiler.simulate.report import Report
from compiler.simulate.self_timed import self_timed
from compiler.simulate.time_triggered import time_triggered

__all__ = ["Report", "SimulationError", "self_timed", "time_triggered"]
