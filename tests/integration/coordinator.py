"""The coordinator as a process, and a worker in Python that it talks to as to a real one.

NOSA_COORDINATOR names the program (ctest sets it). The worker's tokens are a function of the prompt
and the position alone, so that any two workers continue each other's streams exactly.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import threading
import time
from concurrent import futures
from typing import Any

import grpc
import rpc
from program import byte_tokenizer

PROGRAM = os.environ.get("NOSA_COORDINATOR") or str(rpc.BUILD / "bin" / "nosa-coordinator")
INFERENCE = "nosa.v1.Inference"
ADMIN = "nosa.v1.Admin"
VOCAB = 256
CONTEXT = 4096
EOS = 3
LETTERS = b"abcdefghijklmnopqrstuvwxyz"


def message(name: str) -> Any:
    """A message class of the cluster's API."""
    return rpc.message(f"nosa.cluster.v1.{name}")


def token_at(prompt: list[int], index: int) -> int:
    """The output's token at a position: a letter."""
    return LETTERS[(sum(prompt) + 7 * index + index * index) % 26]


def output_of(prompt: list[int], count: int) -> list[int]:
    """The first tokens of a prompt's output."""
    return [token_at(prompt, index) for index in range(count)]


def serialize(answer: Any) -> bytes:
    """A message's bytes; bytes, of a worker that answers garbage, as they are."""
    return answer if isinstance(answer, bytes) else answer.SerializeToString()


def environment() -> dict[str, str]:
    """This process's environment without NOSA_ variables."""
    return {name: value for name, value in os.environ.items() if not name.startswith("NOSA_")}


