"""Exported alignment heads give the dial's logits where trimtab cannot be imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from test_heads import IDS, head, logits
from trimtab import models
from trimtab.errors import ConfigError, DialError
from trimtab.export.heads import export_lora, export_merged

SCRIPT = """
import sys

class Refuse:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "trimtab":
            raise ImportError("out of bounds")

sys.meta_path.insert(0, Refuse())
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

try:
    import trimtab
    raise SystemExit("trimtab could be imported")
except ImportError:
    pass
kind, base, export, file, merge = sys.argv[1:]
ids = load_file(file)["ids"]
model = AutoModelForCausalLM.from_pretrained(base if kind == "lora" else export).eval()
embedding = model.get_input_embeddings().weight.clone()
if kind == "lora":
    from peft import PeftModel
    model = PeftModel.from_pretrained(model, export).eval()
    if merge == "merge":
        model = model.merge_and_unload()
with torch.no_grad():
    out = model(input_ids=ids, use_cache=False).logits
assert torch.equal(model.get_input_embeddings().weight, embedding)
save_file({"logits": out.contiguous()}, file + ".out")
"""


def elsewhere(tmp_path: Path, kind: str, base: Path, export: Path, merge: str = "") -> torch.Tensor:
    file = tmp_path / "ids.safetensors"
    save_file({"ids": IDS}, file)
    words = [sys.executable, "-I", "-c", SCRIPT, kind, str(base), str(export), str(file), merge]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    return load_file(f"{file}.out")["logits"]


@pytest.mark.parametrize("name", ["llama", "gpt2"])  # gpt2 is tied
def test_lora_in_plain_peft(name: str, tiny: Any, saved_model: Any, tmp_path: Path) -> None:
    model = tiny(name)
    base = saved_model(name)
    dial = head(model, "low_rank" if name == "llama" else "hidden")
    out = export_lora(dial, model, tmp_path / "lora", 1.5)
    with dial(model, 1.5):
        wanted = logits(model)
    tied = name == "gpt2"
    assert (out / "base").is_dir() is tied
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["lora_alpha"] == 1.5 * config["r"]
    for merge in ("", "merge"):
        found = elsewhere(tmp_path, "lora", out / "base" if tied else base, out, merge)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert (logits(model) - wanted).abs().max() > 0.1


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_merged_in_plain_transformers(name: str, tiny: Any, tmp_path: Path) -> None:
    model = tiny(name)
    dial = head(model, "full")
    out = export_merged(dial, model, tmp_path / "merged", -1.0)
    with dial(model, -1.0):
        wanted = logits(model)
    found = elsewhere(tmp_path, "merged", out, out)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert model.config.tie_word_embeddings is (name == "gpt2")


def test_what_cannot_be_exported(tiny: Any, tmp_path: Path) -> None:
    model = tiny("llama")
    for shape, options, message in (
        ("full", {}, "a full head has no low rank"),
        ("mlp", {}, "an mlp cannot"),
        ("low_rank", {"sites": "1"}, "over several sites"),
        ("low_rank", {"base_head": "trainable"}, "a trained base head"),
    ):
        with pytest.raises(DialError, match=message):
            export_lora(head(model, shape, **options), model, tmp_path / "lora")
    with pytest.raises(ConfigError, match="alpha 0"):
        export_lora(head(model), model, tmp_path / "lora", 0.0)
    dial = head(model)
    dial.info.base_model, dial.info.base_digest = "other", "0" * 64
    models.source_of(model)
    for export in (export_lora, export_merged):
        with pytest.raises(DialError, match="made for other"):
            export(dial, model, tmp_path / "lora")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(ConfigError, match="exists"):
        export_merged(head(model), model, tmp_path / "taken")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]
