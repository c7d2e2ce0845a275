"""Dials that an earlier version saved: they load, know their base, and act as they did."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import pytest
import torch

from trimtab import models
from trimtab.dials import Dial, VectorDial
from trimtab.errors import DialError

SAVED = Path(__file__).with_name("saved_at_fb81d27")
ACTS = json.loads((SAVED / "acts.json").read_text())

sys.path.insert(0, str(SAVED))
from make import acts, tiny_model, tiny_tokenizer  # noqa: E402


@pytest.mark.parametrize("name", ACTS)
def test_dials_of_fb81d27_match_their_base_and_act_as_they_did(name, tmp_path):
    """One of each kind, and one made for a model that was loaded from a folder."""
    dial, model = Dial.from_pretrained(SAVED / name), tiny_model()
    if name == "loaded":
        model.save_pretrained(tmp_path)
        tiny_tokenizer().save_pretrained(tmp_path)
        model, _ = models.load(str(tmp_path), dtype="float32", device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message=".*does not say with which.*")
        dial.check_base(model)
        found = acts(dial, model)
    assert found == pytest.approx(ACTS[name], abs=2e-5)
    assert dial.info.versions["trimtab"] == "0.1.0"
    other = tiny_model()
    other.model.layers[0].mlp.down_proj.weight[0, 0] += 1
    with pytest.raises(DialError, match="another weights"):
        dial.check_base(other)


def test_a_link_given_as_a_folder_stays_a_link(tmp_path):
    dial = VectorDial({1: torch.ones(4)}, {1: 1.0})
    (tmp_path / "link").symlink_to("there")
    for _ in range(2):
        dial.save_pretrained(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert sorted(f.name for f in tmp_path.iterdir()) == ["link", "there"]
    assert Dial.from_pretrained(tmp_path / "there").info == dial.info
