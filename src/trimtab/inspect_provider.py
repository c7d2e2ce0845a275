"""Inspect's entry point: names the provider `trimtab`, and brings torch only once it is asked for."""

from typing import Any

from inspect_ai.model import modelapi  # pyright: ignore[reportMissingImports]


@modelapi(name="trimtab")
def trimtab() -> Any:
    """The provider's class."""
    from trimtab.serve.provider import Provider

    return Provider
