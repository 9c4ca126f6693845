"""What is read from a run's workspace."""

import json
import os

from herdsman.local.observations import read_checkpoints, read_progress, read_report, read_workspace


def checkpoint(workspace, step, *, cut=False, manifest=True):
    path = workspace / "checkpoints" / f"step-{step:08}"
    path.mkdir(parents=True)
    (path / "weights.safetensors").write_bytes(b"x" * (3 if cut else 8))
    if manifest:
        (path / "manifest.json").write_text(json.dumps({"files": {"weights.safetensors": {"bytes": 8, "sha256": "0"}}}))


def test_the_newest_whole_checkpoint_is_the_latest(tmp_path):
    checkpoint(tmp_path, 100)
    checkpoint(tmp_path, 200)
    checkpoint(tmp_path, 300, cut=True)
    checkpoint(tmp_path, 400, manifest=False)
    (tmp_path / "checkpoints" / "step-tmp").mkdir()
    found = read_checkpoints(tmp_path)
    assert (found.latest, found.step, found.count) == ("checkpoints/step-00000200", 200, 2)


def test_without_a_whole_checkpoint_there_is_none(tmp_path):
    checkpoint(tmp_path, 100, cut=True)
    assert read_checkpoints(tmp_path) is None


def test_the_progress_of_an_earlier_attempt_is_not_taken_for_this_ones(tmp_path):
    path = tmp_path / "progress.json"
    path.write_text('{"step": 3, "totalSteps": 10}')
    os.utime(path, (1000, 1000))
    assert read_progress(tmp_path, since=1001) is None
    assert read_progress(tmp_path, since=999).step == 3


def test_half_a_progress_file_is_no_progress(tmp_path):
    (tmp_path / "progress.json").write_text('{"step": 3, "tot')
    assert read_progress(tmp_path, since=0) is None


def test_without_an_artifact_there_is_no_report(tmp_path):
    assert read_report(tmp_path) == ()


def test_a_configuration_without_a_workspace_has_none():
    assert read_workspace(None).directory is None
    assert read_workspace({"launch": {"processesPerNode": 4}}).processes == 4
