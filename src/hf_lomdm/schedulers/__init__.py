"""Samplers of masked diffusion language models as a diffusers scheduler."""
