"""The HTTP API of `fuserun serve` as an ASGI application, for servers and frameworks of Python: Ray Serve, uvicorn, FastAPI's `mount`.

>>> app = App(AsyncLLM("Qwen/Qwen3-0.6B"))          # uvicorn module:app
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

from .aio import AsyncLLM

# As much of a body as the routes read.
_MOST = 8 << 20


class App:
    """Answers the routes of docs/serving.md with a model of this process. Keys are the business of what is in front of it."""

    def __init__(self, llm: AsyncLLM | Any = None, **options: Any) -> None:
        self.llm = llm if isinstance(llm, AsyncLLM) else AsyncLLM(llm, **options)
        """The model that it asks."""

    async def __call__(self, scope: dict[str, Any], receive: Callable[[], Awaitable[dict]], send: Callable[[dict], Awaitable[None]]) -> None:
        """Answers what a server of ASGI hands over."""
        if scope["type"] == "lifespan":
            return await self._lifespan(receive, send)
        if scope["type"] != "http":
            raise ValueError(f"a connection of kind {scope['type']} is not answered: the routes are HTTP's")
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            # The routes refuse what is longer.
            if len(body) <= _MOST:
                body += message.get("body", b"")
            if not message.get("more_body"):
                break
        query = scope.get("query_string") or b""
        path = scope.get("raw_path") or scope["path"].encode()
        root = (scope.get("root_path") or "").encode()
        path = path.split(b"?")[0].removeprefix(root) or b"/"
        target = (path + b"?" + query if query else path).decode("latin-1")
        answering = asyncio.ensure_future(self._answer(scope, target, bytes(body), send))
        leaving = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                answering.result()
        finally:
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)

    async def _answer(self, scope: dict[str, Any], target: str, body: bytes, send: Callable[[dict], Awaitable[None]]) -> None:
        headers = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
        async with aclosing(self.llm.request(scope["method"], target, headers, body)) as response:
            begun = False
            async for kind, *came in response:
                if kind == "end" and not begun:
                    raise RuntimeError("the model has been ended: load it again")
                begun = True
                if kind == "head":
                    await send({"type": "http.response.start", "status": came[0], "headers": came[1]})
                elif kind == "body":
                    await send({"type": "http.response.body", "body": came[0], "more_body": True})
                else:
                    await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _lifespan(self, receive: Callable[[], Awaitable[dict]], send: Callable[[dict], Awaitable[None]]) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                await self.llm.exit()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return


async def _left(receive: Callable[[], Awaitable[dict]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
