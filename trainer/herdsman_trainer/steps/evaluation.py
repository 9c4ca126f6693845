"""Evaluation: every task is put to every model, and the figures are compared in one report.

Results are kept as they come, so an attempt after a kill does only what is missing and writes the same report to the
last bit. Whether thresholds are met the operator decides from the figures; the report is published in either case.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from herdsman.api.job_config import EvaluationConfig, Input
from herdsman.api.v1alpha1.evaluation_tasks import Task
from herdsman.api.v1alpha1.status import Artifact
from herdsman_trainer.artifacts import open_input
from herdsman_trainer.benchmarks import prompt_files, questions
from herdsman_trainer.benchmarks.answer_tasks import SamplesWork
from herdsman_trainer.benchmarks.candidate import Candidate
from herdsman_trainer.benchmarks.choice_task import ChoiceWork
from herdsman_trainer.benchmarks.figures import draw_all, status_figures, threshold_documents
from herdsman_trainer.benchmarks.journal import JOURNAL_FILE, Journal
from herdsman_trainer.benchmarks.judge_client import JudgeClient, judge_key
from herdsman_trainer.benchmarks.judge_task import JudgeWork, sittings
from herdsman_trainer.benchmarks.report import Document, report_document
from herdsman_trainer.benchmarks.report_html import page
from herdsman_trainer.benchmarks.report_markdown import markdown
from herdsman_trainer.benchmarks.text_tasks import PerplexityWork, VocabularyWork
from herdsman_trainer.benchmarks.work import Outcome, TaskWork
from herdsman_trainer.corpora import SUFFIXES as TEXTS
from herdsman_trainer.data.opening import dataset_here
from herdsman_trainer.downloads.fetching import Downloaded
from herdsman_trainer.errors import BadInput
from herdsman_trainer.ownership import check_attempt
from herdsman_trainer.run_context import RunContext

REPORT, PAGE, DOCUMENT, RECORDS = "report.md", "report.html", "report.json", "records"
UNPACKED = "unpacked"
"""In the workspace while it runs: archives of questions."""
SITTING_WEIGHT = 2000.0
"""Asking a judge takes as long as predicting so many characters, more or less."""
MOST_JUDGED = 16
"""Digests that a report's contract holds."""
DECIDING = ("herdsman", "torch", "transformers", "tokenizers", "sentencepiece")
"""Packages that results follow from; with another release an evaluation begins anew."""


def run(config: EvaluationConfig, context: RunContext) -> Artifact:
    """Measure, compare, report, publish.

    BadInput names the file, task or model that is wrong; all files are read before the first model is loaded.
    """
    prepared = _prepare(config, context)
    journal = Journal(context.workspace / JOURNAL_FILE, _fingerprint(config, prepared.read))
    progress = _Progress(context, _weight(prepared))
    for candidate in prepared.candidates:
        for work in prepared.works:
            _measure(work, candidate, journal, progress, context)
        candidate.release()
    results = {work.task.name: _results(work, prepared.candidates, journal) for work in prepared.works}
    models = [candidate.name for candidate in prepared.candidates]
    outcomes: dict[str, Outcome] = {}
    for work in prepared.works:
        mine = results[work.task.name]
        if isinstance(work, JudgeWork):
            outcomes[work.task.name] = _judge(work, models, mine, journal, progress, context)
        else:
            outcomes[work.task.name] = work.outcome(models, mine)

    context.report(activity="drawing confidence intervals", done=1.0)
    draws = draw_all(outcomes, config.resamples, config.seed)
    thresholds = threshold_documents(config.thresholds, draws, models)
    settings = {"resamples": config.resamples, "seed": config.seed}
    name = config.owner.name
    document = report_document(name, prepared.candidates, prepared.works, outcomes, draws, thresholds, settings)
    _write(context.work_dir, document, outcomes)
    context.report(activity="publishing", done=1.0)
    known = [digest for candidate in prepared.candidates for digest in candidate.digests if digest is not None]
    judged = list(dict.fromkeys(known))
    artifact = context.publish(
        kind="report",
        source_dir=context.work_dir,
        parents=judged if len(judged) <= MOST_JUDGED else [],  # all or none: who is not among them was not seen
        inputs=_known_inputs(config, prepared.downloads),
        report=status_figures(config.thresholds, outcomes, draws, models),
    )
    journal.remove()
    for downloaded in prepared.downloads:
        downloaded.release()
    return artifact


