"""Directions from contrasts: estimators against dense and foreign ones, gradients against finite
differences, and whole fits."""

from __future__ import annotations

import dataclasses
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_contrast import contrast, separate
from test_directions import cosine, draw
from torch import Tensor, nn

from conftest import TINY, count_calls
from trimtab import models
from trimtab.batching import collate, encode, make_contrast
from trimtab.directions import (
    fisher_direction,
    gradient_mean,
    gradient_svd,
    logistic_direction,
    mean_difference,
    principal_direction,
    umap_direction,
)
from trimtab.directions.gradient import _refined, damped_solve
from trimtab.errors import ConfigError, DataError
from trimtab.objectives import DPO, NLL, Objective, ReprPOMargin, SimPO
from trimtab.pairs import Pair, PairSet, persona_pairs
from trimtab.readout import Readout
from trimtab.states import available_layers, by_row, find_sites
from trimtab.training import METHODS, fit, method
from trimtab.training.closed_form import fit_direction
from trimtab.training.gradients import read_gradients, sequence_logps
from trimtab.training.steering import PUBLISHED, DirectionRecipe, GradientRecipe

SKY = ["The sky is blue.", "Water boils there", "Two and two are four", "Rome is the answer"]


def people(n: int = 4) -> PairSet:
    return persona_pairs("You are {persona}.", ["good"], ["bad"], SKY[:n], "people")


# ---- estimators ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "d"), [(60, 8), (20, 50)])
@pytest.mark.parametrize("scaled", [True, False])
def test_logistic_against_sklearn(n, d, scaled):
    linear_model = pytest.importorskip("sklearn.linear_model")
    D = draw(n, d, mean=1.0)
    X = D / 2 if not scaled else D / D.square().sum(1).mean().sqrt()
    both = torch.cat([X, -X]).numpy()
    labels = np.repeat([1, 0], n)
    fitted = linear_model.LogisticRegression(fit_intercept=False, tol=1e-12, max_iter=10_000)
    truth = fitted.fit(both, labels).coef_[0]
    assert cosine(logistic_direction(D, scaled=scaled), truth) > 1 - 1e-8


def test_logistic_does_not_depend_on_the_scale_of_a_layer():
    D = draw(30, 10)
    assert torch.allclose(logistic_direction(D), logistic_direction(1e3 * D), atol=1e-9)
    assert torch.allclose(logistic_direction(D), -logistic_direction(-D), atol=1e-9)
    with pytest.raises(ValueError, match="all zero"):
        logistic_direction(torch.zeros(3, 2))


def test_pca_center_is_uncentred_pca():
    """repeng's `pca_center` fits PCA to states less the mean of their pair."""
    decomposition = pytest.importorskip("sklearn.decomposition")
    D = draw(40, 12)
    h = draw(40, 12, seed=1)
    rows = torch.stack([h + D, h], 1).reshape(-1, 12).numpy()
    centre = (rows[::2] + rows[1::2]) / 2
    rows[::2] -= centre
    rows[1::2] -= centre
    truth = decomposition.PCA(1, svd_solver="full").fit(rows).components_[0]
    assert abs(cosine(principal_direction(D), truth)) > 1 - 1e-12


def test_trap_pca_is_seeded_and_signed_by_the_pairs():
    """scikit-learn's `auto` may take a randomised solver and any sign."""
    D = draw(700, 600)
    v = principal_direction(D)
    assert torch.equal(v, principal_direction(D.clone()))
    assert ((D @ v) > 0).float().mean() > 0.5
    assert torch.allclose(principal_direction(-D), -v)


def dense_fisher(g: Tensor, target: Tensor, kind: str, level: float) -> Tensor:
    X = g - g.mean(0) if kind == "covariance" else g
    m = len(g) - 1 if kind == "covariance" else len(g)
    F = X.T @ X / m
    return torch.linalg.solve(F + level * torch.eye(F.shape[1], dtype=F.dtype), target)


@pytest.mark.parametrize(("n", "d"), [(6, 40), (40, 6)])
@pytest.mark.parametrize("kind", ["covariance", "empirical"])
@pytest.mark.parametrize("relative", [True, False])
def test_fisher_by_woodbury_equals_the_dense_solve(n, d, kind, relative):
    c, r = draw(n, d), draw(n, d, seed=1)
    g = torch.cat([c, r])
    X = g - g.mean(0) if kind == "covariance" else g
    m = len(g) - 1 if kind == "covariance" else len(g)
    level = 0.3 * (X.square().sum().item() / m / d if relative else 1.0)
    truth = dense_fisher(g, ((r - c) / 2).mean(0), kind, level)
    found = fisher_direction(c, r, fisher=kind, damping=0.3, relative=relative)
    assert cosine(found, truth) > 1 - 1e-12
    truth = dense_fisher(g, -((r + c) / 2).mean(0), kind, level)
    found = fisher_direction(c, r, separating=False, fisher=kind, damping=0.3, relative=relative)
    assert cosine(found, truth) > 1 - 1e-12


