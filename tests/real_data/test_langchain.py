"""examples/langchain over the real article with the real tokenizer; the model is a tiny one that says anything."""

import pytest

from herdsman_server.engine import ServedModel
from herdsman_server.state import ServerState
from herdsman_trainer.prompts import TEMPLATES
from herdsman_trainer.tokenizers import load_tokenizer
from server.conftest import running
from server.test_langchain import Recording, chains, instruction, long_llama

pytestmark = pytest.mark.real_data
__all__ = ["chains"]
QUESTIONS = ("李白的诗歌被谁称为三绝之一？", "李白是哪个朝代的人？")


@pytest.fixture(scope="module")
def pieces(real_data, chains):
    article = real_data / "doc.txt"
    if not article.is_file():
        pytest.skip(f"no article in {real_data}: put doc.txt there")
    return chains.pieces_of(article)


@pytest.fixture(scope="module")
def served(real_data, tmp_path_factory, chains):
    tokenizer_directory = tmp_path_factory.mktemp("tokenizer")
    (tokenizer_directory / "tokenizer.model").write_bytes((real_data / "tokenizer.model").read_bytes())
    directory = long_llama(tmp_path_factory.mktemp("model"), tokenizer_directory)
    tokenizer = load_tokenizer(directory)
    engine, state = Recording(directory, tokenizer), ServerState("demo")
    state.serve(ServedModel(engine, tokenizer, TEMPLATES["alpaca"], starts_with_bos=True))
    with running(state) as address:
        url = f"{address}/v1"
        yield engine, chains.chat_model(url, "demo", "none", 8), chains.embedding_model(url, "demo", "none")


def test_the_article_is_cut_as_in_the_original(pieces):
    assert all(len(piece.page_content) <= 600 for piece in pieces)
    assert 3 <= len(pieces) <= 8
    assert pieces[0].page_content.startswith("李白")


@pytest.mark.parametrize("question", QUESTIONS)
def test_questions_are_answered_by_both_chains(served, pieces, chains, question):
    engine, llm, embeddings = served
    engine.prompts.clear()
    found = chains.retriever(pieces, embeddings)
    (nearest,) = found.invoke(question)
    chains.qa_refine(llm, found)(question)
    chains.qa_stuff(llm, found)(question)
    refine, stuff = (instruction(prompt) for prompt in engine.prompts)
    text = nearest.page_content
    assert refine == f"以下为背景知识：\n{text}\n请根据以上背景知识, 回答这个问题：{question}。"
    assert stuff == f"{text}\n{question}"


def test_the_article_is_summarised_by_both_chains(served, pieces, chains):
    engine, llm, _ = served
    engine.prompts.clear()
    chains.summary_stuff(llm, pieces)
    chains.summary_refine(llm, pieces)
    assert len(engine.prompts) == 1 + len(pieces)
    whole = "\n\n".join(piece.page_content for piece in pieces)
    assert instruction(engine.prompts[0]) == f"请为以下文字写一段摘要:\n{whole}"
    assert pieces[-1].page_content in instruction(engine.prompts[-1])
