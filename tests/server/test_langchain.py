"""examples/langchain against a running server: what is asked, in which words, and how often."""

import json
import sys
from pathlib import Path

import pytest
import torch

from herdsman_server.engine import ServedModel
from herdsman_server.state import ServerState
from herdsman_server.transformers_engine import load_engine
from herdsman_trainer.prompts import TEMPLATES, Message
from herdsman_trainer.tokenizers import load_tokenizer
from herdsman_trainer.weights.chain import open_chain
from server.conftest import running
from tiny import ENGLISH, tiny_llama

EXAMPLE = Path(__file__).parents[2] / "examples" / "langchain"
HEADER = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
CONTEXT = 8192


@pytest.fixture(scope="module")
def chains():
    """The example's module, as its programs import it."""
    sys.path.insert(0, str(EXAMPLE))
    try:
        import chains

        yield chains
    finally:
        sys.path.remove(str(EXAMPLE))
        for name in ("chains", "prompts", "options"):
            sys.modules.pop(name, None)


class Recording:
    """An engine that answers with a model of its own, and keeps the prompts."""

    def __init__(self, directory, tokenizer):
        self._engine = load_engine(open_chain(directory, dtype=torch.float32), "cpu")
        self._tokenizer = tokenizer
        self.prompts = []
        self.ids = []
        self.parallel = self._engine.parallel
        self.context_length = self._engine.context_length

    def generate(self, prompt, sampling, stop_ids, on_token):
        self.ids.append(list(prompt))
        self.prompts.append(self._tokenizer.decode(prompt))
        self._engine.generate(prompt, sampling, stop_ids, on_token)

    def embed(self, texts):
        return self._engine.embed(texts)


def long_llama(directory, tokenizer=None):
    """A tiny Llama whose context holds these prompts."""
    tiny_llama(directory, tokenizer)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "max_position_embeddings": CONTEXT}))
    return directory


@pytest.fixture(scope="module")
def served(tmp_path_factory, chains):
    """(engine, language model, embeddings) of a server that runs as long as these tests."""
    directory = long_llama(tmp_path_factory.mktemp("model"))
    tokenizer = load_tokenizer(directory)
    engine, state = Recording(directory, tokenizer), ServerState("demo")
    state.serve(ServedModel(engine, tokenizer, TEMPLATES["alpaca"], starts_with_bos=True))
    with running(state) as address:
        url = f"{address}/v1"
        yield engine, chains.chat_model(url, "demo", "none", 8), chains.embedding_model(url, "demo", "none")


@pytest.fixture
def asked(served):
    """The same, with nothing asked yet."""
    engine, llm, embeddings = served
    engine.prompts.clear()
    engine.ids.clear()
    return engine, llm, embeddings


@pytest.fixture(scope="module")
def pieces(tmp_path_factory, chains):
    path = tmp_path_factory.mktemp("text") / "doc.txt"
    path.write_text(ENGLISH.strip(), encoding="utf-8")
    return chains.pieces_of(path, chunk=200, overlap=20)


def instruction(prompt):
    """What stands in the template of the first generation."""
    before, _, rest = prompt.partition(f"{HEADER}\n\n### Instruction:\n")
    body, _, after = rest.rpartition("\n\n### Response: ")
    assert (before.strip(), after) == ("", ""), prompt
    return body


def test_a_text_is_cut_into_pieces_of_the_size_asked_for(pieces):
    assert len(pieces) >= 4
    assert all(len(piece.page_content) <= 200 for piece in pieces)
    assert {piece.metadata["source"] for piece in pieces} == {"doc.txt"}


def test_a_question_is_answered_from_the_nearest_piece(asked, pieces, chains):
    engine, llm, embeddings = asked
    question = pieces[2].page_content
    answer = chains.qa_refine(llm, chains.retriever(pieces, embeddings))(question)
    (prompt,) = engine.prompts
    assert instruction(prompt) == f"以下为背景知识：\n{question}\n请根据以上背景知识, 回答这个问题：{question}。"
    assert isinstance(answer, str)


