"""`trimtab recipe FILE...`: results that are quoted somewhere, made again from a file.

    run: compare                      # a verb, with what stands before its flags: `fit dpo`
    out: docs/results/innerpo/facts   # where it writes
    flags:                            # the verb's flags, as in its --config
      seeds: [0, 1, 2]

The page is that of the folder in `out` whose name the file's begins with (`innerpo-facts.yaml`:
`docs/results/innerpo`), else of `out` itself.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import FlagCreatePairsOff, Positional

from trimtab.cli import main_of
from trimtab.cli.parse import Checked, checking, parse
from trimtab.config_files import read_yaml
from trimtab.errors import ConfigError, near

KEYS = ("run", "out", "flags")
NOT_TO_RUN = ("recipe", "methods", "completion", "push", "pack", "reproduce")
"""Verbs that write no results."""


@dataclass(frozen=True)
class Args:
    """Flags."""

    files: Annotated[tuple[Path, ...], Positional]
    """Recipes, run in this order. What was done already is not done again. As in recipes/x-*.yaml, and
    with a flag for each: recipes/x-*.yaml -- --jobs 2."""
    render_only: Annotated[bool, FlagCreatePairsOff] = False
    """Run nothing; make the pages from what lies in the folders."""
    thin: Annotated[bool, FlagCreatePairsOff] = False
    """Leave out of the result files what no page reads, as for committed ones; the cells keep it."""
    quiet: bool = False
    """No progress."""


@dataclass(frozen=True)
class Recipe:
    """A file: a verb's command line, and where its results go."""

    file: Path
    verb: str
    words: tuple[str, ...]
    out: Path

    @property
    def page(self) -> Path:
        """The folder whose page is made."""
        stem = self.file.stem
        for folder in (self.out, *self.out.parents):
            if folder.name and (stem == folder.name or stem.startswith(f"{folder.name}-")):
                return folder
        return self.out


def main(words: list[str]) -> None:
    """Check all recipes, run them, make their pages."""
    words, more = _split(words)
    args = parse(
        Args,
        words,
        verb="recipe",
        about="Run what recipes/*.yaml say, then render their pages; words after -- go to each verb.",
    )
    if not args.files:
        raise ConfigError("recipe: expected at least one file (see trimtab recipe --help)")
    more += ["--quiet"] if args.quiet else []
    recipes = [read_recipe(file, more) for file in args.files]
    places = [r.out for r in recipes]
    if twice := [str(p) for p in places if places.count(p) > 1]:
        raise ConfigError(f"out: {twice[0]} is given by two recipes")
    for recipe in () if args.render_only else recipes:
        if not args.quiet:
            print(f"\n{recipe.file}: trimtab {recipe.verb} {shlex.join(recipe.words)}", flush=True)
        main_of(recipe.verb)(list(recipe.words))
    from trimtab.studies.pages import write_pages
    from trimtab.study.committed import thin

    for recipe in recipes if args.thin else ():
        thin(recipe.out)
    made = [
        page
        for folder in dict.fromkeys(recipe.page for recipe in recipes)
        for page in write_pages(folder.parent, [folder.name])
    ]
    if args.render_only and not made:
        raise ConfigError("nothing to render: none of the recipes has been run")
    for page in made:
        print(page)


def read_recipe(file: Path, more: list[str]) -> Recipe:
    """A recipe whose verb and flags exist.

    Args:
        more: flags that are added, before those of the file.

    Raises:
        ConfigError: the file cannot be read or lacks a key; no such verb; no such flag, or a value of
            the wrong kind. Nothing has been run.
    """
    from trimtab.cli import VERBS

    values = read_yaml(file, "expected the keys run (a verb), out (a folder) and flags")
    expected = f"expected the keys run (a verb), out (a folder) and flags; it has {_list(values)}"
    for key in KEYS[:2]:
        if not isinstance(values.get(key), str) or not values[key].strip():
            said = "is missing" if key not in values else f"is {values[key]!r}"
            raise ConfigError(f"{file}: the key {key!r} {said}; {expected}")
    if extra := [key for key in values if key not in KEYS]:
        raise ConfigError(
            f"{file}: unknown key {extra[0]!r}{near(str(extra[0]), KEYS)}; {expected}"
        )
    if not isinstance(values.get("flags") or {}, dict):
        raise ConfigError(f"{file}: flags: expected flags with their values")
    try:
        verb, *before = shlex.split(values["run"])
    except ValueError as error:
        raise ConfigError(f"{file}: run: {values['run']!r}: {error}") from None
    known = [v for v in VERBS if v not in NOT_TO_RUN]
    if verb not in known:
        raise ConfigError(
            f"{file}: run: no verb {verb!r}{near(verb, known)} (known: {', '.join(known)})"
        )
    recipe = Recipe(
        file, verb, (*before, "--config", str(file), *more), Path(values["out"]).expanduser()
    )
    try:
        with checking():
            main_of(verb)(list(recipe.words))
    except Checked:
        return recipe
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if str(file) in text else f"{file}: {text}") from None
    raise ConfigError(f"{file}: run: {values['run']} takes no flags")


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """What stands before and after `--`."""
    if "--" not in words:
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


def _list(values: dict[Any, Any]) -> str:
    return ", ".join(map(str, values)) or "none"
