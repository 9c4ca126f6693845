"""Objects of an S3 bucket, or of a store that speaks S3."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import obstore
from obstore import exceptions
from obstore.store import S3Store

from herdsman.api.job_config import S3_KEY_VARIABLES
from herdsman.api.v1alpha1.remote_sources import S3Source
from herdsman_trainer.downloads.http_streams import CONNECT_SECONDS, READ_SECONDS
from herdsman_trainer.downloads.patience import Patience
from herdsman_trainer.downloads.remote_files import RemoteFile, Stream, Unavailable
from herdsman_trainer.downloads.selection import Wish, chosen
from herdsman_trainer.downloads.web import FORBIDDEN, NOT_FOUND, UNAUTHORISED
from herdsman_trainer.errors import BadInput, Temporary

REGION = "us-east-1"
SESSION_VARIABLE = "AWS_SESSION_TOKEN"
LONGEST_REQUEST = timedelta(days=7)
CHUNK_BYTES = 2**20
_ELSEWHERE = ("PermanentRedirect", "AuthorizationHeaderMalformed", "incorrectly configured region")
"""How a store says that the bucket is in another region."""
_BAD_KEY = "invalid path"
_STATUS = re.compile(r"status code: (\d{3})\b")
_BAD_REQUEST = 400


class Bucket:
    """The files of an S3Source."""

    def __init__(self, source: S3Source, credentials: Mapping[str, str], patience: Patience, wish: Wish) -> None:
        self._source = source
        self._field = wish.field
        self._suited = wish.suited
        self._patience = patience
        self._where = f"s3://{source.bucket}/{source.prefix}"
        self._store = _connect(source, credentials)
        self._signed = bool(credentials)

    def files(self) -> Sequence[RemoteFile]:
        """Return the one object, or those of the directory that are suited."""
        prefix = self._source.prefix.rstrip("/")
        objects = self._patience.persist(lambda: self._list(prefix))
        if prefix in objects and not self._source.prefix.endswith("/"):
            return [self._file(objects[prefix], prefix.rpartition("/")[2])]
        below = {
            key.removeprefix(f"{prefix}/"): found for key, found in objects.items() if key.startswith(f"{prefix}/")
        }
        below = {name: found for name, found in below.items() if name and not name.endswith("/")}
        if not below:
            message = f"{self._field}: there is nothing at {self._where}."
            raise BadInput(message, file=self._where, hint="Correct the bucket, the prefix or the endpoint.")
        names = chosen(list(below), (), self._field, self._where, self._suited)
        return [self._file(below[name], name) for name in names]

    def sized(self, file: RemoteFile) -> int | None:
        """Return the size, which the listing has told."""
        return file.size

    def close(self) -> None:
        """Nothing is left open between requests."""

    def _list(self, prefix: str) -> dict[str, Mapping[str, Any]]:
        """Return the object of this name and those below it, by their keys."""
        try:
            found = {item["path"]: item for batch in obstore.list(self._store, prefix=prefix) for item in batch}
            if not found:
                item = obstore.head(self._store, prefix)
                found = {prefix: item}
        except FileNotFoundError:
            return {}
        except (exceptions.BaseError, OSError, ValueError) as error:
            raise self._failure(error) from None
        return dict(found)

    def _file(self, found: Mapping[str, Any], name: str) -> RemoteFile:
        source, key, size, etag = self._source, str(found["path"]), int(found["size"]), found.get("e_tag") or ""
        identity = {
            "s3": source.endpoint or "",
            "bucket": source.bucket,
            "key": key,
            "etag": etag,
            "size": str(size),
            **({} if etag else {"modified": str(found.get("last_modified"))}),
        }
        location = f"s3://{source.bucket}/{key}"
        opener = partial(self._open, key, location, size, etag)
        return RemoteFile(name, location, opener, size, identity=identity, origin={"ETag": etag} if etag else {})

    @contextmanager
    def _open(self, key: str, location: str, size: int, etag: str, offset: int, _known: str | None) -> Iterator[Stream]:
        """Open an object as the listing knew it: the store refuses another version."""
        if size == 0:
            yield Stream(0, 0, None, ())
            return
        options: Any = {"range": {"offset": offset}, **({"if_match": etag} if etag else {})}
        try:
            answer = obstore.get(self._store, key, options=options)
        except exceptions.PreconditionError:
            raise _changed(location) from None
        except (exceptions.BaseError, OSError, ValueError) as error:
            raise self._failure(error) from None
        start, total = answer.range[0], answer.meta["size"]
        if etag and answer.meta.get("e_tag") not in (etag, None):
            raise _changed(location)
        yield Stream(start, total, None, self._chunks(answer))

    def _chunks(self, answer: Any) -> Iterator[bytes]:
        try:
            for chunk in answer.stream(min_chunk_size=CHUNK_BYTES):
                yield bytes(chunk)
        except (exceptions.BaseError, OSError) as error:
            raise Unavailable(f"{self._where} broke off ({_brief(error)}).") from None

    def _failure(self, error: Exception) -> Exception:
        """Return the error that a failure of the store is: one that passes, or one that no retry mends."""
        said = str(error)
        found = _STATUS.search(said)
        status = int(found[1]) if found else None
        if any(word in said for word in _ELSEWHERE):
            return self._bad(f"the bucket is not in the region {self._source.region or REGION}.", "Set its region.")
        if _BAD_KEY in said:
            what = f"a key below the prefix is no name for a file ({_brief(error)})."
            return self._bad(what, "Rename the object, or name a prefix without it.")
        if isinstance(error, FileNotFoundError) or status == NOT_FOUND:
            return self._bad("there is no such bucket or object.", "Correct the bucket, the prefix or the endpoint.")
        denied = (PermissionError, exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)
        if isinstance(error, denied) or status in (UNAUTHORISED, FORBIDDEN):
            if self._signed:
                hint = "Check that the keys in the Secret are valid and may list and read this prefix."
                return self._bad("the store refuses the credentials.", hint)
            hint = f"Name a Secret with {' and '.join(S3_KEY_VARIABLES)} in {self._field}.credentialsSecret; "
            hint += "with herdsman run, export these too."
            return self._bad("the store refuses requests without credentials.", hint)
        if status == _BAD_REQUEST:
            return self._bad(f"the store refuses the request ({_brief(error)}).", "Check bucket, endpoint and region.")
        return Unavailable(f"{self._where} does not answer ({_brief(error)}).")

    def _bad(self, message: str, hint: str) -> BadInput:
        return BadInput(f"{self._field}: {message}", file=self._where, hint=hint)


def _connect(source: S3Source, credentials: Mapping[str, str]) -> S3Store:
    key, secret = S3_KEY_VARIABLES
    signing: dict[str, Any] = {"skip_signature": True}
    if credentials:
        signing = {"access_key_id": credentials[key], "secret_access_key": credentials[secret]}
        if session := credentials.get(SESSION_VARIABLE):
            signing["session_token"] = session
    return S3Store(
        source.bucket,
        endpoint=source.endpoint or f"https://s3.{source.region or REGION}.amazonaws.com",
        region=source.region or REGION,
        virtual_hosted_style_request=False,
        client_options={
            "allow_http": True,
            "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
            "read_timeout": timedelta(seconds=READ_SECONDS),
            "timeout": LONGEST_REQUEST,
        },
        retry_config={"max_retries": 0},  # retries are ours: they are told, and a stop ends them
        **signing,
    )


def _changed(location: str) -> Temporary:
    hint = "The next attempt takes it as it is then; keep others from writing to the prefix."
    return Temporary("The object was changed while it was downloaded.", file=location, hint=hint)


def _brief(error: Exception) -> str:
    return " ".join(str(error).partition("Debug source")[0].split())[:240]
