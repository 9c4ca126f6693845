"""Planning InstructionSets, the servers they ask, and the trainings that read them."""

import json

import pytest

from builders import (
    CLUSTER,
    LAPTOP,
    NOW,
    answering,
    artifact,
    done,
    finished,
    instruction_set,
    job,
    lora_merge,
    model_import,
    model_server,
    pod,
    pretrain_job,
    said,
    sft_job,
    with_status,
    world,
)
from herdsman.api.job_config import InstructionSetConfig, SFTConfig
from herdsman.core.names import LABEL_ASKS_SERVERS, LABEL_DOWNLOADS
from herdsman.core.plan import plan
from herdsman.core.preview import assumed_success
from herdsman.core.references import loop
from herdsman.core.status import status

ELSEWHERE = {"url": "https://api.example.com/v1/", "model": "teacher", "apiKey": {"name": "teacher", "key": "token"}}
OURS = {"endpoint": {"modelServer": "chat"}}
BASE = finished(model_import("base"))


def child(planned, kind):
    (found,) = (each for each in planned.children if each["kind"] == kind)
    return found


def config_in(planned, model=InstructionSetConfig):
    (text,) = child(planned, "ConfigMap")["data"].values()
    return model.model_validate_json(text)


def environment(planned):
    return {entry["name"]: entry for entry in child(planned, "Job")["spec"]["template"]["spec"]["containers"][0]["env"]}


def pod_labels(planned):
    return child(planned, "Job")["spec"]["template"]["metadata"]["labels"]


def test_given_records_are_read_from_their_volume_and_nothing_is_let_out():
    planned = plan(instruction_set(), world(), CLUSTER)
    config = config_in(planned)
    assert config.sources[0].dataset.source.path == "/volumes/instructions"
    assert config.generate is None
    assert {LABEL_ASKS_SERVERS, LABEL_DOWNLOADS} & set(pod_labels(planned)) == set()
    assert child(planned, "Job")["metadata"]["name"] == "is-records-1"


def test_an_api_elsewhere_has_its_key_from_the_secret_and_its_pod_is_let_out():
    planned = plan(instruction_set(generate={"endpoint": ELSEWHERE}), world(), CLUSTER)
    asked = config_in(planned).generate.endpoint
    assert (asked.url, asked.model, asked.ours) == ("https://api.example.com/v1", "teacher", False)
    assert (asked.key_variable, asked.key_place) == ("HERDSMAN_ENDPOINT_API_KEY", "the key token of the Secret teacher")
    secret = environment(planned)["HERDSMAN_ENDPOINT_API_KEY"]["valueFrom"]["secretKeyRef"]
    assert secret == {"name": "teacher", "key": "token"}
    assert pod_labels(planned)[LABEL_DOWNLOADS] == "true"
    assert LABEL_ASKS_SERVERS not in pod_labels(planned)
    assert "token" not in json.dumps(environment(planned)["HERDSMAN_ENDPOINT_API_KEY"].get("value", ""))


def test_on_one_machine_the_key_is_a_variable():
    planned = plan(instruction_set(generate={"endpoint": ELSEWHERE}), world(), LAPTOP)
    assert config_in(planned).generate.endpoint.key_place == "the variable HERDSMAN_ENDPOINT_API_KEY"


WAITS = {
    "does not exist": ([], "there is no ModelServer chat"),
    "has no status yet": ([model_server("chat")], "does not answer yet (it is Pending)"),
    "is switched off": ([model_server("chat", replicas=0)], "does not answer yet"),
}


@pytest.mark.parametrize("what", WAITS)
def test_nothing_is_started_while_the_server(what):
    others, sentence = WAITS[what]
    planned = plan(instruction_set(generate=OURS), world(*others), CLUSTER)
    assert not planned.children
    (problem,) = planned.waiting_for
    assert sentence in problem.message
    assert problem.field == "spec.generate.endpoint.modelServer"
    assert ("replicas" in (problem.hint or "")) is (what == "is switched off")


