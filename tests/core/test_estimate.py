"""Estimates: the formulas against published counts and measurements, and what is known before anything exists."""

import pytest

from builders import (
    CLUSTER,
    artifact,
    digest,
    finished,
    lora_merge,
    model_import,
    model_server,
    new_model,
    pretrain_job,
    sft_job,
    tokenizer_merge,
    with_status,
    world,
)
from herdsman.api.v1alpha1.status import Attempt, Estimate, Status
from herdsman.core.estimate import GIB, TrainingLoad, flops_per_token, training, training_bytes
from herdsman.core.kinds.pretrain_job import recipe_of
from herdsman.core.plan import plan
from herdsman.core.shapes import PUBLISHED, approximate

CHINESE_7B = PUBLISHED["llama-7b"].with_vocabulary(49953)
PROJECTIONS_OF_ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
SHAPE = "herdsman.dev/model-shape"
PIECES = "herdsman.dev/vocabulary"


def load(shape=CHINESE_7B, stage="LoRA", *, compute=None, **recipe):
    recipe.setdefault("batch", {"globalSequences": 8, "microSequences": 1})
    job = pretrain_job(stage=stage, recipe=recipe, compute=compute or {"gpusPerNode": 1})
    resolved = recipe_of(job)
    return TrainingLoad(shape, resolved, stage, resolved.block_size, job.spec.compute)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama-7b", 6_738_415_616),
        ("llama-13b", 13_015_864_320),
        ("llama-33b", 32_528_943_616),
        ("llama-65b", 65_285_660_672),
        ("llama-2-7b", 6_738_415_616),
        ("llama-2-13b", 13_015_864_320),
        ("llama-2-70b", 68_976_648_192),
        ("llama-3-8b", 8_030_261_248),
        ("llama-3-70b", 70_553_706_496),
        ("smollm2-135m", 134_515_008),
    ],
)
def test_the_published_models_have_their_published_number_of_parameters(name, parameters):
    assert PUBLISHED[name].parameters == parameters


TRAINED = [
    ("embeddings alone", {"stage": "EmbeddingsOnly"}, 49953, 204_607_488, 6_885_486_592),
    (
        "LoRA on the attention, embeddings and head",
        {"lora": {"targets": PROJECTIONS_OF_ATTENTION}},
        49953,
        417_603_584,
        6_893_875_200,
    ),
    ("LoRA on all seven, embeddings and head", {}, 49953, 429_203_456, 6_905_475_072),
    ("the same with [PAD]", {}, 49954, 429_211_648, 6_905_483_264),
    ("the second generation, 7B", {"preset": "chinese-llama-v2"}, 55296, 612_892_672, 7_089_164_288),
]


@pytest.mark.parametrize(
    ("recipe", "rows", "trained", "total"), [row[1:] for row in TRAINED], ids=[row[0] for row in TRAINED]
)
def test_trained_and_all_parameters_are_those_of_the_published_logs(recipe, rows, trained, total):
    found = load(
        CHINESE_7B.with_vocabulary(rows),
        recipe.get("stage", "LoRA"),
        **{k: v for k, v in recipe.items() if k != "stage"},
    )
    assert found.trained_parameters == trained
    assert found.shape.parameters + found.lora_parameters == total


def test_the_second_generation_at_13b_trains_as_many_as_its_log_says():
    found = load(PUBLISHED["llama-2-13b"].with_vocabulary(55296), preset="chinese-llama-v2")
    assert found.trained_parameters == 816_578_560


LLAMA_3 = PUBLISHED["llama-3-8b"]
MEASURED = {
    "7B": (36.03, CHINESE_7B, {"batch": 8, "recompute": "None"}),
    "7B, recomputed": (22.13, CHINESE_7B, {"batch": 8, "recompute": "Full"}),
    "7B in 4 bits, 1,024 tokens": (11.27, CHINESE_7B, {"batch": 2, "recompute": "Full", "baseFormat": "NF4"}),
    "7B in 4 bits, 2,048 tokens": (11.67, CHINESE_7B, {"batch": 4, "recompute": "Full", "baseFormat": "NF4"}),
    "7B in fp8": (36.04, CHINESE_7B, {"batch": 8, "recompute": "None", "baseFormat": "FP8"}),
    "8B, rank 64": (68.99, LLAMA_3, {"batch": 8, "recompute": "None", "blockSize": 1024, "lora": {"rank": 64}}),
}
"""Peaks in GB on an H200 (benchmarks/train.md), bf16, blocks of 512 unless said, so many sequences at once."""


