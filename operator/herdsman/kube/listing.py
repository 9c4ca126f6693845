"""The full listing: everything as the API server has it, which mends whatever the watches have lost."""

import asyncio
import contextlib
from collections.abc import Callable

from herdsman.api.v1alpha1.registry import KINDS
from herdsman.core.names import LABEL_MANAGED_BY, MANAGED_BY
from herdsman.core.optional_children import OPTIONAL_KINDS
from herdsman.kube.cache import ObjectKey, object_key, parent_of
from herdsman.kube.errors import NotFound
from herdsman.kube.shell import Shell

SPREAD_SECONDS = 30.0
"""After a full listing the resources are looked at again over this long."""
OURS = tuple(KINDS)
CHILDREN = ("Job", "Pod", "Deployment")
"""Children that are watched."""
UNWATCHED = ("ConfigMap", "Service", *OPTIONAL_KINDS)
"""Children that are only listed now and then: nothing of them changes by itself."""


class FullListing:
    """Lists kinds in all namespaces that are served."""

    def __init__(self, shell: Shell, namespaces: tuple[str, ...], jitter: Callable[[], float]) -> None:
        self._shell = shell
        self._scopes: tuple[str | None, ...] = namespaces or (None,)
        self._jitter = jitter

    async def everything(self) -> None:
        """Take every kind in, all at a time: one page is read while the API server makes others."""
        listings = [asyncio.create_task(self.kind(kind)) for kind in (*OURS, *CHILDREN, *UNWATCHED)]
        try:
            await asyncio.gather(*listings)
        finally:
            for listing in listings:  # where one failed, all are made again
                listing.cancel()
        self._shell.prune()

    async def relisted(self) -> None:
        """Take those kinds in whose watch has started over: it does not tell what vanished meanwhile."""
        for kind in list(self._shell.intake.relisted):
            await self.kind(kind)

    def look_at_all_again(self) -> None:
        """Have every resource looked at again, spread over a while."""
        for body in list(self._shell.cache.all_resources()):
            key = parent_of(body)
            assert key is not None, "it is one of our resources"
            self._shell.queue.add_after(key, self._jitter() * SPREAD_SECONDS)

    async def kind(self, kind: str) -> None:
        """Take all objects of a kind in, and take those for gone that are not there any more."""
        self._shell.intake.relisted.discard(kind)
        selector = None if kind in KINDS else f"{LABEL_MANAGED_BY}={MANAGED_BY}"
        if kind in OPTIONAL_KINDS:
            with contextlib.suppress(NotFound):  # the cluster does not know this kind
                await self._kind(kind, selector)
        else:
            await self._kind(kind, selector)

    async def _kind(self, kind: str, selector: str | None) -> None:
        intake = self._shell.intake
        for scope in self._scopes:
            present, at = set[ObjectKey](), 0
            async for page in self._shell.api.pages(kind, scope, labelSelector=selector):
                present |= {object_key(item) for item in page.items}
                at = page.version
                for item in page.items:
                    intake.seen(item)
            for body in self._shell.cache.vanished(kind, scope, present, at):
                intake.gone(body)
