"""Models saved with torch.save become the same safetensors, and nothing inside of the files is ever run."""

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import peft_models as build
from herdsman_trainer.errors import BadInput
from herdsman_trainer.weights import meta_model
from herdsman_trainer.weights.pickle_reading import check_torch, digest_checkpoint, read_tensors
from imports import copied, import_model, sha256
from tiny import tiny_llama, tiny_sentencepiece

pytestmark = pytest.mark.usefixtures("one_thread")
INDEX = "pytorch_model.bin.index.json"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("model"), hidden_size=16)


@pytest.fixture
def pickled(tmp_path, model):
    """Write the model as .bin files; returns its directory."""

    def write(*, shards=1, index=True, change=lambda tensors: None, tied=False):
        directory = copied(tiny_llama(tmp_path / "tied", tied=True) if tied else model, tmp_path / "model")
        tensors = load_file(directory / "model.safetensors")
        (directory / "model.safetensors").unlink()
        change(tensors)
        if shards == 1:
            torch.save(tensors, directory / "pytorch_model.bin")
            return directory
        weight_map = {}
        for number in range(shards):
            name = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
            part = {key: tensors[key] for key in sorted(tensors)[number::shards]}
            torch.save(part, directory / name)
            weight_map |= dict.fromkeys(part, name)
        if index:
            (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        return directory

    return write


def assert_same(directory, model):
    ours, theirs = load_file(directory / "model.safetensors"), load_file(model / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert tensor.numpy().tobytes() == theirs[name].numpy().tobytes(), name
    build.load(directory)


@pytest.mark.parametrize(("shards", "index"), [(1, False), (2, True), (3, False)], ids=["one", "index", "no index"])
def test_bin_files_become_the_same_tensors(tmp_path, model, pickled, shards, index):
    artifact, directory = import_model(tmp_path, pickled(shards=shards, index=index))
    assert_same(directory, model)
    assert (artifact.vocab_size, artifact.dtype) == (400, "float32")
    for name in ("config.json", "generation_config.json", "tokenizer.model"):
        assert (directory / name).read_bytes() == (model / name).read_bytes()


def old_tables(tensors):
    for layer in range(2):
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(2)


def parameters(tensors):
    for name in tensors:
        tensors[name] = torch.nn.Parameter(tensors[name])


def one_storage(tensors):
    """All matrices are views of one storage, and none begins where it does."""
    whole = torch.cat([torch.zeros(5), *(tensor.flatten() for tensor in tensors.values())])
    at = 5
    for name, tensor in tensors.items():
        tensors[name] = whole[at : at + tensor.numel()].view(tensor.shape)
        at += tensor.numel()


def turned(tensors):
    """Stored column by column, as a transposed view is."""
    for name, tensor in tensors.items():
        tensors[name] = tensor.T.contiguous().T if tensor.dim() == 2 else tensor


@pytest.mark.parametrize("change", [old_tables, parameters, one_storage, turned])
def test_however_the_tensors_lie_in_the_file(tmp_path, model, pickled, change):
    _, directory = import_model(tmp_path, pickled(change=change))
    assert_same(directory, model)


def shared_head(tensors):
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]


def test_a_head_that_shares_the_storage_of_a_tied_embedding_is_left_out(tmp_path, pickled):
    _, directory = import_model(tmp_path, pickled(change=shared_head, tied=True))
    assert_same(directory, tmp_path / "tied")
    assert "lm_head.weight" not in load_file(directory / "model.safetensors")


def test_a_head_that_shares_its_storage_without_being_tied_is_written_twice(tmp_path, pickled):
    _, directory = import_model(tmp_path, pickled(change=shared_head))
    tensors = load_file(directory / "model.safetensors")
    assert torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])


def test_another_type_is_said_by_the_configuration(tmp_path, pickled):
    artifact, directory = import_model(tmp_path, pickled(), dtype="bfloat16")
    assert artifact.dtype == "bfloat16"
    assert json.loads((directory / "config.json").read_text())["dtype"] == "bfloat16"
    assert {tensor.dtype for tensor in load_file(directory / "model.safetensors").values()} == {torch.bfloat16}


def test_a_missing_generation_config_is_made_from_the_tokenizer(tmp_path, pickled):
    source = pickled()
    (source / "generation_config.json").unlink()
    _, directory = import_model(tmp_path, source)
    written = json.loads((directory / "generation_config.json").read_text())
    assert (written["bos_token_id"], written["eos_token_id"]) == (1, 2)


