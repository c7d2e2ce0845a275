"""Terms on vectors worked out by hand, interventions by what they must keep, cuts in weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.anchoring import surgery
from trimtab.errors import ConfigError
from trimtab.interventions import (
    Bezier,
    Falloff,
    Linear,
    project,
    redirect,
    reflect,
    repel,
    suppress,
)
from trimtab.objectives.anchoring import (
    Anchor,
    AngularAnchor,
    AntiAnchor,
    AntiSubspace,
    EuclideanSeparate,
    Fallback,
    ReferenceAnchor,
    Separate,
    Subspace,
    Term,
    Unitarity,
    pooled,
    weighted,
)

Z = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, -2.0]], dtype=torch.float64)
LOSSES = [
    Unitarity(),
    Subspace((0, 1)),
    AntiSubspace((0,)),
    Anchor(0),
    AngularAnchor(0),
    AntiAnchor(1),
    AntiAnchor(0, hemisphere=False),
    Separate(100),
    Separate(10, shift=False),
    Separate(2.5),
    EuclideanSeparate(),
    Fallback(0.5),
    ReferenceAnchor(torch.ones(3, dtype=torch.float64)),
]


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (Unitarity(), [16, 1]),
        (Subspace((0, 1)), [0, 4]),
        (Subspace((2,)), [25, 0]),
        (AntiSubspace((0, 1)), [25, 0]),
        (Anchor(0), [4 + 16, 5]),
        (Anchor(2, sign=-1), [26, 1]),
        (AngularAnchor(0), [0.4, 1]),
        (AngularAnchor(0, enough=0.8), [0.2, 0.8]),
        (AngularAnchor(0, enough=0.5), [0, 0.5]),
        (AntiAnchor(2), [0, 1]),
        (AntiAnchor(2, sign=-1), [0, 0]),
        (AntiAnchor(2, hemisphere=False), [0.5, 1]),
        (Fallback(1.0), [13 / 3 + 1 / 3, 11 / 3]),
        (Fallback((3.0, 4.0, 0.0)), [0, 29 / 3]),
        (ReferenceAnchor(), [0, 0]),
        (ReferenceAnchor(torch.zeros(3, dtype=torch.float64)), [25 / 3, 4 / 3]),
        (Separate(1), [0.5 + 0.5, 1.0]),  # itself (masked to 0, shifted to .5) and a right angle
        (Separate(2, shift=False), [0, 0]),
        (EuclideanSeparate(), [0.5 / (25 + 1e-6)] * 2),
        (EuclideanSeparate(variant="published"), [0.5e6 + 0.5 / (25 + 1e-6)] * 2),
    ],
)
def test_terms_by_hand(loss, expected):
    torch.testing.assert_close(
        loss(Z), torch.tensor(expected, dtype=torch.float64), rtol=1e-7, atol=1e-7
    )


def test_separate_lets_duplicates_be_and_pushes_opposites_only_unshifted():
    z = torch.tensor([[1.0, 0.0], [1.0, 1e-4], [-1.0, 0.0]])
    assert Separate(100)(z).max() < 1e-20
    assert Separate(10, shift=False)(z).tolist() == pytest.approx([1, 1, 2], abs=1e-5)
    a, b = torch.tensor([[1.0, 0.0], [math.cos(0.1), math.sin(0.1)]]).unbind()
    one = Separate(100)(torch.stack([a, b]))
    assert float(one[0]) == pytest.approx(math.cos(0.05) ** 200, rel=1e-4)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_gradients_are_those_of_finite_differences(loss):
    z = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda x: loss(x).sum(), z.requires_grad_())


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_seeds_side_by_side_are_seeds_alone(loss):
    z = torch.randn(3, 5, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(loss(z), torch.stack([loss(one) for one in z]))


def test_a_term_weighs_by_labels():
    term = Term("pull", Anchor(0), labels={"red": 1.0, "pink": 0.5})
    labels = {"red": torch.tensor([1.0, 0.0]), "pink": torch.tensor([1.0, 1.0])}
    assert float(term(Z, labels)) == pytest.approx((20 + 0.5 * 5) / 1.5)
    none = {"red": torch.zeros(2), "pink": torch.zeros(2)}
    assert float(term(Z, none)) == 0  # nothing labelled, no pull
    twice = torch.cat([Z, Z])
    doubled = {k: torch.cat([v, v]) for k, v in labels.items()}
    assert float(term(twice, doubled)) == pytest.approx(float(term(Z, labels)))
    assert weighted(torch.tensor([1.0, 3.0]), None) == 2


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ({}, "no label 'red' in the batch"),
        ({"red": torch.tensor([0.0, 1.2])}, "label 'red' of sample 1 is 1.2: expected 0..1"),
        ({"red": torch.tensor([-0.1, 1.0])}, "label 'red' of sample 0"),
        ({"red": torch.tensor([math.nan, 1.0])}, "label 'red' of sample 0"),
    ],
)
def test_bad_labels_are_named(labels, says):
    with pytest.raises(ConfigError, match=says):
        Term("pull", Anchor(0), labels={"red": 1.0})(Z, labels)


def test_bad_terms_are_refused():
    with pytest.raises(ConfigError, match=r"affinity 2 with label 'red'"):
        Term("pull", Anchor(0), labels={"red": 2})
    with pytest.raises(ConfigError, match="expected one of mean, mellowmax, last"):
        Term("pull", Anchor(0), pool="max")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="dimension 3: states have 3"):
        Anchor(3)(Z)


def test_pooling():
    values = torch.tensor([[1.0, 3.0, 9.0], [2.0, 5.0, 7.0], [4.0, 4.0, 4.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 0]]).bool()
    assert pooled(values, mask, "mean").tolist() == pytest.approx([2, 14 / 3, 0])
    assert pooled(values, mask, "last").tolist() == [3, 7, 0]
    soft = pooled(values, mask, "mellowmax", 1.0)
    assert float(soft[0]) == pytest.approx(-math.log((math.exp(-1) + math.exp(-3)) / 2))
    assert float(soft[2]) == 0
    sharp = pooled(values, mask, "mellowmax", 0.01)
    assert sharp.tolist() == pytest.approx([1, 2, 0], abs=0.02)
    flat = pooled(values, mask, "mellowmax", 1e3)
    assert flat.tolist() == pytest.approx([2, 14 / 3, 0], abs=0.02)
    values.requires_grad_()
    pooled(values, mask, "mellowmax").sum().backward()
    assert values.grad is not None
    assert torch.isfinite(values.grad).all()
    assert values.grad[~mask].abs().max() == 0


# ---- interventions ------------------------------------------------------------------------------

V = torch.tensor([0.0, 2.0, 0.0], dtype=torch.float64)  # not of length 1: normalised inside


def states(n: int = 200) -> Tensor:
    g = torch.Generator().manual_seed(3)
    return torch.randn(n, 3, dtype=torch.float64, generator=g) * 2


def test_suppression_takes_the_concept_and_nothing_else():
    x = states()
    out = suppress(x, V, Falloff(0, 1, 0))
    towards = x[:, 1] > 0
    assert out[towards, 1].abs().max() < 1e-12
    assert torch.equal(out[~towards], x[~towards])  # the far side is untouched
    torch.testing.assert_close(out[:, [0, 2]], x[:, [0, 2]])
    half = suppress(x, V, Falloff(0, 0.5, 0))
    torch.testing.assert_close(half[towards, 1], x[towards, 1] / 2)
    cone = suppress(x, V, Falloff(0.8, 1, 1))
    outside = x[:, 1] / x.norm(dim=-1) < 0.8
    assert torch.equal(cone[outside], x[outside])


@pytest.mark.parametrize("mapper", [Linear(0, 0.3), Bezier(0.2, 0.5)], ids=repr)
def test_suppression_by_a_mapper_leaves_the_mapped_part(mapper):
    x = torch.randn(40, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    v = torch.tensor([0.0, 2.0, 0, 0, 0], dtype=torch.float64)
    out, length = suppress(x, v, mapper), x.norm(dim=-1)
    along = x[:, 1] / length
    expected = torch.where(along > 0, mapper(along.clamp(0, 1)) * length, x[:, 1])
    torch.testing.assert_close(out[:, 1], expected, atol=1e-6, rtol=1e-6)
    others = [0, 2, 3, 4]
    assert torch.equal(out[:, others], x[:, others])


def test_every_operation_is_a_dial_that_survives_saving(tiny, tmp_path):
    from trimtab.dials import ConceptDial, Dial

    model = tiny("llama")
    ids = torch.arange(12).reshape(2, 6)
    width = model.config.hidden_size
    v = torch.randn(width, generator=torch.Generator().manual_seed(3))
    seen: dict[str, Tensor] = {}
    for operation, shape in {
        "project": {},
        "suppress": {"falloff": Bezier(0, 0.2)},
        "repel": {"mapper": Linear(0, 0.1)},
        "reflect": {},
        "redirect": {"gamma": 2.5},
    }.items():
        dial = ConceptDial({1: v}, operation, **shape)  # type: ignore[arg-type]
        dial.save_pretrained(tmp_path / operation)
        with torch.no_grad():
            with dial(model, 1.0, force=True):
                seen[operation] = model(ids).logits
            with Dial.from_pretrained(tmp_path / operation)(model, 1.0, force=True):
                assert torch.equal(model(ids).logits, seen[operation])
    found = list(seen.values())
    assert not any(torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])


def test_falloffs_by_hand():
    a = torch.tensor([0.0, 0.5, 0.75, 1.0])
    assert Falloff(0, 1, 2)(a).tolist() == [0, 0.25, 0.5625, 1]
    assert Falloff(0.5, 0.8, 1)(a).tolist() == pytest.approx([0, 0, 0.4, 0.8])
    assert Falloff(0.5, 1, 0)(a).tolist() == [0, 0, 1, 1]
    assert Linear(0.5, 0.5)(a).tolist() == pytest.approx([0, 0.5, 0.5, 0.5])
    assert Linear(0, 0.2)(a).tolist() == pytest.approx([0, 0.1, 0.15, 0.2])
    for bad in (-0.1, 1.0):
        with pytest.raises(ConfigError, match="cosine"):
            Falloff(bad)
    with pytest.raises(ConfigError, match="power"):
        Falloff(0, 1, -1)


def test_the_bezier_mapper_leaves_smoothly_and_ends_where_it_should():
    curve = Bezier(0.5, 0.8, slope_end=0.2)
    a = torch.linspace(0, 1, 2001, dtype=torch.float64)
    m = curve(a)
    assert torch.equal(m[a <= 0.5], a[a <= 0.5])
    assert float(m[-1]) == pytest.approx(0.8, abs=1e-6)
    slope = (m[1:] - m[:-1]) / (a[1:] - a[:-1])
    assert slope[(a[1:] > 0.5)][0] == pytest.approx(1, abs=0.01)
    assert float(slope[-1]) == pytest.approx(0.2, abs=0.01)
    assert (slope > 0).all()
    assert (slope[1:] <= slope[:-1] + 1e-3).all()  # bends one way only
    (x0, y0), _, _, (x3, y3) = curve.control_points()
    assert (x0, y0, x3, y3) == (0.5, 0.5, 1, 0.8)
    with pytest.raises(ConfigError, match="both slopes"):
        Bezier(0, 0.5, slope_end=1.0)


@pytest.mark.parametrize("mapper", [Linear(0, 0.3), Linear(0.5, 0.4), Bezier(0, 0.5)], ids=repr)
def test_repulsion_keeps_lengths_and_ends_at_the_mapped_cosine(mapper):
    x = states()
    out = repel(x, V, mapper)
    torch.testing.assert_close(out.norm(dim=-1), x.norm(dim=-1))
    cosine = x[:, 1] / x.norm(dim=-1)
    towards = cosine > 0
    torch.testing.assert_close(
        out[towards, 1] / out[towards].norm(dim=-1), mapper(cosine[towards]), atol=1e-6, rtol=0
    )
    assert torch.equal(out[~towards], x[~towards])
    # what is left of a state keeps its direction
    a, b = (t[towards][:, [0, 2]] for t in (x, out))
    torch.testing.assert_close(F.cosine_similarity(a, b), torch.ones(len(a), dtype=a.dtype))


def test_a_state_that_is_nothing_but_the_concept_is_turned_somewhere_fixed():
    x = torch.stack([3 * V, V * 0])
    once, again = repel(x, V, Linear(0, 0)), repel(x, V, Linear(0, 0))
    assert torch.equal(once, again)
    assert float(once[0].norm()) == pytest.approx(6)
    assert float(once[0, 1]) == pytest.approx(0, abs=1e-12)
    assert torch.equal(once[1], x[1])


def test_projection_reflection_redirection():
    x = states()
    out = project(x, V)
    assert out[:, 1].abs().max() < 1e-12
    torch.testing.assert_close(project(x, [1]), out)
    torch.testing.assert_close(project(out, V), out)  # twice is once
    torch.testing.assert_close(project(x, [1], renormalise=True).norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(reflect(reflect(x, V), V), x)
    torch.testing.assert_close(reflect(x, V).norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(reflect(x, V)[:, 1], -x[:, 1])
    assert (redirect(x, V, 2.0)[:, 1] + 2).abs().max() < 1e-12
    with pytest.raises(ConfigError, match="zero or not finite"):
        project(x, V * 0)


# ---- weights ------------------------------------------------------------------------------------


class Bottle(nn.Module):
    """Two linear layers with a norm between them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 5).double(), nn.Linear(5, 2).double()

    def forward(self, x: Tensor, edit=None) -> Tensor:
        z = F.normalize(self.a(x), dim=-1)
        return self.b(z if edit is None else edit(z))


