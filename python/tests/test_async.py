"""`fuserun.AsyncLLM` and the ASGI application, with the demo model."""

import asyncio
import json
import threading
import time

import pytest

from fuserun import AsyncLLM, SamplingParams
from fuserun.asgi import App

GREEDY = SamplingParams(temperature=0, max_tokens=12)
CALL_ME = ", I say, I have no doubt; but I have"


def test_tasks_wait_beside_each_other_and_the_loop_turns(llm):
    model = AsyncLLM(llm)

    async def main():
        turns, done = 0, False

        async def turn():
            nonlocal turns
            while not done:
                turns += 1
                await asyncio.sleep(0.001)

        turning = asyncio.create_task(turn())
        began = time.monotonic()
        texts = await asyncio.gather(*(model.generate("Call me", GREEDY) for _ in range(5)), model.chat([{"role": "user", "content": "Who?"}], GREEDY))
        done, took = True, time.monotonic() - began
        await turning
        return texts, turns, took

    texts, turns, took = asyncio.run(main())
    assert [outputs[0].text for outputs in texts[:5]] == [CALL_ME] * 5 and texts[5][0].text
    assert turns > took * 50, f"{turns} turns of a millisecond in {took:.2f} s"
    # Another loop has a bell of its own.
    assert asyncio.run(model.generate(["Call me"] * 2, GREEDY))[1].text == CALL_ME


def test_streams_come_piece_by_piece_beside_threads(llm):
    model, threaded = AsyncLLM(llm), []
    thread = threading.Thread(target=lambda: threaded.extend(llm.generate(["Call me"] * 4, GREEDY, use_tqdm=False)))

    async def stream():
        return [piece async for piece in model.stream("Call me", GREEDY)]

    async def main():
        thread.start()
        return await asyncio.gather(*(stream() for _ in range(3)))

    for pieces in asyncio.run(main()):
        assert "".join(pieces) == CALL_ME and len(pieces) > 6 and pieces[-1].finish_reason == "length"
    thread.join()
    assert [output.text for output in threaded] == [CALL_ME] * 4


def test_a_task_that_is_cancelled_gives_its_slots_back(llm):
    model, long = AsyncLLM(llm), SamplingParams(max_tokens=None, ignore_eos=True)

    async def main():
        task = asyncio.create_task(model.generate(["Call me"] * 20, long))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async for _ in model.stream("Call me", long):
            break
        began = time.monotonic()
        await model.generate("Call me", SamplingParams(max_tokens=1))
        return time.monotonic() - began

    assert asyncio.run(main()) < 5, "20 texts of 1000 tokens would take longer"


def test_errors_are_raised_where_they_are_awaited(llm):
    model = AsyncLLM(llm)
    with pytest.raises(ValueError, match="the prompt is empty"):
        asyncio.run(model.generate(""))
    with pytest.raises(ValueError, match="king"):
        asyncio.run(model.chat([{"role": "king", "content": "x"}]))


async def ask(app, method, path, body=b"", leave_after=None):
    """What the application sends for a request; `leave_after`: the client goes after so many messages."""
    sent, waiting = [], [{"type": "http.request", "body": body, "more_body": False}]
    gone = asyncio.Event()

    async def receive():
        if waiting:
            return waiting.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)
        if leave_after is not None and len(sent) >= leave_after:
            gone.set()

    path, _, query = path.partition("?")
    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": query.encode(), "headers": []}
    await app(scope, receive, send)
    return sent


def test_the_routes_of_the_server_answer_without_a_socket(llm):
    app = App(AsyncLLM(llm))
    body = {"messages": [{"role": "user", "content": "Who?"}], "temperature": 0, "max_tokens": 6}

    async def main():
        whole = await ask(app, "POST", "/v1/chat/completions", json.dumps(body).encode())
        streamed = await ask(app, "POST", "/v1/chat/completions", json.dumps(body | {"stream": True}).encode())
        missing = await ask(app, "GET", "/nothing?x=1")
        health = await ask(app, "GET", "/health")
        left = await ask(app, "POST", "/v1/completions", json.dumps({"prompt": "Call me", "max_tokens": 900, "ignore_eos": True, "stream": True}).encode(), 4)
        return whole, streamed, missing, health, left

    whole, streamed, missing, health, left = asyncio.run(main())
    text = json.loads(whole[1]["body"])["choices"][0]["message"]["content"]
    assert whole[0]["status"] == 200 and text == llm.chat(body["messages"], SamplingParams(temperature=0, max_tokens=6), use_tqdm=False)[0].text
    events = b"".join(message["body"] for message in streamed[1:]).decode().split("\n\n")
    pieces = [json.loads(event.removeprefix("data: "))["choices"][0]["delta"].get("content", "") for event in events if event.startswith("data: {")]
    assert "".join(pieces) == text and events[-2] == "data: [DONE]" and len(streamed) > 5
    assert (b"content-type", b"text/event-stream; charset=utf-8") in streamed[0]["headers"]
    assert missing[0]["status"] == 404 and "/nothing" in json.loads(missing[1]["body"])["error"]["message"]
    assert health[0]["status"] == 200 and health[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
    assert 4 <= len(left) < 100, "a client that has gone gets no more"
