"""The store of downloads: the same file is fetched once, linked, checked when it is used again, and removed in time."""

import errno
import os
import stat

import pytest

from downloading import download, import_config, leave_partial, partials, web
from herdsman_trainer.content_cache import content_key
from herdsman_trainer.downloads import blob_store
from herdsman_trainer.downloads.blob_store import STORE, BlobStore
from herdsman_trainer.downloads.fetching import fetch
from herdsman_trainer.downloads.partial import Partial
from herdsman_trainer.downloads.patience import Patience
from herdsman_trainer.downloads.remote_files import amount
from herdsman_trainer.errors import BadInput, Temporary
from herdsman_trainer.run_context import RunContext
from remote_server import serving, sha256

WEIGHTS = bytes(range(256)) * 2000
CONFIG = b'{"model_type": "llama"}'


@pytest.fixture
def remote():
    with serving() as found:
        found.files["/m/model.gguf"] = WEIGHTS
        found.files["/m/config.json"] = CONFIG
        yield found


def test_the_second_import_of_the_same_downloads_nothing_and_copies_nothing(tmp_path, remote):
    first = download(tmp_path, web(remote, "/m/model.gguf"))
    asked = len(remote.requests)
    again = download(tmp_path, web(remote, "/m/model.gguf"), name="again")
    assert len(remote.requests) == asked
    one, other = (found.directory / "model.gguf" for found in (first, again))
    assert one.stat().st_ino == other.stat().st_ino
    assert again.figures == {"downloaded_bytes": 0, "reused_bytes": len(WEIGHTS)}
    assert again.share == 0.0


def test_the_same_file_from_another_place_is_the_same_file(tmp_path, remote):
    download(tmp_path, web(remote, "/m/model.gguf"))
    remote.files["/mirror/copy.gguf"] = WEIGHTS
    found = download(tmp_path, web(remote, "/mirror/copy.gguf"), name="again")
    assert (found.directory / "copy.gguf").read_bytes() == WEIGHTS
    assert not remote.gets("mirror")


