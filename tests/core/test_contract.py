"""The artifact contract: a misfit is refused before anything runs, naming both sides and the remedy."""

import json

import pytest

from builders import (
    CLUSTER,
    digest,
    finished,
    lora_merge,
    model_import,
    model_server,
    pretrain_job,
    sft_job,
    tokenizer_merge,
    world,
)
from herdsman.core.plan import plan

BASE = finished(model_import())
ZH = {"tokenizer_digest": digest("zh tokenizer"), "vocab_size": 49953}
PADDED = {"tokenizer_digest": digest("zh tokenizer with [PAD]"), "vocab_size": 49954}
ZH_TOKENIZER = finished(tokenizer_merge("zh-tokenizer"), **ZH)
PAD_TOKENIZER = finished(tokenizer_merge("zh-pad", padToken=True), **PADDED)
ZH_ADAPTER = finished(pretrain_job("zh"), **ZH)
PADDED_ADAPTER = finished(sft_job("tuned"), **PADDED)
MERGED = finished(lora_merge("merged"), **ZH)
GGUF_ONLY = {"outputs": {"gguf": [{"type": "Q8_0"}], "pth": {}}}


def refusal(resource, *others):
    return plan(resource, world(BASE, *others), CLUSTER).refused


MISFITS = [
    (
        "a tokenizer smaller than the model's embedding",
        sft_job(model={"loraMerge": "merged"}, tokenizer={"modelImport": "base"}),
        [MERGED],
        ["the tokenizer of ModelImport base has 32000 pieces", "embedding of LoRAMerge merged has 49953 rows"],
        "Leave spec.tokenizer out",
    ),
    (
        "a tokenizer without [PAD] beside an adapter with it",
        sft_job("more", adapter={"sftJob": "tuned"}, tokenizer={"tokenizerMerge": "zh-tokenizer"}),
        [PADDED_ADAPTER, ZH_TOKENIZER],
        ["TokenizerMerge zh-tokenizer has 49953 pieces", "embedding of SFTJob tuned has 49954 rows"],
        "padToken: true",
    ),
    (
        "another tokenizer of the same size",
        sft_job("more", adapter={"pretrainJob": "zh"}, tokenizer={"tokenizerMerge": "other"}),
        [ZH_ADAPTER, finished(tokenizer_merge("other"), vocab_size=49953, tokenizer_digest=digest("other"))],
        ["TokenizerMerge other has 49953 pieces", "another tokenizer", digest("other")[:12]],
        "Leave spec.tokenizer out",
    ),
    (
        "a larger tokenizer whose rows nothing trains",
        pretrain_job("more", tokenizer={"tokenizerMerge": "zh-tokenizer"}, recipe={"lora": {"trainFully": []}}),
        [ZH_TOKENIZER],
        ["TokenizerMerge zh-tokenizer has 49953 pieces", "trainFully leaves the embeddings out"],
        "embed_tokens",
    ),
    (
        "an adapter of another base",
        sft_job("more", adapter={"pretrainJob": "zh"}),
        [finished(pretrain_job("zh"), base_digest=digest("somebody else's llama"))],
        ["PretrainJob zh was trained on the model", "spec.model is ModelImport base", "which is not here"],
        "Name the model it was trained on",
    ),
    (
        "an adapter of another base that is here",
        sft_job("more", adapter={"pretrainJob": "zh"}),
        [
            finished(pretrain_job("zh", model={"modelImport": "chat"}), base_digest=digest("ModelImport chat")),
            finished(model_import("chat")),
        ],
        ["PretrainJob zh was trained on ModelImport chat", "spec.model is ModelImport base"],
        "Name ModelImport chat as the model",
    ),
    (
        "an adapter of the merged model, merged into the base once more",
        lora_merge("again", adapters=[{"pretrainJob": "zh"}, {"sftJob": "tuned"}]),
        [
            ZH_ADAPTER,
            MERGED,
            finished(sft_job("tuned", model={"loraMerge": "merged"}), base_digest=digest("LoRAMerge merged"), **PADDED),
        ],
        ["SFTJob tuned was trained on LoRAMerge merged", "spec.model is ModelImport base"],
        "Name LoRAMerge merged as the model, and leave out the adapters",
    ),
    (
        "adapters in the wrong order",
        lora_merge("again", adapters=[{"sftJob": "tuned"}, {"pretrainJob": "zh"}]),
        [ZH_ADAPTER, finished(sft_job("tuned"), parents=[digest("PretrainJob zh")], **PADDED)],
        ["SFTJob tuned was trained with PretrainJob zh beneath it", "here it comes first"],
        "This order fits: PretrainJob zh, SFTJob tuned.",
    ),
    (
        "an adapter whose parent is left out",
        lora_merge("again", adapters=[{"sftJob": "tuned"}]),
        [finished(sft_job("tuned"), parents=[digest("PretrainJob zh")], **PADDED)],
        ["SFTJob tuned was trained with", "here it comes first"],
        f"Add the adapter with the digest {digest('PretrainJob zh')[:12]}",
    ),
    (
        "an adapter beside its own continuation",
        lora_merge("again", adapters=[{"pretrainJob": "zh"}, {"sftJob": "tuned"}]),
        [ZH_ADAPTER, finished(sft_job("tuned", adapter={"pretrainJob": "zh"}), **PADDED)],
        ["SFTJob tuned was trained with no other adapter beneath it", "here it comes after PretrainJob zh"],
        "part of its continuation",
    ),
    (
        "an adapter with fewer rows than what it lies on",
        model_server(model={"loraMerge": "merged"}, adapters=[{"sftJob": "tuned"}]),
        [
            finished(lora_merge("merged"), **PADDED),
            finished(sft_job("tuned"), base_digest=digest("LoRAMerge merged"), **ZH),
        ],
        ["SFTJob tuned has embeddings of 49953 rows", "LoRAMerge merged beneath it has 49954"],
        "[PAD]",
    ),
    (
        "an adapter without embeddings made with another tokenizer",
        lora_merge("again", adapters=[{"sftJob": "tuned"}]),
        [finished(sft_job("tuned"), vocab_size=None, tokenizer_digest=digest("zh tokenizer"))],
        ["SFTJob tuned brings no embeddings", "another tokenizer"],
        "Name a model with that tokenizer",
    ),
    (
        "a training that goes on from an adapter with parents",
        sft_job("more", adapter={"sftJob": "tuned"}),
        [finished(sft_job("tuned"), parents=[digest("PretrainJob zh")])],
        ["SFTJob tuned was trained with 1 other adapter"],
        "LoRAMerge",
    ),
]