class Coordinator:
    """The program under test; use as a context."""

    def __init__(self, *arguments: str, tls: bool = False, prefix: tuple[str, ...] = ()) -> None:
        """Starts it on free ports; `prefix`: a command that runs it."""
        listen = () if "--listen" in arguments else ("--listen", "127.0.0.1:0")
        command = [*prefix, PROGRAM, *listen, "--http", "127.0.0.1:0", *arguments]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.fullmatch(r"listening on port (\d+), http on port (\d+)\n", line)
        if not found:
            _, text = self.process.communicate(timeout=rpc.STOP_S)
            raise AssertionError(f"exit {self.process.returncode}: {text}")
        self.port, self.http = int(found[1]), int(found[2])
        self.address = f"localhost:{self.port}" if tls else f"127.0.0.1:{self.port}"
        self.terminated = False
        self.log: list[str] = []
        self.reader = threading.Thread(target=self.read_log, daemon=True)
        self.reader.start()

    def read_log(self) -> None:
        """Keeps what it logs."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)

    def channel(self, *options: tuple[str, Any]) -> grpc.Channel:
        """A new connection without TLS."""
        return grpc.insecure_channel(
            self.address, options=[("grpc.use_local_subchannel_pool", 1), *options]
        )

    def terminate(self) -> None:
        """SIGTERM, once: a second one ends it without grace."""
        if not self.terminated and self.process.poll() is None:
            self.process.terminate()
        self.terminated = True

    def stop(self) -> None:
        """SIGTERM; complains unless it exits with 0."""
        self.terminate()
        try:
            self.process.wait(timeout=rpc.STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self.reader.join(5)
        if self.process.returncode != 0:
            raise AssertionError(f"exit {self.process.returncode}: {''.join(self.log)}")

    def __enter__(self) -> Coordinator:
        """Itself."""
        return self

    def __exit__(self, *unused: object) -> None:
        """Ends it."""
        self.stop()


class Worker:
    """A worker of cluster.proto: joins, sends heartbeats, serves Run."""

    def __init__(self, coordinator: str, worker_id: str, **options: Any) -> None:
        """Serves on a free port and joins; options: model, hash, fingerprint, delay_s, files,
        spoilt_files, attention, context, sampling, queue_full, incarnation, batch, tops, protocol,
        address (that it gives), places (batch_max and queue_max), threads, join (False: the test joins by itself)."""
        self.id = worker_id
        self.options = options
        self.incarnation = options.get("incarnation") or time.time_ns()
        self.delay_s = options.get("delay_s", 0.002)
        self.batch = options.get("batch", 1)
        self.state = 2
        self.requests: list[Any] = []
        self.active = 0
        self.silent = False
        self.aborting = False
        self.cancelling = False
        self.prefixes: list[int] = []
        self.drains: list[int] = []
        self.fenced = False
        self.kv = message("KvTotals")()
        self.used_bytes = 0
        self.server = grpc.server(
            futures.ThreadPoolExecutor(options.get("threads", 64)),
            options=[("grpc.so_reuseport", 0)],
        )
        self.server.add_generic_rpc_handlers([self.handlers()])
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()
        self.channel = grpc.insecure_channel(
            coordinator, options=[("grpc.use_local_subchannel_pool", 1)]
        )
        self.registry = rpc.Service(self.channel, "nosa.cluster.v1.Registry")
        self.stopping = threading.Event()
        self.beat = threading.Thread(target=self.heartbeats, daemon=True)
        self.epoch = 0
        self.sequence = 0
        if options.get("join", True):
            self.join()
            self.beat.start()

    # ---- what it calls ----

    def join_request(self) -> Any:
        """What it says of itself."""
        tier = message("TierCapacity")(tier=1, bytes=1 << 20, blocks=256)
        batch_max, queue_max = self.options.get("places", (32, 64))
        capacity = message("Capacity")(
            batch_max=batch_max, queue_max=queue_max, tensor_parallel=1, tiers=[tier]
        )
        model = self.options.get("model", "demo")
        card = message("ModelCard")(
            id=model,
            model_hash=hashlib.sha256(self.options.get("hash", model).encode()).digest(),
            files_hash=self.files_hash(),
            vocab_size=VOCAB,
            max_context_tokens=self.options.get("context", CONTEXT),
            attention=self.options.get("attention", "full"),
            eos_token_ids=[EOS],
            block_tokens=16,
            default_sampling=self.options.get("sampling"),
        )
        return message("JoinRequest")(
            protocol=self.options.get("protocol", 1),
            version="test",
            worker_id=self.id,
            incarnation=self.incarnation,
            address=self.options.get("address", self.address),
            model=card,
            capacity=capacity,
            fingerprint=self.options.get("fingerprint", "cpu/1"),
            device="cpu",
            state=self.state,
        )

    def files(self) -> list[tuple[str, bytes]]:
        """A tokenizer whose ids are the bytes, with a chat template; or nothing."""
        if not self.options.get("files", True):
            return []
        template = "<|im_start|>{{ message.role }}<|im_end|>"
        return [
            ("tokenizer.json", json.dumps(byte_tokenizer()).encode()),
            ("tokenizer_config.json", json.dumps({"chat_template": template}).encode()),
        ]

    def files_hash(self) -> bytes:
        """Of each file its name, a zero byte and its bytes."""
        digest = hashlib.sha256()
        for name, data in self.files():
            digest.update(name.encode() + b"\0" + data)
        return digest.digest()

    def join(self) -> Any:
        """Joins; the coordinator's answer."""
        answer = self.registry.Join(self.join_request(), timeout=10, wait_for_ready=True)
        self.epoch, self.sequence = answer.coordinator_epoch, 0
        self.heartbeat_s = answer.heartbeat_ms / 1000
        return answer

    def heartbeat(self) -> Any:
        """Sends one."""
        self.sequence += 1
        added = message("TierPrefixes")(tier=1, added=self.prefixes)
        request = message("HeartbeatRequest")(
            worker_id=self.id,
            incarnation=self.incarnation,
            coordinator_epoch=self.epoch,
            sequence=self.sequence,
            state=self.state,
            load=message("Load")(
                running=self.active,
                kv=self.kv,
                tiers=[message("TierLoad")(tier=1, used_bytes=self.used_bytes)],
            ),
            prefixes=message("PrefixDelta")(reset=True, tiers=[added]),
        )
        return self.registry.Heartbeat(request, timeout=5)

    def heartbeats(self) -> None:
        """Until it stops."""
        while not self.stopping.wait(self.heartbeat_s):
            if self.silent or self.fenced:
                continue
            if self.state == 3 and self.active == 0:
                self.state = 4
            try:
                self.heartbeat()
            except grpc.RpcError as error:
                self.fenced = error.code() == grpc.StatusCode.ABORTED
                if error.code() == grpc.StatusCode.NOT_FOUND:
                    self.join()

    # ---- what it serves ----

    def handlers(self) -> Any:
        """Its methods."""
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        table = {}
        for name, make, request in (
            ("Run", stream, "RunRequest"),
            ("FetchModel", stream, "FetchModelRequest"),
            ("DrainWorker", unary, "DrainWorkerRequest"),
            ("ResumeWorker", unary, "ResumeWorkerRequest"),
        ):
            table[name] = make(
                getattr(self, name),
                request_deserializer=message(request).FromString,
                response_serializer=serialize,
            )
        return grpc.method_handlers_generic_handler("nosa.cluster.v1.Worker", table)

    def FetchModel(self, request: Any, context: Any) -> Any:
        """Its files in chunks."""
        chunk = message("FileChunk")
        for name, data in self.files():
            if self.options.get("spoilt_files"):
                data = data.replace(b"a", b"b")
            yield chunk(name=name, data=data[:1000])
            yield chunk(name=name, data=data[1000:])

    def Run(self, request: Any, context: Any) -> Any:
        """Deterministic tokens, one event each (or `batch` of them)."""
        self.requests.append(request)
        if request.incarnation != self.incarnation:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not this incarnation")
        if self.options.get("queue_full"):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full")
        self.active += 1
        try:
            yield from self.events(request, context)
        finally:
            self.active -= 1

    def events(self, request: Any, context: Any) -> Any:
        """The events of a run."""
        event = message("RunEvent")
        prompt, index = list(request.prompt_token_ids), len(request.output_token_ids)
        stops = set(request.stop_token_ids) | (set() if request.ignore_eos else {EOS})
        script = self.options.get("script")
        yield event(started=message("RunStarted")(cached_prompt_tokens=5, queue_ms=1))
        reason = 2
        while index < request.max_tokens and reason == 2:
            time.sleep(self.delay_s)
            if not context.is_active():
                return
            while self.silent:
                time.sleep(0.01)
            if self.cancelling:
                context.abort(grpc.StatusCode.CANCELLED, "ended by an operator")
            if self.aborting:
                context.abort(grpc.StatusCode.ABORTED, "drained")
            ids = []
            while len(ids) < self.batch and index + len(ids) < request.max_tokens:
                at = index + len(ids)
                ids.append(script[at % len(script)] if script else token_at(prompt, at))
                if ids[-1] in stops:
                    reason = 1
                    break
            tokens = message("RunTokens")(first_index=index, token_ids=ids)
            for token in ids if request.logprobs else []:
                logprob = tokens.logprobs.add(token_id=token, logprob=-0.5)
                for _ in range(self.options.get("tops", 1)):
                    logprob.top.add(token_id=token, logprob=-0.5)
            index += len(ids)
            yield event(tokens=tokens)
        usage = rpc.message("nosa.v1.Usage")(kv_gpu_hits=11, kv_host_hits=12)
        yield event(done=message("RunDone")(reason=reason, usage=usage))

    def DrainWorker(self, request: Any, context: Any) -> Any:
        """Notes it and says DRAINING."""
        self.drains.append(request.timeout_ms)
        self.state = 3
        return message("DrainWorkerResponse")(state=3)

    def ResumeWorker(self, request: Any, context: Any) -> Any:
        """Works again."""
        self.state = 2
        return message("ResumeWorkerResponse")(state=2)

    # ---- its end ----

    def leave(self) -> None:
        """Says goodbye, after its last heartbeat."""
        self.stopping.set()
        self.beat.join(10)
        request = message("LeaveRequest")(worker_id=self.id, incarnation=self.incarnation)
        self.registry.Leave(request, timeout=10)

    def kill(self) -> None:
        """Connections break, heartbeats end."""
        self.stopping.set()
        self.server.stop(None)

    def __enter__(self) -> Worker:
        """Itself."""
        return self

    def __exit__(self, *unused: object) -> None:
        """Ends it."""
        self.silent = False
        self.kill()
        self.channel.close()