class Runs:
    """A pickle of it calls a function when it is read."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile(path, value):
    torch.save({"model.norm.weight": value}, path)


@pytest.mark.parametrize(
    ("function", "asks"),
    [(os.system, "posix.system"), (eval, "eval"), (subprocess.getoutput, "commands.getoutput")],
)
def test_code_in_a_pickle_is_refused_by_name_and_does_not_run(tmp_path, pickled, function, asks):
    source, trace = pickled(), tmp_path / "trace"
    code = f"open({str(trace)!r}, 'w')" if function is eval else f"touch {trace}"
    hostile(source / "pytorch_model.bin", Runs(function, code))
    with pytest.raises(BadInput, match=f"asks for {asks}") as caught:
        import_model(tmp_path, source)
    assert not trace.exists()
    assert (caught.value.reason, caught.value.file) == ("UnsafePickle", str(source / "pytorch_model.bin"))
    assert "never" not in caught.value.message
    assert "weights_only" not in str(caught.value), "torch's own advice is to run it"
    assert "ask for safetensors" in caught.value.hint


def legacy(path):
    torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False)


def plain_pickle(path):
    path.write_bytes(pickle.dumps({"a": 1}))


def cut(path):
    path.write_bytes(path.read_bytes()[:-300])


def html(path):
    path.write_bytes(b"<html>404</html>")


def empty(path):
    path.write_bytes(b"")


def packed(path):
    """Unpacked and packed again by somebody, with compression."""
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as old, zipfile.ZipFile(path, "w", 8) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))


def holds(value):
    return lambda path: torch.save(value, path)


def half_of_values(path):
    """The records of values are gone, the pickle is there."""
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as old, zipfile.ZipFile(path, "w", 0) as new:
        for member in old.infolist()[:2]:
            new.writestr(member.filename, old.read(member))


@pytest.mark.parametrize(
    ("damage", "says", "remedy"),
    [
        (legacy, "saved by a torch before 1.6", "Save it anew: torch.save"),
        (plain_pickle, "saved by a torch before 1.6", "Save it anew"),
        (cut, "is cut or damaged", "SHA-256"),
        (html, r"\(16 bytes\) is not in the format that torch.save writes", "SHA-256"),
        (empty, r"\(0 bytes\) is not in the format", "Copy the file again"),
        (packed, "is compressed, which torch never does", "without packing"),
        (half_of_values, "cannot be read", "Copy the file again"),
        (holds([1]), "holds a list and not named tensors", "state dict"),
        (holds({"epoch": 3}), "entry 'epoch' is a int and not a tensor", "state dict of the model alone"),
        (holds({"a": torch.ones(2, 2).to_sparse()}), "sparse", "plain tensors"),
        (holds({"a": torch.ones(2, device="meta")}), "on meta", "plain tensors"),
        (holds({"a": torch.ones(2, dtype=torch.complex64)}), "complex64", "plain tensors"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused_with_what_it_is(tmp_path, pickled, damage, says, remedy):
    source = pickled()
    damage(source / "pytorch_model.bin")
    with pytest.raises(BadInput, match=says) as caught:
        import_model(tmp_path, source)
    assert caught.value.file == str(source / "pytorch_model.bin")
    assert remedy in caught.value.hint


def rename(old, new):
    return lambda directory: (directory / old).rename(directory / new)


def extra_shard(directory):
    shard = directory / "pytorch_model-00001-of-00002.bin"
    (directory / "pytorch_model-00003-of-00003.bin").write_bytes(shard.read_bytes())


def same_tensors(directory):
    shard = directory / "pytorch_model-00001-of-00002.bin"
    (directory / "pytorch_model-00002-of-00002.bin").write_bytes(shard.read_bytes())


def swap(directory):
    one, two = (directory / f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2))
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def outside(directory):
    index = json.loads((directory / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = "../../../etc/passwd"
    (directory / INDEX).write_text(json.dumps(index))


SECOND = "pytorch_model-00002-of-00002.bin"


@pytest.mark.parametrize(
    ("index", "damage", "file", "says"),
    [
        (True, lambda path: (path / SECOND).unlink(), SECOND, "missing"),
        (False, lambda path: (path / SECOND).unlink(), SECOND, f"{SECOND} is missing: 1 of 2 are there"),
        (True, extra_shard, "pytorch_model-00003-of-00003.bin", "one too many: .* does not name it"),
        (False, extra_shard, "pytorch_model-00003-of-00003.bin", "one too many"),
        (False, same_tensors, SECOND, "is in pytorch_model-00001-of-00002.bin too"),
        (True, swap, "pytorch_model-00001-of-00002.bin", "The shard lacks"),
        (True, outside, INDEX, 'no "weight_map" of plain file names'),
        (False, rename(SECOND, "pytorch_model-last.bin"), SECOND, "is missing: 2 of 2|is missing"),
    ],
)
def test_shards_that_make_no_model_are_refused_by_name(tmp_path, pickled, index, damage, file, says):
    source = pickled(shards=2, index=index)
    damage(source)
    with pytest.raises(BadInput, match=says) as caught:
        import_model(tmp_path, source)
    assert caught.value.file == str(source / file)
    assert caught.value.hint


def test_an_extra_safetensors_shard_is_refused_too(tmp_path, model):
    source = copied(model, tmp_path / "model")
    build.load(source).save_pretrained(source, max_shard_size="20KB")
    (source / "model.safetensors").unlink()
    (source / "model-00009-of-00009.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    with pytest.raises(BadInput, match=r"model-00009-of-00009\.safetensors is one too many"):
        import_model(tmp_path, source)


@pytest.mark.parametrize(
    ("version", "safe"), [("2.9.1", False), ("1.13.1+cu117", False), ("2.10.0", True), ("3.0", True)]
)
def test_a_torch_that_reads_pickles_unsafely_does_not_read_them(version, safe):
    if safe:
        return check_torch(Path("x.bin"), version)
    with pytest.raises(BadInput, match=f"torch {version.split('+')[0]}") as caught:
        check_torch(Path("x.bin"), version)
    assert "Install torch 2.10" in caught.value.hint
    return None


def test_the_digest_of_a_checkpoint_is_that_of_its_bytes(tmp_path):
    torch.save({"a": torch.arange(5000.0), "b": torch.ones(3, 3)}, tmp_path / "x.bin")
    heard = []
    digest = digest_checkpoint(tmp_path / "x.bin", heard.append)
    assert (digest.sha256, digest.bytes) == (sha256(tmp_path / "x.bin"), (tmp_path / "x.bin").stat().st_size)
    assert sum(heard) == digest.bytes


def test_a_checkpoint_saved_without_checksums_is_read(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(5.0)}, tmp_path / "x.bin")
    finally:
        torch.serialization.set_crc32_options(before)
    assert digest_checkpoint(tmp_path / "x.bin", lambda _: None).sha256 == sha256(tmp_path / "x.bin")
    assert torch.equal(read_tensors(tmp_path / "x.bin")["a"], torch.arange(5.0))


MEASURED = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import transformers.models.llama.modeling_llama
from herdsman_trainer.weights.source_files import open_source
from herdsman_trainer.tokenizers import load_tokenizer

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

for source in map(Path, sys.argv[1:]):
    target = source / "result"
    target.mkdir()
    tokenizer = load_tokenizer(source)
    open_source(source, source, None)  # what Python and torch load on the way is no part of the model
    before = peak = anonymous()

    def announce(what, done):
        global peak
        peak = max(peak, anonymous())

    model = open_source(source, source, None)
    model.write_tokenizer(target)
    model.write(target, tokenizer, announce)
    print(peak - before)
"""
WIDTH, WIDE, HEADS = 1024, 30000, 16


