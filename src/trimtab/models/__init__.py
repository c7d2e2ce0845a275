"""Loading any causal language model, finding its parts by structure, and naming it by content.

`load` takes a Hub id, a local folder, a `.gguf` file or `smollm2-135m`, the embedded default. The
parts (`layers`, `embed`, `final_norm`, `head`) are found by what they are, never by a table of
architectures. A model is known by a record of parts (`source_of`): its weights, in whatever files,
dtype or format, what a forward pass reads of its config, tokenizer, template, quantisation.
"""

from trimtab.models.compiled import uncompiled, unwrapped
from trimtab.models.digests import cache_root
from trimtab.models.files import DEFAULT_MODEL, SECOND_MODEL, hub_folder, hub_id, on_hub, wheel_file
from trimtab.models.heads import head_logits, head_shape, head_weight
from trimtab.models.identity import (
    Source,
    differences,
    known_source,
    old_digest_of,
    source_of,
)
from trimtab.models.loading import (
    check,
    depth_of,
    digest_of,
    folder_of,
    identify,
    load,
    load_tokenizer,
    resolve_device,
    resolve_dtype,
)
from trimtab.models.parts import (
    context,
    embed,
    final_norm,
    head,
    layer_paths,
    layers,
    learned_positions,
    n_layers,
    text_config,
    trunk,
)
from trimtab.models.plain import own_tensors, plain_copy, strip_marks
from trimtab.models.quantised import (
    bare,
    dense_weight,
    differentiable,
    is_plain,
    is_quantised,
    present,
    quantisation_digest,
    quantisation_name,
    quantisation_of,
    rows_depend,
    settle,
)
from trimtab.models.quantising import check_load_in
from trimtab.models.reading import inferring, reading

__all__ = [
    "DEFAULT_MODEL",
    "SECOND_MODEL",
    "Source",
    "bare",
    "cache_root",
    "check",
    "check_load_in",
    "context",
    "dense_weight",
    "depth_of",
    "differences",
    "differentiable",
    "digest_of",
    "embed",
    "final_norm",
    "folder_of",
    "head",
    "head_logits",
    "head_shape",
    "head_weight",
    "hub_folder",
    "hub_id",
    "identify",
    "inferring",
    "is_plain",
    "is_quantised",
    "known_source",
    "layer_paths",
    "layers",
    "learned_positions",
    "load",
    "load_tokenizer",
    "n_layers",
    "old_digest_of",
    "on_hub",
    "own_tensors",
    "plain_copy",
    "present",
    "quantisation_digest",
    "quantisation_name",
    "quantisation_of",
    "reading",
    "resolve_device",
    "resolve_dtype",
    "rows_depend",
    "settle",
    "source_of",
    "strip_marks",
    "text_config",
    "trunk",
    "uncompiled",
    "unwrapped",
    "wheel_file",
]
