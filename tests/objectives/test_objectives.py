"""Losses on readouts: by hand, by finite differences, and by what they do to their own score."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from trimtab.errors import ConfigError
from trimtab.objectives import DPO, InnerDPO
from trimtab.readout import Needs, Readout

SITES = (1, 2)
OBJECTIVES = {
    "dpo": DPO(),
    "dpo, smoothed": DPO(beta=0.3, label_smoothing=0.1),
    "innerdpo": InnerDPO(),
    "innerdpo, states alone": InnerDPO(weight_outer=0, beta_inner=2.0),
    "innerdpo, published": InnerDPO(variant="published"),
}


def draw(seed: int, pairs: int = 5, d: int = 4) -> Readout:
    g = torch.Generator().manual_seed(seed)

    def states() -> dict[int | str, Tensor]:
        return {s: torch.randn(pairs, d, generator=g, dtype=torch.float64) for s in SITES}

    return Readout(
        chosen_logps=-20 * torch.rand(pairs, generator=g, dtype=torch.float64),
        rejected_logps=-20 * torch.rand(pairs, generator=g, dtype=torch.float64),
        chosen_tokens=torch.randint(1, 9, (pairs,), generator=g),
        rejected_tokens=torch.randint(1, 9, (pairs,), generator=g),
        chosen=states(),
        rejected=states(),
    )


def swapped(r: Readout) -> Readout:
    return Readout(
        r.rejected_logps,
        r.chosen_logps,
        r.rejected_tokens,
        r.chosen_tokens,
        r.rejected,
        r.chosen,
        r.floor,
    )


def by_hand(**changes) -> tuple[Readout, Readout]:
    """A policy and a reference of two pairs, two dimensions, one site."""
    zero = torch.zeros(2, 2)
    policy = Readout(
        chosen_logps=torch.tensor([-4.0, -10.0]),
        rejected_logps=torch.tensor([-9.0, -6.0]),
        chosen_tokens=torch.tensor([2, 5]),
        rejected_tokens=torch.tensor([3, 2]),
        chosen={1: torch.tensor([[6.0, 8.0], [1.0, 1.0]])},
        rejected={1: zero},
    )
    reference = Readout(
        chosen_logps=torch.tensor([-5.0, -8.0]),
        rejected_logps=torch.tensor([-7.0, -6.0]),
        chosen_tokens=policy.chosen_tokens,
        rejected_tokens=policy.rejected_tokens,
        chosen={1: torch.tensor([[3.0, 4.0], [0.0, 2.0]])},
        rejected={1: zero},
        **changes,
    )
    return policy, reference


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


# ---- by hand ------------------------------------------------------------------------------------


def test_dpo_by_hand():
    # rho = (policy chosen - rejected) - (reference's) = (5 - 2, -4 - -2) = (3, -2)
    loss, metrics = DPO(beta=0.5)(*by_hand())
    assert loss.tolist() == pytest.approx([softplus(-1.5), softplus(1.0)])
    assert metrics["margin"].tolist() == pytest.approx([1.5, -1.0])
    assert metrics["accuracy"].tolist() == [1.0, 0.0]


def test_dpo_with_label_smoothing_by_hand():
    loss, _ = DPO(beta=0.5, label_smoothing=0.2)(*by_hand())
    assert loss.tolist() == pytest.approx(
        [0.8 * softplus(-1.5) + 0.2 * softplus(1.5), 0.8 * softplus(1.0) + 0.2 * softplus(-1.0)]
    )


def test_innerdpo_by_hand():
    # reference: length 5 along (.6, .8), length 2 along (0, 1); policy: s = 10 and 1
    loss, metrics = InnerDPO(weight_outer=0)(*by_hand())
    assert metrics["separation"].tolist() == pytest.approx([10 / 5 - 1, 1 / 2 - 1])
    assert loss.tolist() == pytest.approx([softplus(-1.0), softplus(0.5)])
    assert set(metrics) == {"separation"}
    loss, metrics = InnerDPO(weight_inner=3, beta_inner=2, weight_outer=0.5, beta=0.5)(*by_hand())
    assert loss.tolist() == pytest.approx(
        [3 * softplus(-2.0) + 0.5 * softplus(-1.5), 3 * softplus(1.0) + 0.5 * softplus(1.0)]
    )
    assert metrics["margin"].tolist() == pytest.approx([1.5, -1.0])


def test_innerdpo_as_published_by_hand():
    # theta = s; the outer term on mean log-probs at beta 1:
    # (-4/2 + 9/3) - (-5/2 + 7/3) = 1 + 1/6; (-10/5 + 6/2) - (-8/5 + 6/2) = 1 - 1.4
    loss, metrics = InnerDPO(variant="published")(*by_hand())
    assert metrics["separation"].tolist() == pytest.approx([10, 1])
    assert metrics["margin"].tolist() == pytest.approx([7 / 6, -0.4])
    assert loss.tolist() == pytest.approx(
        [0.25 * softplus(-10) + softplus(-7 / 6), 0.25 * softplus(-1) + softplus(0.4)]
    )


def test_the_floor_holds_back_pairs_with_tiny_differences():
    # the second pair's length 2 is raised to 4: theta = 1/4 - 1
    _, metrics = InnerDPO(weight_outer=0)(*by_hand(floor={1: 4.0}))
    assert metrics["separation"].tolist() == pytest.approx([1.0, -0.75])
    _, metrics = InnerDPO(weight_outer=0, variant="published")(*by_hand(floor={1: 4.0}))
    assert metrics["separation"].tolist() == pytest.approx([10, 1])


def test_sites_are_averaged_after_the_softplus():
    policy, reference = draw(0), draw(1)
    both, _ = InnerDPO(weight_outer=0)(policy, reference)
    each = [
        InnerDPO(weight_outer=0)(replace(policy, chosen={s: policy.chosen[s]}), reference)[0]
        for s in SITES
    ]
    assert torch.allclose(both, (each[0] + each[1]) / 2)


# ---- invariants ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_policy_equal_to_reference_gives_log_2(seed):
    same = draw(seed)
    loss, metrics = DPO()(same, same)
    assert loss.tolist() == [math.log(2)] * 5  # exactly
    assert metrics["margin"].tolist() == [0] * 5
    loss, metrics = InnerDPO()(same, same)
    assert torch.allclose(loss, torch.full_like(loss, 2 * math.log(2)), atol=1e-14)
    assert metrics["separation"].abs().max() < 1e-14
    loss, _ = InnerDPO(variant="published", weight_inner=0.0)(same, same)
    assert loss.tolist() == [math.log(2)] * 5


def test_swapping_chosen_and_rejected_negates_every_margin():
    policy, reference = draw(0), draw(1)
    for objective in (DPO(), InnerDPO(), InnerDPO(variant="published")):
        _, metrics = objective(policy, reference)
        _, other = objective(swapped(policy), swapped(reference))
        assert torch.equal(other["margin"], -metrics["margin"])
        assert torch.equal(other["accuracy"], 1 - metrics["accuracy"])
    # with the policy's states alone swapped, the projection turns round: s / D goes to - s / D
    _, metrics = InnerDPO()(policy, reference)
    _, other = InnerDPO()(swapped(policy), reference)
    assert torch.allclose(other["separation"] + 1, -(metrics["separation"] + 1))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_match_finite_differences(name):
    objective, policy, reference = OBJECTIVES[name], draw(2), draw(3)
    reference = replace(reference, floor={1: 0.7, 2: 1e-3})

    def loss(chosen_logps, rejected_logps, *states):
        got = replace(
            policy,
            chosen_logps=chosen_logps,
            rejected_logps=rejected_logps,
            chosen=dict(zip(SITES, states[:2], strict=True)),
            rejected=dict(zip(SITES, states[2:], strict=True)),
        )
        return objective(got, reference)[0]

    inputs = [policy.chosen_logps, policy.rejected_logps]
    inputs += [side[s] for side in (policy.chosen, policy.rejected) for s in SITES]
    assert torch.autograd.gradcheck(loss, [t.clone().requires_grad_() for t in inputs])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_one_step_moves_every_pairs_own_score_up(name):
    objective, reference = OBJECTIVES[name], draw(5)
    start = draw(4)
    inputs = {
        "chosen_logps": start.chosen_logps,
        "rejected_logps": start.rejected_logps,
        **{f"chosen {s}": start.chosen[s] for s in SITES},
        **{f"rejected {s}": start.rejected[s] for s in SITES},
    }

    def run(values: dict[str, Tensor]):
        return objective(
            replace(
                start,
                chosen_logps=values["chosen_logps"],
                rejected_logps=values["rejected_logps"],
                chosen={s: values[f"chosen {s}"] for s in SITES},
                rejected={s: values[f"rejected {s}"] for s in SITES},
            ),
            reference,
        )

    leaves = {k: v.clone().requires_grad_() for k, v in inputs.items()}
    loss, before = run(leaves)
    loss.sum().backward()
    with torch.no_grad():
        stepped = {k: v - 0.05 * v.grad if v.grad is not None else v for k, v in leaves.items()}
        after_loss, after = run(stepped)
    assert (after_loss < loss).all()
    for score in {"margin", "separation"} & set(before):
        assert (after[score] > before[score]).all()
    # what the objective does not read gets no gradient
    assert (leaves["chosen_logps"].grad is None) == ("margin" not in before)
    assert (leaves["chosen 1"].grad is None) == ("separation" not in before)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_scale_of_a_layer_makes_no_difference_to_the_sound_formula(scale):
    policy, reference = draw(6), replace(draw(7), floor={1: 0.5, 2: 0.5})

    def scaled(r: Readout) -> Readout:
        return replace(
            r,
            chosen={s: h * scale for s, h in r.chosen.items()},
            rejected={s: h * scale for s, h in r.rejected.items()},
            floor={s: f * scale for s, f in r.floor.items()},
        )

    sound, published = InnerDPO(weight_outer=0), InnerDPO(weight_outer=0, variant="published")
    assert torch.allclose(sound(scaled(policy), scaled(reference))[0], sound(policy, reference)[0])
    theta = published(policy, reference)[1]["separation"]
    assert torch.allclose(
        published(scaled(policy), scaled(reference))[1]["separation"], scale * theta
    )


def test_a_shared_rotation_makes_no_difference():
    policy, reference = draw(8), draw(9)
    Q = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]

    def turned(r: Readout) -> Readout:
        return replace(
            r,
            chosen={s: h @ Q for s, h in r.chosen.items()},
            rejected={s: h @ Q for s, h in r.rejected.items()},
        )

    assert torch.allclose(
        InnerDPO()(turned(policy), turned(reference))[0], InnerDPO()(policy, reference)[0]
    )


@pytest.mark.parametrize("variant", ["sound", "published"])
@pytest.mark.parametrize("floor", [{}, {1: 0.0, 2: 0.0}, {1: 0.1, 2: 0.1}])
def test_equal_states_give_no_nan(variant, floor):
    """A pair whose answers have the same states (in the reference, in the policy, in both)."""
    policy, reference = draw(10), draw(11)
    for side, pair in ((policy, 0), (reference, 1), (policy, 2), (reference, 2)):
        for s in SITES:
            side.rejected[s][pair] = side.chosen[s][pair]
    leaves = {s: policy.chosen[s].clone().requires_grad_() for s in SITES}
    loss, metrics = InnerDPO(variant=variant)(
        replace(policy, chosen=leaves), replace(reference, floor=floor)
    )
    loss.sum().backward()
    assert loss.isfinite().all()
    assert metrics["separation"].isfinite().all()
    for s in SITES:
        assert leaves[s].grad.isfinite().all()
        assert leaves[s].grad[1].abs().max() == 0  # no direction to push along
        assert leaves[s].grad[0].abs().max() > 0


def test_extreme_margins_stay_finite():
    policy, reference = draw(12), draw(13)
    policy = replace(
        policy, chosen_logps=torch.tensor([0.0, -1e6, -1e6, 0.0, -5.0], dtype=torch.float64)
    )
    for objective in OBJECTIVES.values():
        assert objective(policy, reference)[0].isfinite().all()


# ---- what they ask for --------------------------------------------------------------------------


def test_needs():
    assert DPO().needs(30) == Needs(logps=True, reference_logps=True)
    assert InnerDPO().needs(30) == Needs(
        logps=True, sites=tuple(range(9, 27)), reference_logps=True, reference_states=True
    )
    alone = InnerDPO(weight_outer=0, sites="0..0.6", pool="last").needs(30)
    assert alone == Needs(sites=tuple(range(18)), pool="last", reference_states=True)
    assert InnerDPO(variant="published").needs(4).token_map == "l2"
    with pytest.raises(ConfigError, match="site"):
        InnerDPO(sites="40").needs(30)


@pytest.mark.parametrize("objective", [DPO(), InnerDPO()])
def test_a_missing_reference_or_log_prob_is_named(objective):
    with pytest.raises(ValueError, match=f"{type(objective).__name__} needs a reference"):
        objective(draw(0), None)
    with pytest.raises(ValueError, match="needs log-probs"):
        objective(replace(draw(0), chosen_logps=None), draw(1))
    with pytest.raises(ValueError, match="token counts"):
        InnerDPO(variant="published")(replace(draw(0), chosen_tokens=None), draw(1))
