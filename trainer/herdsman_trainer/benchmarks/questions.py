"""Multiple-choice questions in the files of C-Eval, CMMLU and MMLU: CSV, or the same columns as JSON lines."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from herdsman.api.v1alpha1.evaluation_tasks import MultipleChoice, QuestionFormat
from herdsman_trainer.benchmarks.archives import opened_questions
from herdsman_trainer.errors import BadInput
from herdsman_trainer.text_files import read_characters
from herdsman_trainer.whole_files import read_json_records

LETTERS = ("A", "B", "C", "D")
COLUMNS = ("question", *LETTERS, "answer")
"""In this order in MMLU's files, which have no header; elsewhere the header says it, in large or small letters."""
SUFFIXES = (".csv", ".jsonl", ".json")
PUBLISHED = (*SUFFIXES, ".zip", ".tar", ".tgz")
"""With the archives they are published in, of which a tar may be packed."""
FOLDERS = {"Validation": "val", "Test": "test"}
DEV = "dev"
"""The folder with the examples."""
LONGEST_CELL = 1 << 20


@dataclass(frozen=True, slots=True)
class Question:
    """One question; texts are as they are written, not even blanks at their ends are taken away."""

    text: str
    choices: tuple[str, str, str, str]
    answer: str
    line: int


@dataclass(frozen=True)
class SubjectQuestions:
    """The questions of one subject and the examples that are shown before each of them."""

    name: str
    questions: Sequence[Question]
    examples: Sequence[Question]
    file: Path


def read_subjects(source: Path, asked: MultipleChoice, scratch: Path) -> list[SubjectQuestions]:
    """Read the subjects of a directory or an archive, which is unpacked into `scratch`, sorted by name.

    BadInput names the file and line of what is wrong: a folder, a subject, a column or an answer that is missing.
    """
    split = asked.split or ("Validation" if asked.format == "CEval" else "Test")
    folder = FOLDERS[split]
    directory = opened_questions(source, folder, SUFFIXES, scratch)
    there = _subject_files(directory, folder, asked.format)
    wanted = sorted(dict.fromkeys(asked.subjects)) or sorted(there)
    found = []
    for name in wanted:
        if name not in there:
            some = ", ".join(sorted(there)[:6])
            raise BadInput(
                f"There are no questions on the subject {name!r}.",
                file=str(directory / folder),
                hint=f"Correct multipleChoice.subjects; the folder has {some}{' and more' if len(there) > 6 else ''}.",
            )
        questions = _read(there[name], asked.format)[: asked.max_questions]
        examples = _examples(directory, name, asked) if asked.few_shot else []
        found.append(SubjectQuestions(name, questions, examples, there[name]))
    return found


def _examples(directory: Path, name: str, asked: MultipleChoice) -> list[Question]:
    files = _subject_files(directory, DEV, asked.format)
    if name not in files:
        message = f"There are no examples for the subject {name!r}, and fewShot is {asked.few_shot}."
        raise BadInput(message, file=str(directory / DEV), hint="Bring the file, or set multipleChoice.fewShot to 0.")
    examples = _read(files[name], asked.format)
    if len(examples) < asked.few_shot:
        message = f"The file has {len(examples)} examples, and fewShot is {asked.few_shot}."
        raise BadInput(message, file=str(files[name]), hint=f"Set multipleChoice.fewShot to {len(examples)}.")
    return examples[: asked.few_shot]


def _subject_files(directory: Path, folder: str, form: QuestionFormat) -> dict[str, Path]:
    """Return the files of a folder by their subjects; BadInput where there are none."""
    ending = "" if form == "CMMLU" else f"_{folder}"
    where = directory / folder
    if not where.is_dir():
        names = sorted(entry.name for entry in directory.iterdir()) if directory.is_dir() else []
        holds = f"it holds {', '.join(names[:6])}" if names else "it is empty, or no directory"
        hint = f"The files of {form} lie in folders: {folder}/SUBJECT{ending}.csv, and {DEV} for examples."
        raise BadInput(f"There is no folder {folder!r} here; {holds}.", file=str(directory), hint=hint)
    found = {}
    for path in sorted(where.iterdir()):
        if path.suffix.lower() in SUFFIXES and path.stem.endswith(ending) and not path.name.startswith("."):
            found[path.stem.removesuffix(ending)] = path
    if not found:
        hint = f"The files of {form} are called {folder}/SUBJECT{ending}.csv."
        raise BadInput(f"The folder has no file of {form}.", file=str(where), hint=hint)
    return found


