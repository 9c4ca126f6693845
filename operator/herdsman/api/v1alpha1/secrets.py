"""Secrets: always named, never copied."""

from typing import Annotated

from pydantic import Field

from herdsman.api.meta import ApiModel
from herdsman.api.v1alpha1.compute import DNS_SUBDOMAIN

SECRET_KEY = r"^[-._a-zA-Z0-9]+$"  # noqa: S105 - how a key is written, and no key
SecretName = Annotated[str, Field(pattern=DNS_SUBDOMAIN, min_length=1, max_length=253)]


class SecretKeyRef(ApiModel):
    """One value in a Secret of the same namespace."""

    name: SecretName
    """The Secret."""
    key: str = Field(pattern=SECRET_KEY, min_length=1, max_length=253)
    """The key in it."""