def test_ablating_is_pruning_is_projecting_and_renormalising():
    x = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    whole, ablated, pruned = Bottle(), Bottle(), Bottle()
    surgery.ablate(ablated.a, ablated.b, [0, 3])
    surgery.prune(pruned.a, pruned.b, [0, 3])
    assert pruned.a.out_features == pruned.b.in_features == 3
    projected = whole(x, lambda z: project(z, [0, 3], renormalise=True))
    torch.testing.assert_close(ablated(x), projected, rtol=0, atol=1e-13)
    torch.testing.assert_close(pruned(x), projected, rtol=0, atol=1e-13)
    assert (whole(x) - projected).abs().max() > 0.01


def test_reflection_and_redirection_in_weights_are_those_of_states():
    x = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    axis = torch.tensor([0, 1.0, 0, 0, 0], dtype=torch.float64)
    whole, reflected, redirected = Bottle(), Bottle(), Bottle()
    surgery.reflect(reflected.a, [1])
    surgery.redirect(redirected.a, 1, 2.0)
    torch.testing.assert_close(reflected(x), whole(x, lambda z: reflect(z, axis)))
    assert (redirected.a(x)[:, 1] + 2).abs().max() < 1e-12
    torch.testing.assert_close(redirected.a(x), redirect(whole.a(x), axis, 2.0))


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        ([5], "dimension 5: the layer has 5"),
        ([-1], "dimension -1"),
        ([], "no dimension"),
        ([0, 1, 2, 3, 4], "cutting all 5 dimensions would leave no layer"),
    ],
)
@pytest.mark.parametrize("cut", [surgery.ablate, surgery.prune])
def test_cuts_that_make_no_sense_are_refused(cut, axes, says):
    model = Bottle()
    with pytest.raises(ConfigError, match=says):
        cut(model.a, model.b, axes)
    with pytest.raises(ConfigError, match="one layer writes 5 dimensions, the other reads 4"):
        cut(model.a, model.a, [0])
