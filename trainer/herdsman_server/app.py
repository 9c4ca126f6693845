"""The HTTP face: OpenAI's routes, health and readiness."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, Response
from starlette.middleware.cors import CORSMiddleware

from herdsman_server.answers import model_card, model_list
from herdsman_server.completions import check_model, complete
from herdsman_server.description import describe
from herdsman_server.embeddings import embed
from herdsman_server.errors import add_error_handlers
from herdsman_server.gate import Gate, cors
from herdsman_server.openai_api import ChatRequest, CompletionRequest, EmbeddingsRequest
from herdsman_server.original_dialect import add_original_routes
from herdsman_server.page import add_page
from herdsman_server.request_ids import RequestIds
from herdsman_server.state import ServerState


def create_app(state: ServerState) -> FastAPI:
    """Return the application; it answers 503 on the completion routes until `state.serve` was called."""
    app = FastAPI(title="Herdsman model server", version="1", docs_url=None, redoc_url=None)
    add_error_handlers(app)

    app.add_middleware(Gate, state=state)
    if state.cors_origins:
        # Before the gate, for browsers ask without a key first whether they may ask.
        app.add_middleware(CORSMiddleware, **cors(state.cors_origins))

    app.add_middleware(RequestIds)

    add_page(app)

    @app.get("/healthz")
    async def healthz() -> PlainTextResponse:
        """The process answers, and its engine is not beyond help."""
        return PlainTextResponse(f"{state.broken or 'ok'}\n", 503 if state.broken else 200)

    @app.get("/readyz")
    async def readyz() -> PlainTextResponse:
        """The model is loaded and has generated a token, and the server is not about to stop."""
        return PlainTextResponse(f"{state.unready or 'ok'}\n", 503 if state.unready else 200)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The model, and the adapters that are loaded."""
        return model_list(state.model_names, state.started)

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """One model."""
        check_model(state, name)
        return model_card(name, state.started)

    if state.dialect == "openai":
        _add_openai_routes(app, state)
        describe(app)
    else:
        add_original_routes(app, state)
    return app


def _add_openai_routes(app: FastAPI, state: ServerState) -> None:
    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """The next turn of a conversation."""
        return await complete(state, body, request)

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """The continuation of a text."""
        return await complete(state, body, request)

    @app.post("/v1/embeddings")
    async def embeddings(body: EmbeddingsRequest, request: Request) -> Response:
        """Texts as vectors."""
        return await embed(state, body, request)
