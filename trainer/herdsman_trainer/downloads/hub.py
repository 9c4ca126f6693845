"""Repositories of a model hub: huggingface_hub lists them and knows their digests, our own transfer fetches them."""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import HfApi, errors, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from herdsman.api.job_config import HUB_ENDPOINT_VARIABLE, HUB_OFFLINE_VARIABLE, HUB_TOKEN_VARIABLE
from herdsman.api.v1alpha1.remote_sources import HubSource
from herdsman_trainer.downloads.blob_store import BlobStore
from herdsman_trainer.downloads.http_streams import (
    FIRST_SERVER_ERROR,
    TRANSIENT,
    bearer,
    new_client,
    open_stream,
    retry_after,
)
from herdsman_trainer.downloads.patience import Patience
from herdsman_trainer.downloads.remote_files import Open, RemoteFile, Unavailable
from herdsman_trainer.downloads.selection import Wish, chosen
from herdsman_trainer.downloads.web import FORBIDDEN, NOT_FOUND, UNAUTHORISED
from herdsman_trainer.errors import BadInput

TRANSPORT_ERROR: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]
"""What the HTTP library that huggingface_hub uses, httpx or httpx2 by its version, raises."""
PUBLIC_HUB = "https://huggingface.co"
LISTING_SECONDS = 30.0
_YES = frozenset({"1", "on", "yes", "true"})
_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT_OID = re.compile(r"[0-9a-f]{40}")
Listing = Sequence[Mapping[str, Any]]
"""A commit's files: name, size, sha256 of large ones, oid of the others."""


