"""References: which there are, loops, and what becomes of each."""

import pytest

from builders import (
    CLUSTER,
    LAPTOP,
    artifact,
    digest,
    failed,
    finished,
    lora_merge,
    model_import,
    model_server,
    new_model,
    one_of_each,
    pretrain_job,
    sft_job,
    tokenizer_merge,
    world,
)
from herdsman.core import references
from herdsman.core.plan import plan
from herdsman.core.volumes import claims
from herdsman.core.world import Key


@pytest.mark.parametrize(
    ("resource", "expected"),
    [
        (model_import(), []),
        (
            new_model(tokenizer={"tokenizerMerge": "zh"}),
            [("spec.source.initialise.tokenizer.tokenizerMerge", Key("TokenizerMerge", "zh"))],
        ),
        (tokenizer_merge(), [("spec.base.modelImport", Key("ModelImport", "base"))]),
        (
            pretrain_job(adapter={"sftJob": "a"}, tokenizer={"tokenizerMerge": "t"}),
            [
                ("spec.model.modelImport", Key("ModelImport", "base")),
                ("spec.adapter.sftJob", Key("SFTJob", "a")),
                ("spec.tokenizer.tokenizerMerge", Key("TokenizerMerge", "t")),
            ],
        ),
        (
            lora_merge(adapters=[{"pretrainJob": "one"}, {"sftJob": "two"}]),
            [
                ("spec.model.modelImport", Key("ModelImport", "base")),
                ("spec.adapters[0].pretrainJob", Key("PretrainJob", "one")),
                ("spec.adapters[1].sftJob", Key("SFTJob", "two")),
            ],
        ),
        (model_server(), [("spec.model.loraMerge", Key("LoRAMerge", "merged"))]),
    ],
    ids=lambda value: value.kind if hasattr(value, "kind") else "",
)
def test_a_resource_names_its_inputs_in_the_order_of_its_spec(resource, expected):
    assert references.direct(resource) == expected


def test_volumes_are_listed_with_their_fields():
    job = pretrain_job(model={"volume": {"claim": "weights"}})
    assert [(field, volume.claim) for field, volume in references.volumes(job)] == [
        ("spec.model.volume", "weights"),
        ("spec.dataset.volume", "corpora"),
    ]


def test_the_claims_of_a_resource_are_its_own_those_it_reads_and_those_of_its_inputs_artifacts():
    base = finished(model_import())
    assert claims(pretrain_job(), {references.key_of(base): base}) == ["corpora", "mi-base", "pj-zh"]


def test_a_chain_has_no_loop():
    chain = one_of_each()
    others = {references.key_of(resource): resource for resource in chain}
    assert [references.loop(resource, others) for resource in chain] == [[]] * len(chain)


def test_a_loop_is_refused_and_named_from_end_to_end():
    job = pretrain_job("a", model={"loraMerge": "b"})
    merge = lora_merge("b", model={"modelImport": "base"}, adapters=[{"sftJob": "c"}])
    tuned = sft_job("c", model={"modelImport": "base"}, adapter={"pretrainJob": "a"})
    planned = plan(job, world(model_import(), merge, tuned), CLUSTER)
    assert planned.refused.reason == "Cycle"
    assert "PretrainJob a -> LoRAMerge b -> SFTJob c -> PretrainJob a" in planned.refused.message
    assert planned.refused.field == "spec.model.loraMerge"
    assert planned.children == ()


def test_a_resource_that_names_itself_is_a_loop():
    job = pretrain_job("a", adapter={"pretrainJob": "a"})
    assert "PretrainJob a -> PretrainJob a" in plan(job, world(finished(model_import())), CLUSTER).refused.message


WAITING = [
    ("a missing resource", pretrain_job(), [], "ReferenceNotFound", "there is no ModelImport base"),
    ("an unfinished resource", pretrain_job(), [model_import()], "ReferenceNotReady", "not finished yet"),
    ("a failed resource", pretrain_job(), [failed(model_import())], "ReferenceFailed", "data.jsonl, line 3"),
    (
        "a missing volume",
        pretrain_job(dataset={"volume": {"claim": "nowhere"}}),
        [finished(model_import())],
        "VolumeNotFound",
        "spec.dataset.volume: the volume nowhere does not exist",
    ),
]


@pytest.mark.parametrize(
    ("resource", "others", "reason", "words"), [row[1:] for row in WAITING], ids=[r[0] for r in WAITING]
)
def test_a_resource_waits_for(resource, others, reason, words):
    planned = plan(resource, world(*others), CLUSTER)
    assert planned.refused is None
    assert planned.children == ()
    assert [problem.reason for problem in planned.waiting_for] == [reason]
    assert words in planned.waiting_for[0].message
    assert planned.requeue_after is not None


def test_all_that_is_missing_is_told_at_once():
    job = pretrain_job(tokenizer={"tokenizerMerge": "t"}, dataset={"volume": {"claim": "nowhere"}})
    fields = [problem.field for problem in plan(job, world(), CLUSTER).waiting_for]
    assert fields == ["spec.model.modelImport", "spec.tokenizer.tokenizerMerge", "spec.dataset.volume"]


def test_on_one_machine_a_missing_volume_comes_with_the_option_that_maps_it():
    job = pretrain_job(dataset={"volume": {"claim": "nowhere"}})
    (problem,) = plan(job, world(finished(model_import())), LAPTOP).waiting_for
    assert "--volume nowhere=DIRECTORY" in problem.hint


def test_the_volume_of_a_finished_input_must_still_be_there():
    base = finished(model_import())
    (problem,) = plan(pretrain_job(), world(base, volumes=["corpora"]), CLUSTER).waiting_for
    assert problem.reason == "VolumeNotFound"
    assert "holds the artifact of ModelImport base" in problem.message
    (locally,) = plan(pretrain_job(), world(base, volumes=["corpora"]), LAPTOP).waiting_for
    assert "delete ModelImport base and apply it again" in problem.hint
    assert locally.hint == problem.hint


WRONG_KIND = [
    (
        "an adapter as a model",
        sft_job(model={"pretrainJob": "zh"}),
        pretrain_job("zh", stage="LoRA"),
        "PretrainJob zh of stage LoRA makes an adapter, and a model is needed",
        "LoRAMerge",
    ),
    (
        "a fully trained model as an adapter",
        sft_job(adapter={"pretrainJob": "zh"}),
        pretrain_job("zh", stage="Full"),
        "PretrainJob zh of stage Full makes a model, and an adapter is needed",
        "Name it as the model",
    ),
]


@pytest.mark.parametrize(
    ("resource", "other", "words", "remedy"), [row[1:] for row in WRONG_KIND], ids=[row[0] for row in WRONG_KIND]
)
def test_a_reference_to_the_wrong_kind_of_artifact_is_refused_even_before_it_is_made(resource, other, words, remedy):
    problem = plan(resource, world(finished(model_import()), other), CLUSTER).refused
    assert problem.reason == "ArtifactMismatch"
    assert words in problem.message
    assert remedy in problem.hint


def test_a_model_may_stand_in_for_its_tokenizer():
    base = finished(model_import())
    planned = plan(tokenizer_merge(base={"modelImport": "base"}), world(base), CLUSTER)
    assert planned.waiting_for == ()
    assert planned.children != ()


def test_an_input_of_a_finished_resource_carries_its_contract():
    base = finished(model_import(), artifact=artifact(model_import(), digest=digest("mine")))
    planned = plan(pretrain_job(), world(base), CLUSTER)
    assert digest("mine") in planned.children[1]["data"]["job.json"]
