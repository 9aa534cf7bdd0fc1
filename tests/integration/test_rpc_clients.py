"""The RPC server against stock gRPC clients: calls, bounds, spoilt input, life and death."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import unittest
from collections.abc import Iterator
from typing import Any

import grpc
import rpc
import tap
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

ECHO = "nosa.test.v1.Echo"
SAY = rpc.message("nosa.test.v1.SayRequest")
COUNT = rpc.message("nosa.test.v1.CountRequest")
STATS = rpc.message("nosa.test.v1.StatsRequest")
Code = grpc.StatusCode
PATIENCE_S = 60 if rpc.SANITIZED else 20

# A client that reads a stream until it is told otherwise.
CLIENT = """
import sys
sys.path.insert(0, sys.argv[2])
import grpc, rpc
count = rpc.message("nosa.test.v1.CountRequest")
channel = grpc.insecure_channel(sys.argv[1])
for message in rpc.Service(channel, "nosa.test.v1.Echo").Count(count(interval_us=2000)):
    if message.index == 0:
        print("reading", flush=True)
"""


def start_client(address: str) -> subprocess.Popen[str]:
    """A process in the middle of a stream."""
    folder = os.path.dirname(os.path.abspath(rpc.__file__))
    client = subprocess.Popen(
        [sys.executable, "-B", "-c", CLIENT, address, folder], stdout=subprocess.PIPE, text=True
    )
    assert client.stdout is not None
    if client.stdout.readline() != "reading\n":
        raise AssertionError("the client did not begin")
    return client


class Case(unittest.TestCase):
    """A test with a server of its own."""

    arguments: tuple[str, ...] = ()

    def setUp(self) -> None:
        """Starts the server."""
        self.server = rpc.Server(*self.arguments)
        self.channel = self.server.channel()
        self.echo = rpc.Service(self.channel, ECHO)

    def tearDown(self) -> None:
        """Nothing may be left over: no call, and a clean end."""
        try:
            if self.server.process.poll() is None:
                rpc.eventually(lambda: self.stats().live == 0, "no call is left", PATIENCE_S)
        finally:
            self.channel.close()
            self.server.__exit__()

    def stats(self) -> Any:
        """What the server has counted."""
        return self.echo.Stats(STATS(), timeout=PATIENCE_S, wait_for_ready=True)

    def assert_serves(self) -> None:
        """A call on a new connection succeeds."""
        with self.server.channel() as channel:
            answer = rpc.Service(channel, ECHO).Say(SAY(text="still here"), timeout=PATIENCE_S)
        self.assertEqual(answer.text, "still here")

    def raw_call(self, payload: bytes, method: str = "Say") -> tuple[grpc.StatusCode, str]:
        """Sends bytes as a request."""
        call = self.channel.unary_unary(
            f"/{ECHO}/{method}", request_serializer=rpc.raw, response_deserializer=rpc.raw
        )
        return rpc.status_of(lambda: call(payload, timeout=PATIENCE_S))


class Calls(Case):
    """What a client sees of calls."""

    def test_unknown_method(self) -> None:
        """A method that is declared but absent, and a service that does not exist."""
        code, text = rpc.status_of(lambda: self.echo.Absent(SAY(), timeout=PATIENCE_S))
        self.assertEqual(code, Code.UNIMPLEMENTED)
        self.assertEqual(text, f"there is no method /{ECHO}/Absent")
        call = self.channel.unary_unary(
            "/no.Such/Method", request_serializer=rpc.raw, response_deserializer=rpc.raw
        )
        code, _ = rpc.status_of(lambda: call(b"", timeout=PATIENCE_S))
        self.assertEqual(code, Code.UNIMPLEMENTED)
        stream = self.channel.stream_stream(
            "/no.Such/Stream", request_serializer=rpc.raw, response_deserializer=rpc.raw
        )
        code, _ = rpc.status_of(lambda: list(stream(iter([b"x"] * 3), timeout=PATIENCE_S)))
        self.assertEqual(code, Code.UNIMPLEMENTED)

    def test_deadline(self) -> None:
        """The client's deadline ends the call on both sides."""
        code, _ = rpc.status_of(lambda: self.echo.Say(SAY(delay_ms=60000), timeout=0.2))
        self.assertEqual(code, Code.DEADLINE_EXCEEDED)
        rpc.eventually(lambda: self.stats().deadlines == 1, "the server counts the deadline")
        call = self.echo.Count(COUNT(interval_us=1000), timeout=0.3)
        code, _ = rpc.status_of(lambda: list(call))
        self.assertEqual(code, Code.DEADLINE_EXCEEDED)
        rpc.eventually(lambda: self.stats().deadlines == 2, "the server counts the deadline")

    def test_cancel_is_seen_at_once(self) -> None:
        """A cancelled stream costs nothing soon afterwards."""
        times = []
        for round_number in range(1, 11):
            call = self.echo.Count(COUNT(interval_us=100))
            next(call)
            start = time.monotonic()
            call.cancel()
            rpc.eventually(
                lambda seen=round_number: self.stats().cancelled == seen, "the cancel is counted"
            )
            times.append(time.monotonic() - start)
        self.assertLess(sorted(times)[5], 3.0 if rpc.SANITIZED else 1.0)

    def test_disconnect(self) -> None:
        """A client that is killed, and one whose channel is closed."""
        client = start_client(self.server.address)
        client.kill()
        client.communicate()
        rpc.eventually(lambda: self.stats().cancelled == 1, "the death is noticed")
        channel = self.server.channel()
        call = rpc.Service(channel, ECHO).Count(COUNT(interval_us=100))
        next(call)
        channel.close()
        rpc.eventually(lambda: self.stats().cancelled == 2, "the close is noticed")

    def test_mirror(self) -> None:
        """A bidirectional call: order, half-close, cancel."""
        texts = [f"text {number}" for number in range(2000)]
        answers = self.echo.Mirror(iter([SAY(text=text) for text in texts]), timeout=PATIENCE_S)
        self.assertEqual([answer.text for answer in answers], texts)
        self.assertEqual(list(self.echo.Mirror(iter([]), timeout=PATIENCE_S)), [])
        gate = threading.Event()

        def slow() -> Iterator[Any]:
            yield SAY(text="one")
            gate.wait(PATIENCE_S)

        call = self.echo.Mirror(slow())
        self.assertEqual(next(call).text, "one")
        call.cancel()
        rpc.eventually(lambda: self.stats().done == 3, "the cancelled call is done")
        gate.set()

    def test_mirror_bad_message_midway(self) -> None:
        """A request that does not parse ends the call and names the field."""
        call = self.channel.stream_stream(
            f"/{ECHO}/Mirror", request_serializer=rpc.raw, response_deserializer=rpc.raw
        )
        answers = call(iter([SAY(text="a").SerializeToString(), b"\x0a\x01\xff"]))
        code, text = rpc.status_of(lambda: list(answers))
        self.assertEqual(code, Code.INVALID_ARGUMENT)
        self.assertEqual(text, "text: not valid UTF-8 (at byte 0)")

    def test_many_streams(self) -> None:
        """512 streams at once, each whole and in order."""

        async def read(echo: rpc.Service, number: int) -> list[int]:
            call = echo.Count(COUNT(count=30 + number % 7, interval_us=1000))
            return [message.index async for message in call]

        async def run() -> list[list[int]]:
            async with grpc.aio.insecure_channel(self.server.address) as channel:
                echo = rpc.Service(channel, ECHO)
                return await asyncio.gather(*(read(echo, number) for number in range(512)))

        for number, indices in enumerate(asyncio.run(run())):
            self.assertEqual(indices, list(range(30 + number % 7)))


