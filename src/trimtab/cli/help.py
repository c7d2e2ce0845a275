"""Help from a file that was made from the dataclasses, so that it waits for neither torch nor tyro.

`python -m trimtab.cli.help_file` makes the file again; a test holds it equal to the dataclasses.
"""

from __future__ import annotations

import json
import re
import shutil
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("help.json")
ASKED = ("-h", "--help")
WIDE = 28
"""Columns of a flag and its value; longer ones have a line of their own."""
GRID = re.compile(r"(hs)-(\w+)-(\w+)|(side-none)-(\w+)")
"""Methods that differ in a space and a loss alone."""

TOPICS = {
    "needed": ("pairs", "dial", "to", "out"),
    "positional": (),
    "flags": (),
    "pairs": (
        *("pairs", "persona-positive", "persona-negative", "persona-template", "suite", "suites"),
        *("holdout", "limit", "train-limit", "test-limit", "data-root"),
        *("columns", "skip-bad", "max-length", "skip-missing"),
    ),
    "dials": ("dial", "alpha", "condition", "with", "with-alpha", "force"),
    "": (),
    "prompts": (
        *("prompt", "prompts", "system", "prompt-style", "system-role", "template-kwargs", "date"),
    ),
    "model": ("model", "models", "dtype", "load-in", "device", "trust-remote-code"),
    "running": (
        *(
            "out",
            "overwrite",
            "store",
            "trunk",
            "jobs",
            "ray",
            "threads",
            "processes",
            "dry-run",
            "title",
        ),
        *("config", "quiet"),
    ),
}
"""Groups of flags in order, and flags that go there; at "" stand those of dataclasses in a verb's own."""

BESIDE = {
    "dial.kind": (
        "--dial.kind KIND",
        "Another dial: adapter, vector, reft, rotation or logits. Its flags: METHOD --dial.kind KIND --help",
    ),
    "config": ("--config FILE", "A YAML file with the same keys; flags go before it."),
    "trust-remote-code": (
        "--trust-remote-code",
        "Run the Python code that a model's folder brings.",
    ),
}
"""Flags that are no fields: taken before the others are read."""

Entry = dict[str, Any]
"""What a verb says of itself: `about`, and `groups` of a title, a text and (flag, help)."""


# ---- from the file ------------------------------------------------------------------------------


def find(words: Sequence[str]) -> str | None:
    """The help that a command line asks for, where the file has it."""
    if not any(word in ASKED for word in words) or any("--dial.kind" in word for word in words):
        return None
    if list(words[:1]) == ["fit"] and words[1:2] and words[1] in ASKED:
        return methods_page()
    known = contents()
    for n in (3, 2, 1):
        if (name := " ".join(words[:n])) in known["verbs"]:
            entry = known["verbs"][name]
            groups = [known["groups"][g] for g in entry["groups"]]
            return page(name, {**entry, "groups": groups})
    return None


def page(verb: str, entry: Entry) -> str:
    """A verb's help, as wide as the terminal."""
    width = _width()
    flags = [flag for _, _, flags in entry["groups"] for flag in flags]
    needed = [usage for usage, text in flags if "(required)" in text]
    usage = textwrap.fill(
        " ".join(["usage: trimtab", verb, *needed, "[flags]"]), width, subsequent_indent=" " * 9
    )
    lines = [usage]
    for part in entry["about"].split("\n\n"):
        lines += ["", *textwrap.wrap(part, width)]
    for title, about, flags in entry["groups"]:
        lines += ["", *textwrap.wrap(f"{title}: {about}".rstrip(), width)]
        for flag, text in flags:
            lines += _item(flag, text, WIDE, width)
    return "\n".join(lines)


def methods_page() -> str:
    """`trimtab fit --help`."""
    head = (
        "usage: trimtab fit METHOD --pairs SPEC --out DIR [flags]\n\n  trimtab fit METHOD --help\n"
    )
    return f"{head}\n{list_methods()}"


def list_methods(prefix: str | None = None) -> str:
    """The methods under where their dial sits, with what they optimise; those that differ in a space
    and a loss alone in one line, unless a prefix of names is given (empty: all)."""
    known: dict[str, list[str]] = contents()["methods"]
    shown = {name: said for name, said in known.items() if name.startswith(prefix or "")}
    if prefix is None:
        shown = _folded(shown)
    column, lines = max(map(len, shown), default=0) + 4, []
    for where in dict.fromkeys(where for where, _ in shown.values()):
        lines.append(f"{where}:")
        for name, (its, what) in shown.items():
            if its == where and prefix is None:
                lines += _item(name, what, column, _width())
            elif its == where:
                lines.append(f"  {name:<{column - 4}}  {what}")  # a line each, for grep
    return "\n".join(lines)


