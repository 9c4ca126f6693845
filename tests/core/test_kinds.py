"""What is peculiar to the kinds: the configuration of a run and what is wrong with a spec alone."""

import json

import pytest

from builders import (
    CLUSTER,
    checked,
    digest,
    finished,
    lora_merge,
    model_import,
    model_server,
    new_model,
    pretrain_job,
    sft_job,
    tokenizer_merge,
    world,
)
from herdsman.api.job_config import RUN_CONFIG, ServerConfig
from herdsman.core.plan import plan

BASE = finished(model_import())


def config(resource, *others):
    planned = plan(resource, world(BASE, *others), CLUSTER)
    (text,) = (child["data"]["job.json"] for child in planned.children if child["kind"] == "ConfigMap")
    return (ServerConfig.model_validate_json if resource.kind == "ModelServer" else RUN_CONFIG.validate_json)(text)


def refusal(resource, *others):
    return plan(resource, world(BASE, *others), CLUSTER).refused


def test_a_model_import_reads_its_directory():
    read = config(model_import(sha256={"model.safetensors": digest("weights")}, dtype="float16"))
    assert (read.source.root, read.source.path) == ("/volumes/weights", "/volumes/weights/llama")
    assert read.source.field == "spec.source.volume"
    assert (read.initialise, read.tokenizer) == (None, None)
    assert (read.sha256, read.dtype) == ({"model.safetensors": digest("weights")}, "float16")


def test_a_new_model_reads_its_tokenizer():
    read = config(new_model(hiddenSize=64, attentionHeads=4))
    assert read.source is None
    assert read.initialise.hidden_size == 64
    assert read.tokenizer.path == "/volumes/tokenizers/llama"
    assert read.tokenizer.field == "spec.source.initialise.tokenizer.volume"


def test_a_tokenizer_merge_keeps_the_order_of_its_sources():
    sources = [{"volume": {"claim": "tokenizers", "path": name}} for name in ("b.model", "a.model")]
    read = config(
        tokenizer_merge(sources=sources, padToken=True, sample={"volume": {"claim": "corpora", "path": "s.txt"}})
    )
    assert [source.path for source in read.sources] == ["/volumes/tokenizers/b.model", "/volumes/tokenizers/a.model"]
    assert read.base.artifact == BASE.status.artifact
    assert read.sample.path == "/volumes/corpora/s.txt"
    assert read.pad_token is True


def test_eight_sources_stay_in_order():
    sources = [{"volume": {"claim": "tokenizers", "path": f"{n}.model"}} for n in range(8)]
    assert [s.path[-7:] for s in config(tokenizer_merge(sources=sources)).sources] == [f"{n}.model" for n in range(8)]


def test_a_merge_keeps_the_order_of_its_adapters():
    first = finished(pretrain_job("zh"))
    second = finished(sft_job("tuned"), parents=[first.status.artifact.digest])
    read = config(
        lora_merge(
            adapters=[{"pretrainJob": "zh"}, {"sftJob": "tuned"}], outputs={"huggingface": {"maxShardMebibytes": 2}}
        ),
        first,
        second,
    )
    assert [adapter.field for adapter in read.adapters] == ["spec.adapters[0].pretrainJob", "spec.adapters[1].sftJob"]
    assert read.outputs.huggingface.max_shard_mebibytes == 2


def test_a_merge_reads_its_importance_matrix():
    matrix = {"volume": {"claim": "weights", "path": "zh/imatrix.gguf"}}
    read = config(lora_merge(adapters=[], outputs={"gguf": [{"type": "Q4_K"}], "importanceMatrix": matrix}))
    assert read.importance_matrix.path == "/volumes/weights/zh/imatrix.gguf"
    assert read.importance_matrix.field == "spec.outputs.importanceMatrix.volume"
    assert config(lora_merge(adapters=[])).importance_matrix is None


def test_a_whole_volume_is_its_mount_point():
    (dataset,) = config(sft_job()).datasets
    assert (dataset.source.root, dataset.source.path) == ("/volumes/instructions", "/volumes/instructions")


def test_a_training_knows_where_its_dataset_is_named_and_what_it_is():
    given = {"volume": {"claim": "corpora", "path": "zh"}, "sha256": {"a.txt": digest("a")}}
    (dataset,) = config(pretrain_job(dataset=given)).datasets
    assert (dataset.field, dataset.source.field) == ("spec.dataset", "spec.dataset.volume")
    assert dataset.label == "volume corpora, path zh"
    assert (dataset.weight, dataset.remote, dataset.sha256) == (None, None, {"a.txt": digest("a")})


def test_the_datasets_of_a_mixture_stay_in_order_with_their_weights():
    hub = {"repository": "wikimedia/wikipedia", "revision": "0" * 40}
    mixed = [
        {"volume": {"claim": "corpora", "path": "zh"}, "weight": 7},
        {"hub": hub, "weight": 2, "keepDownloads": False},
        {"s3": {"bucket": "texts", "prefix": "en"}, "weight": 1},
    ]
    for resource in (pretrain_job(dataset=None, datasets=mixed), sft_job(dataset=None, datasets=mixed)):
        first, second, third = config(resource).datasets
        assert [each.field for each in (first, second, third)] == [f"spec.datasets[{place}]" for place in range(3)]
        assert [each.weight for each in (first, second, third)] == [7, 2, 1]
        assert first.source.field == "spec.datasets[0].volume"
        assert (second.source, second.remote.hub.repository, second.keep_downloads) == (None, hub["repository"], False)
        assert (second.label, third.label) == ("hub wikimedia/wikipedia", "s3://texts/en")


