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
from trimtab.dials import RewardDial
from trimtab.errors import ConfigError, DialError
from trimtab.export import export

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
file, *jobs = sys.argv[1:]
ids = load_file(file)["ids"]
for number, (base, adapter, merge) in enumerate(zip(*[iter(jobs)] * 3)):
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    embedding = model.get_input_embeddings().weight.clone()
    if adapter:
        from peft import PeftModel
        model = PeftModel.from_pretrained(model, adapter).eval()
        if merge:
            model = model.merge_and_unload()
    with torch.no_grad():
        out = model(input_ids=ids, use_cache=False).logits
    assert torch.equal(model.get_input_embeddings().weight, embedding)
    save_file({"logits": out.contiguous()}, f"{file}.{number}")
"""


def elsewhere(tmp_path: Path, *jobs: tuple[Path, Path | str, str]) -> list[torch.Tensor]:
    """Logits of each base, with its adapter, merged into it or not, in a process without trimtab."""
    file = tmp_path / "ids.safetensors"
    save_file({"ids": IDS}, file)
    words = [sys.executable, "-I", "-c", SCRIPT, str(file), *(str(w) for job in jobs for w in job)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    return [load_file(f"{file}.{n}")["logits"] for n in range(len(jobs))]


def test_heads_in_plain_peft_and_transformers(
    tiny: Any, tokenizer: Any, saved_model: Any, tmp_path: Path, checked_here: None
) -> None:
    """Of a tied model: attached and merged by PEFT, and as a checkpoint, in a process that cannot import
    trimtab; the embedding stays."""
    model, base, out = tiny("gpt2"), saved_model("gpt2"), tmp_path / "lora"
    dial = head(model, "hidden")
    receipt = export(dial, model, tokenizer, "peft", out, alpha=1.5, base=base)
    assert receipt["within_tolerance"]
    assert receipt["dial"]["kind"] == "logits"
    assert any("tied base" in lost for lost in receipt["not_carried_over"])
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["target_modules"] == ["lm_head"]
    assert config["base_model_name_or_path"] == "./base"
    full, whole = head(model, "full"), tmp_path / "merged"
    assert export(full, model, tokenizer, "merged", whole, alpha=-1.0)["within_tolerance"]
    with dial(model, 1.5):
        wanted = logits(model)
    with full(model, -1.0):
        merged = logits(model)
    found = elsewhere(
        tmp_path, (out / "base", out, ""), (out / "base", out, "merge"), (whole, "", "")
    )
    for is_, to_be in zip(found, (wanted, wanted, merged), strict=True):
        torch.testing.assert_close(is_, to_be, rtol=1e-4, atol=1e-4)
    assert (logits(model) - wanted).abs().max() > 0.1


@pytest.mark.slow
def test_the_receipt_is_written_without_trimtab(tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    """On a tied model, by the process that `export` starts itself."""
    model = tiny("gpt2")
    for to in ("peft", "merged"):
        receipt = export(head(model), model, tokenizer, to, tmp_path / to, alpha=0.5)
        assert receipt["trimtab_importable"] is False
        assert receipt["within_tolerance"]
        assert (tmp_path / to / "receipt.json").is_file()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_merged_checkpoints_say_whether_their_head_is_tied(
    name: str, tiny: Any, tokenizer: Any, tmp_path: Path, checked_here: None
) -> None:
    model, out = tiny(name), tmp_path / "merged"
    dial = head(model, "full")
    assert export(dial, model, tokenizer, "merged", out, alpha=-1.0)["within_tolerance"]
    assert model.config.tie_word_embeddings is (name == "gpt2")
    saved = json.loads((out / "config.json").read_text())
    assert saved["tie_word_embeddings"] is False
    assert not saved.get("mlp_bias", False)


def test_what_cannot_be_exported(tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    """With the reason, and nothing is left behind."""
    model = tiny("llama")
    for to, dial, message in (
        ("peft", head(model, "full"), "a full head has no low rank"),
        ("peft", head(model, "mlp"), "an mlp cannot"),
        ("peft", head(model, "low_rank", sites="1"), "over several sites"),
        ("peft", head(model, "low_rank", base_head="trainable"), "a trained base head"),
        ("merged", head(model, "mlp"), "an mlp cannot"),
        ("gguf", head(model), "logits"),
        ("peft", RewardDial(32), "a reward dial ranks answers"),
        ("merged", RewardDial(32), "a reward dial ranks answers"),
    ):
        with pytest.raises(DialError, match=message):
            export(dial, model, tokenizer, to, tmp_path / ("v.gguf" if to == "gguf" else "out"))
    with pytest.raises(ConfigError, match="not at 0"):
        export(head(model), model, tokenizer, "peft", tmp_path / "out", alpha=0.0)
    dial = head(model)
    dial.info.base_model, dial.info.base_digest = "other", "0" * 64
    models.source_of(model)
    for to in ("peft", "merged"):
        with pytest.raises(DialError, match="made for other"):
            export(dial, model, tokenizer, to, tmp_path / "out")
    assert not list(tmp_path.iterdir())
