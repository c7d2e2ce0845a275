"""Closed-form directions, against numpy and scikit-learn, and where the answer is planted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from trimtab.directions import mean_difference, principal_direction


def draw(n: int, d: int, seed: int = 0, mean: float = 0.3) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    spread = torch.linspace(1, 3, d, dtype=torch.float64)
    return torch.randn(n, d, generator=g, dtype=torch.float64) * spread + mean


def cosine(a, b) -> float:
    a, b = (torch.as_tensor(x, dtype=torch.float64) for x in (a, b))
    return float(a @ b / (a.norm() * b.norm()))


def test_mean_by_hand():
    D = torch.tensor([[3.0, 0.0], [0.0, 4.0], [3.0, 4.0]])  # mean (2, 8/3), along (.6, .8)
    assert mean_difference(D).tolist() == pytest.approx([0.6, 0.8])


def test_mean_against_numpy():
    D = draw(50, 7)
    mean = D.numpy().mean(0)
    assert np.allclose(mean_difference(D).numpy(), mean / np.linalg.norm(mean), atol=1e-14)
    assert mean_difference(D.float()).dtype == torch.float32


@pytest.mark.parametrize(("n", "d"), [(200, 12), (12, 200), (9, 9), (1, 5), (5, 1), (3, 64)])
@pytest.mark.parametrize("centred", [False, True])
def test_pca_against_sklearn(n, d, centred):
    D = draw(n, d)
    if centred and n == 1:  # one difference does not deviate from itself
        with pytest.raises(ValueError, match="all zero"):
            principal_direction(D, centred=True)
        return
    v = principal_direction(D, centred=centred)
    if centred:
        decomposition = pytest.importorskip("sklearn.decomposition")
        truth = decomposition.PCA(1, svd_solver="full").fit(D.numpy()).components_[0]
    else:
        truth = np.linalg.svd(D.numpy(), full_matrices=False)[2][0]
    assert abs(cosine(v, truth)) == pytest.approx(1, abs=1e-9)
    assert float(v.norm()) == pytest.approx(1, abs=1e-12)


def test_pca_of_a_nearly_degenerate_spectrum():
    """More near-leading directions than the block holds: the power steps still find the first."""
    g = torch.Generator().manual_seed(0)
    U = torch.linalg.qr(torch.randn(300, 40, generator=g, dtype=torch.float64))[0]
    V = torch.linalg.qr(torch.randn(60, 40, generator=g, dtype=torch.float64))[0]
    values = torch.linspace(1.0, 0.8, 40, dtype=torch.float64)
    D = U * values @ V.T
    assert abs(cosine(principal_direction(D), V[:, 0])) > 0.999


def test_pca_of_large_offsets_is_found_in_float32_states():
    D = draw(64, 16).float() * 1e-3 + 100
    v = principal_direction(D, centred=True)
    X = (D - D.double().mean(0)).double()
    truth = torch.linalg.svd(X, full_matrices=False)[2][0]
    assert abs(cosine(v, truth)) > 1 - 1e-6
    assert v.dtype == torch.float32


def test_the_same_bytes_each_time():
    D = draw(40, 90)
    assert torch.equal(principal_direction(D), principal_direction(D))


def test_centring_removes_the_preference_that_the_mean_holds():
    """steering.md, section 1.3: a planted mean of length 1 and one noisier axis. Centred PCA, as
    repeng's default does it, finds the noise; the mean and uncentred PCA find the preference."""
    g = torch.Generator().manual_seed(0)
    n, d = 512, 32
    mu, noisy = torch.eye(d, dtype=torch.float64)[:2]
    D = mu + 0.05 * torch.randn(n, d, generator=g, dtype=torch.float64)
    D += 0.6 * torch.randn(n, 1, generator=g, dtype=torch.float64) * noisy
    assert cosine(mean_difference(D), mu) > 0.99
    assert cosine(principal_direction(D), mu) > 0.95
    centred = principal_direction(D, centred=True)
    assert abs(cosine(centred, mu)) < 0.05
    assert abs(cosine(centred, noisy)) > 0.99


def test_uncentred_pca_is_that_of_pairs_in_both_orders():
    D = draw(30, 6)
    both = torch.cat([D, -D])
    assert abs(
        cosine(principal_direction(D), principal_direction(both, centred=True))
    ) == pytest.approx(1)


# ---- sign ---------------------------------------------------------------------------------------


def test_the_majority_of_pairs_decides_the_sign_not_the_mean():
    """Three pairs point one way a little, one the other way a lot."""
    D = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, -0.1], [-9.0, 0.0]])
    assert principal_direction(D)[0] > 0.99
    assert mean_difference(D)[0] < -0.99
    assert principal_direction(-D)[0] < -0.99


def test_the_mean_decides_where_the_votes_are_even():
    D = torch.tensor([[3.0, 0.0], [-1.0, 0.0]])
    assert principal_direction(D).tolist() == pytest.approx([1, 0])
    assert principal_direction(-D).tolist() == pytest.approx([-1, 0])


@pytest.mark.parametrize("seed", range(5))
def test_swapping_chosen_and_rejected_turns_the_direction_round(seed):
    D = draw(21, 9, seed)
    assert torch.allclose(principal_direction(-D), -principal_direction(D))
    assert torch.equal(mean_difference(-D), -mean_difference(D))


# ---- nothing there ------------------------------------------------------------------------------


def test_no_difference_is_no_direction():
    zero = torch.zeros(4, 3)
    with pytest.raises(ValueError, match="mean difference is zero"):
        mean_difference(zero)
    with pytest.raises(ValueError, match="mean difference is zero"):
        mean_difference(torch.tensor([[1.0, 2.0], [-1.0, -2.0]]))
    for centred in (False, True):
        with pytest.raises(ValueError, match="all zero"):
            principal_direction(zero, centred=centred)
    for n in (3, 7, 100):  # equal differences deviate from their mean by rounding alone
        same = draw(1, 5, seed=n).expand(n, 5)
        with pytest.raises(ValueError, match="all zero"):
            principal_direction(same, centred=True)
