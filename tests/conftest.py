"""What the tests share: tiny random models of many architectures, a tiny tokenizer, the real small
model, real data where there is any.

Everything tiny is built from a config with a fixed seed; nothing is downloaded. `tiny("llama")` (a
fixture that gives a function) is built once a session and must be left as it was found;
`tiny("llama", fresh=True)` is yours to change.
"""

from __future__ import annotations

import gc
import json
import math
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
import transformers
from torch import nn

from trimtab import models
from trimtab.batching import Encoded, Row
from trimtab.batching.spans import BARE
from trimtab.errors import ModelError
from trimtab.pairs import Pair, PairSet
from trimtab.store import Store

torch.set_num_threads(1)


LONG = {"test_wheel.py", "test_engine.py", "test_panel.py", "test_study.py"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take a minute come first: at the end one worker would do them while the others are idle."""
    items.sort(key=lambda item: item.path.name not in LONG)


def pytest_collection_finish() -> None:
    """What was imported stays: the Trainer collects garbage in every run, and would look at all of it."""
    gc.collect()
    gc.freeze()


WINDOW = 8
"""Sliding window of the tiny models that have one."""
VOCAB = 320

TINY = ("llama", "qwen3", "gemma3", "gpt2", "neox", "qwen3moe", "mistral")
"""The architectures on which every invariant is tested."""

_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
_GQA = {**_COMMON, "num_key_value_heads": 2}
_MIXED = ["sliding_attention", "full_attention"] * 2

CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**_GQA),
    "qwen3": lambda: transformers.Qwen3Config(**_GQA, head_dim=8),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **_GQA, head_dim=8, sliding_window=WINDOW, layer_types=_MIXED, query_pre_attn_scalar=8
    ),
    # Dropouts stay at the config's default of 0.1: reading must not depend on them.
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCAB,
        n_embd=32,
        n_layer=4,
        n_head=4,
        n_positions=256,
        bos_token_id=0,
        eos_token_id=0,
    ),
    "neox": lambda: transformers.GPTNeoXConfig(**_COMMON),
    "qwen3moe": lambda: transformers.Qwen3MoeConfig(
        **_GQA, head_dim=8, moe_intermediate_size=24, num_experts=4, num_experts_per_tok=2
    ),
    "mistral": lambda: transformers.MistralConfig(**_GQA, head_dim=8, sliding_window=WINDOW),
    # Models with something after the LM head.
    "gemma2": lambda: transformers.Gemma2Config(
        **_GQA,
        head_dim=8,
        sliding_window=WINDOW,
        query_pre_attn_scalar=8,
        final_logit_softcapping=3.0,
        attn_logit_softcapping=20.0,
    ),
    "granite": lambda: transformers.GraniteConfig(**_GQA, logits_scaling=2.0),
    "cohere": lambda: transformers.CohereConfig(**_GQA, logit_scale=0.3),
    "opt": lambda: transformers.OPTConfig(
        **{k: v for k, v in _COMMON.items() if k != "intermediate_size"},
        ffn_dim=48,
        word_embed_proj_dim=32,
        dropout=0.1,
    ),
    # Models that cannot be packed.
    "bloom": lambda: transformers.BloomConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        n_layer=4,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    ),
    "mamba": lambda: transformers.MambaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=4,
        state_size=4,
        eos_token_id=0,
        pad_token_id=1,
    ),
    "recurrentgemma": lambda: transformers.RecurrentGemmaConfig(
        **{**_GQA, "num_hidden_layers": 4},
        lru_width=32,
        attention_window_size=64,
        logits_soft_cap=3.0,
    ),
    "lfm2": lambda: transformers.Lfm2Config(
        **_GQA, layer_types=["conv", "full_attention", "conv", "full_attention"]
    ),
}


def build(
    name: str, attention: str = "sdpa", dtype: torch.dtype = torch.float32, seed: int = 0
) -> Any:
    """A tiny random causal LM whose logits are of order 6, in eval mode, weights frozen."""
    torch.manual_seed(seed)
    model: Any = transformers.AutoModelForCausalLM.from_config(
        CONFIGS[name](), attn_implementation=None if name in ("mamba",) else attention
    )
    model = model.float()
    generator = torch.Generator().manual_seed(seed)
    for parameter_name, p in model.named_parameters():
        if p.ndim >= 2 and "conv" not in parameter_name.lower() and "A_log" not in parameter_name:
            p.data = torch.randn(p.shape, generator=generator) * (
                1.5 / math.sqrt(min(p.shape[-2:]))
            )
        elif "norm" in parameter_name.lower() or "ln_" in parameter_name:
            p.data += 0.2 * torch.randn(
                p.shape, generator=generator
            )  # so that no norm is a plain one
    model.eval().requires_grad_(False)
    ids = torch.randint(2, VOCAB, (2, 24), generator=generator)
    head = model.get_output_embeddings()
    if getattr(model.config, "final_logit_softcapping", None) is None:
        spread = model(input_ids=ids).logits.std().item()
        head.weight.data *= 3 / spread  # tied or not: one step is near enough
    return model.to(dtype)


_built = cache(build)


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Any]:
    """`tiny(name, attention="sdpa", dtype=torch.float32, fresh=False)`: a tiny model."""

    def get(
        name: str,
        attention: str = "sdpa",
        dtype: torch.dtype = torch.float32,
        *,
        fresh: bool = False,
    ) -> Any:
        return (build if fresh else _built)(name, attention, dtype)

    return get


# ---- tokenizer ----------------------------------------------------------------------------------

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_CORPUS = [
    "The capital of France is Paris. The capital of Italy is Rome. "
    "Is the sky blue? Yes, the sky is blue.",
    "a aa aaa aaaa the there then other another answer answers nothing something everything",
    "Two and two are four. A triangle has three sides. Water boils at one hundred degrees.",
] * 4


@cache
def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers import models as kinds

    tokenizer = Tokenizer(kinds.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<eos>", "<pad>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>"
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A byte-level BPE tokenizer with 60 merges, eos 0, pad 1 and a chat template."""
    return _tokenizer()


@pytest.fixture
def saved_model(tiny: Callable[..., Any], tokenizer: Any, tmp_path: Path) -> Callable[..., Path]:
    """`saved_model(name="llama")`: a tiny model and its tokenizer in a folder that `load` takes."""

    def save(name: str = "llama", folder: str = "model", **options: Any) -> Path:
        where = tmp_path / folder
        tiny(name).save_pretrained(where, **options)
        tokenizer.save_pretrained(where)
        return where

    return save


# ---- data ---------------------------------------------------------------------------------------


def random_rows(
    seed: int = 0,
    shapes: tuple[tuple[int, tuple[int, ...]], ...] = ((14, (5, 9, 3)), (2, (4, 1)), (21, (7, 6))),
) -> Encoded:
    """Rows of random tokens: (prompt length, lengths of the answers), each answer ended by EOS.
    The first answer of a row is the chosen one, against every other."""
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(2, VOCAB, (n,), generator=generator).tolist())

    rows, pair = [], 0
    for number, (n_prompt, lengths) in enumerate(shapes):
        answers = tuple((*draw(n), 0) for n in lengths)
        pairs = tuple((0, r) for r in range(1, len(lengths)))
        rows.append(
            Row(
                f"item{number}",
                draw(n_prompt),
                answers,
                pairs,
                tuple(range(pair, pair + len(pairs))),
            )
        )
        pair += len(pairs)
    return Encoded(tuple(rows), 0, 0, "random")