@pytest.mark.parametrize(("peak", "shape", "recipe"), MEASURED.values(), ids=MEASURED.keys())
def test_what_was_measured_is_what_is_estimated(peak, shape, recipe):
    batch = {"globalSequences": 8, "microSequences": recipe["batch"]}
    options = {**recipe, "batch": batch, "precision": "bf16", "deepspeed": {"zeroStage": 0}}

    assert training_bytes(load(shape, **options)) / 1e9 == pytest.approx(peak, rel=0.04)


def test_what_is_left_to_the_memory_is_estimated_at_its_least():
    left = load(batch={"globalSequences": 8})
    least = load(batch={"globalSequences": 8, "microSequences": 1}, recompute="Full")

    assert training_bytes(left) == training_bytes(least)


def test_the_operations_per_token_are_those_of_the_accounting():
    assert flops_per_token(load()) / 1e9 == pytest.approx(27.65, abs=0.01)


EIGHT = {"gpusPerNode": 8}
LESS = [
    ("recomputing gate and up", {"recompute": "None"}, {"recompute": "Selective"}),
    ("recomputing all", {"recompute": "Selective"}, {"recompute": "Full"}),
    ("8 bits", {}, {"baseFormat": "Int8"}),
    ("4 bits after 8", {"baseFormat": "Int8"}, {"baseFormat": "NF4"}),
    ("a smaller micro-batch", {"batch": {"globalSequences": 8, "microSequences": 8}}, {}),
    ("shorter blocks", {"blockSize": 2048}, {}),
    ("16 bits", {"precision": "float32"}, {"precision": "bf16"}),
    (
        "ZeRO 1 after none",
        {"compute": EIGHT, "deepspeed": {"zeroStage": 0}},
        {"compute": EIGHT, "deepspeed": {"zeroStage": 1}},
    ),
    (
        "ZeRO 2 after 1",
        {"compute": EIGHT, "deepspeed": {"zeroStage": 1}},
        {"compute": EIGHT, "deepspeed": {"zeroStage": 2}},
    ),
    (
        "ZeRO 3 after 2",
        {"compute": EIGHT, "deepspeed": {"zeroStage": 2}},
        {"compute": EIGHT, "deepspeed": {"zeroStage": 3}},
    ),
    (
        "FSDP after ZeRO 2",
        {"compute": EIGHT, "deepspeed": {"zeroStage": 2}},
        {"compute": EIGHT, "fsdp": {}},
    ),
    (
        "FSDP that gives up what it has used",
        {"compute": EIGHT, "fsdp": {"reshardAfterForward": False}},
        {"compute": EIGHT, "fsdp": {}},
    ),
    ("offloading", {}, {"deepspeed": {"zeroStage": 2, "offload": "optimizer"}}),
    ("a smaller rank", {"lora": {"rank": 64}}, {}),
    ("no embeddings", {}, {"lora": {"trainFully": []}}),
    ("LoRA after full training", {"stage": "Full"}, {}),
]


@pytest.mark.parametrize(("more", "less"), [row[1:] for row in LESS], ids=[row[0] for row in LESS])
def test_less_memory_is_needed_with(more, less):
    def needed(options):
        options = {"batch": {"globalSequences": 8, "microSequences": 1}, **options}
        return training_bytes(load(CHINESE_7B, options.pop("stage", "LoRA"), **options))

    assert needed(dict(less)) < needed(dict(more))


def test_a_checkpoint_holds_what_is_trained_and_its_moments():
    assert training(load()).checkpoint_bytes == 429_203_456 * 12


def test_the_disk_holds_the_kept_checkpoints_one_more_and_the_result():
    few, many = (training(load(checkpoints={"keepLast": n})).estimate.disk_gib for n in (1, 3))
    assert many - few == pytest.approx(2 * 429_203_456 * 12 / GIB, abs=0.1)


def test_tied_embeddings_are_counted_once():
    tied = load(PUBLISHED["smollm2-135m"])
    lora = PUBLISHED["smollm2-135m"].lora_parameters(8, ["q_proj"])
    assert lora == 30 * 8 * (576 + 576)
    assert tied.full_parameters == 49152 * 576


