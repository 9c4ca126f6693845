"""Meta's form of a merge: what an independent writer makes of the same model, in files that plain torch loads."""

import json
import zipfile

import pytest
import torch
from safetensors.torch import load_file

import peft_models as build
from herdsman.api.v1alpha1.lora_merge import MergeOutputs
from herdsman_trainer.errors import BadInput
from herdsman_trainer.weights.meta_writing import default_shards, feed_forward_width, params
from herdsman_trainer.weights.pth_layout import pth_layout
from imports import import_model
from merges import merge
from tiny import tiny_bpe_tokenizer, tiny_sentencepiece
from tiny_meta import meta_logits, random_llama, write_meta

ROWS = 401
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_sentencepiece(tmp_path_factory.mktemp("tokenizer"), ROWS)


@pytest.fixture
def base(tmp_path, tokenizer):
    def write(**settings):
        model = random_llama(ROWS, **settings)
        directory = tmp_path / "base"
        model.save_pretrained(directory)
        (directory / "tokenizer.model").write_bytes((tokenizer / "tokenizer.model").read_bytes())
        return directory, model

    return write


def outputs(shards=None, **others):
    return MergeOutputs.model_validate({"pth": {"shards": shards} if shards else {}, **others})


def loaded(directory):
    files = sorted(directory.glob("consolidated.*.pth"))
    return [torch.load(path, weights_only=True) for path in files]


def assert_same_files(ours, theirs):
    assert [part.keys() for part in ours] == [part.keys() for part in theirs]
    for our, their in zip(ours, theirs, strict=True):
        for name, tensor in our.items():
            assert tensor.dtype == their[name].dtype
            assert torch.equal(tensor, their[name]), name


