"""A LoRAMerge into several forms at once, each opened by the tool it is meant for."""

import json
import re
from pathlib import Path

import gguf
import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

import peft_models as build
from gguf_files import metadata_of, tensors_of, write_importance_matrix
from herdsman.api.job_config import LoRAMergeConfig
from herdsman.api.v1alpha1.lora_merge import MergeOutputs
from herdsman_trainer.__main__ import run_step
from herdsman_trainer.artifacts import verify_artifact
from herdsman_trainer.chat_templates import chat_template
from herdsman_trainer.errors import BadInput
from herdsman_trainer.prompts import TEMPLATES, Message
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.tokenizers import copy_tokenizer, load_tokenizer
from herdsman_trainer.weights.chain import open_chain
from herdsman_trainer.weights.gguf_types import gguf_name
from llama_cpp import LlamaCpp
from modelfiles import read_modelfile
from run_configs import owner, source, workspace
from tiny import tiny_llama, tiny_sentencepiece

SMALL, LARGE = 400, 410
OUTPUTS = {
    "huggingface": {},
    "gguf": [{"type": "Q8_0"}, {"type": "Q4_0"}, {"type": "F32"}],
    "ollama": {"type": "Q4_0", "system": "你是一个助手。"},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """In bfloat16, as bases mostly are."""
    root = tmp_path_factory.mktemp("base")
    directory = tiny_llama(root / "model", tiny_sentencepiece(root / "tokenizer", SMALL), hidden_size=32)
    weights = load_file(directory / "model.safetensors")
    rounded = {name: tensor.bfloat16() for name, tensor in weights.items()}
    save_file(rounded, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    return directory


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, base):
    root = tmp_path_factory.mktemp("adapter")
    directory = build.adapter(root / "adapter", base, rows=LARGE)
    copy_tokenizer(tiny_sentencepiece(root / "tokenizer", LARGE), directory)
    return directory


def merge(root, base, adapters, outputs, *, template="alpaca", matrix=None):
    config = LoRAMergeConfig(
        owner=owner(name="zh"),
        attempt=1,
        workspace=workspace(root),
        model=source(base),
        adapters=[source(path, field=f"spec.adapters[{place}]") for place, path in enumerate(adapters)],
        outputs=MergeOutputs.model_validate(outputs),
        importance_matrix=source(matrix, field="spec.outputs.importanceMatrix.volume") if matrix else None,
        template=template,
    )
    return run_step(config, RunContext(config, rank=0)), root / "work" / "artifact"


@pytest.fixture(scope="module")
def merged(tmp_path_factory, base, adapter):
    return merge(tmp_path_factory.mktemp("merged"), base, [adapter], OUTPUTS)


def test_the_artifact_lists_its_forms_and_every_file(merged):
    artifact, directory = merged
    verify_artifact(directory, "Digests")
    assert [str(each) for each in artifact.formats] == ["huggingface", "gguf"]
    names = {path.name for path in (directory / "gguf").iterdir()}
    assert names == {"zh-Q8_0.gguf", "zh-Q4_0.gguf", "zh-F32.gguf", "Modelfile", "README.md"}


def test_quantised_files_are_rounded_once_from_the_sums_in_float32(merged, base, adapter):
    _, directory = merged
    sums = tensors_of(directory / "gguf/zh-F32.gguf")
    theirs = build.merged_by_peft(as_float32(base, directory.parent / "base32"), [adapter], LARGE)
    name = "model.layers.0.mlp.down_proj.weight"
    truth = sums[gguf_name(name)].data
    numpy.testing.assert_allclose(truth, theirs[name].numpy(), atol=1e-6, rtol=1e-5)
    assert not numpy.array_equal(truth, torch.from_numpy(truth.copy()).bfloat16().float().numpy())
    for kind in ("Q8_0", "Q4_0"):
        for each, tensor in tensors_of(directory / f"gguf/zh-{kind}.gguf").items():
            if tensor.tensor_type.name == kind:
                expected = gguf.quants.quantize(sums[each].data, tensor.tensor_type)
                assert numpy.array_equal(tensor.data, expected), each


def as_float32(model, target):
    target.mkdir(exist_ok=True)
    for path in model.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    weights = {name: tensor.float() for name, tensor in load_file(model / "model.safetensors").items()}
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((model / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    return target


def test_transformers_and_llama_cpp_continue_alike_and_the_prompt_is_the_trained_one(merged):
    _, directory = merged
    tokenizer = load_tokenizer(directory)
    server = LlamaCpp(directory / "gguf/zh-F32.gguf")
    question = Message("user", "Why is the sky blue?")
    prompt = TEMPLATES["alpaca"].chat_ids(tokenizer, [question])
    assert server.tokenise(server.prompt(("user", question.content)), bos=True, parse_special=True) == prompt
    model = with_values(build.load(directory, dtype=torch.float32), tensors_of(directory / "gguf/zh-F32.gguf"))
    expected = model.generate(
        torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    assert server.greedy(prompt, 12) == expected[0, len(prompt) :].tolist()


def with_values(model, stored):
    """The model with what a GGUF file holds: the sums before they are rounded to bfloat16, which must be close."""
    with torch.no_grad():
        for name, values in model.state_dict().items():
            exact = torch.from_numpy(numpy.array(stored[gguf_name(name)].data))
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                pairs = exact.reshape(-1, model.config.head_dim // 2, 2, exact.shape[-1])
                exact = pairs.transpose(1, 2).reshape(exact.shape)
            torch.testing.assert_close(values, exact, rtol=2**-8, atol=0)
            values.copy_(exact)
    return model


def test_the_modelfile_names_the_chosen_file_and_its_template(merged):
    _, directory = merged
    read = read_modelfile((directory / "gguf/Modelfile").read_text(encoding="utf-8"))
    assert (directory / "gguf" / read.model).is_file()
    assert (read.model, read.system) == ("./zh-Q4_0.gguf", "你是一个助手。")
    assert "### Instruction:" in read.template
    assert metadata_of(directory / "gguf/zh-Q4_0.gguf")["tokenizer.chat_template"] == chat_template("alpaca")
    assert "zh-Q8_0.gguf" in (directory / "gguf/README.md").read_text(encoding="utf-8")


def webui_loader(models: Path, name: str) -> str:
    """How text-generation-webui chooses a loader (modules/models_settings.py), for the layouts that matter here."""
    path = models / name
    if list(path.glob("*.gguf")) or re.fullmatch(r".*\.gguf", name.lower()):
        return "llama.cpp"
    return "Transformers"


def test_text_generation_webui_takes_the_directory_as_it_is_or_one_of_the_files(merged, tmp_path):
    """It wants a Hugging Face directory, or one GGUF file, in its folder of models; it looks no deeper."""
    _, directory = merged
    (tmp_path / "zh").symlink_to(directory)
    (tmp_path / "zh-Q4_0.gguf").symlink_to(directory / "gguf/zh-Q4_0.gguf")
    assert webui_loader(tmp_path, "zh") == "Transformers"
    for name in ("config.json", "generation_config.json", "model.safetensors", "tokenizer.model"):
        assert (tmp_path / "zh" / name).is_file()
    assert build.load(tmp_path / "zh").config.vocab_size == LARGE
    assert webui_loader(tmp_path, "zh-Q4_0.gguf") == "llama.cpp"
    assert LlamaCpp(tmp_path / "zh-Q4_0.gguf").tokenise("a")


def test_gguf_alone_leaves_no_other_weights(tmp_path, base):
    artifact, directory = merge(tmp_path, base, [], {"gguf": [{"type": "BF16"}]}, template=None)
    assert not list(directory.rglob("*.safetensors"))
    assert [str(each) for each in artifact.formats] == ["gguf"]
    stored = tensors_of(directory / "gguf/zh-BF16.gguf")["blk.0.ffn_up.weight"].data
    weights = load_file(base / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    assert numpy.array_equal(stored.view(numpy.int16), weights.view(torch.int16).numpy())
    assert "tokenizer.chat_template" not in metadata_of(directory / "gguf/zh-BF16.gguf")
    assert "--no-conversation" in (directory / "gguf/README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("outputs", "options", "message"),
    [
        ({"gguf": [{"type": "Q8_0"}]}, {"template": "llama-3"}, r"needs the control token <\|eot_id\|>"),
        ({"gguf": [{"type": "F16"}], "ollama": {"system": "全角\u3000"}}, {}, r"U\+3000, which Ollama drops"),
        ({"gguf": [{"type": "F16"}], "ollama": {"system": "Be kind."}}, {"template": None}, r"Set spec\.template"),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_work(tmp_path, base, outputs, options, message):
    with pytest.raises(BadInput, match=message):
        merge(tmp_path, base, [], outputs, **options)
    assert not list(tmp_path.rglob("*.gguf"))


def test_an_importance_matrix_is_read_from_its_volume(tmp_path, base):
    specs = open_chain(base).merge.plan.specs
    entries = {
        gguf_name(spec.name): numpy.linspace(0.1, 9, spec.shape[1], dtype=numpy.float32)
        for spec in specs
        if "layers" in spec.name and len(spec.shape) > 1
    }
    matrix = write_importance_matrix(tmp_path / "imatrix.gguf", entries)
    output = {"gguf": [{"type": "Q4_0"}]}
    _, weighted = merge(tmp_path / "weighted", base, [], output, matrix=matrix)
    _, plain = merge(tmp_path / "plain", base, [], output)
    ours, theirs = (tensors_of(each / "gguf/zh-Q4_0.gguf")["blk.0.ffn_up.weight"].data for each in (weighted, plain))
    assert not numpy.array_equal(ours, theirs)


def test_an_importance_matrix_that_is_not_there_is_named_by_its_field(tmp_path, base):
    with pytest.raises(BadInput, match=r"spec\.outputs\.importanceMatrix\.volume names nothing"):
        merge(tmp_path, base, [], {"gguf": [{"type": "Q4_0"}]}, matrix=tmp_path / "imatrix.gguf")
