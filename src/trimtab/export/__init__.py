"""Dials in other tools' formats."""

from trimtab.export.heads import export_lora, export_merged

__all__ = ["export_lora", "export_merged"]
