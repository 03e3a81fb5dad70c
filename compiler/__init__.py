"""The compiler: the pipeline, the two tools, the targets and the simulator."""

__version__ = "0.1.0"
