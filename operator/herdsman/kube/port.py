"""What the shell needs of an API server: the requests of KubeApi, which tests answer from memory."""

from collections.abc import AsyncIterator, Mapping
from typing import Any, NamedTuple, Protocol

FIELD_MANAGER = "herdsman"
Body = dict[str, Any]


class Listing(NamedTuple):
    """All objects of a kind, and the version of the store they were read at."""

    items: list[Body]
    version: int


class Api(Protocol):
    """Requests, each one raising ApiError for a refusal and Unreachable where there is no answer."""

    async def get(self, kind: str, namespace: str, name: str) -> Body:
        """Return one object; NotFound where there is none."""
        ...

    def pages(self, kind: str, namespace: str | None, **query: str | None) -> AsyncIterator[Listing]:
        """Return all objects of a kind, a few hundred at a time, all of them as they were at the same moment."""
        ...

    async def list_objects(self, kind: str, namespace: str | None, **query: str | None) -> Listing:
        """Return all objects of a kind in one namespace, or in all; `query` holds labelSelector, fieldSelector."""
        ...

    async def apply(
        self,
        body: Mapping[str, Any],
        *,
        subresource: str | None = None,
        manager: str = FIELD_MANAGER,
        force: bool = True,
    ) -> Body:
        """Server-side apply: the object holds what `body` says, and this manager's other fields vanish.

        Without `force`, Conflict where another manager has set one of the fields otherwise.
        """
        ...

    async def create(self, body: Mapping[str, Any]) -> Body:
        """Create an object; Conflict where the name is taken."""
        ...

    async def merge(self, kind: str, namespace: str, name: str, patch: Mapping[str, Any]) -> Body:
        """Merge a patch into an object."""
        ...

    async def delete(self, kind: str, namespace: str, name: str, *, uid: str | None = None) -> None:
        """Delete an object and, in the background, what it owns; `uid` guards against a newer one of the same name."""
        ...
