"""What takt adds to xDSL: found by ``xdsl-opt``, ``xdsl-gui`` and any tool that reads ``xdsl.universe``."""

from xdsl.ir import Dialect
from xdsl.universe import Universe

from passes import get_all_passes


def get_takt() -> Dialect:
    """The takt dialect."""
    from dialects.takt import Takt

    return Takt


TAKT_UNIVERSE = Universe(all_dialects={"takt": get_takt}, all_passes=get_all_passes())
