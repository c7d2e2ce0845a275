"""steering-vectors' side, in a lane and in the peers' environment (it wants transformers below 5, and is
installed there without its pins): the released package, unmodified. Nothing of trimtab is imported."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from safetensors.torch import save_file
from steering_vectors import train_steering_vector  # pyright: ignore[reportMissingImports]
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.lane import Channel


def main(spec: dict[str, Any], channel: Channel) -> None:
    """All directions of a set of contrast pairs a turn, by `train_steering_vector` as it stands: mean
    differences after every block."""
    model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(spec["model"])
    texts = [tuple(pair) for pair in json.loads(Path(spec["texts"]).read_text())]
    batch = spec["batch"]

    def once() -> dict[str, Any]:
        found = train_steering_vector(model, tokenizer, texts, batch_size=batch).layer_activations
        save_file({str(k): v.contiguous() for k, v in found.items()}, spec["out"])
        return {}

    once()  # warm-up
    positions = 0
    for a in range(0, len(texts), batch):
        for side in zip(*texts[a : a + batch], strict=True):
            shape = tokenizer(list(side), padding=True, return_tensors="pt")["input_ids"].shape
            positions += shape[0] * shape[1]
    channel.serve(once, {"positions": positions})


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Channel())
