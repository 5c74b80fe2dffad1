"""A model that calls tools until it has an answer.

    python agent.py --model Qwen/Qwen3-0.6B "What is 17 times 23, and what day is it?"
"""

import argparse
import ast
import datetime
import json
import operator

from fuserun import LLM, SamplingParams

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def calculate(expression: str) -> str:
    """The value of an expression with + - * /."""

    def value(node):
        if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
            return node.value
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](value(node.left), value(node.right))
        raise ValueError("only numbers and + - * / are understood")

    return str(value(ast.parse(expression, mode="eval").body))


def today() -> str:
    """The date of today."""
    return datetime.date.today().strftime("%A, %d %B %Y")


FUNCTIONS = {"calculate": calculate, "today": today}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "calculate",
            "description": calculate.__doc__,
            "parameters": {
                "type": "object",
                "properties": {"expression": {"type": "string", "pattern": "[0-9]{1,6}( [-+*/] [0-9]{1,6}){1,3}"}},
                "required": ["expression"],
                "additionalProperties": False,
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "today",
            "description": today.__doc__,
            "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
        },
    },
]


def call(function):
    """What a tool gives, or what went wrong: the model reads either."""
    try:
        return FUNCTIONS[function["name"]](**json.loads(function["arguments"]))
    except Exception as error:
        return f"error: {error}"


def answer(llm, question, steps, first):
    """Goes on until the model answers without a call, or has made as many turns as it may."""
    messages = [{"role": "system", "content": "Use the tools. Then answer in a sentence."}, {"role": "user", "content": question}]
    params = SamplingParams(temperature=0, max_tokens=200)
    for step in range(steps):
        choice = first if step == 0 else "none" if step == steps - 1 else "auto"
        said = llm.chat(messages, params, use_tqdm=False, tools=TOOLS, tool_choice=choice)[0].outputs[0]
        messages.append(said.message)
        if not said.tool_calls:
            break
        for tool_call in said.tool_calls:
            result = call(tool_call["function"])
            print(f"{tool_call['function']['name']}({tool_call['function']['arguments']}) = {result}")
            messages.append({"role": "tool", "tool_call_id": tool_call["id"], "content": result})
    return messages


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question")
    parser.add_argument("--model", help="the demo model where none is given")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=5, help="turns of the model at most")
    # A model that is held to a call makes one that can be read, which needs the CPU so far.
    parser.add_argument("--first", default="auto", choices=["auto", "required"], help="whether the first turn must be a call")
    args = parser.parse_args()
    with LLM(args.model, device=args.device) as llm:
        print(answer(llm, args.question, args.steps, args.first)[-1]["content"])


if __name__ == "__main__":
    main()
