"""GGUF files: the same types and bytes as llama.cpp's own quantiser, whatever the blocks; bad input in sentences."""

import json
from pathlib import Path

import gguf
import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

from gguf_files import feed, metadata_of, sinks_of, tensors_of, wide_llama, write_gguf_files
from herdsman.api.job_config import ModelImportConfig
from herdsman_trainer.__main__ import run_step
from herdsman_trainer.errors import BadInput
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.tokenizers import load_tokenizer
from herdsman_trainer.weights import gguf_quantisation
from herdsman_trainer.weights.chain import open_chain
from herdsman_trainer.weights.draft_files import DraftFiles
from herdsman_trainer.weights.gguf_types import FILE_TYPES, gguf_name
from herdsman_trainer.weights.gguf_writing import GgufSink, interleaved
from run_configs import owner, source, workspace
from tiny import tiny_bpe_tokenizer, tiny_llama, tiny_sentencepiece
from tiny_gguf import interleaved as interleaved_by_hand

TYPES = list(FILE_TYPES)
QUANTISED = TYPES[3:]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_sentencepiece(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def deep(tmp_path_factory, tokenizer):
    """Eight layers, so that the mixtures have something to choose from."""
    return wide_llama(tmp_path_factory.mktemp("deep"), tokenizer, num_hidden_layers=8)


@pytest.fixture(scope="module")
def files(tmp_path_factory, deep):
    """The deep model in every type, in one pass."""
    return write_gguf_files(tmp_path_factory.mktemp("files"), deep, *TYPES)


def quantised_by_llama_cpp(source: Path, target: Path, kind: str) -> Path:
    llama_cpp = pytest.importorskip(
        "cyllama.llama.llama_cpp", reason="needs llama.cpp's quantiser: pip install cyllama"
    )
    settings = llama_cpp.LlamaModelQuantizeParams()
    settings.ftype, settings.nthread = int(FILE_TYPES[kind][1]), 1
    llama_cpp.model_quantize(str(source), str(target), settings)
    return target


def types_of(path: Path) -> dict[str, str]:
    return {name: tensor.tensor_type.name for name, tensor in tensors_of(path).items()}


@pytest.mark.parametrize("kind", TYPES[1:])
def test_every_tensor_has_the_type_and_the_bytes_that_llama_cpp_gives_it(tmp_path, files, kind):
    reference = quantised_by_llama_cpp(files["F32"], tmp_path / "reference.gguf", kind)
    ours, theirs = tensors_of(files[kind]), tensors_of(reference)
    assert types_of(files[kind]) == types_of(reference)
    for name, tensor in theirs.items():
        assert numpy.array_equal(ours[name].data.view(numpy.uint8), tensor.data.view(numpy.uint8)), name
    assert metadata_of(files[kind])["general.file_type"] == metadata_of(reference)["general.file_type"]


def test_the_mixtures_give_more_bits_to_sensitive_layers_and_to_the_head(files):
    kinds = types_of(files["Q4_K"])
    assert [kinds[f"blk.{layer}.ffn_down.weight"] for layer in range(8)] == [
        *("Q6_K", "Q4_K", "Q4_K", "Q6_K"),
        *("Q4_K", "Q4_K", "Q6_K", "Q6_K"),
    ]
    assert (kinds["output.weight"], kinds["token_embd.weight"]) == ("Q6_K", "Q4_K")
    assert {kind for name, kind in kinds.items() if "norm" in name} == {"F32"}


@pytest.mark.parametrize(
    ("width", "kind", "body", "head"),
    [
        (576, "Q4_K", "Q5_0", "Q8_0"),
        (576, "Q5_K", "Q5_1", "Q8_0"),
        (576, "Q6_K", "Q8_0", "Q8_0"),
        (576, "Q4_0", "Q4_0", "Q8_0"),
    ],
)
def test_rows_that_fit_no_block_fall_back_as_in_llama_cpp(tmp_path, tokenizer, width, kind, body, head):
    fields = {"num_attention_heads": width // 64, "num_key_value_heads": 3, "head_dim": 64, "intermediate_size": 80}
    if kind == "Q4_0":
        fields["intermediate_size"] = 96
    model = wide_llama(tmp_path / "model", tokenizer, hidden_size=width, **fields)
    written = write_gguf_files(tmp_path, model, "F32", kind)
    kinds = types_of(written[kind])
    assert (kinds["blk.0.attn_q.weight"], kinds["output.weight"]) == (body, head)
    assert kinds["blk.0.ffn_down.weight"] == ("Q4_0" if kind == "Q4_0" else "F16")
    assert kinds == types_of(quantised_by_llama_cpp(written["F32"], tmp_path / "reference.gguf", kind))


def test_a_tied_embedding_is_stored_as_a_head(tmp_path, tokenizer):
    model = wide_llama(tmp_path / "model", tokenizer, tie_word_embeddings=True)
    written = write_gguf_files(tmp_path, model, "F32", "Q4_0")
    kinds = types_of(written["Q4_0"])
    assert "output.weight" not in kinds
    assert kinds["token_embd.weight"] == "Q6_K"
    assert kinds == types_of(quantised_by_llama_cpp(written["F32"], tmp_path / "reference.gguf", "Q4_0"))


BOUNDS = {
    "F32": 0.0,
    "F16": 2**-11,
    "BF16": 2**-8,
    "Q8_0": 1 / 254,
    "Q4_0": 1 / 8,
    "Q4_1": 1 / 15,
    "Q5_0": 1 / 16,
    "Q5_1": 1 / 31,
    "Q4_K": 1 / 10,
    "Q5_K": 1 / 20,
    "Q6_K": 1 / 30,
}
"""The largest error relative to the largest value of a row: half a step, a whole one where a type's range is lopsided;
for k-quants, whose scales are rounded too, as measured."""


@pytest.mark.parametrize("kind", TYPES)
def test_values_read_back_are_within_the_bound_of_the_type(deep, files, kind):
    weights = load_file(deep / "model.safetensors")
    stored = tensors_of(files[kind])
    for name in ("model.layers.1.self_attn.v_proj.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"):
        tensor = stored[gguf_name(name)]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        truth = weights[name].numpy()
        bound = BOUNDS[kind] if truth.ndim > 1 else 0.0
        largest = numpy.abs(truth).max(axis=-1, keepdims=True)
        assert (numpy.abs(values - truth) <= (bound + 1e-3 * bool(bound)) * largest).all()


def test_any_blocks_of_rows_give_the_same_file(tmp_path, deep, files):
    chain = open_chain(deep)
    sinks = sinks_of(tmp_path, chain, "Q8_0", "F16")
    feed(chain, sinks, rows=70)
    for sink in sinks:
        assert (tmp_path / sink.name).read_bytes() == files[sink.name.split("-")[1].removesuffix(".gguf")].read_bytes()


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K", "Q6_K"])
def test_any_number_of_threads_gives_the_same_bytes(monkeypatch, kind):
    libgguf = pytest.importorskip("libgguf", reason="needs llama.cpp's k-quants: pip install libgguf")
    rows = torch.randn(1030, 256, generator=torch.Generator().manual_seed(0))
    parts = []
    for threads in (1, 3):
        monkeypatch.setattr(gguf_quantisation, "THREADS", threads)
        parts.append(bytes(gguf_quantisation.quantise(rows, gguf.GGMLQuantizationType[kind])))
    assert parts[0] == parts[1]
    assert parts[0] == libgguf.quantize_rows(rows.numpy(), gguf.GGMLQuantizationType[kind]).tobytes()


def test_an_attempt_goes_on_where_another_was_killed(tmp_path, deep, files):
    chain = open_chain(deep)
    specs = chain.merge.plan.specs
    (first,) = sinks_of(tmp_path, chain, "Q5_0")
    for spec in specs[:9]:
        whole(first, chain, spec)
    marks = first.files.marks()
    first.begin(specs[9])
    first.write(chain.merge.tensor(specs[9].name)[:64])  # killed in the middle of a tensor
    first.files.close()
    (second,) = sinks_of(tmp_path, chain, "Q5_0")
    second.files = DraftFiles(tmp_path, marks)
    for spec in specs[9:]:
        whole(second, chain, spec)
    second.finish()
    assert second.files.marks()[second.name].bytes == files["Q5_0"].stat().st_size
    second.files.close()
    assert (tmp_path / second.name).read_bytes() == files["Q5_0"].read_bytes()


def whole(sink: GgufSink, chain, spec):
    sink.begin(spec)
    sink.write(chain.merge.tensor(spec.name))
    sink.end()


def test_rows_that_are_missing_are_an_error_and_not_a_file(tmp_path, deep):
    chain = open_chain(deep)
    (sink,) = sinks_of(tmp_path, chain, "F16")
    spec = chain.merge.plan.specs[0]
    sink.begin(spec)
    sink.write(chain.merge.tensor(spec.name)[:-1])
    with pytest.raises(ValueError, match="were given"):
        sink.end()
    sink.files.close()


def test_query_and_key_rows_are_interleaved_within_each_head():
    rows = torch.arange(24.0).reshape(12, 2)
    assert torch.equal(interleaved(rows, 6), torch.from_numpy(interleaved_by_hand(rows.numpy(), 2)))
    assert interleaved(rows, 6)[:, 0].tolist() == [0, 6, 2, 8, 4, 10, 12, 18, 14, 20, 16, 22]


def test_the_metadata_describes_the_model(tmp_path, tokenizer):
    model = wide_llama(tmp_path / "model", tokenizer, head_dim=32, rms_norm_eps=1e-5)
    config = json.loads((model / "config.json").read_text())
    del config["max_position_embeddings"]
    (model / "config.json").write_text(json.dumps(config))
    found = metadata_of(write_gguf_files(tmp_path, model, "Q8_0", name="zh", template="alpaca")["Q8_0"])
    assert found["general.name"] == "zh"
    assert (found["general.file_type"], found["general.quantization_version"]) == (7, 2)
    assert found["general.size_label"] == "500K"
    expected = {
        "context_length": 2048,
        "embedding_length": 256,
        "feed_forward_length": 256,
        "block_count": 1,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 32,
        "attention.value_length": 32,
        "rope.dimension_count": 32,
        "rope.freq_base": 10000.0,
        "vocab_size": 400,
    }
    assert {name: found[f"llama.{name}"] for name in expected} == expected
    assert found["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    assert "### Instruction:" in found["tokenizer.chat_template"]


@pytest.mark.parametrize(("kind", "dtype"), [("F32", "float32"), ("F16", "float16"), ("BF16", "bfloat16")])
@pytest.mark.parametrize("family", ["bpe", "sentencepiece"])
def test_an_import_of_the_file_gives_the_model_back(tmp_path, tokenizer, kind, dtype, family):
    tokens = tiny_bpe_tokenizer(tmp_path / "bpe") if family == "bpe" else tokenizer
    model = tiny_llama(tmp_path / "model", tokens)
    weights = {
        name: tensor.to(getattr(torch, dtype)) for name, tensor in load_file(model / "model.safetensors").items()
    }
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    path = write_gguf_files(tmp_path, model, kind)[kind]
    if family == "sentencepiece":
        (path.parent / "tokenizer.model").write_bytes((tokens / "tokenizer.model").read_bytes())
    target = imported(tmp_path, path, dtype)
    back = load_file(target / "model.safetensors")
    assert back.keys() == weights.keys()
    for name, tensor in weights.items():
        expected = tensor.float().to(back[name].dtype) if tensor.dim() == 1 else tensor
        assert torch.equal(back[name], expected), name
    ours, theirs = (json.loads((each / "config.json").read_text()) for each in (model, target))
    same = "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim vocab_size"
    for (
        field
    ) in f"{same} max_position_embeddings rms_norm_eps rope_parameters tie_word_embeddings eos_token_id".split():
        assert theirs.get(field) == ours.get(field), field
    text = "In 1987 the old bridge: 240 metres. 河水<|eot_id|>"
    before, after = load_tokenizer(model), load_tokenizer(target)
    assert after.encode(text) == before.encode(text)
    assert (after.bos_id, after.eos_id, after.vocab_size) == (before.bos_id, before.eos_id, before.vocab_size)


def imported(tmp_path: Path, path: Path, dtype: str) -> Path:
    config = ModelImportConfig(
        owner=owner(kind="ModelImport"),
        attempt=1,
        workspace=workspace(tmp_path),
        source=source(path, field="spec.source.volume", root=path.parent),
        dtype=dtype,
    )
    run_step(config, RunContext(config, rank=0))
    return tmp_path / "work" / "artifact"


def test_without_libgguf_the_simple_types_are_the_same_and_others_are_refused(tmp_path, monkeypatch, deep, files):
    monkeypatch.setattr(gguf_quantisation, "_libgguf", lambda: None)
    assert write_gguf_files(tmp_path, deep, "Q8_0")["Q8_0"].read_bytes() == files["Q8_0"].read_bytes()
    for kind in ("Q4_K", "Q4_0"):
        with pytest.raises(BadInput, match=r"Q6_K matrices are computed by libgguf.*pip install libgguf"):
            write_gguf_files(tmp_path, deep, kind)


@pytest.mark.parametrize(
    ("fields", "kind", "message"),
    [
        (
            {"hidden_size": 48, "head_dim": 12, "intermediate_size": 48},
            "Q8_0",
            r"rows of 48 values and Q8_0 stores blocks of 32\. Choose F32, F16 or BF16",
        ),
        (
            {"hidden_size": 48, "head_dim": 12, "intermediate_size": 48},
            "Q4_K",
            r"output\.weight has rows of 48 values",
        ),
        ({"attention_bias": True}, "F16", r"_proj\.bias, which a plain Llama has not\. Choose the outputs huggingface"),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}},
            "F16",
            r"scaled as 'yarn', which the GGUF output does not express",
        ),
    ],
)
def test_models_that_do_not_fit_are_refused(tmp_path, tokenizer, fields, kind, message):
    model = wide_llama(tmp_path / "model", tokenizer, **fields)
    with pytest.raises(BadInput, match=message):
        write_gguf_files(tmp_path, model, kind)
    assert not (tmp_path / "gguf").exists()


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (float("nan"), "Q8_0", r"blk\.0\.ffn_up\.weight holds a value that is not a finite number"),
        (float("inf"), "F32", "not a finite number"),
        (70000.0, "F16", r"holds 70000, and F16 ends at 65504\. Choose BF16 or F32"),
    ],
)
def test_values_no_type_can_hold_are_refused(tmp_path, tokenizer, value, kind, message):
    model = wide_llama(tmp_path / "model", tokenizer)
    weights = load_file(model / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][3, 5] = value
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=message):
        write_gguf_files(tmp_path, model, kind)


def test_a_vocabulary_that_differs_from_the_embedding_is_refused(tmp_path, tokenizer):
    from herdsman_trainer.weights.gguf_vocabulary import read_vocabulary

    with pytest.raises(BadInput, match=r"has 401 rows and the tokenizer .* has 400 pieces\."):
        read_vocabulary(tokenizer, 401)
