"""The second import of a source copies nothing, and an import that ends at any point leaves no wrong result."""

import json
import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from herdsman_trainer.artifacts import verify_artifact
from herdsman_trainer.errors import BadInput, Interrupted, Temporary
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.steps import model_import
from herdsman_trainer.weights import import_records, meta_import, model_copy
from imports import copied, import_model
from tiny import ENGLISH, tiny_llama, tiny_sentencepiece
from tiny_meta import random_llama, write_meta

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("model"), hidden_size=16)


@pytest.fixture
def meta(tmp_path):
    directory = write_meta(tmp_path / "meta", random_llama(400), shards=2)
    return tiny_sentencepiece(directory)


def inode(path):
    return path.stat().st_ino


def refuse_to_write(monkeypatch):
    def written(*_args, **_kwargs):
        raise AssertionError("the second import writes weights")

    monkeypatch.setattr(model_copy, "_copy_weights", written)
    monkeypatch.setattr(meta_import, "write_model_weights", written)


@pytest.mark.parametrize("form", ["safetensors", "meta"])
def test_the_second_import_of_the_same_files_copies_nothing(tmp_path, model, meta, monkeypatch, form):
    source = copied(model, tmp_path / "volume") if form == "safetensors" else meta
    first, one = import_model(tmp_path, source)
    elsewhere = copied(source, tmp_path / "elsewhere")
    refuse_to_write(monkeypatch)
    second, two = import_model(tmp_path, elsewhere, name="second", uid="uid-2")
    assert second.digest == first.digest
    assert inode(one / "model.safetensors") == inode(two / "model.safetensors")
    assert (two / "model.safetensors").stat().st_mode & 0o222 == 0
    verify_artifact(two, "Digests")


@pytest.mark.parametrize("change", ["another type", "another tokenizer", "a changed weight", "another converter"])
def test_an_import_of_something_else_is_written(tmp_path, model, meta, monkeypatch, change):
    _, one = import_model(tmp_path, meta)
    options = {"dtype": "bfloat16"} if change == "another type" else {}
    if change == "another tokenizer":
        tiny_sentencepiece(meta, 400, ENGLISH[::-1])
    if change == "a changed weight":
        write_meta(meta, random_llama(400, seed=7), shards=2)
    if change == "another converter":
        monkeypatch.setattr(import_records, "CONVERTER", 2)
    _, two = import_model(tmp_path, meta, name="second", uid="uid-2", **options)
    assert inode(one / "model.safetensors") != inode(two / "model.safetensors")


def records(tmp_path):
    return tmp_path / ".herdsman/imports"


def test_a_record_whose_file_was_edited_is_not_used(tmp_path, meta):
    _, one = import_model(tmp_path, meta)
    path = one / "model.safetensors"
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    _, two = import_model(tmp_path, meta, name="second", uid="uid-2")
    assert inode(two / "model.safetensors") != inode(path)
    verify_artifact(two, "Digests")


def test_a_record_that_lost_a_file_is_not_used(tmp_path, meta):
    import_model(tmp_path, meta)
    [record] = records(tmp_path).iterdir()
    (record / "files/config.json").unlink()
    _, two = import_model(tmp_path, meta, name="second", uid="uid-2")
    verify_artifact(two, "Digests")
    assert load_file(two / "model.safetensors")


def test_records_that_no_artifact_uses_are_forgotten(tmp_path, model, meta):
    import_model(tmp_path, meta)
    for path in sorted((tmp_path / "work/artifact").iterdir()):
        path.unlink()
    import_model(tmp_path, model, name="second", uid="uid-2")
    [record] = records(tmp_path).iterdir()
    assert json.loads((record / "record.json").read_text())["sources"].keys() >= {"model.safetensors"}


@pytest.mark.parametrize("options", [{"keep_downloads": False}, {}], ids=["not wanted", "no hard links"])
def test_without_records_an_import_is_whole_all_the_same(tmp_path, meta, monkeypatch, options):
    if not options:
        monkeypatch.setattr(import_records.Path, "hardlink_to", refuse_links)
    _, one = import_model(tmp_path, meta, **options)
    _, two = import_model(tmp_path, meta, name="second", uid="uid-2", **options)
    assert not records(tmp_path).exists() or not list(records(tmp_path).iterdir())
    assert inode(one / "model.safetensors") != inode(two / "model.safetensors")
    verify_artifact(two, "Digests")


def refuse_links(self, target):
    raise OSError(95, "Operation not supported")


def test_frozen_files_are_linked_instead_of_copied(tmp_path, model, monkeypatch):
    source = copied(model, tmp_path / "store")
    plain = model_import._source
    monkeypatch.setattr(model_import, "_source", lambda config: replace(plain(config), frozen=True))
    _, directory = import_model(tmp_path, source)
    assert inode(directory / "model.safetensors") == inode(source / "model.safetensors")
    assert inode(directory / "config.json") != inode(source / "config.json")
    verify_artifact(directory, "Digests")


