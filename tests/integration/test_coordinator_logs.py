"""What operators see of nosa-coordinator: metrics, probes, log lines."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import tempfile
import time
import unittest
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import cluster
import rpc
import tap
from coordinator import Coordinator, message
from coordinator_case import PATIENCE_S, READY, REQUEST, Answer, Case, Code
from program import Checkpoint

MODEL = "kv4_group4_d16_r1_yarn"
PROMTOOL = rpc.TREE / ".venv" / "bin" / "promtool"

# Names that users rely on, with their labels.
NAMES = """
nosa_requests_running
nosa_requests_waiting
nosa_time_to_first_token_seconds_bucket{le="+Inf"}
nosa_inter_token_latency_seconds_bucket{le="+Inf"}
nosa_e2e_request_latency_seconds_bucket{le="+Inf"}
nosa_prompt_tokens_total
nosa_generation_tokens_total
nosa_kv_block_hits_total{tier="gpu"}
nosa_kv_block_hits_total{tier="host"}
nosa_kv_block_hits_total{tier="nvme"}
nosa_kv_transfer_bytes_total{from="gpu",to="host"}
nosa_kv_transfer_bytes_total{from="host",to="gpu"}
nosa_kv_transfer_bytes_total{from="host",to="nvme"}
nosa_kv_transfer_bytes_total{from="nvme",to="host"}
nosa_kv_corrupt_blocks_total
nosa_kv_usage_ratio{tier="gpu"}
nosa_kv_usage_ratio{tier="host"}
nosa_kv_usage_ratio{tier="nvme"}
nosa_requests_total{code="OK"}
nosa_requests_total{code="RESOURCE_EXHAUSTED"}
nosa_request_replays_total{exact="true"}
nosa_request_replays_total{exact="false"}
""".split()


def kv(**counts: int) -> Any:
    """What a worker's KV store has done."""
    return message("KvTotals")(**counts)


def fetch(url: str) -> int:
    """The status of a page; 0 when there is none."""
    try:
        with urllib.request.urlopen(url, timeout=5) as page:
            return page.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