def test_without_hard_links_files_are_copied(tmp_path, remote, monkeypatch):
    def no_links(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(blob_store.os, "link", no_links)
    found = download(tmp_path, web(remote, "/m/model.gguf"))
    assert (found.directory / "model.gguf").read_bytes() == WEIGHTS
    assert stat.S_IMODE((found.directory / "model.gguf").stat().st_mode) == 0o444


def test_a_volume_that_is_too_small_is_told_before_a_byte_comes(tmp_path, remote, monkeypatch):
    monkeypatch.setattr("herdsman_trainer.free_space.free_bytes", lambda _: 1000)
    with pytest.raises(
        Temporary, match=r"no space left for the download of 500.0 KiB: .* 1000 bytes are free"
    ) as caught:
        download(tmp_path, web(remote, "/m/model.gguf"))
    assert caught.value.reason == "DiskFull"
    assert not remote.gets("model")


def test_a_volume_that_fills_up_in_the_middle_ends_the_attempt_and_keeps_what_came(tmp_path, remote, monkeypatch):
    append = Partial.append

    def full(self, chunk):
        if self.written > 100_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(self, chunk)

    with monkeypatch.context() as patch:
        patch.setattr(Partial, "append", full)
        with pytest.raises(Temporary, match=r"no space left for the download of model.gguf") as caught:
            download(tmp_path, web(remote, "/m/model.gguf"))
    assert caught.value.reason == "DiskFull"
    kept = partials(tmp_path)[sha256(WEIGHTS)]
    assert 100_000 < len(kept) < len(WEIGHTS)
    download(tmp_path, web(remote, "/m/model.gguf"), attempt=2)
    assert remote.ranges("model")[-1] == f"bytes={len(kept)}-"


def test_a_stored_file_that_was_changed_is_downloaded_again(tmp_path, remote, caplog):
    found = download(tmp_path, web(remote, "/m/model.gguf"))
    blob = BlobStore(tmp_path).blob(sha256(WEIGHTS))
    (found.directory / "model.gguf").chmod(0o644)
    with (found.directory / "model.gguf").open("r+b") as file:
        file.write(b"edited")
    assert blob.read_bytes() != WEIGHTS
    again = download(tmp_path, web(remote, "/m/model.gguf"), name="again")
    assert (again.directory / "model.gguf").read_bytes() == WEIGHTS
    assert "was changed since it was checked" in caplog.text


def test_a_stored_file_that_was_only_touched_is_read_and_kept(tmp_path, remote):
    download(tmp_path, web(remote, "/m/model.gguf"))
    BlobStore(tmp_path).blob(sha256(WEIGHTS)).touch()
    asked = len(remote.requests)
    download(tmp_path, web(remote, "/m/model.gguf"), name="again")
    assert len(remote.requests) == asked


def test_with_verify_inputs_stored_files_are_read_again(tmp_path, remote):
    download(tmp_path, web(remote, "/m/model.gguf"))
    blob = BlobStore(tmp_path).blob(sha256(WEIGHTS))
    blob.chmod(0o644)
    blob.write_bytes(b"x" * len(WEIGHTS))
    os.utime(blob, (blob_store.STAMP, blob_store.STAMP))
    again = download(tmp_path, web(remote, "/m/model.gguf"), name="again", verify_inputs="Digests")
    assert (again.directory / "model.gguf").read_bytes() == WEIGHTS


def test_once_published_the_links_go_and_the_files_stay(tmp_path, remote):
    found = download(tmp_path, web(remote, "/m/model.gguf"))
    found.release()
    assert not found.directory.exists()
    assert BlobStore(tmp_path).holds(sha256(WEIGHTS))


def test_without_keep_downloads_what_this_import_alone_used_goes(tmp_path, remote):
    download(tmp_path, web(remote, "/m/config.json")).release()
    found = download(tmp_path, web(remote, "/m/model.gguf", "/m/config.json"), name="once", keep_downloads=False)
    found.release()
    store = BlobStore(tmp_path)
    assert not store.holds(sha256(WEIGHTS))
    assert store.holds(sha256(CONFIG)), "another import keeps it"


def test_of_two_imports_at_once_one_downloads_and_the_other_takes_what_came(tmp_path, remote):
    config = import_config(tmp_path, web(remote, "/m/model.gguf"))
    run = RunContext(config, rank=0)
    store = BlobStore(tmp_path)
    with store.writing(sha256(WEIGHTS), wait=lambda: None) as partial:
        partial.append(WEIGHTS)

        def finish(_):
            if not store.blob(sha256(WEIGHTS)).exists():
                store.add(partial)
                partial.close()

        found = fetch(config, run, environment={}, patience=Patience(run, sleep=finish))
    assert (found.directory / "model.gguf").read_bytes() == WEIGHTS
    assert not remote.gets("model")


def test_partial_files_that_nobody_goes_on_with_are_removed_in_time(tmp_path):
    leave_partial(tmp_path, b"old", content_key({"a": "b"}))
    old = tmp_path / STORE / "partial" / content_key({"a": "b"})
    leave_partial(tmp_path, b"new", "new")
    os.utime(old, (1, 1))
    BlobStore(tmp_path)
    assert partials(tmp_path) == {"new": b"new"}


def test_a_store_that_leads_off_its_volume_is_refused(tmp_path, remote):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "claim").mkdir()
    (tmp_path / "claim" / ".herdsman").symlink_to(elsewhere)
    with pytest.raises(BadInput, match="leads outside its volume"):
        download(tmp_path / "claim", web(remote, "/m/model.gguf"))


def test_progress_is_told_in_bytes_with_a_share_and_a_time_to_go(tmp_path, remote):
    config = import_config(tmp_path, web(remote, "/m/config.json", "/m/model.gguf"))
    run = RunContext(config, rank=0)
    told = []
    report = run.report

    def listen(**said):
        report(**said)
        told.append((said.get("activity"), said.get("done")))

    run.report = listen
    fetch(config, run, environment={})
    assert told[0] == ("looking for the files", 0.0)
    assert ("downloading config.json (23 of 23 bytes)", pytest.approx(0.8 * 23 / 512_023)) in told
    assert told[-1] == ("downloading model.gguf (512.0 of 512.0 kB)", pytest.approx(0.8))


@pytest.mark.parametrize(
    ("done", "total", "text"),
    [
        (3_100_000_000, 13_476_000_000, "3.1 of 13.5 GB"),
        (12, 23, "12 of 23 bytes"),
        (0, 2_500_000, "0.0 of 2.5 MB"),
        (1500, None, "1.5 kB"),
    ],
)
def test_amounts_are_written_as_people_read_them(done, total, text):
    assert amount(done, total) == text
