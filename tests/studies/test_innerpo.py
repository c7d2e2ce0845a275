"""InnerPO's objectives and their companions: by hand, by finite differences, by what changes them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_objectives import SITES, by_hand, draw, softplus
from torch import Tensor

from trimtab.errors import ConfigError
from trimtab.objectives import DPO, IPO, MSE, ORPO, InnerDPO, PrefVec, Rank, SimPO
from trimtab.objectives.innerdpo import SOUND
from trimtab.readout import Readout

ALIGNS = (*SOUND, "cosine_policy_margin", "cosine_cross_model")
SOUND_ONES: dict[str, Any] = {
    "ipo": IPO(),
    "ipo, mean": IPO(mean=True),
    "simpo": SimPO(label_smoothing=0.1),
    "orpo": ORPO(),
    "mse": MSE(),
    "prefvec": PrefVec(),
    "rank": Rank(),
    **{f"innerdpo, {a}": InnerDPO(align=a, weight_outer=0, direction="pair") for a in ALIGNS},
    "innerdpo, trust": InnerDPO(trust=0.1, weight_outer=0),
    "dpo with terms": DPO(weight_nll=0.7, nll_margin=0.1, weight_kl=2.0, kl_limit=0.1),
}
PUBLISHED: dict[str, Any] = {
    "mse": MSE(variant="published"),
    "prefvec": PrefVec(variant="published"),
    "rank": Rank(variant="published"),
    **{f"innerdpo, {a}": InnerDPO(align=a, variant="published") for a in ALIGNS},
}
ALL = SOUND_ONES | {f"{k}, published": v for k, v in PUBLISHED.items()}


def prepared(seed: int, objective: Any) -> Readout:
    """A readout whose states are what the objective's token map would leave."""
    got = draw(seed)
    got = replace(
        got, **{f"{s}_kl": torch.rand(5, dtype=torch.float64) for s in ("chosen", "rejected")}
    )
    token_map = objective.needs(30).token_map
    change = {"softmax": torch.softmax, "log_softmax": torch.log_softmax}.get(token_map)
    if change is None:
        return got
    sides = {
        s: {k: change(h, -1) for k, h in getattr(got, s).items()} for s in ("chosen", "rejected")
    }
    return replace(got, **sides)


# ---- by hand ------------------------------------------------------------------------------------


def test_losses_on_log_probs_by_hand():
    # mean log-probs of the policy: -2 and -3 in both pairs; rho = (3, -2)
    assert IPO()(*by_hand())[0].tolist() == pytest.approx([(3 - 5) ** 2, (-2 - 5) ** 2])
    # a token: (1 - (-2.5 + 7 / 3), 1 - (-1.6 + 3)) = (7 / 6, -0.4)
    assert IPO(mean=True)(*by_hand())[0].tolist() == pytest.approx([(7 / 6 - 5) ** 2, 5.4**2])
    loss, metrics = SimPO()(by_hand()[0], None)
    assert loss.tolist() == pytest.approx([softplus(-1.0)] * 2)
    assert metrics["accuracy"].tolist() == [1, 1]
    p, q = math.exp(-2), math.exp(-3)
    odds = math.log(p / (1 - p)) - math.log(q / (1 - q))
    assert ORPO()(by_hand()[0], None)[0].tolist() == pytest.approx([2 + 0.1 * softplus(-odds)] * 2)


def test_mse_by_hand():
    # rejected at 0, so |ref chosen|^2 / D^2 = 1; chosen off by (3, 4) of 5, and by (1, -1) of 2
    loss, metrics = MSE()(*by_hand())
    assert loss.tolist() == pytest.approx([1 + 1, 1 + 0.5])
    assert metrics["drift"].tolist() == pytest.approx([1, math.sqrt(0.5)])
    loss, _ = MSE(variant="published")(*by_hand())
    assert loss.tolist() == pytest.approx([0, 60 * math.log(math.sqrt(0.5))], abs=1e-4)


