"""The preflight: the data is ready afterwards, the training ends as without it, and bad input is found before."""

import json
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import training_configs as build
from herdsman.api.exit_codes import TerminationMessage
from herdsman.api.job_config import Preflight
from herdsman.api.v1alpha1.recipes import Batch, Checkpoints, DeepSpeed, Lora
from herdsman_trainer import __main__ as command
from herdsman_trainer import deepspeed_engine, free_space, instruction_cache, token_cache
from herdsman_trainer import preflight as module
from herdsman_trainer.artifacts import read_manifest
from herdsman_trainer.errors import BadInput, Interrupted, Temporary
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.steps import pretrain, sft
from herdsman_trainer.tokenizers import load_tokenizer
from herdsman_trainer.training_inputs import assemble, open_training_inputs
from tiny import tiny_llama

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Model, corpus, records, a larger tokenizer, and in `straight` the adapter of a run without a preflight."""
    root = tmp_path_factory.mktemp("home")
    torch.set_num_threads(1)
    build.base_model(root)
    build.corpus(root)
    build.records(root)
    build.larger_tokenizer(root)
    train(build.pretrain_config(root, work="straight", tokenizer=root / "larger"))
    return root


def train(config, step=pretrain):
    context = RunContext(config)
    artifact = step.run(config, context)
    context.close()
    return artifact


def of(config, *, world_size=2, **changes):
    """The preflight of a training on GPUs."""
    preflight = Preflight(device="cuda", world_size=world_size)
    return config.model_copy(update={"preflight": preflight, "verify_inputs": "Digests", **changes})


def check(config, step=pretrain, **kwargs):
    context = RunContext(config)
    step.preflight(of(config, **kwargs), context)
    context.close()
    return json.loads((context.workspace / "progress.json").read_bytes())


def config_of(home, tmp_path, **changes):
    """A configuration over the shared inputs with a workspace of the test's own."""
    return build.pretrain_config(
        tmp_path, **{"model": home / "model", "dataset": home / "corpus", "tokenizer": home / "larger", **changes}
    )


def files_under(directory):
    return {path: path.stat().st_mtime_ns for path in sorted(directory.rglob("*")) if path.is_file()}


def weights(directory):
    return load_file(directory / "artifact" / "adapter_model.safetensors")


def assert_same_weights(one, other):
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []


def test_the_training_finds_the_data_ready_and_ends_with_the_same_weights(home, monkeypatch):
    config = build.pretrain_config(home, work="checked", tokenizer=home / "larger")
    progress = check(config)
    assert (progress["activity"], progress["step"], progress["totalSteps"]) == ("inputs checked, data ready", 0, 6)
    there = {path.name for path in (home / "checked").iterdir()}
    told = {"data-report.json", "data-report.md", "dataset.json"}
    assert there == {".attempt-1", ".owner.json", "progress.json", "cache", *told}
    cached = files_under(home / "checked" / "cache")
    assert any(path.name == "train.bin" for path in cached)
    monkeypatch.setattr(token_cache, "_tokenise", None)  # nothing is tokenised again
    train(build.pretrain_config(home, work="checked", attempt=2, tokenizer=home / "larger"))
    assert files_under(home / "checked" / "cache") == cached
    assert_same_weights(home / "checked", home / "straight")


def test_a_tuning_finds_its_records_encoded(home, monkeypatch):
    train(build.sft_config(home, work="sft-straight"), sft)
    check(build.sft_config(home, work="sft-checked"), sft)
    cached = files_under(home / "sft-checked" / "cache")
    monkeypatch.setattr(instruction_cache.InstructionEncoder, "__call__", None)
    train(build.sft_config(home, work="sft-checked", attempt=2), sft)
    assert files_under(home / "sft-checked" / "cache") == cached
    assert_same_weights(home / "sft-checked", home / "sft-straight")


def end_of(config, root, monkeypatch):
    """Run the trainer's command; returns its exit code and its last words."""
    path, words = root / "config.json", root / "end.json"
    path.write_text(config.model_dump_json(by_alias=True))
    monkeypatch.setenv("HERDSMAN_TERMINATION_FILE", str(words))
    code = command.main(["--config", str(path)])
    return code, TerminationMessage.model_validate_json(words.read_bytes())


def test_the_command_ends_well_without_an_artifact(home, tmp_path, monkeypatch):
    code, words = end_of(of(config_of(home, tmp_path)), tmp_path, monkeypatch)
    assert (code, words.reason, words.artifact) == (0, "Succeeded", None)
    assert not (tmp_path / "work" / "artifact").exists()


def test_a_line_that_is_not_json_ends_it_with_file_and_line(home, tmp_path, monkeypatch):
    lines = tmp_path / "lines"
    lines.mkdir()
    (lines / "a.jsonl").write_text('{"text": "good"}\n{"text": bad}\n')
    code, words = end_of(of(config_of(home, tmp_path, dataset=lines)), tmp_path, monkeypatch)
    assert (code, words.file, words.line) == (42, str(lines / "a.jsonl"), 2)
    assert words.hint