def boundaries(monkeypatch, run_source):
    """Return every activity that a whole import reports, in order."""
    seen = []
    report = RunContext.report

    def listening(self, *, activity=None, **figures):
        seen.append(activity)
        return report(self, activity=activity, **figures)

    with monkeypatch.context() as patch:
        patch.setattr(RunContext, "report", listening)
        run_source()
    return seen


@pytest.mark.parametrize("form", ["safetensors", "meta"])
def test_a_stop_or_a_crash_at_any_boundary_never_leaves_a_result(tmp_path, model, meta, monkeypatch, form):
    """Wherever a file or a phase begins, the import is stopped, and ends as it does where a process is killed."""
    source = model if form == "safetensors" else meta
    seen = boundaries(monkeypatch, lambda: import_model(tmp_path, source, name="whole", keep_downloads=False))
    phases = [activity.split(" model.")[0] for activity in seen]
    begins = [number for number, phase in enumerate(phases) if phase not in phases[:number]]
    assert len(begins) > 3
    report = RunContext.report
    for end in (Interrupted("stopped"), KeyboardInterrupt()):
        for number in begins:
            left = iter(range(number))

            def stopping(self, *, activity=None, left=left, end=end, **figures):
                if next(left, None) is None:
                    raise end
                return report(self, activity=activity, **figures)

            with monkeypatch.context() as patch:
                patch.setattr(RunContext, "report", stopping)
                with pytest.raises(type(end)):
                    import_model(tmp_path, source, keep_downloads=False)
            assert not (tmp_path / "work/artifact").exists(), seen[number]
    artifact, directory = import_model(tmp_path, source)
    verify_artifact(directory, "Digests")
    assert artifact.digest == verify_artifact(tmp_path / "whole/artifact").artifact.digest


def test_a_crash_after_the_result_was_published_costs_only_the_record(tmp_path, meta, monkeypatch):
    def crash(*_args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(import_records.ImportRecords, "keep", crash)
        with pytest.raises(KeyboardInterrupt):
            import_model(tmp_path, meta)
    digest = verify_artifact(tmp_path / "work/artifact", "Digests").artifact.digest
    assert import_model(tmp_path, meta)[0].digest == digest
    assert not records(tmp_path).exists()


def test_a_crash_while_recording_leaves_no_half_record(tmp_path, meta, monkeypatch):
    def crash(*_args, **_kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(import_records.json, "dumps", crash_on_record(crash))
        with pytest.raises(KeyboardInterrupt):
            import_model(tmp_path, meta)
    assert all(path.name.startswith(".draft-") for path in records(tmp_path).iterdir())
    _, two = import_model(tmp_path, meta, name="second", uid="uid-2")
    verify_artifact(two, "Digests")


def crash_on_record(crash):
    dumps = json.dumps
    return lambda value, **options: crash() if "sources" in value else dumps(value, **options)


def test_progress_goes_by_bytes_and_never_back(tmp_path, meta, monkeypatch):
    shares = []
    report = RunContext.report

    def listening(self, *, activity=None, done=None, **figures):
        shares.append((activity, done))
        return report(self, activity=activity, done=done, **figures)

    monkeypatch.setattr(RunContext, "report", listening)
    import_model(tmp_path, meta)
    figures = [done for _, done in shares]
    assert figures == sorted(figures)
    assert (figures[0], figures[-1]) == (0.0, 1.0)
    checked = max(done for activity, done in shares if activity.startswith("checking"))
    assert 0.3 < checked < 0.7


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, meta, monkeypatch):
    monkeypatch.setattr("herdsman_trainer.free_space.free_bytes", lambda _: 1000)
    with pytest.raises(Temporary, match="no space left for the model's weights") as caught:
        import_model(tmp_path, meta)
    assert caught.value.reason == "DiskFull"


def test_a_source_that_changes_meanwhile_is_refused(tmp_path, meta, monkeypatch):
    report = RunContext.report

    def meddling(self, *, activity=None, **figures):
        if activity and activity.startswith("writing"):
            os.utime(meta / "consolidated.01.pth", ns=(1, 1))
        return report(self, activity=activity, **figures)

    monkeypatch.setattr(RunContext, "report", meddling)
    with pytest.raises(BadInput, match="changed while it was imported") as caught:
        import_model(tmp_path, meta)
    assert caught.value.file == str(meta / "consolidated.01.pth")
    assert not (tmp_path / "work/artifact").exists()


def test_a_type_is_no_reason_to_forget_the_tensors(tmp_path, model):
    _, directory = import_model(tmp_path, model, dtype="float16")
    ours, theirs = load_file(directory / "model.safetensors"), load_file(model / "model.safetensors")
    assert {name: tensor.dtype for name, tensor in ours.items()} == dict.fromkeys(theirs, torch.float16)
    assert json.loads((directory / "tensor-digests.json").read_text()).keys() == theirs.keys()
