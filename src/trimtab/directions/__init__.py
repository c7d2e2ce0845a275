"""Closed-form estimators of a preference direction, on given states or gradients: no training, no
model."""

from trimtab.directions.difference import check_apart, mean_difference, principal_direction
from trimtab.directions.embedding import umap_direction
from trimtab.directions.gradient import fisher_direction, gradient_mean, gradient_svd
from trimtab.directions.logistic import logistic_direction

__all__ = [
    "check_apart",
    "fisher_direction",
    "gradient_mean",
    "gradient_svd",
    "logistic_direction",
    "mean_difference",
    "principal_direction",
    "umap_direction",
]
