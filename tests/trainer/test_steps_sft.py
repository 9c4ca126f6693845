"""Instruction tuning from records to an adapter that knows its prompt template."""

import os
import signal

import pytest
import torch
from safetensors.torch import load_file

import training_configs as build
from herdsman_trainer.artifacts import read_manifest
from herdsman_trainer.engines import PlainEngine
from herdsman_trainer.errors import BadInput
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.steps import pretrain, sft
from herdsman_trainer.weights.adapters import load_adapter
from ranks import as_ranks, in_child

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Model, records, and in `straight` the result of a run that nothing disturbed."""
    root = tmp_path_factory.mktemp("home")
    build.base_model(root)
    build.records(root)
    build.corpus(root)
    assert in_child(lambda: run(build.sft_config(root, work="straight"))) == 0
    return root


def run(config, step=sft):
    torch.set_num_threads(1)
    context = RunContext(config)
    artifact = step.run(config, context)
    context.close()
    return artifact


def weights(root, work):
    return load_file(root / work / "artifact" / "adapter_model.safetensors")


def report(root, work):
    return {item.name: item.value for item in read_manifest(root / work / "artifact").report}


def test_the_adapter_names_its_template_and_what_became_of_the_records(home):
    artifact = read_manifest(home / "straight" / "artifact").artifact
    assert (artifact.kind, artifact.prompt_template) == ("adapter", "alpaca")
    figures = report(home, "straight")
    assert int(figures["samples"]) + int(figures["heldout_samples"]) == int(figures["records"]) == 24
    assert float(figures["heldout_loss_after"]) < float(figures["heldout_loss_before"])


def test_a_killed_run_ends_with_the_same_weights_bit_by_bit(home):
    def killed():
        original, count = PlainEngine.update, iter(range(1, 100))

        def update(self, rate):
            if next(count) == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(self, rate)

        PlainEngine.update = update
        run(build.sft_config(home, work="killed"))

    assert in_child(killed) == -signal.SIGKILL
    assert in_child(lambda: run(build.sft_config(home, work="killed", attempt=2))) == 0
    mine, theirs = weights(home, "killed"), weights(home, "straight")
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_two_processes_reach_the_weights_of_one(home):
    assert as_ranks(lambda: run(build.sft_config(home, work="two"))) == [0, 0]
    mine, theirs = weights(home, "two"), weights(home, "straight")
    for name, expected in theirs.items():
        assert (mine[name] - expected).abs().max() <= 2e-6 * expected.abs().max(), name


def test_tuning_continues_the_pre_training(home):
    base = run(build.pretrain_config(home, work="pretrained"), pretrain)
    tuned = run(build.sft_config(home, work="tuned", adapter=home / "pretrained" / "artifact"))
    assert (tuned.base_digest, tuned.parents) == (base.base_digest, [])
    before, after = (load_adapter(home / work / "artifact") for work in ("pretrained", "tuned"))
    assert set(before.lora) == set(after.lora)
    pair = next(iter(before.lora.values()))
    assert not torch.equal(before.read(pair.b.name), after.read(pair.b.name))


def test_a_padding_piece_grows_the_vocabulary_by_one(home):
    larger = build.larger_tokenizer(home, pad=True)
    artifact = run(build.sft_config(home, work="padded", tokenizer=larger, max_steps=1))
    assert artifact.vocab_size == load_adapter(home / "padded" / "artifact").embedding_rows


def test_several_processes_share_one_refusal(home, tmp_path):
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "bad.jsonl").write_text(
        '{"instruction": "a", "input": "", "output": "b"}\n{"instruction"\n'
    )
    config = build.sft_config(tmp_path, model=home / "model")

    def refused():
        with pytest.raises(BadInput) as error:
            run(config)
        assert (error.value.file, error.value.line) == (str(tmp_path / "records" / "bad.jsonl"), 2)

    assert as_ranks(refused) == [0, 0]
