"""Meta's checkpoints become the Hugging Face model that they were made of, whatever the number of files."""

import base64
import json

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer

import peft_models as build
from herdsman_trainer.artifacts import verify_artifact
from herdsman_trainer.errors import BadInput
from herdsman_trainer.tokenizers import load_tokenizer
from herdsman_trainer.weights import meta_model, meta_params
from imports import import_model, sha256
from tiny import ENGLISH, tiny_bpe_tokenizer, tiny_sentencepiece
from tiny_meta import meta_logits, random_llama, write_meta

ROWS = 401
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_sentencepiece(tmp_path_factory.mktemp("tokenizer"), ROWS) / "tokenizer.model"


@pytest.fixture
def meta(tmp_path, tokenizer):
    """Write a checkpoint below a tokenizer, as Meta's download had it; returns its directory."""

    def write(model=None, *, beside=True, **options):
        (tmp_path / "llama").mkdir(exist_ok=True)
        directory = write_meta(tmp_path / "llama/7B", model or random_llama(ROWS), **options)
        if beside:
            (tmp_path / "llama/tokenizer.model").write_bytes(tokenizer.read_bytes())
        return directory

    return write


def imported(tmp_path, directory, **options):
    return import_model(tmp_path, directory, root=tmp_path, **options)


def assert_is(directory, model):
    ours, theirs = build.load(directory), model.state_dict()
    assert ours.state_dict().keys() == theirs.keys()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name
        assert tensor.dtype == theirs[name].dtype
    ids = torch.arange(30)[None]
    assert torch.equal(ours.eval()(ids).logits, model(ids).logits)


@pytest.mark.parametrize("shards", [1, 2, 4, 8])
@pytest.mark.parametrize(("kv_heads", "by_rows"), [(8, False), (8, True)], ids=["LLaMA", "Llama 3's embedding"])
def test_any_number_of_files_makes_the_same_model(tmp_path, meta, shards, kv_heads, by_rows):
    model = random_llama(ROWS, kv_heads=kv_heads)
    artifact, directory = imported(tmp_path, meta(model, shards=shards, embedding_by_rows=by_rows))
    assert_is(directory, model)
    verify_artifact(directory, "Digests")
    assert (artifact.kind, artifact.vocab_size, artifact.dtype) == ("model", ROWS, "float32")


@pytest.mark.parametrize(("heads", "kv_heads", "shards"), [(8, 2, 1), (8, 2, 2), (8, 1, 1), (16, 8, 8)])
def test_grouped_queries_keep_their_fewer_heads(tmp_path, meta, heads, kv_heads, shards):
    model = random_llama(ROWS, heads=heads, kv_heads=kv_heads)
    _, directory = imported(tmp_path, meta(model, shards=shards))
    assert_is(directory, model)


def test_the_logits_are_those_of_metas_own_arithmetic(tmp_path, meta):
    source = meta(random_llama(ROWS, kv_heads=4, rope_theta=5e5), rope_theta=5e5)
    _, directory = imported(tmp_path, source)
    parts = torch.load(source / "consolidated.00.pth", weights_only=True)
    ids = torch.arange(5, 45)
    theirs = meta_logits(parts, ids, heads=8, kv_heads=4, theta=5e5, eps=1e-6)
    torch.testing.assert_close(build.load(directory)(ids[None]).logits[0], theirs, atol=1e-5, rtol=1e-5)