def test_prefvec_by_hand():
    # theta = (1, -0.5); o = (0, 1), o / D = 1 / 2 less the smoothing; NLL rises by (-0.5, 0.4)
    off = (math.sqrt(1 + 4e-6) - 2e-3) / 2
    loss, metrics = PrefVec()(*by_hand())
    assert loss.tolist() == pytest.approx([-1, 0.5 + 0.1 * off + 0.4])
    assert metrics["off"].tolist() == pytest.approx([0, off])
    loss, _ = PrefVec(trust=0.25, weight_off=0, weight_nll=0)(*by_hand())
    assert loss.tolist() == pytest.approx([-0.25, 0.5])
    # published: 1e5 |mean over units of s u|, plus log sigmoid(-rho)
    loss, _ = PrefVec(variant="published")(*by_hand())
    assert loss.tolist() == pytest.approx(
        [1e5 * (6 + 8) / 2 - softplus(3), 1e5 * 1 / 2 - softplus(-2)]
    )


def test_rank_by_hand():
    even, skewed = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.9, 0.1]])
    policy = Readout(chosen={1: even}, rejected={1: skewed})
    reference = Readout(chosen={1: even}, rejected={1: skewed})
    kl = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    loss, metrics = Rank()(policy, reference)
    assert loss.tolist() == pytest.approx([kl])
    assert metrics["drift"].tolist() == pytest.approx([0])
    turned = replace(policy, chosen={1: skewed}, rejected={1: even})
    assert Rank(weight_keep=2)(turned, reference)[0].tolist() == pytest.approx([2 * kl])
    # published: q = (chosen - ref chosen) - (rejected - ref rejected), here (1, -1) - (0, 2)
    policy = Readout(
        chosen={1: torch.tensor([[1.0, -1.0]])}, rejected={1: torch.tensor([[0.0, 2.0]])}
    )
    zero = Readout(chosen={1: torch.zeros(1, 2)}, rejected={1: torch.zeros(1, 2)})
    objective = Rank(variant="published", weight_outer=0)
    assert objective(policy, zero)[0].tolist() == pytest.approx([(softplus(1) + softplus(-3)) / 2])


def test_align_methods_by_hand():
    def theta(**settings: Any) -> Any:
        return InnerDPO(weight_outer=0, **settings)(*by_hand())[1]["separation"].tolist()

    off = (math.sqrt(1 + 4e-6) - 2e-3) / 2
    assert theta(align="para_signed_log") == pytest.approx([math.log(1.5), math.log(0.75)])
    assert theta(align="para_orth_signed") == pytest.approx([1, 0.5 - off - 1])
    logged = [math.log(1.5), math.log(1.5 / (1 + off) / 2)]
    assert theta(align="para_orth_signed_log") == pytest.approx(logged)
    assert theta(align="logodds", direction="pair") == pytest.approx(logged)
    assert theta(align="ratio") == pytest.approx([1, -0.5])


def test_logodds_along_the_direction_of_the_data():
    policy = Readout(chosen={1: torch.tensor([[2.0, 1.0]])}, rejected={1: torch.zeros(1, 2)})
    reference = Readout(
        chosen={1: torch.tensor([[1.0, 1.0]])},
        rejected={1: torch.zeros(1, 2)},
        direction={1: torch.tensor([1.0, 0.0])},
    )
    objective = InnerDPO(align="logodds", weight_outer=0)
    assert objective.needs(4).direction == "data"
    # what is off the axis is the same: log((1 + 2 / D) / (1 + 1 / D)), D = sqrt 2
    separation = objective(policy, reference)[1]["separation"]
    assert separation.tolist() == pytest.approx([math.log(math.sqrt(2))], abs=1e-6)


def test_cosines_by_hand():
    x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    reference = Readout(chosen={1: x}, rejected={1: y})
    for align in ("cosine_policy_margin", "cosine_cross_model"):
        objective = InnerDPO(align=align, weight_outer=0)
        for rejected, theta in ((y, 0), (x, -1), (-x, 1)):
            found = objective(Readout(chosen={1: x}, rejected={1: rejected}), reference)[1]
            assert found["separation"].tolist() == pytest.approx([theta])
    # as published the margin is largest where chosen and rejected are the same
    published = InnerDPO(align="cosine_policy_margin", variant="published", weight_outer=0)
    assert published(Readout(chosen={1: x}, rejected={1: x}), reference)[1]["separation"] == 1


