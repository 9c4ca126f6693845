"""Pre-training from files to artifact, through crashes, stops and damage, in all stages."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import training_configs as build
from herdsman.api.exit_codes import TerminationMessage
from herdsman.api.job_config import LoRAMergeConfig
from herdsman.api.v1alpha1.recipes import Lora
from herdsman_trainer import __main__ as command
from herdsman_trainer.artifacts import read_manifest
from herdsman_trainer.checkpoint_saver import THREAD
from herdsman_trainer.engines import PlainEngine
from herdsman_trainer.errors import BadInput
from herdsman_trainer.models import load_model, read_matrix
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.steps import lora_merge, pretrain
from herdsman_trainer.tokenizers import load_tokenizer
from herdsman_trainer.weights.adapters import load_adapter
from herdsman_trainer.weights.merge import EMBEDDING, HEAD
from ranks import in_child
from tiny import CHINESE, tiny_llama

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Model, corpus, a larger tokenizer, and in `straight` the result of a run that nothing disturbed."""
    root = tmp_path_factory.mktemp("home")
    build.base_model(root)
    build.corpus(root)
    build.larger_tokenizer(root)
    assert start(build.pretrain_config(root, work="straight")) == 0
    return root


def start(config, disturb=lambda: None):
    """Run the trainer's command in a child process; returns its exit code."""
    path = file_of(config, "config")
    path.write_text(config.model_dump_json(by_alias=True))

    def work():
        torch.set_num_threads(1)
        disturb()
        os._exit(command.main(["--config", str(path)]))

    return in_child(work, HERDSMAN_TERMINATION_FILE=str(file_of(config, "end")))


def file_of(config, what):
    return Path(config.workspace.root) / f"{config.workspace.relative}-{config.attempt}-{what}.json"


def last_words(config):
    return TerminationMessage.model_validate_json(file_of(config, "end").read_bytes())


def run(config, step=pretrain):
    context = RunContext(config)
    artifact = step.run(config, context)
    context.close()
    return artifact


def weights(root, work):
    return load_file(root / work / "artifact" / "adapter_model.safetensors")


def assert_bitwise_equal(root, work):
    mine, theirs = weights(root, work), weights(root, "straight")
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []


def report(root, work):
    return {item.name: item.value for item in read_manifest(root / work / "artifact").report}


def checkpoints(root, work):
    return sorted(path.name for path in (root / work / "checkpoints").iterdir())


def signal_at(update, number):
    """Return a disturbance: the process sends itself a signal in the middle of the given optimizer update."""

    def disturb():
        original, count = PlainEngine.update, iter(range(1, 1000))

        def disturbed(self, rate):
            if next(count) == update:
                for thread in threading.enumerate():
                    if thread.name == THREAD:  # which checkpoint there is shall not depend on its speed
                        thread.join()
                os.kill(os.getpid(), number)
            return original(self, rate)

        PlainEngine.update = disturbed

    return disturb


