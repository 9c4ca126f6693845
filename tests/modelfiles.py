"""Reads a Modelfile as Ollama does (parser/parser.go), and stricter: what Ollama drops in silence is an error."""

from dataclasses import dataclass, field

COMMANDS = {
    "from",
    "license",
    "template",
    "system",
    "adapter",
    "renderer",
    "parser",
    "requires",
    "parameter",
    "message",
}
NUMBERS = {
    "temperature": float,
    "top_p": float,
    "repeat_penalty": float,
    "top_k": int,
    "num_ctx": int,
}


@dataclass
class Modelfile:
    model: str = ""
    template: str | None = None
    system: str | None = None
    stops: list[str] = field(default_factory=list)
    parameters: dict[str, float | int] = field(default_factory=dict)


class ModelfileError(Exception):
    """The text is no Modelfile."""


def read_modelfile(text: str) -> Modelfile:
    found = Modelfile()
    place = 0
    while place < len(text):
        line_end = text.find("\n", place) if "\n" in text[place:] else len(text)
        line = text[place:line_end]
        if not line.strip() or line.startswith("#"):
            place = line_end + 1
            continue
        command, space, _ = line.partition(" ")
        if command.lower() not in COMMANDS or not space:
            raise ModelfileError(f"no command: {line!r}")
        place += len(command) + 1
        name = ""
        if command == "PARAMETER":
            name = text[place : text.index(" ", place)]
            place += len(name) + 1
        value, place = _value(text, place)
        _take(found, command.lower(), name, value)
    if not found.model:
        raise ModelfileError("no FROM line")
    return found


def _value(text: str, place: int) -> tuple[str, int]:
    """The value at a place and where the next line begins; a value in three quotes ends at the next three."""
    if text.startswith('"""', place):
        end = text.find('"""', place + 3)
        if end < 0:
            raise ModelfileError("three quotes that never end")
        after = end + 3
        while text.startswith('"', after):  # Ollama takes the last three of a run of quotes
            end, after = end + 1, after + 1
        if text[after : after + 1] not in ("", "\n"):
            raise ModelfileError(f"text after the value: {text[after : after + 20]!r}")
        value = text[place + 3 : end]
    else:
        after = text.find("\n", place)
        after = len(text) if after < 0 else after
        value = text[place:after]
        if value != value.strip() or value.startswith('"') or not value:
            raise ModelfileError(f"a bare value that changes when it is read: {value!r}")
    lost = [character for character in value if not character.isprintable() and character not in "\n\t "]
    if lost:
        raise ModelfileError(f"Ollama drops {lost}")
    return value, after + 1


def _take(found: Modelfile, command: str, name: str, value: str) -> None:
    match command, name:
        case "from", "":
            found.model = value
        case "template", "":
            found.template = value
        case "system", "":
            found.system = value
        case "parameter", "stop":
            found.stops.append(value)
        case "parameter", known if known in NUMBERS:
            found.parameters[known] = NUMBERS[known](value)
        case _:
            raise ModelfileError(f"{command} {name} is not what we write")
