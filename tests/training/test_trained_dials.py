"""Dials trained where they sit: the identity at the start, by hand values, at the same positions in
training and in use, saved as they were trained."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
import torch
from torch import nn

from helpers_fit import random_pairs
from trimtab.batching import collate, encode
from trimtab.cli.fit import _parse
from trimtab.damage import first_range, neutral
from trimtab.dials import Dial, ReftDial, VectorDial
from trimtab.dials.contexts import opened
from trimtab.errors import ConfigError, DialError, TrainingError
from trimtab.objectives import (
    DPO,
    IPO,
    MSE,
    ORPO,
    ContrastiveSteering,
    InnerDPO,
    PrefVec,
    Rank,
    RePS,
    SimPO,
)
from trimtab.objectives.heads import IAV
from trimtab.pairs import PairSet
from trimtab.progress import Progress
from trimtab.readout import Readout
from trimtab.store import Store
from trimtab.study.settings import as_json, from_json
from trimtab.training import METHODS, method
from trimtab.training import fit as _fit
from trimtab.training.adapters import plan
from trimtab.training.fit_module import FitModule
from trimtab.training.fits import check_fits
from trimtab.training.new_dials import in_units
from trimtab.training.plan import Run
from trimtab.training.poles import PolesModule
from trimtab.training.recipes import PolesRecipe, ProjectionRecipe, Recipe, RotationRecipe, on_dial
from trimtab.training.reference import read_reference
from trimtab.training.settings import (
    AdapterSettings,
    LogitsSettings,
    ReftSettings,
    RotationSettings,
    VectorSettings,
    plain,
    spelled,
)
from trimtab.training.steering import DirectionRecipe, UnitSettings
from trimtab.training.vectors import LearnedVector

fit: Any = _fit
POSITIONS: Any = ("all", "completion", "prompt", "last")
SHORT = {"pairs_per_step": 4, "max_steps": 6, "epochs": 99.0}


def short(dial: Any, objective: Any = None, kind: Any = Recipe, **train: Any) -> Any:
    """A few steps of a recipe."""
    return kind(
        objective or DPO(),
        dial,
        dataclasses.replace(dial.usual, **(SHORT | train)),
    )


def module(tiny: Any, tokenizer: Any, made: Any, store: Any, tmp_path: Any, poles: str = "") -> Any:
    """What a recipe trains, before its first step, and its pairs."""
    model, encoded = tiny("llama"), encode(random_pairs(6), tokenizer)
    run = Run(dataclasses.replace(METHODS["dpo"], recipe=made), model, encoded, 0, tmp_path)
    found = plan(run)
    before = read_reference(model, encoded, found.needs, store)
    in_units(found.dial, model, encoded, store)
    parts = {"dial": found.dial, "objective": made.objective, "needs": found.needs}
    parts |= {"model": model, "reference": before}
    mine = PolesModule(**parts, poles=poles, seed=0) if poles else FitModule(**parts)
    return mine.train(), encoded, run.layout(found.layout)


def loss_of(mine: Any, encoded: Any, layout: Any, step: int = 0, rows: Any = None) -> torch.Tensor:
    """The loss of each pair, of one batch."""
    batch = collate(encoded, rows or list(range(len(encoded.rows))), layout)
    with mine.dial(mine.model, mine.alpha, training=True, force=True):
        return mine(batch, step)[0]


# ---- the start -----------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize(
    "dial",
    [VectorSettings(), ReftSettings("loreft"), ReftSettings("direft")],
    ids=["vector", "loreft", "direft"],
)
def test_dpo_is_log_2_at_the_start_at_all_positions(
    tiny, tokenizer, store, tmp_path, dial, positions
):
    made = short(dataclasses.replace(dial, positions=positions))
    mine, encoded, layout = module(tiny, tokenizer, made, store, tmp_path)
    loss = loss_of(mine, encoded, layout)
    assert torch.allclose(loss, torch.full_like(loss, math.log(2)), atol=2e-6)
    loss.sum().backward()
    grads = [p.grad for p in mine.dial.parameters() if p.grad is not None]
    assert max(float(g.abs().max()) for g in grads) > 1e-5, "it would never move"


@pytest.mark.parametrize(
    "dial",
    [AdapterSettings(rank=2), RotationSettings(rank=4), AdapterSettings(rank=2, blocks="0.5..1")],
)
def test_dpo_is_log_2_at_the_start_of_other_dials(tiny, tokenizer, store, tmp_path, dial):
    mine, encoded, layout = module(tiny, tokenizer, short(dial), store, tmp_path)
    loss = loss_of(mine, encoded, layout)
    assert torch.allclose(loss, torch.full_like(loss, math.log(2)), atol=2e-6)
    loss.sum().backward()
    grads = [p.grad for p in mine.dial.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in grads)
    assert max(float(g.abs().max()) for g in grads) > 1e-5


@pytest.mark.parametrize("form", ["loreft", "direft"])
def test_an_edit_of_states_starts_as_the_identity_to_the_bit(tiny, form):
    model = tiny("llama")
    dial = ReftDial({1: 32}, form=form, generator=torch.Generator().manual_seed(3))
    ids = torch.arange(8)[None]
    bare = model(ids).logits
    with dial(model, 1.0):
        assert torch.equal(model(ids).logits, bare)


# ---- by hand -------------------------------------------------------------------------------------


def reft(form: str) -> ReftDial:
    """h = (1, 2), R = (0.6, 0.8), W = (1, 0), b = 0.5."""
    tensors = {
        "0.R": torch.tensor([[0.6, 0.8]]),
        "0.W": torch.tensor([[1.0, 0.0]]),
        "0.b": torch.tensor([0.5]),
    }
    return ReftDial.build({"sites": [1], "form": form, "positions": "all"}, tensors)


@pytest.mark.parametrize(
    ("form", "alpha", "wanted"),
    [
        ("loreft", 1.0, (0.58, 1.44)),
        ("loreft", 0.5, (0.79, 1.72)),
        ("direft", 1.0, (1.9, 3.2)),
        ("direft", 0.0, (1.0, 2.0)),
    ],
)
def test_reft_by_hand(form, alpha, wanted):
    h = torch.tensor([[[1.0, 2.0]]])
    assert torch.allclose(reft(form)._edit(0, h, h, alpha), torch.tensor([[wanted]]), atol=1e-6)


def test_flipped_reft_is_the_edit_at_minus_alpha():
    h = torch.tensor([[[1.0, 2.0], [-3.0, 0.5]]])
    for form in ("loreft", "direft"):
        dial = reft(form)
        down = dial._edit(0, h, h, -0.7)
        dial.flip()
        assert torch.allclose(dial._edit(0, h, h, 0.7), down, atol=1e-6)


class Linear(nn.Module):
    """A head whose logit difference is <h, (2, -1)>."""

    def __init__(self, v: tuple[float, float]):
        super().__init__()
        self.v = nn.Parameter(torch.tensor(v))

    def rho(self, alpha: float) -> torch.Tensor:
        """What the step adds to chosen less rejected."""
        return alpha * (self.v @ torch.tensor([2.0, -1.0]))


def readout(difference: torch.Tensor, exchanged: bool = False) -> Readout:
    """A pair of so much difference of log-probs."""
    zero = torch.zeros_like(difference)
    found = (zero, difference) if exchanged else (difference, zero)
    return Readout(chosen_logps=found[0][None], rejected_logps=found[1][None])


def poles(plus: torch.Tensor, minus: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """DPO's loss at each pole, as `PolesModule` takes it: the answers exchanged at the negative one."""
    nothing = readout(torch.zeros(()))
    return (
        DPO()(readout(plus), nothing)[0],
        DPO()(readout(minus, exchanged=True), nothing)[0],
    )