def test_work_that_was_published_before_is_handed_out(home, monkeypatch, tmp_path):
    again = of(build.pretrain_config(home, work="straight", attempt=2, tokenizer=home / "larger"))
    code, words = end_of(again, tmp_path, monkeypatch)
    assert (code, words.artifact) == (0, read_manifest(home / "straight" / "artifact").artifact)


RANK_4 = Lora(rank=4, alpha=4, targets=build.TARGETS, train_fully=["embed_tokens", "lm_head"])
NO_EMBEDDINGS = Lora(rank=2, alpha=4, targets=build.TARGETS, train_fully=[])
BAD = [
    ("another rank than the adapter's", {"adapter": "straight", "lora": RANK_4}, "recipe.lora.rank is 4"),
    ("an adapter for stage Full", {"adapter": "straight", "stage": "Full"}, "takes no adapter"),
    ("a layer that is none", {"lora": Lora(rank=2, alpha=4, targets=["q_prj"])}, "names q_prj"),
    ("a smaller tokenizer", {"model": "larger-model", "tokenizer": "model"}, "has 400 ids"),
    ("too little text", {"block_size": 2000}, "one block needs 2000"),
    ("a damaged weight file", {"model": "cut-model"}, "The file is cut"),
    ("a weight of another shape", {"model": "odd-model"}, "The weights do not fit config.json: 1 mismatched keys"),
    ("a weight that is not there", {"model": "poor-model"}, "1 missing keys"),
]


@pytest.fixture(scope="module")
def models(home):
    """Models that something is wrong with."""
    tiny_llama(home / "larger-model", tokenizer=home / "larger")
    for name in ("cut-model", "odd-model", "poor-model"):
        file = tiny_llama(home / name) / "model.safetensors"
        tensors = load_file(file)
        if name == "cut-model":
            file.write_bytes(file.read_bytes()[:-100])
            continue
        norm = "model.norm.weight"
        tensors = {**tensors, norm: tensors[norm][:-1].clone()} if name == "odd-model" else tensors
        save_file({key: value for key, value in tensors.items() if name == "odd-model" or key != norm}, file)
    return home


