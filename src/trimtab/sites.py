"""Names of the places in a model where hidden states are read or edited."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from trimtab.errors import ConfigError

Site = int | str
"""`k`: the residual stream after decoder block k, before the final norm; `"embed"`: the embedding
output; `"final"`: the post-norm state that the LM head reads; `"module.path:in"` or
`"module.path:out"`, where a regular expression stands for all modules in whose path it is found,
`"PATTERN:in@0.3..0.9"` for those within these blocks (`states.expand_sites`)."""


def parse_sites(spec: str | int | Sequence[Site], n_layers: int) -> tuple[Site, ...]:
    """Sites by name. `"0.3..0.9"` is blocks floor(0.3 N) to ceil(0.9 N) - 1; `"0.5"` is
    block floor(0.5 N); `"5"`, `-1`,
    `"embed"`, `"final"`, `"module.path:in"`; commas join several.

    Raises:
        ConfigError: a block out of range, or nothing that can be read as a site.
    """
    if isinstance(spec, int):
        return (block_index(spec, n_layers),)
    if not isinstance(spec, str):
        return tuple(dict.fromkeys(s for part in spec for s in parse_sites(part, n_layers)))
    sites: list[Site] = []
    for part in (p.strip() for p in spec.split(",")):
        if match := re.fullmatch(r"(\d*\.\d+|[01])\.\.(\d*\.\d+|[01])", part):
            low, high = (float(g) for g in match.groups())
            # Rounded first: 0.55 * 100 is 55.00000000000001, and must not reach block 55.
            blocks = range(
                math.floor(round(low * n_layers, 9)), math.ceil(round(high * n_layers, 9))
            )
            if not 0 <= low < high <= 1 or not blocks:
                raise ConfigError(
                    f"site {part!r}: expected fractions of the depth, 0 <= a < b <= 1"
                )
            sites += blocks
        elif re.fullmatch(r"0?\.\d+", part):
            sites.append(math.floor(round(float(part) * n_layers, 9)))
        elif re.fullmatch(r"-?[0-9]{1,9}", part):
            sites.append(block_index(int(part), n_layers))
        elif part in ("embed", "final") or re.fullmatch(r".+:(in|out)(@[^:@]+)?", part):
            sites.append(part)
        else:
            raise ConfigError(
                f"site {part!r}: expected a block (0 to {n_layers - 1}, or negative), "
                "'a..b' in fractions, 'embed', 'final', 'module.path:in' or 'module.path:out'"
            )
    return tuple(dict.fromkeys(sites))


def block_index(k: int, n_layers: int) -> int:
    """Block `k`, negatives from the end, as an index from 0. Raises ConfigError out of range."""
    if not -n_layers <= k < n_layers:
        raise ConfigError(f"site {k}: the model has blocks 0 to {n_layers - 1}")
    return k % n_layers


def from_hidden_states_index(index: int, n_layers: int) -> Site:
    """The site of transformers' `hidden_states[index]`: 0 is the embedding, the last entry is
    post-norm, entry k + 1 is block k."""
    index = range(n_layers + 1)[index]
    return "embed" if index == 0 else "final" if index == n_layers else index - 1


def from_llama_cpp_index(index: int) -> Site:
    """The site of llama.cpp's `direction.index`, which it adds after block `index`."""
    return index
