"""What every resource has: metadata, conditions, the group, and how the models read and write JSON."""

import json
from datetime import datetime
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

GROUP = "herdsman.dev"
VERSION = "v1alpha1"
API_VERSION: Literal["herdsman.dev/v1alpha1"] = "herdsman.dev/v1alpha1"

MAX_COUNT = 2**53 - 1
"""The largest whole number that every JSON reader keeps exact; the bound of counts that have no other."""
DNS_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
"""RFC 1123 label."""
MAX_NAME = 40
"""A resource's name at most: names of children add a prefix, an attempt and a pod's suffix and stay within 63."""


class ApiModel(BaseModel):
    """A frozen model with camelCase keys that refuses unknown fields and wrong types, as the API server does."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        strict=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object, with camelCase keys and without absent members."""
        data: dict[str, Any] = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return data


class OwnerReference(ApiModel):
    """The object that owns this one; when it goes, this one goes."""

    model_config = ConfigDict(extra="ignore")
    api_version: str
    kind: str
    name: str
    uid: str
    controller: bool | None = None


class ObjectMeta(ApiModel):
    """Kubernetes object metadata, as far as Herdsman reads it."""

    model_config = ConfigDict(extra="ignore")
    name: str = Field(pattern=DNS_LABEL, max_length=MAX_NAME)
    namespace: str = "default"
    uid: str = ""
    generation: int = 1
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    owner_references: list[OwnerReference] = Field(default_factory=list)


class Condition(ApiModel):
    """One aspect of a resource's state, as in metav1.Condition."""

    type: str = Field(max_length=64)
    """Accepted, DependenciesReady, Progressing, Complete, Failed, Suspended or Ready."""
    status: Literal["True", "False", "Unknown"]
    """Whether the condition holds."""
    reason: str = Field(max_length=64)
    """Why, as one word of the documented enum."""
    message: str = Field(default="", max_length=2048)
    """Why, as a sentence that says what to do."""
    observed_generation: int = Field(ge=0, le=MAX_COUNT)
    """The generation of the spec that this was decided from."""
    last_transition_time: datetime
    """When the status last changed."""


class Resource(ApiModel):
    """A custom resource of the group; the kinds add `spec`."""

    api_version: Literal["herdsman.dev/v1alpha1"] = API_VERSION
    kind: str
    metadata: ObjectMeta

    KIND: ClassVar[str]

    @classmethod
    def parse(cls, data: bytes | str) -> Self:
        """Read a resource from JSON; raises pydantic's ValidationError with the path of every wrong field.

        As the API server has it, a null member counts as absent and takes its default, and 8.0 is a whole number.
        """
        try:
            document = json.loads(data)
        except ValueError:
            return cls.model_validate_json(data)
        return cls.read(document)

    @classmethod
    def read(cls, document: Any) -> Self:
        """Read a resource from the values of a JSON document, as `parse` does."""
        return cls.model_validate_json(json.dumps(_normalised(document)))


def _normalised(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _normalised(member) for key, member in value.items() if member is not None}
    if isinstance(value, list):
        return [_normalised(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
