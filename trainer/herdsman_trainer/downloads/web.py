"""Files behind URLs."""

from collections.abc import Mapping, Sequence
from functools import partial

from herdsman.api.job_config import HTTP_TOKEN_VARIABLE
from herdsman.api.v1alpha1.remote_sources import HttpFile, HttpSource
from herdsman_trainer.downloads.http_streams import bearer, head_size, new_client, open_stream
from herdsman_trainer.downloads.remote_files import RemoteFile, without_query
from herdsman_trainer.errors import BadInput

UNAUTHORISED, FORBIDDEN, NOT_FOUND, GONE = 401, 403, 404, 410


class Web:
    """The files of an HttpSource; sizes are asked for with HEAD, which a server may refuse."""

    def __init__(self, source: HttpSource, token: str | None, field: str) -> None:
        self._source = source
        self._field = field
        self._headers = bearer(token)
        self._client = new_client()

    def files(self) -> Sequence[RemoteFile]:
        """Return the files in the order of the spec; nothing is asked of the network."""
        return [self._file(place, file) for place, file in enumerate(self._source.files)]

    def sized(self, file: RemoteFile) -> int | None:
        """Return the size of a file, as far as the server tells it."""
        (url,) = (given.url for given in self._source.files if given.name == file.name)
        return head_size(self._client, url, self._headers)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _file(self, place: int, file: HttpFile) -> RemoteFile:
        location = without_query(file.url)
        refuse = partial(_refused, self._field, place, location, bool(self._headers))
        return RemoteFile(
            name=file.name,
            location=location,
            open=partial(open_stream, self._client, file.url, self._headers, refuse=refuse),
            sha256=file.sha256,
            origin={"URL": location},
        )


def _refused(
    source: str, place: int, location: str, has_token: bool, status: int, _headers: Mapping[str, str]
) -> BadInput:
    field = f"{source}.files[{place}]"
    if status in (UNAUTHORISED, FORBIDDEN):
        message = f"{field}: the server refuses the {'token' if has_token else 'download without a token'}"
        hint = (
            f"Check that the token of {source}.token is valid and may read this file; it goes to the URL's own "
            "host only, not along a redirect to another one."
            if has_token
            else f"Name a Secret in {source}.token (with herdsman run, export {HTTP_TOKEN_VARIABLE} too)."
        )
    elif status in (NOT_FOUND, GONE):
        message, hint = f"{field}: there is no such file", "Correct the URL."
    else:
        message, hint = f"{field}: the server refuses the download", "Open the URL in a browser to see why."
    return BadInput(f"{message} (status {status}).", file=location, hint=hint)