class SlowReader(Case):
    """A reader that does not read holds nobody up."""

    arguments = ("--send-queue-max", "40")

    def test_slow_reader_is_paused(self) -> None:
        """Its messages wait up to the bound; another stream runs on; then it gets everything."""
        total, size = 60000, 200
        slow = self.echo.Count(COUNT(count=total, payload_bytes=size), timeout=PATIENCE_S * 3)
        next(slow)
        sent = [-1, 0]

        def settled() -> bool:
            time.sleep(0.2)
            sent.append(self.stats().sent)
            return sent[-1] == sent[-2]

        rpc.eventually(settled, "the writer is paused", PATIENCE_S)
        stats = self.stats()
        self.assertLess(stats.sent, total)
        self.assertGreater(stats.full, 0)
        self.assertEqual(stats.waiting_max, 40)
        if not rpc.SANITIZED:
            self.assertLess(self.server.memory_kib(), 64 << 10)
        other = self.echo.Count(COUNT(count=500), timeout=PATIENCE_S)
        self.assertEqual([message.index for message in other], list(range(500)))
        self.assertEqual([message.index for message in slow], list(range(1, total)))


class Bounds(Case):
    """Sizes and numbers beyond what is allowed."""

    arguments = (
        "--message-bytes-max", "1000000", "--unpacked-bytes-max", "4000000", "--calls-max", "100",
    )  # fmt: skip

    def test_message_too_large(self) -> None:
        """On the wire, and in memory."""
        code, _ = rpc.status_of(lambda: self.echo.Say(SAY(data=b"x" * 1000100), timeout=PATIENCE_S))
        self.assertEqual(code, Code.RESOURCE_EXHAUSTED)
        self.assertEqual(len(self.echo.Say(SAY(data=b"x" * 999000)).data), 999000)
        code, text = self.raw_call(b"\x22\x00" * 400000)
        self.assertEqual(code, Code.RESOURCE_EXHAUSTED)
        self.assertIn("takes more than 4000000 bytes in memory", text)
        self.assert_serves()

    def test_compressed_is_refused(self) -> None:
        """A megabyte of zeros in a kilobyte is not unfolded."""
        before = self.server.memory_kib()
        for method in (grpc.Compression.Gzip, grpc.Compression.Deflate):
            code, _ = rpc.status_of(
                lambda chosen=method: self.echo.Say(
                    SAY(data=bytes(900000)), timeout=PATIENCE_S, compression=chosen
                )
            )
            self.assertEqual(code, Code.UNIMPLEMENTED)
        self.assertLess(self.server.memory_kib() - before, 16 << 10)
        self.assert_serves()

    def test_long_headers(self) -> None:
        """Headers beyond the bound end the call, and perhaps its connection, not the server."""
        with self.server.channel() as channel:
            call = rpc.Service(channel, ECHO).Say
            code, _ = rpc.status_of(
                lambda: call(SAY(), timeout=PATIENCE_S, metadata=[("x-long", "y" * 100000)])
            )
        self.assertEqual(code, Code.RESOURCE_EXHAUSTED)
        self.assert_serves()

    def test_overload(self) -> None:
        """Of 3000 calls at once each is served whole or refused at once."""

        async def call(echo: rpc.Service) -> grpc.StatusCode:
            try:
                answer = await echo.Say(SAY(text="busy", delay_ms=300), timeout=PATIENCE_S * 3)
            except grpc.aio.AioRpcError as error:
                return error.code()
            return Code.OK if answer.text == "busy" else Code.UNKNOWN

        async def run() -> list[grpc.StatusCode]:
            async with grpc.aio.insecure_channel(self.server.address) as channel:
                echo = rpc.Service(channel, ECHO)
                return await asyncio.gather(*(call(echo) for _ in range(3000)))

        codes = asyncio.run(run())
        self.assertGreaterEqual(codes.count(Code.OK), 100)
        self.assertGreater(codes.count(Code.RESOURCE_EXHAUSTED), 0)
        self.assertEqual(codes.count(Code.OK) + codes.count(Code.RESOURCE_EXHAUSTED), 3000)
        rpc.eventually(lambda: self.stats().live == 0, "all calls are done", PATIENCE_S)
        self.assert_serves()


