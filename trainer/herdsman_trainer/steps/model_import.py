"""ModelImport: a model comes in from a volume, or is initialised; afterwards it is like every other model."""

from collections.abc import Mapping
from pathlib import Path

from herdsman.api.job_config import FileDigest, ModelImportConfig
from herdsman.api.v1alpha1.status import Artifact
from herdsman_trainer.artifacts import open_input
from herdsman_trainer.errors import BadInput
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.weights.digests import digest_file
from herdsman_trainer.weights.gguf_import import write_gguf_model
from herdsman_trainer.weights.initialisation import write_initial_model
from herdsman_trainer.weights.model_copy import copy_model
from herdsman_trainer.weights.model_writing import Announce, WrittenModel
from herdsman_trainer.weights.reading import INDEX_FILE, SINGLE_FILE
from herdsman_trainer.weights.tensor_spec import FLOAT_NAMES, dtype_name

CHECKS = 0.5
"""The share of the work that checking spec.sha256 is, where it is asked for: every byte is read twice."""


def run(config: ModelImportConfig, run: RunContext) -> Artifact:
    """Import or initialise, and publish.

    Raises BadInput for files that are missing, damaged, in another format, or not what `sha256` says.
    """
    run.report(activity="checking the inputs", done=0.0)
    written, inputs = _import(config, run) if config.initialise is None else (_initialise(config, run), {})
    run.report(activity="publishing", done=1.0)
    return run.publish(
        kind="model",
        source_dir=run.work_dir,
        vocab_size=written.vocab_size,
        tokenizer_digest=written.tokenizer.digest,
        dtype=dtype_name(written.dtype),
        inputs=inputs,
        report=written.figures,
        known=written.digests,
    )


def _initialise(config: ModelImportConfig, run: RunContext) -> WrittenModel:
    if config.initialise is None or config.tokenizer is None:
        raise BadInput("A freshly initialised model needs a tokenizer.", hint="Set spec.source.initialise.tokenizer.")
    tokenizer = open_input(config.tokenizer, config.verify_inputs)
    dtype = FLOAT_NAMES[config.dtype or "float32"]
    return write_initial_model(config.initialise, tokenizer, run.work_dir, dtype, _announcer(run, 0.0))


def _import(config: ModelImportConfig, run: RunContext) -> tuple[WrittenModel, dict[str, str]]:
    """Import the source; returns with it the digests of the files that were checked, by field of the spec."""
    if config.source is None:
        raise BadInput("Nothing says where the model comes from.", hint="Set one member of spec.source.")
    source = open_input(config.source, config.verify_inputs)
    checked = _check_digests(source, config.sha256, run)
    gguf = _gguf_file(source)
    announce = _announcer(run, CHECKS if checked else 0.0)
    if gguf:
        announce(f"reading {gguf.name}", 0.0)
        written = write_gguf_model(gguf, run.work_dir, FLOAT_NAMES[config.dtype or "bfloat16"], announce)
    else:
        dtype = FLOAT_NAMES[config.dtype] if config.dtype else None
        written = copy_model(source, run.work_dir, dtype, checked, announce)
    return written, {f"{config.source.field}/{name}": digest.sha256 for name, digest in checked.items()}


def _check_digests(source: Path, expected: Mapping[str, str], run: RunContext) -> dict[str, FileDigest]:
    """Compare the files that spec.sha256 names with what it says; returns size and digest of each."""
    directory = source if source.is_dir() else source.parent
    files = {name: directory / name for name in sorted(expected)}
    for name, path in files.items():
        if not path.is_file() or not path.resolve().is_relative_to(directory.resolve()):
            hint = "Correct the name in spec.sha256, or put the file on the volume."
            raise BadInput(f"spec.sha256 names {name}, which is not there.", file=str(path), hint=hint)
    total = max(1, sum(path.stat().st_size for path in files.values()))
    read = 0
    found: dict[str, FileDigest] = {}

    def on_bytes(count: int) -> None:
        nonlocal read
        read += count
        run.raise_if_stopped()
        run.report(activity=f"checking {name}", done=CHECKS * read / total)

    for name, path in files.items():
        found[name] = digest_file(path, on_bytes)
        if found[name].sha256 != expected[name]:
            message = f"SHA-256 is {found[name].sha256} and spec.sha256 expects {expected[name]}."
            hint = "The file was cut or changed on its way, or is another version: fetch it again."
            raise BadInput(message, reason="ChecksumMismatch", file=str(path), hint=hint)
    return found


def _gguf_file(source: Path) -> Path | None:
    """Return the GGUF file of a source without safetensors; raises BadInput where there are several."""
    if source.is_file():
        return source
    if (source / SINGLE_FILE).is_file() or (source / INDEX_FILE).is_file():
        return None
    files = sorted(source.glob("*.gguf"))
    if len(files) > 1:
        message = f"The directory has {len(files)} GGUF files: {', '.join(path.name for path in files[:4])}."
        raise BadInput(message, file=str(source), hint="Name one of them in the path of the source.")
    return files[0] if files else None


def _announcer(run: RunContext, begins: float) -> Announce:
    """Return what reports each tensor or piece of a file, and stops the work where a stop was asked for.

    `begins` is the share of the whole work that is done before the writing.
    """

    def announce(what: str, done: float) -> None:
        run.raise_if_stopped()
        run.report(activity=what, done=begins + (1 - begins) * done)

    return announce