@pytest.mark.parametrize(
    ("shards", "kv_heads"),
    [(1, 8), (2, 8), (4, 8), (8, 8), (1, 4), (2, 4), (4, 4), (1, 1)],
    ids=lambda count: str(count),
)
def test_the_files_are_those_of_an_independent_writer(tmp_path, base, shards, kv_heads):
    directory, model = base(kv_heads=kv_heads)
    _, artifact = merge(tmp_path, directory, [], outputs=outputs(shards))
    expected = write_meta(tmp_path / "meta", model, shards=shards, tables=False)
    assert_same_files(loaded(artifact / "pth"), loaded(expected))
    assert (artifact / "pth/tokenizer.model").read_bytes() == (directory / "tokenizer.model").read_bytes()
    assert sorted(path.name for path in (artifact / "pth").iterdir())[shards:] == ["params.json", "tokenizer.model"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_they_are_whole_zip_files_of_the_stored_type(tmp_path, base, dtype):
    directory, model = base(dtype=dtype)
    _, artifact = merge(tmp_path, directory, [], outputs=outputs(2))
    assert_same_files(loaded(artifact / "pth"), loaded(write_meta(tmp_path / "meta", model, shards=2, tables=False)))
    for path in (artifact / "pth").glob("*.pth"):
        with zipfile.ZipFile(path) as file:
            assert file.testzip() is None
            assert all(info.compress_type == zipfile.ZIP_STORED for info in file.infolist())


def test_values_can_be_mapped_from_the_file(tmp_path, base):
    directory, _ = base()
    _, artifact = merge(tmp_path, directory, [], outputs=outputs())
    path = artifact / "pth/consolidated.00.pth"
    mapped, read = (torch.load(path, weights_only=True, mmap=mmap) for mmap in (True, False))
    assert_same_files([mapped], [read])
    with zipfile.ZipFile(path) as file, path.open("rb") as stream:
        for info in (info for info in file.infolist() if "/data/" in info.filename):
            stream.seek(info.header_offset + 26)
            name, extra = (int.from_bytes(stream.read(2), "little") for _ in range(2))
            assert (info.header_offset + 30 + name + extra) % 64 == 0


def test_rows_of_an_odd_vocabulary_that_are_left_over_go_to_the_last_file(tmp_path, base):
    directory, _ = base()
    _, artifact = merge(tmp_path, directory, [], outputs=outputs(2))
    assert [len(part["output.weight"]) for part in loaded(artifact / "pth")] == [ROWS // 2, ROWS // 2 + 1]


def test_llama_3_splits_its_embedding_by_rows(tmp_path, base):
    rope = {"rope_type": "default", "rope_theta": 500000.0}
    directory, model = base(rope_parameters=rope, vocab_size=ROWS)
    with pytest.raises(BadInput, match="cannot be split over 2 files"):
        merge(tmp_path, directory, [], outputs=outputs(2))
    even = tiny_sentencepiece(tmp_path / "even", ROWS + 1)
    model = random_llama(ROWS + 1, rope_parameters=rope)
    model.save_pretrained(even)
    _, artifact = merge(tmp_path / "even", even, [], outputs=outputs(2))
    expected = write_meta(tmp_path / "meta", model, shards=2, tables=False, embedding_by_rows=True)
    assert_same_files(loaded(artifact / "pth"), loaded(expected))


def test_metas_own_formulas_compute_the_merged_model(tmp_path, base):
    directory, _ = base(kv_heads=4)
    adapter = build.adapter(tmp_path / "adapter", directory)
    _, artifact = merge(tmp_path, directory, [adapter], outputs=outputs(huggingface={}))
    model = build.load(artifact).eval()
    ids = torch.tensor([1, 30, 200, 7, 7, 399])
    settings = json.loads((artifact / "pth/params.json").read_text())
    assert (settings["n_heads"], settings["n_kv_heads"], settings["vocab_size"]) == (8, 4, -1)
    theirs = meta_logits(loaded(artifact / "pth")[0], ids, heads=8, kv_heads=4, theta=10000.0, eps=settings["norm_eps"])
    torch.testing.assert_close(theirs, model(ids[None]).logits[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shards", [1, 2])
def test_it_comes_back_as_it_went(tmp_path, base, shards):
    directory, _ = base(kv_heads=4)
    adapter = build.adapter(tmp_path / "adapter", directory)
    _, artifact = merge(tmp_path, directory, [adapter], outputs=outputs(shards, huggingface={}))
    _, back = import_model(tmp_path, artifact / "pth", root=tmp_path, name="back")
    ours, theirs = (load_file(path / "model.safetensors") for path in (artifact, back))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_tied_head_is_the_embedding_once_more_and_takes_no_room(tmp_path, base):
    directory, model = base(tie_word_embeddings=True)
    artifact, path = merge(tmp_path, directory, [], outputs=outputs())
    content = loaded(path / "pth")[0]
    assert torch.equal(content["output.weight"], model.get_input_embeddings().weight)
    assert content["output.weight"].data_ptr() == content["tok_embeddings.weight"].data_ptr()
    assert artifact.formats == ["pth"]
    with pytest.raises(BadInput, match="split the two in different ways") as caught:
        merge(tmp_path / "two", directory, [], outputs=outputs(2))
    assert caught.value.file == "spec.outputs.pth"


def test_a_byte_level_tokenizer_comes_along_as_it_is(tmp_path):
    tokenizer = tiny_bpe_tokenizer(tmp_path / "base")
    rows = len(json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"]) + 5
    random_llama(rows).save_pretrained(tokenizer)
    _, artifact = merge(tmp_path, tokenizer, [], outputs=outputs())
    assert (artifact / "pth/tokenizer.json").read_bytes() == (tokenizer / "tokenizer.json").read_bytes()


def config(dim, width, heads, layers, eps, *, kv=None, theta=10000.0, **others):
    rope = {"rope_type": "default", "rope_theta": theta}
    figures = {"hidden_size": dim, "intermediate_size": width, "num_attention_heads": heads, "rms_norm_eps": eps}
    others = {"num_key_value_heads": kv or heads, "rope_parameters": rope, **others}
    return {**figures, "num_hidden_layers": layers, **others}


LLAMA_31 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
LLAMA_31 |= {"rope_type": "llama3", "rope_theta": 500000.0}
PUBLISHED = [
    ("LLaMA 7B", config(4096, 11008, 32, 32, 1e-6), {"multiple_of": 256}),
    ("LLaMA 13B", config(5120, 13824, 40, 40, 1e-6), {"multiple_of": 256}),
    ("LLaMA 33B", config(6656, 17920, 52, 60, 1e-6), {"multiple_of": 256}),
    ("LLaMA 65B", config(8192, 22016, 64, 80, 1e-5), {"multiple_of": 256}),
    (
        "Llama 2 70B",
        config(8192, 28672, 64, 80, 1e-5, kv=8),
        {"multiple_of": 4096, "ffn_dim_multiplier": 1.3, "n_kv_heads": 8},
    ),
    (
        "Llama 3 8B",
        config(4096, 14336, 32, 32, 1e-5, kv=8, theta=500000.0),
        {"multiple_of": 1024, "ffn_dim_multiplier": 1.3, "n_kv_heads": 8, "rope_theta": 500000.0},
    ),
    (
        "Llama 3.2 1B",
        config(2048, 8192, 32, 16, 1e-5, kv=8, rope_parameters={**LLAMA_31, "factor": 32.0}),
        {
            "multiple_of": 256,
            "ffn_dim_multiplier": 1.5,
            "n_kv_heads": 8,
            "rope_theta": 500000.0,
            "use_scaled_rope": True,
            "rope_scaling_factor": 32.0,
        },
    ),
]


@pytest.mark.parametrize(("given", "said"), [case[1:] for case in PUBLISHED], ids=[case[0] for case in PUBLISHED])
def test_params_json_says_what_meta_publishes(given, said):
    figures = {"dim": "hidden_size", "n_heads": "num_attention_heads", "n_layers": "num_hidden_layers"}
    figures = {name: given[field] for name, field in figures.items()} | {"norm_eps": given["rms_norm_eps"]}
    assert params(given) == {**figures, **said, "vocab_size": -1}


@pytest.mark.parametrize(
    ("dim", "width"),
    [(4096, 11008), (2048, 5632), (576, 1536), (960, 2560), (16, 24), (32, 48), (16, 31), (48, 1), (5120, 13825)],
)
def test_the_feed_forward_width_comes_out_right(dim, width):
    said = params(config(dim, width, 8, 2, 1e-5))
    assert feed_forward_width(dim, said["multiple_of"], said.get("ffn_dim_multiplier")) == width


def test_the_number_of_files_is_the_published_one():
    widths = [2048, 4096, 5120, 6656, 8192, 576]
    assert [default_shards(width) for width in widths] == [1, 1, 2, 4, 8, 1]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0}}, "scaled as 'yarn'"),
        ({"rope_parameters": {**LLAMA_31, "high_freq_factor": 2.0}}, "other figures than Llama 3.1's"),
        ({"head_dim": 64}, "heads are 64 wide"),
    ],
)
def test_what_params_json_cannot_say_is_refused(changes, says):
    with pytest.raises(BadInput, match=says) as caught:
        params({**config(4096, 11008, 32, 32, 1e-6), **changes})
    assert "huggingface" in caught.value.hint


