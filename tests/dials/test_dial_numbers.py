"""Numbers that are finite and all the same make a dial that is not: refused, or computed rightly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from helpers_kinds import IDS, logits, lora
from trimtab import models
from trimtab.compat.repeng import ControlModel, ControlVector
from trimtab.dials import (
    AdapterDial,
    ConceptDial,
    Condition,
    DeloraDial,
    Dial,
    RoadDial,
    VectorDial,
    VeraDial,
)
from trimtab.dials.saved import _digest
from trimtab.errors import ConfigError, DialError
from trimtab.export import control_vector_dial

V = torch.randn(32, generator=torch.Generator().manual_seed(1))
SHAPES = {"model.layers.0.mlp.up_proj": (32, 48)}


def control_file(path: Path, v: Tensor) -> Path:
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", 1)
    writer.add_tensor("direction.1", v.numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("size", [1e13, 1e19, 1e25, 1e38])
def test_control_vectors_whose_norm_overflows_are_refused(tiny, tmp_path, size):
    """Each value is finite; in float32 the norm of 1e19 is not, and all logits were NaN."""
    with pytest.raises(DialError, match=r"scale at site 1 .*expected a finite number"):
        control_vector_dial(control_file(tmp_path / "v.gguf", size * V.sign()), tiny("llama"))


@pytest.mark.parametrize("size", [1e-30, 1e-22, 1e-3, 1.0, 1e4])
def test_control_vectors_of_any_other_size_are_what_they_say(tiny, tmp_path, size):
    """The squares of 1e-22 are zero in float32: such a vector was dropped in silence."""
    dial = control_vector_dial(control_file(tmp_path / "v.gguf", size * V), tiny("llama"))
    (site,) = dial.sites
    assert dial.scales[site] == pytest.approx(size * V.double().norm().item(), rel=1e-5)
    torch.testing.assert_close(dial.direction(site), V / V.norm())


@pytest.mark.parametrize("size", [1e-30, 1e19, 1e37])
def test_directions_of_any_size_have_length_1(size):
    for dial in (
        VectorDial({1: size * V}, {1: 1.0}),
        VectorDial({1: (size * V).double()}, {1: 1.0}),
    ):
        torch.testing.assert_close(dial.direction(1), V / V.norm())
    concept = ConceptDial({1: size * V})
    torch.testing.assert_close(concept.get_buffer("vectors")[0], V / V.norm())
    h = torch.randn(4, 32)
    plain, odd = Condition(0, V, 0.0), Condition(0, size * V, 0.0)
    torch.testing.assert_close(odd.scores(h), plain.scores(h))


def test_an_ordinary_direction_is_normalised_as_ever():
    assert torch.equal(VectorDial({1: V}, {1: 1.0}).direction(1), V / V.norm())


@pytest.mark.parametrize(
    "scale", [float("nan"), float("inf"), -float("inf"), 1e13, "2", None, True]
)
def test_scales_that_are_no_scales(scale):
    with pytest.raises(DialError, match="the scale at site 1"):
        VectorDial({1: V}, {1: scale})
    with pytest.raises(DialError, match="a level"):
        VectorDial({1: V}, {1: 1.0}, operator="replace", levels={1: scale})


@pytest.mark.parametrize("site", [1.0, 0.5, True, None, (1,)])
def test_sites_that_are_no_sites(site):
    with pytest.raises(DialError, match=r"expected a block"):
        VectorDial({site: V}, {site: 1.0})


def harmed(folder: Path, **settings: Any) -> Path:
    """A saved dial with other settings, its digest made to fit."""
    note = json.loads((folder / "dial.json").read_text())
    note["settings"] |= settings
    note.pop("digest")
    note["digest"] = _digest(note)
    (folder / "dial.json").write_text(json.dumps(note))
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        {"scales": [float("nan")]},
        {"scales": [float("inf")]},
        {"scales": [1e300]},
        {"scales": ["big"]},
        {"sites": [1.5]},
        {"operator": "replace", "levels": [float("nan")]},
    ],
)
def test_saved_vectors_with_such_numbers(settings, tmp_path):
    VectorDial({1: V}, {1: 1.0}).save_pretrained(tmp_path / "d")
    with pytest.raises(DialError):
        Dial.from_pretrained(harmed(tmp_path / "d", **settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"lora_alpha": float("inf")},
        {"lora_alpha": float("nan")},
        {"lora_alpha": 1e30},
        {"lora_alpha": "2"},
        {"rank": 0},
        {"rank": -2},
        {"rank": 2.0},
        {"rank": 3},
        {"dropout": 1},
        {"dropout": 2},
        {"dropout": -0.5},
        {"dropout": float("nan")},
    ],
)
def test_saved_adapters_with_such_numbers(tiny, settings, tmp_path):
    lora(tiny("llama"), "q_proj").save_pretrained(tmp_path / "d")
    with pytest.raises(DialError):
        Dial.from_pretrained(harmed(tmp_path / "d", **settings))


@pytest.mark.parametrize(
    "make",
    [
        lambda: AdapterDial(SHAPES, rank=0),
        lambda: AdapterDial(SHAPES, rank=10**9),
        lambda: AdapterDial(SHAPES, lora_alpha=float("inf")),
        lambda: AdapterDial(SHAPES, dropout=1.0),
        lambda: VeraDial(SHAPES, rank=-1),
        lambda: VeraDial(SHAPES, dropout=2.0),
        lambda: DeloraDial(SHAPES, rank=0),
        lambda: DeloraDial(SHAPES, strength=float("nan")),
        lambda: RoadDial(SHAPES, group=0),
        lambda: RoadDial(SHAPES, group=-4),
        lambda: ConceptDial({1: V}, "redirect", gamma=float("inf")),
    ],
)
def test_adapters_out_of_range(make):
    with pytest.raises(DialError, match="expected a"):
        make()


def test_weights_whose_products_overflow_are_refused(tiny, tmp_path):
    folder = lora(tiny("llama"), "q_proj").save_pretrained(tmp_path / "d")
    (folder / "dial.json").unlink()  # a plain PEFT folder
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors[next(k for k in tensors if "lora_B" in k)][0, 0] = 1e38
    save_file(tensors, file)
    with pytest.raises(DialError, match="products overflow"):
        Dial.from_pretrained(folder)


@pytest.mark.parametrize("alpha", [1e38, -1e38, 1e7, [1.0, 1e38, 0.0], torch.tensor([[2e6]])])
def test_alphas_beyond_reason_are_refused(tiny, alpha):
    with pytest.raises(ConfigError, match=r"expected (a )?number"):
        VectorDial({1: V}, {1: 1.0})(tiny("llama"), alpha).__enter__()


def test_weights_of_composed_dials_beyond_reason_are_refused():
    with pytest.raises(ConfigError, match="at most"):
        1e38 * VectorDial({1: V}, {1: 1.0})


@pytest.mark.parametrize(
    ("dtype", "alpha"),
    [(torch.float16, 5e5), (torch.float16, [0.0, 5e5, 1.0]), (torch.float32, 1e6)],
)
def test_states_that_overflow_are_said_where_they_do(tiny, dtype, alpha):
    """What is in range for one dtype is not for another: float16 ends at 65504."""
    model = tiny("llama", dtype=dtype)
    dial = VectorDial({1: V}, {1: 1.0 if dtype == torch.float16 else 1e12})
    if dtype == torch.float32:
        dial = dial + dial + dial + dial
        with dial(model, 0.1):
            assert logits(model).isfinite().all()
    with pytest.raises(ConfigError, match="states too large for"), dial(model, alpha):
        logits(model)
    assert logits(model).isfinite().all()


def test_a_control_of_repeng_s_that_overflows_is_said(tiny):
    model = ControlModel(tiny("llama", fresh=True), [1])
    model.set_control(ControlVector("llama", {1: 1e25 * V.numpy()}))
    with pytest.raises(ConfigError, match="states too large"):
        model(input_ids=IDS)
    model.reset()
    assert logits(model.model).isfinite().all()
    assert models.n_layers(model.model) == 4


@pytest.mark.parametrize("size", [10**400, -(10**400), 10**5000], ids=["400", "-400", "5000"])
def test_whole_numbers_beyond_any_float_are_refused(tiny, size):
    """Python's own conversion to a float, and of 5,000 digits to text, raise errors of their own."""
    dial = VectorDial({1: V}, {1: 1.0})
    with pytest.raises(ConfigError, match="alpha is larger"), dial(tiny("llama"), size):
        pass
    with pytest.raises(DialError, match="scale at site 1"):
        VectorDial({1: V}, {1: size})
