"""Static files under addresses that change with their content."""

from __future__ import annotations

from fastapi import Response
from fastapi.staticfiles import StaticFiles
from starlette.types import Scope


class CachedStatic(StaticFiles):
    """Files that a browser may keep for ever once it has asked for a version by `?v=`."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        if response.status_code == 200 and scope["query_string"].startswith(b"v="):
            response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response
