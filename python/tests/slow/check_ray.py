"""python/examples/ray_serve.py on one machine: two replicas on the CPU with the demo model, and one of them killed under load."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ENVIRONMENT = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def cluster():
    port = free_port()
    start = ["start", "--head", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=2", "--include-dashboard=false"]
    start += ["--object-store-memory=100000000", "--disable-usage-stats"]
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    done = subprocess.run([*ray, *start], capture_output=True, text=True, env=ENVIRONMENT, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    yield f"127.0.0.1:{port}"
    subprocess.run([*ray, "stop"], capture_output=True, env=ENVIRONMENT, timeout=120)


@pytest.fixture(scope="module")
def url(cluster):
    port = free_port()
    command = [sys.executable, EXAMPLES / "ray_serve.py", "--address", cluster, "--replicas", 2, "--cpus", 0.5, "--slots", 2, "--device", "cpu", "--port", port]
    server = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    for line in server.stdout:
        if line.startswith("ready at "):
            break
    else:
        pytest.fail("it did not become ready")
    yield line.removeprefix("ready at ").strip()
    server.send_signal(signal.SIGTERM)
    try:
        assert server.wait(timeout=60) == 0
    finally:
        server.kill()


def post(url, path, body):
    """Status and text of an answer."""
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


CHAT = {"messages": [{"role": "user", "content": "Who are you?"}], "temperature": 0, "max_tokens": 8}


def test_clients_of_openais_api_are_answered(url):
    from openai import NotFoundError, OpenAI

    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    whole = client.chat.completions.create(model="demo", **CHAT)
    assert whole.choices[0].message.content and whole.usage.completion_tokens == 8
    pieces = list(client.chat.completions.create(model="demo", stream=True, **CHAT))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole.choices[0].message.content and len(pieces) > 4
    assert [model.id for model in client.models.list()] == ["demo"]
    with pytest.raises(NotFoundError):
        client.models.retrieve("other")
    assert post(url, "/v1/chat/completions", {"messages": "x"})[0] == 400


def replica_process(cluster):
    """The process of one of the replicas."""
    program = "import sys, ray; from ray import serve; ray.init(address=sys.argv[1], log_to_driver=False)\n"
    program += "print('process', serve.get_deployment_handle('Replica', 'fuserun').process.remote().result())"
    done = subprocess.run([sys.executable, "-c", program, cluster], capture_output=True, text=True, env=ENVIRONMENT, timeout=60)
    [line] = [line for line in done.stdout.splitlines() if line.startswith("process ")]
    return int(line.split()[1])


def test_a_replica_that_is_killed_loses_no_request_that_can_be_asked_again(url, cluster):
    victim = replica_process(cluster)
    prompt = {"prompt": "Call me", "temperature": 0, "max_tokens": 40, "ignore_eos": True}
    expected = json.loads(post(url, "/v1/completions", prompt)[1])["choices"][0]["text"]
    answers, lock, until = [], threading.Lock(), time.monotonic() + 12

    def load(stream):
        while time.monotonic() < until:
            answer = post(url, "/v1/completions", prompt | {"stream": stream})
            with lock:
                answers.append((stream, *answer))

    threads = [threading.Thread(target=load, args=[index % 2 == 0]) for index in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(3)
    with lock:
        before = len(answers)
    os.kill(victim, signal.SIGKILL)
    for thread in threads:
        thread.join()
    assert before > 0 and len(answers) > before, "there was load before and after"
    cut = 0
    for stream, status, text in answers:
        assert status == 200, (stream, status, text)
        if not stream:
            assert json.loads(text)["choices"][0]["text"] == expected
            continue
        events = [json.loads(event.removeprefix("data: ")) for event in text.split("\n\n") if event.startswith("data: {")]
        said = "".join(event["choices"][0]["text"] for event in events if event.get("choices"))
        if "error" in events[-1]:
            # It had begun: its client has some of it, and is told.
            cut += 1
            assert said and expected.startswith(said)
        else:
            assert said == expected and text.endswith("data: [DONE]\n\n")
    assert cut <= 2, "no more streams are cut off than the replica had slots"
    # Another one takes its place.
    for _ in range(60):
        processes = {replica_process(cluster) for _ in range(4)}
        if len(processes) == 2 and victim not in processes:
            return
        time.sleep(1)
    pytest.fail(f"there are no two replicas again: {processes}")
