"""The takt language: text to syntax tree (:func:`parse`) and to IR of level 0 (:func:`load`)."""

from frontend.load import load
from frontend.parser import parse
from frontend.source import Source

__all__ = ["Source", "load", "parse"]