def test_heads_are_not_split(tmp_path, base):
    directory, _ = base(kv_heads=2)
    with pytest.raises(BadInput, match=r"k_proj.weight \(heads\) cannot be split over 4 files") as caught:
        merge(tmp_path, directory, [], outputs=outputs(4))
    assert "shards to 1" in caught.value.hint


def test_a_file_beyond_four_gibibytes_is_laid_out_as_torch_reads_it(tmp_path):
    """The values are holes: the file takes no room, and torch and zipfile find everything in it."""
    tensors = {
        "small": (torch.bfloat16, (3,)),
        "large": (torch.bfloat16, (5 << 30, 1)),
        "after": (torch.float32, (2, 2)),
        "second": (torch.uint8, (3 << 30,)),
        "last": (torch.float16, (7,)),
    }
    layout = pth_layout(tensors)
    path = tmp_path / "large.pth"
    with path.open("wb") as stream:
        stream.write(layout.head)
        for number, size in enumerate(layout.sizes):
            assert stream.tell() == layout.position(number)
            stream.seek(size, 1)
            stream.write(layout.after(number, number + 1))
        stream.write(layout.tail(range(1, 6)))
    assert path.stat().st_size == layout.nbytes > 13 << 30
    content = torch.load(path, weights_only=True, mmap=True)
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in content.items()} == tensors
    assert content["large"][-1, 0] == 0
    with zipfile.ZipFile(path) as file:
        values = {info.filename: info for info in file.infolist() if "/data/" in info.filename}
    assert [info.CRC for info in values.values()] == [1, 2, 3, 4, 5]
    assert [info.file_size for info in values.values()] == list(layout.sizes)