def test_a_server_that_answers_is_asked_at_its_address_and_the_pod_reaches_servers_only():
    server = answering(model_server("chat", modelName="zh", limits={"maxTokens": 512}))
    planned = plan(instruction_set(generate=OURS), world(server), CLUSTER)
    generate = config_in(planned).generate
    assert (generate.endpoint.url, generate.endpoint.model) == ("http://ms-chat.default.svc:8000/v1", "zh")
    assert generate.endpoint.ours
    assert generate.spec.max_tokens == 512, "no more than the server gives"
    assert pod_labels(planned)[LABEL_ASKS_SERVERS] == "true"
    assert LABEL_DOWNLOADS not in pod_labels(planned)
    assert not [name for name in environment(planned) if "KEY" in name]
    claims = [
        volume.get("persistentVolumeClaim") for volume in child(planned, "Job")["spec"]["template"]["spec"]["volumes"]
    ]
    assert [claim["claimName"] for claim in claims if claim] == ["is-records"]


def test_the_key_of_a_server_is_taken_from_the_secret_that_it_names():
    server = answering(model_server("chat", apiKey={"secret": {"name": "keys", "key": "api"}}))
    planned = plan(instruction_set(generate=OURS), world(server), CLUSTER)
    assert environment(planned)["HERDSMAN_API_KEY"]["valueFrom"]["secretKeyRef"] == {"name": "keys", "key": "api"}
    assert config_in(planned).generate.endpoint.key_variable == "HERDSMAN_API_KEY"


def test_a_server_of_the_originals_dialect_is_refused():
    server = answering(model_server("chat", dialect="chinese-llama-alpaca"))
    planned = plan(instruction_set(generate=OURS), world(server), CLUSTER)
    assert "speaks the dialect chinese-llama-alpaca" in planned.refused.message


def test_replies_of_another_model_behind_the_same_name_are_others_and_more_replicas_change_nothing():
    def identity(server):
        return config_in(
            plan(instruction_set(generate=OURS), world(answering(server)), CLUSTER)
        ).generate.endpoint.identity

    assert identity(model_server("chat")) == identity(model_server("chat", replicas=3, port=9000))
    assert identity(model_server("chat")) != identity(model_server("chat", model={"modelImport": "base"}))


def test_a_living_attempt_goes_on_when_the_server_goes_away():
    resource = instruction_set(generate=OURS)
    planned = plan(resource, world(model_server("chat"), jobs=[job(resource)]), CLUSTER)
    assert (planned.refused, planned.attempt) == (None, 1)


def test_a_training_waits_for_its_records_and_reads_their_training_part():
    training = sft_job("tuned", dataset={"instructionSet": "records"})
    early = plan(training, world(BASE, instruction_set()), CLUSTER)
    assert ["InstructionSet records is not finished yet" in problem.message for problem in early.waiting_for] == [True]
    made = finished(instruction_set())
    planned = plan(training, world(BASE, made), CLUSTER)
    dataset = config_in(planned, SFTConfig).datasets[0].source
    assert (dataset.path, dataset.part) == ("/volumes/is-records/instructionsets/records/artifact", "train")
    assert dataset.artifact == made.status.artifact
    assert dataset.field == "spec.dataset.instructionSet"


def test_a_set_takes_the_records_of_another_one():
    other = finished(instruction_set("made"))
    resource = instruction_set("mixed", sources=[{"dataset": {"instructionSet": "made"}}])
    config = config_in(plan(resource, world(other), CLUSTER))
    assert config.sources[0].dataset.source.part == "train"


def test_records_from_elsewhere_are_downloaded_by_the_run_which_is_let_out():
    token = {"name": "keys", "key": "token"}
    hub = {"repository": "shibing624/alpaca-zh", "revision": "0" * 40, "token": token}
    sources = [{"dataset": {"hub": hub, "keepDownloads": False}}, {"dataset": {"volume": {"claim": "instructions"}}}]
    planned = plan(instruction_set(sources=sources), world(), CLUSTER)
    away, here = (source.dataset for source in config_in(planned).sources)
    assert (away.field, away.source, away.keep_downloads) == ("spec.sources[0].dataset", None, False)
    assert away.remote.hub.repository == "shibing624/alpaca-zh"
    assert (here.remote, here.source.path) == (None, "/volumes/instructions")
    assert environment(planned)["HF_TOKEN"]["valueFrom"]["secretKeyRef"] == token
    assert pod_labels(planned)[LABEL_DOWNLOADS] == "true"
    assert LABEL_ASKS_SERVERS not in pod_labels(planned)
    ours = instruction_set(sources=sources, generate=OURS)
    labels = pod_labels(plan(ours, world(answering(model_server("chat"))), CLUSTER))
    assert {LABEL_DOWNLOADS, LABEL_ASKS_SERVERS} <= set(labels), "both ways are needed then"