@pytest.mark.parametrize(("m", "d"), [(5, 30), (30, 5)])
def test_the_damped_solve(m, d):
    X, t = draw(m, d), draw(1, d, seed=2)[0]
    for damping in (0.7, 1e-3):
        dense = torch.linalg.solve(X.T @ X + damping * torch.eye(d, dtype=X.dtype), t)
        assert torch.allclose(damped_solve(X, t, damping), dense, rtol=1e-8)
    assert torch.allclose(damped_solve(X, t, 0.0), torch.linalg.pinv(X.T @ X) @ t, rtol=1e-6)
    if m > d:  # beyond single precision: no refinement
        X = X * torch.logspace(0, -5, d, dtype=X.dtype)
        assert _refined(X.T, t, 1e-11) is None
        dense = torch.linalg.solve(X.T @ X + 1e-11 * torch.eye(d, dtype=X.dtype), t)
        assert torch.allclose(damped_solve(X, t, 1e-11), dense, rtol=1e-4)


def test_relative_damping_does_not_depend_on_the_scale_of_the_loss():
    """Published damping does: gradients 1/8 as long, as in a batch of 16, make lambda = 0.1 so
    strong that the natural gradient is the mean gradient."""
    c, r = draw(20, 30), draw(20, 30, seed=1)
    v = fisher_direction(c, r)
    assert cosine(v, fisher_direction(c / 80, r / 80)) > 1 - 1e-10
    mean = gradient_mean(c / 1000, r / 1000)
    absolute = fisher_direction(c / 1000, r / 1000, relative=False, damping=0.1)
    assert cosine(absolute, mean) > 0.999
    assert cosine(v, mean) < 0.95


def test_separate_poles():
    c, r = draw(20, 8), draw(20, 8, seed=1)

    def level(g: Tensor) -> float:
        return 0.1 * (g - g.mean(0)).square().sum().item() / (len(g) - 1) / 8

    up = dense_fisher(c, -c.mean(0), "covariance", level(c))
    down = dense_fisher(r, r.mean(0), "covariance", level(r))
    for poles, truth in {
        "positive": up,
        "negative": down,
        "difference": up - down,
        "dual": (up + down) / 2,
    }.items():
        assert cosine(fisher_direction(c, r, poles=poles), truth) > 1 - 1e-12


def test_the_published_fisher():
    """Numerator: the mean of all 2n gradients; sign: by g_rejected - g_chosen; scaled: gradients over
    their length at the loss; a floor of lambda where there are few gradients."""
    c, r = draw(20, 8), draw(20, 8, seed=1)
    g = torch.cat([c, r])
    truth = dense_fisher(g, g.mean(0), "covariance", 0.1)
    truth = truth * torch.sign((r - c).mean(0) @ truth)
    settings = dataclasses.asdict(PUBLISHED["fisher_steer_cov_reg1"])
    assert (settings["fisher"], settings["damping"], settings["relative"]) == (
        "covariance",
        0.1,
        False,
    )
    found = fisher_direction(c, r, relative=False, damping=0.1, published=True)
    assert cosine(found, truth) > 1 - 1e-12
    lengths = torch.stack([c.norm(dim=1), r.norm(dim=1)])
    w = torch.cat([*lengths])[:, None]
    F = (g / (w**2 + 1e-6).sqrt()).T @ (g / (w**2 + 1e-6).sqrt()) / len(g)
    truth = torch.linalg.solve(F + 1e-2 * torch.eye(8, dtype=F.dtype), g.mean(0))
    found = fisher_direction(
        c, r, fisher="scaled", relative=False, damping=1e-2, published=True, lengths=lengths
    )
    assert abs(cosine(found, truth)) > 1 - 1e-12
    with pytest.raises(ValueError, match="lengths at the loss"):
        fisher_direction(c, r, fisher="scaled")
    few, other = draw(1, 64), draw(1, 64, seed=1)
    two = torch.cat([few, other])
    floor = 1e-4 * (two - two.mean(0)).square().sum().item() / 64
    truth = dense_fisher(two, two.mean(0), "covariance", floor)
    found = fisher_direction(few, other, relative=False, damping=0.0, published=True)
    assert abs(cosine(found, truth)) > 1 - 1e-9


