"""In front of the Space: only what its page asks for comes through, in small requests.

The limits of the page's fields hold in the browser alone, and gradio reads whatever it is sent.
"""

from typing import Any

from starlette.responses import PlainTextResponse
from starlette.routing import get_route_path

# A request of the page is a few settings and a prompt, of which JSON takes 12 bytes per character.
BODY_BYTES = 2**16
# What the page asks of gradio, by how the paths begin. Uploads, files and all else are closed.
API = ("app_id", "heartbeat/", "info", "queue/data", "startup-events")
FILES = (
    "assets/",
    "config",
    "favicon.ico",
    "manifest.json",
    "pwa_icon",
    "robots.txt",
    "static/",
    "theme.css",
)
OPEN = {
    "GET": (*(f"/{name}" for name in FILES), *(f"/gradio_api/{name}" for name in API)),
    "POST": tuple(f"/gradio_api/{name}" for name in ("cancel", "queue/join", "reset")),
}


class Gate:
    """ASGI middleware in front of gradio: 404 for what is closed, 413 for what is too large."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        method, path = scope.get("method"), get_route_path(scope)
        if not (method in ("GET", "HEAD") and path == "/" or path.startswith(OPEN.get(method, ()))):
            await PlainTextResponse("closed", 404)(scope, receive, send)
            return
        body, more = b"", True
        while more and len(body) <= BODY_BYTES:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        if len(body) > BODY_BYTES:
            response = PlainTextResponse("too large", 413, {"connection": "close"})
            await response(scope, receive, send)
            return
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> dict:
            return messages.pop() if messages else await receive()

        await self.app(scope, replay, send)