class Hub:
    """The files of a HubSource. A commit never changes, so what it lists is asked once and kept in the store."""

    def __init__(
        self,
        source: HubSource,
        token: str | None,
        environment: Mapping[str, str],
        store: BlobStore,
        patience: Patience,
        wish: Wish,
    ) -> None:
        self._source = source
        self._field = wish.field
        self._suited = wish.suited
        self._type = "dataset" if wish.dataset else "model"
        self._token = token
        self._endpoint = (source.endpoint or environment.get(HUB_ENDPOINT_VARIABLE) or PUBLIC_HUB).rstrip("/")
        self._offline = environment.get(HUB_OFFLINE_VARIABLE, "").lower() in _YES
        self._store = store
        self._patience = patience
        self._client = new_client()
        self._page = f"{self._endpoint}/{'datasets/' if wish.dataset else ''}{source.repository}"

    def files(self) -> Sequence[RemoteFile]:
        """Return the files that the spec chooses; raises BadInput for what the hub does not have or does not give."""
        identity = {"hub": self._endpoint, "repository": self._source.repository, "revision": self._source.revision}
        identity |= {"type": self._type} if self._type != "model" else {}
        listing: Listing | None = self._store.recall(identity)
        if listing is None:
            if self._offline:
                raise self._is_offline()
            listing = self._patience.persist(self._list)
            self._store.remember(identity, listing)
        by_name = {entry["name"]: entry for entry in listing}
        names = chosen(list(by_name), self._source.files, self._field, self._page, self._suited)
        return [self._file(by_name[name]) for name in names]

    def sized(self, file: RemoteFile) -> int | None:
        """Return the size, which the listing has told."""
        return file.size

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _file(self, entry: Mapping[str, Any]) -> RemoteFile:
        name, sha256, oid = entry["name"], entry.get("sha256"), entry.get("oid")
        repository, revision = self._source.repository, self._source.revision
        url = hf_hub_url(repository, name, repo_type=self._type, revision=revision, endpoint=self._endpoint)
        headers = bearer(self._token)

        def opened(offset: int, _etag: str | None) -> Any:
            """The commit names the version, so an ETag, which a mirror may make anew each time, says nothing more."""
            if self._offline:
                raise self._is_offline()
            return open_stream(self._client, url, headers, offset, None, self._refused)

        opener: Open = opened
        identity = {"git": oid, "size": str(entry["size"])} if oid and not sha256 else {}
        return RemoteFile(name, f"{self._page}/{name}", opener, entry["size"], sha256, oid, identity)

    def _list(self) -> Listing:
        """Ask the hub for the commit; raises Unavailable where it may answer later."""
        source = self._source
        api = HfApi(endpoint=self._endpoint, token=self._token or False, library_name="herdsman")
        logging.getLogger("httpx2").setLevel(logging.WARNING)
        try:
            info = api.repo_info(
                source.repository,
                revision=source.revision,
                repo_type=self._type,
                files_metadata=True,
                timeout=LISTING_SECONDS,
            )
            entries = [_entry(sibling) for sibling in getattr(info, "siblings", None) or ()]
        except HfHubHTTPError as error:
            raise self._listing_refused(error) from None
        except (TRANSPORT_ERROR, OSError) as error:
            raise Unavailable(f"The hub {self._endpoint} does not answer ({error}).") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            message = (
                f"{self._field}: the answer of {self._endpoint} is not that of a model hub ({type(error).__name__})."
            )
            hint = f"Check {self._field}.endpoint: it is the hub's address without a path of a repository."
            raise BadInput(message, file=self._page, hint=hint) from None
        if info.sha != source.revision:
            message = f"{self._field}.revision: {source.revision} was asked for, and the hub answered with {info.sha}."
            raise BadInput(message, file=self._page, hint="Name the full digits of a commit of this repository.")
        return entries

    def _listing_refused(self, error: HfHubHTTPError) -> Exception:
        status = error.response.status_code
        if status in TRANSIENT or status >= FIRST_SERVER_ERROR:
            asked = retry_after(error.response.headers)
            return Unavailable(f"The hub {self._endpoint} answers with status {status}.", asked)
        if isinstance(error, GatedRepoError):
            return self._gated()
        if isinstance(error, RevisionNotFoundError):
            return self._no_commit()
        if isinstance(error, RepositoryNotFoundError):
            return self._no_repository()
        return self._refused(status, error.response.headers)

    def _refused(self, status: int, headers: Mapping[str, str]) -> BadInput:
        """Return the error of an answer to a file or a listing."""
        match headers.get("X-Error-Code", ""):
            case "GatedRepo":
                return self._gated()
            case "RevisionNotFound":
                return self._no_commit()
            case "RepoNotFound":
                return self._no_repository()
        if status in (UNAUTHORISED, FORBIDDEN):
            what = "the token" if self._token else "the download without a token"
            hint = f"{self._token_hint()} It needs to be valid and to have the right to read this repository."
            return self._bad(f"the hub refuses {what} (status {status}).", hint)
        if status == NOT_FOUND:
            return self._bad("the hub does not have a file that it lists.", "If it is a mirror, have it synchronised.")
        said = headers.get("X-Error-Message", "")[:200]
        return self._bad(
            f"the hub refuses the download (status {status}{f': {said}' if said else ''}).", "See its page."
        )

    def _gated(self) -> BadInput:
        hint = (
            f"Accept the licence on {self._page} with the account that the token belongs to, and wait until access is "
        )
        return self._bad("the repository is gated.", f"{hint}granted. {self._token_hint()}")

    def _no_commit(self) -> BadInput:
        message = f"the repository has no commit {self._source.revision}."
        return BadInput(
            f"{self._field}.revision: {message}",
            file=self._page,
            hint=f"`git ls-remote {self._page}` prints those it has.",
        )

    def _no_repository(self) -> BadInput:
        message = "there is no such repository, or it is private"
        message += " and the token may not read it." if self._token else "."
        return self._bad(message, f"Correct {self._field}.repository. If it is private: {self._token_hint()}")

    def _token_hint(self) -> str:
        if self._token:
            return f"The token is that of {self._field}.token."
        return f"Name a Secret in {self._field}.token (with herdsman run, export {HUB_TOKEN_VARIABLE} too)."

    def _is_offline(self) -> BadInput:
        message = f"{HUB_OFFLINE_VARIABLE} forbids asking the hub, and not all files are on the workspace's volume."
        hint = (
            f"Unset {HUB_OFFLINE_VARIABLE} once, or name the volume in workspace.claim that an earlier import filled."
        )
        return self._bad(message, hint)

    def _bad(self, message: str, hint: str) -> BadInput:
        return BadInput(f"{self._field}: {message}", file=self._page, hint=hint)


def _entry(sibling: Any) -> dict[str, Any]:
    """Return a file of a listing; raises ValueError where it has no size or no digest, or none that is one."""
    size, oid = sibling.size, sibling.blob_id
    sha256 = sibling.lfs.sha256 if sibling.lfs is not None else None
    digest, form = (sha256, _SHA256) if sha256 is not None else (oid, _GIT_OID)
    if not isinstance(size, int) or size < 0 or not isinstance(digest, str) or form.fullmatch(digest) is None:
        raise ValueError(sibling.rfilename)
    entry = {"name": str(sibling.rfilename), "size": size}
    return {**entry, "sha256": sha256} if sha256 is not None else {**entry, "oid": oid}