def _folded(methods: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Methods, with one line for those that differ in a space and a loss alone."""
    found = {name: m for name in methods if (m := GRID.fullmatch(name))}
    spaces = ", ".join(dict.fromkeys(m[2] for m in found.values() if m[1]))
    losses = ", ".join(dict.fromkeys(m[3] for m in found.values() if m[1]))
    one = {
        "hs": (
            "hs-SPACE-LOSS",
            f"a loss on hidden states, compared in a space: {spaces}; {losses}",
        ),
        "side-none": ("side-none-LOSS", "the same losses at the inputs of o_proj and down_proj"),
    }
    shown: dict[str, list[str]] = {}
    for name, (where, what) in methods.items():
        if m := found.get(name):
            name, what = one[m[1] or m[4]]
        shown[name] = [where, what]
    return shown


def _item(name: str, text: str, column: int, width: int) -> list[str]:
    lines = textwrap.wrap(text, max(30, width - column), break_on_hyphens=False) or [""]
    head = f"  {name}"
    if len(head) + 2 > column:
        heads = textwrap.wrap(
            name if len(head) <= width else name.replace(",", ", "),
            width,
            break_on_hyphens=False,
            initial_indent="  ",
            subsequent_indent=" " * 6,
        )
        return [*heads, *(" " * column + line for line in lines)]
    return [f"{head:<{column}}{lines[0]}", *(" " * column + line for line in lines[1:])]


def _width() -> int:
    return max(50, shutil.get_terminal_size((100, 0)).columns)


def contents() -> dict[str, Any]:
    """What the file holds: methods, verbs, groups of flags."""
    return json.loads(FILE.read_text("utf-8"))


# ---- from the dataclasses -----------------------------------------------------------------------


def describe(kind: Any, about: str, **given: Any) -> Entry:
    """What a verb says of itself, of the dataclass of its flags; `given` goes to tyro."""
    import tyro

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        parser = tyro.extras.get_parser(kind, **given)
    groups: dict[str, tuple[str, str, list[tuple[str, str]]]] = {}
    topic_of = {flag: title for title, flags in TOPICS.items() for flag in flags}
    found: list[tuple[str, str, tuple[str, str]]] = []
    for group in parser._action_groups:
        for action in group._group_actions:
            if action.default == "==SUPPRESS==":  # --help
                continue
            text = re.sub(
                r" *\(default: (None|False|''|)\)", "", " ".join((action.help or "").split())
            )
            title = (group.title or "").partition(" ")[0].replace("options", "flags")
            said = "" if title in TOPICS else " ".join((group.description or "").split())
            if title == "flags":
                title = topic_of.get(action.option_strings[0][2:], title)
            title = "needed" if "(required)" in text else title
            value = f" {action.metavar}" if action.metavar else ""
            names = action.option_strings
            if value == "" and len(names) == 2:  # a switch: what is not so by itself
                names = names[action.default is True :][:1]
                text = text.replace(" (default: True)", "")
            flag = ", ".join(names) + value
            found.append((title, said, (flag.strip(), text)))
    given_flags = {flag.split()[0].strip(",") for _, _, (flag, _) in found}
    if given_flags & {"--model", "--models"}:
        found.append(("model", "", BESIDE["trust-remote-code"]))
    if {"--train.epochs", "--objective.beta"} & given_flags and "dial" in [f[0] for f in found]:
        found.append(("dial", "", BESIDE["dial.kind"]))
    found.append(("running", "", BESIDE["config"]))
    order = [*TOPICS]
    within = [flag for flags in TOPICS.values() for flag in flags]

    def place(item: tuple[str, str, tuple[str, str]]) -> tuple[int, int]:
        flag = item[2][0].split()[0][2:]
        shown = within.index(flag) if item[0] in TOPICS and flag in within else len(within)
        return order.index(item[0] if item[0] in order else ""), shown

    found.sort(key=place)
    for title, said, flag in found:
        groups.setdefault(title, (title, said, []))[2].append(flag)
    return {"about": about, "groups": [*groups.values()]}
