"""Weights as files: safetensors read and written as streams, adapters, and their merge into a model."""
