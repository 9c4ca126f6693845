"""Retrieval QA and summaries: by one prompt (stuff), or by one a piece of text with the answer so far (refine)."""

from collections.abc import Callable, Sequence
from pathlib import Path

import prompts
from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.vectorstores import InMemoryVectorStore, VectorStoreRetriever
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_text_splitters import RecursiveCharacterTextSplitter

CHUNK, OVERLAP = 600, 100
"""Characters of a piece of text, and of two neighbours in common; those of the original demonstration."""
Answer = Callable[[str], str]


def pieces_of(path: Path, chunk: int = CHUNK, overlap: int = OVERLAP) -> list[Document]:
    """Return a text file in pieces, in its order."""
    whole = Document(path.read_text(encoding="utf-8"), metadata={"source": path.name})
    return RecursiveCharacterTextSplitter(chunk_size=chunk, chunk_overlap=overlap).split_documents([whole])


def chat_model(url: str, model: str, key: str, max_tokens: int = 400) -> ChatOpenAI:
    """Return the server's model, sampled as in the demonstration of the second generation.

    top_k is the server's own, 40.
    """
    return ChatOpenAI(
        base_url=url, model=model, api_key=key, temperature=0.2, top_p=0.9, max_completion_tokens=max_tokens
    )


def embedding_model(url: str, model: str, key: str) -> OpenAIEmbeddings:
    """Return the server's embeddings; the text is sent as it is, for only the server knows its tokens."""
    return OpenAIEmbeddings(base_url=url, model=model, api_key=key, check_embedding_ctx_length=False)


def retriever(pieces: Sequence[Document], embeddings: OpenAIEmbeddings, k: int = 1) -> VectorStoreRetriever:
    """Return what finds the `k` pieces nearest to a question."""
    store = InMemoryVectorStore(embeddings)
    store.add_documents(list(pieces))
    return store.as_retriever(search_kwargs={"k": k})


def qa_stuff(llm: ChatOpenAI, found: VectorStoreRetriever) -> Answer:
    """Return what answers a question from all the pieces found, in one prompt."""
    ask = _chain(prompts.QA_STUFF, llm)

    def answer(question: str) -> str:
        context = "\n\n".join(piece.page_content for piece in found.invoke(question))
        return ask({"context": context, "question": question})

    return answer


def qa_refine(llm: ChatOpenAI, found: VectorStoreRetriever) -> Answer:
    """Return what answers a question from the first piece found, and refines the answer with each of the others."""
    first, more = _chain(prompts.QA_INITIAL, llm), _chain(prompts.QA_REFINE, llm)

    def answer(question: str) -> str:
        nearest, *others = found.invoke(question)
        said = first({"context_str": nearest.page_content, "question": question})
        for piece in others:
            said = more({"context_str": piece.page_content, "question": question, "existing_answer": said})
        return said

    return answer


def summary_stuff(llm: ChatOpenAI, pieces: Sequence[Document]) -> str:
    """Return the summary of all pieces in one prompt; the model's context has to be long enough."""
    return _chain(prompts.SUMMARY, llm)({"text": "\n\n".join(piece.page_content for piece in pieces)})


def summary_refine(llm: ChatOpenAI, pieces: Sequence[Document]) -> str:
    """Return the summary of the first piece, refined with each of the others in their order."""
    first, *others = pieces
    refine = _chain(prompts.SUMMARY_REFINE, llm)
    said = _chain(prompts.SUMMARY, llm)({"text": first.page_content})
    for piece in others:
        said = refine({"text": piece.page_content, "existing_answer": said})
    return said


def _chain(prompt: ChatPromptTemplate, llm: ChatOpenAI) -> Callable[[dict[str, str]], str]:
    chain = prompt | llm | StrOutputParser()
    return lambda given: chain.invoke(given).strip()
