"""/progress and /metrics of a running trainer, asked over a socket as the operator and Prometheus ask."""

import asyncio
import json
import threading
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from herdsman.api.v1alpha1.status import CheckpointStatus, Metric, Progress
from herdsman.kube.cache import ResourceKey
from herdsman.kube.live import HttpFetch, Target, read_report
from herdsman_trainer.metrics import GAUGES, Gauges
from herdsman_trainer.run_context import RunContext
from ranks import free_port
from run_configs import run_config

CHECKPOINT = CheckpointStatus(latest="checkpoints/step-00000020", step=20, verified=True, count=2)
SAVED_AT = datetime(2026, 11, 22, 8, 30, tzinfo=UTC)


@pytest.fixture
def run(tmp_path):
    """A run that serves on a port of its own, with a clock the test moves."""
    now = [100.0]
    config = run_config(tmp_path).model_copy(update={"metrics_port": free_port()})
    context = RunContext(config, clock=lambda: now[0])
    context.later = lambda seconds: now.__setitem__(0, now[0] + seconds)
    yield context
    context.close()


def address(run, path):
    return f"http://127.0.0.1:{run.config.metrics_port}{path}"


def asked(run):
    """Return what the operator learns, by its own means."""

    async def fetch():
        ask = HttpFetch()
        try:
            return await ask(Target("job", ResourceKey("default", None), "127.0.0.1", run.config.metrics_port))
        finally:
            await ask.close()

    return read_report(asyncio.run(fetch()))


def refusal(request):
    """Return the status of an answer that is an error."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    refused.value.close()
    return refused.value.code


def train(run):
    run.report(activity="training", step=20, total_steps=100)
    run.report_checkpoint(CHECKPOINT, SAVED_AT)
    run.later(10)
    run.report(step=40, tokens_per_second=1234.4, metrics={"loss": 2.34567891, "learning_rate": 2e-4})


def test_the_operator_reads_progress_and_checkpoint(run):
    train(run)
    found = asked(run)
    assert found.checkpoint == CHECKPOINT
    progress = found.progress
    assert (progress.percent, progress.step, progress.total_steps) == (40, 40, 100)
    assert (progress.activity, progress.tokens_per_second) == ("training", 1234)
    assert progress.estimated_remaining_seconds == 30  # 20 steps in 10 seconds
    assert {item.name: item.value for item in progress.metrics} == {
        "checkpoint_timestamp_seconds": str(int(SAVED_AT.timestamp())),
        "loss": "2.34568",
        "learning_rate": "0.0002",
    }
    assert abs((datetime.now(UTC) - progress.last_updated_time).total_seconds()) < 60


def test_a_run_that_has_not_reported_yet_is_at_the_beginning_and_has_no_checkpoint(run):
    found = asked(run)
    assert (found.progress, found.checkpoint) == (Progress(), None)


def test_what_is_told_over_http_is_what_the_file_says(run):
    train(run)
    run.flush()
    written = Progress.model_validate_json((run.workspace / "progress.json").read_bytes())
    assert asked(run).progress == written
    assert Metric(name="loss", value="2.34568") in written.metrics


@pytest.mark.parametrize("accept", ["text/plain", "application/openmetrics-text; version=1.0.0"])
def test_prometheus_reads_the_gauges_in_the_format_it_asks_for(run, accept):
    train(run)
    request = urllib.request.Request(address(run, "/metrics"), headers={"Accept": accept})
    with urllib.request.urlopen(request) as answer:
        assert answer.headers["Content-Type"].startswith(accept.partition(";")[0])
        parse = openmetrics if "openmetrics" in accept else text_string_to_metric_families
        found = {family.name: family.samples[0].value for family in parse(answer.read().decode())}
    assert found.pop("herdsman_train_idle_seconds") < 60
    assert found == {
        "herdsman_train_loss": 2.34567891,
        "herdsman_train_learning_rate": 2e-4,
        "herdsman_train_step": 40.0,
        "herdsman_train_progress_ratio": 0.4,
        "herdsman_train_remaining_seconds": 30.0,
        "herdsman_train_tokens_per_second": 1234.4,
        "herdsman_train_checkpoint_timestamp_seconds": SAVED_AT.timestamp(),
    }


def test_a_gauge_that_was_never_set_is_not_there_rather_than_nought():
    gauges = Gauges()
    gauges.set({"step": 7, "unknown": 1.0, "loss": "text"})
    assert [family.name for family in gauges.collect()] == ["herdsman_train_step"]


def test_the_gauges_that_an_operator_of_a_cluster_looks_for_have_names():
    wanted = {"progress_ratio", "loss", "tokens_per_second", "learning_rate", "gpu_memory_bytes"}
    wanted |= {"checkpoint_timestamp_seconds", "step", "grad_norm", "idle_seconds", "remaining_seconds", "mfu"}
    wanted |= {"records", "records_dropped", "requests", "request_tokens", "cost"}
    assert wanted | {"heldout_loss", "steps_not_finite", "rewinds"} == set(GAUGES)


def test_progress_is_json_and_anything_else_is_not_found(run):
    with urllib.request.urlopen(address(run, "/progress?now=1")) as answer:
        assert answer.headers["Content-Type"] == "application/json"
        assert json.loads(answer.read()) == {"percent": 0, "step": 0, "metrics": []}
    head = urllib.request.Request(address(run, "/progress"), method="HEAD")
    with urllib.request.urlopen(head) as answer:
        assert (answer.read(), int(answer.headers["Content-Length"]) > 0) == (b"", True)
    for path in ("/", "/progress/", "/../etc/passwd"):
        assert refusal(address(run, path)) == 404
    assert refusal(urllib.request.Request(address(run, "/progress"), data=b"{}")) == 501


def test_no_request_is_logged(run, capfd):
    asked(run)
    assert refusal(address(run, "/nothing")) == 404
    assert capfd.readouterr() == ("", "")


def test_a_busy_thread_does_not_delay_the_answers(run):
    stop = threading.Event()

    def work():
        while not stop.is_set():
            sum(range(1000))

    busy = threading.Thread(target=work)
    busy.start()
    try:
        began = time.perf_counter()
        for _ in range(5):
            assert asked(run).progress.step == 0
        assert time.perf_counter() - began < 5  # the operator waits one second for each
    finally:
        stop.set()
        busy.join()


def test_only_rank_0_serves_and_only_where_a_port_is_given(tmp_path):
    port = free_port()
    RunContext(run_config(tmp_path).model_copy(update={"metrics_port": port}), rank=1)
    RunContext(run_config(tmp_path), rank=0)
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/progress")


def test_the_port_is_free_after_the_end(run):
    run.close()
    again = RunContext(run.config)
    again.report(activity="training", step=3)
    assert asked(again).progress.step == 3
    again.close()
