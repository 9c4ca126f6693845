"""Marks that the models put into their JSON schema for the CRDs: CEL rules, mutability, "one of"."""

from typing import Any, ClassVar, Self

from pydantic import model_validator

from herdsman.api.meta import ApiModel

MUTABLE: dict[str, Any] = {"x-herdsman-mutable": True}
"""json_schema_extra of a spec field, or of a whole spec, that may change after creation; all else is immutable."""


def cel(*rules: tuple[str, str]) -> dict[str, Any]:
    """Return the JSON schema extra that holds CEL rules, each a (rule, message) pair."""
    return {"x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in rules]}


class OneOf(ApiModel):
    """An object of which exactly one member is set, but for those in BESIDE; the CRD says the same in CEL."""

    BESIDE: ClassVar[frozenset[str]] = frozenset()
    """Members that do not count: options that go with any of the others."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Write the CEL twin of the validator below into the schema."""
        super().__pydantic_init_subclass__(**kwargs)
        members = [field.alias or name for name, field in cls.model_fields.items() if name not in cls.BESIDE]
        listed = ", ".join(members)
        rule = " + ".join(f"(has(self.{member}) ? 1 : 0)" for member in members) + " == 1"
        cls.model_config["json_schema_extra"] = cel((rule, f"set exactly one of {listed}"))

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        fields = {name: field for name, field in type(self).model_fields.items() if name not in self.BESIDE}
        given = [name for name in fields if getattr(self, name) is not None]
        if len(given) != 1:
            listed = ", ".join(field.alias or name for name, field in fields.items())
            got = ", ".join(fields[name].alias or name for name in given) or "none"
            raise ValueError(f"set exactly one of {listed}; got {got}")
        return self

    @property
    def chosen(self) -> tuple[str, Any]:
        """The member that is set, as (attribute name, value)."""
        names = (name for name in type(self).model_fields if name not in self.BESIDE)
        return next((name, value) for name in names if (value := getattr(self, name)) is not None)
