"""The page at ``/``: files of this package, under a policy that lets them reach nothing but this server."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(__file__).parent / "browser"
INDEX = "index.html"

KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)
"""No script but ours, no text that becomes a script, no other host, no frame around the page."""

HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class PageFile:
    """One file of the page, held in memory."""

    content: bytes
    kind: str

    @cached_property
    def tag(self) -> str:
        """The HTTP entity tag of the content."""
        return f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'

    async def __call__(self, request: Request) -> Response:
        """The file, or 304 where the browser holds it."""
        headers = {**HEADERS, "ETag": self.tag}
        if request.headers.get("if-none-match") == self.tag:
            return Response(status_code=304, headers=headers)
        return Response(self.content, headers=headers, media_type=self.kind)


def routes() -> list[Route]:
    """A route for each file; ``/`` is the page itself."""
    made = []
    for path in sorted(FOLDER.iterdir()):
        if path.suffix in KINDS:
            address = "/" if path.name == INDEX else f"/page/{path.name}"
            made.append(Route(address, PageFile(path.read_bytes(), KINDS[path.suffix]).__call__))
    return made
