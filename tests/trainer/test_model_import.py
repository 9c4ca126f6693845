"""The ModelImport step: a directory, a GGUF file or a seed becomes a checked model."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaForCausalLM

import peft_models as build
from herdsman.api.job_config import ModelImportConfig
from herdsman.api.v1alpha1.model_import import Initialise
from herdsman.api.v1alpha1.sources import TokenizerRef, VolumeSource
from herdsman_trainer.__main__ import run_step
from herdsman_trainer.artifacts import verify_artifact
from herdsman_trainer.errors import BadInput, Interrupted
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.tokenizers import load_tokenizer
from run_configs import owner, source, workspace
from tiny import tiny_chatml_tokenizer, tiny_llama, tiny_sentencepiece
from tiny_gguf import write_gguf


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A Hugging Face directory with a SentencePiece tokenizer."""
    return tiny_llama(tmp_path_factory.mktemp("model"), hidden_size=16)


@pytest.fixture(scope="module")
def chatml(tmp_path_factory):
    """A tied model with a byte-level BPE tokenizer, like SmolLM2."""
    root = tmp_path_factory.mktemp("chatml")
    return tiny_llama(root / "model", tiny_chatml_tokenizer(root / "tokenizer"), tied=True)


def import_model(tmp_path, path=None, *, stop=False, **options):
    config = ModelImportConfig(
        owner=owner(kind="ModelImport"),
        attempt=1,
        workspace=workspace(tmp_path),
        source=source(path, field="spec.source.volume") if path else None,
        **options,
    )
    context = RunContext(config, rank=0)
    if stop:
        context.request_stop()
    return run_step(config, context), tmp_path / "work" / "artifact"


def copied(model, directory):
    directory.mkdir(parents=True)
    for path in model.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    return directory


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_hugging_face_directory_is_copied_byte_for_byte_with_its_contract(tmp_path, model):
    artifact, directory = import_model(tmp_path, model)
    for name in ("config.json", "model.safetensors", "tokenizer.model", "generation_config.json"):
        assert (directory / name).read_bytes() == (model / name).read_bytes()
    verify_artifact(directory, "Digests")
    assert (artifact.kind, artifact.vocab_size, artifact.dtype) == ("model", 400, "float32")
    assert artifact.formats == ["huggingface"]
    assert artifact.tokenizer_digest == sha256(model / "tokenizer.model")


def test_files_that_belong_to_no_model_stay_behind(tmp_path, model):
    directory = copied(model, tmp_path / "model")
    (directory / "README.md").write_text("hello")
    (directory / "pytorch_model.bin").write_bytes(b"pickle")
    (directory / "evil.py").write_text("raise SystemExit")
    _, imported = import_model(tmp_path, directory)
    assert not {"README.md", "pytorch_model.bin", "evil.py"} & {path.name for path in imported.iterdir()}


def test_a_sharded_model_keeps_its_shards(tmp_path, model):
    sharded = copied(model, tmp_path / "model")
    LlamaForCausalLM.from_pretrained(sharded).save_pretrained(sharded, max_shard_size="20KB")
    (sharded / "model.safetensors").unlink()
    _, imported = import_model(tmp_path, sharded)
    assert len(list(imported.glob("model-*.safetensors"))) > 1
    assert_same_weights(imported, model)


def assert_same_weights(directory, expected, dtype=None):
    ours, theirs = build.load(directory).state_dict(), build.load(expected).state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name].to(dtype or tensor.dtype)), name


def test_another_type_is_written_on_request(tmp_path, model):
    artifact, directory = import_model(tmp_path, model, dtype="bfloat16")
    assert artifact.dtype == "bfloat16"
    assert_same_weights(directory, model, torch.bfloat16)


def test_files_with_an_expected_digest_are_checked_and_recorded(tmp_path, model):
    expected = {name: sha256(model / name) for name in ("model.safetensors", "tokenizer.model")}
    _, directory = import_model(tmp_path, model, sha256=expected)
    inputs = verify_artifact(directory).inputs
    assert inputs == {
        f"spec.source.volume/{name}": sha256(model / name)
        for name in (*expected, "config.json", "generation_config.json")
    }


@pytest.mark.parametrize(
    ("name", "digest", "reason", "says"),
    [
        ("model.safetensors", "0" * 64, "ChecksumMismatch", "expects 0000"),
        ("absent.bin", "0" * 64, "BadInput", "absent.bin, which is not there"),
    ],
)
def test_a_file_that_is_not_what_was_expected_is_refused(tmp_path, model, name, digest, reason, says):
    with pytest.raises(BadInput, match=says) as caught:
        import_model(tmp_path, model, sha256={name: digest})
    assert caught.value.reason == reason
    assert caught.value.file == str(model / name)
    assert name == "absent.bin" or sha256(model / name) in caught.value.message


