"""The presets carry the published values of each generation."""

import pytest

from herdsman.api.v1alpha1.recipes import (
    PROJECTIONS,
    Batch,
    Lora,
    PretrainRecipe,
    Schedule,
    SFTRecipe,
    resolve_pretrain,
    resolve_sft,
)

V1, V2, V3 = "chinese-llama-v1", "chinese-llama-v2", "llama-3-chinese-v3"
PUBLISHED = {
    # field: (v1 pre-training, v1 tuning, v2 pre-training, v2 tuning, v3 pre-training, v3 tuning)
    "learningRate": (2e-4, 1e-4, 2e-4, 1e-4, 1e-4, 1e-4),
    "lora.rank": (8, 8, 64, 64, 64, 64),
    "lora.alpha": (32, 32, 128, 128, 128, 128),
    "lora.dropout": (0.05,) * 6,
    "lora.targets": (PROJECTIONS,) * 6,
    "lora.trainFully": (["embed_tokens", "lm_head"],) * 6,
    "precision": ("fp16", "fp16", "fp16", "fp16", "bf16", "bf16"),
    "epochs": (1, 1, 1, 1, 1, 3),
    "schedule.kind": ("cosine",) * 6,
    "schedule.warmupRatio": (0.05, 0.03, 0.05, 0.03, 0.05, 0.03),
    "weightDecay": (0.01, 0.0, 0.01, 0.0, 0.01, 0.0),
    "blockSize": (512, None, 512, None, 1024, None),
    "maxLength": (None, 512, None, 512, None, 512),
    "checkpoints.everySteps": (200,) * 6,
    "checkpoints.keepLast": (3,) * 6,
    "recompute": (None,) * 6,
    "deepspeed.zeroStage": (2, 2, 2, 2, 0, 0),
    "heldOutFraction": (0.001,) * 6,
    "addBos": (True, None, True, None, True, None),
    "addEos": (False, None, True, None, True, None),
    "template": (None, "alpaca", None, "llama-2", None, "llama-3"),
}


def at(recipe: PretrainRecipe | SFTRecipe, path: str) -> object:
    value: object = recipe.to_json()
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


@pytest.mark.parametrize("field", PUBLISHED)
def test_the_published_values(field):
    recipes = [
        recipe
        for preset in (V1, V2, V3)
        for recipe in (resolve_pretrain(PretrainRecipe(preset=preset), "LoRA"), resolve_sft(SFTRecipe(preset=preset)))
    ]
    assert tuple(at(recipe, field) for recipe in recipes) == PUBLISHED[field]


def test_what_a_manifest_sets_wins_member_by_member():
    given = PretrainRecipe(lora=Lora(rank=16), batch=Batch(micro_sequences=2), schedule=Schedule(kind="linear"))
    resolved = resolve_pretrain(given, "LoRA")
    assert (resolved.lora.rank, resolved.lora.alpha) == (16, 32)
    assert (resolved.batch.micro_sequences, resolved.batch.global_sequences) == (2, 1024)
    assert (resolved.schedule.kind, resolved.schedule.warmup_ratio) == ("linear", 0.05)


@pytest.mark.parametrize("preset", [V1, V2, V3])
def test_a_value_of_zero_is_a_value_and_not_left_out(preset):
    resolved = resolve_pretrain(
        PretrainRecipe(preset=preset, weight_decay=0.0, held_out_fraction=0.0, lora=Lora(train_fully=[])), "LoRA"
    )
    assert (resolved.weight_decay, resolved.held_out_fraction, resolved.lora.train_fully) == (0.0, 0.0, [])


@pytest.mark.parametrize(
    "recipe", [resolve_pretrain(PretrainRecipe(max_steps=7), "LoRA"), resolve_sft(SFTRecipe(max_steps=7))]
)
def test_steps_replace_the_epochs_of_the_preset(recipe):
    assert (recipe.max_steps, recipe.epochs) == (7, None)


def test_tokens_replace_the_epochs_of_the_preset():
    recipe = resolve_pretrain(PretrainRecipe(max_tokens=1_000_000), "LoRA")
    assert (recipe.max_tokens, recipe.max_steps, recipe.epochs) == (1_000_000, None, None)


def test_the_embeddings_only_stage_trains_the_embeddings_without_the_head():
    assert resolve_pretrain(PretrainRecipe(), "EmbeddingsOnly").lora.train_fully == ["embed_tokens"]


def test_the_embeddings_only_stage_trains_what_a_manifest_names():
    given = PretrainRecipe(lora=Lora(train_fully=["embed_tokens", "lm_head"]))
    assert resolve_pretrain(given, "EmbeddingsOnly").lora.train_fully == ["embed_tokens", "lm_head"]


@pytest.mark.parametrize("preset", [V1, V2, V3])
def test_a_resolved_recipe_is_a_valid_recipe_that_resolves_to_itself(preset):
    resolved = resolve_sft(SFTRecipe(preset=preset))
    assert resolve_sft(SFTRecipe.model_validate_json(resolved.model_dump_json(by_alias=True))) == resolved