def large_shapes():
    """Of one layer, by Meta's names: 200 MB in float16, a third of them in one matrix."""
    attention = {f"attention.{name}": (WIDTH, WIDTH) for name in ("wq", "wk", "wv", "wo")}
    wide = {"feed_forward.w1": (WIDE, WIDTH), "feed_forward.w3": (WIDE, WIDTH), "feed_forward.w2": (WIDTH, WIDE)}
    layer = attention | wide | {"attention_norm": (WIDTH,), "ffn_norm": (WIDTH,)}
    top = {"tok_embeddings.weight": (400, WIDTH), "output.weight": (400, WIDTH), "norm.weight": (WIDTH,)}
    return {f"layers.0.{name}.weight": shape for name, shape in layer.items()} | top


def large_meta(directory):
    source = tiny_sentencepiece(directory)
    for number in range(2):
        part = {}
        for name, shape in large_shapes().items():
            columns = name.endswith(("wo.weight", "w2.weight", "embeddings.weight"))
            halved = [size // 2 if axis == columns and len(shape) > 1 else size for axis, size in enumerate(shape)]
            part[name] = torch.zeros(halved, dtype=torch.float16)
        torch.save(part, source / f"consolidated.{number:02d}.pth")
    figures = {"dim": WIDTH, "n_heads": HEADS, "n_layers": 1, "norm_eps": 1e-6, "vocab_size": -1}
    (source / "params.json").write_text(json.dumps(figures))
    return source


def large_bin(directory):
    source = tiny_sentencepiece(directory)
    tensors = {meta_model._name(name, source): torch.zeros(shape).half() for name, shape in large_shapes().items()}
    torch.save(tensors, source / "pytorch_model.bin")
    config = {"model_type": "llama", "vocab_size": 400, "hidden_size": WIDTH, "intermediate_size": WIDE}
    config |= {"num_hidden_layers": 1, "num_attention_heads": HEADS}
    (source / "config.json").write_text(json.dumps(config))
    return source


def test_memory_does_not_grow_with_the_model(tmp_path):
    """Of a model of 200 MB less than 64 MB are ever in memory that is not the files'."""
    sources = [large_bin(tmp_path / "bin"), large_meta(tmp_path / "meta")]
    command = [sys.executable, "-c", MEASURED, *map(str, sources)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    for source, peak in zip(sources, done.stdout.split(), strict=True):
        assert (source / "result/model.safetensors").stat().st_size > 190e6
        assert float(peak) < 64, (source.name, done.stdout)
