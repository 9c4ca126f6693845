"""Trainings on datasets from anywhere, mixed, over several attempts: one report, and never other data in between."""

import gzip
import json
import os
import re
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import training_configs as build
from herdsman.api.job_config import DatasetInput, Preflight, RemoteSource
from herdsman_trainer.artifacts import read_manifest
from herdsman_trainer.data import opening
from herdsman_trainer.downloads.blob_store import STORE
from herdsman_trainer.downloads.patience import Patience
from herdsman_trainer.engines import PlainEngine
from herdsman_trainer.errors import BadInput
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.steps import pretrain, sft
from ranks import in_child
from remote_server import COMMIT, Repository, serving, sha256
from tiny import CHINESE, ENGLISH

pytestmark = pytest.mark.usefixtures("one_thread")

LINES = [line for line in ENGLISH.splitlines() if line]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model, two corpora, two sets of records."""
    root = tmp_path_factory.mktemp("home")
    build.base_model(root)
    build.corpus(root)
    (root / "second").mkdir()
    (root / "second" / "a.jsonl.gz").write_bytes(
        gzip.compress("\n".join(json.dumps({"text": line}) for line in (CHINESE + ENGLISH).splitlines()).encode())
    )
    build.records(root)
    (root / "more").mkdir()
    (root / "more" / "a.jsonl").write_text(
        "\n".join(json.dumps({"instruction": f"Tell {n}.", "output": LINES[n % 5]}) for n in range(12))
    )
    return root


@pytest.fixture
def remote():
    with serving() as server:
        yield server


def run(config, step=pretrain):
    torch.set_num_threads(1)
    context = RunContext(config)
    try:
        return step.run(config, context)
    finally:
        context.close()


def one_step(home, root, datasets, attempt=1):
    return build.pretrain_config(root, model=home / "model", datasets=datasets, max_steps=1, attempt=attempt)


def mixed(home, *weights, names=("corpus", "second")):
    return [
        build.a_dataset(home / name, f"spec.datasets[{place}]", weight=weight)
        for place, (name, weight) in enumerate(zip(names, weights, strict=True))
    ]


def weights(root, work):
    return load_file(root / work / "artifact" / "adapter_model.safetensors")


def digest_of(artifact):
    return read_manifest(artifact).artifact.digest


def report(root, work):
    return json.loads((root / work / "data-report.json").read_text())


class TestMixtures:
    def test_a_killed_run_on_a_mixture_ends_with_the_same_weights_bit_by_bit(self, home):
        def config(work, attempt=1):
            return build.pretrain_config(home, work=work, datasets=mixed(home, 3, 1), attempt=attempt)

        def killed():
            original, count = PlainEngine.update, iter(range(1, 100))

            def update(self, rate):
                if next(count) == 5:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(self, rate)

            PlainEngine.update = update
            run(config("mixed-killed"))

        assert in_child(lambda: run(config("mixed"))) == 0
        assert in_child(killed) == -signal.SIGKILL
        assert in_child(lambda: run(config("mixed-killed", 2))) == 0
        one, other = (
            load_file(home / work / "artifact/adapter_model.safetensors") for work in ("mixed", "mixed-killed")
        )
        assert all(torch.equal(one[name], other[name]) for name in one)

    def test_other_weights_do_not_continue_old_checkpoints(self, home):
        run(build.pretrain_config(home, work="weights", datasets=mixed(home, 3, 1), max_steps=2))
        (home / "weights" / "artifact").rename(home / "weights-artifact")
        with pytest.raises(BadInput, match="another recipe"):
            run(build.pretrain_config(home, work="weights", datasets=mixed(home, 1, 3), attempt=2, max_steps=2))

    def test_instructions_are_mixed_as_well(self, home):
        datasets = mixed(home, 1, 3, names=("records", "more"))
        artifact = run(build.sft_config(home, work="mixed-sft", datasets=datasets), sft)
        assert artifact.kind == "adapter"
        first, second = report(home, "mixed-sft")["datasets"]
        assert (first["weight"], second["weight"]) == (1, 3)
        assert first["passes"] == pytest.approx(4 * 4 * 0.25 / first["sequences"], abs=1e-3)
        assert second["passes"] == pytest.approx(4 * 4 * 0.75 / second["sequences"], abs=1e-3)

    def test_a_dataset_that_has_not_one_block_to_give_is_refused(self, home, tmp_path):
        (home / "tiny").mkdir()
        (home / "tiny" / "a.txt").write_text("a\n")
        datasets = mixed(home, 3, 1, names=("corpus", "tiny"))
        with pytest.raises(BadInput, match=r"spec.datasets\[1\] has a weight and not a single block of 32 tokens"):
            run(build.pretrain_config(home, work="too-small", datasets=datasets))

    def test_tokens_end_a_run_as_steps_do(self, home):
        run(build.pretrain_config(home, work="budget", max_steps=None, max_tokens=2 * 4 * 32 + 1))
        steps = {item.name: item.value for item in read_manifest(home / "budget" / "artifact").report}["steps"]
        assert steps == "3"


class TestReport:
    def test_the_report_is_in_the_workspace_in_the_artifact_and_in_the_status(self, home):
        run(build.pretrain_config(home, work="report", datasets=mixed(home, 3, 1), max_steps=2))
        found = report(home, "report")
        assert [each["dataset"] for each in found["datasets"]] == ["volume corpus", "volume second"]
        first, second = found["datasets"]
        assert [file["name"] for file in first["files"]] == ["a.txt", "b.txt"]
        assert first["files"][1]["sha256"] == sha256((home / "corpus" / "b.txt").read_bytes())
        assert first["kept"] == 3 * len(LINES)
        assert first["duplicates"] == len(LINES)
        assert second["dropped"] == {"empty text": 2}
        assert second["read"] == second["kept"] + 2 == 2 * len(LINES) + 2
        assert second["duplicates"] == 2 * len(LINES), "found across datasets"
        total = found["total"]
        assert total["tokens"] == first["tokens"] + second["tokens"]
        assert total["tokensPerCharacter"] == pytest.approx(total["tokens"] / total["characters"], abs=1e-4)
        progress = json.loads((home / "report" / "progress.json").read_text())
        assert progress["data"] == {
            "documents": total["kept"],
            "heldOut": total["heldOut"],
            "tokens": total["tokens"],
            "characters": total["characters"],
            "tokensPerCharacter": f"{total['tokensPerCharacter']:g}",
            "truncated": 0,
            "dropped": 2,
            "duplicates": 3 * len(LINES),
        }
        artifact = home / "report" / "artifact"
        for name in ("data-report.json", "data-report.md"):
            assert (artifact / name).read_bytes() == (home / "report" / name).read_bytes()
            assert name in read_manifest(artifact).files
        page = (artifact / "data-report.md").read_text()
        assert "| volume second |" in page
        assert "2 empty text" in page
        assert str(home) not in page + (artifact / "data-report.json").read_text()

    def test_what_became_of_records(self, home, tmp_path):
        values = [{"instruction": "Say.", "output": line} for line in (*LINES, "long " * 200, "", LINES[0])]
        (home / "odd").mkdir()
        (home / "odd" / "a.json").write_text(json.dumps(values))
        config = build.sft_config(
            home, work="odd-run", dataset=home / "odd", max_steps=1, max_length=256, duplicates="Drop"
        )
        run(config, sft)
        (found,) = report(home, "odd-run")["datasets"]
        assert (found["read"], found["kept"]) == (len(LINES) + 3, len(LINES) + 1)
        assert (found["truncated"], found["duplicates"]) == (1, 1)
        assert found["dropped"] == {"empty output": 1, "duplicate": 1}


class TestChanges:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda path: (path / "a.txt").write_text("other text\n" * 99), "a.txt was changed"),
            (lambda path: (path / "b.txt").unlink(), "b.txt is gone"),
            (lambda path: (path / "c.txt").write_text("more\n"), "c.txt is new"),
        ],
    )
    @pytest.mark.parametrize("checkpoint", [True, False])
    def test_a_dataset_that_changes_between_attempts_is_refused_with_the_file(
        self, home, tmp_path, change, words, checkpoint
    ):
        source = build.corpus(tmp_path)
        config = build.pretrain_config(tmp_path, model=home / "model", max_steps=2)
        if checkpoint:
            run(config)
            (tmp_path / "work" / "artifact").rename(tmp_path / "artifact")
        else:
            preflight = config.model_copy(update={"preflight": Preflight(device="cpu", world_size=1)})
            context = RunContext(preflight)
            pretrain.preflight(preflight, context)
            context.close()
        before = {path.name: path.read_bytes() for path in source.iterdir()}
        change(source)
        again = build.pretrain_config(tmp_path, model=home / "model", max_steps=2, attempt=2)
        with pytest.raises(BadInput) as caught:
            run(again)
        assert f"spec.dataset is not what it was when this run began: {words}" in caught.value.message
        assert caught.value.reason == "ChecksumMismatch"
        assert "new resource" in caught.value.hint
        for path in source.iterdir():
            path.unlink()
        for name, content in before.items():
            (source / name).write_bytes(content)
        run(again)  # put back, it goes on

    @pytest.mark.parametrize(
        ("sha256", "words"),
        [
            ({"a.txt": "0" * 64}, "a.txt has the SHA-256"),
            ({"z.txt": "0" * 64}, "names z.txt, which is not among the files"),
        ],
    )
    def test_a_file_that_is_not_what_the_spec_says_is_refused(self, home, tmp_path, sha256, words):
        dataset = build.a_dataset(home / "corpus", sha256=sha256)
        with pytest.raises(BadInput, match=words):
            run(build.pretrain_config(tmp_path, model=home / "model", datasets=[dataset]))


class TestRemote:
    """Hub, bucket and web, as models are imported from them."""

    @pytest.fixture(autouse=True)
    def _no_sleep(self, monkeypatch):
        monkeypatch.setattr(opening, "Patience", lambda run: Patience(run, sleep=lambda _: None))

    @staticmethod
    def dataset(source, field="spec.dataset", **options):
        return DatasetInput(field=field, label="remote", remote=RemoteSource.model_validate(source), **options)

    @staticmethod
    def served(remote):
        text = ((ENGLISH + CHINESE) * 2).encode()
        files = {"data/zh.txt.gz": gzip.compress(text), "README.md": b"# About", "data/more.jsonl": b'{"text": "more"}'}
        remote.repositories["owner/texts"] = Repository(files, lfs={"data/zh.txt.gz"}, dataset=True)
        remote.buckets["texts"] = {f"zh/{name}": content for name, content in files.items()}
        remote.files["/zh.txt.gz"] = files["data/zh.txt.gz"]
        web = {"url": f"{remote.url}/zh.txt.gz", "sha256": sha256(files["data/zh.txt.gz"])}
        return {
            "hub": {"hub": {"repository": "owner/texts", "revision": COMMIT, "endpoint": remote.url}},
            "s3": {"s3": {"bucket": "texts", "prefix": "zh", "endpoint": remote.url}},
            "http": {"http": {"files": [web]}},
        }

    @pytest.mark.parametrize("where", ["hub", "s3", "http"])
    def test_a_dataset_is_downloaded_once_and_later_attempts_ask_nobody(self, home, tmp_path, remote, where):
        source = self.served(remote)[where]

        def config(attempt):
            datasets = [self.dataset(source)]
            return build.pretrain_config(
                tmp_path, model=home / "model", datasets=datasets, max_steps=1, attempt=attempt
            )

        run(config(1))
        names = [file["name"] for file in report(tmp_path, "work")["datasets"][0]["files"]]
        assert names == (["zh.txt.gz"] if where == "http" else ["more.jsonl", "zh.txt.gz"])
        assert not (tmp_path / "work" / ".downloaded" / "0").exists()
        assert len(list((tmp_path / STORE / "sha256").iterdir())) == len(names)
        (tmp_path / "work" / "artifact").rename(tmp_path / "first")
        remote.requests.clear()
        run(config(2))
        assert remote.requests == []
        assert (
            read_manifest(tmp_path / "first").artifact.digest
            == read_manifest(tmp_path / "work/artifact").artifact.digest
        )

    def test_a_lost_cache_is_made_again_from_what_is_kept(self, home, tmp_path, remote):
        def config(attempt):
            datasets = [self.dataset(self.served(remote)["hub"])]
            return build.pretrain_config(
                tmp_path, model=home / "model", datasets=datasets, max_steps=1, attempt=attempt
            )

        run(config(1))
        (tmp_path / "work" / "artifact").rename(tmp_path / "first")
        (entry,) = (tmp_path / "work" / "cache" / "tokens").iterdir()
        (entry / "train.bin").write_bytes(b"damaged")
        remote.requests.clear()
        run(config(2))
        assert remote.requests == [], "the downloads were kept"

    def test_downloads_that_are_not_kept_go_when_they_are_tokenised(self, home, tmp_path, remote):
        dataset = self.dataset(self.served(remote)["hub"], keep_downloads=False)
        run(one_step(home, tmp_path, [dataset]))
        assert list((tmp_path / STORE / "sha256").iterdir()) == []

    def test_remote_datasets_are_mixed_with_those_on_a_volume(self, home, tmp_path, remote):
        sources = self.served(remote)
        datasets = [
            build.a_dataset(home / "corpus", "spec.datasets[0]", weight=2),
            self.dataset(sources["s3"], "spec.datasets[1]", weight=1),
            self.dataset(sources["http"], "spec.datasets[2]", weight=1),
        ]
        run(one_step(home, tmp_path, datasets))
        assert [each["weight"] for each in report(tmp_path, "work")["datasets"]] == [2, 1, 1]

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"revision": "f" * 40}, "spec.dataset.hub.revision: the repository has no commit"),
            ({"repository": "owner/other"}, "Correct spec.dataset.hub.repository"),
            ({"files": ["*.csv"]}, r"spec.dataset.hub.files\[0\]: nothing there matches"),
            ({"files": ["README.md"]}, "README.md is no"),
        ],
    )
    def test_what_a_hub_does_not_have_is_refused_by_the_field_of_the_dataset(
        self, home, tmp_path, remote, change, words
    ):
        source = self.served(remote)["hub"]
        dataset = self.dataset({"hub": {**source["hub"], **change}})
        with pytest.raises(BadInput) as caught:
            run(one_step(home, tmp_path, [dataset]))
        assert re.search(words, str(caught.value))

    def test_a_model_repository_is_no_dataset(self, home, tmp_path, remote):
        source = self.served(remote)["hub"]
        remote.repositories["owner/texts"] = replace(remote.repositories["owner/texts"], dataset=False)
        with pytest.raises(BadInput, match="no such repository"):
            run(one_step(home, tmp_path, [self.dataset(source)]))

    def test_an_object_of_a_bucket_is_checked_against_its_digest(self, home, tmp_path, remote):
        dataset = self.dataset(self.served(remote)["s3"], sha256={"data/more.jsonl": "0" * 64})
        with pytest.raises(BadInput) as caught:
            run(one_step(home, tmp_path, [dataset]))
        assert caught.value.reason == "ChecksumMismatch"
