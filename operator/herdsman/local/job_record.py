"""The record of one attempt's Job."""

from dataclasses import dataclass
from functools import cached_property

from herdsman.core.names import LABEL_ATTEMPT
from herdsman.core.plan_types import Manifest
from herdsman.core.world import Key
from herdsman.local.pod_template import PodTemplate, pod_count, read_pod_template
from herdsman.local.scheduler import Request


@dataclass(frozen=True)
class JobRecord:
    """An attempt's Job as it was applied."""

    name: str
    owner: Key
    uid: str
    created: float
    manifest: Manifest

    @property
    def attempt(self) -> int:
        """The attempt it is."""
        return int(self.manifest["metadata"]["labels"][LABEL_ATTEMPT])

    @property
    def suspended(self) -> bool:
        """Whether it is to stand still for now."""
        return bool(self.manifest["spec"].get("suspend", False))

    @property
    def pods(self) -> int:
        """How many processes it has."""
        return pod_count(self.manifest)

    @cached_property
    def template(self) -> PodTemplate:
        """What each of them runs."""
        return read_pod_template(self.manifest)

    @property
    def request(self) -> Request:
        """What all of them ask for."""
        return Request(self.name, self.template.cores * self.pods, self.template.gpus * self.pods)
