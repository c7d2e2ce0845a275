"""Every setting of every method has its help: the string below the field."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
from collections.abc import Iterator
from typing import Any

import pytest

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