@pytest.mark.parametrize(("changes", "words"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_what_the_training_would_refuse_the_preflight_refuses(models, tmp_path, changes, words):
    places = {"straight": models / "straight" / "artifact"}
    given = {
        name: places.get(value, models / value) if name in ("model", "adapter", "tokenizer") else value
        for name, value in changes.items()
    }
    config = config_of(models, tmp_path, **given)
    for work in (check, train):
        with pytest.raises(BadInput, match=words) as refused:
            work(config)
        assert refused.value.hint


def test_an_adapter_of_another_model_is_refused(home, tmp_path):
    other = train(config_of(home, tmp_path, stage="Full", max_steps=1))
    assert other.kind == "model"
    model, adapter = tmp_path / "work" / "artifact", home / "straight" / "artifact"
    with pytest.raises(BadInput, match="was trained on the model"):
        check(config_of(home, tmp_path, work="second", model=model, adapter=adapter))


def test_new_pieces_that_nothing_can_spell_are_refused(home, tmp_path):
    model = tiny_llama(tmp_path / "model")
    (model / "tokenizer.model").unlink()
    for work in (check, train):
        with pytest.raises(BadInput, match=r"recipe\.newRows is Mean"):
            work(config_of(home, tmp_path, model=model))


def test_every_byte_of_the_inputs_is_verified(home, tmp_path):
    first = train(config_of(home, tmp_path, stage="Full", max_steps=1))
    model = tmp_path / "work" / "artifact"
    file = model / "model.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(damaged)
    assert first.kind == "model"
    with pytest.raises(BadInput) as refused:
        check(config_of(home, tmp_path, work="second", model=model))
    assert (refused.value.reason, refused.value.file) == ("ChecksumMismatch", str(file))


def test_a_batch_that_the_trainings_processes_cannot_share_is_refused(home, tmp_path):
    config = config_of(home, tmp_path, batch=Batch(global_sequences=4, micro_sequences=2))
    with pytest.raises(BadInput, match="3 processes cannot share equally"):
        check(config, world_size=3)
    assert check(config, world_size=2)["totalSteps"] == 6


def test_zero_without_deepspeed_is_refused_where_it_would_be_used(home, tmp_path, monkeypatch):
    monkeypatch.setattr(deepspeed_engine.importlib.util, "find_spec", lambda _name: None)
    config = config_of(home, tmp_path, deepspeed=DeepSpeed(zero_stage=2))
    with pytest.raises(BadInput, match="DeepSpeed is not installed"):
        check(config, world_size=2)
    check(config_of(home, tmp_path, deepspeed=DeepSpeed(zero_stage=2)), world_size=1)


def test_checkpoints_of_another_recipe_are_refused_and_ones_own_are_found(home, tmp_path):
    train(config_of(home, tmp_path, max_steps=4))
    (tmp_path / "work" / "artifact").rename(tmp_path / "elsewhere")
    assert check(config_of(home, tmp_path, max_steps=4))["step"] == 4
    with pytest.raises(BadInput, match="another recipe"):
        check(config_of(home, tmp_path, max_steps=4, learning_rate=1e-3))


def test_a_stop_is_obeyed_while_inputs_are_read(home, tmp_path):
    config = config_of(home, tmp_path)
    context = RunContext(config)
    context.request_stop()
    with pytest.raises(Interrupted):
        pretrain.preflight(of(config), context)
    context.close()


@pytest.mark.parametrize("stage", ["LoRA", "EmbeddingsOnly", "Full"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_shapes_are_those_of_the_real_model(home, tmp_path, stage, tied):
    model = tiny_llama(tmp_path / "model", tied=tied)
    lora = None if stage == "Full" else Lora(rank=2, alpha=4, targets=build.TARGETS, train_fully=["embed_tokens"])
    config = config_of(home, tmp_path, model=model, stage=stage, **({"lora": lora} if lora else {}))
    inputs = open_training_inputs(config)
    real, bare = (
        assemble(config, inputs, load_tokenizer(inputs.tokenizer), torch.device(device)) for device in ("cpu", "meta")
    )
    assert {item.device.type for item in bare.module.parameters()} == {"meta"}
    for part in ("trained", "kept"):
        shapes = [
            {name: (item.shape, item.dtype) for name, item in getattr(each, part).items()} for each in (real, bare)
        ]
        assert shapes[0] == shapes[1]
    assert (bare.tied, bare.lora_targets) == (real.tied, real.lora_targets)


def test_an_adapter_is_checked_and_not_loaded(home, tmp_path):
    config = config_of(home, tmp_path, adapter=home / "straight" / "artifact")
    inputs = open_training_inputs(config)
    tokenizer = load_tokenizer(inputs.tokenizer)
    bare = assemble(config, inputs, tokenizer, torch.device("meta"))
    real = assemble(config, inputs, tokenizer, torch.device("cpu"))
    assert {name: item.shape for name, item in bare.kept.items()} == {n: item.shape for n, item in real.kept.items()}


def sizes(workspace):
    checkpoints = sorted((workspace / "checkpoints").iterdir())
    return (
        [sum(path.stat().st_size for path in each.rglob("*")) for each in checkpoints],
        sum(path.stat().st_size for path in (workspace / "artifact").glob("*.safetensors")),
    )


@pytest.mark.parametrize("stage", ["LoRA", "Full"])
def test_the_room_is_what_the_training_writes(home, tmp_path, stage):
    config = config_of(home, tmp_path, stage=stage)
    inputs = open_training_inputs(config)
    model = assemble(config, inputs, load_tokenizer(inputs.tokenizer), torch.device("meta"))
    room = module.room(config, inputs, model, 6)
    train(config)
    checkpoints, artifact = sizes(tmp_path / "work")
    assert len(checkpoints) == room.kept
    assert np.mean(checkpoints) == pytest.approx(room.checkpoint, rel=0.1)
    assert artifact == pytest.approx(room.artifact, rel=0.1)


def test_as_many_checkpoints_are_counted_as_there_will_be():
    recipe = {"checkpoints": Checkpoints(every_steps=2, keep_last=3)}
    config = build.pretrain_config(Path("/nowhere"), **recipe)
    bare = namedtuple("Model", "trained kept")({}, {})
    assert [module.room(config, None, bare, steps).kept for steps in (1, 2, 3, 6, 100)] == [1, 1, 2, 3, 3]


def test_too_little_space_is_a_fault_with_all_figures(home, tmp_path, monkeypatch):
    config = config_of(home, tmp_path)
    inputs = open_training_inputs(config)
    room = module.room(
        config, inputs, assemble(config, inputs, load_tokenizer(inputs.tokenizer), torch.device("meta")), 6
    )
    monkeypatch.setattr(module, "free_bytes", lambda _path: room.needed)
    check(config)
    monkeypatch.setattr(module, "free_bytes", lambda _path: room.needed - 1)
    monkeypatch.setattr(pretrain, "_data", None)  # asked before anything is tokenised
    with pytest.raises(Temporary) as refused:
        check(config)
    assert (refused.value.reason, refused.value.file) == ("DiskFull", str(tmp_path / "work"))
    for figure in (free_space.size_text(room.needed), f"{room.kept + 1} checkpoints", "keepLast"):
        assert figure in f"{refused.value}"


def test_space_that_the_data_took_is_missed_afterwards(home, tmp_path, monkeypatch):
    config = config_of(home, tmp_path)
    answers = iter([1 << 40, 0])
    monkeypatch.setattr(module, "free_bytes", lambda _path: next(answers))
    with pytest.raises(Temporary, match="too little space"):
        check(config)


def test_checkpoints_that_are_there_count_as_space(home, tmp_path, monkeypatch):
    train(config_of(home, tmp_path))
    (tmp_path / "work" / "artifact").rename(tmp_path / "elsewhere")
    room = module.Room(checkpoint=sum(sizes_of(tmp_path)), kept=0, artifact=0)
    monkeypatch.setattr(module, "free_bytes", lambda _path: room.needed - room.checkpoint)
    module.require_room(tmp_path / "work" / "checkpoints", room)


def sizes_of(root):
    return [path.stat().st_size for path in (root / "work" / "checkpoints").rglob("*") if path.is_file()]