@pytest.fixture
def rows() -> Encoded:
    """Three rows of random tokens, longer than the tiny models' windows, 2 to 3 answers each."""
    return random_rows()


@pytest.fixture
def few_pairs() -> PairSet:
    """Six plain pairs of four items; one item has three answers."""
    return PairSet(
        [
            Pair("The capital of France is", " Paris.", " Rome.", "france"),
            Pair("The capital of Italy is", " Rome.", " Paris.", "italy"),
            Pair("Two and two are", " four.", " five.", "sum"),
            Pair("Two and two are", " four.", " twenty-two.", "sum"),
            Pair("A triangle has", " three sides.", " nine.", "triangle"),
            Pair("Water boils at", " one hundred degrees.", " ten.", "water"),
        ],
        "few",
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store of readings of this test's own."""
    return Store(tmp_path / "readings")


def find_data() -> Path | None:
    """The folder of real data: `TRIMTAB_DATA`, else `../shared/data` beside the checkout."""
    named = os.environ.get("TRIMTAB_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data; skips where there is none."""
    folder = find_data()
    if folder is None:
        pytest.skip("no real data: set TRIMTAB_DATA to the folder that holds genies/, ethics/, …")
    return folder


# ---- the real model -----------------------------------------------------------------------------


@pytest.fixture(scope="session")
def smollm2() -> tuple[Any, Any]:
    """SmolLM2-135M-Instruct in float32 and its tokenizer; leave both as you found them.

    The converted copy stays in the cache folder (`TRIMTAB_CACHE` or ~/.cache/trimtab), so that a
    machine converts it once.
    """
    try:
        return models.load("smollm2-135m", dtype="float32", device="cpu")
    except ModelError as error:
        pytest.skip(f"the embedded model is not installed: {error}")


def count_calls(*modules: nn.Module) -> tuple[list[int], Callable[[], None]]:
    """How often each module is called from now on, proofs left out, and a function that ends the
    counting."""
    counts = [0] * len(modules)

    def hook(index: int) -> Callable[..., None]:
        def run(*_: Any) -> None:
            counts[index] += not BARE.get()

        run.__module__ = (
            "trimtab"  # of a stranger's hook nobody knows what it does: nothing is kept
        )
        return run

    handles = [m.register_forward_pre_hook(hook(i)) for i, m in enumerate(modules)]

    def done() -> None:
        for handle in handles:
            handle.remove()

    return counts, done


@pytest.fixture
def checked_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports checked in this process, not in one that cannot import trimtab, which takes seconds."""
    from trimtab.export import check

    def run(spec: dict[str, Any], stage: Path, python: Any) -> dict[str, Any]:
        receipt = check.compare(spec)
        (stage / "receipt.json").write_text(json.dumps(receipt))
        return receipt

    monkeypatch.setattr("trimtab.export.run._run_check", run)