def test_a_training_gets_every_field_of_its_recipe():
    recipe = config(pretrain_job(compute={"gpusPerNode": 1})).recipe.to_json()
    assert recipe["learningRate"] == 2e-4
    assert recipe["lora"]["rank"] == 8
    assert recipe["blockSize"] == 512
    assert {"batch", "schedule", "precision", "baseFormat", "deepspeed", "checkpoints"} <= recipe.keys()
    assert recipe["batch"].keys() == {"globalSequences"}


def test_on_gpus_the_presets_numbers_hold():
    read = config(checked(pretrain_job(compute={"gpusPerNode": 2})))
    assert (read.device, read.recipe.precision, read.recipe.recompute) == ("cuda", "fp16", None)
    assert read.deepspeed.zero_stage == 2
    assert read.launch.processes_per_node == 2


def test_fsdp_takes_the_place_of_the_presets_deepspeed():
    recipe = {"fsdp": {}, "precision": "bf16"}
    read = config(checked(pretrain_job(recipe=recipe, compute={"gpusPerNode": 2})))
    assert read.deepspeed is None
    assert read.recipe.deepspeed is None
    assert read.recipe.fsdp.reshard_after_forward


@pytest.mark.parametrize("resource", [pretrain_job(), sft_job()], ids=["PretrainJob", "SFTJob"])
def test_on_the_cpu_what_is_not_said_becomes_what_a_cpu_can_do(resource):
    read = config(resource)
    assert (read.device, read.recipe.precision, read.recipe.recompute) == ("cpu", "float32", None)
    assert read.deepspeed is None
    assert read.recipe.deepspeed.zero_stage == 0


def test_on_the_cpu_what_is_said_is_kept():
    read = config(
        pretrain_job(
            recipe={"precision": "bf16", "recompute": "Full", "deepspeed": {"zeroStage": 2}},
            compute={"processesPerNode": 2},
        )
    )
    assert (read.recipe.precision, read.recipe.recompute, read.deepspeed.zero_stage) == ("bf16", "Full", 2)
    assert read.launch.processes_per_node == 2


def test_the_micro_batch_is_left_to_the_trainer_unless_it_is_given():
    given = {"batch": {"globalSequences": 8, "microSequences": 2}}
    assert config(pretrain_job(compute={"gpusPerNode": 8})).recipe.batch.micro_sequences is None
    assert config(pretrain_job(recipe=given)).recipe.batch.micro_sequences == 2


INVALID = [
    (
        "fp16 without a GPU",
        pretrain_job(recipe={"precision": "fp16"}),
        "spec.recipe.precision",
        "fp16 needs a GPU",
        "bf16 or float32",
    ),
    (
        "fp16, which the preset says, with FSDP",
        pretrain_job(recipe={"fsdp": {}}, compute={"gpusPerNode": 2}),
        "spec.recipe.precision",
        "not with fsdp",
        "bf16, or recipe.deepspeed",
    ),
    (
        "fp16 without a GPU, tuning",
        sft_job(recipe={"precision": "fp16"}),
        "spec.recipe.precision",
        "fp16 needs a GPU",
        "bf16 or float32",
    ),
    (
        "a batch that cannot be shared",
        pretrain_job(recipe={"batch": {"globalSequences": 10}}, compute={"processesPerNode": 4}),
        "spec.recipe.batch.globalSequences",
        "10 sequences cannot be shared evenly by 4 processes",
        "8 or 12",
    ),
    (
        "a batch smaller than the number of processes",
        sft_job(recipe={"batch": {"globalSequences": 2}}, compute={"processesPerNode": 4}),
        "spec.recipe.batch.globalSequences",
        "2 sequences cannot be shared evenly by 4 processes",
        "Set batch.globalSequences to 4",
    ),
    (
        "a micro-batch that does not divide",
        pretrain_job(recipe={"batch": {"globalSequences": 10, "microSequences": 4}}),
        "spec.recipe.batch.globalSequences",
        "micro-batches of 4",
        "8 or 12",
    ),
    (
        "heads of an odd width",
        new_model(hiddenSize=72, attentionHeads=8),
        "spec.source.initialise.hiddenSize",
        "72 over 8 attentionHeads leaves each an odd width",
        "multiple of 16",
    ),
]


@pytest.mark.parametrize(
    ("resource", "field", "words", "remedy"), [row[1:] for row in INVALID], ids=[row[0] for row in INVALID]
)
def test_refused(resource, field, words, remedy):
    problem = refusal(resource)
    assert (problem.reason, problem.field) == ("InvalidSpec", field)
    assert words in problem.message
    assert remedy in problem.hint


def test_a_server_answers_under_its_name_with_the_template_of_the_last_tuned_part():
    tuned = finished(sft_job("tuned"), prompt_template="alpaca")
    read = config(model_server(model={"modelImport": "base"}, adapters=[{"sftJob": "tuned"}]), tuned)
    assert (read.model_name, read.template, read.host, read.port) == ("chat", "alpaca", "0.0.0.0", 8000)
    assert [adapter.field for adapter in read.adapters] == ["spec.adapters[0].sftJob"]


def test_a_servers_own_template_and_name_win():
    merged = finished(lora_merge(), prompt_template="alpaca")
    read = config(model_server(template="chatml", modelName="llama/zh", port=9000), merged)
    assert (read.template, read.model_name, read.port) == ("chatml", "llama/zh", 9000)


def test_a_model_that_was_never_tuned_leaves_the_template_open():
    assert config(model_server(model={"modelImport": "base"})).template is None


def test_a_configuration_says_nothing_twice():
    planned = plan(pretrain_job(), world(BASE), CLUSTER)
    text = next(child["data"]["job.json"] for child in planned.children if child["kind"] == "ConfigMap")
    assert json.loads(text) == RUN_CONFIG.validate_json(text).to_json()