def preflight(config: EvaluationConfig, context: RunContext) -> None:
    """Check everything that can be checked without the weights, on a CPU."""
    _prepare(config, context)


@dataclass(frozen=True)
class _Prepared:
    candidates: Sequence[Candidate]
    works: Sequence[TaskWork]
    read: Sequence[Path]
    """All files and directories that results follow from."""
    downloads: Sequence[Downloaded]


def _prepare(config: EvaluationConfig, context: RunContext) -> _Prepared:
    """Open and check all inputs; BadInput says which task or model is wrong."""
    context.report(activity="checking the inputs", done=0.0)
    for task in config.tasks:
        if task.judge is not None:
            judge_key(task.judge.endpoint, os.environ)
    paths = {source.field: open_input(source, config.verify_inputs) for source in _models(config)}
    candidates = []
    for asked in config.models:
        context.raise_if_stopped()
        directories = [paths[source.field] for source in (asked.model, *asked.adapters)]
        candidates.append(Candidate(asked, directories, config.device))
    works = []
    files: list[Path] = []
    downloads: list[Downloaded] = []
    for place, task in enumerate(config.tasks):
        context.report(activity=f"reading the files of {task.name}")
        source = None
        if (dataset := config.datasets.get(task.name)) is not None:
            source, downloaded = dataset_here(place, dataset, context, _suffixes(task))
            downloads += [downloaded] if downloaded is not None else []
            files.append(source)
        work = _work(task, source, context.workspace / UNPACKED / task.name)
        for candidate in candidates:
            context.raise_if_stopped()
            try:
                work.check(candidate)
            except BadInput as error:
                message = f"Task {task.name}, model {candidate.name}: {error.message}"
                raise BadInput(message, file=error.file, line=error.line, hint=error.hint) from error
        works.append(work)
    shutil.rmtree(context.workspace / UNPACKED, ignore_errors=True)  # all of it is read
    return _Prepared(candidates, works, [*paths.values(), *files], downloads)


def _suffixes(task: Task) -> tuple[str, ...]:
    """Return what the names of a task's files end in."""
    if task.multiple_choice is not None:
        return questions.PUBLISHED
    return TEXTS if task.perplexity is not None or task.tokens_per_character is not None else prompt_files.SUFFIXES


def _work(task: Task, source: Path | None, scratch: Path) -> TaskWork:
    if task.samples is not None:
        return SamplesWork(task, source)
    assert source is not None, "all other tasks read files"
    if task.perplexity is not None:
        return PerplexityWork(task, source)
    if task.tokens_per_character is not None:
        return VocabularyWork(task, source)
    return ChoiceWork(task, source, scratch) if task.multiple_choice is not None else JudgeWork(task, source)


def _models(config: EvaluationConfig) -> Iterator[Input]:
    for asked in config.models:
        yield from (asked.model, *asked.adapters)


def _known_inputs(config: EvaluationConfig, downloads: Sequence[Downloaded]) -> dict[str, str]:
    """Return the digests of the artifacts and downloads that were evaluated, by the fields that name them."""
    here = [*_models(config), *(each.source for each in config.datasets.values() if each.source is not None)]
    known = {source.field: source.artifact.digest for source in here if source.artifact is not None}
    for downloaded in downloads:
        known |= downloaded.inputs
    return known