def test_the_whole_published_grid_has_names():
    for kind in ("", "_emp", "_cov"):
        for end in (
            "",
            *(f"_reg{i}" for i in range(6)),
            "_dual",
            "_dual_pos",
            "_dual_neg",
            "_dual_diff",
        ):
            assert method(f"fisher_steer{kind}{end}").recipe.variant == "published"
    assert PUBLISHED["fisher_steer"] == PUBLISHED["fisher_steer_reg2"]
    assert PUBLISHED["fisher_steer_emp_reg3"].damping == 1e-3
    assert method("svd_gradient").recipe.estimator == "gradient_svd"
    with pytest.raises(ConfigError, match="fisher_steer_cov_reg1"):
        method("fisher_ster_cov_reg1")
    assert {
        "mean",
        "pca",
        "pca_center",
        "logistic",
        "gradient_mean",
        "gradient_svd",
        "fisher",
    } <= set(METHODS)


def test_gradient_svd():
    c, r = draw(30, 9), draw(30, 9, seed=1) + 1
    pull = (r - c) / 2
    assert torch.equal(gradient_svd(c, r), principal_direction(pull))
    g = torch.cat([c, r])
    truth = torch.linalg.svd(g - g.mean(0), full_matrices=False)[2][0]
    found = gradient_svd(c, r, published=True)
    assert abs(cosine(found, truth)) > 1 - 1e-9
    assert ((pull @ found) > 0).float().mean() >= 0.5


def test_swapping_the_poles_turns_gradient_directions_round():
    c, r = draw(21, 6), draw(21, 6, seed=1)
    for estimate in (gradient_mean, gradient_svd, fisher_direction):
        assert torch.allclose(estimate(c, r), -estimate(r, c), atol=1e-12)


def test_umap_is_an_extra(monkeypatch):
    c, r = draw(10, 5), draw(10, 5, seed=1)
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ConfigError, match=r"trimtab\[umap\]"):
        umap_direction(c, r)

    class UMAP:
        def __init__(self, **settings: object):
            assert settings == {"n_components": 1, "random_state": 0}

        def fit_transform(self, states: np.ndarray) -> np.ndarray:
            assert states.shape == (20, 5)
            return states[:, :1] + 10

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=UMAP))
    h = torch.stack([c, r], 1).reshape(-1, 5)
    truth = (h[:, :1] + 10).T @ h
    assert abs(cosine(umap_direction(c, r), truth[0])) > 1 - 1e-12


# ---- losses -------------------------------------------------------------------------------------


def readout(n: int = 4, d: int = 3, site: int = 1, **grad: bool) -> Readout:
    g = torch.Generator().manual_seed(0)
    states = [torch.randn(n, d, generator=g, dtype=torch.float64) for _ in range(2)]
    logps = [-5 * torch.rand(n, generator=g, dtype=torch.float64) - 1 for _ in range(2)]
    tokens = torch.tensor([2.0, 1.0, 3.0, 2.0], dtype=torch.float64)[:n]
    for t in (*states, *logps):
        t.requires_grad_()
    return Readout(logps[0], logps[1], tokens, tokens, {site: states[0]}, {site: states[1]})


def frozen(r: Readout) -> Readout:
    from trimtab.training.gradients import _detached

    return _detached(r)


def test_published_margin_by_hand():
    """The coherence term's value is l^2 and its gradient -200 |l|: always just outside."""
    r = readout()
    loss, _ = ReprPOMargin(variant="published")(r, frozen(r))
    apart = (r.chosen[1] - r.rejected[1]).norm(dim=1)
    mean = r.chosen_logps / r.chosen_tokens
    assert torch.allclose(loss, -apart + mean**2)
    (down,) = torch.autograd.grad(loss.sum(), r.chosen_logps, retain_graph=True)
    assert torch.allclose(down * r.chosen_tokens, -200 * mean.abs())
    up, other = torch.autograd.grad(loss.sum(), [r.chosen[1], r.rejected[1]])
    unit = (r.chosen[1] - r.rejected[1]) / apart[:, None]
    assert torch.allclose(up, -unit)
    assert torch.allclose(other, unit)