def test_blocks_of_whole_heads_make_the_same_tensors(tmp_path, meta, monkeypatch):
    monkeypatch.setattr(meta_model, "BLOCK_VALUES", 100)
    model = random_llama(ROWS, kv_heads=4)
    _, directory = imported(tmp_path, meta(model, shards=4))
    assert_is(directory, model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_type_is_that_of_the_files_unless_another_is_asked_for(tmp_path, meta, dtype):
    model = random_llama(ROWS, dtype=dtype)
    source = meta(model, shards=2)
    artifact, directory = imported(tmp_path, source)
    assert artifact.dtype == str(dtype).removeprefix("torch.")
    assert_is(directory, model)
    _, wide = imported(tmp_path, source, dtype="float32", name="wide")
    assert load_file(wide / "model.safetensors")["lm_head.weight"].dtype == torch.float32


def test_a_head_that_repeats_the_embedding_is_tied(tmp_path, meta):
    model = random_llama(ROWS, tie_word_embeddings=True)
    _, directory = imported(tmp_path, meta(model, shards=2, embedding_by_rows=True))
    assert "lm_head.weight" not in load_file(directory / "model.safetensors")
    assert_is(directory, model)


@pytest.mark.parametrize(
    ("params", "theta", "context", "factor"),
    [
        ({}, 1e4, 2048, None),
        ({"norm_eps": 1e-5}, 1e4, 4096, None),
        ({"rope_theta": 1e6}, 1e6, 16384, None),
        ({"rope_theta": 5e5}, 5e5, 8192, None),
        ({"rope_theta": 5e5, "use_scaled_rope": True}, 5e5, 131072, 8.0),
        ({"rope_theta": 5e5, "use_scaled_rope": True, "rope_scaling_factor": 16}, 5e5, 131072, 16.0),
    ],
    ids=["LLaMA", "Llama 2", "Code Llama", "Llama 3", "Llama 3.1", "a scaling that is said"],
)
def test_the_rotary_embedding_follows_params_json(tmp_path, meta, params, theta, context, factor):
    _, directory = imported(tmp_path, meta(**params))
    config = json.loads((directory / "config.json").read_text())
    rope = config["rope_parameters"]
    assert (rope["rope_theta"], config["max_position_embeddings"], rope.get("factor")) == (theta, context, factor)
    assert (rope["rope_type"] == "llama3") == (factor is not None)
    if factor:
        assert (rope["low_freq_factor"], rope["high_freq_factor"]) == (1.0, 4.0)
        assert rope["original_max_position_embeddings"] == 8192


def test_the_small_llama_3_2_models_are_scaled_by_32(tmp_path):
    path = tmp_path / "params.json"
    given = {"dim": 2048, "n_heads": 32, "n_kv_heads": 8, "n_layers": 16, "norm_eps": 1e-5, "rope_theta": 5e5}
    path.write_text(json.dumps(given | {"use_scaled_rope": True, "vocab_size": 128256}))
    params = meta_params.read_params(tmp_path)
    assert (params.scaling, params.vocab_size, params.head_dim) == (32.0, 128256, 64)


def test_config_and_generation_config_have_the_ids_of_the_tokenizer(tmp_path, meta):
    _, directory = imported(tmp_path, meta())
    config = json.loads((directory / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["model_type"]) == (1, 2, "llama")
    generation = json.loads((directory / "generation_config.json").read_text())
    assert (generation["bos_token_id"], generation["eos_token_id"]) == (1, 2)


def test_a_sentencepiece_tokenizer_gets_the_files_that_transformers_reads(tmp_path, meta, tokenizer):
    artifact, directory = imported(tmp_path, meta())
    assert artifact.tokenizer_digest == sha256(tokenizer)
    assert (directory / "tokenizer.model").read_bytes() == tokenizer.read_bytes()
    theirs, ours = AutoTokenizer.from_pretrained(directory), load_tokenizer(directory)
    text = "The river rises in 1987."
    assert theirs.encode(text) == [1, *ours.encode(text)]


def test_the_tokenizer_above_is_not_looked_for_outside_of_the_volume(tmp_path, meta):
    directory = meta()
    with pytest.raises(BadInput, match=r"neither tokenizer\.model nor tokenizer\.json beside the weights") as caught:
        import_model(tmp_path, directory, root=directory)
    assert "beside the weights" in caught.value.hint


def ranked_tokenizer(directory):
    """A byte-level BPE of `tokenizers`, and the same as lines of bytes and ranks; returns it."""
    directory.mkdir(parents=True, exist_ok=True)
    source = tiny_bpe_tokenizer(directory / "source", control_tokens=("<|begin_of_text|>", "<|end_of_text|>"))
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    model = json.loads(tokenizer.to_str())["model"]
    letters = {letter: byte for byte, letter in byte_letters().items()}
    ordered = sorted(model["vocab"], key=model["vocab"].get)
    lines = [base64.b64encode(bytes(letters[letter] for letter in token)) for token in ordered]
    ranks = b"".join(b"%s %d\n" % (line, rank) for rank, line in enumerate(lines))
    (directory / "tokenizer.model").write_bytes(ranks)
    return tokenizer, len(ordered)


def byte_letters():
    """The alphabet of byte-level BPE, taken from the library itself."""
    from tokenizers.pre_tokenizers import ByteLevel

    # UTF-8 never holds these bytes, so the library is asked for the rest and they take the letters that are left.
    letters = {}
    for code in range(0x110000):
        if 0xD800 <= code < 0xE000 or len(letters) == 243 or (code > 0x1000 and code % 0x1000):
            continue
        raw = chr(code).encode()
        split = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(chr(code))[0][0]
        letters |= dict(zip(raw, split, strict=True))
    left = sorted(set(ByteLevel.alphabet()) - set(letters.values()))
    return letters | dict(zip(sorted(set(range(256)) - letters.keys()), left, strict=True))


def test_llama_3s_ranks_become_a_tokenizer_json(tmp_path, meta):
    theirs, ranks = ranked_tokenizer(tmp_path / "llama")
    rows = ranks + 256
    source = meta(random_llama(rows), beside=False, rope_theta=5e5, vocab_size=rows)
    artifact, directory = imported(tmp_path, source)
    assert not (directory / "tokenizer.model").exists()
    ours = load_tokenizer(directory)
    assert (ours.vocab_size, artifact.vocab_size) == (rows, rows)
    for text in (ENGLISH, "Hello  world, 12345!\n\n", "中文 naïve 🙂", "<|eot_id|>", "don't I'LL"):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids, text
        assert ours.decode(ours.encode(text)) == text
    assert (ours.bos_id, ours.eos_id, ours.control_id("<|eot_id|>")) == (ranks, ranks + 1, ranks + 9)
    assert ours.control_id("<|reserved_special_token_2|>") == ranks + 4
    assert ours.control_id("<|reserved_special_token_250|>") == rows - 1
    generation = json.loads((directory / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [ranks + 1, ranks + 9]
    assert AutoTokenizer.from_pretrained(directory).encode("a")[0] == ranks


def test_the_control_tokens_of_llama_3_1_have_their_names(tmp_path, meta):
    _, ranks = ranked_tokenizer(tmp_path / "llama")
    source = meta(random_llama(ranks + 256), beside=False, rope_theta=5e5, use_scaled_rope=True)
    _, directory = imported(tmp_path, source)
    ours = load_tokenizer(directory)
    named = ("<|finetune_right_pad_id|>", "<|reserved_special_token_2|>", "<|eom_id|>", "<|python_tag|>")
    assert [ours.control_id(token) for token in named] == [ranks + 4, ranks + 5, ranks + 8, ranks + 10]
    assert ours.control_id("<|reserved_special_token_247|>") == ranks + 255


def test_a_tokenizer_json_beside_the_ranks_is_taken(tmp_path, meta):
    source = meta(random_llama(420), beside=False)
    ranked_tokenizer(source)
    tiny_bpe_tokenizer(source)
    _, directory = imported(tmp_path, source)
    assert not (directory / "tokenizer.model").exists()
    assert load_tokenizer(directory).digest == load_tokenizer_json(source)


def load_tokenizer_json(directory):
    (directory / "tokenizer.model").unlink()
    return load_tokenizer(directory).digest


def edit(directory, change):
    path = directory / "consolidated.01.pth"
    tensors = torch.load(path, weights_only=True)
    change(tensors)
    torch.save(tensors, path)


def other_norm(directory):
    edit(directory, lambda tensors: tensors["norm.weight"].add_(1))


def lost_tensor(directory):
    edit(directory, lambda tensors: tensors.pop("layers.1.feed_forward.w2.weight"))


def of_another_model(directory):
    edit(directory, lambda tensors: tensors.update({"layers.0.attention.wo.weight": torch.ones(24, 16)}))


def with_experts(directory):
    edit(directory, lambda tensors: tensors.update({"layers.0.feed_forward.experts.w1.weight": torch.ones(2)}))


def copy_of_second(directory):
    (directory / "consolidated.02.pth").write_bytes((directory / "consolidated.01.pth").read_bytes())


def without(name):
    return lambda directory: (directory / name).unlink()


def renamed(old, new):
    return lambda directory: (directory / old).rename(directory / new)


def cut(directory):
    path = directory / "consolidated.01.pth"
    path.write_bytes(path.read_bytes()[:-200])


def params(**figures):
    def change(directory):
        path = directory / "params.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **figures}))

    return change


def ranks_cut(directory):
    (directory / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\nIw== 3\n")


def rank_garbled(directory):
    (directory / "tokenizer.model").write_bytes(b"IQ== 0\n%% 1\n")


@pytest.mark.parametrize(
    ("damage", "file", "says", "remedy"),
    [
        (without("consolidated.01.pth"), "consolidated.01.pth", "has 2 files by its shapes, and 1 are there", "Copy"),
        (without("consolidated.00.pth"), "consolidated.00.pth", "consolidated.00.pth is missing", "Copy the missing"),
        (copy_of_second, "consolidated.02.pth", "2 files by its shapes, and 3 are there", "Move away"),
        (cut, "consolidated.01.pth", "is cut or damaged: its [0-9]+ bytes are no whole zip", "SHA-256"),
        (
            other_norm,
            "consolidated.01.pth",
            "norm.weight, which lies in every file, is not the same",
            "different models",
        ),
        (lost_tensor, "consolidated.01.pth", "lacks model.layers.1.mlp.down_proj.weight", "different models"),
        (of_another_model, "consolidated.01.pth", "o_proj.weight is 24 x 16 .* here and 32 x 16", "one model whole"),
        (with_experts, "consolidated.01.pth", "experts.w1.weight, which a plain Llama has not", "LLaMA"),
        (without("params.json"), "params.json", "missing", "params.json of their own"),
        (params(dim=64), "params.json", "dim is 64 and wq of consolidated.00.pth is 16 x 32", "of another model"),
        (params(n_heads=None), "params.json", "n_heads must be a whole number above 0 and is None", "copy it"),
        (params(n_heads=7), "params.json", "do not make heads of equal, even width", "copy it"),
        (params(n_kv_heads=2), "params.json", "k_proj.weight is 32 x 32 .* and 8 x 32 by", "n_kv_heads would be 8"),
        (params(n_layers=3), "params.json", "n_layers is 3 and the weights have 2 layers, up to 1", "another model"),
        (params(vocab_size=32000), "params.json", "is 401 x 32 in the weights, and 32000 x 32", "vocab_size is 401"),
        (params(norm_eps="small"), "params.json", "norm_eps must be a number above 0 and is 'small'", "copy it"),
        (ranks_cut, "tokenizer.model", "ranks of its 3 tokens are not 0 to 2", "copy it again"),
        (rank_garbled, "tokenizer.model", "The line is not a token", "SHA-256"),
    ],
    ids=lambda value: value if isinstance(value, str) and "." not in value else None,
)
def test_a_checkpoint_that_is_not_whole_is_refused_by_file(tmp_path, meta, damage, file, says, remedy):
    directory = meta(shards=2)
    damage(directory)
    with pytest.raises(BadInput, match=says) as caught:
        imported(tmp_path, directory)
    assert caught.value.file == str(directory / file)
    assert remedy in caught.value.hint
    assert not (tmp_path / "work/artifact").exists()


@pytest.mark.parametrize("rows", [ROWS - 1, ROWS + 1, 320])
def test_an_embedding_and_a_tokenizer_of_other_sizes_are_refused_with_both(tmp_path, meta, rows):
    with pytest.raises(BadInput, match=f"has {rows} rows and the tokenizer .* has {ROWS} pieces") as caught:
        imported(tmp_path, meta(random_llama(rows)))
    assert ("[PAD]" in caught.value.hint) == (abs(rows - ROWS) == 1)


def test_a_changed_value_inside_a_file_is_found_by_the_checksum_it_was_saved_with(tmp_path, meta):
    directory = meta(shards=2)
    path = directory / "consolidated.01.pth"
    content = bytearray(path.read_bytes())
    needle = torch.load(path, weights_only=True)["layers.0.attention.wv.weight"].numpy().tobytes()
    content[content.index(needle) + 7] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"record consolidated\.01/data/\d+ has the CRC-32 .* was saved with") as caught:
        imported(tmp_path, directory)
    assert (caught.value.reason, caught.value.file) == ("ChecksumMismatch", str(path))