def test_hours_are_told_only_where_the_gpu_and_the_steps_are_known():
    known = {"gpusPerNode": 8, "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H200"}}
    batch = {"globalSequences": 1024}
    hours = training(load(compute=known, batch=batch, maxSteps=3000)).estimate.hours
    tokens = 3000 * 1024 * 512
    assert hours == pytest.approx(tokens * 27.65e9 * 1 / (8 * 989e12 * 0.5) / 3600, rel=0.05)
    assert training(load(compute={"gpusPerNode": 8}, batch=batch, maxSteps=3000)).estimate.hours is None
    assert training(load(compute=known, batch=batch)).estimate.hours is None


@pytest.mark.parametrize("name", ["llama-7b", "llama-13b", "llama-33b", "llama-65b"])
def test_a_model_of_unknown_shape_is_guessed_from_its_size(name):
    shape = PUBLISHED[name]
    guessed = approximate(shape.parameters, shape.vocabulary)
    assert guessed.parameters == pytest.approx(shape.parameters, rel=0.01)
    assert guessed.hidden == shape.hidden


@pytest.mark.parametrize("parameters", [10**5, 10**7, 134_515_008, 3 * 10**9, 2 * 10**11])
def test_a_guess_has_about_the_size_it_was_made_from(parameters):
    assert approximate(parameters, 1000).parameters == pytest.approx(parameters, rel=0.05)


# What is known before anything exists.


def estimate(resource, *others):
    return plan(resource, world(*others), CLUSTER).estimate


HINTED = model_import(metadata={"annotations": {SHAPE: "llama-7b"}})
ZH_TOKENIZER = tokenizer_merge("zh", metadata={"annotations": {PIECES: "49953"}})
ON_A_GPU = {"gpusPerNode": 1}


def test_nothing_is_told_where_nothing_is_known():
    assert estimate(pretrain_job(compute=ON_A_GPU)) == Estimate()
    assert estimate(pretrain_job(compute=ON_A_GPU), model_import()) == Estimate()
    assert estimate(model_import()) == Estimate()
    assert estimate(lora_merge()) == Estimate()


def test_an_annotation_tells_the_shape_of_weights_that_are_not_there():
    job = pretrain_job(compute=ON_A_GPU, tokenizer={"tokenizerMerge": "zh"}, recipe={"batch": {"microSequences": 1}})
    told = estimate(job, HINTED, ZH_TOKENIZER)
    assert told.gpu_memory_gib == pytest.approx(22.4e9 / GIB, rel=0.15)
    assert told.disk_gib > 15
    assert estimate(HINTED).disk_gib == pytest.approx(6_738_415_616 * 2 / GIB, abs=0.1)


def test_a_resource_that_reads_a_volume_may_carry_the_annotation_itself():
    job = pretrain_job(
        model={"volume": {"claim": "weights"}}, compute=ON_A_GPU, metadata={"annotations": {SHAPE: "llama-3-8b"}}
    )
    assert estimate(job).gpu_memory_gib > 20


@pytest.mark.parametrize("pieces", ["", "many", "-3", "٣", "0", "9" * 12])
def test_an_annotation_that_is_no_number_is_ignored(pieces):
    odd = tokenizer_merge("zh", metadata={"annotations": {PIECES: pieces}})
    job = pretrain_job(compute=ON_A_GPU, tokenizer={"tokenizerMerge": "zh"})
    assert estimate(job, HINTED, odd) == estimate(pretrain_job(compute=ON_A_GPU), HINTED)


def test_the_shape_passes_through_merges_and_trainings():
    chain = [
        HINTED,
        ZH_TOKENIZER,
        pretrain_job("zh", tokenizer={"tokenizerMerge": "zh"}),
        lora_merge("merged", adapters=[{"pretrainJob": "zh"}]),
    ]
    tuning = sft_job(model={"loraMerge": "merged"}, compute=ON_A_GPU)
    direct = sft_job(model={"modelImport": "base"}, adapter={"pretrainJob": "zh"}, compute=ON_A_GPU)
    assert estimate(tuning, *chain) == estimate(direct, *chain)
    assert estimate(lora_merge("merged", adapters=[{"pretrainJob": "zh"}]), *chain).disk_gib == pytest.approx(
        6_885_486_592 * 2 / GIB, abs=0.1
    )
    served = estimate(model_server(compute=ON_A_GPU), *chain)
    assert served.gpu_memory_gib == pytest.approx(6_885_486_592 * 2 / GIB, rel=0.15)


