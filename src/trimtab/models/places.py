"""Sites in a model: the modules at which hidden states are read and edited, found by name."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from torch import Tensor, nn

from trimtab.errors import ConfigError, ModelError, near
from trimtab.models.compiled import uncompiled
from trimtab.models.parts import embed, final_norm, head, layer_paths, layers, n_layers
from trimtab.sites import Site, block_index, parse_sites


def module_at(model: nn.Module, site: Site) -> tuple[nn.Module, bool]:
    """The module at a site, and whether the site is its input (else its output).

    Raises:
        ConfigError: no such block or module path.
    """
    if isinstance(site, int):
        return layers(model)[block_index(site, n_layers(model))], False
    if site == "embed":
        return embed(model), False
    if site == "final":
        return final_norm(model), False
    path, _, side = site.rpartition(":")
    if not path or side not in ("in", "out"):
        raise ConfigError(
            f"site {site!r}: expected a block, 'embed', 'final', "
            "'module.path:in' or 'module.path:out'"
        )
    try:
        return model.get_submodule(path), side == "in"
    except AttributeError:
        raise ConfigError(f"site {site!r}: the model has no module {path!r}") from None


REGEX = re.compile(r"[\\^$*+?()\[\]{}|]")
"""What no block, fraction or module path has, and a regular expression over paths needs."""


def find_sites(model: nn.Module, spec: str | int | Sequence[Site]) -> tuple[Site, ...]:
    """Sites by name, as `parse_sites` and `expand_sites` have them, or by a regular expression over
    all module paths.

    `"0.5"`, `"3,-2"`, `"0.3..0.9"`, `"k_proj:in@0.3..0.9"`; `r"[.]self_attn[.]k_proj$"` is the output
    of every module whose path it is found in, a decoder layer among them as its block.

    Raises:
        ConfigError: nothing matches; a block out of range; not a regular expression.
    """
    sided = isinstance(spec, str) and re.search(r":(in|out)(@|$)", spec)
    if not isinstance(spec, str) or sided or not REGEX.search(spec):
        return expand_sites(model, parse_sites(spec, n_layers(model)))
    blocks = {path: k for k, path in enumerate(layer_paths(model))}
    found = available_layers(model, spec)[1]
    if not found:
        shapes = available_layers(model)[0]
        raise ConfigError(
            f"sites {spec!r}: no module's path matches{near(spec, shapes)} "
            f"(the model has {', '.join(shapes[:12])}{', …' if len(shapes) > 12 else ''})"
        )
    return tuple(blocks.get(path, f"{path}:out") for path in found)


def available_layers(
    model: nn.Module,
    regex_filter: str | None = None,
    layer_range: tuple[float, float] | None = None,
) -> tuple[list[str], list[str]]:
    """Modules that hidden states can be read at.

    Args:
        regex_filter: keep paths in which this regular expression is found.
        layer_range: keep what lies in these blocks, from the first up to, not including, the last:
            two fractions of the depth (floats) or two blocks (ints, negatives from the end).

    Returns:
        The distinct paths with every number as `{N}`, sorted; and the full paths, in the model's order.
        Modules without parameters are left out; a head tied to the embedding is not.

    Raises:
        ConfigError: not a regular expression, or an empty range.
    """
    try:
        pattern = re.compile(regex_filter or "")
    except re.error as error:
        raise ConfigError(f"{regex_filter!r}: not a regular expression ({error})") from None
    names = [n for n, m in model.named_modules() if n and next(m.parameters(), None) is not None]
    if layer_range is not None:
        count = n_layers(model)
        low, high = (
            math.floor(round(end * count, 9))
            if isinstance(end, float)
            else range(count + 1)[end]
            if 0 <= end <= count
            else block_index(end, count)
            for end in layer_range
        )
        if low >= high:
            raise ConfigError(f"layer_range {layer_range}: no block from {low} up to {high}")
        inside = layer_paths(model)[low:high]
        names = [n for n in names if any(n == p or n.startswith(p + ".") for p in inside)]
    full = [n for n in names if pattern.search(n)]
    return sorted({re.sub(r"\d+", "{N}", n) for n in full}), full


def expand_sites(model: nn.Module, sites: Sequence[Site]) -> tuple[Site, ...]:
    """Sites with patterns resolved. `PATTERN:in` and `PATTERN:out` stand for every module in whose
    path the regular expression is found, `PATTERN:in@0.3..0.9` for those within these blocks; the
    path of a module stands for itself.

    Raises:
        ConfigError: no module matches; the near names are listed.
    """
    found: list[Site] = []
    paths = {path for path, _ in model.named_modules()}
    for site in sites:
        if isinstance(site, int) or site in ("embed", "final"):
            found.append(site)
            continue
        pattern, _, rest = site.rpartition(":")
        side, _, where = rest.partition("@")
        if not where and pattern in paths:
            found.append(site)
        else:
            found += [f"{path}:{side}" for path in _matching(model, site, pattern, where)]
    return tuple(dict.fromkeys(found))


def _matching(model: nn.Module, site: str, pattern: str, where: str) -> list[str]:
    """Paths of the modules inside decoder layers in which a pattern is found."""
    count = n_layers(model)
    blocks = parse_sites(where, count) if where else range(count)
    try:
        search = re.compile(pattern).search
    except re.error as error:
        raise ConfigError(f"site {site!r}: not a regular expression ({error})") from error
    names: dict[str, None] = {}
    paths = []
    for k, (layer, prefix) in enumerate(zip(layers(model), layer_paths(model), strict=True)):
        for name, _ in layer.named_modules():
            if name:
                names.setdefault(name)
                if k in blocks and search(f"{prefix}.{name}"):
                    paths.append(f"{prefix}.{name}")
    if not paths:
        plain = pattern.rstrip("$").rpartition(".")[2]
        last = {n.rpartition(".")[2]: n for n in names}
        hint = near(plain, last) or f"; a block has {', '.join(names)}"
        raise ConfigError(f"site {site!r}: no module of the model matches{hint}")
    return paths


def input_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden states that a module is called with, by position or by name."""
    if args:
        return args[0]
    if "hidden_states" in kwargs:
        return kwargs["hidden_states"]
    return next(value for value in kwargs.values() if isinstance(value, Tensor))


