"""Every API of nosa-coordinator with what it must refuse: a status that names the field, and the
server lives. NOSA_MUTATIONS is the number of spoilt messages of each method."""

from __future__ import annotations

import math
import os
import random
import socket
import struct
import time
from collections import Counter
from typing import Any

import coordinator as cluster
import rpc
import tap
from api_corpus import BAD_FLOATS, HEALTH, MUTATIONS, UINT32_MAX, Corpus, bad_floats
from coordinator import Worker, message
from coordinator_case import (
    CHAT,
    IDS,
    MESSAGE,
    PATIENCE_S,
    REQUEST,
    SAMPLING,
    Case,
    Code,
)


class Api(Corpus, Case):
    """A coordinator and a worker."""

    services = (cluster.INFERENCE, cluster.ADMIN, "nosa.cluster.v1.Registry", HEALTH)
    arguments = ("--worker-timeout", "30", "--max-prompt-bytes", "64K")

    def setUp(self) -> None:
        """With a worker."""
        super().setUp()
        self.one = self.worker(delay_s=0)

    def tearDown(self) -> None:
        """Whatever came, it serves."""
        self.assertEqual(len(self.generate().ids), 10)
        self.wait_quiet()

    def test_strings(self) -> None:
        """Invalid UTF-8 in every string field of every request."""
        self.assertGreaterEqual(self.check_strings(), 39)

    def test_sampling(self) -> None:
        """NaN, infinities, negatives and too much in every number."""
        for field, value in bad_floats(SAMPLING()):
            sampling = SAMPLING(**{field: value})
            self.refuse(Code.INVALID_ARGUMENT, f"sampling.{field}: ", sampling=sampling)
        for field, value in (("top_p", 1.001), ("min_p", 1.001), ("temperature", 100.1)):
            sampling = SAMPLING(**{field: value})
            self.refuse(Code.INVALID_ARGUMENT, f"sampling.{field}: ", sampling=sampling)
        self.refuse(Code.INVALID_ARGUMENT, "sampling.top_k: ", sampling=SAMPLING(top_k=UINT32_MAX))
        for sampling in (
            SAMPLING(top_p=1, min_p=1, temperature=100, top_k=(1 << 31) - 1),
            SAMPLING(seed=(1 << 64) - 1, presence_penalty=-100, frequency_penalty=100),
            SAMPLING(temperature=1e-45, top_p=1e-45, repetition_penalty=100),
        ):
            self.generate(sampling=sampling)
            self.assertEqual(self.one.requests[-1].sampling.top_p, sampling.top_p)

    def test_counts_at_their_limits(self) -> None:
        """The last value that is taken and the first that is not."""
        bad = Code.INVALID_ARGUMENT
        user = MESSAGE(role="user", content="x")
        for word, taken, refused in (
            ("stop: ", {"stop": ["zzz"] * 64}, {"stop": ["zzz"] * 65}),
            ("stop: ", {}, {"stop": ["x"] * 10000}),
            ("stop[0]: ", {"stop": ["z" * 1024]}, {"stop": ["z" * 1025]}),
            ("stop[1]: ", {}, {"stop": ["x", ""]}),
            (
                "stop_token_ids: ",
                {"stop_token_ids": [200] * 1024},
                {"stop_token_ids": [200] * 1025},
            ),
            ("stop_token_ids[1]: ", {"stop_token_ids": [255]}, {"stop_token_ids": [1, 256]}),
            ("logprobs: ", {"logprobs": 20}, {"logprobs": 21}),
            ("logprobs: ", {}, {"logprobs": UINT32_MAX}),
            ("request_id: ", {"request_id": "x" * 256}, {"request_id": "x" * 257}),
            ("request_id: ", {"request_id": "é漢 😀"}, {"request_id": "a\nb"}),
            ("cache_salt: ", {"cache_salt": "x" * 1024}, {"cache_salt": "x" * 1025}),
            ("max_tokens: ", {"max_tokens": 1}, {"max_tokens": 0}),
            ("text: ", {"text": "x"}, {"text": ""}),
            (
                "token_ids.ids[0]: ",
                {"token_ids": IDS(ids=[255])},
                {"token_ids": IDS(ids=[UINT32_MAX])},
            ),
            ("token_ids.ids: ", {"token_ids": IDS(ids=[0])}, {"token_ids": IDS()}),
            (
                "token_ids.ids: ",
                {"token_ids": IDS(ids=[5] * (cluster.CONTEXT - 1))},
                {"token_ids": IDS(ids=[5] * cluster.CONTEXT)},
            ),
            ("chat.messages: ", {"chat": CHAT(messages=[user])}, {"chat": CHAT()}),
            ("chat.messages: ", {}, {"chat": CHAT(messages=[user] * 4097)}),
            (
                "chat.messages[1].role: ",
                {"chat": CHAT(messages=[MESSAGE(role="system", content=""), user])},
                {"chat": CHAT(messages=[user, MESSAGE(role="tool", content="x")])},
            ),
            (
                "resume_token_ids[2]: ",
                {"resume_token_ids": [97] * 9},
                {"resume_token_ids": [1, 2, 256]},
            ),
            ("resume_token_ids: ", {}, {"resume_token_ids": [1] * (cluster.CONTEXT + 1)}),
        ):
            self.refuse(bad, word, **refused)
            self.generate(**taken)
        for priority in (-(1 << 31), (1 << 31) - 1):
            self.generate(priority=priority)
            self.assertEqual(self.one.requests[-1].priority, priority)
        answer = self.generate(max_tokens=UINT32_MAX, token_ids=IDS(ids=[5] * 4090))
        self.assertEqual(len(answer.ids), 6)
        code, text = rpc.status_of(
            lambda: list(self.inference.Generate(REQUEST(max_tokens=1), timeout=PATIENCE_S))
        )
        self.assertEqual((code, text[:6]), (bad, "input:"))

    def test_large_prompts(self) -> None:
        """Beyond --max-prompt-bytes, and beyond what a message may have."""
        for field in ("text", "token_ids", "chat"):
            for count in ((64 << 10) + 1, 64 << 20):
                fields = {
                    "text": {"text": "x" * count},
                    "token_ids": {"token_ids": IDS(ids=[5] * (count // 4 + 1))},
                    "chat": {"chat": CHAT(messages=[MESSAGE(role="user", content="x" * count)])},
                }[field]
                self.refuse(Code.RESOURCE_EXHAUSTED, "--max-prompt-bytes", **fields)
        self.refuse(Code.RESOURCE_EXHAUSTED, "resume_token_ids: ", resume_token_ids=[1] * 20000)
        tokenize = rpc.message("nosa.v1.TokenizeRequest")
        detokenize = rpc.message("nosa.v1.DetokenizeRequest")
        for call, request in (
            (self.inference.Tokenize, tokenize(text="x" * 70000)),
            (self.inference.Detokenize, detokenize(token_ids=[1] * 20000)),
        ):
            code, text = rpc.status_of(lambda: call(request, timeout=PATIENCE_S))
            self.assertEqual(code, Code.RESOURCE_EXHAUSTED)
            self.assertIn("--max-prompt-bytes", text)
        count = 100 << 20
        whole = REQUEST(text="x" * count, max_tokens=10).ByteSize()
        words = f"Received message larger than max ({whole} vs. "
        self.refuse(Code.RESOURCE_EXHAUSTED, words, text="x" * count)
        many = b"\x2a\x00" * (1 << 20)  # a million empty chats in one request
        call = self.call(f"/{cluster.INFERENCE}/Generate", streams=True)
        code, _ = rpc.status_of(lambda: call(many, timeout=PATIENCE_S))
        self.assertIn(code, (Code.INVALID_ARGUMENT, Code.RESOURCE_EXHAUSTED))

    def test_join_and_heartbeat(self) -> None:
        """What workers may not say, by its field."""
        bad = Code.INVALID_ARGUMENT
        other = Worker(self.coordinator.address, "w1", join=False)
        self.addCleanup(other.__exit__)
        whole = other.join_request()
        changes: list[tuple[str, Any]] = [
            ("worker_id: ", lambda r: setattr(r, "worker_id", "")),
            ("worker_id: ", lambda r: setattr(r, "worker_id", "x" * 257)),
            ("worker_id: ", lambda r: setattr(r, "worker_id", "a\nb")),
            ("incarnation: ", lambda r: setattr(r, "incarnation", 0)),
            ("address: ", lambda r: setattr(r, "address", "")),
            ("address: ", lambda r: setattr(r, "address", ":50")),
            ("address: ", lambda r: setattr(r, "address", "host:0")),
            ("address: ", lambda r: setattr(r, "address", "host:99999")),
            ("state: ", lambda r: setattr(r, "state", 0)),
            ("state: ", lambda r: setattr(r, "state", 5)),
            ("state: ", lambda r: setattr(r, "state", 77)),
            ("fingerprint: ", lambda r: setattr(r, "fingerprint", "x" * 1025)),
            ("device: ", lambda r: setattr(r, "device", "a\x7f")),
            ("version: ", lambda r: setattr(r, "version", "x" * 2000)),
            ("model: ", lambda r: r.ClearField("model")),
            ("model.id: ", lambda r: setattr(r.model, "id", "")),
            ("model.model_hash: ", lambda r: setattr(r.model, "model_hash", b"x" * 31)),
            ("model.files_hash: ", lambda r: setattr(r.model, "files_hash", b"")),
            ("model.vocab_size: ", lambda r: setattr(r.model, "vocab_size", 0)),
            ("model.vocab_size: ", lambda r: setattr(r.model, "vocab_size", UINT32_MAX)),
            ("model.max_context_tokens: ", lambda r: setattr(r.model, "max_context_tokens", 0)),
            ("model.block_tokens: ", lambda r: setattr(r.model, "block_tokens", 0)),
            ("model.block_tokens: ", lambda r: setattr(r.model, "block_tokens", UINT32_MAX)),
            ("model.eos_token_ids: ", lambda r: r.model.eos_token_ids.extend([1] * 1024)),
            ("capacity.tiers[1].tier: ", lambda r: r.capacity.tiers.add(tier=9)),
            ("capacity.tiers[1].tier: ", lambda r: r.capacity.tiers.add(tier=1)),
            ("load.tiers[0].tier: ", lambda r: r.load.tiers.add(tier=0)),
        ]
        for rate in ("prefill", "decode", "host", "nvme"):
            for value in (math.nan, math.inf, -1.0):
                name = f"{rate}_tokens_per_s"
                changes.append((f"load.{name}: ", lambda r, n=name, v=value: setattr(r.load, n, v)))
        for value in BAD_FLOATS:
            changes.append(
                (
                    "model.default_sampling: sampling.top_p: ",
                    lambda r, v=value: setattr(r.model.default_sampling, "top_p", v),
                )
            )
        for word, change in changes:
            request = type(whole)()
            request.CopyFrom(whole)
            change(request)
            code, text = rpc.status_of(lambda: other.registry.Join(request, timeout=PATIENCE_S))
            self.assertEqual((code, text[: len(word)]), (bad, word), text)
        self.assertEqual(list(self.states()), ["w0"])
        beat = message("HeartbeatRequest")(
            worker_id="w0", incarnation=self.one.incarnation, coordinator_epoch=self.one.epoch,
            sequence=1 << 40, state=2,
        )  # fmt: skip
        for word, change in (
            ("state: ", lambda r: setattr(r, "state", 0)),
            ("load.nvme_tokens_per_s: ", lambda r: setattr(r.load, "nvme_tokens_per_s", math.nan)),
            ("prefixes.tiers[0].tier: ", lambda r: r.prefixes.tiers.add(tier=4)),
            ("prefixes: ", lambda r: r.prefixes.tiers.add(tier=1, added=range(65537))),
        ):
            request = type(beat)()
            request.CopyFrom(beat)
            change(request)
            code, text = rpc.status_of(
                lambda: self.one.registry.Heartbeat(request, timeout=PATIENCE_S)
            )
            self.assertEqual((code, text[: len(word)]), (bad, word), text)
        self.assertEqual(self.states()["w0"], 2)

    def test_operators_calls(self) -> None:
        """Names that are not there."""
        for name, word in (
            ("Drain", "worker_id"),
            ("Resume", "worker_id"),
            ("Cancel", "request_id"),
        ):
            for text in ("", "nobody", "x" * 100000):
                request = rpc.message(f"nosa.v1.{name}Request")(**{word: text})
                code, said = rpc.status_of(
                    lambda: getattr(self.admin, name)(request, timeout=PATIENCE_S)
                )
                self.assertEqual(code, Code.NOT_FOUND, said)
                self.assertIn(word, said)

    def test_mutated_messages(self) -> None:
        """Random bytes and mutations of whole messages, for each method."""
        sampling = SAMPLING(temperature=1, top_p=0.5, seed=3)
        seeds = {
            "GenerateRequest": REQUEST(
                text="hello", max_tokens=3, sampling=sampling, stop=["ab", "cd"],
                stop_token_ids=[1, 2], logprobs=1, request_id="seed", resume_token_ids=[97],
            ),
            "JoinRequest": self.one.join_request(),
            "TokenizeRequest": rpc.message("nosa.v1.TokenizeRequest")(
                chat=CHAT(messages=[MESSAGE(role="user", content="hi")])
            ),
            "DetokenizeRequest": rpc.message("nosa.v1.DetokenizeRequest")(token_ids=range(200)),
        }  # fmt: skip
        seeds["JoinRequest"].worker_id = "w9"
        codes = sum(self.check_mutated(seeds).values(), Counter())
        self.assertGreater(codes[Code.INVALID_ARGUMENT], MUTATIONS)
        self.assertGreater(codes[Code.OK], 10)

    def test_mutated_reflection(self) -> None:
        """Spoilt questions on its streams."""
        self.check_mutated_streams()

    def test_port_of_garbage(self) -> None:
        """Bytes that are no gRPC, and connections that stay half open."""
        draw = random.Random(23)
        opening = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        frame = struct.pack(">I", 4)[1:] + b"\x04\x00\x00\x00\x00\x00"
        samples = [
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + draw.randbytes(100),
            opening,
            opening + frame + draw.randbytes(400),
            opening + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",
            *(draw.randbytes(draw.randrange(1, 2000)) for _ in range(30)),
        ]
        ports = (self.coordinator.port, self.coordinator.http)
        half_open = []
        for port in ports:
            for sample in samples:
                connection = socket.create_connection(("127.0.0.1", port), 5)
                half_open.append(connection)
                connection.settimeout(0.02)
                try:
                    connection.sendall(sample)
                    connection.recv(100)
                except OSError:
                    pass
        self.generate()
        self.assertEqual(self.get("healthz")[0], 200)
        for connection in half_open:
            connection.close()

    def test_client_vanishes(self) -> None:
        """Connections that are reset in the middle of a stream: its run ends."""
        self.one.delay_s = 0.01
        for _ in range(5):
            with self.coordinator.channel() as channel:
                service = rpc.Service(channel, cluster.INFERENCE)
                call = service.Generate(REQUEST(text="hello", max_tokens=3000), timeout=60)
                next(call)
        rpc.eventually(lambda: self.one.active == 0, "the runs ended", PATIENCE_S)
        self.one.delay_s = 0
        time.sleep(0.1)


class LargestPrompts(Case):
    """Prompts as large as --max-prompt-bytes can be made."""

    arguments = ("--worker-timeout", "30", "--max-prompt-bytes", "64M")

    def test_far_too_long(self) -> None:
        """Texts of NOSA_PROMPT_MIB are refused by their field; others are served meanwhile."""
        self.worker(delay_s=0)
        size = int(os.environ.get("NOSA_PROMPT_MIB", "2")) << 20
        draw = random.Random(31)
        words = " ".join("ab" * draw.randrange(1, 5) for _ in range(size // 4))[:size]
        for text in ("x" * size, words, "\n" * size, "漢" * (size // 3)):
            call = self.start(text=text, timeout_s=300)
            start = time.monotonic()
            self.assertEqual(len(self.generate().ids), 10)
            self.assertLess(time.monotonic() - start, 5)
            code, said = rpc.status_of(lambda: list(call))
            self.assertEqual(code, Code.INVALID_ARGUMENT)
            self.assertRegex(said, "^text: .* model's context")
        self.wait_quiet()


if __name__ == "__main__":
    tap.main()
