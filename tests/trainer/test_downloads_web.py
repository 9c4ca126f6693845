"""Downloads from the web: resumed, verified, and refused with a sentence where they are wrong."""

import stat

import pytest

from downloading import Waits, download, import_config, leave_partial, partials, web
from herdsman.api.job_config import FileDigest, RemoteSource
from herdsman_trainer.downloads.blob_store import STORE
from herdsman_trainer.downloads.fetching import fetch
from herdsman_trainer.downloads.partial import Partial
from herdsman_trainer.downloads.patience import TRIES, Patience
from herdsman_trainer.errors import BadInput, Interrupted, Temporary
from herdsman_trainer.run_context import RunContext
from remote_server import PAGE, Fault, serving, sha256

WEIGHTS = bytes(range(256)) * 2000
CONFIG = b'{"model_type": "llama"}'


@pytest.fixture
def remote():
    with serving() as found:
        found.files["/m/model.gguf"] = WEIGHTS
        found.files["/m/config.json"] = CONFIG
        yield found


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