def test_a_digest_is_not_taken_of_files_outside(tmp_path, model):
    directory = copied(model, tmp_path / "model")
    (tmp_path / "secret").write_text("x")
    (directory / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(BadInput, match="not there"):
        import_model(tmp_path, directory, sha256={"link": sha256(tmp_path / "secret")})


def test_a_stopped_import_publishes_nothing(tmp_path, model):
    with pytest.raises(Interrupted):
        import_model(tmp_path, model, stop=True)
    assert not (tmp_path / "work/artifact").exists()


def test_a_finished_import_is_not_done_again(tmp_path, model):
    first, directory = import_model(tmp_path, model)
    stamp = (directory / "config.json").stat().st_mtime_ns
    again, _ = import_model(tmp_path, model)
    assert again == first
    assert (directory / "config.json").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("quantisation", ["F32", "Q4_1", "Q8_0", "BF16"])
def test_a_gguf_file_becomes_what_transformers_makes_of_it(tmp_path, chatml, quantisation):
    (tmp_path / "gguf").mkdir()
    write_gguf(tmp_path / "gguf/tiny.gguf", chatml, quantisation=quantisation)
    artifact, directory = import_model(tmp_path, tmp_path / "gguf", dtype="float32")
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "gguf", gguf_file="tiny.gguf", dtype=torch.float32)
    ours = build.load(directory)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    ids = torch.arange(12)[None]
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-5, rtol=1e-5)
    assert (artifact.vocab_size, artifact.dtype) == (420, "float32")


def test_a_gguf_file_keeps_tying_tokenizer_and_template(tmp_path, chatml):
    path = write_gguf(tmp_path / "tiny.gguf", chatml)
    artifact, directory = import_model(tmp_path, path)
    assert artifact.dtype == "bfloat16"
    assert "lm_head.weight" not in load_file(directory / "model.safetensors")
    config = json.loads((directory / "config.json").read_text())
    ours, theirs = load_tokenizer(directory), load_tokenizer(chatml)
    assert (config["tie_word_embeddings"], config["eos_token_id"]) == (True, theirs.eos_id)
    assert (config["bos_token_id"], config["model_type"], config["dtype"]) == (theirs.bos_id, "llama", "bfloat16")
    for text in ("Hello world, 12345!", "中文测试", "  two  spaces\n\n", "<|im_start|>user", "don't I'll é"):
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == text
    assert ours.control_id("<|im_end|>") == theirs.eos_id == ours.eos_id
    named = json.loads((directory / "tokenizer_config.json").read_text())
    assert (named["tokenizer_class"], named["add_bos_token"]) == ("PreTrainedTokenizerFast", False)
    theirs = AutoTokenizer.from_pretrained(directory)
    assert theirs.encode("Hello world, 12345!") == ours.encode("Hello world, 12345!")
    assert theirs.chat_template == "{{ messages[0]['content'] }}"


@pytest.mark.parametrize(
    ("split", "text", "pieces"),
    [
        ("smollm", "a 123", ["a", "Ġ", "1", "2", "3"]),
        ("gpt-2", "a 123", ["a", "Ġ123"]),
        ("llama-bpe", "a 123", ["a", "Ġ", "123"]),
    ],
)
def test_text_is_split_before_bpe_as_the_file_says(tmp_path, chatml, split, text, pieces):
    path = write_gguf(tmp_path / "tiny.gguf", chatml, **{"tokenizer.ggml.pre": split})
    _, directory = import_model(tmp_path, path)
    splitter = AutoTokenizer.from_pretrained(directory).backend_tokenizer.pre_tokenizer
    assert [piece for piece, _ in splitter.pre_tokenize_str(text)] == pieces


def test_bos_is_put_first_where_the_file_asks_for_it(tmp_path, chatml):
    path = write_gguf(tmp_path / "tiny.gguf", chatml, **{"tokenizer.ggml.add_bos_token": True})
    _, directory = import_model(tmp_path, path)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.encode("a")[0] == tokenizer.bos_token_id
    assert load_tokenizer(directory).bos_id == tokenizer.bos_token_id


def test_tokenizer_files_beside_a_gguf_file_win(tmp_path, chatml):
    copied_tokenizer = tmp_path / "gguf"
    tiny_chatml_tokenizer(copied_tokenizer)
    write_gguf(copied_tokenizer / "tiny.gguf", chatml, **{"tokenizer.ggml.pre": "unheard-of"})
    artifact, _ = import_model(tmp_path, copied_tokenizer)
    assert artifact.tokenizer_digest == load_tokenizer(chatml).digest


