"""ROOM 1, what may be asked: pydantic models and nothing else."""