def test_bipo_by_hand():
    up, down = poles(torch.tensor(3.0), torch.tensor(1.0))  # the wrong way at -1
    assert (up.item(), down.item()) == pytest.approx((0.5543552, 0.7443967), abs=1e-6)
    assert ((up + down) / 2).item() == pytest.approx(0.6493760, abs=1e-6)
    head = Linear((0.5, 0.0))
    assert [p.item() for p in poles(head.rho(1), head.rho(-1))] == pytest.approx([0.6443967] * 2)
    for which in (0, 1):
        head = Linear((0.0, 0.0))
        loss = poles(head.rho(1), head.rho(-1))[which]
        loss.sum().backward()
        assert loss.item() == pytest.approx(math.log(2))
        assert head.v.grad.tolist() == pytest.approx([-0.1, 0.05])  # type: ignore[union-attr]


def test_both_poles_are_the_two_passes_by_hand(tiny, tokenizer, store, tmp_path):
    """One pass over both halves is DPO at +1, and at -1 of the exchanged pairs."""
    made = short(VectorSettings(sites="1"), kind=PolesRecipe)
    mine, encoded, layout = module(tiny, tokenizer, made, store, tmp_path, poles="both")
    with torch.no_grad():
        mine.dial.w[0].copy_(torch.randn(32, generator=torch.Generator().manual_seed(0)))
    both = loss_of(mine, encoded, layout)
    vector = mine.dial.trained({1: 1.0})
    batch = collate(encoded, list(range(len(encoded.rows))), layout)
    one = FitModule(mine.model, vector, mine.objective, mine.needs, mine.reference).eval()
    with vector(mine.model, 1.0, force=True):
        up = one(batch)[0]
    other = dataclasses.replace(
        batch, pair_chosen=batch.pair_rejected, pair_rejected=batch.pair_chosen
    )
    with vector(mine.model, -1.0, force=True):
        down = one(other)[0]
    assert torch.allclose(both, (up + down) / 2, atol=1e-5)
    assert (up - down).abs().max() > 1e-3


