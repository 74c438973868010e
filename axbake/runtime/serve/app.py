"""Which address is answered by what."""

from __future__ import annotations

import logging
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .a1111 import A1111
from .engine import Engine
from .errors import Refused
from .guards import Guard
from .openai import OpenAI
from .own import TYPES, Own

logger = logging.getLogger(__name__)
SD = "/sdapi/v1"
RETRY = 5  # seconds after which a client may ask again when the queue is full
#: Lists that AUTOMATIC1111's clients ask for and that are empty here
NOTHING = (
    *("scripts", "loras", "upscalers", "latent-upscale-modes", "hypernetworks", "face-restorers", "realesrgan-models"),
    *("prompt-styles", "sd-vae", "script-info"),
)


def application(engine: Engine, *, token: str = "") -> Guard:
    """The server's ASGI application.

    Args:
        token: that clients must give; empty: none.
    """
    openai, a1111, own = OpenAI(engine), A1111(engine), Own(engine)
    routes = [
        *(Route(f"/{name.replace('index.html', '')}", own.page) for name in TYPES),
        Route("/health", own.health),
        Route("/api/state", own.state),
        Route("/api/draw", own.draw, methods=["POST"]),
        Route("/api/jobs/{id}", own.job),
        Route("/api/jobs/{id}/interrupt", own.interrupt, methods=["POST"]),
        Route("/pictures/{name}.png", own.picture),
        Route("/v1/models", openai.models),
        Route("/v1/models/{name:path}", openai.model),
        Route("/v1/images/generations", openai.generations, methods=["POST"]),
        Route("/v1/images/edits", openai.edits, methods=["POST"]),
        Route(f"{SD}/txt2img", a1111.txt2img, methods=["POST"]),
        Route(f"{SD}/img2img", a1111.img2img, methods=["POST"]),
        Route(f"{SD}/progress", a1111.progress),
        Route(f"{SD}/interrupt", a1111.interrupt, methods=["POST"]),
        Route(f"{SD}/sd-models", a1111.models),
        Route(f"{SD}/samplers", a1111.samplers),
        Route(f"{SD}/schedulers", a1111.schedulers),
        Route(f"{SD}/options", a1111.options, methods=["GET"]),
        Route(f"{SD}/options", a1111.set_options, methods=["POST"]),
        *(Route(f"{SD}/{name}", a1111.nothing) for name in NOTHING),
    ]
    handlers: dict[Any, Any] = {Refused: _refused, HTTPException: _not_there, Exception: _failed}
    app = Starlette(routes=routes, exception_handlers=handlers)
    return Guard(app, token, engine.names.emulated)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    path = request.url.path
    headers = {"retry-after": str(RETRY)} if error.status == 429 else None
    # Of a value that is wrong, the web UI's status is FastAPI's.
    status = 422 if error.status == 400 and path.startswith(SD) else error.status
    return JSONResponse(error.content(path), status_code=status, headers=headers)


async def _not_there(request: Request, error: Exception) -> Response:
    """Starlette's own refusals: an address or a method that is not there, a form that is not one."""
    assert isinstance(error, HTTPException)
    refused = Refused(
        error.status_code, f"{request.method} {request.url.path[:200]}: {error.detail}", code="http_error"
    )
    return JSONResponse(refused.content(request.url.path), status_code=error.status_code, headers=error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    """A fault of this program's, whose traceback the log has."""
    logger.error("%s %s failed", request.method, request.url.path[:200], exc_info=error)
    refused = Refused(500, f"the server failed ({type(error).__name__}); its log says more.", code="internal_error")
    return JSONResponse(refused.content(request.url.path), status_code=500)
