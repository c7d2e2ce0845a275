"""Every setting of every method has its help: the string below the field."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from trimtab.cli import VERBS
from trimtab.cli.completion import SCRIPTS, following
from trimtab.training import METHODS


def undocumented(value: Any) -> Iterator[str]:
    """Names of a dataclass's fields without help, its parts' among them."""
    documented: set[str] = set()
    for kind in type(value).__mro__[:-1]:
        body = ast.parse(inspect.getsource(kind)).body[0].body  # type: ignore[attr-defined]
        for field, after in itertools.pairwise(body):
            text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and text:
                documented.add(ast.unparse(field.target))
    for field in dataclasses.fields(value):
        if field.name not in documented:
            yield f"{type(value).__name__}.{field.name}"
        inner = getattr(value, field.name)
        if dataclasses.is_dataclass(inner):
            yield from undocumented(inner)


@pytest.mark.parametrize("kind", sorted({type(m.recipe) for m in METHODS.values()}, key=str))
def test_every_setting_has_its_help(kind):
    recipe = next(m.recipe for m in METHODS.values() if type(m.recipe) is kind)
    assert not list(undocumented(recipe))


# ---- completion in a shell -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "some", "others"),
    [
        ("", set(VERBS), set()),
        ("fit", set(METHODS), {"--pairs"}),
        ("fit dpo", {"--pairs", "--dial.rank", "--help"}, {"--dials"}),
        ("fit dpo --pairs", set(), {"--pairs"}),  # a file, or a value of one's own
        ("fit dpo --pairs x", {"--out"}, set()),
        ("evaluate --prompt-style", {"plain", "chat"}, {"--out"}),
        ("study", {"run", "check", "report"}, {"anchoring"}),
        ("study run", {"compare", "heads"}, {"run"}),
        ("study run compare", {"--suites", "--jobs"}, set()),
        ("anchor", {"run", "check"}, set()),
        ("no-such-verb", set(), set(VERBS)),
    ],
)
def test_what_may_follow(words, some, others):
    found = following(words.split())
    assert some <= set(found)
    assert not others & set(found)
    assert len(found) == len(set(found))
    assert bool(found) == bool(some)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("trimtab compl", "completion"),
        ("trimtab export --al", "--alpha"),
        ("trimtab fit mea", "mean"),
    ],
)
def test_bash_completes(typed, offered):
    """In bash itself; zsh runs the same function by its bashcompinit."""
    words = typed.split()
    lines = [
        f'trimtab() {{ {shlex.quote(sys.executable)} -m trimtab "$@"; }}',
        'eval "$(trimtab completion bash)"',
        f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; _trimtab",
        'echo "${COMPREPLY[@]}"; complete -p trimtab',
    ]
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)], capture_output=True, text=True, timeout=60
    )
    found, registered = done.stdout.splitlines()
    assert offered in found.split()
    assert all(word.startswith(words[-1]) for word in found.split())
    assert registered == "complete -o default -F _trimtab trimtab"
    assert SCRIPTS["zsh"].endswith(SCRIPTS["bash"])
    assert "bashcompinit" in SCRIPTS["zsh"]
