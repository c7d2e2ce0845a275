"""Made these dials, run once with the code of fb81d27: `python make.py FOLDER` (PYTHONPATH: its src)."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

IDS = torch.tensor([[5, 17, 3, 29, 11, 8]])
PROMPTS = ("The sky is", "Two and two are", "Rome is in", "Water boils at")
ANSWERS = ((" blue.", " green."), (" four.", " five."), (" Italy.", " France."), (" 100.", " 3."))


def tiny_model() -> Any:
    """A random Llama of 10,000 weights, the same on every machine."""
    config = transformers.LlamaConfig(
        vocab_size=260,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
    )
    torch.manual_seed(0)
    model: Any = transformers.AutoModelForCausalLM.from_config(config).float()
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        if p.ndim >= 2:
            p.data = torch.randn(p.shape, generator=generator) * 0.3
    return model.eval().requires_grad_(False)


def tiny_tokenizer() -> Any:
    """A token a byte, after <eos> and <pad>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = ["<eos>", "<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    inner = Tokenizer(models.BPE(vocab={c: n for n, c in enumerate(letters)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<eos>", pad_token="<pad>"
    )


def acts(dial: Any, model: Any) -> list[float]:
    """What a dial does to the logits of a few tokens at alpha 1; of a reward dial a reward a token."""
    with torch.no_grad(), dial(model, 1.0):
        if dial.kind == "reward":
            h = model.model(input_ids=IDS).last_hidden_state
            found = dial.rewards((h - dial.mean) / dial.std if hasattr(dial, "mean") else h)[
                0, :, 0
            ]
        else:
            found = model(input_ids=IDS).logits[0, -1, :8]
    return [round(x, 6) for x in found.tolist()]


def main(out: Path) -> None:
    from trimtab.fit import METHODS, fit  # type: ignore[import-not-found]

    from trimtab import models
    from trimtab.pairs import Pair, PairSet

    model, tokenizer = tiny_model(), tiny_tokenizer()
    pairs = PairSet(
        [Pair(p, c, r, str(n)) for n, (p, (c, r)) in enumerate(zip(PROMPTS, ANSWERS, strict=True))],
        "made",
    )
    few = {"max_steps": 2, "pairs_per_step": 4, "learning_rate": 1e-2}
    wanted: dict[str, tuple[str, dict[str, Any]]] = {
        "vector": ("mean", {}),
        "adapter": ("dpo", {"rank": 2, "targets": "q_proj|down_proj"}),
        "ia3": ("dpo", {"tuner": "ia3", "targets": "q_proj|down_proj"}),
        "vera": ("dpo", {"tuner": "vera", "rank": 2, "targets": "q_proj|down_proj"}),
        "delora": ("dpo", {"tuner": "delora", "rank": 2, "targets": "q_proj|down_proj"}),
        "road": ("dpo", {"tuner": "road", "targets": "q_proj|down_proj"}),
        "rotation": ("rotation", {"rank": 2}),
        "logits": ("iav", {"rank": 2}),
        "reward": ("dph", {"aggregate": "mean"}),
    }
    acted = {}
    for name, (method, dial) in wanted.items():
        named = METHODS[method]
        recipe: Any = named.recipe
        if method != "mean":
            recipe = dataclasses.replace(
                recipe,
                dial=dataclasses.replace(recipe.dial, **dial),
                train=dataclasses.replace(recipe.train, **few),
            )
        made = fit(
            dataclasses.replace(named, recipe=recipe), model, tokenizer, pairs, out=out / name
        )
        acted[name] = acts(made, model)
    model.save_pretrained("model")
    tokenizer.save_pretrained("model")
    loaded, its = models.load("./model", dtype="float32", device="cpu")
    made = fit("mean", loaded, its, pairs, out=out / "loaded")
    acted["loaded"] = acts(made, loaded)
    (out / "acts.json").write_text(json.dumps(acted, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
