"""Reads the pod template of a Job or a Deployment as far as one machine needs it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from herdsman.core.plan_types import Manifest

_GPU = "nvidia.com/gpu"
_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")
_GRACE_SECONDS = 30
"""What Kubernetes gives a pod that does not say."""


@dataclass(frozen=True)
class PodTemplate:
    """One pod: what it runs and what it asks for."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    secrets: Mapping[str, str]
    """Variables whose value is in a Secret, and which: here the environment of `herdsman run` has to have them."""
    cores: float
    gpus: int
    writes: tuple[str, ...]
    """The claims it mounts for writing."""
    grace: int
    """Seconds between SIGTERM and SIGKILL."""


def read_pod_template(workload: Manifest) -> PodTemplate:
    """Return the pod of a Job's or a Deployment's template."""
    pod = workload["spec"]["template"]["spec"]
    container = pod["containers"][0]
    given = {entry["name"]: str(entry["value"]) for entry in container.get("env", ()) if "value" in entry}
    environment: dict[str, str] = {}
    secret = {entry["name"]: (entry.get("valueFrom") or {}).get("secretKeyRef") for entry in container.get("env", ())}
    for name, value in given.items():
        environment[name] = expand(value, environment)
    resources = container.get("resources", {})
    asked = {**resources.get("limits", {}), **resources.get("requests", {})}
    volumes = (volume.get("persistentVolumeClaim") for volume in pod.get("volumes", ()))
    return PodTemplate(
        command=tuple(
            expand(word, environment) for word in (*container.get("command", ()), *container.get("args", ()))
        ),
        environment=environment,
        secrets={name: f"Secret {ref['name']}, key {ref['key']}" for name, ref in secret.items() if ref},
        cores=cores(asked["cpu"]) if "cpu" in asked else 1.0,
        gpus=int(asked.get(_GPU, 0)),
        writes=tuple(volume["claimName"] for volume in volumes if volume and not volume.get("readOnly")),
        grace=int(pod.get("terminationGracePeriodSeconds") or _GRACE_SECONDS),
    )


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Replace $(NAME) as Kubernetes does: $$ is a $, and a name that is not known stays as it is."""

    def value(match: re.Match[str]) -> str:
        return "$" if match.group(0) == "$$" else variables.get(match.group(1), match.group(0))

    return _REFERENCE.sub(value, text)


def cores(quantity: str) -> float:
    """Return the cores of a Kubernetes quantity such as "4", "1.5" or "500m"."""
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)


def pod_count(job: Mapping[str, Any]) -> int:
    """Return how many pods a Job has."""
    return int(job["spec"].get("completions") or 1)