class SpoiltInput(Case):
    """Bytes that are no message, and connections that are no gRPC."""

    def test_fields_are_named(self) -> None:
        """Invalid UTF-8 and NULs, at the top and inside."""
        cases = {
            b"\x0a\x02\xc3\x28": "text: not valid UTF-8 (at byte 0)",
            b"\x0a\x03a\x00b": "text: holds a NUL (at byte 1)",
            b"\x22\x00\x22\x05\x0a\x03ab\xff": "items[1].name: not valid UTF-8 (at byte 2)",
            b"\x22\x05\x12\x03\x1a\x01\xfe": "items[0].parts[0].words[0]: not valid UTF-8 "
            "(at byte 0)",
            b"\x0a\xff": "not a well-formed SayRequest message",
            b"\x10": "not a well-formed SayRequest message",
        }
        for payload, expected in cases.items():
            code, text = self.raw_call(payload)
            self.assertEqual((code, text), (Code.INVALID_ARGUMENT, expected))

    def test_mutated_messages(self) -> None:
        """Random bytes and mutations: a status each, and the server lives."""
        draw = random.Random(7)
        whole = SAY(text="hello", data=b"1234", delay_ms=1)
        item = whole.items.add(name="item")
        item.parts.add(name="part", numbers=[1, 2, 300], words=["a", "b"])
        seed = whole.SerializeToString()
        refused = 0
        for number in range(600):
            if number % 3 == 0:
                payload = draw.randbytes(draw.randrange(200))
            else:
                spoilt = bytearray(seed)
                for _ in range(draw.randrange(1, 4)):
                    spoilt[draw.randrange(len(spoilt))] = draw.randrange(256)
                payload = bytes(spoilt[: draw.randrange(len(spoilt) + 1)])
            call = self.channel.unary_unary(
                f"/{ECHO}/Say", request_serializer=rpc.raw, response_deserializer=rpc.raw
            )
            code, _ = rpc.status_of(lambda sent=payload, method=call: method(sent, timeout=1))
            refused += code == Code.INVALID_ARGUMENT
        self.assertGreater(refused, 200)
        self.assert_serves()

    def test_no_message_at_all(self) -> None:
        """A call that ends without its request."""
        call = self.channel.stream_unary(
            f"/{ECHO}/Say", request_serializer=rpc.raw, response_deserializer=rpc.raw
        )
        code, text = rpc.status_of(lambda: call(iter([]), timeout=PATIENCE_S))
        self.assertEqual(code, Code.INVALID_ARGUMENT)
        self.assertEqual(text, "the call has no message")

    def test_connections_that_are_no_grpc(self) -> None:
        """Random bytes, HTTP/1, TLS, half a beginning, and nothing at all."""
        draw = random.Random(11)
        opening = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        samples = [
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + draw.randbytes(100),
            opening[:10],
            opening + draw.randbytes(500),
            opening + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",
            opening + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" + b"\x00\x00\x08\x06\x00" * 20,
            b"",
        ] + [draw.randbytes(draw.randrange(1, 3000)) for _ in range(50)]
        for sample in samples:
            with socket.create_connection(("127.0.0.1", self.server.ports[0]), 5) as connection:
                connection.sendall(sample)
                connection.settimeout(0.02)
                try:
                    connection.recv(100)
                except OSError:
                    pass
        self.assert_serves()

    def test_many_idle_connections(self) -> None:
        """500 connections that say nothing are given up, and others are served meanwhile."""
        before = self.server.descriptors()
        idle = []
        for _ in range(500):
            idle.append(socket.create_connection(("127.0.0.1", self.server.ports[0]), 5))
        self.assert_serves()
        for connection in idle:
            connection.close()
        rpc.eventually(
            lambda: self.server.descriptors() < before + 20,
            "the descriptors are closed",
            PATIENCE_S,
        )
        self.assert_serves()


