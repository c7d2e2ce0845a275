"""Dials for other tools: a file a format, each written with a receipt by a process of its own."""

from trimtab.export.export import FORMATS, REFUSED, export
from trimtab.export.gguf import (
    ControlVector,
    control_vector_dial,
    read_control_vector,
    write_control_vector,
)

__all__ = [
    "FORMATS",
    "REFUSED",
    "ControlVector",
    "control_vector_dial",
    "export",
    "read_control_vector",
    "write_control_vector",
]