def test_a_drawn_pole_is_one_for_all_pairs_of_a_step(tiny, tokenizer, store, tmp_path):
    made = short(VectorSettings(sites="1"), kind=PolesRecipe)
    mine, encoded, layout = module(tiny, tokenizer, made, store, tmp_path, poles="drawn")
    seen = set()
    for step in range(8):
        loss_of(mine, encoded, layout, step)
        assert len(set(mine.alpha.tolist())) == 1
        assert set(mine.exchanged.tolist()) == set(mine.alpha.tolist())
        seen |= set(mine.alpha.tolist())
    assert seen == {1.0, -1.0}


def test_poles_and_answers_exchanged_turn_the_vector_round(tiny, tokenizer):
    pairs = random_pairs(6)
    turned = PairSet(
        [dataclasses.replace(p, chosen=p.rejected, rejected=p.chosen) for p in pairs], "turned"
    )
    made = short(VectorSettings(sites="1"), kind=PolesRecipe)
    a, b = (fit(made, tiny("llama"), tokenizer, p) for p in (pairs, turned))
    assert torch.nn.functional.cosine_similarity(a.direction(1), -b.direction(1), 0) > 0.999


# ---- RePS ----------------------------------------------------------------------------------------


def answers(chosen: tuple[float, int], rejected: tuple[float, int], prompt: int = 0) -> Readout:
    """A pair of so much log-prob and so many tokens each."""
    return Readout(
        chosen_logps=torch.tensor([chosen[0]], requires_grad=True),
        rejected_logps=torch.tensor([rejected[0]], requires_grad=True),
        chosen_tokens=torch.tensor([chosen[1]]),
        rejected_tokens=torch.tensor([rejected[1]]),
        prompt_tokens=torch.tensor([prompt]),
    )


@pytest.mark.parametrize(
    ("reference", "policy", "prompt", "z", "loss"),
    [
        ((-15.0, -5.0), ((-12.0, 6), (-4.0, 4)), 0, -19.0, 19.0),
        ((-15.0, -5.0), ((-12.0, 6), (-4.0, 4)), 8, -8.2380952, 8.2383596),
        ((-6.0, -7.0), ((-6.0, 6), (-8.0, 4)), 0, 1.0, 0.3132617),
    ],
)
def test_published_reps_by_hand(reference, policy, prompt, z, loss):
    before = answers((reference[0], 6), (reference[1], 4))
    found, metrics = RePS(variant="published")(answers(*policy, prompt), before)
    assert metrics["margin"].item() == pytest.approx(z, abs=1e-5)
    assert found.item() == pytest.approx(loss, abs=1e-5)


def test_sound_reps_is_log_2_at_the_start_and_bounded():
    before = answers((-60.0, 6), (-4.0, 4), 8)
    now = answers((-60.0, 6), (-4.0, 4), 8)
    loss, metrics = RePS()(now, before)
    assert loss.item() == pytest.approx(math.log(2))
    assert metrics["phi"].item() == 4.0, "nine nats a token behind count as four"
    loss.sum().backward()
    pull = [6 * now.chosen_logps.grad.item(), 4 * now.rejected_logps.grad.item()]  # type: ignore[union-attr]
    assert pull == pytest.approx([-4.0, 1.0])
    even = answers((-6.0, 6), (-8.0, 4)), answers((-7.0, 6), (-9.0, 4))
    loss, _ = RePS()(*even)
    assert loss.item() == pytest.approx(-math.log(1 / (1 + math.exp(-2 * (1 / 6 - 1 / 4)))))


