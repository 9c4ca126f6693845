"""Following resources on one machine, with a trainer that needs no torch."""

import json
import os
import signal

import pytest

from builders import manifest
from herdsman.local.history import headline
from shells.homes import CORPORA, model_import, phases, pretrain, release, status_of, until


def test_a_chain_runs_in_order_and_hands_its_artifacts_on(play):
    tokenizer = manifest(
        "TokenizerMerge",
        "tok",
        {"base": {"modelImport": "base"}, "sources": [{"volume": {"claim": "corpora", "path": "zh.model"}}]},
    )
    merge = manifest("LoRAMerge", "merged", {"model": {"modelImport": "base"}, "adapters": [{"pretrainJob": "zh"}]})
    ending_phases = play.run(merge, pretrain(tokenizer={"tokenizerMerge": "tok"}), tokenizer, model_import())
    assert ending_phases == dict.fromkeys(("base", "tok", "zh", "merged"), "Succeeded")
    succeeded = [name for name, phase in play.listener.heard if phase == "Succeeded"]
    assert list(dict.fromkeys(succeeded)) == ["base", "tok", "zh", "merged"]


def test_a_training_waits_for_its_records_and_takes_their_training_part(play):
    records = manifest("InstructionSet", "made", {"sources": [{"dataset": CORPORA}]})
    tuned = manifest("SFTJob", "tuned", {"model": {"modelImport": "base"}, "dataset": {"instructionSet": "made"}})
    assert play.run(tuned, records, model_import()) == dict.fromkeys(("base", "made", "tuned"), "Succeeded")
    config = json.loads((play.home.configs / "sj-tuned-1.json").read_text())
    (dataset,) = config["datasets"]
    assert dataset["source"]["part"] == "train"
    assert dataset["source"]["path"].endswith("is-made/instructionsets/made/artifact")


def test_a_set_whose_key_is_not_in_the_environment_says_which_variable_it_wants(play, monkeypatch):
    monkeypatch.delenv("HERDSMAN_ENDPOINT_API_KEY", raising=False)
    endpoint = {"url": "https://api.example.com/v1", "model": "m", "apiKey": {"name": "teacher", "key": "key"}}
    play.apply(manifest("InstructionSet", "made", {"generate": {"endpoint": endpoint}}))
    failure = status_of(play.follow(), "made").failure
    assert failure.reason == "SecretNotFound"
    assert (
        "in place of the Secret teacher, key key, the environment has to hold HERDSMAN_ENDPOINT_API_KEY"
        in failure.message
    )


def test_a_finished_resource_has_its_artifact_its_report_and_its_progress(play):
    play.apply(model_import())
    status = status_of(play.follow(), "base")
    assert (status.artifact.claim, status.artifact.path) == ("mi-base", "modelimports/base/artifact")
    assert [(figure.name, figure.value) for figure in status.report] == [("heldout_loss", "2.125")]
    assert (status.progress.step, status.progress.total_steps) == (2, 2)
    assert [(attempt.number, attempt.exit_code) for attempt in status.attempts] == [(1, 0)]


def test_a_second_run_of_finished_resources_writes_no_file(play):
    play.run(model_import(), pretrain())
    before = {path: path.stat().st_mtime_ns for path in play.home.root.rglob("*") if path.is_file()}
    play.fresh_cluster()
    assert play.run(model_import(), pretrain()) == {"base": "Succeeded", "zh": "Succeeded"}
    assert {path: path.stat().st_mtime_ns for path in play.home.root.rglob("*") if path.is_file()} == before


def test_bad_input_fails_at_once_and_names_file_line_and_remedy(play):
    play.behave(base=[42])
    play.apply(model_import(), pretrain())
    ending = play.follow()
    failure = status_of(ending, "base").failure
    assert phases(ending) == {"base": "Failed", "zh": "Waiting"}
    assert "zh.jsonl" in failure.message
    assert "7" in failure.message
    assert failure.hint == "Add it."
    assert len(status_of(ending, "base").attempts) == 1
    assert not ending.succeeded


def test_what_needs_a_failed_resource_says_so_and_does_not_run(play):
    play.behave(base=[43])
    play.apply(model_import(), pretrain())
    ending = play.follow()
    assert headline(status_of(ending, "zh")).reason == "ReferenceFailed"
    assert [key.name for key in ending.stuck] == ["zh"]
    assert not play.pretrain_dir().exists()


