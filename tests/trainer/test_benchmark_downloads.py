"""Text and questions that an Evaluation takes from a hub, a bucket or the web."""

import io
import zipfile

import pytest

from evaluations import answered, bigram_model, dataset, evaluate, evaluation_config, metric_of, question_files, task
from herdsman.api.job_config import DatasetInput, RemoteSource
from herdsman_trainer.artifacts import read_manifest
from herdsman_trainer.data import opening
from herdsman_trainer.downloads.blob_store import STORE
from herdsman_trainer.downloads.patience import Patience
from herdsman_trainer.errors import BadInput
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.steps import evaluation
from remote_server import COMMIT, Repository, serving, sha256

FIELD = "spec.tasks[0].multipleChoice.dataset"
QUIZ = task("quiz", multipleChoice={"dataset": dataset(), "scoring": "FirstToken"})


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Answers B behind a colon."""
    letters = {"A": 0.2, "B": 0.4, "C": 0.1, "D": 0.3}
    return bigram_model(tmp_path_factory.mktemp("toy"), dict.fromkeys(("："[-1], ":", " "), letters))


@pytest.fixture
def remote(monkeypatch):
    monkeypatch.setattr(opening, "Patience", lambda run: Patience(run, sleep=lambda _: None))
    with serving() as server:
        yield server


@pytest.fixture
def archive(tmp_path):
    """C-Eval's archive with one subject, three of four answers B."""
    root = question_files(tmp_path / "questions", {"geography": answered("BBBA")})
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as files:
        for path in sorted(root.rglob("*.csv")):
            files.write(path, path.relative_to(root))
    return packed.getvalue()


def remote_dataset(source, **options):
    return DatasetInput(field=FIELD, label="remote", remote=RemoteSource.model_validate(source), **options)


def served(remote, content):
    remote.repositories["ceval/ceval-exam"] = Repository(
        {"ceval-exam.zip": content, "README.md": b"# About"}, lfs={"ceval-exam.zip"}, dataset=True
    )
    remote.buckets["benchmarks"] = {"ceval/ceval-exam.zip": content}
    remote.files["/ceval-exam.zip"] = content
    return {
        "hub": {"hub": {"repository": "ceval/ceval-exam", "revision": COMMIT, "endpoint": remote.url}},
        "s3": {"s3": {"bucket": "benchmarks", "prefix": "ceval", "endpoint": remote.url}},
        "http": {"http": {"files": [{"url": f"{remote.url}/ceval-exam.zip", "sha256": sha256(content)}]}},
    }


@pytest.mark.parametrize("where", ["hub", "s3", "http"])
def test_questions_are_downloaded_asked_and_put_on_record(tmp_path, toy, remote, archive, where):
    asked = evaluation_config(
        tmp_path, {"toy": toy}, [QUIZ], {"quiz": remote_dataset(served(remote, archive)[where], keep_downloads=False)}
    )
    report, directory = evaluate(asked)
    assert metric_of(report, "quiz", "accuracy", "toy")["value"] == 0.75
    known = read_manifest(directory).inputs
    assert known[f"{FIELD}.{where}/ceval-exam.zip"] == sha256(archive)
    assert list((tmp_path / STORE / "sha256").iterdir()) == [], "they are not kept"


def test_a_preflight_downloads_and_the_evaluation_finds_it_done(tmp_path, toy, remote, archive):
    asked = evaluation_config(tmp_path, {"toy": toy}, [QUIZ], {"quiz": remote_dataset(served(remote, archive)["s3"])})
    context = RunContext(asked)
    evaluation.preflight(asked, context)
    context.close()
    del remote.buckets["benchmarks"]["ceval/ceval-exam.zip"]  # whoever asks again gets nothing
    remote.buckets["benchmarks"]["ceval/other.txt"] = b""
    with pytest.raises(BadInput, match=r"s3: there is no \*\.csv"):
        evaluate(asked)
    remote.buckets["benchmarks"] = {"ceval/ceval-exam.zip": archive}
    remote.requests.clear()
    evaluate(asked)
    assert [request.path for request in remote.requests if "ceval-exam.zip" in request.path] == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"revision": "f" * 40}, r"multipleChoice\.dataset\.hub\.revision: the repository has no commit"),
        ({"repository": "ceval/other"}, r"multipleChoice\.dataset\.hub\.repository"),
        ({"files": ["*.parquet"]}, r"multipleChoice\.dataset\.hub\.files\[0\]: nothing there matches"),
    ],
)
def test_what_a_hub_does_not_have_is_refused_by_the_field_of_the_task(tmp_path, toy, remote, archive, change, words):
    source = served(remote, archive)["hub"]
    with pytest.raises(BadInput, match=words):
        evaluate(
            evaluation_config(tmp_path, {"toy": toy}, [QUIZ], {"quiz": remote_dataset({"hub": source["hub"] | change})})
        )


def test_a_file_on_a_volume_is_checked_against_its_digest(tmp_path, toy):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("abab\n")
    text = task("text", perplexity={"dataset": dataset()})
    known = evaluation_config(tmp_path, {"toy": toy}, [text], {"text": tmp_path / "text"})
    given = known.datasets["text"].model_copy(update={"sha256": {"a.txt": sha256(b"abab\n")}})
    evaluate(known.model_copy(update={"datasets": {"text": given}}))
    other = given.model_copy(update={"sha256": {"a.txt": "0" * 64}})
    with pytest.raises(BadInput, match=r"a\.txt has the SHA-256 .* and 0000"):
        evaluate(known.model_copy(update={"datasets": {"text": other}}))