def _read(path: Path, form: QuestionFormat) -> list[Question]:
    rows = _csv_rows(path, form) if path.suffix.lower() == ".csv" else _json_rows(path)
    questions = [_question(path, line, row) for line, row in rows]
    if not questions:
        raise BadInput("The file has no questions.", file=str(path), hint="Copy it again, or leave the subject out.")
    return questions


def _csv_rows(path: Path, form: QuestionFormat) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Yield (line, cells by column) of a CSV file."""
    text = io.StringIO("".join(read_characters(path)), newline="")
    reader = csv.reader(text, strict=True)
    columns: Sequence[str] | None = COLUMNS if form == "MMLU" else None
    start = 1
    try:
        for row in reader:
            line, start = start, reader.line_num + 1
            if not any(cell.strip() for cell in row):
                continue
            if columns is None:
                columns = [name.strip() for name in row]
                _check_columns(path, line, columns)
                continue
            if len(row) < len(columns):
                hint = 'Each row needs a cell for each column; a comma inside of a cell wants quotes: "a, b".'
                raise BadInput(
                    f"The row has {len(row)} cells, and there are {len(columns)} columns ({', '.join(columns)}).",
                    file=str(path),
                    line=line,
                    hint=hint,
                )
            yield line, _by_column(zip(columns, row, strict=False))
    except csv.Error as error:
        hint = "Quotes have to be closed, and doubled inside of a quoted cell."
        raise BadInput(f"Malformed CSV: {error}.", file=str(path), line=start, hint=hint) from error


def _json_rows(path: Path) -> Iterator[tuple[int, Mapping[str, str]]]:
    for record in read_json_records(path):
        _check_columns(path, record.line, list(record.value))
        yield record.line, _by_column((name, str(value)) for name, value in record.value.items())


def _by_column(cells: "Iterator[tuple[str, str]] | zip[tuple[str, str]]") -> dict[str, str]:
    return {_plain(name): value for name, value in cells}


def _check_columns(path: Path, line: int, columns: Sequence[str]) -> None:
    there = {_plain(name) for name in columns}
    missing = [name for name in COLUMNS if name not in there]
    if not missing:
        return
    what = f"no column {missing[0]!r}" if len(missing) == 1 else f"no columns {', '.join(map(repr, missing))}"
    if missing == ["answer"]:
        hint = "The accuracy needs answers: C-Eval's are published for its folder val (split: Validation) only."
    else:
        hint = f"The first line names the columns: {', '.join(COLUMNS)}."
    named = ", ".join(columns) or "none"
    raise BadInput(f"There is {what}; there are {named}.", file=str(path), line=line, hint=hint)


def _plain(column: str) -> str:
    """Return a column's name as it stands in COLUMNS: CMMLU writes Question and Answer."""
    return column if column in LETTERS else column.strip().lower()


def _question(path: Path, line: int, row: Mapping[str, str]) -> Question:
    answer = row["answer"].strip()
    if answer not in LETTERS:
        hint = "Write one of the letters A, B, C and D."
        raise BadInput(f"The answer is {answer[:40]!r}.", file=str(path), line=line, hint=hint)
    if not row["question"].strip():
        raise BadInput("The question is empty.", file=str(path), line=line, hint="Write it, or remove the row.")
    if len(row["question"]) > LONGEST_CELL:
        raise BadInput("The question is longer than a mebibyte.", file=str(path), line=line, hint="Close its quotes.")
    a, b, c, d = (row[letter] for letter in LETTERS)
    return Question(row["question"], (a, b, c, d), answer, line)
