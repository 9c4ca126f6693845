"""Given records: read, converted, and taken in order."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from herdsman.api.job_config import DatasetInput, InstructionSetConfig, RecordSource
from herdsman_trainer.artifacts import artifact_digest
from herdsman_trainer.errors import BadInput
from herdsman_trainer.instruction_making.conversion import convert, is_known
from herdsman_trainer.instruction_making.keeping import Keeper
from herdsman_trainer.instruction_making.record_files import find_record_files, read_records
from herdsman_trainer.instruction_making.records import AlpacaRecord, Dropped
from herdsman_trainer.plain_files import digest_file
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.text_files import relative_name

_TOLD_EVERY = 500
"""Records between two looks at the progress."""


def converted(source: RecordSource, path: Path) -> Iterator[AlpacaRecord | Dropped]:
    """Yield what the records of a source become; BadInput for a file whose first record has no known form."""
    for file in find_record_files(path):
        for place, record in enumerate(read_records(file)):
            if place == 0 and not is_known(record.value, source):
                keys = ", ".join(sorted(record.value)[:8]) or "none"
                hint = "Say in `format` how its records are written, or in `columns` what its columns are called."
                what = f"{source.dataset.field}: the first record has no known form (its keys: {keys})."
                raise BadInput(what, file=str(file), line=record.line, hint=hint)
            found = convert(record.value, source)
            if isinstance(found, Dropped):
                yield found
            else:
                yield from found


def take_given(config: InstructionSetConfig, paths: Sequence[Path], keeper: Keeper, context: RunContext) -> None:
    """Put the records of all sources before the keeper, in the order of the spec."""
    sizes = [sum(file.stat().st_size for file in find_record_files(path)) for path in paths]
    total = max(1, sum(sizes))
    for part, (source, path) in enumerate(zip(config.sources, paths, strict=True)):
        before, seen, kept = sum(sizes[:part]), 0, 0
        for number, record in enumerate(converted(source, path), start=1):
            kept += keeper.take(record, part)
            seen += _size(record)
            if number % _TOLD_EVERY == 0:
                context.raise_if_stopped()
                share = (before + min(seen, sizes[part])) / total
                context.report(
                    activity=f"cleaning {source.dataset.field}, {keeper.read:,} records read",
                    done=share if config.generate is None else None,
                    metrics={"records": len(keeper), "records_dropped": keeper.dropped.total()},
                )
            if source.max_records is not None and kept >= source.max_records:
                break
    context.raise_if_stopped()


def seed_tasks(config: InstructionSetConfig, path: Path | None) -> list[AlpacaRecord]:
    """Return the examples that requests show; BadInput where a file of them holds none."""
    if path is None or config.generate is None or config.generate.seed_tasks is None:
        return []
    named = config.generate.seed_tasks
    source = RecordSource(dataset=DatasetInput(field=named.field, label=named.field, source=named))
    found = [record for record in converted(source, path) if isinstance(record, AlpacaRecord)]
    tasks = [record for record in found if record.instruction.strip() and record.output.strip()]
    if not tasks:
        hint = 'Each is written as {"instruction": "...", "input": "...", "output": "..."}.'
        raise BadInput(f"{source.dataset.field} holds no example with an answer.", file=str(path), hint=hint)
    return tasks


def source_digest(source: RecordSource, path: Path) -> str:
    """Return what a source was made from: the digest of its artifact, or one over its files as an artifact has it."""
    here = source.dataset.source
    if here is not None and here.artifact is not None:
        return here.artifact.digest
    return artifact_digest({relative_name(file, path): digest_file(file) for file in find_record_files(path)})


def _size(record: AlpacaRecord | Dropped) -> int:
    """Return about how many bytes a record has in its file."""
    if isinstance(record, Dropped):
        return 100
    return 50 + sum(len(text.encode(errors="replace")) for text in record[:3])
