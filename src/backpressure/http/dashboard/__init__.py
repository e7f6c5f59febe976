"""The dashboard: one page with its scripts and styles, served from memory.

There is no build step, and the page loads nothing from elsewhere.

uPlot.* is uPlot 1.6.32 (https://github.com/leeoniya/uPlot) as its npm package has it,
under the MIT licence of uPlot.LICENSE.
"""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import Final

from fastapi import FastAPI, HTTPException, Request, Response

__all__ = ["add_routes"]

_PAGE: Final = "index.html"
# All that is served of this folder, with its content type.
_FILES: Final = {
    _PAGE: "text/html; charset=utf-8",
    "dashboard.css": "text/css; charset=utf-8",
    "dashboard.js": "text/javascript; charset=utf-8",
    "charts.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "uPlot.iife.min.js": "text/javascript; charset=utf-8",
    "uPlot.min.css": "text/css; charset=utf-8",
    "uPlot.LICENSE": "text/plain; charset=utf-8",
}


def add_routes(app: FastAPI) -> None:
    """Add the page at /buffer/, where / leads, and its files below /buffer/static/."""
    folder = resources.files(__package__)
    contents = {name: folder.joinpath(name).read_bytes() for name in _FILES}
    tags = {
        name: f'"{hashlib.sha256(content).hexdigest()[:16]}"' for name, content in contents.items()
    }

    def serve(name: str, request: Request) -> Response:
        # no-cache: a browser asks at each use, so that a page and its script are never
        # of two versions.
        headers = {"ETag": tags[name], "Cache-Control": "no-cache", "Content-Type": _FILES[name]}
        known = ",".join(request.headers.getlist("if-none-match"))
        if tags[name] in (one.strip().removeprefix("W/") for one in known.split(",")):
            return Response(status_code=304, headers=headers)
        return Response(contents[name], headers=headers)

    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        # Relative: it holds wherever the app is mounted, and behind any proxy.
        return Response(status_code=307, headers={"Location": "buffer/"})

    @app.get("/buffer/", include_in_schema=False)
    async def page(request: Request) -> Response:
        return serve(_PAGE, request)

    @app.get("/buffer/static/{name}", include_in_schema=False)
    async def static(name: str, request: Request) -> Response:
        if name not in _FILES:
            raise HTTPException(404, "there is no such file")
        return serve(name, request)
