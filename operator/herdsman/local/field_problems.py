"""What pydantic found wrong, as one sentence per field with its path and the remedy."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

Loc = tuple[str | int, ...]


@dataclass(frozen=True)
class FieldProblem:
    """One wrong field."""

    loc: Loc
    message: str
    """What is wrong with it."""
    hint: str | None = None
    """What to do."""

    @property
    def field(self) -> str:
        """The path as people write it: spec.adapters[1].sftJob."""
        return field_path(self.loc)

    def __str__(self) -> str:
        hint = f"; {self.hint}" if self.hint else ""
        return f"{self.field}: {self.message}{hint}" if self.loc else f"{self.message}{hint}"


def field_path(loc: Sequence[str | int]) -> str:
    """Write a path as spec.adapters[1].sftJob."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def field_problems(error: ValidationError, model: type[BaseModel]) -> list[FieldProblem]:
    """Return what is wrong, in the order of the fields, for an object that was read as `model`."""
    return [_problem(details, model) for details in error.errors(include_url=False)]


def suggest(word: str, known: Sequence[str]) -> str | None:
    """Return a "did you mean" for a misspelt word, or None where nothing is near."""
    lowered = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower().replace("_", "").replace("-", ""), lowered, n=1, cutoff=0.6)
    return f"did you mean {lowered[near[0]]}?" if near else None


def _problem(details: ErrorDetails, model: type[BaseModel]) -> FieldProblem:
    loc, kind, given = details["loc"], details["type"], details["input"]
    context: dict[str, Any] = details.get("ctx", {})
    if kind == "extra_forbidden":
        owner = _model_at(model, loc[:-1])
        known = [field.alias or name for name, field in owner.model_fields.items()] if owner else []
        hint = suggest(str(loc[-1]), known) or (f"known are {', '.join(known)}" if known else None)
        return FieldProblem(loc, "no such field", hint)
    if kind == "missing":
        return FieldProblem(loc, "is missing", _purpose(model, loc))
    if kind == "value_error":
        return FieldProblem(loc, str(context.get("error", details["msg"])))
    if kind in ("literal_error", "enum"):
        return FieldProblem(
            loc,
            f"{_given(given)} is not one of {context['expected']}",
            suggest(str(given), _quoted(context["expected"])),
        )
    if kind == "string_pattern_mismatch":
        return FieldProblem(loc, f"{_given(given)} is not allowed", _pattern(context["pattern"]))
    if sentence := _WRONG_TYPE.get(kind):
        return FieldProblem(loc, f"must be {sentence}, got {_given(given)}", _conversion(kind, given))
    return FieldProblem(loc, f"{_lower_first(details['msg'])}, got {_given(given)}")


_WRONG_TYPE = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "finite_number": "a finite number",
    "model_attributes_type": "an object",
}

_PATTERNS = {
    r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$": "use lower-case letters, digits and inner hyphens",
    r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$": 'write a quantity such as "4", "500m" or "64Gi"',
    r"^[0-9a-f]{64}$": "write 64 lower-case hexadecimal digits",
}


def _pattern(pattern: str) -> str:
    if pattern.startswith(r"^(\.|"):
        return 'write a path relative to the volume, without "..", "//", hidden names or a leading "/"'
    return _PATTERNS.get(pattern, f"it must match {pattern}")


def _conversion(kind: str, given: Any) -> str | None:
    if kind == "string_type" and isinstance(given, bool | int | float):
        return f'write it in quotes: "{str(given).lower() if isinstance(given, bool) else given}"'
    if isinstance(given, str) and kind in ("int_type", "float_type") and _is_number(given):
        return f"write it without quotes: {given}"
    if isinstance(given, str) and kind == "bool_type":
        return "write true or false, without quotes"
    if kind == "list_type" and given is not None:
        return 'put "- " before each item'
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _given(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    text = str(value)
    return f'"{text[:57]}…"' if len(text) > 60 else f'"{text}"' if isinstance(value, str) else text


def _quoted(expected: str) -> list[str]:
    return expected.replace(" or ", ", ").replace("'", "").split(", ")


def _lower_first(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def _models_of(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_of(part)


def _model_at(model: type[BaseModel], loc: Loc) -> type[BaseModel] | None:
    """Return the model of the object at this path, or None where it is a plain mapping."""
    here: type[BaseModel] | None = model
    for part in loc:
        if isinstance(part, int) or here is None:
            continue
        field = next((field for name, field in here.model_fields.items() if part in (field.alias, name)), None)
        here = next(_models_of(field.annotation), None) if field else None
    return here


def _purpose(model: type[BaseModel], loc: Loc) -> str | None:
    owner = _model_at(model, loc[:-1])
    field = (
        next((field for name, field in owner.model_fields.items() if loc[-1] in (field.alias, name)), None)
        if owner
        else None
    )
    first = (field.description or "").split(". ")[0].rstrip(".") if field else ""
    return f"set it: {_lower_first(first)}" if first else None
