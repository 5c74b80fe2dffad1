"""Client libraries: what each is used for, against the demo model."""

import asyncio
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

MODEL = "demo"
SAY = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hast seen the white whale?"}]


class Whale(BaseModel):
    model_config = ConfigDict(extra="forbid")
    colour: Literal["white", "grey"]
    length: int = Field(ge=1, le=99)


PARAMETERS = {
    "type": "object",
    "properties": {"colour": {"enum": ["white", "grey"]}, "length": {"type": "integer", "minimum": 1, "maximum": 99}},
    "required": ["colour", "length"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "look_out", "description": "Reports a whale.", "parameters": PARAMETERS}}


def openai_sdk(server, key):
    import openai

    client = openai.OpenAI(base_url=server.base + "/v1", api_key=key, max_retries=0)
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    whole = client.chat.completions.create(model=MODEL, messages=SAY, max_tokens=12, temperature=0, n=2, logprobs=True, top_logprobs=3)
    assert len(whole.choices) == 2 and whole.choices[0].message.content
    assert len(whole.choices[0].logprobs.content[0].top_logprobs) == 3
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    pieces = list(client.chat.completions.create(model=MODEL, messages=SAY, max_tokens=12, temperature=0, stream=True, stream_options={"include_usage": True}))
    said = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert said == whole.choices[0].message.content and pieces[-1].usage.completion_tokens > 0
    with client.chat.completions.stream(model=MODEL, messages=SAY, max_tokens=12, temperature=0) as stream:
        kinds = {event.type for event in stream}
        assert {"chunk", "content.delta", "content.done"} <= kinds, kinds
        assert stream.get_final_completion().choices[0].message.content == said
    called = client.chat.completions.create(model=MODEL, messages=SAY, tools=[TOOL], tool_choice="required")
    call = called.choices[0].message.tool_calls[0]
    assert called.choices[0].finish_reason == "tool_calls" and call.function.name == "look_out"
    Whale.model_validate_json(call.function.arguments)
    answered = SAY + [called.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "aye"}]
    assert client.chat.completions.create(model=MODEL, messages=answered, tools=[TOOL], max_tokens=8).choices
    parsed = client.chat.completions.parse(model=MODEL, messages=SAY, response_format=Whale)
    assert isinstance(parsed.choices[0].message.parsed, Whale)
    completion = client.completions.create(model=MODEL, prompt="Call me", max_tokens=5, echo=True)
    assert completion.choices[0].text.startswith("Call me")
    response = client.responses.create(model=MODEL, input="Hast seen the whale?", instructions="Be brief.", max_output_tokens=12)
    assert response.output_text and response.status in ("completed", "incomplete")
    events = list(client.responses.create(model=MODEL, input="Hast seen the whale?", max_output_tokens=12, stream=True))
    assert events[0].type == "response.created" and events[-1].type in ("response.completed", "response.incomplete")
    assert isinstance(client.responses.parse(model=MODEL, input="Hast seen the whale?", text_format=Whale).output_parsed, Whale)
    for wrong, error in [({"temperature": -1}, openai.BadRequestError), ({"messages": []}, openai.BadRequestError)]:
        try:
            client.chat.completions.create(**{"model": MODEL, "messages": SAY, **wrong})
            raise AssertionError(f"{wrong} is taken")
        except error:
            pass
    try:
        openai.OpenAI(base_url=server.base + "/v1", api_key="wrong", max_retries=0).models.list()
        raise AssertionError("a wrong key is taken")
    except openai.AuthenticationError:
        pass

    async def many():
        wide = openai.AsyncOpenAI(base_url=server.base + "/v1", api_key=key)
        asked = [wide.chat.completions.create(model=MODEL, messages=SAY, max_tokens=12, temperature=0) for _ in range(8)]
        return {answer.choices[0].message.content for answer in await asyncio.gather(*asked)}

    assert asyncio.run(many()) == {said}


def anthropic_sdk(server, key):
    import anthropic

    client = anthropic.Anthropic(base_url=server.base, api_key=key, max_retries=0)
    ask = {"model": MODEL, "max_tokens": 12, "system": "Be brief.", "messages": SAY[1:], "extra_body": {"temperature": 0}}
    whole = client.messages.create(**ask)
    assert whole.content[0].type == "text" and whole.stop_reason in ("end_turn", "max_tokens", "stop_sequence")
    with client.messages.stream(**ask) as stream:
        assert "".join(stream.text_stream) == whole.content[0].text
        assert stream.get_final_message().usage.output_tokens == whole.usage.output_tokens
    tool = {"name": "look_out", "input_schema": PARAMETERS}
    called = client.messages.create(**{**ask, "max_tokens": 100}, tools=[tool], tool_choice={"type": "any"})
    assert called.stop_reason == "tool_use", called
    Whale.model_validate(called.content[-1].input)
    result = {"type": "tool_result", "tool_use_id": called.content[-1].id, "content": "aye"}
    turns = ask["messages"] + [{"role": "assistant", "content": called.content}, {"role": "user", "content": [result]}]
    assert client.messages.create(**{**ask, "messages": turns}, tools=[tool]).content
    assert client.messages.count_tokens(model=MODEL, messages=SAY[1:]).input_tokens > 0
    try:
        client.messages.create(model=MODEL, max_tokens=5, messages=[])
        raise AssertionError("no messages are taken")
    except anthropic.BadRequestError:
        pass


