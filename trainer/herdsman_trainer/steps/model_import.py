"""ModelImport: a model comes in from a volume or from elsewhere, or is initialised; then it is like every other one."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from herdsman.api.job_config import FileDigest, ModelImportConfig
from herdsman.api.v1alpha1.status import Artifact
from herdsman_trainer.artifacts import ARTIFACT_DIRECTORY, open_input, read_manifest
from herdsman_trainer.downloads.fetching import Downloaded, fetch
from herdsman_trainer.errors import BadInput
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.tokenizers import load_tokenizer
from herdsman_trainer.weights.import_records import ImportRecords, import_key
from herdsman_trainer.weights.initialisation import write_initial_model
from herdsman_trainer.weights.model_writing import Announce, WrittenModel
from herdsman_trainer.weights.opened_model import OpenedModel
from herdsman_trainer.weights.source_digests import check_expected, expected_files, take_digests, tell_published
from herdsman_trainer.weights.source_files import open_source
from herdsman_trainer.weights.tensor_spec import FLOAT_NAMES, dtype_name
from herdsman_trainer.weights.vocabulary import check_tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where the files of the import lie on this machine."""

    path: Path
    root: Path
    """Nothing outside of it is followed."""
    named: str
    """The field of the spec, for messages."""
    digests: Mapping[str, FileDigest] = field(default_factory=dict)
    """Of files, by path relative to the source, that were taken while the files came in."""
    frozen: bool = False
    """Whether nobody ever changes these files, so that they may be linked instead of copied."""
    share: float = 0.0
    """The share of the whole work that getting them here was."""


@dataclass(frozen=True)
class Imported:
    """What was written, and what of."""

    written: WrittenModel
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Digests of the source's files, by field of the spec."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    key: str | None = None
    """Of the record for another import of the same."""


def run(config: ModelImportConfig, run: RunContext) -> Artifact:
    """Import or initialise, and publish.

    Raises BadInput for files that are missing, damaged, in another format, or not what `sha256` says.
    """
    run.report(activity="checking the inputs", done=0.0)
    downloaded = fetch(config, run) if config.remote is not None else None
    if downloaded is not None:
        config = config.model_copy(update={"sha256": dict(downloaded.expected)})
        imported = _import(config, _downloaded_source(downloaded), run)
    else:
        imported = _import(config, _source(config), run) if config.initialise is None else _initialise(config, run)
    written = imported.written
    run.raise_if_stopped()
    run.report(activity="publishing", done=1.0)
    artifact = run.publish(
        kind="model",
        source_dir=run.work_dir,
        vocab_size=written.vocab_size,
        tokenizer_digest=written.tokenizer.digest,
        dtype=dtype_name(written.dtype),
        formats=["huggingface"],
        inputs={**imported.inputs, **(downloaded.inputs if downloaded is not None else {})},
        report={**written.figures, **(downloaded.figures if downloaded is not None else {})},
        known=written.digests,
    )
    _record(config, imported)
    if downloaded is not None:
        downloaded.release()
    return artifact


def _initialise(config: ModelImportConfig, run: RunContext) -> Imported:
    if config.initialise is None or config.tokenizer is None:
        raise BadInput("A freshly initialised model needs a tokenizer.", hint="Set spec.source.initialise.tokenizer.")
    tokenizer = open_input(config.tokenizer, config.verify_inputs)
    dtype = FLOAT_NAMES[config.dtype or "float32"]
    return Imported(write_initial_model(config.initialise, tokenizer, run.work_dir, dtype, _announcer(run, 0.0)))


def _source(config: ModelImportConfig) -> Source:
    if config.source is None:
        raise BadInput("Nothing says where the model comes from.", hint="Set one member of spec.source.")
    path = open_input(config.source, config.verify_inputs)
    return Source(path, Path(config.source.root), config.source.field)


def _downloaded_source(downloaded: Downloaded) -> Source:
    directory = downloaded.directory
    return Source(directory, directory, downloaded.named, downloaded.digests, frozen=True, share=downloaded.share)