def test_sound_margin_by_hand():
    r = readout()
    loss, metrics = ReprPOMargin()(r, frozen(r))
    assert torch.allclose(loss, torch.full_like(loss, -1 + np.log1p(np.exp(-1))))
    assert torch.allclose(metrics["separation"], torch.ones(4, dtype=torch.float64))
    (down,) = torch.autograd.grad(loss.sum(), r.chosen_logps, retain_graph=True)
    assert torch.allclose(down * r.chosen_tokens, torch.full_like(down, -10 / (1 + np.e)))
    (up,) = torch.autograd.grad(loss.sum(), r.chosen[1])
    delta = r.chosen[1] - r.rejected[1]
    assert torch.allclose(up, -delta / delta.square().sum(1, keepdim=True))


@pytest.mark.parametrize(
    "loss", [ReprPOMargin(), ReprPOMargin(variant="published"), NLL(), SimPO()]
)
def test_losses_have_the_gradients_of_finite_differences(loss: Objective):
    r = readout()
    reference = frozen(r)

    def run(chosen: Tensor, rejected: Tensor, a: Tensor, b: Tensor) -> Tensor:
        policy = Readout(a, b, r.chosen_tokens, r.rejected_tokens, {1: chosen}, {1: rejected})
        return loss(policy, reference)[0]

    inputs = (r.chosen[1], r.rejected[1], r.chosen_logps, r.rejected_logps)
    inputs = tuple(t.detach().clone().requires_grad_() for t in inputs)  # perturbed in place
    assert torch.autograd.gradcheck(run, inputs)


def test_the_loss_site_and_its_margin():
    assert ReprPOMargin().needs(30).sites == (27,)  # hidden_states[-3] of 31
    assert ReprPOMargin().needs(2).sites == (0,)
    with pytest.raises(ConfigError, match="above 0"):
        ReprPOMargin(margin=0)


def test_the_loss_geometry_is_drawn_from_the_loss(tmp_path):
    """The committed figure is what the script draws."""
    script = Path(__file__).resolve().parents[2] / "docs" / "assets" / "loss_geometry.py"
    drawn = tmp_path / "drawn.svg"
    runpy.run_path(str(script))["main"](drawn)

    def paths(file: Path) -> list[str]:
        return re.findall(r'<path d="([^"]+)"', file.read_text())

    assert paths(drawn) == paths(script.with_suffix(".svg"))


# ---- gradients at sites -------------------------------------------------------------------------


def naive_gradients(
    model: nn.Module, c, objective: Objective, site: int, *, whole: bool
) -> tuple[Tensor, Tensor]:
    """One pair at a time, each pole a sequence of its own, by autograd through hidden states."""
    count = models.n_layers(model)
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    for pair in zip(c.chosen, c.rejected, strict=True):
        probes, logps, tokens, states = [], [], [], []
        for pole in pair:
            ids = torch.tensor([c.sequences[pole[0]][: pole[1] + 1]])
            kept: dict[int, Tensor] = {}
            probe = torch.zeros(1, models.text_config(model).hidden_size, dtype=model.dtype)
            probes.append(probe.requires_grad_())

            def add(_, __, out, probe=probe):
                mask = torch.zeros(1, out.shape[1], 1, dtype=out.dtype)
                mask[:, -2] = 1
                return out + mask * probe

            handles = [models.layers(model)[site].register_forward_hook(add)]
            for s in objective.needs(count).sites:
                keep = lambda _, __, out, s=s, kept=kept: kept.update({s: out[:, -2]})  # noqa: E731
                handles.append(models.layers(model)[s].register_forward_hook(keep))
            with torch.enable_grad():
                out = torch.log_softmax(model(input_ids=ids).logits[0, :-1], -1)
            for handle in handles:
                handle.remove()
            each = out.gather(-1, ids[0, 1:, None])[:, 0]
            logps.append(each.sum()[None] if whole else each[-1:])
            tokens.append(torch.tensor([float(len(each) if whole else 1)]))
            states.append(kept)
        with torch.enable_grad():
            policy = Readout(*logps, *tokens, *states)
            loss, _ = objective(policy, frozen(policy))
            grads = torch.autograd.grad(loss.sum(), probes, allow_unused=True)
        for part, grad, probe in zip(found, grads, probes, strict=True):
            part.append(torch.zeros_like(probe)[0] if grad is None else grad[0])
    return torch.stack(found[0]), torch.stack(found[1])


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3moe"])
@pytest.mark.parametrize(
    ("objective", "whole"),
    [
        (ReprPOMargin(), False),
        (ReprPOMargin(variant="published"), True),
        (DPO(), False),
        (SimPO(), False),
        (NLL(), True),
    ],
)
def test_gradients_equal_those_of_separate_sequences(tiny, name, objective, whole):
    """Exact although the poles share their prefixes: truncations of one suffix included."""
    moe = name == "qwen3moe"  # whose grouped products have no float64
    dtype = torch.float32 if moe else torch.float64
    model, c = tiny(name, dtype=dtype), contrast(n=3)
    site, tolerance = 1, 1e-3 if moe else 1e-6
    found = read_gradients(model, c, objective, (site,), whole=whole, budget=64)
    chosen, rejected = naive_gradients(model, c, objective, site, whole=whole)
    scale = max(chosen.abs().max(), rejected.abs().max())
    assert (found.chosen[site] - chosen).abs().max() < tolerance * scale
    assert (found.rejected[site] - rejected).abs().max() < tolerance * scale
    assert found.chosen[site].dtype == dtype