def test_a_new_models_shape_is_its_spec():
    sizes = {"hiddenSize": 1024, "intermediateSize": 2048, "layers": 8, "attentionHeads": 8, "keyValueHeads": 4}
    tokenizer = finished(tokenizer_merge("zh"), vocab_size=100_000)
    blocks = 8 * (3 * 1024 * 1024 + 3 * 1024 * 2048 + 2 * 1024) + 1024
    known = estimate(new_model(tokenizer={"tokenizerMerge": "zh"}, **sizes), tokenizer).disk_gib
    unknown = estimate(new_model(**sizes)).disk_gib
    tied = estimate(new_model(tokenizer={"tokenizerMerge": "zh"}, tieEmbeddings=True, **sizes), tokenizer).disk_gib
    assert known == round((blocks + 2 * 100_000 * 1024) * 4 / GIB, 1)
    assert unknown == round((blocks + 2 * 32_000 * 1024) * 4 / GIB, 2)
    assert tied == round((blocks + 100_000 * 1024) * 4 / GIB, 2)


def test_a_finished_model_is_measured_by_its_artifact():
    base = finished(model_import(), bytes=6_738_415_616 * 2)
    job = pretrain_job(compute=ON_A_GPU)
    assert estimate(job, base).gpu_memory_gib == pytest.approx(estimate(job, HINTED).gpu_memory_gib, rel=0.02)


def test_a_loop_of_references_is_not_followed_for_ever():
    loop = [lora_merge("a", model={"loraMerge": "b"}), lora_merge("b", model={"loraMerge": "a"})]
    trainings = [pretrain_job("x", adapter={"sftJob": "y"}), sft_job("y", adapter={"pretrainJob": "x"})]
    assert estimate(sft_job(model={"loraMerge": "a"}), *loop) == Estimate()
    assert estimate(sft_job(adapter={"pretrainJob": "x"}, compute=ON_A_GPU), HINTED, *trainings).gpu_memory_gib


def test_an_estimate_is_settled_once_the_run_has_begun():
    said_before = Estimate(disk_gib=1.5)
    job = with_status(pretrain_job(), Status(attempts=[Attempt(number=1)], estimate=said_before))
    assert estimate(job, HINTED) == said_before


def test_a_server_needs_room_for_its_weights_and_a_conversation():
    few, many = (
        estimate(model_server(model={"modelImport": "base"}, compute=ON_A_GPU, limits={"maxTokens": n}), HINTED)
        for n in (1, 65536)
    )
    assert few.gpu_memory_gib == pytest.approx(6_738_415_616 * 2 * 1.05 / GIB, abs=0.1)
    assert many.gpu_memory_gib - few.gpu_memory_gib == pytest.approx(65536 * 32 * 2 * 4096 * 2 * 1.05 / GIB, abs=0.2)


def test_no_gpu_memory_is_told_without_a_gpu():
    assert estimate(pretrain_job(), HINTED).gpu_memory_gib is None
    assert estimate(model_server(model={"modelImport": "base"}), HINTED) == Estimate()


def test_the_merged_weights_have_the_type_that_is_asked_for():
    halves = finished(model_import(), artifact=artifact(model_import(), bytes=6_738_415_616 * 4, dtype="float32"))
    adapter = finished(pretrain_job("zh"), base_digest=digest("ModelImport base"))
    as_base, smaller = (estimate(lora_merge(**spec), halves, adapter).disk_gib for spec in ({}, {"dtype": "bfloat16"}))
    assert as_base == pytest.approx(2 * smaller, rel=0.01)


FORMS = [
    ("one form", {"huggingface": {}}, 2),
    ("two of the same type", {"huggingface": {}, "pth": {}}, 4),
    ("with a quantised file", {"huggingface": {}, "gguf": [{"type": "Q8_0"}]}, 2 + 34 / 32),
    ("several files", {"gguf": [{"type": "F16"}, {"type": "Q4_K"}]}, 2 + 144 / 256),
]


@pytest.mark.parametrize(("outputs", "each"), [case[1:] for case in FORMS], ids=[case[0] for case in FORMS])
def test_the_disk_of_a_merge_is_that_of_all_its_forms(outputs, each):
    merge = lora_merge("again", adapters=[], outputs=outputs)
    assert estimate(merge, HINTED).disk_gib == pytest.approx(6_738_415_616 * each / GIB, abs=0.1)


def test_the_size_of_several_forms_tells_no_shape():
    several = finished(model_import(), bytes=6_738_415_616 * 4, formats=["huggingface", "gguf"])
    assert estimate(pretrain_job(compute=ON_A_GPU), several) == Estimate()
