"""The files of a set: its training and its held-out records, and the report."""

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from herdsman.api.job_config import HELD_OUT_PART, TRAINING_PART, InstructionSetConfig
from herdsman_trainer.instruction_making.generation import Generated
from herdsman_trainer.instruction_making.keeping import Keeper, kinds_of
from herdsman_trainer.instruction_making.reporting import REPORT_FILE, SetReport
from herdsman_trainer.instruction_making.selection import chosen, is_held_out, question_hash
from herdsman_trainer.plain_files import write_file

RECORDS_FILE = "records.jsonl"
GENERATED = "spec.generate"
"""What the part of generated records is called in messages."""


def write_set(
    directory: Path,
    config: InstructionSetConfig,
    keeper: Keeper,
    made: Generated | None,
    on_record: Callable[[], None] = lambda: None,
) -> SetReport:
    """Choose from what stayed, write it and the report, and return that; `on_record` may raise to stop."""
    fields = [source.dataset.field for source in config.sources]
    weights = [source.weight for source in config.sources]
    if config.generate is not None:
        fields.append(GENERATED)
        weights.append(config.generate.spec.weight)
    indices = chosen(keeper.parts, weights, fields, config.max_records, config.seed)
    hashes = [question_hash(keeper.record(index)) for index in indices]
    stayed, taken = Counter(keeper.parts), Counter(keeper.parts[index] for index in indices)
    report = SetReport(
        read=keeper.read,
        dropped=keeper.dropped,
        parts=[(name, stayed[part], taken[part]) for part, name in enumerate(fields)],
        generation=config.generate.spec if config.generate is not None else None,
        generated=made,
        kinds=kinds_of(keeper.kinds, indices),
    )
    with ExitStack() as stack:
        files: dict[str, BinaryIO] = {}
        for index, held_out in zip(indices, is_held_out(hashes, config.held_out_fraction), strict=True):
            on_record()
            part = HELD_OUT_PART if held_out else TRAINING_PART
            if part not in files:
                (directory / part).mkdir()
                files[part] = stack.enter_context((directory / part / RECORDS_FILE).open("wb"))
            files[part].write(keeper.line(index))
            report.count(keeper.record(index), held_out=held_out)
    write_file(directory / REPORT_FILE, report.document())
    return report
