"""Makes `help.json`, from which help is shown, of the dataclasses: `python -m trimtab.cli.help_file`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from trimtab.cli import VERBS, main_of
from trimtab.cli.help import FILE
from trimtab.cli.parse import Described, describing
from trimtab.studies import STUDIES


def collect() -> dict[str, Any]:
    """What the file holds."""
    from trimtab.training.methods import METHODS

    def lines() -> Iterator[list[str]]:
        for verb in VERBS:
            if verb == "fit":
                yield from (["fit", name] for name in METHODS)
            elif verb == "anchor":
                yield from (["anchor", word] for word in ("run", "check", "report"))
            elif verb == "study":
                yield from (["study", "run", name] for name in STUDIES)
                yield from (["study", word] for word in ("check", "report"))
            elif verb not in ("methods", "completion"):
                yield [verb]

    groups: dict[str, Any] = {}
    verbs: dict[str, Any] = {}
    for verb, *words in lines():
        try:
            with describing():
                main_of(verb)(words)
        except Described as found:
            keys = []
            for group in found.entry["groups"]:
                digest = hashlib.sha256(json.dumps(group).encode()).hexdigest()[:6]
                keys.append(f"{group[0]} {digest}")
                groups[keys[-1]] = group
            verbs[" ".join([verb, *words])] = {"about": found.entry["about"], "groups": keys}
    methods = {m.name: (m.where, m.what) for m in METHODS.values()}
    return {"methods": methods, "verbs": verbs, "groups": dict(sorted(groups.items()))}


def text_of(found: Mapping[str, Any]) -> str:
    """The file's text: a line a method, verb and flag, so that changes can be read and merged."""

    def line(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False)

    parts = []
    for part in ("methods", "verbs"):
        inner = ",\n".join(f"  {line(key)}: {line(value)}" for key, value in found[part].items())
        parts.append(f" {line(part)}: {{\n{inner}\n }}")
    shown = []
    for key, (title, about, flags) in found["groups"].items():
        inner = ",\n".join(f"   {line(flag)}" for flag in flags)
        shown.append(f"  {line(key)}: [{line(title)}, {line(about)}, [\n{inner}\n  ]]")
    parts.append(' "groups": {\n' + ",\n".join(shown) + "\n }")
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    FILE.write_text(text_of(collect()), "utf-8")
    print(FILE)
