"""SHELL B, this machine: the same objects as processes and directories."""
