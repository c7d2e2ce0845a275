"""What a dial says of its base model, and what follows: refused, said once, or nothing to do."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from trimtab import fit, models
from trimtab.dials import Composed, Dial, VectorDial, base
from trimtab.errors import ConfigError, DialError
from trimtab.progress import Notice, Progress
from trimtab.study import evaluate
from trimtab.study.made import made_with, say_older


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def made(saved_model, tokenizer, few_pairs, tmp_path):
    """A model's folder, the model, and a dial for it in a folder."""
    folder = saved_model()
    model, own = models.load(str(folder), device="cpu")
    dial = fit("mean", model, own, few_pairs, out=tmp_path / "dial")
    return folder, model, dial


def rewritten(folder: Path, change: Any) -> Path:
    """A saved dial whose note was edited."""
    file = folder / "dial.json"
    note = json.loads(file.read_text())
    change(note)
    file.write_text(json.dumps(note))
    return folder


def as_before(folder: Path, **changes: Any) -> Path:
    """A saved dial as the version before parts were recorded wrote it."""

    def change(note: dict[str, Any]) -> None:
        note.pop("base", None)
        note.update(changes)
        keys = ("format", "kind", "settings", "weights", "base_model", "base_digest")
        text = json.dumps({k: note[k] for k in keys}, sort_keys=True)
        note["digest"] = hashlib.sha256(text.encode()).hexdigest()

    return rewritten(folder, change)


def old_form(model: Any) -> str:
    """How that version hashed a model in memory, written down again."""
    sha = hashlib.sha256()
    for name, p in sorted(model.state_dict().items()):
        data = p.detach().cpu().contiguous()
        sha.update(f"{name} {data.dtype} {list(data.shape)}\n".encode())
        sha.update(memoryview(data.reshape(-1).view(torch.uint8).numpy()))
    return sha.hexdigest()


def use(dial: Dial, model: Any) -> None:
    with dial(model, 1.0):
        pass


def quietly(dial: Dial, model: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        use(dial, model)


# ---- refused, said ------------------------------------------------------------------------------


def test_a_dial_is_refused_on_another_config_and_says_what_differs(made):
    folder, model, dial = made
    assert dial.info.base["config"]["model_type"] == "llama"
    quietly(Dial.from_pretrained(folder.parent / "dial"), model)
    config = json.loads((folder / "config.json").read_text()) | {"rms_norm_eps": 0.01}
    (folder / "config.json").write_text(json.dumps(config))
    other, _ = models.load(str(folder), device="cpu")
    with pytest.raises(
        DialError, match=r"another config \(rms_norm_eps its default and 0.01\).*--force"
    ):
        use(dial, other)
    with dial(other, 1.0, force=True):
        pass


def test_another_template_or_tokenizer_is_said_once(made):
    folder, _, dial = made
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    other, own = models.load(str(folder), device="cpu")
    with pytest.warns(Notice, match="with another template than"):
        use(dial, other)
    quietly(dial, other)
    own.add_tokens(["<new>"])
    with pytest.warns(Notice, match="another tokenizer, another template"):
        dial.check_base(other, own)


def test_a_model_that_was_never_looked_at_is_checked_too(made, tiny):
    with pytest.raises(DialError, match="another weights"):
        use(made[2], tiny("qwen3", fresh=True))


def test_the_same_checkpoint_saved_elsewhere_is_the_dials_base(made, tokenizer, tmp_path):
    _, model, dial = made
    model.save_pretrained(tmp_path / "again", max_shard_size="30KB")
    tokenizer.save_pretrained(tmp_path / "again")
    other, _ = models.load(str(tmp_path / "again"), device="cpu")
    assert models.source_of(other).digest != dial.info.base_digest
    quietly(dial, other)
    twin = copy.deepcopy(dial)
    twin.info.base_digest = models.source_of(other).digest
    quietly(dial + twin, other)
    twin.info.base = {**twin.info.base, "config": {"model_type": "other"}}
    with pytest.raises(DialError, match="different base models"):
        Composed([(dial, 1.0), (twin, 1.0)])


def test_dials_without_a_base_say_so_once(tiny):
    dial = VectorDial({1: torch.ones(32)}, {1: 1.0})
    with pytest.warns(Notice, match="does not say which model it was made for"):
        use(dial, tiny("llama"))
    quietly(dial, tiny("llama"))


def test_a_peft_folder_has_no_base_and_says_so(tiny, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = tiny("llama", fresh=True)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(
        tmp_path / "p"
    )
    dial = Dial.from_pretrained(tmp_path / "p")
    with pytest.warns(Notice, match="the peft dial does not say which model"):
        use(dial, tiny("llama"))


# ---- digests taken out (A8) ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (("digest", "base_digest"), "damaged"),
        (("digest",), "digest was taken out.*--force"),
        (("base_digest",), "damaged"),
        (("base",), "damaged"),
    ],
)
def test_a_dial_whose_digests_were_taken_out_is_refused(made, tmp_path, out, message):
    rewritten(tmp_path / "dial", lambda note: [note.pop(key) for key in out])
    with pytest.raises(DialError, match=message):
        Dial.from_pretrained(tmp_path / "dial")


