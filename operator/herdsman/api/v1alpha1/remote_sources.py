"""Where files are downloaded from: a model hub, an S3 bucket, or plain HTTP."""

from typing import Annotated
from urllib.parse import unquote, urlsplit

from pydantic import Field

from herdsman.api.meta import ApiModel
from herdsman.api.v1alpha1.secrets import SecretKeyRef, SecretName
from herdsman.api.v1alpha1.sources import RelativePath
from herdsman.api.v1alpha1.status import Digest

REPOSITORY = r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$"
COMMIT = r"^[0-9a-f]{40}$"
HTTP_URL = r"^https?://[^\s/@]+(:[0-9]+)?(/\S*)?$"
"""An URL without user name and password: those belong into a Secret."""
HOST_URL = r"^https?://[A-Za-z0-9.-]+(:[0-9]+)?(/[A-Za-z0-9._~/-]*)?$"
BUCKET = r"^[a-z0-9][a-z0-9.-]*[a-z0-9]$"
OBJECT_PREFIX = r"^[A-Za-z0-9!_.*'()-]+(/[A-Za-z0-9!_.*'()-]+)*/?$"
PATTERN = r"^[A-Za-z0-9_*?\[\]][A-Za-z0-9._*?\[\]/-]*$"

FilePattern = Annotated[str, Field(pattern=PATTERN, min_length=1, max_length=200)]
HostUrl = Annotated[str, Field(pattern=HOST_URL, max_length=400)]


class HubSource(ApiModel):
    """A repository of a model hub that speaks the Hugging Face API."""

    repository: str = Field(pattern=REPOSITORY, max_length=200)
    """Owner and name: meta-llama/Llama-2-7b-hf."""
    revision: str = Field(pattern=COMMIT, max_length=40)
    """The commit, all 40 digits: a branch or a tag may name other weights tomorrow. `git ls-remote
    https://huggingface.co/OWNER/NAME` prints it."""
    files: list[FilePattern] = Field(default_factory=list, max_length=50)
    """Only files whose path matches one of these patterns. Unless given: the tokenizer and configuration, and the
    weights in the best form there is (safetensors, else .bin, else consolidated.*.pth)."""
    endpoint: HostUrl | None = None
    """A mirror of the hub; the operator's hubEndpoint unless set, or else https://huggingface.co."""
    token: SecretKeyRef | None = None
    """The access token of a gated or private repository; with `herdsman run` the environment variable HF_TOKEN is
    taken instead."""


class S3Source(ApiModel):
    """Objects of an S3 bucket, or of a store that speaks S3."""

    bucket: str = Field(pattern=BUCKET, min_length=3, max_length=63)
    """The bucket."""
    prefix: str = Field(pattern=OBJECT_PREFIX, min_length=1, max_length=400)
    """The directory in it, or one object."""
    endpoint: HostUrl | None = None
    """Where the store answers; AWS unless set."""
    region: str | None = Field(default=None, pattern=r"^[a-z0-9-]+$", max_length=40)
    """The region of the bucket; us-east-1 unless set."""
    credentials_secret: SecretName | None = None
    """A Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; none for a public bucket. With `herdsman run` the
    environment variables of these names are taken instead."""


class HttpFile(ApiModel):
    """One file behind an URL."""

    url: str = Field(pattern=HTTP_URL, max_length=2000)
    """Where it is."""
    sha256: Digest
    """What it must be."""
    path: RelativePath | None = None
    """The name it gets; the last part of the URL's path unless set."""

    @property
    def name(self) -> str:
        """The name it gets."""
        return self.path or unquote(urlsplit(self.url).path).rpartition("/")[2]


class HttpSource(ApiModel):
    """Files behind HTTP URLs."""

    files: list[HttpFile] = Field(min_length=1, max_length=100)
    """The files, which land in one directory."""
    token: SecretKeyRef | None = None
    """Sent as `Authorization: Bearer TOKEN`, to the hosts of the URLs and no others; with `herdsman run` the
    environment variable HERDSMAN_HTTP_TOKEN is taken instead."""
