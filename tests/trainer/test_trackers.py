"""Trackers: what they are told, that they continue one run over attempts, and that none of them can hurt a training."""

import struct
import sys
import threading
from types import ModuleType, SimpleNamespace

import pytest
from tensorboardX.proto.event_pb2 import Event

from herdsman.api.v1alpha1.report_to import MlflowTracker, ReportTo, WandbTracker
from herdsman.api.v1alpha1.secrets import SecretKeyRef
from herdsman_trainer import trackers as module
from herdsman_trainer.errors import BadInput
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.trackers import TrackedRun, Trackers, check_libraries, flat, open_trackers
from run_configs import run_config

SECONDS = 20.0
WANDB = WandbTracker(project="zh", entity="team", api_key=SecretKeyRef(name="keys", key="wandb"))
MLFLOW = MlflowTracker(tracking_uri="https://mlflow.example.com", experiment="zh")
SETTINGS = {"learningRate": 2e-4, "lora.targets": "q_proj, v_proj"}


def run_of(root, attempt=1, resumed=None):
    return TrackedRun("uid-1", "PretrainJob", "zh", attempt, root, resumed, SETTINGS)


def events(root):
    """Read TensorBoard's files as TensorBoard does: length, its check, the event, its check."""
    found = []
    for path in sorted((root / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def scalars(found):
    return [
        (event.step, value.tag, round(value.simple_value, 6))
        for event in found
        for value in event.summary.value
        if value.HasField("simple_value")
    ]


def test_tensorboard_gets_every_figure_under_what_it_is_about(tmp_path):
    trackers = open_trackers(ReportTo(), run_of(tmp_path))
    trackers.log(1, {"loss": 2.5, "tokens_per_second": 100.0, "mfu": 0.5})
    trackers.log(2, {"heldout_loss": 2.25})
    trackers.say(2, "samples", "| prompt | text |")
    trackers.close(done=True)
    found = events(tmp_path)
    assert found[0].file_version == "brain.Event:2"
    assert scalars(found) == [
        (1, "train/loss", 2.5),
        (1, "speed/tokens_per_second", 100.0),
        (1, "speed/mfu", 0.5),
        (2, "heldout/loss", 2.25),
    ]
    values = [value for event in found for value in event.summary.value if value.tensor.string_val]
    texts = {value.tag: value.tensor.string_val[0].decode() for value in values}
    assert "| learningRate | 0.0002 |" in texts["settings/text_summary"]
    assert texts["samples/text_summary"] == "| prompt | text |"


def test_tensorboard_hides_the_steps_that_a_resumed_attempt_does_again(tmp_path):
    for attempt, resumed, steps in ((1, None, (1, 2, 3)), (2, 2, (3, 4))):
        trackers = open_trackers(ReportTo(), run_of(tmp_path, attempt, resumed))
        for step in steps:
            trackers.log(step, {"loss": float(step)})
        trackers.close(done=True)
    starts = [event.step for event in events(tmp_path) if event.HasField("session_log")]
    assert starts == [3]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2


def fake_wandb(monkeypatch):
    fake = ModuleType("wandb")
    calls = []
    run = SimpleNamespace(
        log=lambda figures: calls.append(("log", figures)),
        define_metric=lambda *arguments, **options: calls.append(("define", arguments, options)),
        finish=lambda exit_code: calls.append(("finish", exit_code)),
    )
    fake.Settings = lambda **given: given
    fake.init = lambda **given: calls.append(("init", given)) or run
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delitem(sys.modules, "herdsman_trainer.trackers.wandb_tracker", raising=False)
    return calls


@pytest.mark.parametrize("offline", [False, True])
def test_weights_and_biases_continues_the_run_of_the_resource(tmp_path, monkeypatch, offline):
    calls = fake_wandb(monkeypatch)
    asked = WANDB.model_copy(update={"offline": offline})
    for attempt in (1, 2):
        trackers = open_trackers(ReportTo(tensorboard=False, wandb=asked), run_of(tmp_path, attempt))
        trackers.log(attempt, {"loss": 2.5})
        trackers.close(done=attempt == 2)
    started = [given for name, *given in calls if name == "init"]
    assert [given["id"] for (given,) in started] == ["uid-1", "uid-1"]
    ((first,), _) = started
    assert (first["project"], first["entity"], first["name"], first["resume"]) == ("zh", "team", "zh", "allow")
    assert first["mode"] == ("offline" if offline else "online")
    assert first["config"] == SETTINGS
    assert 0 < first["settings"]["finish_timeout"] < 60
    assert "key" not in str(first).replace("keys", "")
    assert [call[1] for call in calls if call[0] == "log"] == [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 2.5}]
    assert [call[1] for call in calls if call[0] == "finish"] == [1, 0]


class FakeClient:
    """MLflow's client over a server that is a dictionary."""

    server: dict

    def __init__(self, tracking_uri):
        self.server = FakeClient.server
        self.server["uri"] = tracking_uri

    def get_experiment_by_name(self, name):
        known = name in self.server["experiments"]
        return SimpleNamespace(experiment_id=self.server["experiments"][name]) if known else None

    def create_experiment(self, name):
        return self.server["experiments"].setdefault(name, "7")

    def search_runs(self, experiments, wanted, max_results):
        assert (experiments, max_results) == (["7"], 1)
        found = [each for each in self.server["runs"] if f"= '{each['tags']['herdsman.uid']}'" in wanted]
        return [SimpleNamespace(info=SimpleNamespace(run_id=each["id"])) for each in found]

    def create_run(self, experiment, run_name, tags):
        self.server["runs"].append({"id": "r1", "name": run_name, "tags": tags})
        return SimpleNamespace(info=SimpleNamespace(run_id="r1"))

    def update_run(self, run_id, status):
        self.server["statuses"].append(status)

    def set_terminated(self, run_id, status):
        self.server["statuses"].append(status)

    def log_batch(self, run_id, metrics=(), params=()):
        assert run_id == "r1"
        self.server["metrics"] += [(item.key, item.value, item.step) for item in metrics]
        self.server["params"] += [(item.key, item.value) for item in params]


def fake_mlflow(monkeypatch):
    fake, entities = ModuleType("mlflow"), ModuleType("mlflow.entities")
    entities.Metric = lambda key, value, timestamp, step: SimpleNamespace(key=key, value=value, step=step)
    entities.Param = lambda key, value: SimpleNamespace(key=key, value=value)
    fake.entities, fake.MlflowClient = entities, FakeClient
    FakeClient.server = {"experiments": {}, "runs": [], "metrics": [], "params": [], "statuses": []}
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.delitem(sys.modules, "herdsman_trainer.trackers.mlflow_tracker", raising=False)
    for name in ("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
        monkeypatch.setenv(name, "5")
    return FakeClient.server


def test_mlflow_continues_the_run_of_the_resource(tmp_path, monkeypatch):
    server = fake_mlflow(monkeypatch)
    for attempt in (1, 2):
        trackers = open_trackers(ReportTo(tensorboard=False, mlflow=MLFLOW), run_of(tmp_path, attempt))
        trackers.log(attempt, {"loss": 2.5})
        trackers.close(done=attempt == 2)
    assert server["uri"] == "https://mlflow.example.com"
    assert [run["name"] for run in server["runs"]] == ["zh"]
    assert server["metrics"] == [("loss", 2.5, 1), ("loss", 2.5, 2)]
    assert server["params"] == [("learningRate", "0.0002"), ("lora.targets", "q_proj, v_proj")]
    assert server["statuses"] == ["KILLED", "RUNNING", "FINISHED"]


class Listener:
    """A tracker that keeps what it hears, and fails or waits where it is told to."""

    def __init__(self, fails=(), gate=None):
        self.heard, self._fails, self._gate = [], fails, gate

    def log(self, step, figures):
        if self._gate is not None:
            assert self._gate.wait(SECONDS)
        self.heard.append(step)
        if "log" in self._fails:
            raise ConnectionError("nobody answers")

    def say(self, step, name, text):
        self.heard.append(text)

    def close(self, *, done):
        self.heard.append("end")
        if "close" in self._fails:
            raise ConnectionError("nobody answers")


def test_a_tracker_that_fails_is_told_once_and_the_others_go_on(caplog):
    good, bad, late = Listener(), Listener(["log"]), Listener(["close"])

    def broken():
        raise OSError("no such project")

    trackers = Trackers({"mlflow": lambda: bad, "wandb": broken, "tensorboard": lambda: good, "late": lambda: late})
    for step in (1, 2, 3):
        trackers.log(step, {})
    trackers.close(done=True)
    assert (good.heard, bad.heard, late.heard) == ([1, 2, 3, "end"], [1], [1, 2, 3, "end"])
    assert [record.message.split(". ")[0] for record in caplog.records] == [
        "reportTo.wandb: OSError: no such project",
        "reportTo.mlflow: ConnectionError: nobody answers",
        "reportTo.late: ConnectionError: nobody answers",
    ]


def test_a_tracker_that_hangs_holds_up_neither_the_steps_nor_the_end(monkeypatch, caplog):
    monkeypatch.setattr(module, "MOST_WAITING", 5)
    gate = threading.Event()
    slow = Listener(gate=gate)
    trackers = Trackers({"mlflow": lambda: slow})
    for step in range(20):
        trackers.log(step, {})
    trackers.close(done=True, seconds=0.05)
    assert "records have not reached all of them" in caplog.text
    assert slow.heard == []
    gate.set()
    trackers._thread.join(SECONDS)


def test_a_run_without_trackers_has_no_thread():
    before = threading.active_count()
    trackers = Trackers({})
    trackers.log(1, {"loss": 1.0})
    trackers.close(done=True)
    assert threading.active_count() == before


@pytest.mark.parametrize(("name", "settings"), [("wandb", WANDB), ("mlflow", MLFLOW)])
def test_a_library_that_is_not_there_is_bad_input_before_anything_is_trained(monkeypatch, name, settings):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _: None)
    check_libraries(ReportTo())
    with pytest.raises(BadInput, match=rf"spec\.reportTo\.{name} is set, and .* {name} is not installed") as refused:
        check_libraries(ReportTo(**{name: settings}))
    assert "herdsman[trackers]" in refused.value.hint


def test_a_record_reaches_the_trackers_as_the_figures_that_are_finite(tmp_path):
    context = RunContext(run_config(tmp_path))
    heard = []
    context.trackers = SimpleNamespace(log=lambda step, figures: heard.append((step, figures)), close=lambda **_: None)
    context.record({"step": 3, "loss": 2.5, "grad_norm": float("nan"), "attempt": 1, "applied": False, "tokens": 64})
    context.record({"step": 3, "event": "went back"})
    context.close()
    assert heard == [(3, {"loss": 2.5, "tokens": 64})]
    assert [line.get("event") for line in context.records.metrics.lines()] == [None, "went back"]


def test_nested_settings_become_one_level():
    assert flat({"lora": {"rank": 8, "targets": ["q", "v"]}, "epochs": None, "preset": "v1"}) == {
        "lora.rank": 8,
        "lora.targets": "q, v",
        "preset": "v1",
    }