class Metrics(Case):
    """Names, values, and what promtool says of them."""

    def test_names(self) -> None:
        """Every name is there from the beginning, once, with help and type."""
        text = self.get("metrics")[1]
        for name in NAMES:
            self.metric(name)
        families = re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)
        self.assertEqual(len(families), len({name for name, _ in families}))
        helped = set(re.findall(r"^# HELP (\S+) \S", text, re.MULTILINE))
        self.assertEqual(helped, {name for name, _ in families})
        for name, kind in families:
            self.assertTrue(name.startswith("nosa_"), name)
            self.assertEqual(kind == "counter", name.endswith("_total"), name)

    def test_promtool(self) -> None:
        """The stock tool has nothing to say, idle and after work."""
        if not Path(PROMTOOL).exists():
            self.skipTest("there is no promtool (scripts/promtool.sh fetches it)")
        self.worker(delay_s=0)
        for _ in range(2):
            done = subprocess.run(
                [PROMTOOL, "check", "metrics"],
                input=self.get("metrics")[1], capture_output=True, text=True, check=False,
                timeout=PATIENCE_S,
            )  # fmt: skip
            self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))
            self.generate()

    def test_requests_by_code(self) -> None:
        """Each end under its code, also of requests that no handler sees."""
        worker = self.worker(delay_s=0)
        self.generate()
        self.refuse(Code.INVALID_ARGUMENT, "max_tokens", max_tokens=0)
        self.refuse(Code.NOT_FOUND, "model", model="none")
        call = self.channel.unary_stream(
            "/nosa.v1.Inference/Generate",
            request_serializer=rpc.raw,
            response_deserializer=rpc.raw,
        )
        rpc.status_of(lambda: list(call(b"\x0a\xff", timeout=PATIENCE_S)))
        worker.delay_s = 0.05
        stream = self.start(max_tokens=1000)
        next(stream)
        stream.cancel()
        request = REQUEST(text="hello", max_tokens=1000)
        rpc.status_of(lambda: list(self.inference.Generate(request, timeout=0.3)))
        self.wait_quiet()
        for code, count in (
            ("OK", 1),
            ("INVALID_ARGUMENT", 2),
            ("NOT_FOUND", 1),
            ("CANCELLED", 1),
            ("DEADLINE_EXCEEDED", 1),
            ("INTERNAL", 0),
        ):
            self.assertEqual(self.metric(f'nosa_requests_total{{code="{code}"}}'), count, code)

    def test_latencies(self) -> None:
        """Observations of each histogram."""
        self.worker(delay_s=0.01)
        for _ in range(3):
            self.generate(max_tokens=5)
        for name, count in (
            ("nosa_time_to_first_token_seconds", 3),
            ("nosa_inter_token_latency_seconds", 12),
            ("nosa_e2e_request_latency_seconds", 3),
        ):
            self.assertEqual(self.metric(f"{name}_count"), count, name)
            self.assertGreater(self.metric(f"{name}_sum"), 0.005, name)
        self.assertEqual(self.metric("nosa_prompt_tokens_total"), 15)
        self.assertEqual(self.metric("nosa_generation_tokens_total"), 15)

    def test_kv_of_all_workers(self) -> None:
        """Counts are summed over workers and their lives, and never fall; shares are weighted."""
        one, two = self.worker("w0"), self.worker("w1")
        hits = 'nosa_kv_block_hits_total{tier="host"}'
        one.kv = kv(host_hits=10, nvme_to_host_bytes=100, corrupt_blocks=1, recomputed_blocks=2)
        two.kv = kv(
            host_hits=5, host_to_nvme_bytes=7, prefix_lookup_tokens=640, prefix_hit_tokens=128,
            evicted_blocks=3,
        )  # fmt: skip
        one.used_bytes = 1 << 19
        rpc.eventually(lambda: self.metric(hits) == 15, "both are counted", PATIENCE_S)
        self.assertEqual(self.metric('nosa_kv_transfer_bytes_total{from="nvme",to="host"}'), 100)
        self.assertEqual(self.metric('nosa_kv_transfer_bytes_total{from="host",to="nvme"}'), 7)
        self.assertEqual(self.metric("nosa_kv_corrupt_blocks_total"), 1)
        self.assertEqual(self.metric("nosa_kv_recomputed_blocks_total"), 2)
        self.assertEqual(self.metric("nosa_kv_prefix_lookup_tokens_total"), 640)
        self.assertEqual(self.metric("nosa_kv_prefix_hit_tokens_total"), 128)
        self.assertEqual(self.metric("nosa_kv_evicted_blocks_total"), 3)
        self.assertEqual(self.metric('nosa_kv_usage_ratio{tier="gpu"}'), 0.25)
        one.kv = kv(host_hits=12, nvme_to_host_bytes=100, corrupt_blocks=1, recomputed_blocks=2)
        rpc.eventually(lambda: self.metric(hits) == 17, "growth is added", PATIENCE_S)
        one.kill()
        rpc.eventually(lambda: self.states()["w0"] == 5, "it is LOST", PATIENCE_S)
        self.assertEqual(self.metric(hits), 17)
        self.assertEqual(self.metric('nosa_kv_usage_ratio{tier="gpu"}'), 0)
        again = self.worker("w0")
        again.kv = kv(host_hits=3)
        rpc.eventually(lambda: self.metric(hits) == 20, "a new life begins at 0", PATIENCE_S)


class RealWorker(Case):
    """nosa-worker, whose KV store has something to tell."""

    @unittest.skipUnless(Path(cluster.WORKER).exists(), "nosa-worker is not built")
    def test_kv_of_a_real_worker(self) -> None:
        """Both programs have the same counts under the same names."""
        with tempfile.TemporaryDirectory() as folder:
            model = Checkpoint(Path(folder), MODEL).path
            with cluster.Worker(model, "--coordinator", self.coordinator.address) as worker:
                rpc.eventually(lambda: READY in self.states().values(), "READY", PATIENCE_S)
                name = 'nosa_kv_block_hits_total{tier="gpu"}'
                answer = self.generate(text="words " * 40, max_tokens=20, ignore_eos=True)
                hits = answer.finished.usage.kv_gpu_hits
                self.assertGreater(hits, 0)
                rpc.eventually(lambda: self.metric(name) == hits, "it was told", PATIENCE_S)
                self.assertEqual(worker.metric(name), hits)
                lookups = "nosa_kv_prefix_lookup_tokens_total"
                self.assertGreater(worker.metric(lookups), 0)
                self.assertEqual(self.metric(lookups), worker.metric(lookups))
                ratio = 'nosa_kv_usage_ratio{tier="gpu"}'
                self.assertGreater(self.metric(ratio), 0)
                self.assertAlmostEqual(self.metric(ratio), worker.metric(ratio), 6)


