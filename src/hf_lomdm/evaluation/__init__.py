"""How good a model is: likelihood bounds with standard errors, and exact likelihood of short
texts."""

from .likelihood import NelboEstimate, exact_log_likelihood, nelbo

__all__ = ["NelboEstimate", "exact_log_likelihood", "nelbo"]
