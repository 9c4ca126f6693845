"""Downloads from the web: resumed, verified, kept by their content, and refused with a sentence where wrong."""

import errno
import os
import stat
from pathlib import Path

import pytest

from herdsman.api.job_config import FileDigest, ModelImportConfig, RemoteSource
from herdsman_trainer.content_cache import content_key
from herdsman_trainer.downloads import blob_store
from herdsman_trainer.downloads.blob_store import STORE, BlobStore
from herdsman_trainer.downloads.fetching import fetch
from herdsman_trainer.downloads.partial import Partial
from herdsman_trainer.downloads.patience import TRIES, Patience
from herdsman_trainer.downloads.remote_files import amount
from herdsman_trainer.errors import BadInput, Interrupted, Temporary
from herdsman_trainer.run_context import RunContext
from remote_server import PAGE, Fault, Remote, serving, sha256
from run_configs import owner, workspace

WEIGHTS = bytes(range(256)) * 2000
CONFIG = b'{"model_type": "llama"}'


@pytest.fixture
def remote():
    with serving() as found:
        found.files["/m/model.gguf"] = WEIGHTS
        found.files["/m/config.json"] = CONFIG
        yield found


def web(remote: Remote, *paths: str, host: str | None = None, **source):
    files = [{"url": f"{host or remote.url}{path}", "sha256": sha256(remote.files[path])} for path in paths]
    return RemoteSource.model_validate({"http": {"files": files, **source}})


def import_config(root: Path, remote: RemoteSource, name="base", attempt=1, **options):
    return ModelImportConfig(
        owner=owner(name, f"uid-{name}", "ModelImport"),
        attempt=attempt,
        workspace=workspace(root, f"modelimports/{name}"),
        remote=remote,
        **options,
    )


class Waits:
    """A patience that does not sleep, and remembers how long it would have."""

    def __init__(self, run):
        self.slept = []
        self.patience = Patience(run, sleep=self.slept.append)


def download(root: Path, source: RemoteSource, *, environment=None, **options):
    config = import_config(root, source, **options)
    run = RunContext(config, rank=0)
    return fetch(config, run, environment=environment or {}, patience=Waits(run).patience)


def leave_partial(root: Path, content: bytes, key: str, etag: str | None = None):
    """What a killed attempt leaves."""
    directory = root / STORE / "partial"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / key).write_bytes(content)
    if etag:
        (directory / f"{key}.etag").write_text(etag)


def partials(root: Path):
    return {path.name: path.read_bytes() for path in (root / STORE / "partial").iterdir()}


def test_files_are_downloaded_checked_and_read_only(tmp_path, remote):
    found = download(tmp_path, web(remote, "/m/model.gguf", "/m/config.json"))
    assert {path.name: path.read_bytes() for path in found.directory.iterdir()} == {
        "model.gguf": WEIGHTS,
        "config.json": CONFIG,
    }
    assert found.digests["model.gguf"] == FileDigest(bytes=len(WEIGHTS), sha256=sha256(WEIGHTS))
    assert found.figures == {"downloaded_bytes": len(WEIGHTS) + len(CONFIG), "reused_bytes": 0}
    assert stat.S_IMODE((found.directory / "model.gguf").stat().st_mode) == 0o444
    assert partials(tmp_path) == {}


def test_the_record_names_urls_without_what_may_be_secret(tmp_path, remote, caplog):
    remote.files["/m/signed.gguf"] = WEIGHTS
    source = RemoteSource.model_validate(
        {"http": {"files": [{"url": f"{remote.url}/m/signed.gguf?sig=hunter2", "sha256": sha256(WEIGHTS)}]}}
    )
    with caplog.at_level("INFO"):
        found = download(tmp_path, source)
    assert found.inputs == {
        "spec.source.http/signed.gguf": sha256(WEIGHTS),
        "spec.source.http/signed.gguf URL": f"{remote.url}/m/signed.gguf",
    }
    assert remote.gets()[0].path.endswith("?sig=hunter2")
    assert "hunter2" not in caplog.text


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


