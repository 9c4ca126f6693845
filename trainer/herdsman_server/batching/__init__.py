"""Continuous batching: answers join and leave a running batch token by token (docs/decisions/0021)."""
