"""One pass writes a merge in all forms that are asked for, and checks what it has written."""

import ctypes
import gc
import json
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import peft_models as build
from herdsman.api.v1alpha1.lora_merge import MergeOutputs
from herdsman.api.v1alpha1.model_import import Initialise
from herdsman_trainer.artifacts import verify_artifact
from herdsman_trainer.errors import BadInput, Temporary
from herdsman_trainer.steps import lora_merge
from herdsman_trainer.tokenizers import copy_tokenizer, load_tokenizer
from herdsman_trainer.weights import merge_probe
from herdsman_trainer.weights.digests import digest_tensor
from herdsman_trainer.weights.initialisation import write_initial_model
from herdsman_trainer.weights.merge import Merge
from herdsman_trainer.weights.merge_probe import MergeMismatchError
from herdsman_trainer.weights.model_writing import write_description
from herdsman_trainer.weights.tensor_digests import TensorDigest, read_tensor_digests
from herdsman_trainer.weights.writing import write_tensor_digests, write_tensors
from imports import copied
from merges import merge
from tiny import tiny_llama, tiny_sentencepiece

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL, LARGE = 400, 410


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A tokenizer of LARGE pieces."""
    return tiny_sentencepiece(tmp_path_factory.mktemp("tokenizer"), LARGE)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    root = tmp_path_factory.mktemp("base")
    return tiny_llama(root / "model", tiny_sentencepiece(root / "tokenizer", SMALL), hidden_size=32)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, base, tokenizer):
    """An adapter that brings the large tokenizer."""
    directory = build.adapter(tmp_path_factory.mktemp("pretrained"), base, rows=LARGE, seed=1)
    copy_tokenizer(tokenizer, directory)
    return directory


ALL_FORMS = {"huggingface": {}, "pth": {}, "gguf": [{"type": "Q8_0"}, {"type": "F16"}], "ollama": {}}


def forms(**outputs):
    return MergeOutputs.model_validate(outputs)


def figures(directory):
    return {metric.name: metric.value for metric in verify_artifact(directory).report}


def test_one_pass_writes_what_a_pass_for_each_form_would(tmp_path, base, pretrained):
    artifact, together = merge(tmp_path / "all", base, [pretrained], outputs=forms(**ALL_FORMS))
    assert artifact.formats == ["huggingface", "pth", "gguf"]
    files = verify_artifact(together, "Digests").files
    assert {"config.json", "tokenizer.model", "model.safetensors", "tensor-digests.json"} <= files.keys()
    assert {"pth/consolidated.00.pth", "gguf/demo-Q8_0.gguf", "gguf/demo-F16.gguf", "gguf/Modelfile"} <= files.keys()
    for form, outputs in ALL_FORMS.items():
        if form != "ollama":
            _, alone = merge(tmp_path / form, base, [pretrained], outputs=forms(**{form: outputs}))
            for name, digest in verify_artifact(alone).files.items():
                if not name.startswith("gguf/README"):
                    assert files[name] == digest, name


def test_without_adapters_the_model_is_written_in_other_forms(tmp_path, base):
    artifact, directory = merge(tmp_path, base, [], outputs=forms(huggingface={}, gguf=[{"type": "F32"}]))
    assert artifact.formats == ["huggingface", "gguf"]
    ours, theirs = (load_file(path / "model.safetensors") for path in (directory, base))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert figures(directory)["tensors_unchanged"] == "21"


def test_a_model_without_huggingface_weights_still_has_its_configuration_and_tokenizer(tmp_path, base):
    artifact, directory = merge(tmp_path, base, [], outputs=forms(gguf=[{"type": "Q8_0"}]))
    assert artifact.formats == ["gguf"]
    assert not list(directory.glob("*.safetensors"))
    assert json.loads((directory / "config.json").read_text())["vocab_size"] == SMALL
    assert load_tokenizer(directory).digest == artifact.tokenizer_digest


def test_the_digests_are_those_of_the_tensors_in_any_form(tmp_path, base, pretrained):
    _, directory = merge(tmp_path / "weights", base, [pretrained])
    digests = read_tensor_digests(directory)
    tensors = load_file(directory / "model.safetensors")
    assert {name: digest.sha256 for name, digest in digests.items()} == {
        name: digest_tensor(name, tensor) for name, tensor in tensors.items()
    }
    _, other = merge(tmp_path / "file", base, [pretrained], outputs=forms(gguf=[{"type": "Q8_0"}]))
    assert read_tensor_digests(other) == digests


def with_digests(base, directory, **changed):
    """A copy of a model that has tensor-digests.json, some of them other than they should be."""
    model = copied(base, directory)
    tensors = load_file(model / "model.safetensors")
    digests = {
        name: TensorDigest("float32", tuple(tensor.shape), changed.get(name, digest_tensor(name, tensor)))
        for name, tensor in tensors.items()
    }
    write_tensor_digests(model, digests)
    return model


def test_a_tensor_that_is_not_what_the_base_was_made_with_is_found(tmp_path, base, pretrained):
    merge(tmp_path / "whole", with_digests(base, tmp_path / "model"), [pretrained])
    damaged = with_digests(base, tmp_path / "damaged", **{"model.norm.weight": "0" * 64})
    with pytest.raises(BadInput, match=r"model.norm.weight was read as .* and was 000000000000… when it") as caught:
        merge(tmp_path, damaged, [pretrained])
    assert (caught.value.reason, caught.value.file) == ("ChecksumMismatch", str(damaged / "model.safetensors"))
    assert not (tmp_path / "work/artifact").exists()


def scaled(adapter, factor):
    """The adapter with every B multiplied."""
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    write_tensors(path, {name: tensor * factor if "lora_B" in name else tensor for name, tensor in tensors.items()})
    return adapter


@pytest.mark.parametrize(("factor", "unmoved", "warned"), [(1e-20, "14", True), (0, "0", False), (1, "0", False)])
def test_a_change_that_rounding_swallows_is_told_and_one_that_is_none_is_not(
    tmp_path, base, caplog, factor, unmoved, warned
):
    adapter = scaled(build.adapter(tmp_path / "adapter", base, full=()), factor)
    _, directory = merge(tmp_path, base, [adapter])
    assert figures(directory)["tensors_unmoved"] == unmoved
    assert ("by less than rounding" in caplog.text) is warned


def test_weights_that_the_volume_has_not_kept_are_not_published(tmp_path, base, pretrained, monkeypatch):
    def lose(chain, target):
        write_description(chain, target)
        path = target / "model.safetensors"
        write_tensors(path, dict(list(load_file(path).items())[1:]))

    monkeypatch.setattr(lora_merge, "write_description", lose)
    with pytest.raises(Temporary, match="not those that were written"):
        merge(tmp_path, base, [pretrained])
    assert not (tmp_path / "work/artifact").exists()


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16"])
def test_small_models_answer_as_pefts_own_merge_does(tmp_path, base, pretrained, tokenizer, dtype):
    tuned = build.adapter(tmp_path / "tuned", base, rows=LARGE, full=(), seed=2, use_rslora=True)
    copy_tokenizer(tokenizer, tuned)
    _, directory = merge(tmp_path, base, [pretrained, tuned], dtype=dtype)
    assert 0 <= float(figures(directory)["logits_against_peft"]) < 0.02


def test_a_merge_that_answers_otherwise_is_a_fault_of_ours(tmp_path, base, pretrained, monkeypatch):
    factors = Merge._factors

    def twice_as_much(self, update):
        left, right, scale = factors(self, update)
        return left, right, 2 * scale

    monkeypatch.setattr(Merge, "_factors", twice_as_much)
    with pytest.raises(MergeMismatchError, match=r"q_proj.* differs from peft's merge by"):
        merge(tmp_path, base, [pretrained])
    assert not (tmp_path / "work/artifact").exists()


def test_large_models_are_not_held_in_memory_to_be_compared(tmp_path, base, pretrained, monkeypatch):
    monkeypatch.setattr(merge_probe, "PROBE_PARAMETERS", 1000)
    _, directory = merge(tmp_path, base, [pretrained])
    assert "logits_against_peft" not in figures(directory)


def anonymous_bytes():
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon"))


def test_memory_does_not_grow_with_the_model(tmp_path, tokenizer):
    """A model of 190 MB, whose largest matrix alone has 16 MB."""
    sizes = {"hiddenSize": 1024, "intermediateSize": 4096, "layers": 3, "attentionHeads": 8}
    reference = {"tokenizer": {"volume": {"claim": "unused", "path": "unused"}}}
    base = tmp_path / "base"
    write_initial_model(
        Initialise.model_validate({**reference, **sizes}), tokenizer, base, torch.float32, lambda *_: None
    )
    adapter = build.adapter(tmp_path / "adapter", base, full=(), targets=["q_proj", "up_proj"])
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what building the adapter has freed would be used again and hide what is taken
    peak, before, ended = [0], anonymous_bytes(), threading.Event()

    def watch():
        while not ended.wait(0.005):
            peak[0] = max(peak[0], anonymous_bytes() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, directory = merge(tmp_path, base, [adapter])
    ended.set()
    watcher.join()
    assert (directory / "model.safetensors").stat().st_size > 190 << 20
    assert 0 < peak[0] < 90 << 20
