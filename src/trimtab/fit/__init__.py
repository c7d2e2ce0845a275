"""Making dials: recipes, training, closed form."""

from trimtab.fit.methods import METHODS, method
from trimtab.fit.recipes import Method, Recipe
from trimtab.fit.run import fit

__all__ = ["METHODS", "Method", "Recipe", "fit", "method"]