class PromptBytes(Case):
    """A coordinator that may hold few bytes of prompts."""

    arguments = ("--worker-timeout", "1", "--max-prompts-bytes", "8192")

    def test_not_ready_without_bytes(self) -> None:
        """One request takes nearly all bytes, and gives them back."""
        self.worker(delay_s=0.05)
        self.assertEqual(self.get("readyz"), (200, "ok\n"))
        for size in range(8192, 0, -64):  # what a request takes beside its text is not told
            call = self.start(text="x" * size, max_tokens=5000)
            if rpc.status_of(lambda stream=call: next(stream))[0] == Code.OK:
                break
        code, text = self.get("readyz")
        self.assertEqual(code, 503)
        self.assertIn("--max-prompts-bytes", text)
        self.refuse(Code.RESOURCE_EXHAUSTED, "--max-prompts-bytes")
        call.cancel()
        self.wait_quiet()
        self.assertEqual(self.get("readyz"), (200, "ok\n"))


class Probes(Case):
    """/healthz and /readyz."""

    arguments = ("--worker-timeout", "1", "--drain-timeout", "20")

    def test_not_ready_when_every_worker_is_full(self) -> None:
        """Places in the batch and in the queue of one worker; another one has some."""
        self.worker("w0", places=(2, 1), delay_s=0.05)
        calls = [self.start(max_tokens=10000) for _ in range(3)]
        for call in calls:
            next(call)
        self.assertEqual(self.get("readyz"), (503, "every worker is full\n"))
        self.worker("w1")
        self.assertEqual(self.get("readyz"), (200, "ok\n"))
        for call in calls:
            call.cancel()
        self.wait_quiet()

    def test_ready_with_a_worker(self) -> None:
        """Only while work would be taken."""
        self.assertEqual(self.get("readyz"), (503, "no worker is ready\n"))
        worker = self.worker(delay_s=0.05)
        self.assertEqual(self.get("readyz"), (200, "ok\n"))
        self.drain("w0")
        self.assertEqual(self.get("readyz"), (503, "no worker is ready\n"))
        self.resume("w0")
        self.wait_state("w0", 2)
        self.assertEqual(self.get("readyz"), (200, "ok\n"))
        call = self.start(max_tokens=100)
        next(call)
        self.coordinator.terminate()
        rpc.eventually(lambda: self.get("readyz") == (503, "draining\n"), "it drains", PATIENCE_S)
        self.assertEqual(self.get("healthz"), (200, "ok\n"))
        self.assertEqual(len(Answer(call, begun=True).ids), 100)
        worker.stopping.set()

    def test_other_pages(self) -> None:
        """404 and 405 in words."""
        status, text = self.get("nothing")
        self.assertEqual(status, 404)
        self.assertIn("/metrics", text)


class DeafListener(unittest.TestCase):
    """A port that nobody answers any more."""

    def test_healthz_dials_the_listener(self) -> None:
        """When all descriptors were in use the listener does not recover, and /healthz tells."""
        with Coordinator(prefix=("prlimit", "--nofile=60:60")) as server:
            url = f"http://127.0.0.1:{server.http}/healthz"
            self.assertEqual(fetch(url), 200)
            held = []
            for _ in range(100):
                connection = socket.create_connection(("127.0.0.1", server.port), 5)
                held.append(connection)
            time.sleep(1)
            for connection in held:
                connection.close()
            rpc.eventually(lambda: fetch(url) in (200, 503), "HTTP answers again", PATIENCE_S)
            channel = server.channel()
            ask = rpc.message("nosa.v1.ListModelsRequest")()
            models = rpc.Service(channel, "nosa.v1.Inference").ListModels
            served = rpc.status_of(lambda: models(ask, timeout=3))[0] == Code.OK
            rpc.eventually(
                lambda: fetch(url) == (200 if served else 503), "it tells how it is", PATIENCE_S
            )
            channel.close()