@pytest.mark.parametrize(
    ("resource", "others", "words", "remedy"), [row[1:] for row in MISFITS], ids=[row[0] for row in MISFITS]
)
def test_refused(resource, others, words, remedy):
    problem = refusal(resource, *others)
    assert problem is not None
    assert problem.reason == "ArtifactMismatch"
    assert problem.message.startswith(f"{problem.field}: ")
    for word in words:
        assert word in problem.message
    assert remedy in problem.hint


FITTING = [
    ("a larger tokenizer", pretrain_job("more", tokenizer={"tokenizerMerge": "zh-tokenizer"}), [ZH_TOKENIZER]),
    (
        "one more piece, [PAD]",
        sft_job(model={"loraMerge": "merged"}, tokenizer={"tokenizerMerge": "zh-pad"}),
        [MERGED, PAD_TOKENIZER],
    ),
    ("the model's own tokenizer by name", pretrain_job("more", tokenizer={"modelImport": "base"}), []),
    (
        "the tokenizer an adapter was made with",
        sft_job(adapter={"pretrainJob": "zh"}, tokenizer={"tokenizerMerge": "zh-tokenizer"}),
        [ZH_ADAPTER, ZH_TOKENIZER],
    ),
    ("an adapter on its base", lora_merge("again"), [ZH_ADAPTER]),
    (
        "adapters in order",
        lora_merge("again", adapters=[{"pretrainJob": "zh"}, {"sftJob": "tuned"}]),
        [ZH_ADAPTER, finished(sft_job("tuned"), parents=[digest("PretrainJob zh")], **PADDED)],
    ),
    (
        "an adapter from a volume, of which nothing is known",
        lora_merge("again", adapters=[{"volume": {"claim": "weights", "path": "adapter"}}]),
        [],
    ),
    (
        "a base from a volume beneath a known adapter",
        model_server(model={"volume": {"claim": "weights"}}, adapters=[{"pretrainJob": "zh"}]),
        [ZH_ADAPTER],
    ),
]


@pytest.mark.parametrize(("resource", "others"), [row[1:] for row in FITTING], ids=[row[0] for row in FITTING])
def test_accepted(resource, others):
    planned = plan(resource, world(BASE, *others), CLUSTER)
    assert (planned.refused, planned.waiting_for) == (None, ())
    assert planned.children != ()


def test_three_adapters_in_any_wrong_order_are_told_the_one_that_fits():
    first = ZH_ADAPTER
    second = finished(sft_job("two"), parents=[first.status.artifact.digest], **ZH)
    third = finished(sft_job("three"), parents=[first.status.artifact.digest, second.status.artifact.digest], **ZH)
    merge = lora_merge("again", adapters=[{"sftJob": "three"}, {"pretrainJob": "zh"}, {"sftJob": "two"}])
    assert refusal(merge, first, second, third).hint == "This order fits: PretrainJob zh, SFTJob two, SFTJob three."