class Keepalive(Case):
    """Peers that are frozen, in both directions."""

    arguments = ("--keepalive-ms", "1000", "--keepalive-timeout-ms", "1500")

    def test_frozen_client_is_noticed(self) -> None:
        """The server ends the call of a stopped client."""
        client = start_client(self.server.address)
        try:
            self.assertEqual(self.stats().cancelled, 0)
            client.send_signal(signal.SIGSTOP)
            took = rpc.eventually(
                lambda: self.stats().cancelled == 1, "the frozen client is noticed", PATIENCE_S
            )
            self.assertLess(took, 10)
        finally:
            client.send_signal(signal.SIGCONT)
            client.kill()
            client.communicate()

    def test_client_may_ping(self) -> None:
        """A client with a keepalive of 600 ms is not told that it pings too often."""
        options = (
            ("grpc.keepalive_time_ms", 600),
            ("grpc.keepalive_timeout_ms", 2000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
        )
        with self.server.channel(*options) as channel:
            echo = rpc.Service(channel, ECHO)
            answer = echo.Say(SAY(text="late", delay_ms=5000), timeout=PATIENCE_S)
            self.assertEqual(answer.text, "late")

    def test_frozen_server_is_noticed(self) -> None:
        """A stock client's keepalive finds a stopped server, which serves on afterwards."""
        options = (
            ("grpc.keepalive_time_ms", 1000),
            ("grpc.keepalive_timeout_ms", 500),
            ("grpc.http2.ping_timeout_ms", 500),
            ("grpc.http2.max_pings_without_data", 0),
        )
        with self.server.channel(*options) as channel:
            call = rpc.Service(channel, ECHO).Count(COUNT(interval_us=1000))
            next(call)
            self.server.signal(signal.SIGSTOP)
            code, _ = rpc.status_of(lambda: list(call))
            self.assertEqual(code, Code.UNAVAILABLE)
            self.server.signal(signal.SIGCONT)
        rpc.eventually(self.serves, "it serves on", PATIENCE_S)

    def serves(self) -> bool:
        """Whether a call on a new connection succeeds."""
        with self.server.channel() as channel:
            call = rpc.Service(channel, ECHO).Say
            return rpc.status_of(lambda: call(SAY(), timeout=5))[0] == Code.OK


class Tokens(Case):
    """A server that asks who calls."""

    arguments = ("--token", "secret")

    def test_tokens(self) -> None:
        """None, a wrong one, the right one; health is open."""
        cases = [
            ([], Code.UNAUTHENTICATED, "a bearer token is needed"),
            ([("authorization", "Basic secret")], Code.UNAUTHENTICATED, "a bearer token is needed"),
            ([("authorization", "Bearer")], Code.UNAUTHENTICATED, "a bearer token is needed"),
            (
                [("authorization", "Bearer secre")],
                Code.PERMISSION_DENIED,
                "the bearer token is not known",
            ),
            (
                [("authorization", "Bearer secret2")],
                Code.PERMISSION_DENIED,
                "the bearer token is not known",
            ),
            ([("authorization", "bearer secret")], Code.OK, ""),
            ([("authorization", "Bearer secret")], Code.OK, ""),
        ]
        for metadata, code, text in cases:
            found = rpc.status_of(
                lambda sent=metadata: self.echo.Say(SAY(), metadata=sent, timeout=PATIENCE_S)
            )
            self.assertEqual(found, (code, text))
        stub = health_pb2_grpc.HealthStub(self.channel)
        self.assertEqual(stub.Check(health_pb2.HealthCheckRequest()).status, 1)


class Services(Case):
    """Health and reflection with the stock packages."""

    def test_health_check(self) -> None:
        """Names that are there and one that is not."""
        stub = health_pb2_grpc.HealthStub(self.channel)
        for service in ("", ECHO):
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE_S)
            self.assertEqual(answer.status, health_pb2.HealthCheckResponse.SERVING)
        code, _ = rpc.status_of(lambda: stub.Check(health_pb2.HealthCheckRequest(service="none")))
        self.assertEqual(code, Code.NOT_FOUND)

    def test_health_watch_until_shutdown(self) -> None:
        """A watcher hears SERVING, then NOT_SERVING, and does not hold up the end."""
        stub = health_pb2_grpc.HealthStub(self.channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        unknown = stub.Watch(health_pb2.HealthCheckRequest(service="none"))
        self.assertEqual(next(watch).status, health_pb2.HealthCheckResponse.SERVING)
        self.assertEqual(next(unknown).status, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
        self.server.signal(signal.SIGTERM)
        self.assertEqual(next(watch).status, health_pb2.HealthCheckResponse.NOT_SERVING)
        code, text = rpc.status_of(lambda: next(watch))
        self.assertEqual((code, text), (Code.UNAVAILABLE, "the server is shutting down"))
        self.server.process.communicate(timeout=PATIENCE_S)
        self.assertEqual(self.server.process.returncode, 0)

    def test_reflection_database(self) -> None:
        """The stock database finds every service and its types."""
        database = ProtoReflectionDescriptorDatabase(self.channel)
        services = set(database.get_services())
        self.assertEqual(
            services,
            {
                ECHO,
                "grpc.health.v1.Health",
                "grpc.reflection.v1.ServerReflection",
                "grpc.reflection.v1alpha.ServerReflection",
            },
        )
        from google.protobuf import descriptor_pool

        pool = descriptor_pool.DescriptorPool(database)
        method = pool.FindServiceByName("nosa.v1.Inference").FindMethodByName("Generate")
        self.assertEqual(method.input_type.full_name, "nosa.v1.GenerateRequest")
        self.assertIn("chat", method.input_type.fields_by_name)
        run = pool.FindMessageTypeByName("nosa.cluster.v1.RunRequest")
        self.assertEqual(run.fields_by_name["sampling"].message_type.full_name, "nosa.v1.Sampling")

    def test_reflection_both_versions(self) -> None:
        """v1 and v1alpha answer alike; questions that make no sense get error codes."""
        request = reflection_pb2.ServerReflectionRequest
        questions = [
            request(list_services=""),
            request(file_by_filename="nosa/v1/inference.proto"),
            request(file_containing_symbol="nosa.v1.Usage"),
            request(file_by_filename="no/such.proto"),
            request(file_containing_symbol="no.Such"),
            request(all_extension_numbers_of_type="nosa.v1.Usage"),
            request(all_extension_numbers_of_type="no.Such"),
            request(),
        ]
        answers = {}
        for version in ("v1", "v1alpha"):
            call = self.channel.stream_stream(
                f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
                request_serializer=request.SerializeToString,
                response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
            )
            answers[version] = list(call(iter(questions), timeout=PATIENCE_S))
        self.assertEqual(answers["v1"], answers["v1alpha"])
        kinds = [answer.WhichOneof("message_response") for answer in answers["v1"]]
        self.assertEqual(
            kinds,
            ["list_services_response"]
            + ["file_descriptor_response"] * 2
            + ["error_response"] * 2
            + ["all_extension_numbers_response"]
            + ["error_response"] * 2,
        )
        codes = [answer.error_response.error_code for answer in answers["v1"]]
        self.assertEqual(codes, [0, 0, 0, 5, 5, 0, 5, 3])
        for question, answer in zip(questions, answers["v1"], strict=True):
            self.assertEqual(answer.original_request, question)
        stub = reflection_pb2_grpc.ServerReflectionStub(self.channel)
        gate = threading.Event()

        def open_end() -> Iterator[Any]:
            yield questions[0]
            gate.wait(PATIENCE_S)

        idle = stub.ServerReflectionInfo(open_end())
        next(idle)
        self.assertEqual(self.server.stop(), "shut down, quiet")
        gate.set()
        self.assertEqual(rpc.status_of(lambda: next(idle))[0], Code.UNAVAILABLE)


class Shutdown(Case):
    """SIGTERM while calls run."""

    arguments = ("--grace-ms", "8000")

    def test_running_calls_finish(self) -> None:
        """A stream ends whole, new calls are refused, the process ends with 0."""
        call = self.echo.Count(COUNT(count=100, interval_us=20000))
        next(call)
        self.server.signal(signal.SIGTERM)
        time.sleep(0.3)
        with self.server.channel() as channel:
            late = rpc.Service(channel, ECHO).Say
            code, _ = rpc.status_of(lambda: late(SAY(), timeout=5))
        self.assertEqual(code, Code.UNAVAILABLE)
        self.assertEqual([message.index for message in call], list(range(1, 100)))
        out, _ = self.server.process.communicate(timeout=PATIENCE_S)
        self.assertEqual(out.strip(), "shut down, quiet")
        self.assertEqual(self.server.process.returncode, 0)


class ShortShutdown(Case):
    """SIGTERM with little patience."""

    arguments = ("--grace-ms", "300")

    def test_calls_are_cancelled_after_grace(self) -> None:
        """An endless stream is ended, and so is the process."""
        call = self.echo.Count(COUNT(interval_us=1000))
        next(call)
        start = time.monotonic()
        self.assertEqual(self.server.stop(), "shut down, cancelled")
        self.assertLess(time.monotonic() - start, PATIENCE_S)
        code, _ = rpc.status_of(lambda: list(call))
        self.assertIn(code, (Code.UNAVAILABLE, Code.CANCELLED))


class Relay(Case):
    """A server that relays streams from another one."""

    def setUp(self) -> None:
        """Starts the relay before the server."""
        super().setUp()
        self.relay = rpc.Server("--upstream", self.server.address, "--send-queue-max", "20")
        self.front = self.relay.channel()
        self.relayed = rpc.Service(self.front, ECHO)

    def tearDown(self) -> None:
        """The relay ends first."""
        self.front.close()
        self.relay.__exit__()
        super().tearDown()

    def test_relay_many_streams(self) -> None:
        """Each whole and in order."""
        calls = [self.relayed.Count(COUNT(count=200 + n, payload_bytes=50)) for n in range(32)]
        for number, call in enumerate(calls):
            self.assertEqual([message.index for message in call], list(range(200 + number)))

    def test_relay_slow_reader(self) -> None:
        """A reader that does not read pauses the source, and loses nothing."""
        slow = self.relayed.Count(COUNT(count=60000, payload_bytes=200), timeout=PATIENCE_S * 3)
        next(slow)
        sent = [-1, 0]

        def settled() -> bool:
            time.sleep(0.2)
            sent.append(self.stats().sent)
            return sent[-1] == sent[-2]

        rpc.eventually(settled, "the source is paused", PATIENCE_S)
        self.assertLess(sent[-1], 60000)
        self.assertEqual([message.index for message in slow], list(range(1, 60000)))

    def test_relay_cancel_and_refusal(self) -> None:
        """What the client and what the source say is passed on."""
        call = self.relayed.Count(COUNT(interval_us=1000))
        next(call)
        call.cancel()
        rpc.eventually(lambda: self.stats().cancelled == 1, "the cancel reaches the source")
        found = rpc.status_of(lambda: list(self.relayed.Count(COUNT(payload_bytes=70000))))
        self.assertEqual(found, (Code.INVALID_ARGUMENT, "payload_bytes: more than 65536"))

    def test_relay_source_dies(self) -> None:
        """UNAVAILABLE, at once; and again while it is away."""
        call = self.relayed.Count(COUNT(interval_us=1000))
        next(call)
        start = time.monotonic()
        self.server.process.kill()
        self.assertEqual(rpc.status_of(lambda: list(call))[0], Code.UNAVAILABLE)
        self.assertLess(time.monotonic() - start, 5)
        code, _ = rpc.status_of(lambda: list(self.relayed.Count(COUNT(count=1))))
        self.assertEqual(code, Code.UNAVAILABLE)
        self.server.process.communicate(timeout=PATIENCE_S)


class Start(unittest.TestCase):
    """A server that cannot start."""

    def test_port_in_use(self) -> None:
        """One line that names the address, exit 2; the first server is not disturbed."""
        with rpc.Server() as server:
            for address in (server.address, f"localhost:{server.ports[0]}", f":{server.ports[0]}"):
                done = subprocess.run(
                    [rpc.SERVER, "--listen", address],
                    capture_output=True,
                    text=True,
                    timeout=PATIENCE_S,
                    check=False,
                )
                self.assertEqual(done.returncode, 2)
                self.assertEqual(
                    done.stderr,
                    f"rpc-test-server: cannot listen on {address}: Address already in use\n",
                )

    def test_idle_server_is_small(self) -> None:
        """Memory of a server that has served a call."""
        if rpc.SANITIZED:
            self.skipTest("a sanitizer's memory says nothing")
        with rpc.Server() as server, server.channel() as channel:
            rpc.Service(channel, ECHO).Say(SAY(), timeout=PATIENCE_S)
            self.assertLess(server.memory_kib(), 30 << 10)


if __name__ == "__main__":
    tap.main()