def _import(config: ModelImportConfig, source: Source, run: RunContext) -> Imported:
    """Check names and shapes, then digests as far as they are needed before, then write: or link, if it was written."""
    model = open_source(source.path, source.root, FLOAT_NAMES.get(config.dtype or ""), frozen=source.frozen)
    directory = source.path if source.path.is_dir() else source.path.parent
    files = model.named_files(directory)
    before = {name: path.stat() for name, path in files.items()}
    sizes = {name: status.st_size for name, status in before.items()}
    model.write_tokenizer(run.work_dir)
    tokenizer = load_tokenizer(run.work_dir)
    check_tokenizer(
        model.vocab_size,
        tokenizer.vocab_size,
        model=str(model.where),
        tokenizer=str(model.tokenizer_from or model.where),
    )
    records = ImportRecords(Path(config.workspace.root))
    # Files whose digests come out of copying them.
    later = {*model.weights} if model.copies and not records.may_know(sizes) else set()
    ahead = {name: path for name, path in files.items() if path not in later}
    ahead |= expected_files(directory, config.sha256)
    unread = {name: ahead[name] for name in ahead.keys() - source.digests.keys()}
    share, taken = _digests(unread, model, run, source.share)
    known = {**source.digests, **taken}
    check_expected(directory, config.sha256, known)
    digests: Mapping[str, FileDigest] | None = None
    if files.keys() <= known.keys():
        digests = records.link(_key(config, files, known), run.work_dir)
    if digests is not None:
        log.info("The same was imported on this claim before: its files are linked, and nothing is copied.")
    else:
        written = model.write(run.work_dir, tokenizer, _announcer(run, share))
        digests = written
        copied = {name: written[name] for name, path in files.items() if path in later}
        check_expected(directory, {name: known[name].sha256 for name in copied.keys() & known.keys()}, copied)
        known |= copied
    for name, path in files.items():
        after = path.stat()
        if (after.st_size, after.st_mtime_ns) != (before[name].st_size, before[name].st_mtime_ns):
            message = "The file changed while it was imported."
            raise BadInput(message, reason="ChecksumMismatch", file=str(path), hint="Import it again.")
    figures = {**model.figures, "files_with_expected_sha256": len(config.sha256)}
    figures |= tell_published(model, files, known)
    result = WrittenModel(model.vocab_size, load_tokenizer(run.work_dir), model.dtype, figures, digests)
    inputs = {f"{source.named}/{name}": known[name].sha256 for name in sorted(files.keys() | config.sha256.keys())}
    return Imported(result, inputs, sizes, _key(config, files, known))


def _digests(
    files: Mapping[str, Path], model: OpenedModel, run: RunContext, begins: float
) -> tuple[float, dict[str, FileDigest]]:
    """Take digests, reporting by bytes; returns with them the share of the whole work that is then done.

    `begins` is the share that is done before.
    """
    size = sum(path.stat().st_size for path in files.values())
    total = max(1, size + model.bytes)
    read = 0

    def on_bytes(name: str, count: int) -> None:
        nonlocal read
        read += count
        run.raise_if_stopped()
        run.report(activity=f"checking {name}", done=begins + (1 - begins) * read / total)

    return begins + (1 - begins) * size / total, take_digests(files, model.weights, on_bytes)


def _key(config: ModelImportConfig, files: Mapping[str, Path], known: Mapping[str, FileDigest]) -> str:
    return import_key({name: known[name] for name in files}, dtype=config.dtype)


def _record(config: ModelImportConfig, imported: Imported) -> None:
    """Keep links to what was published, so that the next import of the same source copies nothing."""
    artifact = Path(config.workspace.path) / ARTIFACT_DIRECTORY
    manifest = read_manifest(artifact)
    if imported.key and manifest and config.keep_downloads:
        ImportRecords(Path(config.workspace.root)).keep(imported.key, imported.sizes, artifact, manifest.files)


def _announcer(run: RunContext, begins: float) -> Announce:
    """Return what reports each tensor or piece of a file, and stops the work where a stop was asked for.

    `begins` is the share of the whole work that is done before the writing.
    """

    def announce(what: str, done: float) -> None:
        run.raise_if_stopped()
        run.report(activity=what, done=begins + (1 - begins) * done)

    return announce