def test_a_refusal_passes_when_the_input_is_made_anew():
    merge = lora_merge("again")
    stale = finished(pretrain_job("zh"), base_digest=digest("an older base"), **ZH)
    assert refusal(merge, stale).reason == "ArtifactMismatch"
    assert refusal(merge, ZH_ADAPTER) is None


READERS = [
    ("a PretrainJob", pretrain_job("more", model={"loraMerge": "merged"})),
    ("an SFTJob", sft_job("more", model={"loraMerge": "merged"})),
    ("another merge", lora_merge("again", model={"loraMerge": "merged"}, adapters=[])),
    ("a server of transformers", model_server(engine="transformers")),
    ("a server with adapters", model_server(adapters=[{"sftJob": "tuned"}])),
]


@pytest.mark.parametrize("reader", [case[1] for case in READERS], ids=[case[0] for case in READERS])
@pytest.mark.parametrize("ready", [False, True], ids=["before it has run", "when it is there"])
def test_what_reads_weights_is_refused_a_merge_without_them(reader, ready):
    merge = lora_merge("merged", **GGUF_ONLY)
    others = [finished(merge, formats=["pth", "gguf"], **ZH) if ready else merge, PADDED_ADAPTER, ZH_ADAPTER]
    found = refusal(reader, *others)
    assert (found.reason, found.field) == ("ArtifactMismatch", "spec.model.loraMerge")
    assert "LoRAMerge merged has no Hugging Face weights: it is stored as gguf and pth only." in found.message
    assert "outputs.huggingface" in found.hint


def test_an_artifact_tells_its_forms_whatever_the_spec_of_today_would_make():
    merge = finished(lora_merge("merged"), formats=["gguf"], **ZH)
    assert "has no Hugging Face weights" in refusal(sft_job("more", model={"loraMerge": "merged"}), merge).message


def test_a_merge_that_writes_several_forms_is_read_by_all():
    merge = lora_merge("merged", outputs={"huggingface": {}, "gguf": [{"type": "Q8_0"}]})
    ready = finished(merge, formats=["huggingface", "gguf"], **ZH)
    for reader in (sft_job("more", model={"loraMerge": "merged"}), model_server(), model_server(engine="llamacpp")):
        assert refusal(reader, merge) is None
        assert refusal(reader, ready) is None


def test_a_server_reads_the_form_there_is_and_llama_cpp_needs_a_gguf_file():
    merge = lora_merge("merged", **GGUF_ONLY)
    assert refusal(model_server(), merge) is None
    assert refusal(model_server(engine="llamacpp"), merge) is None
    found = refusal(model_server(engine="llamacpp"), lora_merge("merged"))
    assert "LoRAMerge merged has no GGUF file: it is stored as huggingface only." in found.message
    assert "outputs.gguf (its adapters may be none)" in found.hint
    found = refusal(model_server(), lora_merge("merged", outputs={"pth": {}}))
    assert "has no Hugging Face weights or GGUF file: it is stored as pth only." in found.message


def test_llama_cpp_does_not_serve_adapters_beside_its_file():
    merge = finished(lora_merge("merged"), formats=["huggingface", "gguf"], **ZH)
    found = refusal(model_server(engine="llamacpp", adapters=[{"sftJob": "tuned"}]), merge, ZH_ADAPTER, PADDED_ADAPTER)
    assert (found.reason, found.field) == ("InvalidSpec", "spec.adapters")
    assert "outputs.gguf" in found.hint


@pytest.mark.parametrize(
    ("asked", "formats", "engine"),
    [
        ({}, ["huggingface"], "transformers"),
        ({}, ["gguf", "pth"], "llamacpp"),
        ({}, ["huggingface", "gguf"], "llamacpp"),
        ({"compute": {"gpusPerNode": 1}}, ["huggingface", "gguf"], "transformers"),
        ({"compute": {"gpusPerNode": 1}}, ["gguf"], "llamacpp"),
        ({"quantisation": "int8"}, ["huggingface", "gguf"], "transformers"),
        ({"hotAdapters": [{"name": "law", "adapter": {"sftJob": "law"}}]}, ["huggingface", "gguf"], "transformers"),
        ({"engine": "vllm", "compute": {"gpusPerNode": 2}}, ["huggingface", "gguf"], "vllm"),
        ({"engine": "llamacpp"}, ["huggingface", "gguf"], "llamacpp"),
    ],
)
def test_the_engine_is_the_one_asked_for_or_the_one_the_model_is_stored_for(asked, formats, engine):
    server, merge = model_server(**asked), finished(lora_merge("merged"), formats=formats, **ZH)
    planned = plan(server, world(merge), CLUSTER)
    text = next(child["data"]["job.json"] for child in planned.children if child["kind"] == "ConfigMap")
    assert json.loads(text)["engine"] == engine