class _Progress:
    """How much of the work is done."""

    def __init__(self, context: RunContext, total: float) -> None:
        self._context = context
        self._total = max(total, 1.0)
        self._done = 0.0

    def begins(self, activity: str) -> None:
        """Say what is being done."""
        self._context.report(activity=activity, done=self._done / self._total)

    def advanced(self, weight: float) -> None:
        """Count work that is done, now or by an earlier attempt."""
        self._done += weight
        self._context.report(done=self._done / self._total)


def _weight(prepared: _Prepared) -> float:
    models = len(prepared.candidates)
    shards = sum(shard.weight for work in prepared.works for shard in work.shards) * models
    judged = sum(len(sittings(len(work.asked), models)) for work in prepared.works if isinstance(work, JudgeWork))
    return shards + SITTING_WEIGHT * judged


def _measure(work: TaskWork, candidate: Candidate, journal: Journal, progress: _Progress, context: RunContext) -> None:
    """Do the shards of a task that the journal does not have."""
    for shard in work.shards:
        key = _key(work, candidate.name, shard.key)
        if key not in journal.results:
            context.raise_if_stopped()
            progress.begins(f"{work.task.name}: {candidate.name}")
            results = shard.run(candidate, context.raise_if_stopped)
            check_attempt(context.workspace, context.config.attempt)
            journal.add({key: results})
        progress.advanced(shard.weight)


def _results(work: TaskWork, candidates: Sequence[Candidate], journal: Journal) -> list[list[Any]]:
    """Return the results of a task by model and unit."""
    return [
        [result for shard in work.shards for result in journal.results[_key(work, candidate.name, shard.key)]]
        for candidate in candidates
    ]


def _judge(
    work: JudgeWork,
    models: Sequence[str],
    results: Sequence[Sequence[Any]],
    journal: Journal,
    progress: _Progress,
    context: RunContext,
) -> Outcome:
    """Have the answers judged, as far as the journal does not have it."""
    judge = work.task.judge
    assert judge is not None
    begins = _key(work, "judge", "")
    known = {key.removeprefix(begins): value for key, value in journal.results.items() if key.startswith(begins)}
    progress.begins(f"{work.task.name}: asking {judge.endpoint.model}")
    progress.advanced(SITTING_WEIGHT * len(known))
    client = JudgeClient(judge.endpoint, judge_key(judge.endpoint, os.environ), check=context.raise_if_stopped)
    with closing(client):
        for key, verdict in work.verdicts(results, known, client, context.raise_if_stopped):
            check_attempt(context.workspace, context.config.attempt)
            journal.add({f"{begins}{key}": verdict})
            known[key] = dict(verdict)
            progress.advanced(SITTING_WEIGHT)
    return work.judged(models, results, known)


def _key(work: TaskWork, model: str, shard: str) -> str:
    return f"{work.task.name}/{model}/{shard}"


def _write(directory: Path, document: Document, outcomes: Mapping[str, Outcome]) -> None:
    text = json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False)
    (directory / DOCUMENT).write_text(text + "\n", encoding="utf-8")
    (directory / REPORT).write_text(markdown(document), encoding="utf-8")
    (directory / PAGE).write_text(page(document), encoding="utf-8")
    records = directory / RECORDS
    records.mkdir()
    for task, outcome in outcomes.items():
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in outcome.records)
        if outcome.records:
            (records / f"{task}.jsonl").write_text("".join(lines), encoding="utf-8")


def _fingerprint(config: EvaluationConfig, inputs: Sequence[Path]) -> str:
    """Return a digest of all that results follow from; not of thresholds and intervals, which are made of results."""
    asked = config.model_dump(mode="json", include={"models", "tasks", "device"})
    files = [
        [str(path), path.stat().st_size, path.stat().st_mtime_ns]
        for each in inputs
        for path in (each, *sorted(each.rglob("*")))
        if path.is_file()
    ]
    releases = [version(name) for name in DECIDING]
    return sha256(json.dumps([asked, files, releases]).encode()).hexdigest()
