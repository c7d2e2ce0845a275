"""Dials for other tools: a file a format, each written with a receipt by a process of its own."""

from trimtab.export.gguf import ControlVector, read_control_vector, write_control_vector
from trimtab.export.importing import control_vector_dial, import_dial
from trimtab.export.run import FORMATS, REFUSED, export

__all__ = [
    "FORMATS",
    "REFUSED",
    "ControlVector",
    "control_vector_dial",
    "export",
    "import_dial",
    "read_control_vector",
    "write_control_vector",
]