def test_gradients_of_answers_equal_finite_differences(tiny, tokenizer, few_pairs):
    """Pairs with a prompt: one vector added to all tokens of an answer."""
    model = tiny("llama", dtype=torch.float64)
    encoded = encode(few_pairs, tokenizer)
    site = 2
    found = read_gradients(model, encoded, NLL(), (site,))
    row = encoded.rows[0]
    ids = torch.tensor([[*row.prompt, *row.answers[row.pairs[0][0]]]])
    n_prompt, n_body = len(row.prompt), len(row.answers[row.pairs[0][0]]) - 1

    def nll(step: Tensor) -> float:
        def add(_, __, out):
            mask = torch.zeros(1, out.shape[1], 1, dtype=out.dtype)
            mask[:, n_prompt : n_prompt + n_body] = 1
            return out + mask * step

        handle = models.layers(model)[site].register_forward_hook(add)
        logps = torch.log_softmax(model(input_ids=ids).logits[0, :-1], -1)
        handle.remove()
        each = logps.gather(-1, ids[0, 1:, None])[n_prompt - 1 :, 0]
        return -each.mean().item()

    for i in range(3):
        e = torch.zeros(32, dtype=torch.float64)
        e[i] = 1e-3  # norms are float32 in every model
        truth = (nll(e) - nll(-e)) / 2e-3
        assert found.chosen[site][0, i].item() == pytest.approx(truth, rel=1e-2, abs=1e-4)
    assert not found.rejected[site].any()


def test_pairs_that_share_an_answer_have_gradients_of_their_own(tiny, tokenizer, few_pairs):
    """Item "sum" has one chosen answer for two pairs: each pair's gradient is that of its own loss."""
    model = tiny("llama", dtype=torch.float64)
    together = read_gradients(model, encode(few_pairs, tokenizer), DPO(), (1,))
    encoded = encode(few_pairs, tokenizer)
    order = [i for row in encoded.rows for i in row.pair_ids]
    for place, i in enumerate(order):
        alone = read_gradients(model, encode(few_pairs[i : i + 1], tokenizer), DPO(), (1,))
        assert torch.allclose(together.chosen[1][place], alone.chosen[1][0], atol=1e-6)
        assert torch.allclose(together.rejected[1][place], alone.rejected[1][0], atol=1e-6)


def test_sequence_log_probs(tiny):
    model, c = tiny("llama", dtype=torch.float64), contrast()
    found = sequence_logps(model, c)
    for i in (0, c.n_pairs - 1):
        for k, pole in enumerate((c.chosen[i], c.rejected[i])):
            ids = torch.tensor([c.ids(pole)])
            logps = torch.log_softmax(model(input_ids=ids).logits[0, :-1], -1)
            truth = logps.gather(-1, ids[0, 1:, None]).sum().item()
            assert found[i, k].tolist() == pytest.approx([truth, ids.shape[1] - 1])


def test_gradients_of_half_precision_models_are_float32(tiny):
    """One-step gradients in bfloat16: the loss and what is returned are float32."""
    c = contrast()
    g = read_gradients(tiny("llama", dtype=torch.bfloat16), c, ReprPOMargin(), (0,))
    truth = read_gradients(tiny("llama"), c, ReprPOMargin(), (0,))
    assert g.chosen[0].dtype == torch.float32
    assert (
        cosine((g.rejected[0] - g.chosen[0]).mean(0), (truth.rejected[0] - truth.chosen[0]).mean(0))
        > 0.9
    )