def test_a_download_goes_on_where_it_was_cut(tmp_path, remote):
    remote.faults["/m/model.gguf"] = [Fault(cut=100_000), Fault(cut=50_000)]
    found = download(tmp_path, web(remote, "/m/model.gguf"))
    assert (found.directory / "model.gguf").read_bytes() == WEIGHTS
    assert remote.ranges("model") == [None, "bytes=100000-", "bytes=150000-"]


def test_the_next_attempt_goes_on_where_the_killed_one_was(tmp_path, remote):
    leave_partial(tmp_path, WEIGHTS[:300_000], sha256(WEIGHTS))
    found = download(tmp_path, web(remote, "/m/model.gguf"))
    assert (found.directory / "model.gguf").read_bytes() == WEIGHTS
    assert remote.ranges("model") == ["bytes=300000-"]


def test_a_download_that_was_killed_before_its_last_step_asks_for_nothing_more(tmp_path, remote):
    leave_partial(tmp_path, WEIGHTS, sha256(WEIGHTS))
    found = download(tmp_path, web(remote, "/m/model.gguf"))
    assert (found.directory / "model.gguf").read_bytes() == WEIGHTS
    assert not remote.gets("model")


def test_a_partial_file_as_long_as_the_file_and_wrong_is_fetched_anew(tmp_path, remote):
    leave_partial(tmp_path, b"x" * len(WEIGHTS), sha256(WEIGHTS))
    found = download(tmp_path, web(remote, "/m/model.gguf"))
    assert (found.directory / "model.gguf").read_bytes() == WEIGHTS
    assert remote.ranges("model") == [f"bytes={len(WEIGHTS)}-", None]


def test_bytes_of_an_earlier_attempt_that_are_wrong_cost_a_second_try_and_no_failure(tmp_path, remote, caplog):
    leave_partial(tmp_path, b"x" * 1000, sha256(WEIGHTS))
    found = download(tmp_path, web(remote, "/m/model.gguf"))
    assert (found.directory / "model.gguf").read_bytes() == WEIGHTS
    assert remote.ranges("model") == ["bytes=1000-", None]
    assert "do not fit together: starting anew" in caplog.text


def test_what_changed_there_is_not_mixed_with_what_was(tmp_path, remote, caplog):
    leave_partial(tmp_path, b"old" * 1000, sha256(WEIGHTS), etag='"of the old one"')
    found = download(tmp_path, web(remote, "/m/model.gguf"))
    assert (found.directory / "model.gguf").read_bytes() == WEIGHTS
    (request,) = remote.gets("model")
    assert request.headers["if-range"] == '"of the old one"'
    assert "starting anew after 3000 bytes, for the file has changed there" in caplog.text


def test_a_server_without_ranges_starts_anew_and_the_log_says_so(tmp_path, remote, caplog):
    remote.always["/m/model.gguf"] = Fault(ranges=False, headers={"ETag": ""})
    leave_partial(tmp_path, WEIGHTS[:1000], sha256(WEIGHTS))
    found = download(tmp_path, web(remote, "/m/model.gguf"))
    assert (found.directory / "model.gguf").read_bytes() == WEIGHTS
    assert "starting anew after 1000 bytes, for the server cannot resume" in caplog.text


def test_a_server_that_never_gets_any_further_is_given_up(tmp_path, remote):
    remote.always["/m/model.gguf"] = Fault(ranges=False, cut=1000)
    with pytest.raises(Temporary, match=f"Tried {TRIES} times"):
        download(tmp_path, web(remote, "/m/model.gguf"))
    assert len(remote.gets("model")) == TRIES
    assert partials(tmp_path)[sha256(WEIGHTS)] == WEIGHTS[:1000]


