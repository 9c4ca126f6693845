"""What is downloaded: names of files, credentials, and which hub is asked. Models and datasets share it."""

import re
from collections.abc import Sequence
from typing import Protocol

from herdsman.api.job_config import (
    HTTP_TOKEN_VARIABLE,
    HUB_TOKEN_VARIABLE,
    S3_KEY_VARIABLES,
    DatasetInput,
    RemoteSource,
)
from herdsman.api.v1alpha1.datasets import DatasetSource, MixedDataset
from herdsman.api.v1alpha1.remote_sources import HttpSource, HubSource, S3Source
from herdsman.api.v1alpha1.secrets import SecretKeyRef
from herdsman.api.v1alpha1.sources import RELATIVE_PATH
from herdsman.api.v1alpha1.status import Reason
from herdsman.core.environment import Entry, from_secret, hub, no_hub
from herdsman.core.inputs import Inputs
from herdsman.core.plan_types import Problem
from herdsman.core.site import Site

REMOTE = ("hub", "s3", "http")
"""The members of a source that are downloaded."""


class Remote(Protocol):
    """A source of a model or a dataset."""

    @property
    def hub(self) -> HubSource | None:
        """A repository of a hub."""

    @property
    def s3(self) -> S3Source | None:
        """A directory of a bucket."""

    @property
    def http(self) -> HttpSource | None:
        """Files behind URLs."""


def source(given: Remote) -> RemoteSource:
    """Return what the trainer reads about a remote source."""
    return RemoteSource(hub=given.hub, s3=given.s3, http=given.http)


def label(given: Remote) -> str:
    """Return what a remote source is, for people."""
    if given.hub is not None:
        return f"hub {given.hub.repository}"
    if given.s3 is not None:
        return f"s3://{given.s3.bucket}/{given.s3.prefix}"
    assert given.http is not None, "one of the three is set"
    names = [file.name for file in given.http.files]
    return f"http {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def dataset_input(field: str, dataset: DatasetSource, inputs: Inputs, site: Site) -> DatasetInput:
    """Return what the trainer reads about a dataset."""
    here = inputs.found.get(field)
    return DatasetInput(
        field=field,
        label=here.label if here is not None else label(dataset),
        source=here.to_input(site) if here is not None else None,
        remote=source(dataset) if here is None else None,
        sha256=dict(dataset.sha256),
        keep_downloads=dataset.keep_downloads,
        weight=dataset.weight if isinstance(dataset, MixedDataset) else None,
    )


def environment(sources: Sequence[Remote], site: Site) -> Sequence[Entry]:
    """Return where downloads find their hub and their credentials; only a download from a hub may ask one."""
    hubs = [given.hub for given in sources if given.hub is not None]
    asked = hub(hubs[0].endpoint, site) if hubs else no_hub(site)
    return [*asked, *(from_secret(name, key) for name, key in _secrets(sources).items())]


def problem(datasets: Sequence[tuple[str, DatasetSource]]) -> Problem | None:
    """Return that files cannot have their names, or that two datasets need different credentials, or None."""
    for field, dataset in datasets:
        if dataset.http is not None and (found := bad_names(f"{field}.http", dataset.http)) is not None:
            return found
    for place, (field, dataset) in enumerate(datasets):
        ours = _secrets([dataset])
        theirs = _secrets([each for _, each in datasets[:place]])
        for name in ours.keys() & theirs.keys():
            if ours[name] != theirs[name]:
                return Problem(
                    Reason.INVALID_SPEC,
                    f"{field}: it names another Secret than a dataset before it, and a run has one {name}.",
                    hint="Use one Secret whose credentials may read all of these datasets, or copy one to a volume.",
                    field=field,
                )
    return None


def _secrets(sources: Sequence[Remote]) -> dict[str, SecretKeyRef]:
    found: dict[str, SecretKeyRef] = {}
    for given in sources:
        if given.hub is not None and given.hub.token is not None:
            found[HUB_TOKEN_VARIABLE] = given.hub.token
        if given.s3 is not None and given.s3.credentials_secret is not None:
            secret = given.s3.credentials_secret
            found |= {name: SecretKeyRef(name=secret, key=name) for name in S3_KEY_VARIABLES}
        if given.http is not None and given.http.token is not None:
            found[HTTP_TOKEN_VARIABLE] = given.http.token
    return found


def bad_names(place_of: str, source: HttpSource) -> Problem | None:
    """Return that a file's name is none, or that name or URL are those of another file, or None."""
    taken: dict[str, int] = {}
    urls: dict[str, int] = {}
    for place, file in enumerate(source.files):
        field, name = f"{place_of}.files[{place}]", file.name
        if file.path is None and (re.fullmatch(RELATIVE_PATH, name) is None or name == "."):
            what = f"ends in {name!r}, which is no name for a file" if name else "has no path that ends in a name"
            return Problem(
                Reason.INVALID_SPEC,
                f"{field}: the URL {what}.",
                hint="Say in `path` what the file is called.",
                field=field,
            )
        if name in taken:
            return Problem(
                Reason.INVALID_SPEC,
                f"{field}: files[{taken[name]}] is called {name} too.",
                hint="Give one of them another `path`.",
                field=field,
            )
        if file.url in urls:
            return Problem(
                Reason.INVALID_SPEC,
                f"{field}: files[{urls[file.url]}] has the same URL.",
                hint="Leave one of them out: each URL may stand in files once.",
                field=field,
            )
        taken[name] = urls[file.url] = place
    return None