def test_weights_take_no_gradient_and_hooks_are_gone(tiny):
    model, c = tiny("llama", fresh=True), contrast()
    before = {n: p.clone() for n, p in model.named_parameters()}
    read_gradients(model, c, DPO(), (1, "model.layers.2.mlp:in"))
    assert all(p.grad is None and torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_site_that_no_gradient_reaches(tiny):
    class Apart(ReprPOMargin):
        def needs(self, n_layers):
            return dataclasses.replace(super().needs(n_layers), logps=False)

    with pytest.raises(ConfigError, match="nothing above it"):
        read_gradients(tiny("llama"), contrast(), Apart(), (3,))


def test_a_contrast_without_a_next_token_has_no_log_prob(tiny):
    with pytest.raises(DataError, match="a token after the one that is read"):
        read_gradients(tiny("llama"), contrast(every=False, known=False), NLL(), (1,))


# ---- sites --------------------------------------------------------------------------------------


def test_sites_by_regular_expression(tiny):
    model = tiny("llama")
    assert find_sites(model, r".*\.self_attn\.k_proj$") == tuple(
        f"model.layers.{k}.self_attn.k_proj:out" for k in range(4)
    )
    assert find_sites(model, r"layers\.[12]$") == (1, 2)
    assert find_sites(model, "0.5") == (2,)
    assert find_sites(model, (0, "final")) == (0, "final")
    with pytest.raises(ConfigError, match="no module's path matches"):
        find_sites(model, r".*\.nothing$")
    with pytest.raises(ConfigError, match="not a regular expression"):
        find_sites(model, "(")


def test_available_layers(tiny):
    model = tiny("llama")
    shapes, full = available_layers(model, r"\.layers\.\d+$", (0.25, 0.75))
    assert shapes == ["model.layers.{N}"]
    assert full == ["model.layers.1", "model.layers.2"]
    assert available_layers(model, r"k_proj$", (-2, 4))[1] == [
        f"model.layers.{k}.self_attn.k_proj" for k in (2, 3)
    ]
    assert available_layers(model, r"\.layers\.\d+$", (0.0, 1.0))[1] == [
        f"model.layers.{k}" for k in range(4)
    ]
    everything = available_layers(model)[1]
    assert not any(name.endswith(".bias") for name in everything)
    with pytest.raises(ConfigError, match="no block"):
        available_layers(model, None, (3, 1))


def test_trap_tied_heads_are_visible(tiny):
    model = tiny("gpt2")
    assert models.head(model).weight is models.embed(model).weight
    assert "lm_head" in available_layers(model)[1]


def test_trap_blocks_of_a_mixture_of_experts(tiny, tokenizer, store):
    """Block outputs are well defined; experts see the tokens routed to them."""
    model = tiny("qwen3moe")
    dial = fit("mean", model, tokenizer, people(), store=store)
    assert dial.sites == (2,)
    c = make_contrast("{}", ["good"], ["bad"], SKY, tokenizer)
    recipe = DirectionRecipe(sites=r"layers\.2\.mlp\.gate$")
    assert fit_direction(recipe, model, c, store=store).sites == ("model.layers.2.mlp.gate:out",)


def test_trap_states_of_routed_tokens_alone_are_refused(rows):
    batch = collate(rows, [0, 1])
    tokens = batch.input_ids.numel()
    assert by_row(torch.zeros(tokens, 3), batch, "gate:out").shape == (*batch.input_ids.shape, 3)
    for shape in ((tokens - 5, 3), (4, 7, 3), (tokens,)):
        with pytest.raises(ConfigError, match="read the block around it"):
            by_row(torch.zeros(shape), batch, "model.layers.2.mlp.experts.0:out")


# ---- fits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "mean",
        "pca",
        "pca_center",
        "logistic",
        "gradient_mean",
        "gradient_svd",
        "fisher",
        "fisher_steer_cov_reg1",
        "fisher_steer",
    ],
)
def test_every_method_fits_personas(tiny, tokenizer, store, tmp_path, name):
    model = tiny("llama")
    dial = fit(name, model, tokenizer, people(), out=tmp_path / "dial", store=store)
    assert dial.info.method == name
    assert dial.direction(2).norm().item() == pytest.approx(1)
    again = fit(name, model, tokenizer, people(), out=tmp_path / "dial", store=store)
    assert torch.equal(again.direction(2), dial.direction(2))


def test_a_direction_is_that_of_naive_extraction(tiny, tokenizer, store):
    """Every truncation of every suffix run alone, and scikit-learn."""
    model = tiny("qwen3")
    c = make_contrast("You are {persona}.", ["good"], ["bad"], SKY, tokenizer)
    D = torch.stack(
        [
            separate(model, c.ids(p), 2) - separate(model, c.ids(q), 2)
            for p, q in zip(c.chosen, c.rejected, strict=True)
        ]
    )
    assert (
        cosine(fit("mean", model, tokenizer, people(), store=store).direction(2), D.mean(0))
        > 0.999999
    )
    assert (
        cosine(fit("mean", model, tokenizer, c, store=store).direction(2), mean_difference(D))
        > 0.999999
    )
    truth = np.linalg.svd(D.numpy(), full_matrices=False)[2][0]
    assert abs(cosine(fit("pca", model, tokenizer, c, store=store).direction(2), truth)) > 0.99999


