"""The other methods of nosa-coordinator, and what stock tools ask of it."""

from __future__ import annotations

import threading
from typing import Any

import coordinator as cluster
import rpc
import tap
from coordinator_case import DECODE, PATIENCE_S, QUEUED, READY, REQUEST, Case, Code
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

# The public messages and their fields, in order.
CONTRACT = {
    "GenerateRequest": "request_id model text token_ids chat sampling max_tokens stop "
    "stop_token_ids ignore_eos logprobs priority cache_salt return_prompt_token_ids "
    "resume_token_ids",
    "TokenIds": "ids",
    "Chat": "messages",
    "Message": "role content",
    "Sampling": "temperature top_p top_k min_p seed repetition_penalty presence_penalty "
    "frequency_penalty",
    "GenerateResponse": "accepted delta finished",
    "Accepted": "request_id prompt_tokens prompt_token_ids worker_id seed",
    "Delta": "token_ids text logprobs",
    "TokenLogprob": "token_id logprob top",
    "TopLogprob": "token_id logprob",
    "Finished": "reason stop_sequence usage",
    "Usage": "prompt_tokens cached_prompt_tokens completion_tokens queue_ms ttft_ms decode_ms "
    "kv_gpu_hits kv_host_hits kv_nvme_hits kv_recomputed_blocks kv_stall_ms",
    "TokenizeRequest": "model text chat",
    "TokenizeResponse": "token_ids",
    "DetokenizeRequest": "model token_ids",
    "DetokenizeResponse": "text",
    "ListModelsRequest": "",
    "ListModelsResponse": "models",
    "Model": "id max_context_tokens vocab_size attention workers_ready",
}


