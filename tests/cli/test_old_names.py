"""Verbs and flags of earlier versions: each still means something, and says once what it is now."""

from __future__ import annotations

import importlib
import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from trimtab.cli.help import FILE
from trimtab.cli.parse import _now, parse
from trimtab.errors import ConfigError
from trimtab.old_names import ELSEWHERE, MOVED, new_names
from trimtab.progress import Notice

HERE = Path(__file__).parent


def old_flags() -> Iterator[tuple[str, list[str]]]:
    """Verbs of the first version, methods of `fit` among them, with their flags."""
    every: list[str] = []
    for line in (HERE / "old_flags.txt").read_text("utf-8").splitlines():
        names, _, flags = line.partition(":")
        verb, *methods = names.split()
        if methods == ["*"]:
            every = flags.split()
        elif verb == "fit":
            yield from ((f"fit {m}", [*every, *flags.split()]) for m in methods)
        else:
            yield names, flags.split()


@pytest.mark.filterwarnings("ignore::trimtab.progress.Notice")
def test_every_flag_of_the_first_version_is_one_today_or_has_a_new_name():
    today = json.loads(FILE.read_text("utf-8"))
    bare = re.compile(r"(^|\.)no-")
    seen = 0
    for verb, flags in old_flags():
        groups = today["verbs"][verb]["groups"]
        shown = [flag.split()[0][2:] for g in groups for flag, _ in today["groups"][g][2]]
        known = {bare.sub(r"\1", name).replace("-", "_") for name in shown}
        for flag in flags:
            assert _now(flag.replace("-", "_"), known) in known, f"{verb} --{flag}"
            seen += 1
    assert seen > 1500


@dataclass(frozen=True)
class Flags:
    """A little."""

    dial: str = ""
    """Which."""
    alpha: tuple[float, ...] = (1.0,)
    """How far."""
    limit: int | None = None
    """How many."""
    prompt_style: str = ""
    """How."""
    steps: int = 3
    """A flag of an old name that is one today."""
    quiet: bool = False
    """A switch."""


def flags(*words: str, verb: str = "test") -> Flags:
    return parse(Flags, words, verb=verb, about="A test.")


@pytest.mark.parametrize(
    ("words", "found", "said"),
    [
        (["--alphas", "1", "2"], Flags(alpha=(1.0, 2.0)), "--alphas is --alpha now"),
        (["--n=3"], Flags(limit=3), "--n is --limit now"),
        (["--no-chat"], Flags(prompt_style="plain"), "--chat is --prompt-style now"),
        (["--chat", "--n", "2"], Flags(limit=2, prompt_style="chat"), "--chat is --prompt-style"),
        (["--steps", "5"], Flags(steps=5), ""),
    ],
)
def test_old_flags_work_and_say_what_they_are_now(words, found, said):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert flags(*words) == found
    texts = [str(w.message) for w in caught if issubclass(w.category, Notice)]
    assert said in (texts or [""])[0]


def test_old_keys_of_a_file(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("alphas: [1, 2]\nn: 3\n")
    with pytest.warns(Notice, match="--alphas is --alpha now"):
        assert flags("--config", str(file)) == Flags(alpha=(1.0, 2.0), limit=3)


@pytest.mark.parametrize(
    "words", [["d"], ["--limit", "3", "d"], ["d", "--quiet"], ["--quiet", "d", "--limit=3"]]
)
def test_a_dial_without_its_flag(words):
    with pytest.warns(Notice, match="the dial is --dial d now"):
        assert flags(*words, verb="calibrate").dial == "d"
    with pytest.raises(ConfigError, match="Unrecognized"):
        flags(*words, verb="evaluate")


@pytest.mark.filterwarnings("ignore::trimtab.progress.Notice")
@pytest.mark.parametrize("old", MOVED)
def test_modules_of_earlier_versions_are_found(old):
    module = importlib.import_module(old)
    for new in map(importlib.import_module, new_names(old)):
        assert {k for k in vars(new) if not k.startswith("_")} <= set(vars(module))


@pytest.mark.parametrize(("module", "name"), [(m, n) for m, ns in ELSEWHERE.items() for n in ns])
def test_names_that_moved_are_found_and_say_so_once(module, name):
    old, new = importlib.import_module(module), importlib.import_module(ELSEWHERE[module][name])
    vars(old).pop(name, None)
    with pytest.warns(Notice, match=f"{module}.{name} is {new.__name__}.{name} now"):
        assert getattr(old, name) is getattr(new, name)
    assert name in vars(old), "the next time it is there"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = old.nothing


@pytest.mark.filterwarnings("ignore::trimtab.progress.Notice")
def test_what_a_program_could_import_from_the_first_version_is_there():
    """The names in `__all__` of the package and of its rooms."""
    for line in (HERE / "old_names.txt").read_text("utf-8").splitlines():
        module, _, names = line.partition(": ")
        found = importlib.import_module(module)
        assert [n for n in names.split() if not hasattr(found, n)] == [], module