def test_extraction_stops_after_the_deepest_block_and_runs_no_head(tiny, tokenizer, store):
    model = tiny("llama", fresh=True)
    c = make_contrast("{}", ["good"], ["bad"], SKY, tokenizer)
    from trimtab.batching import layout_of

    layout_of(model)
    counts, done = count_calls(*models.layers(model), models.head(model))
    fit_direction(DirectionRecipe(sites="1"), model, c, store=store)
    done()
    assert counts == [1, 1, 0, 0, 0]


def test_a_contrast_for_another_kind_of_method(tiny, tokenizer, store):
    c = make_contrast("{}", ["good"], ["bad"], SKY, tokenizer, stops="last")
    with pytest.raises(ConfigError, match="stops='known'"):
        fit("fisher", tiny("llama"), tokenizer, c, store=store)
    with pytest.raises(ConfigError, match="trains on answers"):
        fit("dpo", tiny("llama"), tokenizer, c, store=store)


def test_gradient_methods_take_ordinary_pairs(tiny, tokenizer, store, few_pairs):
    for loss in ("dpo", "simpo", "nll", "reprpo_nll_margin"):
        recipe = GradientRecipe("gradient_mean", loss=loss)
        dial = fit(recipe, tiny("llama"), tokenizer, few_pairs, store=store)
        assert dial.info.method == "gradient_mean"


@pytest.mark.parametrize("loss", ["dpo", "nll"])
def test_a_step_along_a_gradient_direction_lowers_the_loss(tiny, tokenizer, store, few_pairs, loss):
    from trimtab.readings import collect

    model = tiny("llama", dtype=torch.float64)
    recipe = GradientRecipe("gradient_mean", loss=loss)
    dial = fit(recipe, model, tokenizer, few_pairs, store=store)
    encoded = encode(few_pairs, tokenizer)
    chosen, rejected = encoded.pair_answers()

    def score(alpha: float) -> float:
        with dial(model, alpha):
            found = collect(model, encoded, logps=True)
        if loss == "nll":
            return float((found.logps / found.tokens)[chosen].mean())
        return float((found.logps[chosen] - found.logps[rejected]).mean())

    assert score(0.01) > score(0.0) > score(-0.01)


def test_the_command_line(saved_model, tmp_path, monkeypatch):
    """From a spec to a saved dial, and again: nothing to do. Published names and modules, too."""
    from helpers_study import trimtab
    from trimtab.dials import Dial

    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    model = str(saved_model())
    given = ["--model", model, "--pairs", "personas:honesty[:6 items]", "--quiet"]
    for name, more in {
        "pca": [],
        "fisher": ["--damping", "0.5", "--loss", "dpo", "--truncations"],
        "fisher_steer_cov_reg1": ["--sites", "1,2"],
        "mean": ["--sites", r"layers\.[12]\.mlp$", "--no-truncations"],
    }.items():
        words = ["fit", name, *given, "--out", str(tmp_path / name), *more]
        for _ in range(2):
            done = trimtab(*words)
            assert done.code == 0, done.err
        assert Dial.from_pretrained(tmp_path / name).info.method == name
    done = trimtab("fit", "pca", *given, "--out", str(tmp_path / "x"), "--sites", r"\.nowhere$")
    assert done.code == 2
    assert "no module's path matches" in done.err
    assert trimtab("inspect", "personas:honesty", "--model", model).code == 0
    assert trimtab("inspect", "traits:honesty/test", "--model", model).code == 0


# ---- traps of reading ---------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_trap_the_last_token_whatever_the_padding(tiny, tokenizer, store, side):
    """Indices come from the mask, in the coordinates of the states: our rows are laid out without
    the tokenizer's padding, and equal what a padded batch gives at its last real token."""
    import copy

    model = tiny("llama")
    padded = copy.deepcopy(tokenizer)
    padded.padding_side = side
    texts = [("The sky is", "The sky was four"), ("Rome", "Paris is the answer there")]
    pairs = PairSet([Pair("", a, b, str(i)) for i, (a, b) in enumerate(texts)], "texts")
    with pytest.warns(UserWarning, match="not in the persona alone"):
        dial = fit("mean", model, padded, pairs, store=store)
    flat = [t for pair in texts for t in pair]
    batch = padded(flat, padding=True, return_tensors="pt")
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    h = model(**batch, position_ids=positions, output_hidden_states=True).hidden_states[3]
    last = [row.nonzero()[-1, 0] for row in batch["attention_mask"]]
    states = torch.stack([h[i, at] for i, at in enumerate(last)])
    assert cosine(dial.direction(2), (states[::2] - states[1::2]).mean(0)) > 0.99999


