"""Models are loaded strictly, vocabularies grow without touching old rows, and what is asked for is trained."""

import json
import warnings

import pytest
import torch
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM

import training_configs as build
from herdsman.api.v1alpha1.recipes import PROJECTIONS, Lora
from herdsman_trainer.artifacts import model_digest
from herdsman_trainer.embeddings import Vocabulary, check_extends, grown_rows, spellings
from herdsman_trainer.errors import BadInput
from herdsman_trainer.lora import full_names, train_embeddings, train_everything, train_lora, write_trained_adapter
from herdsman_trainer.models import (
    compute_dtype,
    is_tied,
    load_model,
    parameter_counts,
    read_matrix,
    set_matrix,
    use_gradient_checkpointing,
)
from herdsman_trainer.tokenizers import load_tokenizer
from herdsman_trainer.training_inputs import assemble, open_training_inputs
from herdsman_trainer.weights.merge import EMBEDDING, HEAD
from tiny import tiny_bpe_tokenizer, tiny_llama, tiny_sentencepiece

CPU = torch.device("cpu")
BOTH = Lora(train_fully=["embed_tokens", "lm_head"])


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A tiny model, untied; tests only read it."""
    root = tmp_path_factory.mktemp("home")
    build.base_model(root)
    build.corpus(root)
    build.larger_tokenizer(root)
    return root


def published_shape(rows):
    """The 7B model of the first generation without its values."""
    config = LlamaConfig(
        vocab_size=rows, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config).requires_grad_(False)


# Published counts: the stages' percentages of the first report, and the figures its notebooks print.
@pytest.mark.parametrize(
    ("rows", "targets", "full", "expected"),
    [
        pytest.param(49953, [], ["embed_tokens"], (204_607_488, 6_885_486_592), id="stage 1, 2.97 %"),
        pytest.param(49953, PROJECTIONS[:4], BOTH.train_fully, (417_603_584, 6_893_875_200), id="stage 2, 6.06 %"),
        pytest.param(49953, PROJECTIONS, BOTH.train_fully, (429_203_456, 6_905_475_072), id="run_pt.sh, 6.2154 %"),
        pytest.param(49954, PROJECTIONS, BOTH.train_fully, (429_211_648, 6_905_483_264), id="tuning, 6.2155 %"),
    ],
)
def test_the_trained_parameters_are_as_many_as_published(rows, targets, full, expected):
    model = published_shape(rows)
    lora = Lora(rank=8, alpha=32, dropout=0.05, targets=targets or None, train_fully=full)
    names = full_names(lora, "LoRA", tied=False)
    kept = dict.fromkeys(names, torch.empty(0))
    made = train_lora(model, lora, names, kept, seed=1) if targets else train_embeddings(model, names, kept)
    assert parameter_counts(made.module) == expected


def test_a_loaded_model_is_frozen_in_the_type_of_the_products(home):
    model = load_model(home / "model", torch.bfloat16)
    assert {item.dtype for item in model.parameters()} == {torch.bfloat16}
    assert parameter_counts(model)[0] == 0
    assert model.get_input_embeddings().padding_idx is None


def test_fp16_is_computed_in_float32_on_the_cpu(caplog):
    assert compute_dtype("fp16", "cpu") == torch.float32
    assert "needs a GPU" in caplog.text
    assert compute_dtype("fp16", "cuda") == torch.float16
    assert compute_dtype("bf16", "cpu") == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "gpt2"}, "only llama is supported"),
        ({"vocab_size": 401}, "vocab_size = 401"),
        ({"num_hidden_layers": 3}, "missing keys"),
        ({"num_hidden_layers": 1}, "unexpected keys"),
    ],
)
def test_a_model_that_does_not_fit_its_configuration_is_refused(tmp_path, change, words):
    directory = tiny_llama(tmp_path / "model")
    config = json.loads((directory / "config.json").read_text()) | change
    (directory / "config.json").write_text(json.dumps(config))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(BadInput, match=words) as refused:
            load_model(directory, torch.float32)
    assert refused.value.file


def test_old_rows_stay_bit_for_bit_and_new_ones_are_the_mean_of_their_old_pieces(home):
    old, new = load_tokenizer(home / "model"), load_tokenizer(home / "larger")
    weight = read_matrix(home / "model", EMBEDDING)
    grown = grown_rows(weight, Vocabulary("base", 400, old), new, "Mean", 7, salt=EMBEDDING)
    assert grown.shape == (new.vocab_size, 32)
    assert torch.equal(grown[:400], weight)
    piece = "学习"
    index = next(i for i in range(400, new.vocab_size) if spellings(new, [i]) == [piece])
    # A Chinese piece in the middle of a line is spelt by the bytes of its characters, without a space before them.
    bytes_ = [old.control_id("<unk>") + 3 + byte for byte in piece.encode()]
    assert old.decode(bytes_) == piece
    torch.testing.assert_close(grown[index], weight[bytes_].mean(dim=0))


def test_a_padding_row_is_the_mean_of_all_rows(tmp_path, home):
    larger = build.larger_tokenizer(tmp_path, base=home / "model", pad=True)
    new = load_tokenizer(larger)
    weight = read_matrix(home / "model", HEAD)
    old = Vocabulary("base", 400, load_tokenizer(home / "model"))
    grown = grown_rows(weight, old, new, "Mean", 7, salt=HEAD)
    assert new.pad_id == new.vocab_size - 1
    torch.testing.assert_close(grown[-1], weight.mean(dim=0))


def test_normal_rows_are_seeded_and_differ_between_embedding_and_head(home):
    new = load_tokenizer(home / "larger")
    weight = torch.zeros(400, 256)
    old = Vocabulary("base", 400, None)
    rows = {salt: grown_rows(weight, old, new, "Normal", 7, salt=salt)[400:] for salt in (EMBEDDING, HEAD)}
    again = grown_rows(weight, old, new, "Normal", 7, salt=HEAD)[400:]
    assert torch.equal(rows[HEAD], again)
    assert not torch.equal(rows[HEAD], rows[EMBEDDING])
    assert abs(float(again.std()) - 0.02) < 0.001


def test_byte_level_bpe_pieces_are_spelt_by_the_old_tokenizer(tmp_path):
    model = tiny_llama(tmp_path / "bpe", tokenizer=tiny_bpe_tokenizer(tmp_path / "tokenizer"))
    new = load_tokenizer(build.larger_tokenizer(tmp_path, base=model))
    old = load_tokenizer(model)
    weight = read_matrix(model, EMBEDDING)
    grown = grown_rows(weight, Vocabulary("base", old.vocab_size, old), new, "Mean", 7, salt=EMBEDDING)
    index = new.vocab_size - 1
    torch.testing.assert_close(grown[index], weight[old.encode(spellings(new, [index])[0])].mean(dim=0))


def test_new_rows_need_the_old_tokenizer(home):
    new = load_tokenizer(home / "larger")
    with pytest.raises(BadInput, match="no tokenizer") as refused:
        grown_rows(torch.zeros(400, 4), Vocabulary("base", 400, None), new, "Mean", 7, salt=HEAD)
    assert "Normal" in refused.value.hint


def test_a_smaller_tokenizer_is_refused_with_both_sizes_and_digests(home, tmp_path):
    larger, smaller = load_tokenizer(home / "larger"), load_tokenizer(home / "model")
    with pytest.raises(BadInput, match="has 400 ids") as refused:
        check_extends(Vocabulary("the model", larger.vocab_size, larger), smaller, "the tokenizer")
    assert refused.value.reason == "ArtifactMismatch"
    for part in (str(larger.vocab_size), "400", larger.digest[:12], smaller.digest[:12]):
        assert part in refused.value.message
    assert refused.value.hint


def test_another_tokenizer_of_the_same_size_is_refused_with_the_first_wrong_piece(home, tmp_path):
    mine = load_tokenizer(home / "model")
    other = load_tokenizer(
        tiny_sentencepiece(tmp_path, text="zebra quartz jumps\n" * 30 + "wax vow\n" * 9, vocab_size=290)
    )
    with pytest.raises(BadInput, match="Id 259 is") as refused:
        check_extends(Vocabulary("the model", 290, other), mine, "the tokenizer")
    assert refused.value.reason == "ArtifactMismatch"


def test_a_model_beside_a_tokenizer_of_another_size_is_refused(home):
    larger = load_tokenizer(home / "larger")
    with pytest.raises(BadInput, match="400 rows and the tokenizer beside it"):
        check_extends(Vocabulary("the model", 400, larger), larger, "the tokenizer")


def test_a_tied_head_follows_the_embedding(tmp_path):
    model = load_model(tiny_llama(tmp_path / "tied", tied=True), torch.bfloat16)
    assert is_tied(model)
    set_matrix(model, EMBEDDING, torch.ones(405, 32))
    assert is_tied(model)
    assert model.lm_head(torch.ones(1, 32)).shape == (1, 405)
    assert model.config.vocab_size == 405
    assert full_names(BOTH, "LoRA", tied=True) == [EMBEDDING]


def test_unknown_targets_are_refused_with_the_known_ones(home):
    model = load_model(home / "model", torch.float32)
    with pytest.raises(BadInput, match="names lm_head") as refused:
        train_lora(model, Lora(rank=2, alpha=4, targets=["q_proj", "lm_head"]), [], {}, seed=1)
    assert "q_proj" in refused.value.hint
    assert "trainFully" in refused.value.hint


def test_nothing_to_train_is_refused():
    with pytest.raises(BadInput, match="nothing to train"):
        full_names(Lora(train_fully=[]), "EmbeddingsOnly", tied=False)


def test_training_everything_trains_each_matrix_once(tmp_path):
    model = load_model(tiny_llama(tmp_path / "tied", tied=True), torch.float32)
    assert parameter_counts(train_everything(model).module) == (model.num_parameters(), model.num_parameters())


def test_peft_computes_the_same_logits_from_a_written_adapter(home, tmp_path):
    config = build.pretrain_config(home, model=home / "model")
    inputs = open_training_inputs(config)
    made = assemble(config, inputs, load_tokenizer(inputs.tokenizer), CPU)
    torch.manual_seed(3)
    with torch.no_grad():
        for item in made.trained.values():
            item.add_(torch.randn(item.shape) * 0.1)
    write_trained_adapter(tmp_path, made, made.trained)
    ids = torch.arange(3, 40)[None]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        theirs = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(home / "model"), tmp_path)
        torch.testing.assert_close(theirs.eval()(ids).logits, made.module.eval()(ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("full", [["embed_tokens", "lm_head"], []])
def test_gradient_checkpointing_changes_no_gradient_also_with_a_frozen_embedding(home, full):
    gradients = []
    for recompute in (False, True):
        model = load_model(home / "model", torch.float32)
        lora = Lora(rank=2, alpha=4, dropout=0.0, targets=["q_proj", "v_proj"], train_fully=full)
        made = train_lora(model, lora, full_names(lora, "LoRA", tied=False), {}, seed=1)
        with torch.no_grad():
            for name, item in made.trained.items():
                if "lora_B" in name:
                    item.fill_(0.01)
        if recompute:
            use_gradient_checkpointing(made.base)
        made.module.train()
        made.module(input_ids=torch.arange(3, 40)[None], use_cache=False).logits.square().mean().backward()
        gradients.append({name: item.grad.clone() for name, item in made.trained.items()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradients[1][name], gradient)


def test_the_digest_of_plain_files_is_that_of_an_artifact_with_the_same_files(tmp_path):
    directory = tiny_llama(tmp_path / "model")
    before = model_digest(directory)
    (directory / "tokenizer.model").write_bytes(b"other")
    assert model_digest(directory) != before
