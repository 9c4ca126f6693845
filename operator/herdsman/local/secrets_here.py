"""Secrets of this machine: what lies in one on a cluster has to be in the environment of `herdsman run`."""

import os

from herdsman.local.pod_template import PodTemplate


def absent_secret(template: PodTemplate) -> str | None:
    """Return which variable is missing and in place of what, or None; without it nothing may start."""
    absent = (name for name in template.secrets if not os.environ.get(name, "").strip())
    name = next(absent, None)
    return f"in place of the {template.secrets[name]}, the environment has to hold {name}" if name is not None else None
