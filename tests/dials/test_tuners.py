"""Adapters beside LoRA: PEFT's own logits, base + alpha (adapted - base), merged, turned round."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from trimtab.dials import (
    AdapterDial,
    DeloraDial,
    Dial,
    IA3Dial,
    RoadDial,
    RotationDial,
    VeraDial,
)
from trimtab.dials.linear import dense_weight
from trimtab.dials.low_rank import column_norms
from trimtab.dials.targets import linear_modules
from trimtab.errors import DialError

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

IDS = torch.randint(2, 320, (3, 11), generator=torch.Generator().manual_seed(7))
TUNERS = ("ia3", "road", "vera", "delora")


def logits(model: Any, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def close(a: Tensor, b: Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(1.0, b.abs().max().item()))


def make(tuner: str, model: Any, targets: str = "all-linear") -> Any:
    g = torch.Generator().manual_seed(3)
    shapes = linear_modules(model, targets)
    dial: Any = {
        "lora": lambda: AdapterDial(shapes, rank=4, generator=g),
        "ia3": lambda: IA3Dial(shapes),
        "road": lambda: RoadDial(shapes, group=8),
        "vera": lambda: VeraDial(shapes, rank=8, generator=g),
        "delora": lambda: DeloraDial(
            shapes, rank=4, strength=3, norms=column_norms(model, shapes), generator=g
        ),
    }[tuner]()
    for p in dial.parameters():
        p.data += 0.2 * torch.randn(p.shape, generator=g)
    return dial.eval()


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("tuner", TUNERS)
def test_a_saved_tuner_is_peft_s_own(tiny, tuner, name, tmp_path):
    peft = pytest.importorskip("peft")
    if name == "gpt2" and tuner in ("road", "delora"):
        pytest.skip("PEFT has it for nn.Linear alone")
    model = tiny(name)
    dial = make(tuner, model)
    dial.save_pretrained(tmp_path / "dial")
    theirs = peft.PeftModel.from_pretrained(tiny(name, fresh=True), tmp_path / "dial")
    bare = logits(model)
    with dial(model, 1.0):
        ours = logits(model)
    assert (ours - bare).abs().max() > 0.05
    close(ours, logits(theirs))
    again = Dial.from_pretrained(tmp_path / "dial")
    assert type(again) is type(dial)
    with again(model, 1.0):
        assert torch.equal(logits(model), ours)


@pytest.mark.parametrize("tuner", TUNERS)
def test_a_peft_folder_loads_as_a_dial(tiny, tuner, tmp_path):
    peft = pytest.importorskip("peft")
    config = {
        "ia3": lambda: peft.IA3Config(
            target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
        ),
        "road": lambda: peft.RoadConfig(target_modules=["q_proj", "up_proj"], group_size=16),
        "vera": lambda: peft.VeraConfig(target_modules=["q_proj", "down_proj"], r=4),
        "delora": lambda: peft.DeloraConfig(target_modules=["q_proj", "down_proj"], r=3),
    }[tuner]()
    theirs = peft.get_peft_model(tiny("llama", fresh=True), config).eval()
    g = torch.Generator().manual_seed(0)
    for p in theirs.parameters():
        if p.requires_grad:
            p.data += 0.3 * torch.randn(p.shape, generator=g)
    theirs.save_pretrained(tmp_path / "peft")
    dial = Dial.from_pretrained(tmp_path / "peft")
    model = tiny("llama")
    with dial(model, 1.0):
        close(logits(model), logits(theirs))
    if tuner != "vera":  # PEFT knows nothing of a rank of VeRA's that is not the projections'
        dial.save_pretrained(tmp_path / "again")
        with Dial.from_pretrained(tmp_path / "again")(model, 1.0):
            close(logits(model), logits(theirs))


@pytest.mark.parametrize("tuner", TUNERS)
def test_alpha_is_the_share_of_the_way_from_base_to_adapted(tiny, tuner):
    """One layer alone, so that the output of the model's first edit is linear in alpha."""
    model = tiny("llama")
    dial = make(tuner, model, r"layers\.0\.mlp\.down_proj")
    module = model.get_submodule("model.layers.0.mlp.down_proj")
    seen: list[Tensor] = []
    for alpha in (0.0, 1.0, 0.25, -2.0):
        with dial(model, alpha):
            handle = module.register_forward_hook(lambda _, __, y: seen.append(y))
            logits(model)
            handle.remove()
    base, adapted, quarter, minus = seen
    close(quarter, base + 0.25 * (adapted - base))
    close(minus, base - 2 * (adapted - base))


@pytest.mark.parametrize("tuner", TUNERS)
def test_zero_rows_and_rows_of_their_own(tiny, tuner):
    model = tiny("llama")
    dial, bare = make(tuner, model), logits(model)
    with dial(model, 0.0):
        assert torch.equal(logits(model), bare)
    with dial(model, [1.0, 0.0, -0.5]):
        mixed = logits(model)
    assert torch.equal(mixed[1], bare[1])
    for row, alpha in ((0, 1.0), (2, -0.5)):
        with dial(model, alpha):
            close(logits(model, IDS[row : row + 1])[0], mixed[row])


@pytest.mark.parametrize("name", ["llama", "gpt2", "neox"])
@pytest.mark.parametrize("tuner", ["lora", *TUNERS])
def test_merged_equals_attached(tiny, tuner, name):
    model = tiny(name)
    dial = make(tuner, model)
    with dial(model, 0.7):
        attached = logits(model)
    close(logits(dial.merged(model, 0.7)), attached, 5e-5)


@pytest.mark.parametrize("tuner", ["lora", "ia3", "vera", "delora"])
def test_a_flipped_dial_at_minus_alpha_is_the_dial_at_alpha(tiny, tuner):
    model = tiny("llama")
    dial = make(tuner, model)
    with dial(model, 0.6):
        before = logits(model)
    dial.flip()
    with dial(model, -0.6):
        close(logits(model), before)


def test_what_tuners_cannot_be(tiny, tmp_path):
    model = tiny("llama")
    with pytest.raises(DialError, match="its opposite is no adapter"):
        make("road", model).flip()
    with pytest.raises(DialError, match="no even group"):
        RoadDial({"a": (4, 9)})
    peft = pytest.importorskip("peft")
    config = peft.RoadConfig(target_modules=["q_proj"], group_size=16, variant="road_4")
    peft.get_peft_model(tiny("llama", fresh=True), config).save_pretrained(tmp_path / "r4")
    with pytest.raises(DialError, match="road_4"):
        Dial.from_pretrained(tmp_path / "r4")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.VeraConfig(target_modules=["q_proj"], r=4, save_projection=False)
        peft.get_peft_model(tiny("llama", fresh=True), config).save_pretrained(tmp_path / "v")
    with pytest.raises(DialError, match="without its projections"):
        Dial.from_pretrained(tmp_path / "v")


def test_the_weight_of_a_layer_that_hides_it(tiny):
    """A quantised layer gives its weight through products alone."""

    class Hidden(torch.nn.Module):
        def __init__(self, inner: torch.nn.Linear):
            super().__init__()
            self.inner, self.bias = inner, inner.bias
            self.in_features, self.out_features = inner.in_features, inner.out_features
            self.weight = torch.zeros(7, 1, dtype=torch.uint8)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    inner = torch.nn.Linear(5, 3)
    close(dense_weight(Hidden(inner)), inner.weight.detach(), 1e-6)


def test_rotation_is_a_kind(tiny):
    assert RotationDial.kind == "rotation"
