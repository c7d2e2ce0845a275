"""Rotations: nothing at 0, bounded angles, exact opposites, exactly a LoRA at one alpha; training
in both directions at once, its sign, its resumption."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import random_rows
from helpers_fit import random_pairs
from trimtab.batching import collate
from trimtab.dials import AdapterDial, Dial, RotationDial
from trimtab.dials.linear import dense_weight
from trimtab.dials.rotation import singular_basis
from trimtab.dials.targets import linear_modules
from trimtab.errors import ConfigError, DialError
from trimtab.objectives import ContrastiveSteering
from trimtab.objectives.contrastive import scaled_direction
from trimtab.readout import Readout
from trimtab.states import read
from trimtab.training import fit
from trimtab.training.recipes import AdapterSettings, TrainSettings
from trimtab.training.reference import read_reference
from trimtab.training.rotation import (
    ContrastiveModule,
    ContrastiveRecipe,
    RotationRecipe,
    RotationSettings,
    new_rotation,
    twice,
)

IDS = torch.randint(2, 320, (3, 11), generator=torch.Generator().manual_seed(7))
TARGETS = r"(o_proj|down_proj)$"


def logits(model: Any, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def close(a: Tensor, b: Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(1.0, b.abs().max().item()))


def rotation(model: Any, rank: int = 8, spread: float = 0.5, **options: Any) -> RotationDial:
    bases = {
        path: singular_basis(model.get_submodule(path), rank)
        for path in linear_modules(model, TARGETS)
    }
    g = torch.Generator().manual_seed(5)
    return RotationDial(bases, spread=spread, generator=g, **options).eval()


@pytest.mark.parametrize("scaling", ["multiplicative", "additive", "none"])
def test_the_change_is_exactly_0_at_0_and_the_layer_s_own_svd_elsewhere(tiny, scaling):
    model = tiny("llama")
    dial = rotation(model, rank=32, scaling=scaling)
    assert torch.count_nonzero(dial.change(0, 0.0)) == 0
    # At full rank y is x V R diag(S_alpha) U^T: the base's own product is gone.
    U, S, V = dial.basis(0)
    W = dense_weight(model.get_submodule(dial.paths[0]))
    close((U * S) @ V.T, W, 1e-5)
    gain = dial.gain[0].detach()
    grown = {"multiplicative": S * torch.exp(0.7 * gain), "additive": S + 0.7 * gain, "none": S}
    x = torch.randn(4, W.shape[1], generator=torch.Generator().manual_seed(0))
    whole = ((x @ V) @ dial.rotation(0, 0.7) * grown[scaling]) @ U.T
    close(dial._edit(0, x, x @ W.T, 0.7).detach(), whole.detach(), 1e-5)


def test_rotations_are_orthogonal_odd_and_bounded_in_angle():
    basis = {"a": (torch.eye(6), torch.ones(6), torch.eye(6))}
    from trimtab.dials.rotation import Basis

    for spread, degrees in ((1e-3, 45), (3.0, 45), (100.0, 10)):
        dial = RotationDial(
            {"a": Basis(*basis["a"])}, spread=spread, max_angle=math.radians(degrees)
        ).double()
        R = dial.rotation(0, 1.0).detach()
        one = torch.eye(6, dtype=torch.float64)
        close(R @ R.T, one, 1e-12)
        close(dial.rotation(0, -1.0).detach(), R.T, 1e-12)
        angles = torch.linalg.eigvals(R).angle().abs().rad2deg()
        assert angles.max() <= degrees + 1e-6
        if spread > 1:
            assert angles.max() > 0.9 * degrees  # the bound is of the rotation, not of entries


def test_a_rotation_by_hand():
    """One plane: a quarter's tangent turns x by exactly the Cayley angle."""
    from trimtab.dials.rotation import Basis

    dial = RotationDial({"a": Basis(torch.eye(2), torch.ones(2), torch.eye(2))}, scaling="none")
    with torch.no_grad():
        dial.turn[0].copy_(torch.tensor([[0.0, -0.1], [0.1, 0.0]]))  # A = [[0, -.2], [.2, 0]]
    bound = 2 * math.tan(math.pi / 8)
    mu = bound * math.tanh(0.2 / bound)
    for alpha in (1.0, 0.5, -2.0):
        angle = 2 * math.atan(alpha * mu / 2)
        wanted = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        close(dial.rotation(0, alpha).detach(), torch.tensor(wanted), 1e-6)