@pytest.mark.parametrize("objective", [RePS(), RePS(variant="published", weight_nll=0.1)])
def test_reps_has_the_gradients_of_finite_differences(objective):
    before = answers((-9.0, 6), (-4.0, 4), 3)
    logps = torch.tensor([-8.0, -5.0], dtype=torch.float64, requires_grad=True)

    def loss(logps: torch.Tensor) -> torch.Tensor:
        now = answers((0.0, 6), (0.0, 4), 3)
        now = dataclasses.replace(now, chosen_logps=logps[:1], rejected_logps=logps[1:])
        return objective(now, before)[0]

    assert torch.autograd.gradcheck(loss, logps)


def test_both_answers_of_an_item_have_one_factor_and_what_else_is_drawn_does_not_reach_it(
    tiny, tokenizer, store, tmp_path
):
    made = short(VectorSettings(sites="1"), RePS(), PolesRecipe)
    mine, encoded, layout = module(tiny, tokenizer, made, store, tmp_path, poles="one")
    mine.factors = (0.5, 2.0)
    loss_of(mine, encoded, layout, 3)
    whole = mine.alpha.clone()
    assert ((whole >= 0.5) & (whole < 2)).all()
    assert len(whole.unique()) == len(whole)
    for row in range(len(encoded.rows)):
        loss_of(mine, encoded, layout, 3, rows=[row])
        assert mine.alpha.tolist() == whole[row : row + 1].tolist()
        loss_of(mine, encoded, "padded", 3, rows=[row])
        assert set(mine.alpha.tolist()) == set(whole[row : row + 1].tolist())
    loss_of(mine, encoded, layout, 4)
    assert not torch.equal(mine.alpha, whole)
    mine.by_answer = True
    loss_of(mine, encoded, "padded", 3)
    assert set(mine.alpha.tolist()) <= set(range(2, 21, 2))
    assert len(mine.alpha) == encoded.n_answers


def test_prompts_are_counted_by_their_own_tokens(tiny, tokenizer, store, tmp_path):
    from trimtab.states import pair_up, read

    encoded = encode(random_pairs(5), tokenizer)
    for layout in ("packed", "padded"):
        batch = collate(encoded, [0, 2, 4], layout)
        counts = pair_up(read(tiny("llama"), batch, logps=True), batch).prompt_tokens
        assert counts is not None
        assert counts.tolist() == [len(encoded.rows[n].prompt) for n in (0, 2, 4)]


def test_published_reps_trains_each_answer_at_a_factor_of_its_own(tiny, tokenizer, tmp_path):
    named = METHODS["reps"]
    train = dataclasses.replace(named.recipe.train, max_steps=2)
    made = dataclasses.replace(named.recipe, variant="published", train=train)
    assert made.settled().objective == RePS(variant="published")
    assert made.settled().train.learning_rate == 0.04
    dial = fit(made, tiny("llama"), tokenizer, random_pairs(8))
    assert 0 < dial.step(2).abs().max() <= 0.04 * 2


def test_null_out_by_hand():
    """v = (2, 0): what lies along it on the positive side goes, and nothing else."""
    dial = VectorDial({1: torch.tensor([2.0, 0.0])}, {1: 2.0}).null_out()
    h = torch.tensor([[3.0, 4.0], [-3.0, 4.0]])
    assert dial._operation(1)(h).tolist() == [[0.0, 4.0], [-3.0, 4.0]]


# ---- units ---------------------------------------------------------------------------------------


