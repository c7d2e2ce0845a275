"""`trimtab methods`."""

from __future__ import annotations


def main(words: list[str]) -> None:
    """List the methods under where their dial sits, with what they optimise."""
    from trimtab.fit.methods import METHODS

    width = max(map(len, METHODS))
    for where in dict.fromkeys(m.where for m in METHODS.values()):
        print(f"{where}:")
        for m in METHODS.values():  # a line each, however long: for grep
            if m.where == where:
                print(f"  {m.name:<{width}}  {m.what}")
    print("\nEvery field of a method: trimtab fit METHOD --help")
