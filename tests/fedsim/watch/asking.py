"""Asks the application of the page, without a network."""

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx

from fedsim.watch.app import build_app

HERE = "http://127.0.0.1:8321"


class Asker:
    """Asks the application, without a network.

    Args:
        path: The run.
        looks: Whether to look at the run first.
    """

    def __init__(self, path: Path, names: tuple[str, ...] = ()) -> None:
        self.app, self.feed = build_app(path, names=names)
        while self.feed.look():
            pass

    def get(self, place: str, method: str = "GET", **headers: str) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport, base_url=HERE) as client:
                request = client.build_request(method, place, headers=headers)
                return await client.send(request)

        return asyncio.run(ask())

    def get_raw(self, path: str) -> tuple[int, bytes]:
        """Ask for a path that no client has tidied up; return status and body."""
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": unquote(path),
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"host", b"127.0.0.1")],
        }
        asyncio.run(self.app(scope, receive, send))
        return sent[0]["status"], b"".join(one.get("body", b"") for one in sent)