@pytest.mark.parametrize(
    ("fault", "reason", "exit_code"),
    [(75, "Temporary", 75), ("kill", "OutOfMemory", 137), ("crash", "Crashed", 3)],
    ids=["a temporary fault", "a SIGKILL", "a crash without a word"],
)
def test_after_a_fault_a_second_attempt_follows(play, fault, reason, exit_code):
    play.behave(base=[fault, "done"])
    play.apply(model_import())
    status = status_of(play.follow(), "base")
    assert status.phase == "Succeeded"
    first, second = status.attempts
    assert (first.reason, first.exit_code, first.counted) == (reason, exit_code, True)
    assert (second.number, second.exit_code) == (2, 0)


def test_after_max_restarts_it_fails_and_says_why(play):
    play.behave(base=[75])
    play.apply(model_import(maxRestarts=0))
    status = status_of(play.follow(), "base")
    assert status.phase == "Failed"
    assert "maxRestarts" in status.failure.message


def test_independent_resources_run_side_by_side_and_share_the_cores(play):
    play.behave(a=["hold"], b=["hold"])
    play.apply(model_import("a"), model_import("b"))
    started = [play.import_dir(name) / "started" for name in ("a", "b")]

    async def script(_):
        await until(lambda: all(path.exists() for path in started), "both work")
        release(play.import_dir("a"), play.import_dir("b"))

    assert phases(play.follow_while(script)) == {"a": "Succeeded", "b": "Succeeded"}
    assert [path.read_text().split()[1] for path in started] == ["1", "1"]


def test_a_single_run_gets_all_cores(play):
    play.run(model_import())
    assert (play.import_dir() / "started").read_text().split()[1] == "2"


def test_what_does_not_fit_beside_the_first_waits_for_its_end(play):
    play.behave(a=["hold"])
    both = {"compute": {"resources": {"cpu": "2"}}}
    play.apply(model_import("a", **both), model_import("b", **both))

    async def script(_):
        await until((play.import_dir("a") / "started").exists, "a works")
        await until(lambda: ("b", "Queued") in play.listener.heard, "b is queued")
        assert not (play.import_dir("b") / "started").exists()
        release(play.import_dir("a"))

    assert phases(play.follow_while(script)) == {"a": "Succeeded", "b": "Succeeded"}


def test_more_cores_than_there_are_are_no_reason_not_to_run(play):
    assert play.run(model_import(compute={"resources": {"cpu": "64"}})) == {"base": "Succeeded"}


def gated(name="base", **source):
    hub = {"repository": "owner/model", "revision": 40 * "a", "token": {"name": "hub", "key": "token"}, **source}
    return model_import(name, source={"hub": hub})