def test_terms_by_hand():
    policy, reference = by_hand()
    policy = replace(
        policy,
        chosen_kl=torch.tensor([0.2, 0.6]),
        rejected_kl=torch.tensor([0.4, 0.0]),
        chosen_confidence=torch.tensor([math.log(0.5), 0.0]),
        rejected_confidence=torch.tensor([math.log(0.5), 0.0]),
    )
    base = DPO()(policy, reference)[0]
    loss, metrics = DPO(weight_nll=2, nll_margin=0.1, weight_kl=3, kl_limit=0.2)(policy, reference)
    # NLL rises by (-0.5, 0.4), KL is 0.3 in both
    assert (loss - base).tolist() == pytest.approx([3 * 0.1, 2 * 0.3 + 3 * 0.1])
    assert metrics["kl"].tolist() == pytest.approx([0.3, 0.3])
    loss, metrics = DPO(wpo=True)(policy, reference)
    assert metrics["weight"].tolist() == pytest.approx([0.25, 1])
    assert loss.tolist() == pytest.approx([0.25 * base[0].item(), base[1].item()])
    needs = DPO(weight_kl=1, wpo=True).needs(4)
    assert (needs.kl, needs.confidence) == (True, True)
    needs = MSE(weight_nll=1).needs(4)
    assert (needs.logps, needs.reference_logps, needs.reference_states) == (True, True, True)
    assert not MSE().needs(4).logps


# ---- invariants ---------------------------------------------------------------------------------


def with_states(policy: Readout, leaves: list[Tensor]) -> Readout:
    return replace(
        policy,
        chosen_logps=leaves[0],
        rejected_logps=leaves[1],
        chosen=dict(zip(SITES, leaves[2:4], strict=True)),
        rejected=dict(zip(SITES, leaves[4:], strict=True)),
    )


def leaves_of(policy: Readout) -> list[Tensor]:
    states = [side[s] for side in (policy.chosen, policy.rejected) for s in SITES]
    return [
        t.clone().requires_grad_() for t in (policy.chosen_logps, policy.rejected_logps, *states)
    ]


@pytest.mark.parametrize("name", ALL)
def test_gradients_match_finite_differences(name):
    objective = ALL[name]
    policy, reference = prepared(2, objective), prepared(3, objective)
    assert torch.autograd.gradcheck(
        lambda *leaves: objective(with_states(policy, list(leaves)), reference)[0],
        leaves_of(policy),
    )


@pytest.mark.parametrize("name", ALL)
def test_a_step_lowers_the_loss_and_stays_finite(name):
    objective = ALL[name]
    policy, reference = prepared(4, objective), prepared(5, objective)
    leaves = leaves_of(policy)
    loss, _ = objective(with_states(policy, leaves), reference)
    loss.sum().backward()
    # small: some published losses are a hundred thousand times as steep as ours
    size = math.sqrt(sum(float(v.grad.square().sum()) for v in leaves if v.grad is not None))
    with torch.no_grad():
        stepped = [v - 1e-4 * v.grad / size if v.grad is not None else v for v in leaves]
        after, _ = objective(with_states(policy, stepped), reference)
    assert after.isfinite().all()
    assert after.sum() < loss.sum()


@pytest.mark.parametrize("align", ALIGNS)
def test_a_step_raises_the_separation(align):
    objective = InnerDPO(align=align, weight_outer=0, direction="pair")
    reference = draw(6)
    leaves = leaves_of(reference)  # the policy starts as the reference
    loss, before = objective(with_states(reference, leaves), reference)
    assert before["separation"].abs().max() < 1e-12
    assert torch.allclose(loss, torch.full_like(loss, math.log(2)))
    loss.sum().backward()
    stepped = [v.detach() - 0.01 * v.grad if v.grad is not None else v for v in leaves]
    after = objective(with_states(reference, stepped), reference)[1]
    assert (after["separation"] > 1e-6).all()


