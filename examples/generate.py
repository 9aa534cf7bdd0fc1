#!/usr/bin/env python3
"""Streams an answer from a nosa-coordinator, and goes on by itself when the coordinator dies.

    pip install -r examples/requirements.txt
    python examples/generate.py --server 127.0.0.1:50051 "Why is the sky blue?"

The code of the API is generated from proto/ when the program starts.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc

PROTO = Path(__file__).resolve().parent.parent / "proto"
sys.path.insert(0, str(PROTO))
messages, services = grpc.protos_and_services("nosa/v1/inference.proto")

ENDED_EARLY = (grpc.StatusCode.UNAVAILABLE,)
NOT_READY = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.NOT_FOUND,  # a coordinator that just started knows no model yet
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)


def deltas(
    servers: list[str], request: messages.GenerateRequest, patience_s: float
) -> Iterator[messages.Delta]:
    """The Deltas of a generation, each token once, whatever becomes of a single coordinator.

    When a stream breaks, the request is sent again, to the next server, with the tokens that were
    delivered and the seed that was in use: the rest is what would have come. A coordinator that
    lost the connection alone may hold the request for a moment more: its id is "already running".
    """
    accepted, broken, attempt = False, 0.0, 0
    while True:
        heard = False
        with grpc.insecure_channel(servers[attempt % len(servers)]) as channel:
            try:
                for event in services.InferenceStub(channel).Generate(request):
                    heard = True
                    if event.HasField("accepted"):
                        accepted = True
                        request.request_id = event.accepted.request_id
                        request.seed = event.accepted.seed
                    elif event.HasField("delta"):
                        request.resume_token_ids.extend(event.delta.token_ids)
                        yield event.delta
                return
            except grpc.RpcError as error:
                code = error.code()
                attempt += 1
                if heard:
                    broken = time.monotonic()
                if not accepted and (code not in ENDED_EARLY or attempt >= len(servers)):
                    raise
                held = (
                    not heard
                    and code == grpc.StatusCode.INVALID_ARGUMENT
                    and "is already running" in (error.details() or "")
                )
                if accepted and (
                    not (held or code in (ENDED_EARLY if heard else NOT_READY))
                    or time.monotonic() - broken > patience_s
                ):
                    raise
        if accepted:
            print(f"[{code.name}: going on]", file=sys.stderr)
            time.sleep(0.2)


def main() -> int:
    """Prints the text as it comes."""
    parser = argparse.ArgumentParser(description="stream an answer from a nosa-coordinator")
    parser.add_argument("prompt")
    parser.add_argument("--server", default="127.0.0.1:50051", help="HOST:PORT[,...]")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, help="default: as the model's settings say")
    parser.add_argument("--plain", action="store_true", help="continue the text; default: a chat")
    parser.add_argument("--patience", type=float, default=30, help="seconds to try to go on")
    options = parser.parse_args()

    request = messages.GenerateRequest(max_tokens=options.max_tokens)
    if options.plain:
        request.text = options.prompt
    else:
        request.chat.messages.add(role="user", content=options.prompt)
    if options.temperature is not None:
        request.sampling.temperature = options.temperature
    try:
        for delta in deltas(options.server.split(","), request, options.patience):
            print(delta.text, end="", flush=True)
    except grpc.RpcError as error:
        print(f"\n{error.code().name}: {error.details()}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
