"""A folder's own tokenizer, and digests of how it cuts text."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from trimtab.errors import ModelError
from trimtab.models.digests import digest_of_bytes, remembered
from trimtab.models.quiet import quiet_transformers
from trimtab.progress import warn

PROBE = (
    "It's 12,345.67 or 1234567 o'clock; I'LL've don't\n\n\n  indented\ttabs   blanks \r\n ",
    "camelCase snake_case x+=1; if(a==b){return!c;} https://example.org/a?b=c#d 3.14e-10",
    "ÀÉÎõü e\u0301 ﬁ ½ № 漢字かなカナ 한국어 русский العربية हिन्दी ไทย 🙂👩‍👩‍👧 «quoted» … —",
    " leading blank", "trailing blank ", "UPPER lower MiXeD", "''quotes''\"\"`` ...", "0 00 000 0000",
)  # fmt: skip
WORDS = 2000
"""So many of a vocabulary's own tokens are tried: what a rule would cut apart shows there."""


def load_own(folder: str, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a folder. Where the class that it names cuts text otherwise than the folder's
    tokenizer.json does, the file's own rule is taken, and that is said."""
    import transformers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        file = Path(folder) / "tokenizer.json"
        if not file.is_file():
            return tokenizer
        config = file.with_name("tokenizer_config.json")
        labels = digest_of_bytes(config) if config.is_file() else ""
        what = f"rule 1 {type(tokenizer).__name__} {labels} {transformers.__version__}"
        if remembered(file, what, lambda: {"agrees": agrees(tokenizer, file)})["agrees"]:
            return tokenizer
        own: Any = PreTrainedTokenizerFast.from_pretrained(folder, trust_remote_code=False)
    if not agrees(own, file):
        warn(
            f"{folder}: {type(tokenizer).__name__} cuts text otherwise than its tokenizer.json says, "
            "and the file's own rule cannot be had: tokens are not those of other tools"
        )
        return tokenizer
    warn(
        f"{folder}: its tokenizer.json cuts text otherwise than {type(tokenizer).__name__}, the class "
        "that it is labelled with; the file's own rule is used"
    )
    return own


def agrees(tokenizer: Any, file: Path) -> bool:
    """Whether a tokenizer cuts texts as a tokenizer.json does."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return True
    from tokenizers import Tokenizer

    own = Tokenizer.from_file(str(file))
    own.no_padding()
    own.no_truncation()
    vocabulary = sorted(own.get_vocab(with_added_tokens=False).values())
    ids = vocabulary[:: max(1, len(vocabulary) // WORDS)]
    texts = [*PROBE, *(text for i in ids if (text := own.decode([i])))]
    here = tokenizer(texts, add_special_tokens=False)["input_ids"]
    there = own.encode_batch(texts, add_special_tokens=False)
    return all(ids == found.ids for ids, found in zip(here, there, strict=True))


def tokenizer_digest(tokenizer: Any, ends: list[int]) -> str:
    """Digest of how a tokenizer cuts text, and of what ends one.

    Args:
        ends: ids that end a text by the settings of the model.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        text = backend.to_str()
        text = text[text.index('"added_tokens"') :]  # before it: padding, truncation
    else:
        text = json.dumps([type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())])
    special = {
        name: str(getattr(tokenizer, name, None))
        for name in ("bos_token", "eos_token", "unk_token")
    }
    flags = {name: getattr(tokenizer, name, None) for name in ("add_bos_token", "add_eos_token")}
    return _digest([text, special, flags, ends])


def template_digest(tokenizer: Any) -> str:
    """Digest of a tokenizer's chat template; `none` where there is none."""
    template = getattr(tokenizer, "chat_template", None)
    return _digest(template) if template else "none"


def end_ids(generation: Any, config: Any) -> list[int]:
    """Ids that end a text by a generation config, else by the model's."""
    for settings in (generation, config):
        if (ids := getattr(settings, "eos_token_id", None)) is not None:
            found = ids if isinstance(ids, list | tuple) else [ids]
            if not all(isinstance(i, int) for i in found):
                raise ModelError(f"eos_token_id: expected whole numbers, given {str(ids)[:80]}")
            return sorted(set(map(int, found)))
    return []


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