def ollama_client(server, key):
    import ollama

    client = ollama.Client(host=server.base, headers={"Authorization": f"Bearer {key}"})
    assert [model.model for model in client.list().models] and client.ps().models
    assert client.show(MODEL).capabilities
    options = {"temperature": 0, "num_predict": 12}
    whole = client.chat(model=MODEL, messages=SAY, options=options)
    assert whole.message.content and whole.done and whole.eval_count > 0
    pieces = list(client.chat(model=MODEL, messages=SAY, options=options, stream=True))
    assert "".join(piece.message.content for piece in pieces) == whole.message.content
    assert client.generate(model=MODEL, prompt="Call me", options=options).response
    held = client.chat(model=MODEL, messages=SAY, format=Whale.model_json_schema())
    Whale.model_validate_json(held.message.content)


def langchain(server, key):
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model=MODEL, base_url=server.base + "/v1", api_key=key, temperature=0, max_tokens=200)
    said = model.invoke("Hast seen the white whale?")
    assert said.content and said.usage_metadata["output_tokens"] > 0
    assert "".join(piece.content for piece in model.stream("Hast seen the white whale?")) == said.content
    for method in ["function_calling", "json_schema"]:
        assert isinstance(model.with_structured_output(Whale, method=method).invoke("Hast seen it?"), Whale), method

    called = model.bind_tools([Whale], tool_choice="Whale").invoke("Look out!")
    Whale.model_validate(called.tool_calls[0]["args"])


def litellm_client(server, key):
    import litellm

    litellm.telemetry = False
    for name, base in [("openai/demo", server.base + "/v1"), ("anthropic/demo", server.base), ("ollama_chat/demo", server.base)]:
        ask = {"model": name, "api_base": base, "api_key": key, "messages": SAY, "max_tokens": 12, "temperature": 0}
        whole = litellm.completion(**ask)
        assert whole.choices[0].message.content and whole.usage.completion_tokens > 0, name
        pieces = [piece.choices[0].delta.content or "" for piece in litellm.completion(**ask, stream=True)]
        assert "".join(pieces) == whole.choices[0].message.content, name
    called = litellm.completion(model="openai/demo", api_base=server.base + "/v1", api_key=key, messages=SAY, tools=[TOOL], tool_choice="required")
    Whale.model_validate_json(called.choices[0].message.tool_calls[0].function.arguments)


def instructor_client(server, key):
    import instructor
    import openai

    for mode in [instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA, instructor.Mode.JSON]:
        client = instructor.from_openai(openai.OpenAI(base_url=server.base + "/v1", api_key=key), mode=mode)
        if mode == instructor.Mode.JSON:
            # This holds the answer to any object only.
            continue
        whale = client.chat.completions.create(model=MODEL, messages=SAY, response_model=Whale, max_retries=0)
        assert isinstance(whale, Whale), mode


def agents(server, key):
    import openai
    from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, function_tool, set_tracing_disabled

    set_tracing_disabled(True)
    seen = []

    @function_tool
    def look_out(colour: Literal["white", "grey"]) -> str:
        """Reports a whale."""
        seen.append(colour)
        return f"{colour} it is"

    client = openai.AsyncOpenAI(base_url=server.base + "/v1", api_key=key)
    for kind in [OpenAIChatCompletionsModel, OpenAIResponsesModel]:
        settings = ModelSettings(tool_choice="required", temperature=0)
        agent = Agent(name="lookout", instructions="Look out.", tools=[look_out], tool_use_behavior="stop_on_first_tool", model=kind(MODEL, client), model_settings=settings)
        before = len(seen)
        result = Runner.run_sync(agent, "What do you see?", max_turns=3)
        assert result.final_output == f"{seen[-1]} it is" and len(seen) == before + 1, kind
        typed = Agent(name="reporter", instructions="Report.", output_type=Whale, model=kind(MODEL, client))
        assert isinstance(Runner.run_sync(typed, "What do you see?", max_turns=1).final_output, Whale), kind


CHECKS = {
    "openai": openai_sdk,
    "anthropic": anthropic_sdk,
    "ollama": ollama_client,
    "langchain": langchain,
    "litellm": litellm_client,
    "instructor": instructor_client,
    "agents": agents,
}
