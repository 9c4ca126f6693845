"""The LoRAMerge step: from directories to a published model that transformers loads strictly."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaForCausalLM

import peft_models as build
from herdsman_trainer.artifacts import draft_artifact, model_digest, publish_artifact, verify_artifact
from herdsman_trainer.errors import BadInput, Interrupted
from herdsman_trainer.tokenizers import copy_tokenizer, load_tokenizer
from imports import copied
from merges import merge
from run_configs import run_config
from tiny import CHATML_TOKENS, tiny_bpe_tokenizer, tiny_chatml_tokenizer, tiny_llama, tiny_sentencepiece

SMALL, LARGE = 400, 410


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """A tokenizer of SMALL pieces and one of LARGE."""
    root = tmp_path_factory.mktemp("tokenizers")
    return {rows: tiny_sentencepiece(root / str(rows), rows) for rows in (SMALL, LARGE)}


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizers):
    return tiny_llama(tmp_path_factory.mktemp("base"), tokenizers[SMALL], hidden_size=16)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, base, tokenizers):
    """An adapter that brings the large tokenizer."""
    directory = build.adapter(tmp_path_factory.mktemp("pretrained"), base, rows=LARGE, seed=1)
    copy_tokenizer(tokenizers[LARGE], directory)
    return directory


def published(root, directory, kind="adapter", **contract):
    """Publish a directory as an artifact; returns where it lies and its digest."""
    config = run_config(root, relative=f"published/{directory.name}", uid=directory.name)
    draft = draft_artifact(config)
    for path in directory.iterdir():
        (draft / path.name).write_bytes(path.read_bytes())
    artifact = publish_artifact(config, draft, kind=kind, **contract)
    return root / "published" / directory.name / "artifact", artifact.digest


def test_the_published_model_loads_strictly_and_equals_peft(tmp_path, base, pretrained):
    artifact, directory = merge(tmp_path, base, [pretrained])
    verify_artifact(directory, "Digests")
    model = build.load(directory)
    for name, tensor in build.merged_by_peft(base, [pretrained], LARGE).items():
        torch.testing.assert_close(model.state_dict()[name], tensor, atol=1e-6, rtol=1e-5)
    assert model.config.vocab_size == len(model.get_input_embeddings().weight) == LARGE
    tokenizer = load_tokenizer(directory)
    assert (artifact.vocab_size, artifact.tokenizer_digest, artifact.dtype) == (LARGE, tokenizer.digest, "float32")
    assert (artifact.kind, artifact.base_digest, artifact.parents) == ("model", None, [])


def test_the_type_is_the_one_asked_for(tmp_path, base, pretrained):
    artifact, directory = merge(tmp_path, base, [pretrained], dtype="bfloat16")
    assert artifact.dtype == json.loads((directory / "config.json").read_text())["dtype"] == "bfloat16"
    assert build.load(directory).dtype == torch.bfloat16


def test_a_finished_merge_is_not_done_again(tmp_path, base, pretrained):
    artifact, directory = merge(tmp_path, base, [pretrained])
    stamp = (directory / "model.safetensors").stat().st_mtime_ns
    again, _ = merge(tmp_path, base, [pretrained], attempt=2)
    assert again == artifact
    assert (directory / "model.safetensors").stat().st_mtime_ns == stamp


def test_a_stopped_merge_publishes_nothing(tmp_path, base, pretrained):
    with pytest.raises(Interrupted):
        merge(tmp_path, base, [pretrained], stop=True)
    assert not (tmp_path / "work/artifact").exists()
    merge(tmp_path, base, [pretrained], attempt=2)
    there = sorted(path.name for path in (tmp_path / "work").iterdir())
    assert there == [".attempt-2", ".owner.json", "artifact", "progress.json"]


def test_the_report_counts_what_was_done_and_progress_ends_at_a_hundred(tmp_path, base, pretrained):
    _, directory = merge(tmp_path, base, [pretrained])
    manifest = verify_artifact(directory)
    report = {metric.name: metric.value for metric in manifest.report}
    expected = {"tensors": "21", "tensors_with_lora": "14", "tensors_replaced": "2", "tensors_unchanged": "5"}
    assert expected.items() <= report.items()
    assert (report["vocab_rows_added"], report["unchecked_origins"]) == (str(LARGE - SMALL), "1")
    assert json.loads((tmp_path / "work/progress.json").read_text())["activity"] == "publishing"


def test_origins_that_cannot_be_checked_are_said(tmp_path, base, pretrained, caplog):
    with caplog.at_level(logging.WARNING):
        merge(tmp_path, base, [pretrained])
    assert "only shapes were checked" in caplog.text


def test_a_chain_of_published_adapters_is_merged_in_order_with_its_template(tmp_path, base, pretrained, tokenizers):
    model, digest = published(tmp_path, base, kind="model")
    first, first_digest = published(tmp_path, pretrained, base_digest=digest)
    tuned = build.adapter(tmp_path / "tuned", base, full=(), seed=2)
    copy_tokenizer(tokenizers[LARGE], tuned)
    second, second_digest = published(
        tmp_path, tuned, base_digest=digest, parents=[first_digest], prompt_template="llama-2"
    )
    artifact, directory = merge(tmp_path, model, [first, second])
    assert artifact.prompt_template == "llama-2"
    assert "[INST]" in (directory / "chat_template.jinja").read_text()
    inputs = verify_artifact(directory).inputs
    assert inputs == {"spec.model": digest, "spec.adapters[0]": first_digest, "spec.adapters[1]": second_digest}
    with pytest.raises(BadInput, match="beneath it") as caught:
        merge(tmp_path / "swapped", model, [second, first])
    assert str(first) in caught.value.hint


def test_an_adapter_of_another_base_is_refused_by_digest(tmp_path, base, pretrained):
    model, _ = published(tmp_path, base, kind="model")
    adapter, _ = published(tmp_path, pretrained, base_digest="f" * 64)
    with pytest.raises(BadInput, match="trained on the model ffffffffffff"):
        merge(tmp_path, model, [adapter])


def test_a_base_without_a_manifest_is_recognised_by_its_files(tmp_path, base, pretrained, caplog):
    adapter, _ = published(tmp_path, pretrained, base_digest=model_digest(base))
    _, directory = merge(tmp_path / "same", base, [adapter])
    assert "only shapes" not in caplog.text
    assert verify_artifact(directory).inputs.keys() == {"spec.model", "spec.adapters[0]"}
    other = copied(base, tmp_path / "other")
    (other / "README.md").write_text("one file more")
    merge(tmp_path / "other-work", other, [adapter])
    assert "only shapes were checked" in caplog.text


def test_a_model_is_not_an_adapter(tmp_path, base):
    model, _ = published(tmp_path, base, kind="model")
    with pytest.raises(BadInput, match="of the kind model, not an adapter"):
        merge(tmp_path, base, [model])


def test_a_tied_base_stays_tied_on_disk(tmp_path, tokenizers):
    base = tiny_llama(tmp_path / "base", tokenizers[SMALL], tied=True, hidden_size=16)
    adapter = build.adapter(tmp_path / "adapter", base, rows=LARGE, full=("embed_tokens",), tied=True)
    copy_tokenizer(tokenizers[LARGE], adapter)
    _, directory = merge(tmp_path, base, [adapter])
    assert "lm_head.weight" not in load_file(directory / "model.safetensors")
    model = build.load(directory)
    assert model.config.tie_word_embeddings
    stored = load_file(adapter / "adapter_model.safetensors")["base_model.model.model.embed_tokens.weight"]
    assert torch.equal(model.lm_head.weight, stored)


def test_a_head_of_its_own_unties_the_model_on_disk(tmp_path, tokenizers):
    base = tiny_llama(tmp_path / "base", tokenizers[SMALL], tied=True, hidden_size=16)
    untied = tiny_llama(tmp_path / "untied", tokenizers[SMALL], hidden_size=16)
    adapter = build.adapter(tmp_path / "adapter", untied, rows=LARGE)
    copy_tokenizer(tokenizers[LARGE], adapter)
    _, directory = merge(tmp_path, base, [adapter])
    model = build.load(directory)
    assert not model.config.tie_word_embeddings
    assert not torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)


def test_the_model_stops_at_the_end_of_a_turn_under_plain_generate(tmp_path):
    base = tiny_llama(tmp_path / "base", tiny_bpe_tokenizer(tmp_path / "tokenizer"), hidden_size=16)
    adapter, _ = published(
        tmp_path, build.adapter(tmp_path / "adapter", base, full=()), base_digest="a" * 64, prompt_template="llama-3"
    )
    _, directory = merge(tmp_path, base, [adapter])
    tokenizer = load_tokenizer(directory)
    stops = json.loads((directory / "generation_config.json").read_text())["eos_token_id"]
    assert stops == sorted({tokenizer.eos_id, tokenizer.control_id("<|eot_id|>")})
    assert AutoTokenizer.from_pretrained(directory).chat_template
    assert LlamaForCausalLM.from_pretrained(directory).generation_config.eos_token_id == stops


def no_embeddings(tmp_path, base, tokenizers):
    adapter = build.adapter(tmp_path / "adapter", base, full=())
    copy_tokenizer(tokenizers[LARGE], adapter)
    return base, [adapter]


def no_tokenizer(tmp_path, base, tokenizers):
    return base, [build.adapter(tmp_path / "adapter", base, rows=LARGE)]


def wrong_tokenizer(tmp_path, base, tokenizers):
    adapter = build.adapter(tmp_path / "adapter", base, rows=LARGE + 1)
    copy_tokenizer(tokenizers[LARGE], adapter)
    return base, [adapter]


def wrong_config(tmp_path, base, tokenizers):
    model = copied(base, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "vocab_size": LARGE}))
    return model, [build.adapter(tmp_path / "adapter", base, full=())]


def too_few_layers(tmp_path, base, tokenizers):
    model = copied(base, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    return model, [build.adapter(tmp_path / "adapter", base, full=())]


def quantised(tmp_path, base, tokenizers):
    model = copied(base, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "quantization_config": {"bits": 4}}))
    return model, [build.adapter(tmp_path / "adapter", base, full=())]


def no_config(tmp_path, base, tokenizers):
    model = copied(base, tmp_path / "model")
    (model / "config.json").unlink()
    return model, [build.adapter(tmp_path / "adapter", base, full=())]


def no_head(tmp_path, base, tokenizers):
    tied = tiny_llama(tmp_path / "tied", tokenizers[SMALL], tied=True, hidden_size=16)
    config = json.loads((tied / "config.json").read_text())
    (tied / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    return tied, [build.adapter(tmp_path / "adapter", base, full=())]


@pytest.mark.parametrize(
    ("case", "says", "remedy"),
    [
        (no_embeddings, f"has {SMALL} rows and the tokenizer .* has {LARGE} pieces", "No adapter holds an embedding"),
        (no_tokenizer, f"has {LARGE} rows and the tokenizer .* has {SMALL} pieces", "trained with"),
        (wrong_tokenizer, f"has {LARGE + 1} rows and the tokenizer .* has {LARGE} pieces", "[PAD]"),
        (wrong_config, f"says vocab_size = {LARGE} and .* has {SMALL} rows", f"must become {SMALL}"),
        (too_few_layers, "9 tensors are there that config.json does not know", "different models"),
        (quantised, "quantised", "before quantisation"),
        (no_config, "missing", "config.json"),
        (no_head, "no lm_head.weight", "tie_word_embeddings"),
    ],
)
def test_parts_that_contradict_each_other_are_refused_before_anything_is_published(
    tmp_path, base, tokenizers, case, says, remedy
):
    model, adapters = case(tmp_path, base, tokenizers)
    with pytest.raises(BadInput, match=says) as caught:
        merge(tmp_path, model, adapters)
    assert remedy in caught.value.hint
    assert caught.value.file
    assert not (tmp_path / "work/artifact").exists()


def test_chatml_keeps_its_end_of_turn(tmp_path):
    assert "<|im_end|>" in CHATML_TOKENS
    base = tiny_llama(tmp_path / "base", tiny_chatml_tokenizer(tmp_path / "tokenizer"), tied=True, hidden_size=16)
    _, directory = merge(tmp_path, base, [build.adapter(tmp_path / "adapter", base, full=())])
    tokenizer = load_tokenizer(directory)
    assert json.loads((directory / "generation_config.json").read_text())["eos_token_id"] == tokenizer.eos_id
    assert tokenizer.eos_id == tokenizer.control_id("<|im_end|>")