def test_gradients_match_finite_differences():
    from trimtab.dials.rotation import Basis

    g = torch.Generator().manual_seed(1)
    U, _ = torch.linalg.qr(torch.randn(5, 4, generator=g, dtype=torch.float64))
    V, _ = torch.linalg.qr(torch.randn(6, 4, generator=g, dtype=torch.float64))
    S = torch.tensor([3.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    dial = RotationDial({"a": Basis(U, S, V)}, spread=0.3, generator=g).double()
    x, y = (torch.randn(2, 3, n, generator=g, dtype=torch.float64) for n in (6, 5))
    alpha = torch.tensor([1.0, -1.0], dtype=torch.float64).view(2, 1, 1)

    def run(turn: Tensor, gain: Tensor) -> Tensor:
        return torch.func.functional_call(
            _Edited(dial), {"dial.turn.0": turn, "dial.gain.0": gain}, (x, y, alpha)
        )

    inputs = tuple(p.detach().clone().requires_grad_() for p in (dial.turn[0], dial.gain[0]))
    assert torch.autograd.gradcheck(run, inputs, eps=1e-6, atol=1e-6)


class _Edited(torch.nn.Module):
    def __init__(self, dial: RotationDial):
        super().__init__()
        self.dial = dial

    def forward(self, x: Tensor, y: Tensor, alpha: Tensor) -> Tensor:
        return self.dial._edit(0, x, y, alpha)


def test_rows_tokens_and_the_fused_form_agree(tiny):
    model = tiny("llama")
    dial, bare = rotation(model), logits(model)
    with dial(model, [1.0, 0.0, -2.0]):
        mixed = logits(model)
    assert torch.equal(mixed[1], bare[1])
    for row, alpha in ((0, 1.0), (2, -2.0)):
        with dial(model, alpha):
            close(logits(model, IDS[row : row + 1])[0], mixed[row])
    tokens = torch.ones(3, 11)
    with dial(model, tokens), torch.no_grad():
        close(logits(model), logits(model))
        per_token = logits(model)
    with dial(model, 1.0):
        close(logits(model), per_token)
    with dial(model, 1.0):  # with gradients nothing is fused
        plain = model(input_ids=IDS, use_cache=False).logits
    close(plain.detach(), per_token)


def test_a_flipped_rotation_is_its_opposite_and_a_saved_one_itself(tiny, tmp_path):
    model = tiny("llama")
    dial = rotation(model, scaling="additive", max_angle=0.3)
    with dial(model, 0.8):
        before = logits(model)
    dial.flip()
    with dial(model, -0.8):
        close(logits(model), before, 1e-6)
    dial.save_pretrained(tmp_path / "d")
    again = Dial.from_pretrained(tmp_path / "d")
    with again(model, -0.8):
        close(logits(model), before, 1e-6)
    assert again.settings() == dial.settings()


def test_a_rotation_at_one_alpha_is_exactly_low_rank(tiny):
    model = tiny("llama")
    dial = rotation(model)
    for alpha in (0.5, -1.5):
        merged = dial.merged(model, alpha)
        with dial(model, alpha):
            close(logits(merged), logits(model), 5e-5)
            with pytest.raises(ConfigError, match="a dial is on"):
                dial.merged(model, alpha)
        A, B = dial.low_rank(model, alpha)[dial.paths[0]]
        assert A.shape == (8, 32)
        assert B.shape == (32, 8)


def test_singular_vectors_by_size_and_by_data(tiny):
    module = tiny("llama").get_submodule("model.layers.1.mlp.down_proj")
    top = singular_basis(module, 5)
    close(top.S, torch.linalg.svdvals(module.weight)[:5], 1e-6)
    whole = singular_basis(module, 32)
    differences = 3 * whole.V[:, 20][None] + 0.01 * torch.randn(9, whole.V.shape[0])
    chosen = singular_basis(module, 2, differences)
    assert whole.S[20] in chosen.S


def test_what_a_rotation_cannot_be(tiny):
    with pytest.raises(DialError, match="at least one module"):
        RotationDial({})
    with pytest.raises(DialError, match="scaling 'twice'"):
        rotation(tiny("llama"), scaling="twice")
    with pytest.raises(DialError, match="max_angle"):
        rotation(tiny("llama"), max_angle=4.0)
    with pytest.raises(DialError, match="match no linear layer"):
        linear_modules(tiny("llama"), "nothing")
    with pytest.raises(DialError, match="not a regular expression"):
        linear_modules(tiny("llama"), "(")
    with pytest.raises(ConfigError, match="rank is 1"):
        RotationSettings(rank=1)
    with (
        pytest.raises(DialError, match="o_proj' is not in the model"),
        rotation(tiny("llama"))(tiny("gpt2"), 1.0),
    ):
        pytest.fail("entered")


# ---- the objective ------------------------------------------------------------------------------


def readout(delta: float, chosen: float = -10.0, rejected: float = -12.0) -> Readout:
    one = torch.ones(1)
    return Readout(
        chosen_logps=chosen * one,
        rejected_logps=rejected * one,
        chosen_tokens=4 * one.long(),
        rejected_tokens=4 * one.long(),
        chosen={2: torch.tensor([[delta, 1.0]])},
        rejected={2: torch.zeros(1, 2)},
    )


def test_the_loss_by_hand():
    u: Any = {2: torch.tensor([0.5, 0.0])}
    reference, plus, minus = readout(2.0), readout(5.0, -9, -15), readout(0.0, -14, -16.8)
    form = ContrastiveSteering(form="linear", weight_coherence=0, weight_monotone=0)
    loss, metrics = form(plus, minus, reference, u)
    assert loss.tolist() == [(-1.0 - 1.5) / 2]
    assert metrics["gained_plus"].tolist() == [1.5]
    assert metrics["gained_minus"].tolist() == [-1.0]
    loss, _ = ContrastiveSteering(weight_coherence=0, weight_monotone=0)(plus, minus, reference, u)
    softplus = lambda x: math.log1p(math.exp(x))  # noqa: E731
    assert loss.item() == pytest.approx((softplus(-0.5) + softplus(0.0)) / 2, abs=1e-6)
    # at -1 the rejected answer loses 4.8 / 4 = 1.2 nats a token, 0.7 beyond what is free
    loss, _ = ContrastiveSteering(form="linear", weight_coherence=2, weight_monotone=0)(
        plus, minus, reference, u
    )
    assert loss.item() == pytest.approx(-1.25 + 2 * 0.7 / 2, abs=1e-6)
    # gaps: reference 0.5, plus 1.5 (up 1.0), minus 0.7 (up 0.2): right order costs .25, wrong 1.05
    loss, _ = ContrastiveSteering(form="linear", weight_coherence=0, weight_monotone=3)(
        plus, minus, reference, u
    )
    assert loss.item() == pytest.approx(-1.25 + 3 * 0.25, abs=1e-5)


def test_both_ends_worse_is_what_monotonicity_punishes():
    u: Any = {2: torch.tensor([0.5, 0.0])}
    term = ContrastiveSteering(weight_coherence=0)
    reference = readout(2.0)
    one_way = term(readout(2.0, -9), readout(2.0, -11), reference, u)[0]
    other_way = term(readout(2.0, -11), readout(2.0, -9), reference, u)[0]
    saddle = term(readout(2.0, -11), readout(2.0, -11), reference, u)[0]
    assert one_way.item() == pytest.approx(other_way.item())
    assert saddle > one_way + 0.1


def test_without_log_probs_the_head_is_not_run():
    needs = ContrastiveSteering(weight_coherence=0, weight_monotone=0).needs(10)
    assert not needs.logps
    assert needs.sites == (8,)


def test_the_scaled_direction():
    D = torch.tensor([[3.0, 1.0], [5.0, -1.0]])
    v = scaled_direction(D)
    close(v, torch.tensor([1.0, 0.0]) / math.sqrt(17))
    with pytest.raises(ValueError, match="zero"):
        scaled_direction(torch.tensor([[1.0], [-1.0]]))


# ---- training -----------------------------------------------------------------------------------

TRAIN = TrainSettings(pairs_per_step=4, epochs=3, learning_rate=2e-2, checkpoint_seconds=0)
QUICK = RotationRecipe(
    dial=RotationSettings(rank=8, targets=TARGETS, blocks="0..0.75"), train=TRAIN
)


def test_a_batch_twice_reads_both_ends_at_once(tiny):
    """+1 and -1 as rows of one batch equal the dial at +1 and at -1."""
    model, rows = tiny("llama"), random_rows()
    dial = rotation(model)
    batch = collate(rows, [0, 1, 2])
    with dial(model, [1.0, -1.0]), torch.no_grad():
        found: Any = read(model, twice(batch), logps=True, sites=(2,))
    for alpha, part in ((1.0, slice(batch.n_answers)), (-1.0, slice(batch.n_answers, None))):
        with dial(model, alpha), torch.no_grad():
            alone: Any = read(model, batch, logps=True, sites=(2,))
        close(found.logps[part], alone.logps)
        close(found.states[2][part], alone.states[2])


def separation(model: Any, dial: Dial, alpha: float, encoded: Any) -> Tensor:
    batch = collate(encoded, range(len(encoded.rows)))
    with dial(model, alpha), torch.no_grad():
        found = read(model, batch, sites=(3,))
    return (found.states[3][batch.pair_chosen] - found.states[3][batch.pair_rejected]).mean(0)


@pytest.mark.parametrize(
    "recipe",
    [
        QUICK,
        RotationRecipe(
            objective=ContrastiveSteering(form="linear"),
            dial=RotationSettings(rank=8, targets=TARGETS, select="data", scaling="additive"),
            train=TRAIN,
        ),
        ContrastiveRecipe(dial=AdapterSettings(rank=2), train=TRAIN),
        ContrastiveRecipe(dial=AdapterSettings(tuner="delora", rank=2), train=TRAIN),
    ],
    ids=["rotation", "data-additive-linear", "lora", "delora"],
)
def test_training_separates_at_plus_1_and_joins_at_minus_1(tiny, tokenizer, recipe, tmp_path):
    model = tiny("llama")
    dial = fit(recipe, model, tokenizer, random_pairs(16), out=tmp_path / "d")
    from trimtab.batching import encode

    encoded = encode(random_pairs(16), tokenizer)
    zero = separation(model, dial, 0.0, encoded)
    u = zero / zero.norm()
    ends = [float(separation(model, dial, a, encoded) @ u) for a in (-1.0, 0.0, 1.0)]
    assert max(abs(ends[2] - ends[1]), abs(ends[0] - ends[1])) > 0.01 * ends[1]
    assert ends[2] != ends[0]
    curve = (tmp_path / "d" / "training.jsonl").read_text().splitlines()
    assert len(curve) == 12
    assert Dial.from_pretrained(tmp_path / "d").info.method in ("rotation", "contrastive")


def test_the_sign_is_settled_on_training_data(tiny, tokenizer, store):
    """Whichever way a dial was turned, afterwards +1 raises the log-prob gap."""
    from trimtab.batching import encode, layout_of

    model, encoded = tiny("llama"), encode(random_pairs(12), tokenizer)
    objective = ContrastiveSteering()
    needs = objective.needs(4)
    found = []
    for turned in (False, True):
        dial = new_rotation(QUICK.dial, model, encoded, needs, seed=1)
        with torch.no_grad():
            for p in dial.parameters():
                p.mul_(100)
        if turned:
            dial.flip()
        before = read_reference(model, encoded, needs, store)
        module = ContrastiveModule(model, dial.eval(), objective, needs, before, encoded)
        gain = module.settle_sign(encoded, layout_of(model))
        assert gain > 0
        assert module.settle_sign(encoded, layout_of(model)) == pytest.approx(gain)  # stays
        found.append([p.detach().clone() for p in dial.parameters()])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_a_stopped_training_goes_on_to_the_same_bytes(tiny, tokenizer, tmp_path, monkeypatch):
    from helpers_fit import parameters
    from trimtab.training import trainer

    model, pairs = tiny("llama"), random_pairs(16)
    fit(QUICK, model, tokenizer, pairs, out=tmp_path / "whole")
    before = trainer.DialTrainer.training_step

    def stopping(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return before(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.DialTrainer, "training_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            fit(QUICK, model, tokenizer, pairs, out=tmp_path / "stopped")
    assert not (tmp_path / "stopped").exists()
    fit(QUICK, model, tokenizer, pairs, out=tmp_path / "stopped")
    for a, b in zip(parameters(tmp_path / "whole"), parameters(tmp_path / "stopped"), strict=True):
        assert torch.equal(a, b)


def test_quick_is_few_pairs_and_steps(tiny, tokenizer):
    recipe = RotationRecipe(quick=True)
    assert recipe.settled().train.max_steps == 8
    assert recipe.settled().dial.rank == 16
    dial = fit(recipe, tiny("llama"), tokenizer, random_pairs(80))
    assert dial.info.config["limit"] == 64
    assert isinstance(dial, RotationDial)


def test_blocks_above_the_objective_are_refused(tiny, tokenizer):
    recipe = RotationRecipe(
        objective=ContrastiveSteering(sites="0"), dial=RotationSettings(blocks="0.5..1")
    )
    with pytest.raises(ConfigError, match="up to site 0, and the dial acts from site 2 on"):
        fit(recipe, tiny("llama"), tokenizer, random_pairs(8))


def test_contrastive_is_not_for_a_tuner_without_an_opposite(tiny, tokenizer):
    dial = fit(ContrastiveRecipe(train=TRAIN), tiny("llama"), tokenizer, random_pairs(8))
    assert isinstance(dial, AdapterDial)
