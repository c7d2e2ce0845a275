"""Making dials: recipes, training, closed form."""

from trimtab.training.methods import METHODS, method
from trimtab.training.recipes import Method, Recipe
from trimtab.training.run import fit

__all__ = ["METHODS", "Method", "Recipe", "fit", "method"]
