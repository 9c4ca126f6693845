"""Herdsman adapts LLaMA-family models to a new language, from manifests."""

__version__ = "0.1.0"
