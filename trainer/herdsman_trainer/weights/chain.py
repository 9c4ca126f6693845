"""A model directory with the adapters on top of it, opened and checked as a whole; merging and serving start here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from herdsman.api.job_config import ArtifactManifest
from herdsman_trainer.artifacts import read_manifest
from herdsman_trainer.errors import BadInput
from herdsman_trainer.tokenizer_files import BPE_FILE, SENTENCEPIECE_FILE
from herdsman_trainer.tokenizers import TextTokenizer, load_tokenizer
from herdsman_trainer.weights.adapters import Adapter, load_adapter
from herdsman_trainer.weights.lineage import Origin, check_lineage
from herdsman_trainer.weights.merge import Merge, merge
from herdsman_trainer.weights.reading import TensorFiles, open_model_weights, read_json_object
from herdsman_trainer.weights.vocabulary import check_base, check_tokenizer, is_tied

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"


@dataclass(frozen=True)
class ModelDirectory:
    """A Hugging Face model directory whose weights and config.json agree."""

    path: Path
    config: Mapping[str, Any]
    weights: TensorFiles
    manifest: ArtifactManifest | None


@dataclass(frozen=True)
class Chain:
    """A base, the adapters in order, and the tokenizer that fits the result."""

    model: ModelDirectory
    adapters: Sequence[Adapter]
    merge: Merge
    tokenizer: TextTokenizer
    tokenizer_directory: Path
    prompt_template: str | None
    """The template the last tuned part was tuned with, as its manifest says."""
    tuned_here: bool
    """Whether that part is an adapter rather than the base."""
    notes: Sequence[str]
    """What could not be checked, or is worth knowing, in sentences."""

    digests: Sequence[str | None]
    """The digest of the base and of each adapter, None for plain files that nothing recognises."""


def open_model(directory: Path) -> ModelDirectory:
    """Open a model directory; raises BadInput where files are missing or damaged, or contradict each other."""
    path = directory / CONFIG_FILE
    weights = open_model_weights(directory)
    config = read_json_object(path, remedy="Copy config.json from the source of the model.")
    if "quantization_config" in config:
        hint = "Use the weights as they were before quantisation: float32, bfloat16 or float16."
        raise BadInput("The model is quantised, and adapters cannot be added to it exactly.", file=str(path), hint=hint)
    check_base(weights.specs, config, str(directory))
    return ModelDirectory(directory, config, weights, read_manifest(directory))


def open_chain(
    directory: Path,
    adapters: Sequence[Path] = (),
    *,
    dtype: torch.dtype | None = None,
    digest_of: Callable[[Path], str] | None = None,
) -> Chain:
    """Open a model and adapters and check, from files and manifests alone, that they belong together in this order.

    Nothing but names, shapes and manifests is read, unless `digest_of` is given: it takes the digest of a base
    without a manifest as training took it, so that the base can be recognised. Raises BadInput where an adapter was
    trained on another base or belongs in another place, where shapes do not fit, or where the tokenizer and the
    embedding differ in size.
    """
    model = open_model(directory)
    manifests = [read_manifest(path) for path in adapters]
    origins = [origin_of(path, manifest) for path, manifest in zip(adapters, manifests, strict=True)]
    base_digest = _base_digest(model, origins, digest_of)
    notes = check_lineage(str(directory), base_digest, origins)
    opened = [load_adapter(path) for path in adapters]
    for adapter in opened:
        _check_own_tokenizer(adapter)
    merged = merge(model.weights, opened, tied=is_tied(model.config), dtype=dtype)
    with_tokenizer = [path for path in (directory, *adapters) if has_tokenizer(path)]
    tokenizer_directory = with_tokenizer[-1] if with_tokenizer else directory
    tokenizer = load_tokenizer(tokenizer_directory)
    name = " + ".join(str(path) for path in (directory, *adapters))
    rows = merged.plan.vocab_size
    check_tokenizer(rows, tokenizer.vocab_size, model=name, tokenizer=str(tokenizer_directory), adapters=opened)
    tuned = [bool(manifest and manifest.artifact.prompt_template) for manifest in (model.manifest, *manifests)]
    templates = [manifest.artifact.prompt_template for manifest in (model.manifest, *manifests) if manifest]
    return Chain(
        model=model,
        adapters=opened,
        merge=merged,
        tokenizer=tokenizer,
        tokenizer_directory=tokenizer_directory,
        prompt_template=next((template for template in reversed(templates) if template), None),
        tuned_here=any(tuned[1:]),
        digests=[base_digest, *(origin.digest for origin in origins)],
        notes=[*notes, *(note for adapter in opened for note in adapter.notes)],
    )


def _base_digest(
    model: ModelDirectory, adapters: Sequence[Origin], digest_of: Callable[[Path], str] | None
) -> str | None:
    """Return the digest adapters may know the base by, or None where only shapes can be compared.

    A plain directory that has another digest than it had in training may still be the same model, with a file more or
    less, so that is not an error.
    """
    if model.manifest is not None:
        return model.manifest.artifact.digest
    known = {origin.base_digest for origin in adapters if origin.base_digest}
    if digest_of is None or not known:
        return None
    digest = digest_of(model.path)
    return digest if digest in known else None


def has_tokenizer(directory: Path) -> bool:
    """Whether a directory holds tokenizer files."""
    return any((directory / name).is_file() for name in (SENTENCEPIECE_FILE, BPE_FILE))


def origin_of(path: Path, manifest: ArtifactManifest | None) -> Origin:
    """Return where an adapter comes from, as its manifest says; BadInput where that is one of something else."""
    if manifest is None:
        return Origin(str(path))
    artifact = manifest.artifact
    if artifact.kind != "adapter":
        hint = "Name the result of a PretrainJob or an SFTJob, or a peft directory."
        raise BadInput(f"The artifact is of the kind {artifact.kind}, not an adapter.", file=str(path), hint=hint)
    return Origin(str(path), artifact.digest, artifact.base_digest, tuple(artifact.parents))


def _check_own_tokenizer(adapter: Adapter) -> None:
    """Refuse an adapter beside the tokenizer of another: the commonest fault with published adapters."""
    if adapter.embedding_rows is not None and has_tokenizer(adapter.directory):
        where = str(adapter.directory)
        check_tokenizer(
            adapter.embedding_rows, load_tokenizer(adapter.directory).vocab_size, model=where, tokenizer=where
        )