class Log(Case):
    """Lines in JSON."""

    arguments = (
        "--worker-timeout", "3", "--log-format", "json", "--log-level", "debug",
        "--slow-request", "0.3",
    )  # fmt: skip

    def lines(self, word: str) -> list[dict[str, Any]]:
        """Those whose message has the word."""
        return [line for line in self.json_lines() if word in line["message"]]

    def test_every_line(self) -> None:
        """One object each, about a request and a worker where there is one."""
        one = self.worker("w0", delay_s=0.01)
        self.generate(request_id='odd "id" \\ é')
        call = self.start(max_tokens=100, request_id="slow")
        next(call)
        self.worker("w1", delay_s=0.005)
        one.kill()
        Answer(call, begun=True)
        self.refuse(Code.INVALID_ARGUMENT, "max_tokens", max_tokens=0)
        rpc.eventually(lambda: self.lines("slow: request"), "the slow line", PATIENCE_S)
        for line in self.json_lines():
            self.assertLessEqual({"time", "level", "subsystem", "message"}, line.keys())
        odd = self.lines("odd")[0]
        self.assertEqual((odd["request"], odd["worker"]), ('odd "id" \\ é', "w0"))
        replay = self.lines("replayed on worker w1")[0]
        self.assertEqual((replay["request"], replay["worker"]), ("slow", "w1"))
        self.assertEqual({line["worker"] for line in self.lines("joined")}, {"w0", "w1"})
        slow = self.lines("slow: request")
        self.assertEqual([line["request"] for line in slow], ["slow"])
        self.assertEqual((slow[0]["level"], slow[0]["worker"]), ("warn", "w1"))
        for word in ("5 prompt tokens", "100 output tokens", "1 replays", "queued", "prefill"):
            self.assertIn(word, slow[0]["message"])

    def test_where_the_time_went(self) -> None:
        """Queue, prefill, decode, between workers and waiting for the reader add up."""
        one = self.worker("w0", delay_s=0.002)
        events = one.events

        def slowly(request: Any, context: Any) -> Any:
            """0.2 s in the queue and 0.3 s of prefill."""
            time.sleep(0.2)
            for number, event in enumerate(events(request, context)):
                yield event
                if number == 0:
                    time.sleep(0.3)

        one.events = slowly
        call = self.start(max_tokens=2000, request_id="long")
        first = [next(call) for _ in range(3)]
        one.kill()
        time.sleep(0.4)
        self.worker("w1", delay_s=0)
        Answer([*first, *call])
        rpc.eventually(lambda: self.lines("slow: request"), "the slow line", PATIENCE_S)
        text = self.lines("slow: request")[0]["message"]
        found = re.search(
            r"([\d.]+) s in all: ([\d.]+) queued, ([\d.]+) prefill, ([\d.]+) decode; of these "
            r"([\d.]+) without a worker, ([\d.]+) waiting for its reader, ([\d.]+) for KV",
            text,
        )
        self.assertIsNotNone(found, text)
        total, queued, prefill, decode, without, _, _ = map(float, found.groups())
        self.assertAlmostEqual(total, queued + prefill + decode, delta=0.003)
        self.assertTrue(0.2 <= queued < 0.2 + PATIENCE_S, text)
        self.assertGreaterEqual(prefill, 0.3)
        self.assertGreaterEqual(without, 0.4)
        self.assertLessEqual(without, decode)


class Frozen(Case):
    """A coordinator that stood still."""

    def test_stopped_for_longer_than_the_timeout(self) -> None:
        """After SIGSTOP and SIGCONT its workers are there again and streams go on."""
        self.worker(delay_s=0.01)
        call = self.start(max_tokens=300)
        events = [next(call) for _ in range(5)]
        os.kill(self.coordinator.process.pid, signal.SIGSTOP)
        time.sleep(2)
        os.kill(self.coordinator.process.pid, signal.SIGCONT)
        self.assertEqual(len(Answer([*events, *call]).ids), 300)
        self.wait_state("w0", 2)
        self.generate()


if __name__ == "__main__":
    tap.main()