def test_two_sources_with_different_credentials_are_refused():
    def of_hub(name):
        return {"hub": {"repository": "a/b", "revision": "0" * 40, "token": {"name": name, "key": "token"}}}

    resource = instruction_set(sources=[{"dataset": of_hub("one")}, {"dataset": of_hub("other")}])
    refused = plan(resource, world(), CLUSTER).refused
    assert refused.field == "spec.sources[1].dataset"
    assert "it names another Secret than a dataset before it" in refused.message


def test_plain_files_have_no_parts():
    config = config_in(plan(sft_job(), world(BASE), CLUSTER), SFTConfig)
    assert config.datasets[0].source.part is None


def test_a_model_that_would_be_tuned_on_its_own_answers_is_a_loop():
    server = model_server("chat", model={"loraMerge": "merged"})
    merged = finished(model_import("base"))
    resource = instruction_set("records", generate=OURS)
    training = sft_job("tuned", dataset={"instructionSet": "records"})
    merge = lora_merge("merged", adapters=[{"sftJob": "tuned"}])
    resources = world(server, merged, training, merge).resources
    assert [str(key) for key in loop(resource, resources)] == [
        "InstructionSet records",
        "ModelServer chat",
        "LoRAMerge merged",
        "SFTJob tuned",
        "InstructionSet records",
    ]
    planned = plan(resource, world(server, merged, training, merge), CLUSTER)
    assert planned.refused.reason == "Cycle"


def test_planning_ahead_takes_a_server_as_answering():
    server = with_status(model_server("chat"), None)
    ready = with_status(server, assumed_success(server, {}, NOW))
    planned = plan(instruction_set(generate=OURS), world(ready), CLUSTER)
    assert child(planned, "Job")
    assert assumed_success(model_server("chat", replicas=0), {}, NOW) is None


def test_a_set_that_ended_early_says_so_in_its_condition():
    resource = instruction_set(generate=OURS)
    words = said(
        "Succeeded",
        "It has 620 of the 1,000 generated records, because the budget of 5 USD is spent.",
        artifact=artifact(resource),
    )
    ended = job(resource, 1, "Complete", pods=(pod(exit_code=0, phase="Succeeded", termination=words),))
    seen = world(jobs=[ended])
    told = status(resource, plan(resource, seen, CLUSTER), seen)
    (complete,) = (condition for condition in told.conditions if condition.type == "Complete")
    assert complete.message == (
        "The run is finished, and its artifact is complete. "
        "It has 620 of the 1,000 generated records, because the budget of 5 USD is spent."
    )
    assert told.phase == "Succeeded"


@pytest.mark.parametrize(
    ("reason", "remedy"), [("EndpointUnavailable", "patienceSeconds"), ("EndpointExhausted", "Fill the account up")]
)
def test_an_attempt_that_the_endpoint_ended_is_made_again_with_a_hint(reason, remedy):
    resource = instruction_set(generate=OURS)
    words = said(reason, "api.example.com does not answer.")
    fallen = job(resource, 1, "Failed", pods=(pod(exit_code=75, phase="Failed", termination=words),))
    seen = world(answering(model_server("chat")), jobs=[fallen])
    told = status(resource, plan(resource, seen, CLUSTER), seen)
    assert told.failure.reason == reason
    assert remedy in told.failure.hint
    assert told.attempts[0].counted
    assert told.phase == "Pending"


def test_a_finished_set_hands_on_a_dataset_and_no_vocabulary():
    resource = instruction_set()
    seen = world(jobs=[done(resource)])
    told = status(resource, plan(resource, seen, CLUSTER), seen)
    assert (told.artifact.kind, told.artifact.vocab_size) == ("dataset", None)


def test_running_text_is_no_instruction_set():
    assert "instruction_set" not in type(pretrain_job().spec.dataset).model_fields