@pytest.mark.parametrize(
    ("metadata", "says", "remedy"),
    [
        ({"tokenizer.ggml.pre": "unheard-of"}, "pre 'unheard-of'", "beside the GGUF file"),
        ({"tokenizer.ggml.model": "llama"}, "model 'llama'", "tokenizer.model"),
        ({"architecture": "qwen2"}, "architecture 'qwen2'", "LLaMA"),
        ({"llama.rope.scaling.type": "yarn"}, "scales the rotary", "safetensors"),
        ({"llama.block_count": None}, "llama.block_count = None", "safetensors"),
        ({"llama.block_count": 3}, "9 tensors are missing", "copy the model again"),
        ({"split.count": 2}, "several parts", "llama-gguf-split"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_gguf_file_that_is_no_plain_llama_is_refused(tmp_path, chatml, metadata, says, remedy):
    path = write_gguf(tmp_path / "tiny.gguf", chatml, **metadata)
    with pytest.raises(BadInput, match=says) as caught:
        import_model(tmp_path, path)
    assert remedy in caught.value.hint
    assert caught.value.file == str(path)


def test_a_cut_gguf_file_is_refused(tmp_path, chatml):
    path = write_gguf(tmp_path / "tiny.gguf", chatml)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(BadInput, match="not a whole GGUF file"):
        import_model(tmp_path, path)


def test_of_several_gguf_files_one_has_to_be_named(tmp_path, chatml):
    (tmp_path / "gguf").mkdir()
    for name in ("a.gguf", "b.gguf"):
        write_gguf(tmp_path / "gguf" / name, chatml)
    with pytest.raises(BadInput, match=r"2 GGUF files: a\.gguf, b\.gguf"):
        import_model(tmp_path, tmp_path / "gguf")
    import_model(tmp_path, tmp_path / "gguf/b.gguf")


def only_pickle(directory):
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def no_weights(directory):
    (directory / "model.safetensors").unlink()


def cut_weights(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def larger_vocabulary(directory):
    tiny_sentencepiece(directory, 410)


def no_tokenizer(directory):
    (directory / "tokenizer.model").unlink()


def lost_tensor(directory):
    path = directory / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    path.unlink()
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("damage", "says", "remedy"),
    [
        (only_pickle, "not in the format that torch.save writes", "SHA-256"),
        (no_weights, "neither model.safetensors nor", "Hugging Face model directory"),
        (cut_weights, "is cut", "SHA-256"),
        (larger_vocabulary, "has 400 rows and the tokenizer .* has 410 pieces", "tokenizer the model was trained with"),
        (no_tokenizer, "neither tokenizer.model nor tokenizer.json", "directory"),
        (lost_tensor, "1 tensors are missing .* model.layers.1.mlp.up_proj.weight", "copy the model again"),
    ],
)
def test_a_directory_that_is_no_whole_model_is_refused(tmp_path, model, damage, says, remedy):
    directory = copied(model, tmp_path / "model")
    damage(directory)
    with pytest.raises(BadInput, match=says) as caught:
        import_model(tmp_path, directory)
    assert remedy in caught.value.hint
    assert not (tmp_path / "work/artifact").exists()


def initialise(tmp_path, tokenizer, dtype=None, **fields):
    reference = TokenizerRef(volume=VolumeSource(claim="c"))
    settings = {"hidden_size": 32, "intermediate_size": 48, "layers": 2, "attention_heads": 4, **fields}
    wanted = Initialise(tokenizer=reference, **settings)
    where = source(tokenizer, field="spec.source.initialise.tokenizer")
    return import_model(tmp_path, initialise=wanted, tokenizer=where, dtype=dtype)


def test_an_initialised_model_follows_config_tokenizer_and_seed(tmp_path):
    tokenizer = tiny_sentencepiece(tmp_path / "tokenizer")
    artifact, directory = initialise(tmp_path / "a", tokenizer, key_value_heads=2, rope_theta=5e5, seed=3)
    model = build.load(directory)
    assert (artifact.vocab_size, artifact.dtype, artifact.tokenizer_digest) == (
        400,
        "float32",
        sha256(tokenizer / "tokenizer.model"),
    )
    assert model.config.num_key_value_heads == 2
    assert model.config.rope_parameters["rope_theta"] == 5e5
    assert (model.config.bos_token_id, model.config.eos_token_id) == (1, 2)
    assert model.lm_head.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.lm_head.weight.mean().item() == pytest.approx(0, abs=0.001)
    assert torch.equal(model.model.norm.weight, torch.ones(32))
    same, _ = initialise(tmp_path / "b", tokenizer, key_value_heads=2, rope_theta=5e5, seed=3)
    other, _ = initialise(tmp_path / "c", tokenizer, key_value_heads=2, rope_theta=5e5, seed=4)
    assert same.digest == artifact.digest != other.digest


def test_an_initialised_model_may_be_tied_and_of_another_type(tmp_path):
    tokenizer = tiny_sentencepiece(tmp_path / "tokenizer")
    artifact, directory = initialise(tmp_path, tokenizer, dtype="bfloat16", tie_embeddings=True)
    model = build.load(directory)
    assert artifact.dtype == "bfloat16"
    assert model.config.tie_word_embeddings
    assert "lm_head.weight" not in load_file(directory / "model.safetensors")


def test_heads_of_odd_width_are_refused_with_the_field(tmp_path):
    with pytest.raises(BadInput, match=r"initialise\.hiddenSize 36 does not give 12 heads of even width") as caught:
        initialise(tmp_path, tiny_sentencepiece(tmp_path / "tokenizer"), hidden_size=36, attention_heads=12)
    assert "multiple of 24" in caught.value.hint


def test_an_initialised_model_needs_a_tokenizer(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(BadInput, match=r"neither tokenizer\.model"):
        initialise(tmp_path, tmp_path / "tokenizer")