class Services(Case):
    """One worker, and what there is to ask."""

    def setUp(self) -> None:
        """With a worker."""
        super().setUp()
        self.one = self.worker()

    def test_tokenize_and_detokenize(self) -> None:
        """There and back, and what is refused."""
        tokenize = rpc.message("nosa.v1.TokenizeRequest")
        detokenize = rpc.message("nosa.v1.DetokenizeRequest")
        for text in ("grüße", "x" * 100000):
            ids = self.inference.Tokenize(tokenize(text=text), timeout=PATIENCE_S).token_ids
            self.assertEqual(bytes(ids).decode(), text)
            back = self.inference.Detokenize(detokenize(token_ids=ids), timeout=PATIENCE_S)
            self.assertEqual(back.text, text)
        back = self.inference.Detokenize(detokenize(token_ids=[0xE6]), timeout=PATIENCE_S)
        self.assertEqual(back.text, "\ufffd")
        chat = rpc.message("nosa.v1.Chat")()
        chat.messages.add(role="user", content="hi")
        ids = self.inference.Tokenize(tokenize(chat=chat), timeout=PATIENCE_S).token_ids
        self.assertIn(b"user\nhi", bytes(ids))
        for request, call, word in (
            (detokenize(token_ids=[256]), self.inference.Detokenize, "token_ids[0]"),
            (tokenize(), self.inference.Tokenize, "input"),
        ):
            code, details = rpc.status_of(lambda: call(request, timeout=PATIENCE_S))
            self.assertEqual(code, Code.INVALID_ARGUMENT)
            self.assertIn(word, details)

    def test_list_models(self) -> None:
        """Each name once, with what it can do and who serves it."""
        self.worker("w1")
        self.worker("w2", model="other", context=1000, attention="nosa")
        ask = rpc.message("nosa.v1.ListModelsRequest")()
        models = self.inference.ListModels(ask, timeout=PATIENCE_S).models
        self.assertEqual(
            [(m.id, m.workers_ready, m.max_context_tokens, m.attention) for m in models],
            [("demo", 2, cluster.CONTEXT, "full"), ("other", 1, 1000, "nosa")],
        )
        self.assertEqual([m.vocab_size for m in models], [256, 256])

    def test_status(self) -> None:
        """Every field."""
        self.generate()
        rpc.status_of(lambda: self.generate(max_tokens=0))
        self.one.delay_s = 0.05
        call = self.start(max_tokens=1000)
        next(call)
        next(call)
        status = self.status()
        self.assertTrue(status.ready)
        self.assertFalse(status.draining)
        self.assertTrue(status.version)
        self.assertTrue(status.coordinator_id)
        self.assertLess(status.uptime_ms, 600000)
        self.assertEqual((status.requests_running, status.requests_waiting), (1, 0))
        self.assertEqual(status.queue_max, 1024)
        self.assertEqual(
            [(c.code, c.count) for c in status.requests], [("OK", 1), ("INVALID_ARGUMENT", 1)]
        )
        self.assertEqual(status.prompt_tokens, 10)
        self.assertGreaterEqual(status.generation_tokens, 11)
        self.assertEqual((status.replays_exact, status.replays_inexact), (0, 0))
        self.assertEqual(status.membership, "memory")
        self.assertEqual(list(status.coordinators), [])
        self.assertGreater(status.ttft_p50_ms, 0)
        self.assertGreaterEqual(status.ttft_p99_ms, status.ttft_p50_ms)
        self.assertGreater(status.inter_token_p50_ms, 0)
        self.assertGreaterEqual(status.inter_token_p99_ms, status.inter_token_p50_ms)
        self.assertEqual([(w.state, w.count) for w in status.workers], [(READY, 1)])
        self.assertEqual(
            [(m.id, m.workers_ready, m.requests_running) for m in status.models], [("demo", 1, 1)]
        )
        rpc.eventually(lambda: self.status().generation_tokens_per_s > 0, "a rate", PATIENCE_S)
        call.cancel()

    def test_workers(self) -> None:
        """Every field."""
        self.one.prefixes = [11, 12, 13]
        self.one.used_bytes = 1000
        ask = rpc.message("nosa.v1.WorkersRequest")()

        def look() -> Any:
            return self.admin.Workers(ask, timeout=PATIENCE_S).workers[0]

        rpc.eventually(lambda: look().prefix_blocks == 3, "its prefixes are known", PATIENCE_S)
        worker = look()
        self.assertEqual((worker.id, worker.address), ("w0", self.one.address))
        self.assertEqual((worker.state, worker.reason), (READY, ""))
        self.assertEqual((worker.model, worker.attention), ("demo", "full"))
        self.assertEqual((worker.device, worker.version), ("cpu", "test"))
        self.assertEqual((worker.fingerprint, worker.tensor_parallel), ("cpu/1", 1))
        self.assertEqual(worker.incarnation, self.one.incarnation)
        self.assertEqual((worker.batch_max, worker.queue_max), (32, 64))
        self.assertEqual(
            [(t.tier, t.used_bytes, t.total_bytes) for t in worker.tiers], [("gpu", 1000, 1 << 20)]
        )
        self.assertLess(worker.heartbeat_age_ms, 1000)

    def test_requests(self) -> None:
        """Every field, and the states of a request's life."""
        self.one.delay_s = 0.05
        held = threading.Event()
        events = self.one.events

        def hold(request: Any, context: Any) -> Any:
            """Starts when it is told to."""
            held.wait(PATIENCE_S)
            yield from events(request, context)

        self.one.events = hold
        call = self.start(max_tokens=300, request_id="mine", priority=-3)
        rpc.eventually(lambda: len(self.running()) == 1, "it is there", PATIENCE_S)
        info = self.running()[0]
        self.assertEqual((info.state, info.worker_id, info.tokens), (QUEUED, "w0", 0))
        held.set()
        next(call)
        next(call)
        rpc.eventually(lambda: self.running()[0].state == DECODE, "it decodes", PATIENCE_S)
        info = self.running()[0]
        self.assertEqual((info.request_id, info.model, info.priority), ("mine", "demo", -3))
        self.assertEqual((info.prompt_tokens, info.max_tokens, info.replays), (5, 300, 0))
        self.assertGreaterEqual(info.tokens, 1)
        self.assertIn("127.0.0.1", info.client)
        self.assertEqual(info.client_name, "")
        call.cancel()
        self.wait_quiet()

    def test_health(self) -> None:
        """SERVING while work would be taken; a watcher hears of it."""
        health = health_pb2_grpc.HealthStub(self.channel)
        serving = health_pb2.HealthCheckResponse.SERVING
        watch = health.Watch(
            health_pb2.HealthCheckRequest(service=cluster.INFERENCE), timeout=3 * PATIENCE_S
        )
        self.assertEqual(next(watch).status, serving)
        for name in ("", cluster.INFERENCE):
            answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=PATIENCE_S)
            self.assertEqual(answer.status, serving)
        ask = health_pb2.HealthCheckRequest(service="no.such.Service")
        code, _ = rpc.status_of(lambda: health.Check(ask, timeout=PATIENCE_S))
        self.assertEqual(code, Code.NOT_FOUND)
        self.one.kill()
        self.assertEqual(next(watch).status, health_pb2.HealthCheckResponse.NOT_SERVING)
        self.worker("w1")
        self.assertEqual(next(watch).status, serving)
        watch.cancel()

    def test_reflection(self) -> None:
        """Both versions; the stock database describes every service and message."""
        database = ProtoReflectionDescriptorDatabase(self.channel)
        services = set(database.get_services())
        self.assertLessEqual({cluster.INFERENCE, cluster.ADMIN, "grpc.health.v1.Health"}, services)
        pool = descriptor_pool.DescriptorPool(database)
        generate = pool.FindServiceByName(cluster.INFERENCE).FindMethodByName("Generate")
        self.assertEqual(generate.input_type.full_name, "nosa.v1.GenerateRequest")
        fields = {field.name for field in generate.input_type.fields}
        self.assertEqual(fields, {field.name for field in REQUEST.DESCRIPTOR.fields})
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        for version in ("v1", "v1alpha"):
            call = self.channel.stream_stream(
                f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
                request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
                response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
            )
            answers = list(call(iter([request]), timeout=PATIENCE_S))
            found = {service.name for service in answers[0].list_services_response.service}
            self.assertEqual(found, services)

    def test_unknown_method(self) -> None:
        """UNIMPLEMENTED, with its name."""
        for path in ("/nosa.v1.Inference/Nothing", "/no.such/Service"):
            call = self.channel.unary_unary(
                path, request_serializer=rpc.raw, response_deserializer=rpc.raw
            )
            code, text = rpc.status_of(lambda method=call: method(b"", timeout=PATIENCE_S))
            self.assertEqual(code, Code.UNIMPLEMENTED)
            self.assertIn(path, text)

    def test_contract_descriptors(self) -> None:
        """The messages have the fields that clients were promised, and no others of old."""
        for name, fields in CONTRACT.items():
            found = [field.name for field in rpc.message(f"nosa.v1.{name}").DESCRIPTOR.fields]
            self.assertEqual(found[: len(fields.split())], fields.split(), name)
        methods = rpc.POOL.FindServiceByName(cluster.INFERENCE).methods
        self.assertEqual(
            [method.name for method in methods],
            ["Generate", "Tokenize", "Detokenize", "ListModels"],
        )


if __name__ == "__main__":
    tap.main()
