"""Which files of a repository or a bucket are downloaded."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from herdsman_trainer.errors import BadInput
from herdsman_trainer.tokenizer_files import TOKENIZER_FILES

WEIGHTS = (
    ("model-*.safetensors", "model.safetensors.index.json"),
    ("model.safetensors",),
    ("pytorch_model-*.bin", "pytorch_model.bin.index.json"),
    ("pytorch_model.bin",),
    ("consolidated.*.pth", "params.json"),
    ("*.gguf",),
)
"""The forms that weights come in, the best first: patterns of names without directories; the first one decides."""
BESIDE = ("config.json", "generation_config.json", "chat_template.json", "vocab.json", "merges.txt", *TOKENIZER_FILES)
_SHOWN = 6
Suited = Callable[[Sequence[str], str, str], list[str]]
"""Of names, those that are downloaded where no pattern says which; takes the field and the location for messages."""


@dataclass(frozen=True)
class Wish:
    """What is wanted of a remote source."""

    field: str
    """The field of the spec that names it, for messages: spec.source.hub."""
    suited: Suited
    dataset: bool = False
    """Whether a repository of a hub is one of its datasets."""


def chosen(names: Sequence[str], patterns: Sequence[str], field: str, location: str, suited: Suited) -> list[str]:
    """Return the names that match any of the patterns, or without patterns those that are suited.

    Raises BadInput where a pattern matches nothing, or nothing is suited.
    """
    for place, pattern in enumerate(patterns):
        if not any(fnmatchcase(name, pattern) for name in names):
            message = f"{field}.files[{place}]: nothing there matches {pattern!r}; there are {_some(names)}."
            raise BadInput(message, file=location, hint="Correct the pattern, or leave `files` out.")
    if patterns:
        return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
    return suited(names, field, location)


def ending_in(is_wanted: Callable[[str], bool], wanted: str) -> Suited:
    """Return what chooses the files of a dataset by their names."""

    def suited(names: Sequence[str], field: str, location: str) -> list[str]:
        found = [name for name in names if is_wanted(name)]
        if not found:
            message = f"{field}: there is no {wanted} file; there are {_some(names)}."
            raise BadInput(message, file=location, hint="Name a directory that has some, or say in `files` which.")
        return found

    return suited


def model_files(names: Sequence[str], field: str, location: str) -> list[str]:
    """Return the names that make a model; BadInput where there is none."""
    top = [name for name in names if "/" not in name]
    for weights in WEIGHTS:
        found = [name for name in top if _matches(name, weights[:1])]
        if len(found) > 1 and weights == ("*.gguf",):
            message = f"{field}: there are {len(found)} GGUF files, and one is imported: {_some(found)}."
            raise BadInput(message, file=location, hint="Name one of them in `files`, or in the prefix of a bucket.")
        if found:
            return [name for name in top if _matches(name, (*weights, *BESIDE))]
    message = f"{field}: there are no weights of a model at the top; there are {_some(names)}."
    hint = "Name a directory with safetensors, .bin, consolidated.*.pth or one GGUF file, or say in `files` which."
    raise BadInput(message, file=location, hint=hint)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _some(names: Sequence[str]) -> str:
    if not names:
        return "no files at all"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