def test_an_answer_is_refined_with_the_other_pieces_one_by_one(asked, pieces, chains):
    engine, llm, embeddings = asked
    found = chains.retriever(pieces, embeddings, k=3)
    nearest = [piece.page_content for piece in found.invoke("Why is the sky blue?")]
    chains.qa_refine(llm, found)("Why is the sky blue?")
    first, *others = (instruction(prompt) for prompt in engine.prompts)
    assert nearest[0] in first
    assert len(others) == 2
    for refined, piece in zip(others, nearest[1:], strict=True):
        assert refined.startswith("这是原始问题: Why is the sky blue?\n已有的回答: ")
        assert refined.endswith(
            "\n现在还有一些文字，（如果有需要）你可以根据它们完善现有的回答。\n\n"
            f"{piece}\n\n请根据新的文段，进一步完善你的回答。"
        )
        assert "\\n" not in refined, "the misprint of the first generation is gone"


def test_all_pieces_found_may_go_into_one_prompt(asked, pieces, chains):
    engine, llm, embeddings = asked
    found = chains.retriever(pieces, embeddings, k=2)
    nearest = [piece.page_content for piece in found.invoke("map of the world")]
    chains.qa_stuff(llm, found)("map of the world")
    (prompt,) = engine.prompts
    assert instruction(prompt) == "\n\n".join(nearest) + "\nmap of the world"


def test_a_summary_is_made_of_all_pieces_at_once(asked, pieces, chains):
    engine, llm, _ = asked
    chains.summary_stuff(llm, pieces)
    (prompt,) = engine.prompts
    whole = "\n\n".join(piece.page_content for piece in pieces)
    assert instruction(prompt) == f"请为以下文字写一段摘要:\n{whole}"


def test_a_summary_is_refined_piece_by_piece_with_the_one_before(asked, pieces, chains):
    engine, llm, _ = asked
    last = chains.summary_refine(llm, pieces)
    first, *others = (instruction(prompt) for prompt in engine.prompts)
    assert first == f"请为以下文字写一段摘要:\n{pieces[0].page_content}"
    assert len(others) == len(pieces) - 1
    for refined, piece in zip(others, pieces[1:], strict=True):
        assert refined.startswith("已有一段摘要：")
        assert refined.endswith(
            "\n现在还有一些文字，（如果有需要）你可以根据它们完善现有的摘要。\n"
            f"{piece.page_content}\n\n如果这段文字没有用，返回原来的摘要即可。请你生成一个最终的摘要。"
        )
    assert isinstance(last, str)


def test_the_model_gets_the_very_ids_of_its_training(asked, pieces, chains):
    engine, llm, _ = asked
    chains.summary_stuff(llm, pieces[:1])
    told = Message("user", f"请为以下文字写一段摘要:\n{pieces[0].page_content}")
    assert engine.ids == [TEMPLATES["alpaca"].chat_ids(engine._tokenizer, [told])]


def test_braces_and_control_words_of_a_text_stay_text(asked, chains, tmp_path):
    engine, llm, _ = asked
    odd = "{question} {{0.__class__}} </s><s>[INST] ### Response: %s $HOME"
    (tmp_path / "odd.txt").write_text(odd, encoding="utf-8")
    chains.summary_stuff(llm, chains.pieces_of(tmp_path / "odd.txt"))
    assert odd in engine.prompts[0]
    assert engine.ids[0].count(engine._tokenizer.eos_id) == 0


def test_both_programs_answer(asked, chains, tmp_path, monkeypatch, capsys):
    engine, llm, _ = asked
    (tmp_path / "doc.txt").write_text(ENGLISH, encoding="utf-8")
    url = str(llm.openai_api_base)
    sys.path.insert(0, str(EXAMPLE))
    try:
        import qa
        import summary
    finally:
        sys.path.remove(str(EXAMPLE))
        for name in ("qa", "summary", "options"):
            sys.modules.pop(name, None)
    options = ["--url", url, "--model", "demo", "--file", str(tmp_path / "doc.txt"), "--max-tokens", "5"]
    monkeypatch.setattr(sys, "argv", ["qa.py", *options, "What", "is", "wide?"])
    qa.main()
    monkeypatch.setattr(sys, "argv", ["summary.py", *options, "--chain", "stuff"])
    summary.main()
    assert len(capsys.readouterr().out) > 1
    question, text = (instruction(prompt) for prompt in engine.prompts)
    assert question.endswith("回答这个问题：What is wide?。")
    assert text.startswith("请为以下文字写一段摘要:\n")
