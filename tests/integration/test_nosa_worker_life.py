#!/usr/bin/env python3
"""nosa-worker's life among coordinators, real ones and such as Python plays. Prints TAP."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import unittest
from pathlib import Path
from typing import Any

import cluster
import coordinator as real
import grpc
import rpc
import tap
from cluster import Coordinator, Worker
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from program import Checkpoint
from worker_case import (
    DRAINED,
    DRAINING,
    ENDLESS,
    MODEL,
    READY,
    STARTING,
    Case,
    Code,
    prompt,
)

WORKERS = rpc.message("nosa.v1.WorkersRequest")()
GENERATE = rpc.message("nosa.v1.GenerateRequest")
IDS = rpc.message("nosa.v1.TokenIds")
PRELOADS = not rpc.SANITIZED and Path(cluster.PRELOAD).exists()
NO_PRELOAD = "nothing can be preloaded"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
LOADING_MS = 3000
SLOW_LOADING = {
    "LD_PRELOAD": cluster.PRELOAD,
    "SLOW_FILE": "/config.json",
    "SLOW_FILE_MS": str(LOADING_MS),
}


class Life(Case):
    """The worker among coordinators."""

    arguments = ("--max-batch", 4)

    def test_join_says_who_it_is(self) -> None:
        """Card, capacity, files."""
        join = self.coordinator.joins[0]
        self.assertEqual((join.protocol, join.worker_id), (1, "w1"))
        self.assertEqual(join.address, f"127.0.0.1:{self.worker.port}")
        self.assertEqual((join.model.id, join.model.vocab_size), (MODEL, 256))
        self.assertEqual((join.model.attention, len(join.model.model_hash)), ("nosa", 32))
        self.assertEqual(list(join.model.eos_token_ids), [2])
        self.assertIn("attention=nosa", join.fingerprint)
        fetch = rpc.message("nosa.cluster.v1.FetchModelRequest")
        files: dict[str, bytes] = {}
        for chunk in self.service.FetchModel(fetch(files_hash=join.model.files_hash)):
            files[chunk.name] = files.get(chunk.name, b"") + chunk.data
        self.assertEqual(files["tokenizer.json"], (self.model / "tokenizer.json").read_bytes())
        digest = hashlib.sha256()
        for name, data in files.items():
            digest.update(name.encode() + b"\0" + data)
        self.assertEqual(digest.digest(), join.model.files_hash)
        code, _ = rpc.status_of(lambda: list(self.service.FetchModel(fetch())))
        self.assertEqual(code, Code.FAILED_PRECONDITION)

    def test_heartbeats_tell_prefixes_and_load(self) -> None:
        """The blocks of a prompt turn up, and again after a coordinator has forgotten them."""
        self.run_one(prompt(11, 64 * 20 + 5), 2, ignore_eos=True).wait()
        rpc.eventually(lambda: len(self.coordinator.prefixes) == 20, "20 blocks", 20)
        self.coordinator.prefixes.clear()
        self.coordinator.known.clear()
        rpc.eventually(lambda: len(self.coordinator.prefixes) == 20, "20 again", 20)
        self.assertEqual(len(self.coordinator.joins), 2)
        beat = self.coordinator.heartbeats[-1]
        self.assertEqual((beat.state, beat.load.running), (READY, 0))
        self.assertGreater(beat.load.prefill_tokens_per_s, 0)

    def test_coordinator_restart_stops_nothing(self) -> None:
        """Streams go on, and the worker joins the new one."""
        stream = self.run_one(prompt(12), 600, ignore_eos=True)
        stream.arrived.get(timeout=cluster.PATIENCE_S)
        port = self.coordinator.port
        self.coordinator.stop()
        self.coordinator = Coordinator(port)
        rpc.eventually(lambda: self.coordinator.joins, "joined again", cluster.PATIENCE_S)
        self.assertEqual(self.coordinator.joins[0].incarnation, self.worker.incarnation)
        self.assertEqual(len(stream.wait().tokens), 600)

    def test_drain_and_resume(self) -> None:
        """No new work, then work again; past its time a stream is let go."""
        stream = self.run_one(prompt(13), ENDLESS, ignore_eos=True)
        stream.arrived.get(timeout=cluster.PATIENCE_S)
        drain = rpc.message("nosa.cluster.v1.DrainWorkerRequest")
        resume = rpc.message("nosa.cluster.v1.ResumeWorkerRequest")
        state = self.service.DrainWorker(drain(incarnation=self.worker.incarnation, timeout_ms=300))
        self.assertEqual(state.state, DRAINING)
        self.assertEqual(self.run_one(prompt(13), 5).wait().code, Code.ABORTED)
        self.assertEqual(stream.wait().code, Code.ABORTED)
        rpc.eventually(lambda: self.coordinator.heartbeats[-1].state == DRAINED, "DRAINED", 20)
        self.assertEqual(self.worker.get("readyz")[0], 503)
        self.assertEqual(self.worker.get("healthz")[0], 200)
        state = self.service.ResumeWorker(resume(incarnation=self.worker.incarnation))
        self.assertEqual(state.state, READY)
        self.assertEqual(self.run_one(prompt(13), 5, ignore_eos=True).wait().code, Code.OK)

    def test_health_follows_drains(self) -> None:
        """A stock client checks and watches: SERVING, NOT_SERVING from the drain to the resume, and
        from SIGTERM on, while what runs goes on to its end."""
        stub = health_pb2_grpc.HealthStub(self.channel)
        ask = health_pb2.HealthCheckRequest
        watches = [
            stub.Watch(ask(service=name), timeout=cluster.PATIENCE_S)
            for name in ("", cluster.SERVICE)
        ]
        drain = rpc.message("nosa.cluster.v1.DrainWorkerRequest")
        resume = rpc.message("nosa.cluster.v1.ResumeWorkerRequest")
        incarnation = self.worker.incarnation

        def check(status: int) -> None:
            self.assertEqual([next(watch).status for watch in watches], [status, status])
            for name in ("", cluster.SERVICE):
                answer = stub.Check(ask(service=name), timeout=cluster.PATIENCE_S)
                self.assertEqual(answer.status, status, name)

        check(SERVING)
        code, _ = rpc.status_of(lambda: stub.Check(ask(service="nosa.v1.Inference"), timeout=20))
        self.assertEqual(code, Code.NOT_FOUND)
        stream = self.run_one(prompt(17), 2000, ignore_eos=True)
        stream.arrived.get(timeout=cluster.PATIENCE_S)
        self.service.DrainWorker(drain(incarnation=incarnation, timeout_ms=600000))
        check(NOT_SERVING)
        self.service.ResumeWorker(resume(incarnation=incarnation))
        check(SERVING)
        self.worker.process.send_signal(signal.SIGTERM)
        self.assertEqual([next(watch).status for watch in watches], [NOT_SERVING] * 2)
        self.assertEqual((stream.wait().code, len(stream.tokens)), (Code.OK, 2000), stream.details)
        self.assertEqual(self.worker.process.wait(cluster.PATIENCE_S), 0)
        for watch in watches:
            self.assertEqual(rpc.status_of(lambda w=watch: next(w))[0], Code.UNAVAILABLE)

    def test_reflection_describes_the_worker(self) -> None:
        """Both versions; the stock database finds its services, methods and messages."""
        database = ProtoReflectionDescriptorDatabase(self.channel)
        services = set(database.get_services())
        versions = ("grpc.reflection.v1", "grpc.reflection.v1alpha")
        self.assertEqual(
            services,
            {cluster.SERVICE, "grpc.health.v1.Health"}
            | {f"{version}.ServerReflection" for version in versions},
        )
        pool = descriptor_pool.DescriptorPool(database)
        found = pool.FindServiceByName(cluster.SERVICE)
        known = rpc.POOL.FindServiceByName(cluster.SERVICE)
        self.assertEqual([m.name for m in found.methods], [m.name for m in known.methods])
        for method, wanted in zip(found.methods, known.methods, strict=True):
            for kind, other in ((method.input_type, wanted.input_type),
                                (method.output_type, wanted.output_type)):  # fmt: skip
                self.assertEqual(
                    [(f.name, f.number, f.type) for f in kind.fields],
                    [(f.name, f.number, f.type) for f in other.fields], kind.full_name,
                )  # fmt: skip
        request = reflection_pb2.ServerReflectionRequest
        for version in versions:
            call = self.channel.stream_stream(
                f"/{version}.ServerReflection/ServerReflectionInfo",
                request_serializer=request.SerializeToString,
                response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
            )
            questions = [request(list_services=""), request(file_containing_symbol="no.Such")]
            answers = list(call(iter(questions), timeout=cluster.PATIENCE_S))
            listed = {service.name for service in answers[0].list_services_response.service}
            self.assertEqual((listed, answers[1].error_response.error_code), (services, 5))

    def test_unresolvable_coordinator_is_named_once(self) -> None:
        """One line, and the worker serves all the same."""
        with Worker(self.model, "--coordinator", "no-such-host.invalid:1") as worker:
            worker.find(r"(no-such-host\.invalid)")
            self.assertEqual(worker.get("readyz")[0], 200)
            self.assertEqual(worker.stop(), 0)
            self.assertEqual(sum("no-such-host" in line for line in worker.lines), 1)

    def test_sigterm_finishes_what_runs(self) -> None:
        """Exit 0, whole streams, a goodbye."""
        stream = self.run_one(prompt(14), 300, ignore_eos=True)
        stream.arrived.get(timeout=cluster.PATIENCE_S)
        self.assertEqual(self.worker.stop(), 0)
        self.assertEqual((stream.wait().code, len(stream.tokens)), (Code.OK, 300))
        self.assertEqual([leave.worker_id for leave in self.coordinator.leaves], ["w1"])

    def test_newer_start_fences_the_worker(self) -> None:
        """ABORTED to a heartbeat: streams are let go, it ends and does not join again."""
        stream = self.run_one(prompt(15), ENDLESS, ignore_eos=True)
        stream.arrived.get(timeout=cluster.PATIENCE_S)
        self.coordinator.abort = Code.ABORTED
        self.assertEqual(stream.wait().code, Code.ABORTED)
        self.assertEqual(self.worker.process.wait(cluster.PATIENCE_S), 1)
        self.assertEqual(len(self.coordinator.joins), 1)

    def test_killed_worker_ends_streams(self) -> None:
        """SIGKILL: the client sees it at once."""
        stream = self.run_one(prompt(16), ENDLESS, ignore_eos=True)
        stream.arrived.get(timeout=cluster.PATIENCE_S)
        self.worker.process.send_signal(signal.SIGKILL)
        self.assertEqual(stream.wait().code, Code.UNAVAILABLE)


class ModelCase(unittest.TestCase):
    """A checkpoint, and no worker yet."""

    @classmethod
    def setUpClass(cls) -> None:
        """Makes it."""
        cls.folder = tempfile.TemporaryDirectory()
        cls.model = Checkpoint(Path(cls.folder.name), MODEL).path

    @classmethod
    def tearDownClass(cls) -> None:
        """Removes it."""
        cls.folder.cleanup()

    def coordinator(self, *arguments: str, **options: Any) -> real.Coordinator:
        """A real one."""
        started = real.Coordinator(*arguments, **options)
        self.addCleanup(started.stop)
        return started

    def worker(self, address: str, *arguments: Any, **options: Any) -> Worker:
        """A worker of the coordinators."""
        model = options.pop("model", self.model)
        started = Worker(model, "--coordinator", address, "--max-context", 2048, *arguments,
                         **options)  # fmt: skip
        self.addCleanup(started.__exit__)
        return started

    def states(self, coordinator: real.Coordinator) -> dict[str, int]:
        """Of the workers that it shows."""
        with coordinator.channel() as channel:
            answer = rpc.Service(channel, real.ADMIN).Workers(WORKERS, timeout=20)
        return {worker.id: worker.state for worker in answer.workers}

    def await_state(self, coordinator: real.Coordinator, worker_id: str, state: int) -> None:
        """Until it shows the worker so."""
        rpc.eventually(
            lambda: self.states(coordinator).get(worker_id) == state,
            f"{worker_id} is {state}",
            cluster.PATIENCE_S,
        )

    def count(self, worker: Worker, needle: str) -> int:
        """Lines of its log with a text."""
        return sum(needle in line for line in worker.lines)


@unittest.skipUnless(PRELOADS, NO_PRELOAD)
class Starting(ModelCase):
    """A worker whose model takes seconds to load."""

    def test_is_seen_starting_then_ready(self) -> None:
        """Its coordinator shows it, and refuses work for its model, until it is loaded."""
        coordinator = self.coordinator()
        worker = self.worker(coordinator.address, "--id", "w1", env=SLOW_LOADING, wait=False)
        self.await_state(coordinator, "w1", STARTING)
        with coordinator.channel() as channel:
            inference = rpc.Service(channel, real.INFERENCE)
            ask = GENERATE(token_ids=IDS(ids=[5, 6, 7]), max_tokens=4, ignore_eos=True)
            code, text = rpc.status_of(lambda: list(inference.Generate(ask, timeout=20)))
            self.assertEqual((code, "being loaded" in text), (Code.UNAVAILABLE, True), text)
            models = inference.ListModels(rpc.message("nosa.v1.ListModelsRequest")(), timeout=20)
            self.assertEqual(len(models.models), 0)
            self.assertEqual(worker.get("healthz")[0], 200)
            code, text = worker.get("readyz")
            self.assertEqual((code, "STARTING" in text), (503, True), text)
            self.await_state(coordinator, "w1", READY)
            events = list(inference.Generate(ask, timeout=20))
            self.assertEqual(events[-1].finished.usage.completion_tokens, 4)
            models = inference.ListModels(rpc.message("nosa.v1.ListModelsRequest")(), timeout=20)
            self.assertEqual([model.id for model in models.models], [MODEL])
        self.assertEqual(worker.get("readyz")[0], 200)
        self.assertEqual(worker.stop(), 0)

    def test_first_words(self) -> None:
        """It joins with its name, address and incarnation, and again with the whole card."""
        coordinator = Coordinator()
        self.addCleanup(coordinator.stop)
        worker = self.worker(
            coordinator.address, "--id", "w1", "--model-name", "m", env=SLOW_LOADING, wait=False
        )
        rpc.eventually(lambda: coordinator.starts, "joined", cluster.PATIENCE_S)
        start = coordinator.starts[0]
        self.assertEqual((start.worker_id, start.state, start.model.id), ("w1", STARTING, "m"))
        self.assertEqual(start.address, f"127.0.0.1:{worker.port}")
        rpc.eventually(lambda: len(coordinator.heartbeats) > 2, "heartbeats", 20)
        self.assertEqual({beat.state for beat in coordinator.heartbeats[:3]}, {STARTING})
        rpc.eventually(lambda: coordinator.joins, "joined with a card", cluster.PATIENCE_S)
        join = coordinator.joins[0]
        self.assertEqual((join.incarnation, join.state), (start.incarnation, READY))
        self.assertEqual(len(join.model.model_hash), 32)
        self.assertEqual(len(coordinator.joins), 1)

    def test_load_failure_is_said_and_seen(self) -> None:
        """One line, exit 2, and a goodbye."""
        coordinator = self.coordinator()
        broken = Checkpoint(Path(self.folder.name), MODEL)
        broken.write("config.json", b"{ not JSON")
        worker = self.worker(
            coordinator.address, "--id", "w1", env=SLOW_LOADING, wait=False, model=broken.path
        )
        self.await_state(coordinator, "w1", STARTING)
        self.assertEqual(worker.process.wait(cluster.PATIENCE_S), 2)
        self.assertEqual(self.count(worker, "nosa-worker: "), 1, worker.lines)
        self.assertIn("config.json", worker.find("(nosa-worker: .*)"))
        self.assertNotIn(self.states(coordinator).get("w1"), (STARTING, READY))
        self.assertTrue(any("worker w1 left" in line for line in coordinator.log))

    def test_signal_ends_it_at_once(self) -> None:
        """SIGTERM while it loads: exit 0, and a goodbye."""
        coordinator = Coordinator()
        self.addCleanup(coordinator.stop)
        worker = self.worker(coordinator.address, "--id", "w1", env=SLOW_LOADING, wait=False)
        rpc.eventually(lambda: coordinator.starts, "joined", cluster.PATIENCE_S)
        self.assertEqual(worker.stop(), 0)
        self.assertEqual([leave.worker_id for leave in coordinator.leaves], ["w1"])
        self.assertEqual(coordinator.joins, [])


class Names(ModelCase):
    """Coordinators behind a name, and such as lie."""

    @unittest.skipUnless(PRELOADS, NO_PRELOAD)
    def test_every_address_of_a_name_is_joined(self) -> None:
        """Two, then one more, then one less; what is no longer named and dead is let go."""
        first = Coordinator()
        self.addCleanup(first.stop)
        others = [Coordinator(first.port, host=f"127.0.0.{i}") for i in (2, 3)]
        for other in others:
            self.addCleanup(other.stop)
        hosts = Path(self.folder.name) / "hosts"
        hosts.write_text("127.0.0.1\n127.0.0.2\n")
        worker = self.worker(
            f"fake.test:{first.port}", "--id", "w1",
            env={"LD_PRELOAD": cluster.PRELOAD, "FAKE_HOSTS": str(hosts)},
        )  # fmt: skip
        rpc.eventually(lambda: first.joins and others[0].joins, "both", cluster.PATIENCE_S)
        self.assertEqual(others[1].joins, [])
        hosts.write_text("127.0.0.2\n127.0.0.3\n")
        rpc.eventually(lambda: others[1].joins, "the new one", cluster.PATIENCE_S)
        first.stop()
        worker.find(r"(127\.0\.0\.1:\d+ is no longer named, and is gone)")
        self.assertEqual(worker.stop(), 0)
        self.assertEqual([len(other.leaves) for other in others], [1, 1])

    def test_garbage_is_said_once(self) -> None:
        """A coordinator that answers garbage, and one that is no gRPC at all: a line each; the
        worker serves, tries again, and joins once the answer can be read."""
        liar = Coordinator(garbage=b"\xff\xff\xff")
        self.addCleanup(liar.stop)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]

            def babble() -> None:
                while True:
                    try:
                        connection, _ = listener.accept()
                    except OSError:
                        return
                    with connection:
                        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nhello")

            threading.Thread(target=babble, daemon=True).start()
            worker = self.worker(f"{liar.address},127.0.0.1:{port}", "--id", "w1")
            worker.find(rf"(coordinator 127\.0\.0\.1:{port}: cannot join.*trying again)")
            worker.find(rf"(coordinator {liar.address}: cannot join.*trying again)")
            rpc.eventually(lambda: liar.asked > 2, "asked again", cluster.PATIENCE_S)
            self.assertEqual(self.count(worker, f"{liar.address}: cannot join"), 1, worker.lines)
            self.assertLessEqual(self.count(worker, f":{port}: cannot join"), 2, worker.lines)
            self.assertEqual(worker.get("readyz")[0], 200)
            liar.garbage = None
            rpc.eventually(lambda: liar.joins, "joined", cluster.PATIENCE_S)
            self.assertEqual(worker.stop(), 0)

    def test_coordinator_of_another_protocol_is_said_once(self) -> None:
        """It refuses to be joined: one line with its words, however often it is asked; the worker
        serves, and joins once it is let."""
        other = Coordinator()
        self.addCleanup(other.stop)
        words = "protocol: the worker (version 1) speaks 1, this coordinator 2"
        other.refusal = (Code.FAILED_PRECONDITION, words)
        worker = self.worker(other.address, "--id", "w1")
        rpc.eventually(lambda: other.asked > 2, "asked again", 2 * cluster.PATIENCE_S)
        named = [line for line in worker.lines if other.address in line and "join" in line]
        self.assertEqual(len(named), 1, worker.lines)
        self.assertTrue(
            named[0].endswith(
                f"coordinator {other.address}: cannot join: FAILED_PRECONDITION: {words}; "
                "trying again"
            ),
            named,
        )
        self.assertEqual((other.joins, worker.get("readyz")[0]), ([], 200))
        other.refusal = None
        rpc.eventually(lambda: other.joins, "joined", cluster.PATIENCE_S)
        worker.find(r"(joined coordinator)")
        self.assertEqual(self.count(worker, words), 1, worker.lines)
        self.assertEqual(worker.stop(), 0)

    def test_second_worker_of_an_id_waits(self) -> None:
        """Refused while the first one lives, in one line; in its place when that has died."""
        coordinator = self.coordinator("--worker-timeout", "1")
        first = self.worker(coordinator.address, "--id", "twin")
        self.await_state(coordinator, "twin", READY)
        second = self.worker(coordinator.address, "--id", "twin")
        second.find(r"(cannot join: ALREADY_EXISTS: worker_id: 'twin' is alive at .*trying again)")
        self.assertEqual(self.states(coordinator), {"twin": READY})
        first.process.send_signal(signal.SIGKILL)
        second.find(r"(joined coordinator)")
        self.await_state(coordinator, "twin", READY)
        self.assertEqual(self.count(second, "ALREADY_EXISTS"), 1, second.lines)

    def test_other_model_of_a_name_is_refused(self) -> None:
        """FAILED_PRECONDITION that names the field; the first worker serves on."""
        coordinator = self.coordinator("--worker-timeout", "1")
        self.worker(coordinator.address, "--id", "w1", "--model-name", "m")
        self.await_state(coordinator, "w1", READY)
        other = Checkpoint(Path(self.folder.name), MODEL)
        other.config(rms_norm_eps=2e-5)
        second = self.worker(
            coordinator.address, "--id", "w2", "--model-name", "m", model=other.path
        )
        second.find(r"(cannot join: FAILED_PRECONDITION: model\.model_hash: .*trying again)")
        self.assertEqual(self.states(coordinator)["w1"], READY)
        self.assertNotEqual(self.states(coordinator).get("w2"), READY)
        self.assertEqual(self.count(second, "FAILED_PRECONDITION"), 1, second.lines)


@unittest.skipUnless(shutil.which("openssl"), "no openssl to make certificates with")
class Tls(ModelCase):
    """Worker and coordinator that show each other certificates."""

    @classmethod
    def setUpClass(cls) -> None:
        """Makes them."""
        super().setUpClass()
        folder = Path(cls.folder.name)
        cls.authority = rpc.Authority(folder, "authority")
        cls.stranger = rpc.Authority(folder, "stranger")
        for name in ("coordinator", "worker", "client"):
            cls.authority.issue(name)
        cls.stranger.issue("strange")

    def flags(self, name: str) -> tuple[str, ...]:
        """The TLS flags of a party."""
        folder = Path(self.folder.name)
        return ("--tls-cert", str(folder / f"{name}.pem"), "--tls-key", str(folder / f"{name}.key"),
                "--tls-ca", str(self.authority.cert))  # fmt: skip

    def channel(self, port: int, name: str | None) -> grpc.Channel:
        """A connection of a client with a certificate, or without."""
        own = [Path(self.folder.name) / f"{name}.{end}" for end in ("key", "pem")] if name else None
        credentials = grpc.ssl_channel_credentials(
            self.authority.cert.read_bytes(), *(path.read_bytes() for path in own or ())
        )
        options = [("grpc.use_local_subchannel_pool", 1)]
        return grpc.secure_channel(f"localhost:{port}", credentials, options)

    def test_generates_through_both(self) -> None:
        """Joined, dialled back, probed; nobody without a certificate gets in."""
        coordinator = self.coordinator(*self.flags("coordinator"), tls=True)
        worker = self.worker(coordinator.address, "--id", "w1", *self.flags("worker"))
        with self.channel(coordinator.port, "client") as channel:
            admin = rpc.Service(channel, real.ADMIN)
            rpc.eventually(
                lambda: [w.state for w in admin.Workers(WORKERS, timeout=20).workers] == [READY],
                "READY", cluster.PATIENCE_S,
            )  # fmt: skip
            ask = GENERATE(token_ids=IDS(ids=[5, 6, 7]), max_tokens=4, ignore_eos=True)
            events = list(rpc.Service(channel, real.INFERENCE).Generate(ask, timeout=20))
            self.assertEqual(events[-1].finished.usage.completion_tokens, 4)
        self.assertEqual(worker.get("healthz")[0], 200)
        listing = rpc.message("nosa.cluster.v1.ListRunsRequest")()
        for channel, code in (
            (self.channel(worker.port, "client"), Code.OK),
            (self.channel(worker.port, None), Code.UNAVAILABLE),
            (worker.channel(), Code.UNAVAILABLE),
        ):
            with channel:
                call = rpc.Service(channel, cluster.SERVICE).ListRuns
                got, text = rpc.status_of(lambda c=call: c(listing, timeout=20))
                self.assertEqual(got, code, text)
        self.assertEqual(worker.stop(), 0)

    def test_stranger_is_not_let_in(self) -> None:
        """A worker whose certificate another authority signed: one line, and it goes on trying."""
        coordinator = self.coordinator(*self.flags("coordinator"), tls=True)
        worker = self.worker(coordinator.address, "--id", "w1", *self.flags("strange"))
        worker.find(r"(coordinator .*: cannot join: UNAVAILABLE.*trying again)")
        self.assertEqual(worker.get("readyz")[0], 200)
        with self.channel(coordinator.port, "client") as channel:
            workers = rpc.Service(channel, real.ADMIN).Workers(WORKERS, timeout=20).workers
            self.assertEqual(len(workers), 0)


class BadFlags(unittest.TestCase):
    """Exit 2 and one line."""

    def refused(self, needle: str, *arguments: Any) -> None:
        """Runs it and checks its end."""
        done = subprocess.run(
            [cluster.WORKER, *map(str, arguments)], capture_output=True, text=True,
            timeout=cluster.PATIENCE_S, check=False, stdin=subprocess.DEVNULL,
            env={k: v for k, v in os.environ.items() if not k.startswith("NOSA_")},
        )  # fmt: skip
        self.assertEqual(done.returncode, 2, done.stderr)
        last = done.stderr.strip().splitlines()[-1]
        self.assertTrue(last.startswith("nosa-worker: ") and needle in last, done.stderr)

    def test_each_is_named(self) -> None:
        """Flags, files, ports."""
        with tempfile.TemporaryDirectory() as folder, socket.socket() as taken:
            model = Checkpoint(Path(folder), MODEL).path
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            self.refused("--model")
            self.refused("--no-such-flag", "--no-such-flag")
            self.refused("--max-batch", "--model", model, "--max-batch", 0)
            self.refused("--listen", "--model", model, "--listen", "nowhere")
            self.refused("--coordinator", "--model", model, "--coordinator", "a:1,b")
            self.refused("config.json", "--model", folder, "--listen", "127.0.0.1:0")
            self.refused(str(port), "--model", model, "--listen", f"127.0.0.1:{port}")
            self.refused(str(port), "--model", model, "--listen", "127.0.0.1:0",
                         "--http", f"127.0.0.1:{port}")  # fmt: skip
            self.refused("/none.pem", "--model", model, "--tls-cert", "/none.pem",
                         "--tls-key", "/none.pem")  # fmt: skip


if __name__ == "__main__":
    tap.main()
