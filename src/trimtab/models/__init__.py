"""Loading any causal language model, finding its parts by structure, and naming it by content.

`load` takes a Hub id, a local folder, a `.gguf` file or `smollm2-135m`, the embedded default. The
parts (`layers`, `embed`, `final_norm`, `head`) are found by what they are, never by a table of
architectures. A model is identified by a digest of the tensors in its source file, so that a dial
or a cache made for it is recognised after conversion to another dtype or format.
"""

from trimtab.models.compiled import uncompiled, unwrapped
from trimtab.models.digests import cache_root
from trimtab.models.files import DEFAULT_MODEL, hub_folder, wheel_file
from trimtab.models.identity import Source, known_source, source_of
from trimtab.models.loading import (
    check,
    digest_of,
    folder_of,
    load,
    load_tokenizer,
    resolve_device,
    resolve_dtype,
)
from trimtab.models.parts import (
    embed,
    final_norm,
    head,
    layer_paths,
    layers,
    n_layers,
    text_config,
    trunk,
)

__all__ = [
    "DEFAULT_MODEL",
    "Source",
    "cache_root",
    "check",
    "digest_of",
    "embed",
    "final_norm",
    "folder_of",
    "head",
    "hub_folder",
    "known_source",
    "layer_paths",
    "layers",
    "load",
    "load_tokenizer",
    "n_layers",
    "resolve_device",
    "resolve_dtype",
    "source_of",
    "text_config",
    "trunk",
    "uncompiled",
    "unwrapped",
    "wheel_file",
]
