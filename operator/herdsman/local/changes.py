"""What a new manifest changes in a stored one, and whether it may: fields that define a run are immutable, a server's
are not."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from herdsman.api.v1alpha1.registry import AnyResource
from herdsman.api.v1alpha1.schema import MUTABLE

_MARK = next(iter(MUTABLE))


@dataclass(frozen=True)
class FieldChange:
    """One field that differs."""

    field: str
    """Its path: spec.recipe.lora.rank."""
    before: Any
    after: Any
    mutable: bool
    """Whether it may change after creation."""

    def __str__(self) -> str:
        return f"{self.field} was {_shown(self.before)} and cannot become {_shown(self.after)}"


def spec_changes(before: AnyResource, after: AnyResource) -> list[FieldChange]:
    """Return the fields of the spec that differ; an unset field equals its default."""
    mutable = _is_marked(type(after.spec).model_config.get("json_schema_extra"))
    return list(_changes(before.spec, after.spec, "spec", mutable=mutable))


def _changes(before: Any, after: Any, path: str, *, mutable: bool) -> Iterator[FieldChange]:
    if isinstance(before, BaseModel) and isinstance(after, type(before)):
        for name, field in type(before).model_fields.items():
            marked = _is_marked(field.json_schema_extra)
            here = f"{path}.{field.alias or name}"
            yield from _changes(getattr(before, name), getattr(after, name), here, mutable=mutable or marked)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from _changes(old, new, f"{path}[{index}]", mutable=mutable)
    elif before != after:
        yield FieldChange(path, _plain(before), _plain(after), mutable)


def _is_marked(extra: Any) -> bool:
    """Whether what a model or a field adds to its schema holds the mark."""
    return isinstance(extra, dict) and bool(extra.get(_MARK))


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _shown(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return f"{text[:77]}…" if len(text) > 78 else text
