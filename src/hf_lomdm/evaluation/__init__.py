"""How good a model is: bounds with standard errors, exact likelihood of short texts."""

from .likelihood import NelboEstimate, exact_log_likelihood, nelbo

__all__ = ["NelboEstimate", "exact_log_likelihood", "nelbo"]
