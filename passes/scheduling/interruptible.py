"""CP-SAT such that an interrupt from the keyboard reaches the solvers that call it."""

from __future__ import annotations

import threading
from typing import Any


def solve(solver: Any, model: Any) -> Any:
    """The status of ``solver`` on ``model``; on an interrupt the search is stopped and KeyboardInterrupt passes on.

    Left alone, CP-SAT takes interrupts for itself: the caller never hears of one, and the next one ends the
    process, since the handler of Python is not put back. So the search runs in a thread, and we wait for it.
    """
    solver.parameters.catch_sigint_signal = False
    outcome: list[Any] = []
    failure: list[BaseException] = []

    def search() -> None:
        try:
            outcome.append(solver.solve(model))
        except BaseException as error:  # raised again by who waits
            failure.append(error)

    thread = threading.Thread(target=search, daemon=True)
    thread.start()
    try:
        thread.join()
    except KeyboardInterrupt:
        while thread.is_alive():  # a search that has not begun does not hear of it
            solver.stop_search()
            thread.join(0.01)
        raise
    if failure:
        raise failure[0]
    return outcome[0]