def test_a_busy_server_is_waited_for_as_long_as_it_asks(tmp_path, remote):
    remote.faults["/m/model.gguf"] = [Fault(status=503), Fault(status=429, headers={"Retry-After": "45"})]
    config = import_config(tmp_path, web(remote, "/m/model.gguf"))
    run = RunContext(config, rank=0)
    waits = Waits(run)
    found = fetch(config, run, environment={}, patience=waits.patience)
    assert (found.directory / "model.gguf").read_bytes() == WEIGHTS
    assert 45 <= sum(waits.slept) < 48


def test_a_server_that_is_away_for_minutes_ends_the_attempt_and_keeps_what_came(tmp_path, remote):
    remote.faults["/m/model.gguf"] = [Fault(cut=100_000), *[Fault(status=502)] * TRIES]
    config = import_config(tmp_path, web(remote, "/m/model.gguf"))
    run = RunContext(config, rank=0)
    waits = Waits(run)
    with pytest.raises(Temporary, match="answers with status 502") as caught:
        fetch(config, run, environment={}, patience=waits.patience)
    assert 60 < sum(waits.slept) < 300
    assert "the next attempt goes on from there" in caught.value.hint
    assert partials(tmp_path)[sha256(WEIGHTS)] == WEIGHTS[:100_000]
    found = download(tmp_path, web(remote, "/m/model.gguf"), attempt=2)
    assert (found.directory / "model.gguf").read_bytes() == WEIGHTS


def test_a_host_that_is_not_there_is_named(tmp_path, remote):
    source = web(remote, "/m/model.gguf", host="http://127.0.0.1:9")
    with pytest.raises(Temporary, match=r"http://127.0.0.1:9/m/model.gguf does not answer \(.*refused"):
        download(tmp_path, source)


def test_a_stop_keeps_what_came_and_the_next_attempt_goes_on(tmp_path, remote, monkeypatch):
    run = RunContext(import_config(tmp_path, web(remote, "/m/model.gguf")), rank=0)
    append = Partial.append

    def stop_soon(self, chunk):
        append(self, chunk)
        if self.written > 100_000:
            run.request_stop()

    with monkeypatch.context() as patch:
        patch.setattr(Partial, "append", stop_soon)
        with pytest.raises(Interrupted):
            fetch(run.config, run, environment={})
    came = partials(tmp_path)[sha256(WEIGHTS)]
    assert 100_000 < len(came) < len(WEIGHTS)
    download(tmp_path, web(remote, "/m/model.gguf"), attempt=2)
    assert remote.ranges("model") == [None, f"bytes={len(came)}-"]


def test_a_stop_ends_the_waiting_for_a_server(tmp_path, remote):
    config = import_config(tmp_path, web(remote, "/m/model.gguf"))
    run = RunContext(config, rank=0)
    remote.always["/m/model.gguf"] = Fault(status=503)
    with pytest.raises(Interrupted):
        fetch(config, run, environment={}, patience=Patience(run, sleep=lambda _: run.request_stop()))
    assert len(remote.gets("model")) == 1