def test_a_run_that_was_killed_ends_with_the_same_weights_bit_by_bit(home):
    first = build.pretrain_config(home, work="killed")
    assert start(first, signal_at(4, signal.SIGKILL)) == -signal.SIGKILL
    assert checkpoints(home, "killed") == ["step-00000002"]
    second = build.pretrain_config(home, work="killed", attempt=2)
    assert start(second) == 0
    words = last_words(second)
    assert (words.reason, words.resumed_from_step, words.step) == ("Succeeded", 2, 6)
    assert_bitwise_equal(home, "killed")
    lines = [json.loads(line) for line in (home / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["attempt"]) for line in lines] == [(1, 1), (2, 1), (3, 2), (4, 2), (5, 2), (6, 2)]
    straight = [json.loads(line) for line in (home / "straight" / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == [line["loss"] for line in straight]
    before = {name for name in report(home, "straight") if name.endswith("_before")}
    assert {name: report(home, "killed")[name] for name in before} == {
        name: report(home, "straight")[name] for name in before
    }


def test_sigterm_saves_the_step_and_asks_for_a_retry(home):
    first = build.pretrain_config(home, work="stopped")
    assert start(first, signal_at(3, signal.SIGTERM)) == 75
    words = last_words(first)
    assert (words.reason, words.step, words.checkpoint.step) == ("Interrupted", 3, 3)
    assert (words.checkpoint.latest, words.checkpoint.count) == ("checkpoints/step-00000003", 2)
    assert checkpoints(home, "stopped") == ["step-00000002", "step-00000003"]
    assert start(build.pretrain_config(home, work="stopped", attempt=2)) == 0
    assert_bitwise_equal(home, "stopped")


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(home):
    assert start(build.pretrain_config(home, work="damaged"), signal_at(5, signal.SIGKILL)) == -signal.SIGKILL
    assert checkpoints(home, "damaged") == ["step-00000002", "step-00000004"]
    state = home / "damaged" / "checkpoints" / "step-00000004" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    second = build.pretrain_config(home, work="damaged", attempt=2)
    assert start(second) == 0
    assert last_words(second).resumed_from_step == 2
    assert_bitwise_equal(home, "damaged")


def test_lost_checkpoints_are_never_a_silent_new_start(home):
    assert start(build.pretrain_config(home, work="lost"), signal_at(4, signal.SIGKILL)) == -signal.SIGKILL
    (home / "lost" / "checkpoints" / "step-00000002" / "state.safetensors").unlink()
    second = build.pretrain_config(home, work="lost", attempt=2)
    assert start(second) == 42
    assert last_words(second).reason == "CheckpointLost"


def test_a_crash_after_the_last_step_trains_nothing_again(home):
    def die_while_publishing():
        RunContext.publish = lambda *_, **__: os._exit(9)

    assert start(build.pretrain_config(home, work="late"), die_while_publishing) == 9
    second = build.pretrain_config(home, work="late", attempt=2)
    assert start(second) == 0
    assert last_words(second).resumed_from_step == 6
    assert_bitwise_equal(home, "late")


def test_a_finished_run_is_handed_out_again_and_not_repeated(home):
    again = build.pretrain_config(home, work="straight", attempt=2)
    before = (home / "straight" / "metrics.jsonl").read_bytes()
    assert start(again) == 0
    assert last_words(again).artifact == read_manifest(home / "straight" / "artifact").artifact
    assert (home / "straight" / "metrics.jsonl").read_bytes() == before


def test_the_artifact_is_an_adapter_that_names_its_base(home):
    artifact = read_manifest(home / "straight" / "artifact").artifact
    assert (artifact.kind, artifact.vocab_size, artifact.dtype) == ("adapter", 400, "float32")
    assert artifact.tokenizer_digest == load_tokenizer(home / "model").digest
    assert artifact.base_digest is not None
    assert artifact.parents == []
    figures = report(home, "straight")
    assert float(figures["heldout_loss_per_char_after"]) < float(figures["heldout_loss_per_char_before"])
    assert float(figures["train_loss_last"]) < float(figures["train_loss_first"])
    assert (figures["steps"], figures["trainable_parameters"]) == ("6", "26432")
    assert "heldout_loss_per_char_base" not in figures  # the vocabulary did not grow


def test_stage_by_stage_with_a_larger_vocabulary(home):
    """Embeddings first, then LoRA with embeddings and head on the same base, as the first report trains."""
    old, new = load_tokenizer(home / "model"), load_tokenizer(home / "larger")
    first = {"stage": "EmbeddingsOnly", "lora": Lora(train_fully=["embed_tokens"]), "tokenizer": home / "larger"}
    stage1 = run(build.pretrain_config(home, work="stage1", **first))
    assert (stage1.kind, stage1.vocab_size, stage1.tokenizer_digest) == ("adapter", new.vocab_size, new.digest)
    adapter = load_adapter(home / "stage1" / "artifact")
    assert dict(adapter.lora) == {}
    assert set(adapter.full) == {EMBEDDING, HEAD}  # the head was not trained, but it has grown
    head = adapter.read(adapter.full[HEAD].name)
    assert torch.equal(head[: old.vocab_size], read_matrix(home / "model", HEAD))
    figures = report(home, "stage1")
    assert {"heldout_loss_per_char_base", "heldout_loss_per_char_before", "heldout_loss_per_char_after"} <= set(figures)

    config = build.pretrain_config(home, work="stage2", adapter=home / "stage1" / "artifact")
    stage2 = run(config)
    assert (stage2.vocab_size, stage2.base_digest, stage2.parents) == (new.vocab_size, stage1.base_digest, [])
    # It starts where the first stage ended.
    assert report(home, "stage2")["heldout_loss_before"] == figures["heldout_loss_after"]
    manifest = read_manifest(home / "stage2" / "artifact")
    assert manifest.inputs["spec.adapter"] == stage1.digest

    third = run(build.pretrain_config(home, work="stage3", adapter=home / "stage2" / "artifact"))
    assert third.base_digest == stage1.base_digest
    assert report(home, "stage3")["heldout_loss_before"] == report(home, "stage2")["heldout_loss_after"]

    merge = LoRAMergeConfig(
        **{name: getattr(config, name) for name in ("owner", "attempt", "launch")},
        workspace=build.pretrain_config(home, work="merged").workspace,
        model=config.model,
        adapters=[build.an_input(home / "stage3" / "artifact", "spec.adapters[0]")],
    )
    run(merge, lora_merge)
    run(build.pretrain_config(home, work="fourth", model=home / "merged" / "artifact", max_steps=1))
    merged, trained = report(home, "fourth")["heldout_loss_before"], report(home, "stage3")["heldout_loss_after"]
    assert float(merged) == pytest.approx(float(trained), rel=1e-4)


def test_a_tied_model_stays_tied_and_stores_one_matrix(home, tmp_path):
    model = tiny_llama(tmp_path / "tied", tied=True)
    config = build.pretrain_config(
        tmp_path, model=model, dataset=home / "corpus", tokenizer=home / "larger", max_steps=2
    )
    run(config)
    adapter = load_adapter(tmp_path / "work" / "artifact")
    assert set(adapter.full) == {EMBEDDING}
    settings = json.loads((tmp_path / "work" / "artifact" / "adapter_config.json").read_text())
    assert settings["ensure_weight_tying"] is True


def test_stage_full_makes_a_model_in_the_bases_type(home, tmp_path):
    artifact = run(
        build.pretrain_config(
            tmp_path,
            model=home / "model",
            dataset=home / "corpus",
            tokenizer=home / "larger",
            stage="Full",
            max_steps=2,
        )
    )
    assert (artifact.kind, artifact.dtype, artifact.base_digest) == ("model", "float32", None)
    model = load_model(tmp_path / "work" / "artifact", torch.float32)
    assert model.config.vocab_size == artifact.vocab_size == load_tokenizer(home / "larger").vocab_size


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lora": Lora(rank=4, alpha=4, targets=build.TARGETS)}, "LoRA rank 2 and recipe.lora.rank is 4"),
        ({"lora": Lora(rank=2, alpha=8, targets=build.TARGETS)}, "LoRA alpha 4 and recipe.lora.alpha is 8"),
        (
            {"lora": Lora(rank=2, alpha=4, targets=["q_proj"])},
            r"targets \[gate_proj, q_proj, v_proj\] and .* \[q_proj\]",
        ),
        ({"stage": "EmbeddingsOnly"}, "would be lost"),
        ({"stage": "Full"}, "takes no adapter"),
    ],
)
def test_an_adapter_is_only_continued_as_what_it_is(home, tmp_path, change, words):
    config = build.pretrain_config(
        tmp_path, model=home / "model", dataset=home / "corpus", adapter=home / "straight" / "artifact", **change
    )
    with pytest.raises(BadInput, match=words) as refused:
        run(config)
    assert refused.value.hint


