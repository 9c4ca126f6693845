"""What steps that do not train say of themselves on the way, and the room they ask for before they write."""

import hashlib
import os
from types import SimpleNamespace

import pytest

import peft_models as build
import tiny
from herdsman.api.job_config import LoRAMergeConfig, ModelImportConfig, TokenizerMergeConfig
from herdsman.api.v1alpha1.model_import import Initialise
from herdsman.api.v1alpha1.sources import TokenizerRef
from herdsman_trainer import __main__ as command
from herdsman_trainer.errors import Temporary
from herdsman_trainer.free_space import size_text
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.weights import digests, model_copy
from run_configs import owner, source, workspace
from tiny_gguf import write_gguf


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.tiny_llama(tmp_path_factory.mktemp("model"), hidden_size=16)


@pytest.fixture(scope="module")
def steps(tmp_path_factory, model, chinese):
    """Every kind of work that does not train, as a function from a directory to its configuration."""
    root = tmp_path_factory.mktemp("inputs")
    adapter = build.adapter(root / "adapter", model, rows=400, seed=1)
    gguf = write_gguf(root / "tiny.gguf", tiny.tiny_llama(root / "chatml", tiny.tiny_chatml_tokenizer(root / "bpe")))
    weights = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()

    def importing(**options):
        def config(place):
            given = {"owner": owner(kind="ModelImport"), "attempt": 1, "workspace": workspace(place)}
            return ModelImportConfig(**given, **options)

        return config

    def merging(place):
        return LoRAMergeConfig(
            owner=owner(),
            attempt=1,
            workspace=workspace(place),
            model=source(model),
            adapters=[source(adapter, field="spec.adapters[0]")],
        )

    def extending(place):
        return TokenizerMergeConfig(
            owner=owner(kind="TokenizerMerge"),
            attempt=1,
            workspace=workspace(place),
            base=source(model, field="spec.base"),
            sources=[source(chinese, field="spec.sources[0]")],
        )

    shape = {"hidden_size": 16, "intermediate_size": 32, "layers": 1, "attention_heads": 2}
    random = Initialise(**shape, tokenizer=TokenizerRef(tokenizer_merge="t"), max_position_embeddings=64)
    return {
        "a copy": importing(source=source(model)),
        "a checked copy": importing(source=source(model), sha256={"model.safetensors": weights}),
        "another type": importing(source=source(model), dtype="bfloat16"),
        "a GGUF file": importing(source=source(gguf, root=root)),
        "random weights": importing(initialise=random, tokenizer=source(model)),
        "a merge": merging,
        "a tokenizer": extending,
    }


WRITING = ("a copy", "a checked copy", "another type", "a GGUF file", "random weights", "a merge")
EVERY = (*WRITING, "a tokenizer")


@pytest.mark.parametrize("kind", EVERY)
def test_the_work_goes_from_nothing_to_everything_and_never_back(steps, kind, tmp_path, monkeypatch):
    for module in (digests, model_copy):
        monkeypatch.setattr(module, "CHUNK_BYTES", 4096)  # so that small files have several pieces
    config = steps[kind](tmp_path)
    context = RunContext(config)
    told = []
    report = context.report

    def telling(**given):
        report(**given)
        state = context._progress.state
        told.append((state.percent, state.activity, state.step, state.total_steps))

    context.report = telling
    command.run_step(config, context)
    percents = [percent for percent, *_ in told]
    assert percents == sorted(percents)
    assert (percents[0], percents[-1]) == (0, 100)
    assert len(set(percents)) >= (3 if kind == "a tokenizer" else 6)
    assert told[-1][1] == "publishing"
    assert {(step, total) for _, _, step, total in told} == {(0, None)}  # steps are a training's


def test_checking_is_about_half_of_the_work_where_digests_are_given(steps, tmp_path):
    config = steps["a checked copy"](tmp_path)
    context = RunContext(config)
    activities = {}
    report = context.report

    def telling(**given):
        report(**given)
        activities[given["activity"].split()[0]] = context._progress.done

    context.report = telling
    command.run_step(config, context)
    checked = activities.pop("checking")  # by bytes: what is checked and not copied as it is counts too
    assert 0.5 <= checked < 0.6
    assert activities == {"copying": 1.0, "publishing": 1.0}


@pytest.mark.parametrize("kind", WRITING)
def test_room_is_asked_for_before_anything_is_written(steps, kind, tmp_path, monkeypatch):
    config = steps[kind](tmp_path)
    context = RunContext(config)
    free = SimpleNamespace(f_bavail=10, f_frsize=1, f_blocks=1000)
    with monkeypatch.context() as full:
        full.setattr(os, "statvfs", lambda _: free)
        with pytest.raises(Temporary) as refused:
            command.run_step(config, context)
    error = refused.value
    assert (error.reason, error.exit_code) == ("DiskFull", 75)
    assert error.message.endswith("and 10 bytes are free.")
    assert error.file.startswith(str(tmp_path / "work"))
    assert "volume larger" in error.hint
    assert not list((tmp_path / "work").rglob("*.safetensors"))
    again = RunContext(config.model_copy(update={"attempt": 2}))
    assert command.run_step(again.config, again).kind == "model"  # once there is room, the next attempt goes on


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (2**30, "1.0 GiB"), (5 * 2**40, "5.0 TiB")],
)
def test_sizes_are_written_for_people(size, text):
    assert size_text(size) == text
