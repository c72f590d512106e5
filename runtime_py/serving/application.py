"""The server's routes, who may call them, and how everything that goes wrong is said."""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from runtime_py.engine.service import Service
from runtime_py.files.json_file import shortened
from runtime_py.serving import openapi, page
from runtime_py.serving.chat import ChatCompletions, Gone, ServerLimits
from runtime_py.serving.clips import most_pictures
from runtime_py.serving.metrics import Metrics
from runtime_py.serving.refusal import INVALID, Refusal
from runtime_py.version import VERSION

CLIENT_GONE = 499
"""What nginx calls a request whose client went away; nobody reads it."""

QUESTIONS = "/v1/chat/completions"

FURTHER_HEADERS = {
    401: {"WWW-Authenticate": "Bearer"},
    429: {"Retry-After": "1"},
    504: {"X-Should-Retry": "false"},  # OpenAI's clients ask again by themselves, and would wait as long each time
}
"""Of refusals, by their status."""

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Serving:
    """What a server is told.

    Attributes:
        name: of the model, as requests call it.
        keys: any of them opens /v1; none means that everybody may.
        patience: seconds that answers at work get when the server is told to stop.
    """

    name: str
    limits: ServerLimits
    keys: Sequence[str] = ()
    patience: float = 30.0


def application(service: Service, serving: Serving) -> Starlette:
    """The ASGI application over an open service, which it closes at its end.

    Its ``state.stopping`` is the event of `ChatCompletions`.
    """
    metrics = Metrics(service)
    facts = _facts(service, serving)
    document = openapi.document(serving.name)

    async def models(_request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [facts]})

    async def model(request: Request) -> Response:
        if request.path_params["name"] != serving.name:
            raise Refusal(404, "there is no such model here", param="model", code="model_not_found")
        return JSONResponse(facts)

    async def health(_request: Request) -> Response:
        engine = service.engine
        return JSONResponse(
            {
                "status": "ok",
                "model": serving.name,
                "edgeproof": VERSION,
                "slots": len(engine.slots),
                "busy": engine.busy,
                "queued": engine.queued,
                "notice": engine.notice or None,
                "key_needed": bool(serving.keys),
            }
        )

    async def described(_request: Request) -> Response:
        return JSONResponse(document)

    async def scrape(_request: Request) -> Response:
        return Response(metrics.text(), media_type=metrics.content_type)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(service.close, serving.patience)

    chat = ChatCompletions(service, serving.name, serving.limits, metrics)
    guarded = _guard(serving.keys)
    routes = [
        Route(QUESTIONS, guarded(chat.__call__), methods=["POST"]),
        Route("/v1/models", guarded(models)),
        Route("/v1/models/{name:path}", guarded(model)),
        Route("/health", health),
        Route("/metrics", scrape),
        Route("/openapi.json", described),
        *page.routes(),
    ]
    handlers: Any = {Refusal: _refused, HTTPException: _http_error, Gone: _gone, Exception: _fault}
    made = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)
    made.state.stopping = chat.stopping
    made.router.redirect_slashes = False  # its answer would name whatever host the request named
    return made


def _facts(service: Service, serving: Serving) -> dict[str, Any]:
    """OpenAI's four fields of a model, and what a client may want to know of the package and of what it may send."""
    package = service.package
    licence = package.manifest.get("licence") or {}
    verification = package.manifest.get("verification") or {}
    pictures = serving.limits.pictures
    return {
        "id": serving.name,
        "object": "model",
        "created": 0,
        "owned_by": "edgeproof",
        "family": package.family,
        "variant": package.variant,
        "target": package.target,
        "precision": package.precision,
        "bytes": package.size,
        "max_model_len": package.limits.context,
        "max_images": most_pictures(service.processor, package.manifest.get("runtime") or {}, pictures.count),
        "max_image_bytes": pictures.bytes,
        "licence": licence.get("name"),
        "manifest": f"sha256:{package.fingerprint}",
        "verification": verification.get("verdict"),
        "waivers": len(package.manifest.get("waivers") or ()),
    }


def _guard(keys: Sequence[str]) -> Callable[[Handler], Handler]:
    """Handlers that answer only a bearer of one of the keys."""

    def guarded(handler: Handler) -> Handler:
        async def answer(request: Request) -> Response:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            fits = [hmac.compare_digest(given.strip().encode(), key.encode()) for key in keys]
            if keys and not (scheme.lower() == "bearer" and any(fits)):
                raise Refusal(401, "no API key that is known here (Authorization: Bearer KEY)", code="invalid_api_key")
            return await handler(request)

        return answer

    return guarded


def _refused(_request: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)
    return JSONResponse(refusal.to_json(), refusal.status, FURTHER_HEADERS.get(refusal.status))


def _http_error(request: Request, error: Exception) -> Response:
    """Starlette's own: no such path, another method."""
    assert isinstance(error, HTTPException)
    said = {404: _elsewhere(request.url.path), 405: f"this path takes {(error.headers or {}).get('Allow')}"}
    return JSONResponse(
        Refusal(error.status_code, said.get(error.status_code, error.detail), INVALID).to_json(),
        error.status_code,
        error.headers,
    )


def _elsewhere(path: str) -> str:
    """What is answered in place of a path that is not: of OpenAI's interface, chat completions alone."""
    return (
        f"no {shortened(path)} here: questions go to POST {QUESTIONS} (the base_url of OpenAI's clients ends in /v1); "
        "GET /openapi.json tells every path"
    )


def _gone(_request: Request, _error: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)


def _fault(_request: Request, error: Exception) -> Response:
    """A fault of the server itself; what it was goes to the log, where uvicorn puts it."""
    said = f"a fault of the server ({type(error).__name__})"
    return JSONResponse(Refusal(500, said, "server_error").to_json(), 500)
