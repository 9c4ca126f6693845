"""Every failure as an answer in OpenAI's shape."""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from herdsman_server.answers import ENGINE_FAILED, validation_message
from herdsman_server.openai_api import ApiError


def error_response(error: ApiError) -> JSONResponse:
    """Return the answer that an ApiError is."""
    return JSONResponse(error.body, error.status, headers=error.headers)


def add_error_handlers(app: FastAPI) -> None:
    """Let the application answer what goes wrong in OpenAI's shape."""

    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> Response:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        message, param = validation_message(error.errors())
        return error_response(ApiError(400, message, param=param))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path}: {error.detail}."
        return error_response(ApiError(error.status_code, message, headers=dict(error.headers or {})))

    @app.exception_handler(Exception)
    async def crash(_: Request, __: Exception) -> Response:
        return error_response(ENGINE_FAILED)
