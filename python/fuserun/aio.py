"""A model that is asked from an event loop."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from ._native import Bell, Job, ResponseJob
from .collect import Answers, Pieces
from .llm import LLM, Messages, Params, Prompt, _take
from .outputs import Piece, RequestOutput
from .params import SamplingParams


class AsyncLLM:
    """A model that is asked from event loops; threads may ask the same one through `llm`.

    It is made of a model that is loaded, or of what `LLM` takes. A task that is cancelled takes its prompts back.
    """

    def __init__(self, model: Any = None, **options: Any) -> None:
        self.llm = model if isinstance(model, LLM) else LLM(model, **options)
        """The model that it asks."""
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Watch] = weakref.WeakKeyDictionary()

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.exit()

    async def generate(self, prompts: Prompt | Sequence[Prompt], sampling_params: Params = None) -> list[RequestOutput]:
        """Goes on with texts, and gives what came of each, in their order: as `LLM.generate`."""
        return await self._whole(*await asyncio.to_thread(self.llm._texts, prompts, sampling_params))

    async def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: Params = None,
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        tool_choice: str | dict[str, Any] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answers conversations: as `LLM.chat`."""
        return await self._whole(*self.llm._chats(messages, sampling_params, tools, tool_choice, chat_template_kwargs))

    async def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> AsyncGenerator[Piece, None]:
        """Goes on with a text, and gives each piece as it comes."""
        asked = await asyncio.to_thread(self.llm._texts, [prompt], sampling_params)
        async with aclosing(self._pieces(*asked)) as pieces:
            async for piece in pieces:
                yield piece

    async def stream_chat(
        self,
        messages: Messages,
        sampling_params: SamplingParams | None = None,
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        tool_choice: str | dict[str, Any] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> AsyncGenerator[Piece, None]:
        """Answers a conversation, and gives each piece as it comes."""
        asked = self.llm._chats([messages], sampling_params, tools, tool_choice, chat_template_kwargs)
        async with aclosing(self._pieces(*asked)) as pieces:
            async for piece in pieces:
                yield piece

    async def exit(self) -> None:
        """Ends the model and gives its memory back."""
        await asyncio.to_thread(self.llm.exit)

    async def request(self, method: str, path: str, headers: list[tuple[bytes, bytes]], body: bytes) -> AsyncGenerator[tuple, None]:
        """Answers a request of the HTTP API: gives `("head", status, headers)`, then `("body", bytes)` as often as there are some, and `("end",)`."""
        watch = self._watch()
        job = await asyncio.to_thread(self.llm._engine().request, method, path, headers, body, watch.bell)
        async with aclosing(watch.come(job)) as all_that_comes:
            async for came in all_that_comes:
                yield came
                if came[0] == "end":
                    return

    async def _whole(self, asking: list, answers: list[Answers]) -> list[RequestOutput]:
        if not asking:
            return []
        results: dict[int, RequestOutput] = {}
        async with aclosing(self._come(asking, answers, True)) as all_that_comes:
            async for index, kind, came in all_that_comes:
                result = _take(answers[index], kind, came)
                if result is not None:
                    results[index] = result
                    if len(results) == len(answers):
                        break
        return [results[index] for index in range(len(answers))]

    async def _pieces(self, asking: list, answers: list[Answers]) -> AsyncGenerator[Piece, None]:
        pieces = Pieces()
        async with aclosing(self._come(asking, answers, False)) as all_that_comes:
            async for _, kind, came in all_that_comes:
                if kind == "failed":
                    raise came
                if kind == "ended":
                    return
                yield pieces.take(came)

    async def _come(self, asking: list, answers: list[Answers], whole: bool) -> AsyncGenerator[tuple, None]:
        watch = self._watch()
        # A grammar or a long conversation takes a while to read.
        job = await asyncio.to_thread(self.llm._ask, asking, answers, whole, watch.bell)
        async with aclosing(watch.come(job)) as all_that_comes:
            async for came in all_that_comes:
                yield came

    def _watch(self) -> _Watch:
        loop = asyncio.get_running_loop()
        watch = self._loops.get(loop)
        if watch is None:
            watch = self._loops[loop] = _Watch(loop)
        return watch


class _Watch:
    """Wakes the tasks of a loop that wait for the engine."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.bell = Bell()
        self.waiting: dict[int, asyncio.Event] = {}
        loop.add_reader(self.bell.fileno(), self._rung, self.bell, self.waiting)

    @staticmethod
    def _rung(bell: Bell, waiting: dict[int, asyncio.Event]) -> None:
        for number in bell.rung():
            if number in waiting:
                waiting[number].set()

    async def come(self, job: Job | ResponseJob) -> AsyncGenerator[tuple, None]:
        number, event = job.number or 0, asyncio.Event()
        self.waiting[number] = event
        try:
            while True:
                # What came before the event was there rang for nobody.
                for came in job.poll():
                    yield came
                await event.wait()
                event.clear()
        finally:
            del self.waiting[number]
            job.cancel()