def test_a_step_of_the_optimizer_moves_the_vector_by_the_rate_at_most(tiny, tokenizer, tmp_path):
    made = short(
        VectorSettings(sites="1,2"), learning_rate=0.1, scheduler="constant_with_warmup", warmup=0.0
    )
    dial = fit(made, tiny("llama"), tokenizer, random_pairs(8), out=tmp_path / "dial")
    assert all(0.1 < norm <= 0.1 * 6 * 1.01 for norm in dial.info.dose["trained_norm"])
    encoded = encode(random_pairs(8), tokenizer)
    from trimtab.readings import collect

    norms = collect(tiny("llama"), encoded, sites=(1, 2)).norms
    for n, site in enumerate((1, 2)):
        size = float(norms[site].mean())
        assert dial.scales[site] == pytest.approx(
            0.1 * size * dial.info.dose["trained_norm"][n], rel=1e-4
        )
        assert dial.info.dose["relative"][n] == pytest.approx(dial.scales[site] / size, rel=1e-4)
    saved = Dial.from_pretrained(tmp_path / "dial")
    assert isinstance(saved, VectorDial)
    assert all(torch.equal(saved.step(s), dial.step(s)) for s in (1, 2))
    assert saved.info.dose == dial.info.dose
    assert "trained norm" in (tmp_path / "dial" / "README.md").read_text()


def test_a_vector_is_no_longer_than_it_may_be(tiny, tokenizer):
    made = short(VectorSettings(sites="1", largest=0.2), SimPO(), learning_rate=1.0)
    dial = fit(made, tiny("llama"), tokenizer, random_pairs(8))
    assert dial.info.dose["trained_norm"][0] == pytest.approx(0.2, rel=1e-5)


def test_raw_vectors_move_each_entry_by_the_rate(tiny, tokenizer):
    made = short(VectorSettings(sites="1", unit="raw"), learning_rate=0.01, max_steps=1, warmup=0.0)
    dial = fit(made, tiny("llama"), tokenizer, random_pairs(8))
    assert dial.step(1).abs().max() == pytest.approx(0.01, rel=1e-3)


def test_a_vector_that_has_not_moved_is_no_dial():
    with pytest.raises(TrainingError, match="has not moved"):
        LearnedVector({1: 4}, {1: 1.0}).trained({1: 1.0})


def test_times_and_closed_forms_keep_their_dose(tiny, tokenizer, few_pairs):
    dial = fit("mean", tiny("llama"), tokenizer, few_pairs)
    (raw,) = dial.info.dose["raw_norm"]
    encoded = encode(few_pairs, tokenizer)
    from trimtab.readings import collect

    h = collect(tiny("llama"), encoded, sites=(2,)).states[2]
    chosen, rejected = encoded.pair_answers()
    assert raw == pytest.approx(float((h[chosen] - h[rejected]).mean(0).norm()), rel=1e-5)
    assert dial.times(-2).info.dose == {"relative": [0.2], "raw_norm": [raw]}


# ---- trained as it is used -----------------------------------------------------------------------


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize(
    "dial", [VectorSettings(sites="1"), ReftSettings(sites="1")], ids=["vector", "reft"]
)
def test_what_is_trained_is_what_a_plain_pass_gives(
    tiny, tokenizer, store, tmp_path, dial, positions
):
    """Log-probs of the packed rows in training are those of prompt and answer alone, at that alpha."""
    from trimtab.batching.spans import prompts

    made = short(dataclasses.replace(dial, positions=positions))
    mine, encoded, layout = module(tiny, tokenizer, made, store, tmp_path)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in mine.dial.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    from trimtab.states import read

    row = encoded.rows[0]
    batch = collate(encoded, [0], layout)
    with mine.dial(mine.model, 1.0, training=True, force=True):
        seen: Any = read(mine.model, batch, logps=True).logps
        ids = torch.tensor([[*row.prompt, *row.answers[0]]])
        with prompts([len(row.prompt)]):
            logp = mine.model(ids).logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])
    alone = logp[len(row.prompt) - 1 :].sum()
    assert seen[0].item() == pytest.approx(alone.item(), abs=1e-3)


@pytest.mark.parametrize("name", ["bipo", "reps", "loreft", "direft"])
def test_named_methods_train_and_are_saved_as_they_were(tiny, tokenizer, tmp_path, name):
    model = tiny("llama")
    named = METHODS[name]
    made = dataclasses.replace(
        named.recipe, train=dataclasses.replace(named.recipe.train, **{**SHORT, "max_steps": 20})
    )
    dial = fit(
        dataclasses.replace(named, recipe=made),
        model,
        tokenizer,
        random_pairs(8),
        out=tmp_path / "d",
    )
    curve = [json.loads(line) for line in (tmp_path / "d/training.jsonl").open()]
    assert curve[-1]["loss"] < curve[0]["loss"]
    saved, ids = Dial.from_pretrained(tmp_path / "d"), torch.arange(10)[None]
    with dial(model, 0.7):
        a = model(ids).logits
    with saved(model, 0.7):
        assert torch.equal(model(ids).logits, a)
    with saved(model, 0.0):
        assert torch.equal(model(ids).logits, model(ids).logits)
    assert saved.info.method == name


