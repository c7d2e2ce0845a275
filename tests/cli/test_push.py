"""`trimtab push` by huggingface_hub's own client, to a stand-in of the Hub's API."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from helpers_hub import TOKEN, StandIn, stand_in
from trimtab.dials import AdapterDial, Dial, VectorDial
from trimtab.dials.card import without_places
from trimtab.errors import DialError
from trimtab.study.results import About, Difference, Measurement, Run, Split, write

BASE = "someone/base-model"

SCRIPT = """
import json, sys
from trimtab.cli import main
from trimtab.dials import Dial
for words in json.loads(sys.argv[1]):
    try:
        if words[0] == "load":
            dial = Dial.from_pretrained(words[1])
            print("loaded", dial.kind, dial.info.base_model)
        else:
            main(words)
    except SystemExit as end:
        print("ended", end.code)
"""


def vector(**info: Any) -> VectorDial:
    dial = VectorDial({1: torch.ones(8)}, {1: 2.0})
    dial.info.method, dial.info.base_model, dial.info.base_digest = "mean", BASE, "d" * 64
    for key, value in info.items():
        setattr(dial.info, key, value)
    return dial


def adapter() -> AdapterDial:
    dial = AdapterDial({"model.layers.0.mlp.down_proj": (8, 4)}, rank=2)
    dial.info.method, dial.info.base_model = "dpo", "smollm2-135m"
    return dial


def a_run(folder: Path, digest: str) -> Path:
    """Result files of an `evaluate` of the method `mean`, and of one `other`."""
    own: dict[str, Any] = {"model": BASE, "suite": "", "split": "test", "seed": None}
    own |= {"aggregate": False, "alpha": 1.0, "at": "alpha_1", "metric": "accuracy", "items": 40}
    about = About(
        study="evaluate",
        title="mean on test",
        model=BASE,
        model_digest=digest,
        suite="",
        suite_digest=None,
        train="",
        splits={"test": Split("facts:test", 40, 40, 0)},
        methods={"mean": "a vector dial"},
        seeds=(),
        dtype="float32",
        device="cpu",
        versions={},
        commit="",
        command="trimtab evaluate",
    )
    figure = Measurement(**own, method="mean", value=0.75, low=0.6, high=0.86)
    told = [
        Difference(
            **own, method=name, against=rival, value=gain, low=gain - 0.1, high=gain + 0.1, seeds=1,
            p=0.01, p_holm=0.02, verdict="better", in_this_run=True, mde=0.08, underpowered=True,
        )
        for name, rival, gain in (("mean", "base", 0.25), ("mean", "dpo", 0.125), ("other", "base", 0.5))
    ]  # fmt: skip
    write(folder, Run(about, (figure,), tuple(told)))
    return folder


@pytest.fixture(scope="module")
def pushed(tmp_path_factory) -> Iterator[tuple[StandIn, list[str], str]]:
    """The stand-in after several pushes, with what was printed, and the errors."""
    here = tmp_path_factory.mktemp("hub")
    data = {f"jsonl:{here}/mine/pairs.jsonl": "e" * 64, "facts:train": "f" * 64}
    data |= {"hub:them/prefs/train": "a" * 64, "hub:them/gone/train": "b" * 64}
    measured = {"range": {"budget": "kl=0.1", "alpha": [-1.5, 2], "kl_nats_per_token": [0.09, 0.1]}}
    config = {"objective": {"beta": 0.1}, "file": f"{here}/mine/x.txt"}
    vector(data=data, measured=measured, config=config, seed=3).save_pretrained(here / "mean")
    adapter().save_pretrained(here / "dpo")
    vector(base_model=str(here / "base")).save_pretrained(here / "local")
    run = a_run(here / "run", "d" * 64)
    words = [
        ["push", here / "mean", "me/tiny", "--private", "--license", "mit", "--results", run],
        ["push", here / "dpo", "me/lora"],
        ["push", here / "dpo", "me/lora"],
        ["push", here / "local", "me/local", "--base", BASE],
        ["push", here / "mean", "them/tiny"],
        ["load", "me/tiny"],
        ["load", "me/lora"],
    ]
    with stand_in() as hub:
        hub.cards["them/prefs"] = {"license": "cc-by-4.0", "language": ["de", "fr"]}
        env = os.environ | {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(here / "home"),
        }
        env |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, json.dumps(words, default=str)],
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        hub.here = here  # type: ignore[attr-defined]
        yield hub, done.stdout.splitlines(), done.stderr


def card_of(hub: StandIn, repo: str) -> tuple[ModelCard, str]:
    text = hub.files[repo]["README.md"].decode()
    return ModelCard(text), text


def test_a_repository_is_made_once_private_where_asked(pushed):
    hub, out, err = pushed
    assert hub.private == {"me/tiny": True, "me/lora": False, "me/local": False}
    assert sum(line.startswith("pushed: ") for line in out) == 4
    assert hub.asked.count("POST /api/models/me/lora/commit/main") == 2
    assert "ended 2" in out  # a namespace of somebody else's
    assert "them/tiny: the Hub did not take it: 403" in err.replace("Client error '403", "403")


def test_what_was_pushed_loads_by_its_id(pushed):
    _, out, _ = pushed
    assert f"loaded vector {BASE}" in out
    assert "loaded adapter smollm2-135m" in out


def test_the_cards_metadata_are_the_hubs(pushed):
    card, text = card_of(pushed[0], "me/tiny")
    assert card.data.to_dict() == {
        "base_model": BASE,
        "datasets": ["them/gone", "them/prefs"],
        "language": ["de", "en", "fr"],
        "library_name": "trimtab",
        "license": "mit",
        "tags": ["trimtab", "alignment", "vector"],
    }
    assert "`facts:train` (ffffffffffff): apache-2.0, en" in text
    assert "`hub:them/prefs/train` (aaaaaaaaaaaa): cc-by-4.0, de, fr" in text
    assert "`hub:them/gone/train` (bbbbbbbbbbbb): licence not known, language not known" in text
    assert "`jsonl:pairs.jsonl` (eeeeeeeeeeee): licence and language not known" in text


def test_the_card_says_how_far_it_was_measured_and_judged(pushed):
    _, text = card_of(pushed[0], "me/tiny")
    assert "Alpha from -1.5 to 2 (damage within kl=0.1)." in text
    assert re.search(r"\| -1.5 \| 0.09 \|\n\| 0 \| 0 \|\n\| 2 \| 0.1 \|", text)
    assert "## Verdicts\n\nmean on test." in text
    assert re.search(
        r"### mean against bare model\n\n.*\n.*\n\| test .*\+25.0 .*better in this run", text
    )
    assert re.search(r"### mean against DPO\n\n.*\n.*\n\| test .*\+12.5 ", text)
    assert "+50.0" not in text  # of another method
    assert '"beta": 0.1' in text


@pytest.mark.parametrize("repo", ["me/lora", "me/local"])
def test_a_dial_that_nobody_measured_says_so(pushed, repo):
    hub, out, _ = pushed
    assert "Not measured yet" in card_of(hub, repo)[1]
    assert any("it was not measured: trimtab calibrate" in line for line in out)


def test_the_card_says_how_to_load_it_elsewhere(pushed):
    _, text = card_of(pushed[0], "me/lora")
    assert "Dial.from_pretrained('me/lora')" in text
    assert "PeftModel.from_pretrained(base, 'me/lora')" in text
    assert "trimtab export --dial me/lora --model smollm2-135m --to gguf-lora" in text
    config = json.loads(pushed[0].files["me/lora"]["adapter_config.json"])
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    _, text = card_of(pushed[0], "me/tiny")
    assert "--to gguf --out vector.gguf" in text
    assert "PeftModel" not in text


def test_no_folder_of_this_machine_leaves_it(pushed):
    hub = pushed[0]
    for files in hub.files.values():
        assert not any(str(hub.here).encode() in data for data in files.values())
    assert json.loads(hub.files["me/local"]["dial.json"])["base_model"] == BASE
    mine = "yes / no, and/or, </think>/x, hub:a/b/c, http://host/a/b"
    assert without_places([mine, "~/a/b.c", {"/a/b/c": "at /d/e/f.g"}]) == [
        mine,
        "b.c",
        {"c": "at f.g"},
    ]


def test_what_cannot_be_pushed_is_said_before_anything_is_sent(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(DialError, match="no token of the Hub"):
        vector().push_to_hub("me/tiny")
    for name in ("a/b/c", "me/ti ny", "me/--"):
        with pytest.raises(DialError, match="no Hub id"):
            vector().push_to_hub(name, token=TOKEN)
    for base in (str(tmp_path), "unnamed", "", "./runs/base", "base.gguf"):
        with pytest.raises(DialError, match="nobody else can load"):
            vector(base_model=base).push_to_hub("me/tiny", token=TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DialError, match="HF_HUB_OFFLINE"):
        vector().push_to_hub("me/tiny", token=TOKEN)


def test_verdicts_of_another_base_or_method_are_refused(tmp_path):
    from trimtab.cli.push import _verdicts

    run = a_run(tmp_path / "run", "d" * 64)
    with pytest.raises(Exception, match="of another base model"):
        _verdicts(run, "mean", "c" * 64)
    with pytest.raises(Exception, match=r"no verdict on 'dph' there, but on mean, other"):
        _verdicts(run, "dph", "d" * 64)


def test_a_saved_dials_card_is_the_same_but_for_the_place(tmp_path):
    folder = vector().save_pretrained(tmp_path / "v")
    text = (folder / "README.md").read_text()
    assert "Dial.from_pretrained('path/to/this/folder')" in text
    assert ModelCard(text).data.to_dict()["base_model"] == BASE
    assert isinstance(Dial.from_pretrained(folder), VectorDial)