WRONG = {
    "another file": (
        Fault(body=b"other"),
        f"SHA-256 {sha256(b'other')} and {sha256(WEIGHTS)} is expected",
        "correct the digest if the new file is meant",
    ),
    "another file of the same size": (
        Fault(body=b"x" * len(WEIGHTS)),
        f"SHA-256 {sha256(b'x' * len(WEIGHTS))} and {sha256(WEIGHTS)} is expected",
        "correct the digest",
    ),
    "a web page": (Fault(body=PAGE), "SHA-256", "a web page instead of the file"),
    "a pointer of Git LFS": (
        Fault(body=b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        "SHA-256",
        "a pointer of Git LFS",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_not_the_file_is_refused_and_not_kept(tmp_path, remote, what):
    fault, says, remedy = WRONG[what]
    remote.always["/m/model.gguf"] = fault
    with pytest.raises(BadInput) as caught:
        download(tmp_path, web(remote, "/m/model.gguf"))
    assert caught.value.reason == "ChecksumMismatch"
    assert "model.gguf has " in caught.value.message
    assert says in caught.value.message
    assert remedy in caught.value.hint
    assert caught.value.file == f"{remote.url}/m/model.gguf"
    assert (partials(tmp_path), list((tmp_path / STORE / "sha256").iterdir())) == ({}, [])


REFUSED = {
    "not found": (404, "there is no such file", "Correct the URL"),
    "gone": (410, "there is no such file", "Correct the URL"),
    "no token": (401, "refuses the download without a token", "export HERDSMAN_HTTP_TOKEN"),
    "forbidden": (403, "refuses the download without a token", "spec.source.http.token"),
    "a teapot": (418, "refuses the download (status 418)", "in a browser"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_refusal_names_field_url_and_remedy(tmp_path, remote, what):
    status, says, remedy = REFUSED[what]
    remote.always["/m/model.gguf"] = Fault(status=status)
    with pytest.raises(BadInput) as caught:
        download(tmp_path, web(remote, "/m/model.gguf"))
    assert caught.value.message.startswith("spec.source.http.files[0]: ")
    assert says in caught.value.message
    assert remedy in caught.value.hint
    assert caught.value.file == f"{remote.url}/m/model.gguf"


TOKEN = {"token": {"name": "keys", "key": "web"}}


def test_a_token_goes_to_the_urls_host_and_to_no_other(tmp_path, remote):
    remote.tokens["/m/model.gguf"] = "hunter2"
    remote.faults["/m/moved.gguf"] = [Fault(status=302, headers={"Location": "/m/model.gguf"})]
    remote.files["/m/moved.gguf"] = WEIGHTS
    environment = {"HERDSMAN_HTTP_TOKEN": "hunter2"}
    found = download(tmp_path, web(remote, "/m/moved.gguf", **TOKEN), environment=environment)
    assert (found.directory / "moved.gguf").read_bytes() == WEIGHTS
    remote.faults["/m/config.json"] = [Fault(status=302, headers={"Location": f"{remote.other_host}/m/elsewhere"})]
    remote.files["/m/elsewhere"] = CONFIG
    download(tmp_path, web(remote, "/m/config.json", **TOKEN), environment=environment, name="again")
    (request,) = remote.gets("elsewhere")
    assert "authorization" not in request.headers
    assert "hunter2" not in "".join(path.read_text("latin-1") for path in tmp_path.rglob("*") if path.is_file())


def test_a_token_that_is_refused_or_missing_is_told(tmp_path, remote):
    remote.tokens["/m/model.gguf"] = "hunter2"
    with pytest.raises(BadInput, match="refuses the token"):
        download(tmp_path, web(remote, "/m/model.gguf", **TOKEN), environment={"HERDSMAN_HTTP_TOKEN": "wrong"})
    with pytest.raises(BadInput, match=r"spec.source.http.token is set and the environment has no HERDSMAN_HTTP_TOKEN"):
        download(tmp_path, web(remote, "/m/model.gguf", **TOKEN), environment={"HERDSMAN_HTTP_TOKEN": " "})


def test_a_redirect_that_never_ends_is_refused(tmp_path, remote):
    remote.always["/m/model.gguf"] = Fault(status=302, headers={"Location": "/m/model.gguf"})
    with pytest.raises(BadInput, match="leads nowhere"):
        download(tmp_path, web(remote, "/m/model.gguf"))


def test_a_digest_that_contradicts_the_source_is_refused_before_anything_is_asked(tmp_path, remote):
    with pytest.raises(BadInput, match=r"spec.sha256 expects 0000.* of model.gguf, and spec.source.http says"):
        download(tmp_path, web(remote, "/m/model.gguf"), sha256={"model.gguf": "0" * 64})
    with pytest.raises(BadInput, match=r"spec.sha256 names absent.bin, which is not among the files"):
        download(tmp_path, web(remote, "/m/model.gguf"), sha256={"absent.bin": "0" * 64})
    assert remote.requests == []


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