@pytest.mark.parametrize(
    "objective",
    [
        IPO(),
        SimPO(weight_kl=0.1),
        ORPO(weight_kl=0.1),
        InnerDPO(),
        PrefVec(),
        MSE(),
        Rank(),
        ContrastiveSteering(),
    ],
    ids=lambda o: type(o).__name__,
)
def test_any_objective_trains_a_vector(tiny, tokenizer, tmp_path, objective):
    made = short(VectorSettings(sites="1"), objective, max_steps=8)
    dial = fit(made, tiny("llama"), tokenizer, random_pairs(8), out=tmp_path / "d")
    assert isinstance(dial, VectorDial)
    curve = [json.loads(line) for line in (tmp_path / "d/training.jsonl").open()]
    assert min(r["loss"] for r in curve[-3:]) < curve[0]["loss"]


@pytest.mark.parametrize(
    "dial", [ReftSettings(sites="1"), RotationSettings(rank=4)], ids=["reft", "rotation"]
)
@pytest.mark.parametrize("objective", [IPO(), PrefVec(sites="2")], ids=["ipo", "prefvec"])
def test_other_dials_train_on_others_objectives(tiny, tokenizer, dial, objective):
    made = short(dial, objective, max_steps=3)
    assert fit(made, tiny("llama"), tokenizer, random_pairs(8)).kind == dial.kind


def test_dpo_on_logits_is_iav_without_its_terms(tiny, tokenizer):
    dial = LogitsSettings(rank=4)
    a, b = (
        fit(short(dial, o, max_steps=3), tiny("llama"), tokenizer, random_pairs(8))
        for o in (DPO(), IAV(weight_kl=0.0, weight_l2=0.0))
    )
    assert a.kind == "logits"
    assert torch.allclose(a.B, b.B, atol=1e-6)
    assert a.B.abs().max() > 1e-4


def test_adapters_sit_on_the_blocks_that_are_named(tiny, tokenizer):
    dial = fit(
        short(AdapterSettings(rank=2, blocks="0.5..1"), max_steps=1),
        tiny("llama"),
        tokenizer,
        random_pairs(8),
    )
    assert {path.split(".")[2] for path in dial.paths} == {"2", "3"}
    assert dial.lowest(tiny("llama")) == 2
    assert VectorDial({1: torch.ones(32)}, {1: 1.0}).lowest(tiny("llama")) == 1


