"""`trimtab completion bash | zsh`: a script that completes verbs, methods, flags and their choices."""

from __future__ import annotations

import re
from collections.abc import Sequence

from trimtab.cli.help import contents
from trimtab.errors import ConfigError

USAGE = """\
usage: trimtab completion bash | zsh

A script for the shell, which completes verbs, methods, flags and their choices. In ~/.bashrc:

  eval "$(trimtab completion bash)"

or the same with zsh in ~/.zshrc."""

BASH = """\
_trimtab() {
    local found=$(trimtab completion words "${COMP_WORDS[@]:1:COMP_CWORD-1}" 2>/dev/null)
    COMPREPLY=($(compgen -W "$found" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _trimtab trimtab
"""
SCRIPTS = {
    "bash": BASH,
    "zsh": f"autoload -Uz compinit bashcompinit\ncompinit; bashcompinit\n{BASH}",
}


def main(words: list[str]) -> None:
    """Print a script, or (`words …`, for the script) what may follow some words."""
    if words[:1] == ["words"]:
        print("\n".join(following(words[1:])))
    elif words and words[0] in ("-h", "--help"):
        print(USAGE)
    elif len(words) == 1 and words[0] in SCRIPTS:
        print(SCRIPTS[words[0]], end="")
    else:
        raise ConfigError(f"completion: expected bash or zsh, given {' '.join(words) or 'nothing'}")


def following(words: Sequence[str]) -> list[str]:
    """What may follow the words after `trimtab`; nothing where a file or a value of one's own may."""
    from trimtab.cli import VERBS

    verbs = contents()["verbs"]
    if not words:
        return [*VERBS]
    depth = max((n for n in (1, 2, 3) if " ".join(words[:n]) in verbs), default=0)
    if not depth:
        begun = [name.split() for name in verbs if name.startswith(f"{' '.join(words)} ")]
        return list(dict.fromkeys(parts[len(words)] for parts in begun))
    groups = (contents()["groups"][key] for key in verbs[" ".join(words[:depth])]["groups"])
    flags = dict(
        (flag, value)
        for _, _, shown in groups
        for usage, _ in shown
        for flag, _, value in [usage.partition(" ")]
        if flag.startswith("--")
    )
    value = flags.get(words[-1], "")
    return (
        re.findall(r"[^{},\[\] ]+", value) if "{" in value else [] if value else [*flags, "--help"]
    )
