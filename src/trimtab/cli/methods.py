"""`trimtab methods [PREFIX | --all]`."""

from __future__ import annotations

from trimtab.cli.help import list_methods
from trimtab.errors import ConfigError

USAGE = """\
usage: trimtab methods [PREFIX | --all]

The methods under where their dial sits. PREFIX: those whose names begin so; --all: every one, a line
each."""


def main(words: list[str]) -> None:
    """List the methods."""
    if words and words[0] in ("-h", "--help"):
        print(USAGE)
        return
    if len(words) > 1:
        raise ConfigError("methods: expected one prefix of names, or --all")
    text = list_methods(None if not words else "" if words[0] == "--all" else words[0])
    if not text:
        raise ConfigError(f"methods: no name begins with {words[0]!r} (trimtab methods --all)")
    print(text)
    print("\nEvery field of a method: trimtab fit METHOD --help")