def test_the_start_of_every_sound_objective():
    same = draw(7)
    assert MSE()(same, same)[0].tolist() == pytest.approx([1.0] * 5)
    assert PrefVec()(same, same)[0].tolist() == pytest.approx([0.0] * 5)
    soft = prepared(7, Rank())
    loss, metrics = Rank()(soft, soft)
    assert torch.equal(loss, metrics["distance"])
    assert metrics["drift"].abs().max() < 1e-15
    assert IPO(beta=0.5)(same, same)[0].tolist() == [1.0] * 5


def mapped(readout: Readout, change: Any) -> Readout:
    return replace(
        readout,
        chosen={s: change(h) for s, h in readout.chosen.items()},
        rejected={s: change(h) for s, h in readout.rejected.items()},
    )


@pytest.mark.parametrize("name", [k for k in ALL if hasattr(ALL[k], "rotation_invariant")])
def test_a_shared_rotation_changes_what_depends_on_the_basis_alone(name):
    objective = ALL[name]
    policy, reference = prepared(8, objective), prepared(9, objective)
    Q = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
    plain = objective(policy, reference)[0]
    if objective.needs(30).token_map in ("softmax", "log_softmax"):  # the map acts on single tokens
        policy, reference = draw(8), draw(9)
        turned = [
            mapped(mapped(r, lambda h: h @ Q), lambda h: h.softmax(-1)) for r in (policy, reference)
        ]
    else:
        turned = [mapped(r, lambda h: h @ Q) for r in (policy, reference)]
    same = torch.allclose(objective(*turned)[0], plain)
    assert same == objective.rotation_invariant


@pytest.mark.parametrize(
    "name", [k for k in SOUND_ONES if hasattr(SOUND_ONES[k], "rotation_invariant")]
)
def test_the_scale_of_a_layer_changes_no_sound_objective_but_rank(name):
    objective = SOUND_ONES[name]
    policy, reference = draw(10), replace(draw(11), floor={1: 0.5, 2: 0.5})
    big = [mapped(r, lambda h: 50 * h) for r in (policy, reference)]
    big[1] = replace(big[1], floor={1: 25.0, 2: 25.0})
    if name == "rank":
        soft = [mapped(r, lambda h: h.softmax(-1)) for r in (policy, reference)]
        scaled = [mapped(r, lambda h: h.softmax(-1)) for r in big]
        assert not torch.allclose(objective(*scaled)[0], objective(*soft)[0])
    else:
        assert torch.allclose(objective(*big)[0], objective(policy, reference)[0])


def test_signed_logs_are_monotone_and_published_ones_are_not():
    base = Readout(chosen={1: torch.tensor([[1.0, 0.0]])}, rejected={1: torch.zeros(1, 2)})

    def theta(s: float, **settings: Any) -> float:
        policy = replace(base, chosen={1: torch.tensor([[s, 0.0]])})
        objective = InnerDPO(align="para_signed_log", weight_outer=0, **settings)
        return float(objective(policy, base)[1]["separation"])

    ladder = [-2.0, -1.0, -0.1, 0.0, 0.1, 1.0, 2.0]
    values = [theta(s) for s in ladder]
    assert values == sorted(values)
    assert len(set(values)) == len(ladder)
    assert theta(-0.1, variant="published") > theta(0.1, variant="published"), "as it was published"


# ---- bad settings -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: InnerDPO(align="para_singed"), "para_signed"),  # type: ignore[arg-type]
        (lambda: PrefVec(direction="pairs"), "expected one of pair, batch, data"),  # type: ignore[arg-type]
        (lambda: MSE(variant="unsound"), "objective.variant"),  # type: ignore[arg-type]
        (lambda: MSE(pool="last:0"), "last:K"),
        (lambda: DPO(weight_kl=-1), "weight_kl"),
        (lambda: SimPO(label_smoothing=0.6), "label_smoothing"),
    ],
)
def test_bad_settings_are_named(make, says):
    with pytest.raises(ConfigError, match=says):
        make()
