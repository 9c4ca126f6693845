"""Records that an InstructionSet takes from a hub, a bucket or the web."""

import json

import pytest

from herdsman.api.job_config import RecordSource
from herdsman_trainer.artifacts import read_manifest
from herdsman_trainer.data import opening
from herdsman_trainer.downloads.blob_store import STORE
from herdsman_trainer.downloads.patience import Patience
from herdsman_trainer.errors import BadInput
from instruction_api import config_of, given, lines, make, many, set_directory, written
from remote_server import COMMIT, Repository, serving, sha256

FIELD = "spec.sources[0].dataset"
RECORDS = many(6)
CONTENT = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS).encode()


@pytest.fixture
def remote(monkeypatch):
    monkeypatch.setattr(opening, "Patience", lambda run: Patience(run, sleep=lambda _: None))
    with serving() as server:
        yield server


def served(remote):
    name = "train/zh.jsonl"
    remote.repositories["zh/records"] = Repository({name: CONTENT, "README.md": b"# About"}, lfs={name}, dataset=True)
    remote.buckets["records"] = {"alpaca/zh.jsonl": CONTENT}
    remote.files["/zh.jsonl"] = CONTENT
    return {
        "hub": {"hub": {"repository": "zh/records", "revision": COMMIT, "endpoint": remote.url}},
        "s3": {"s3": {"bucket": "records", "prefix": "alpaca", "endpoint": remote.url}},
        "http": {"http": {"files": [{"url": f"{remote.url}/zh.jsonl", "sha256": sha256(CONTENT)}]}},
    }


def downloaded(source, **options):
    return RecordSource.model_validate({"dataset": {"field": FIELD, "label": "remote", "remote": source, **options}})


@pytest.mark.parametrize("where", ["hub", "s3", "http"])
def test_records_are_downloaded_cleaned_and_put_on_record(tmp_path, remote, where):
    config = config_of(tmp_path, sources=[downloaded(served(remote)[where], keepDownloads=False)])
    make(config)
    assert lines(config) == RECORDS
    known = read_manifest(set_directory(config)).inputs
    assert sha256(CONTENT) in [digest for field, digest in known.items() if field.startswith(f"{FIELD}.{where}/")]
    assert FIELD in known
    assert list((tmp_path / STORE / "sha256").iterdir()) == [], "they are not kept"


def test_records_from_elsewhere_and_from_a_volume_are_one_set(tmp_path, remote):
    here = many(9)[6:]
    sources = [downloaded(served(remote)["s3"]), given(written(tmp_path / "in", here), place=1)]
    config = config_of(tmp_path, sources=sources)
    make(config)
    assert lines(config) == [*RECORDS, *here]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"revision": "f" * 40}, r"spec\.sources\[0\]\.dataset\.hub\.revision: the repository has no commit"),
        ({"repository": "zh/other"}, r"spec\.sources\[0\]\.dataset\.hub\.repository"),
        ({"files": ["*.parquet"]}, r"spec\.sources\[0\]\.dataset\.hub\.files\[0\]: nothing there matches"),
    ],
)
def test_what_a_hub_does_not_have_is_refused_by_its_field(tmp_path, remote, change, words):
    source = served(remote)["hub"]
    with pytest.raises(BadInput, match=words):
        make(config_of(tmp_path, sources=[downloaded({"hub": source["hub"] | change})]))


def test_a_file_on_a_volume_is_checked_against_its_digest(tmp_path):
    source = given(written(tmp_path / "in", many(3)))
    wrong = source.dataset.model_copy(update={"sha256": {"records.jsonl": "0" * 64}})
    with pytest.raises(BadInput, match=r"records\.jsonl has the SHA-256 .* and 0000"):
        make(config_of(tmp_path, sources=[source.model_copy(update={"dataset": wrong})]))