def depth(model: nn.Module, site: Site) -> int:
    """The block after which a site has been computed; -1 before the first, N past the last."""
    if isinstance(site, int):
        return block_index(site, n_layers(model))
    if site == "embed":
        return -1
    module = site.rpartition(":")[0]
    for k, path in enumerate(layer_paths(model)):
        if module == path or module.startswith(path + "."):
            return k
    return n_layers(model)


def before(model: nn.Module, sites: Iterable[Site]) -> int:
    """The last block all of which is computed before anything at these sites is: block k itself for its
    output; -1 where there is none, or where it cannot be told."""
    sites, stack = list(sites), layers(model)
    ends = [block_index(site, len(stack)) for site in sites if isinstance(site, int)]
    named = {module_at(model, site)[0] for site in sites if not isinstance(site, int)}
    after = {head(model)}
    with suppress(ModelError):
        after.add(final_norm(model))
    if not named <= after | set(stack.modules()):  # an embedding, or what stands before the blocks
        return -1
    inside = (k for k, layer in enumerate(stack) if not named.isdisjoint(layer.modules()))
    return min(*ends, next(inside, len(stack)) - 1, len(stack) - 1)


@contextmanager
def seeing(model: nn.Module, site: Site, see: Callable[[Tensor], None]) -> Iterator[None]:
    """Call `see` with the hidden states `[B, T, d]` that pass a site, in every forward pass."""
    module, is_input = module_at(model, site)

    def at_input(_: nn.Module, args: Any, kwargs: Any) -> None:
        see(input_of(args, kwargs))

    def at_output(_: nn.Module, __: Any, out: Any) -> None:
        see(out[0] if isinstance(out, tuple | list) else out)

    if is_input:
        handle = module.register_forward_pre_hook(at_input, with_kwargs=True)
    else:
        handle = module.register_forward_hook(at_output)
    try:
        with uncompiled():
            yield
    finally:
        handle.remove()
