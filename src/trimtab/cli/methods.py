"""`trimtab methods`."""

from __future__ import annotations


def main(words: list[str]) -> None:
    """List the methods: where the dial sits, what it optimises."""
    from rich.console import Console
    from rich.table import Table

    from trimtab.fit.methods import METHODS

    table = Table(box=None, padding=(0, 2))
    for column in ("method", "where the dial sits", "what it does"):
        table.add_column(column, overflow="fold")
    for m in METHODS.values():
        table.add_row(m.name, m.where, m.what)
    Console().print(table)
    print("\nEvery field of a method: trimtab fit METHOD --help")