def test_a_token_is_taken_from_the_environment_and_asked_for_where_it_is_not(play, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    play.apply(gated())
    ending = play.follow()
    failure = status_of(ending, "base").failure
    assert (phases(ending)["base"], failure.reason) == ("Pending", "SecretNotFound")
    assert "in place of the Secret hub, key token, the environment has to hold HF_TOKEN" in failure.message
    assert "credentialsSecret" in failure.hint
    monkeypatch.setenv("HF_TOKEN", "hunter2")
    play.fresh_cluster()
    assert phases(play.follow())["base"] == "Succeeded"
    assert "hunter2" not in "".join(path.read_text() for path in play.home.root.rglob("*.json"))


def test_a_run_without_its_token_holds_nobody_up(play, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert play.run(gated(), model_import("other")) == {"base": "Pending", "other": "Succeeded"}


def test_gpus_that_are_not_there_are_refused_with_a_sentence(play):
    play.apply(model_import(), pretrain(compute={"gpusPerNode": 8}))
    ending = play.follow()
    assert phases(ending) == {"base": "Succeeded", "zh": "Queued"}
    message = headline(status_of(ending, "zh")).message
    assert "asks for 8 GPUs and this machine has no GPU" in message


def test_two_pods_run_as_two_processes_with_their_index(play):
    play.apply(model_import(), pretrain(compute={"nodes": 2}))
    assert phases(play.follow())["zh"] == "Succeeded"
    assert [path.name for path in sorted((play.home.jobs / "pj-zh-1").glob("*.log"))] == ["0.log", "1.log"]


def test_a_missing_volume_ends_the_run_and_tells_the_option(play):
    play.apply(model_import(), corpora=False)
    ending = play.follow()
    assert phases(ending) == {"base": "Waiting"}
    assert "--volume corpora=DIRECTORY" in status_of(ending, "base").conditions[1].message


def test_a_reference_to_nothing_ends_the_run_and_names_the_field(play):
    play.apply(pretrain())
    ending = play.follow()
    assert "spec.model.modelImport" in headline(status_of(ending, "zh")).message
    assert [key.name for key in ending.stuck] == ["zh"]


def test_two_resources_that_write_one_path_the_younger_is_refused(play):
    one = {"workspace": {"claim": "shared", "path": "same"}}
    play.apply(model_import("elder", **one), model_import("younger", **one))
    ending = play.follow()
    assert status_of(ending, "elder").phase == "Succeeded"
    assert headline(status_of(ending, "younger")).reason == "PathConflict"
    assert "elder" in headline(status_of(ending, "younger")).message


def test_a_stopped_run_saves_and_the_next_one_goes_on_without_counting_it(play):
    play.behave(base=["hold", "done"])
    play.apply(model_import())

    async def script(follower):
        await until((play.import_dir() / "started").exists, "it works")
        follower.stop()

    ending = play.follow_while(script)
    assert ending.interrupted
    assert (play.import_dir() / "saved").read_text() == "step 1"
    play.fresh_cluster()
    status = status_of(play.follow(), "base")
    assert status.phase == "Succeeded"
    assert [attempt.exit_code for attempt in status.attempts] == [75, 0]
    assert status.restarts == 0


def test_a_second_stop_kills_what_does_not_listen(play):
    play.behave(base=["stubborn"])
    play.apply(model_import())

    async def script(follower):
        await until((play.import_dir() / "started").exists, "it works")
        follower.stop()
        await until(lambda: follower.stops == 1, "asked")
        follower.stop()

    assert play.follow_while(script).interrupted
    assert not play.cluster.running_jobs()


def test_a_suspended_resource_is_as_asked_and_goes_on_in_the_same_attempt(play):
    play.behave(base=["done"])
    assert play.run(model_import(suspend=True)) == {"base": "Suspended"}
    play.fresh_cluster()
    assert play.run(model_import(suspend=False)) == {"base": "Succeeded"}


def test_a_request_to_stop_one_resource_leaves_the_others_alone(play):
    play.behave(a=["hold"], b=["hold"])
    play.apply(model_import("a"), model_import("b"))

    async def script(_):
        await until(lambda: all((play.import_dir(n) / "started").exists() for n in ("a", "b")), "both work")
        play.home.stops.mkdir()
        (play.home.stops / "ModelImport-a").touch()
        await until((play.import_dir("a") / "saved").exists, "a has saved")
        release(play.import_dir("b"))

    ending = play.follow_while(script)
    assert status_of(ending, "b").phase == "Succeeded"
    assert [key.name for key in ending.stuck] == ["a"]
    assert play.listener.sentences == ["ModelImport/a: stopped on request; run again to go on"]


def test_a_trainer_killed_from_outside_is_started_again(play):
    play.behave(base=["hold", "done"])
    play.apply(model_import())

    async def script(_):
        started = play.import_dir() / "started"
        await until(lambda: started.exists() and started.read_text(), "it works")
        os.kill(int(started.read_text().split()[0]), signal.SIGKILL)

    status = status_of(play.follow_while(script), "base")
    assert status.phase == "Succeeded"
    assert [attempt.exit_code for attempt in status.attempts] == [137, 0]


def test_a_run_longer_than_its_deadline_is_stopped_and_fails(play):
    play.behave(base=["hold"])
    play.apply(model_import(activeDeadlineSeconds=1))
    status = status_of(play.follow(), "base")
    assert status.phase == "Failed"
    assert status.failure.reason == "DeadlineExceeded"
    assert (play.import_dir() / "saved").exists()


def test_the_remains_of_a_finished_run_go_when_their_time_is_over_and_the_state_stays(play):
    play.apply(model_import(ttlSecondsAfterFinished=0))
    assert phases(play.follow()) == {"base": "Succeeded"}
    play.fresh_cluster()
    assert phases(play.follow()) == {"base": "Succeeded"}
    assert not (play.home.jobs / "mi-base-1").exists()
    assert (play.import_dir() / "artifact").is_dir()


def test_a_stored_resource_that_no_longer_fits_is_told_with_its_field_and_the_others_run(play):
    play.apply(model_import(), pretrain())
    path = play.home.resources / "PretrainJob" / "zh.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({**stored, "spec": {**stored["spec"], "stage": "Old"}}))
    play.fresh_cluster()
    ending = play.follow()
    assert status_of(ending, "base").phase == "Succeeded"
    assert "spec.stage" in headline(status_of(ending, "zh")).message
    assert [key.name for key in ending.stuck] == ["zh"]