# ---- what cannot be ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (Recipe(InnerDPO(sites="0.5"), VectorSettings()), "higher --objective.sites"),
        (Recipe(PrefVec(sites="0,1"), VectorSettings(sites="1")), "lower --dial.sites"),
        (Recipe(MSE(sites="0"), VectorSettings()), "does not see it"),
        (Recipe(MSE(sites="0.5"), VectorSettings(positions="last")), "does not see it"),
        (Recipe(MSE(sites="0"), AdapterSettings(blocks="0.5..1")), r"lower --dial\.blocks"),
        (Recipe(ContrastiveSteering(sites="0.5"), VectorSettings()), "shifted alike"),
        (ProjectionRecipe(dial=VectorSettings()), "expected --dial.kind adapter"),
        (RotationRecipe(dial=VectorSettings()), "expected the method contrastive"),
        (Recipe(SimPO(), VectorSettings()), "weight-kl"),
        (Recipe(ORPO(), VectorSettings()), r"dial\.largest 5"),
        (Recipe(MSE(), LogitsSettings()), "expected dpo, ipo, simpo or orpo"),
        (Recipe(IAV(), VectorSettings()), "expected logits"),
        (PolesRecipe(DPO(), LogitsSettings()), "expected the method dpo"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_what_can(made, said):
    with pytest.raises(ConfigError, match=said):
        check_fits(made, 4)


@pytest.mark.parametrize(
    "made",
    [
        Recipe(InnerDPO(), VectorSettings()),
        Recipe(MSE(sites="0.5"), VectorSettings()),
        Recipe(PrefVec(sites="0.5"), ReftSettings()),
        Recipe(SimPO(), VectorSettings(largest=5.0)),
        Recipe(MSE(sites="0.5"), AdapterSettings(blocks="0.5..1")),
        Recipe(DPO(), LogitsSettings()),
    ],
)
def test_what_can_be_trained_is_not_refused(made):
    check_fits(made, 4)


def test_a_reft_is_exported_nowhere(tiny):
    with pytest.raises(DialError, match="residual stream"):
        ReftDial({1: 32}).merged(tiny("llama"))


# ---- by name -------------------------------------------------------------------------------------


def test_the_kind_of_dial_is_a_flag_and_a_key(tmp_path):
    words = ["--pairs", "facts:train", "--out", str(tmp_path / "d")]
    file = tmp_path / "settings.yaml"
    file.write_text("dial: {kind: vector, sites: 0.3}\n")
    flag = _parse(method("ipo"), [*words, "--dial.kind", "vector", "--dial.sites", "0.3"]).recipe
    assert flag == Recipe(IPO(), VectorSettings(sites="0.3"))
    assert flag.train == VectorSettings.usual
    assert _parse(method("ipo"), [*words, "--config", str(file)]).recipe == flag
    with pytest.raises(ConfigError, match="did you mean 'vector'"):
        _parse(method("dpo"), [*words, "--dial.kind=vectr"])
    with pytest.raises(ConfigError, match="closed form"):
        _parse(method("mean"), [*words, "--dial.kind=vector"])
    with pytest.raises(ConfigError, match="weight-kl"):
        _parse(method("simpo"), [*words, "--dial.kind=vector"])
    named = dataclasses.replace(METHODS["ipo"], recipe=flag)
    assert from_json(json.loads(json.dumps(as_json(named)))) == named
    assert on_dial(METHODS["dpo"].recipe, "adapter") is METHODS["dpo"].recipe


def test_published_bipo_is_trained_as_published():
    made = PolesRecipe(
        DPO(), variant="published", train=dataclasses.replace(VectorSettings.usual, epochs=5.0)
    )
    found = made.settled()
    assert (found.poles, found.dial.unit, found.train.epochs) == ("drawn", "raw", 5.0)
    assert (found.train.learning_rate, found.train.pairs_per_step) == (5e-4, 4)
    assert PolesRecipe(DPO()).settled() == PolesRecipe(DPO())


def test_settings_that_came_later_are_left_out_at_their_default():
    assert "blocks" not in plain(METHODS["dpo"].recipe)["dial"]
    assert "dial" not in plain(METHODS["mean"].recipe)
    assert "blocks" in repr(METHODS["dpo"].recipe)
    for name in ("dpo", "bipo", "mean", "iav"):
        made = METHODS[name].recipe
        shown = repr(made)
        for later in (", blocks=''", ", memory=None", ", dial=UnitSettings(unit='norm')"):
            shown = shown.replace(later, "")
        assert spelled(made) == shown
    some = dataclasses.replace(METHODS["dpo"].recipe, dial=AdapterSettings(blocks="0.5..1"))
    assert plain(some)["dial"]["blocks"] == "0.5..1"


# ---- beside a dial that stays on -----------------------------------------------------------------


@pytest.mark.parametrize(
    "dial", [VectorSettings(sites="1"), AdapterSettings(rank=2)], ids=["vector", "lora"]
)
@pytest.mark.parametrize("kl", [0.0, 0.1])
def test_policy_and_reference_agree_beside_a_held_dial(tiny, tokenizer, tmp_path, dial, kl):
    """DPO is log 2 at the start, KL from the reference 0, and the store tells the two references apart."""
    model, pairs = tiny("llama"), random_pairs(8)
    store = Store(tmp_path / "store")
    held = VectorDial({2: torch.ones(32)}, {2: 3.0}, positions="completion")
    made = short(dial, DPO(weight_kl=kl), max_steps=2)
    curves = {}
    for name, beside in (("bare", None), ("held", held), ("again", held)):
        out = tmp_path / name
        found = fit(
            made, model, tokenizer, pairs, out=out, store=store, held=beside, held_alpha=0.7
        )
        curves[name] = [json.loads(line) for line in (out / "training.jsonl").open()]
        assert curves[name][0]["loss"] == pytest.approx(math.log(2), abs=2e-6)
        assert curves[name][0].get("kl", 0.0) == pytest.approx(0, abs=1e-6)
        assert ("held" in found.info.config) == (beside is not None)
    assert curves["again"] == curves["held"]
    assert curves["held"][1]["loss"] != curves["bare"][1]["loss"]
    assert not opened(model)


def test_a_mean_beside_a_held_dial_is_that_of_the_steered_states(tiny, tokenizer, few_pairs, store):
    from trimtab.readings import collect

    model, held = tiny("llama"), VectorDial({1: torch.ones(32)}, {1: 3.0}, positions="completion")
    plain_mean = fit("mean", model, tokenizer, few_pairs, store=store)
    found = fit("mean", model, tokenizer, few_pairs, store=store, held=held, held_alpha=2.0)
    with held(model, 2.0):
        encoded = encode(few_pairs, tokenizer)
        h = collect(model, encoded, sites=(2,)).states[2]
    chosen, rejected = encoded.pair_answers()
    wanted = (h[chosen] - h[rejected]).mean(0)
    assert torch.allclose(found.direction(2), wanted / wanted.norm(), atol=1e-5)
    assert not torch.allclose(found.direction(2), plain_mean.direction(2), atol=1e-3)


# ---- what a new dial costs -----------------------------------------------------------------------


def test_a_fit_ends_with_its_first_range(tiny, tokenizer, few_pairs, tmp_path, capsys):
    model = tiny("llama")
    dial = fit(
        "mean", model, tokenizer, few_pairs, out=tmp_path / "d", measure=True, progress=Progress()
    )
    assert dial.info.range == (-1.0, 1.0)
    assert [alpha for alpha, _ in dial.info.damage] == [-1.0, 0.0, 1.0]
    text = neutral(model, tokenizer)
    assert dict(dial.info.damage)[1.0] == pytest.approx(text.damage(dial, 1.0).kl.mean(), rel=1e-3)
    said = capsys.readouterr().err
    assert "neutral text: KL" in said
    strong = dial.times(20)
    first_range(strong, text, Progress())
    said = capsys.readouterr().err
    alpha = float(said.partition("dear; alpha ")[2].split()[0])
    assert text.damage(strong, alpha).kl.mean() == pytest.approx(0.1, rel=0.15)


def test_a_vector_whose_unit_is_damage(tiny, tokenizer, few_pairs):
    model = tiny("llama")
    made = DirectionRecipe(dial=UnitSettings("kl"))
    dial = fit(made, model, tokenizer, few_pairs)
    usual = fit("mean", model, tokenizer, few_pairs)
    assert neutral(model, tokenizer).damage(dial, 1.0).kl.mean() == pytest.approx(0.05, rel=0.1)
    assert torch.allclose(dial.direction(2), usual.direction(2), atol=1e-6)
    assert dial.info.config["dial"] == {"unit": "kl"}
    assert "dial" not in usual.info.config
    grown = dial.scales[2] / usual.scales[2]
    assert dial.info.dose["relative"][0] == pytest.approx(0.1 * grown)


def test_the_command_line(saved_model, tmp_path, monkeypatch):
    """A vector beside a held one, what it costs said and kept; what cannot be, before the model loads."""
    from helpers_study import trimtab

    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    given = ["--model", str(saved_model()), "--pairs", "facts:train[:6 items]"]
    few = ["--train.max-steps", "2", "--train.pairs-per-step", "8"]
    done = trimtab("fit", "mean", *given, "--out", str(tmp_path / "mean"), "--dial.unit", "kl")
    assert done.code == 0, done.err
    assert "neutral text: KL 0.05" in done.out + done.err
    vector = ["--dial.kind", "vector", "--dial.sites", "1", *few]
    beside = ["--with", str(tmp_path / "mean"), "--with-alpha", "0.5", "--no-measure"]
    done = trimtab("fit", "ipo", *given, *vector, *beside, "--out", str(tmp_path / "ipo"))
    assert done.code == 0, done.err
    assert "site 1: alpha 1 moves a state by" in done.out
    info = Dial.from_pretrained(tmp_path / "ipo").info
    assert info.config["held"]["alpha"] == 0.5
    assert info.measured == {}
    blind = ["--dial.kind", "vector", "--objective.sites", "0.5", "--out", str(tmp_path / "x")]
    done = trimtab("fit", "hs-none-prefvec", *given, *blind)
    assert done.code == 2
    assert "loading" not in done.err
    assert "higher --objective.sites" in done.err
