"""Replicas of a model behind one address, with Ray Serve: one per GPU, or on the CPU where there is none. They answer the routes of `fuserun serve`.

    python ray_serve.py --model Qwen/Qwen3-0.6B --replicas 4
    serve run ray_serve:build model=Qwen/Qwen3-0.6B replicas=4 device=gpu

A request whose replica dies before it has answered goes to another one: of a whole answer until it is there, of a stream until its first piece.
"""

import argparse
import asyncio
import json
import os
import signal

import ray
from ray import serve
from ray.exceptions import RayActorError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from fuserun import AsyncLLM

# How often a request is asked again, and how long its replica's successor may take to be known.
TRIES = 6
PAUSE = 0.5
# Headers that are of one connection.
HOP = {b"connection", b"content-length", b"keep-alive", b"transfer-encoding"}
CUT_OFF = {"error": {"message": "the replica that answered has died: ask again", "type": "server_error", "param": None, "code": None}}


@serve.deployment
class Replica:
    """A model on one GPU, or on the CPU."""

    def __init__(self, model, device, slots, threads):
        self.model = AsyncLLM(model, device=device, max_num_seqs=slots, threads=threads)

    async def answer(self, method, path, headers, body):
        """The response to a request: its head, parts of its body, its end."""
        async for part in self.model.request(method, path, headers, body):
            yield part

    def check_health(self):
        """Raises where the model cannot be asked any more: Ray starts another replica then."""
        self.model.llm.encode("")

    def process(self):
        """The number of its process."""
        return os.getpid()


@serve.deployment
class Front:
    """Hands requests to replicas, and asks again where one has died."""

    def __init__(self, replica):
        self.replica = replica.options(stream=True, method_name="answer")

    async def __call__(self, request: Request) -> Response:
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        asked = request.method, path, [(name, value) for name, value in request.headers.raw if name not in HOP], await request.body()
        for attempt in range(TRIES):
            response = self.replica.remote(*asked)
            try:
                _, status, headers = await anext(response)
                headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers if name not in HOP}
                if headers.get("content-type", "").startswith(("text/event-stream", "application/x-ndjson")):
                    first = await anext(response)
                    return StreamingResponse(self.rest(first, response), status, headers)
                body = b"".join([part[1] async for part in response if part[0] == "body"])
                return Response(body, status, headers)
            except (RayActorError, StopAsyncIteration):
                response.cancel()
                await asyncio.sleep(PAUSE * attempt)
        return JSONResponse(CUT_OFF, 503, {"retry-after": "5"})

    async def rest(self, first, response):
        """The body of a stream that has begun: if its replica dies the stream says so, and ends."""
        try:
            if first[0] == "body":
                yield first[1]
            async for part in response:
                if part[0] == "body":
                    yield part[1]
        except RayActorError:
            yield f"data: {json.dumps(CUT_OFF)}\n\n".encode()
        finally:
            response.cancel()


def build(args):
    """The application; `args` are those of the command, by their names. `serve run` calls it before it knows the cluster: name the device there."""
    gpus = int(ray.cluster_resources().get("GPU", 0)) if ray.is_initialized() else 0
    device = args.get("device") or ("gpu" if gpus else "cpu")
    on_gpu = device != "cpu"
    replicas, slots = int(args.get("replicas") or max(gpus, 1)), int(args.get("slots") or (8 if on_gpu else 4))
    # A replica on a GPU sees no other one. On the CPU several share the cores.
    resources = {"num_gpus": 1} if on_gpu else {"num_cpus": float(args.get("cpus") or 1)}
    threads = None if on_gpu else max(1, round(float(args.get("cpus") or 1)))
    replica = Replica.options(
        num_replicas=replicas,
        ray_actor_options=resources,
        # As many as have a slot, and as many that wait for one.
        max_ongoing_requests=2 * slots,
        health_check_period_s=2,
        graceful_shutdown_timeout_s=30,
    ).bind(args.get("model"), device, slots, threads)
    return Front.options(max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0.1}).bind(replica)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="the demo model where none is given")
    parser.add_argument("--replicas", type=int, help="one per GPU where it is not given")
    parser.add_argument("--slots", type=int, help="requests side by side in a replica")
    parser.add_argument("--device", help="gpu or cpu")
    parser.add_argument("--cpus", type=float, default=1, help="cores of a replica on the CPU")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--address", default=os.environ.get("RAY_ADDRESS"), help="a cluster of Ray; one is started here where it is not given")
    args = parser.parse_args()
    ray.init(address=args.address, ignore_reinit_error=True)
    serve.start(http_options={"host": args.host, "port": args.port})
    serve.run(build(vars(args)), name="fuserun", route_prefix="/")
    print(f"ready at http://{args.host}:{args.port}", flush=True)
    signal.sigwait({signal.SIGINT, signal.SIGTERM})
    serve.shutdown()


if __name__ == "__main__":
    main()
