"""Loading any causal language model, finding its parts by structure, and naming it by content.

`load` takes a Hub id, a local folder, a `.gguf` file or `smollm2-135m`, the embedded default. The
parts (`layers`, `embed`, `final_norm`, `head`) are found by what they are, never by a table of
architectures. A model is known by a record of parts (`source_of`): its weights, in whatever files,
dtype or format, what a forward pass reads of its config, tokenizer, template, quantisation.
"""

from trimtab.models.digests import cache_root
from trimtab.models.files import DEFAULT_MODEL, hub_folder, hub_id, wheel_file
from trimtab.models.identity import (
    Source,
    differences,
    known_source,
    old_digest_of,
    source_of,
)
from trimtab.models.loading import (
    check,
    digest_of,
    folder_of,
    identify,
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
)

__all__ = [
    "DEFAULT_MODEL",
    "Source",
    "cache_root",
    "check",
    "differences",
    "digest_of",
    "embed",
    "final_norm",
    "folder_of",
    "head",
    "hub_folder",
    "hub_id",
    "identify",
    "known_source",
    "layer_paths",
    "layers",
    "load",
    "load_tokenizer",
    "n_layers",
    "old_digest_of",
    "resolve_device",
    "resolve_dtype",
    "source_of",
    "text_config",
    "wheel_file",
]
