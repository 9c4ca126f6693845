"""A resource and how it stands, wherever it is kept: what tables and descriptions are printed from."""

from dataclasses import dataclass
from typing import Any

from herdsman.api.v1alpha1.status import Status
from herdsman.core.world import Key


@dataclass(frozen=True)
class Observed:
    """A stored resource and its status as of now."""

    key: Key
    manifest: dict[str, Any]
    status: Status

    @property
    def object(self) -> dict[str, Any]:
        """The whole object, as `get -o yaml` prints it."""
        return {**self.manifest, "status": self.status.to_json()}

    @property
    def namespace(self) -> str:
        """Its namespace; every home has one only."""
        return str(self.manifest["metadata"].get("namespace", "default"))