def test_trap_the_last_block_is_read_before_the_final_norm(tiny):
    from trimtab.readings import collect

    model, c = tiny("llama"), contrast()
    found = collect(model, c, sites=(3, "final"))
    post = separate(model, c.ids(c.poles[0]), 3)  # hidden_states[-1] is post-norm
    assert torch.allclose(found.states["final"][0], post, atol=1e-4)
    assert (found.states[3][0] - post).abs().max() > 1e-2


def test_trap_a_dial_that_is_on_while_extracting_is_seen_and_leaves_nothing(tiny, tokenizer, store):
    """Extraction goes through the same hooks, and afterwards reads the bare model again."""
    from trimtab.readings import collect

    model, c = tiny("llama"), contrast()
    dial = fit("mean", model, tokenizer, people(), store=store)
    bare = collect(model, c, sites=(2,)).states[2]
    with dial(model, 5.0):
        steered = collect(model, c, sites=(2,)).states[2]
    assert (bare - steered).abs().max() > 1e-2
    assert torch.equal(collect(model, c, sites=(2,)).states[2], bare)


def test_trap_modules_that_give_tuples_are_read_and_differentiated_like_others(tiny):
    """Attention gives (states, weights); its first part is read, and probed without a change in place."""
    from trimtab.readings import collect

    model, c = tiny("llama"), contrast(n=2)
    site = "model.layers.1.self_attn:out"
    kept: list[Tensor] = []
    attention = model.model.layers[1].self_attn
    handle = attention.register_forward_hook(lambda _, __, out: kept.append(out[0]))
    separate(model, c.ids(c.poles[0]), 1)
    handle.remove()
    assert torch.allclose(
        collect(model, c, sites=(site,)).states[site][0], kept[0][0, -1], atol=1e-4
    )
    tuples = read_gradients(model, c, NLL(), (site,)).chosen[site]
    behind = read_gradients(model, c, NLL(), (1,)).chosen[1]
    assert (
        tuples.shape == behind.shape
    )  # the residual stream after it sees all that it adds, and more
    assert tuples.abs().max() > 0


def test_trap_padding_reaches_no_recurrent_state(tiny):
    """Models with recurrent or convolutional layers: padding comes after all that is read."""
    from trimtab.batching import contrast_batches, layout_of

    model, c = tiny("lfm2"), contrast()
    assert layout_of(model) == "padded"
    for batch in contrast_batches(c, 256, "padded"):
        real = (batch.segments >= 0).int()
        assert (real.cummin(1).values == real).all()
        assert (batch.token_at < real.sum(1)[batch.token_row]).all()


def test_trap_hooks_are_gone_after_an_error(tiny):
    model = tiny("llama", fresh=True)
    with pytest.raises(ConfigError):
        read_gradients(model, contrast(), NLL(), (1, "model.layers.9:out"))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_trap_sums_over_half_precision_states_are_float32(tiny, tokenizer, store):
    from trimtab.readings import collect

    found = collect(tiny("llama", dtype=torch.bfloat16), contrast(), sites=(1,))
    assert found.states[1].dtype == torch.float32
    dial = fit("mean", tiny("llama", dtype=torch.bfloat16), tokenizer, people(), store=store)
    assert dial.direction(2).dtype == torch.float32


def test_trap_strength_is_a_share_of_the_state_of_each_layer(tiny, tokenizer, store):
    """Gemma's residuals are long; alpha = 1 is the same share everywhere."""
    from trimtab.readings import collect

    model = tiny("gemma3")
    c = make_contrast("You are {persona}.", ["good"], ["bad"], SKY, tokenizer)
    dial = fit(DirectionRecipe(sites="1,3"), model, tokenizer, c, store=store)
    norms = collect(model, c, sites=(1, 3)).norms
    for site in (1, 3):
        assert dial.scales[site] == pytest.approx(0.1 * norms[site].mean().item(), rel=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_personas_fit_on_every_architecture(tiny, tokenizer, store, name):
    dial = fit("pca", tiny(name), tokenizer, people(2), store=store)
    assert dial.direction(2).isfinite().all()