def test_emptied_and_without_a_digest_it_is_refused_unless_forced(made, tiny, tmp_path):
    def empty(note: dict[str, Any]) -> None:
        note.pop("digest")
        note.update(base_digest="", base_model="", base={})

    rewritten(tmp_path / "dial", empty)
    with pytest.raises(DialError, match="digest was taken out"):
        Dial.from_pretrained(tmp_path / "dial")
    dial = Dial.from_pretrained(tmp_path / "dial", force=True)
    with pytest.warns(Notice, match="does not say which model"):
        use(dial, tiny("llama"))
    rewritten(tmp_path / "dial", lambda note: note.update(digest="0" * 64))
    with pytest.raises(DialError, match="damaged"):
        Dial.from_pretrained(tmp_path / "dial", force=True)


# ---- dials of earlier versions ------------------------------------------------------------------


def test_an_old_dial_is_compared_on_what_it_has_and_says_what_it_lacks(made, tiny, tmp_path):
    _, model, _ = made
    old = Dial.from_pretrained(as_before(tmp_path / "dial"))
    assert old.info.base == {}
    with pytest.warns(
        Notice, match="with which config, quantisation, tokenizer, template it was made"
    ):
        use(old, model)
    quietly(old, model)
    with pytest.raises(DialError, match="another weights"):
        use(old, tiny("qwen3"))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_an_old_dial_of_a_model_hashed_in_memory_still_matches(
    tiny, tokenizer, few_pairs, tmp_path, kind
):
    """gpt2 is tied: its old digest named the head twice."""
    model = tiny(kind, fresh=True)
    fit("mean", model, tokenizer, few_pairs, out=tmp_path / "d")
    assert models.source_of(model).digest != old_form(model)
    as_before(tmp_path / "d", base_digest=old_form(model), base_model="unnamed")
    old = Dial.from_pretrained(tmp_path / "d")
    use(old, model)
    base.check(
        old, models.source_of(model)
    )  # before a model is loaded nobody can tell: not refused
    lines: list[str] = []
    progress = Progress(quiet=True)
    progress.say = lines.append  # type: ignore[method-assign]
    fit("mean", model, tokenizer, few_pairs, out=tmp_path / "d", progress=progress)
    assert any("nothing to do" in line for line in lines)
    model.get_input_embeddings().weight.data.mul_(1.01)
    with pytest.raises(DialError, match="another weights"):
        use(old, model)


# ---- nothing to do ------------------------------------------------------------------------------


def test_a_run_is_done_for_the_same_model_tokenizer_and_template_alone(
    made, tokenizer, few_pairs, tmp_path
):
    folder, model, _ = made
    out = tmp_path / "dial"
    before = (out / "dial.json").read_bytes()
    model.save_pretrained(tmp_path / "elsewhere")
    tokenizer.save_pretrained(tmp_path / "elsewhere")
    again, own = models.load(str(tmp_path / "elsewhere"), device="cpu")
    fit("mean", again, own, few_pairs, out=out)  # another name of the same checkpoint
    assert (out / "dial.json").read_bytes() == before
    own.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(ConfigError, match="another template"):
        fit("mean", again, own, few_pairs, out=out)
    own.chat_template = tokenizer.chat_template
    own.add_tokens(["<new>"])
    with pytest.raises(ConfigError, match="another tokenizer"):
        fit("mean", again, own, few_pairs, out=out)
    shutil.copytree(folder, tmp_path / "eps")
    config = json.loads((folder / "config.json").read_text()) | {"rms_norm_eps": 0.01}
    (tmp_path / "eps" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="another model"):
        fit("mean", *models.load(str(tmp_path / "eps"), device="cpu"), few_pairs, out=out)


# ---- versions (A7) ------------------------------------------------------------------------------


def test_a_table_claims_the_versions_of_its_cells():
    one, two = {"torch": "2.12", "peft": "1"}, {"torch": "2.13", "peft": "1"}
    assert made_with([("a", one), ("b", one)]) == (one, [])
    versions, (said,) = made_with([("base", one), ("dpo", two), ("mean", two)])
    assert versions == {"torch": "2.12, 2.13", "peft": "1"}
    assert "torch 2.12 (base), 2.13 (dpo and 1 more)" in said
    assert made_with([("a", {}), ("b", one)])[0] == one


def test_cells_of_earlier_versions_are_named(tmp_path, capsys):
    for name, content in (("old", {}), ("new", {"versions": {}}), ("half", None)):
        (tmp_path / name).mkdir()
        text = "{" if content is None else json.dumps(content)
        (tmp_path / name / "summary.json").write_text(text)
    say_older(tmp_path.glob("*/summary.json"), Progress())
    said = capsys.readouterr().err
    assert "1 done by an earlier version of trimtab" in said
    assert str(tmp_path / "old") in said


def test_evaluate_says_that_a_dial_is_of_other_versions(made, tokenizer, few_pairs, tmp_path):
    _, model, dial = made
    dial.info.versions = {**dial.info.versions, "torch": "1.0"}
    evaluate(model, tokenizer, dial, few_pairs, out=tmp_path / "run", passages=1)
    (note,) = json.loads((tmp_path / "run" / "study.json").read_text())["notes"]
    assert "torch" in note
    assert "1.0 (dial)" in note