def test_an_adapter_of_another_model_is_refused(home, tmp_path):
    first = run(
        build.pretrain_config(tmp_path, model=home / "model", dataset=home / "corpus", stage="Full", max_steps=1)
    )
    assert first.kind == "model"
    config = build.pretrain_config(
        tmp_path,
        work="second",
        model=tmp_path / "work" / "artifact",
        dataset=home / "corpus",
        adapter=home / "straight" / "artifact",
    )
    with pytest.raises(BadInput, match="was trained on the model") as refused:
        run(config)
    assert refused.value.reason == "ArtifactMismatch"


def test_a_tokenizer_that_is_smaller_than_the_embedding_is_refused(home, tmp_path):
    model = tiny_llama(tmp_path / "model", tokenizer=home / "larger")
    config = build.pretrain_config(tmp_path, model=model, dataset=home / "corpus", tokenizer=home / "model")
    with pytest.raises(BadInput, match="has 400 ids") as refused:
        run(config)
    assert refused.value.reason == "ArtifactMismatch"


def test_another_recipe_does_not_continue_old_checkpoints(home):
    assert start(build.pretrain_config(home, work="other"), signal_at(4, signal.SIGKILL)) == -signal.SIGKILL
    second = build.pretrain_config(home, work="other", attempt=2, learning_rate=1e-3)
    assert start(second) == 42
    assert "another recipe" in last_words(second).message
    # How often it saves and evaluates is nobody's mathematics.
    third = build.pretrain_config(home, work="other", attempt=3, evaluate_every_steps=2)
    assert start(third) == 0
    assert_bitwise_equal(home, "other")


def test_bad_text_names_file_and_line(home, tmp_path):
    corpus = build.corpus(tmp_path, text=CHINESE)
    (corpus / "c.txt").write_bytes(b"good\n\xff\xfe\xfa bad\n")
    config = build.pretrain_config(tmp_path, model=home / "model", dataset=corpus)
    assert start(config) == 42
    words = last_words(config)
    assert (words.file, words.line) == (str(corpus / "c.txt"), 2)
