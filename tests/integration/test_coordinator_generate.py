"""Generate of nosa-coordinator against a stock client: every field, and every end."""

from __future__ import annotations

import threading
import time
from typing import Any

import coordinator as cluster
import rpc
import tap
from coordinator import output_of
from coordinator_case import (
    CANCEL,
    CHAT,
    IDS,
    LENGTH,
    MESSAGE,
    PATIENCE_S,
    PAUSED,
    REQUEST,
    SAMPLING,
    STOP,
    Answer,
    Case,
    Code,
    text_of,
)

UNREAD = 3500  # tokens of a stream that nobody reads


class Generate(Case):
    """One worker, and every field."""

    def setUp(self) -> None:
        """With a worker."""
        super().setUp()
        self.one = self.worker()

    def test_generate_text(self) -> None:
        """Tokens, text, usage."""
        answer = self.generate(text="hello", max_tokens=20, return_prompt_token_ids=True)
        expected = output_of(list(b"hello"), 20)
        self.assertEqual(answer.ids, expected)
        self.assertEqual(answer.text, text_of(expected))
        self.assertEqual(answer.finished.reason, LENGTH)
        self.assertEqual(list(answer.accepted.prompt_token_ids), list(b"hello"))
        self.assertEqual(answer.accepted.prompt_tokens, 5)
        self.assertEqual(answer.accepted.worker_id, "w0")
        self.assertNotEqual(answer.accepted.seed, 0)
        self.assertTrue(answer.accepted.request_id)
        usage = answer.finished.usage
        self.assertEqual((usage.prompt_tokens, usage.completion_tokens), (5, 20))
        self.assertEqual((usage.cached_prompt_tokens, usage.kv_gpu_hits), (5, 11))
        self.assertGreater(usage.ttft_ms, 0)
        self.assertEqual(self.metric('nosa_requests_total{code="OK"}'), 1)
        self.assertEqual(self.metric("nosa_generation_tokens_total"), 20)

    def test_generate_passes_fields(self) -> None:
        """What the worker is told."""
        sampling = SAMPLING(temperature=0.5, top_p=0.25, top_k=7, min_p=0.125, seed=99)
        sampling.repetition_penalty, sampling.presence_penalty = 1.5, 0.5
        sampling.frequency_penalty = 0.25
        answer = self.generate(
            token_ids=IDS(ids=[1, 2, 9]), sampling=sampling, priority=-5, cache_salt="salt",
            logprobs=2, ignore_eos=True, stop_token_ids=[77], request_id="mine",
        )  # fmt: skip
        run = self.one.requests[-1]
        self.assertEqual(run.sampling, sampling)
        self.assertEqual((run.priority, run.cache_salt, run.logprobs), (-5, "salt", 2))
        self.assertEqual((run.request_id, run.ignore_eos), ("mine", True))
        self.assertEqual(list(run.stop_token_ids), [77])
        self.assertEqual(list(run.prompt_token_ids), [1, 2, 9])
        self.assertEqual((answer.accepted.seed, answer.accepted.request_id), (99, "mine"))
        self.assertEqual([entry.token_id for entry in answer.logprobs], answer.ids)
        self.assertEqual(answer.logprobs[0].logprob, -0.5)
        self.assertEqual(len(answer.logprobs[0].top), 1)
        self.generate()
        self.assertEqual(self.one.requests[-1].sampling.temperature, 0)

    def test_generate_chat(self) -> None:
        """The model's chat format."""
        chat = CHAT(messages=[MESSAGE(role="user", content="hi")])
        self.generate(chat=chat)
        prompt = bytes(self.one.requests[-1].prompt_token_ids).decode()
        self.assertIn("user\nhi", prompt)
        self.assertTrue(prompt.endswith("assistant\n"), prompt)

    def test_generate_stops(self) -> None:
        """Stop strings and tokens."""
        ids = output_of(list(b"hello"), 40)
        text = text_of(ids)
        stop = text[10:14]
        at = text.index(stop)
        answer = self.generate(max_tokens=40, stop=["zzzz", text[at + 1 : at + 5] + "!", stop])
        self.assertEqual(answer.text, text[:at])
        self.assertEqual(answer.finished.stop_sequence, stop)
        self.assertEqual(answer.finished.reason, STOP)
        self.assertEqual(answer.ids, ids[: at + 4])
        rpc.eventually(lambda: self.one.active == 0, "the worker's run is cancelled")
        first = ids[6]
        answer = self.generate(max_tokens=40, stop_token_ids=[first])
        self.assertEqual(answer.ids, ids[: ids.index(first) + 1])
        self.assertEqual(answer.text, text_of(ids[: ids.index(first)]))
        self.assertEqual((answer.finished.reason, answer.finished.stop_sequence), (STOP, ""))

    def test_generate_context_end(self) -> None:
        """Ends with LENGTH where the context does."""
        prompt = [5] * (cluster.CONTEXT - 4)
        answer = self.generate(token_ids=IDS(ids=prompt), max_tokens=1000)
        self.assertEqual(len(answer.ids), 4)
        self.assertEqual(answer.finished.reason, LENGTH)
        self.refuse(Code.INVALID_ARGUMENT, "token_ids", token_ids=IDS(ids=[5] * cluster.CONTEXT))

    def test_generate_resume(self) -> None:
        """Every cut gives the same ids and the same text."""
        whole = self.generate(max_tokens=12)
        for cut in (1, 5, 11):
            rest = self.generate(max_tokens=12, resume_token_ids=whole.ids[:cut])
            self.assertEqual(whole.ids[cut:], rest.ids)
            self.assertEqual(whole.text[cut:], rest.text)
            self.assertEqual(rest.finished.usage.completion_tokens, 12)
        runs = len(self.one.requests)
        done = self.generate(max_tokens=12, resume_token_ids=whole.ids)
        self.assertEqual((done.ids, done.text, done.finished.reason), ([], "", LENGTH))
        done = self.generate(
            max_tokens=12, resume_token_ids=whole.ids[:2], stop_token_ids=[whole.ids[1]]
        )
        self.assertEqual((done.ids, done.finished.reason), ([], STOP))
        self.assertEqual(len(self.one.requests), runs)
        self.refuse(
            Code.INVALID_ARGUMENT, "resume_token_ids", resume_token_ids=whole.ids[:3],
            stop_token_ids=[whole.ids[1]],
        )  # fmt: skip

    def test_generate_same_id_twice(self) -> None:
        """A request_id that runs is refused, and may be used again afterwards."""
        self.one.delay_s = 0.05
        first = self.start(request_id="same", max_tokens=40)
        next(first)
        self.refuse(Code.INVALID_ARGUMENT, "request_id", request_id="same")
        first.cancel()
        rpc.eventually(lambda: not self.running(), "the first one is gone")
        self.one.delay_s = 0
        self.generate(request_id="same")

    def test_generate_cancel_and_deadline(self) -> None:
        """Client's cancel, client's deadline, operator's cancel: the worker's run ends."""
        self.one.delay_s = 0.02
        call = self.start(max_tokens=3000)
        next(call)
        rpc.eventually(lambda: self.one.active == 1, "it runs")
        call.cancel()
        rpc.eventually(lambda: self.one.active == 0, "it ended")
        request = REQUEST(text="hello", max_tokens=3000)
        code, _ = rpc.status_of(lambda: list(self.inference.Generate(request, timeout=0.4)))
        self.assertEqual(code, Code.DEADLINE_EXCEEDED)
        rpc.eventually(lambda: self.one.active == 0, "it ended")
        call = self.start(max_tokens=3000, request_id="victim", priority=4)
        next(call)
        next(call)
        info = self.running()[0]
        self.assertEqual((info.request_id, info.worker_id), ("victim", "w0"))
        self.assertEqual((info.model, info.priority, info.max_tokens), ("demo", 4, 3000))
        self.assertGreaterEqual(info.tokens, 1)
        self.admin.Cancel(CANCEL(request_id="victim"), timeout=PATIENCE_S)
        code, text = rpc.status_of(lambda: list(call))
        self.assertEqual(code, Code.CANCELLED)
        rpc.eventually(lambda: self.one.active == 0, "it ended")
        code, text = rpc.status_of(
            lambda: self.admin.Cancel(CANCEL(request_id="victim"), timeout=PATIENCE_S)
        )
        self.assertEqual(code, Code.NOT_FOUND)

    def test_generate_many_streams(self) -> None:
        """32 streams at once, each as it is alone."""
        self.one.batch = 4
        results: dict[int, Answer] = {}

        def run(number: int) -> None:
            results[number] = self.generate(text=f"prompt {number}", max_tokens=50)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number, answer in results.items():
            expected = output_of(list(f"prompt {number}".encode()), 50)
            self.assertEqual(answer.ids, expected)
            self.assertEqual(answer.text, text_of(expected))
        self.assertEqual(len(results), 32)
        rpc.eventually(lambda: not self.running(), "nothing is left")

    def start_unread(self, request_id: str) -> Any:
        """A stream of large messages to a client that grants 64 KiB, read up to its Accepted."""
        self.one.delay_s = 0
        self.one.options["tops"] = 20
        small = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65536))
        channel = self.coordinator.channel(*small)
        self.addCleanup(channel.close)
        request = REQUEST(
            token_ids=IDS(ids=[4]), max_tokens=UNREAD, logprobs=20, request_id=request_id
        )
        call = rpc.Service(channel, cluster.INFERENCE).Generate(request, timeout=3 * PATIENCE_S)
        next(call)
        seen = [-1]

        def is_paused() -> bool:
            time.sleep(0.2)
            infos = [info for info in self.running() if info.request_id == request_id]
            seen.append(infos[0].tokens)
            return infos[0].state == PAUSED and seen[-1] == seen[-2]

        rpc.eventually(is_paused, "the stream is paused", PATIENCE_S)
        self.assertLess(seen[-1], UNREAD // 2)
        return call

    def test_generate_slow_reader(self) -> None:
        """Who does not read pauses its worker's stream, holds nobody up and loses nothing."""
        call = self.start_unread("slow")
        self.assertEqual(self.one.active, 1)
        start = time.monotonic()
        self.assertEqual(len(self.generate().ids), 10)
        self.assertLess(time.monotonic() - start, 5)
        answer = Answer(call, begun=True)
        self.assertEqual(answer.ids, output_of([4], UNREAD))
        self.assertEqual(len(answer.logprobs[-1].top), 20)

    def test_generate_slow_reader_cancelled(self) -> None:
        """A paused stream ends at once, by its client or by an operator."""
        for end in ("client", "operator"):
            call = self.start_unread(end)
            if end == "client":
                call.cancel()
            else:
                self.admin.Cancel(CANCEL(request_id=end), timeout=PATIENCE_S)
            self.wait_quiet()
            rpc.eventually(lambda: self.one.active == 0, "the worker's run ended", PATIENCE_S)
            self.assertEqual(rpc.status_of(lambda stream=call: list(stream))[0], Code.CANCELLED)

    def test_generate_default_sampling(self) -> None:
        """An absent Sampling is the model's; a present one stands for itself, zeros included."""
        default = SAMPLING(temperature=0.75, top_p=0.5, top_k=40, min_p=0.25)
        sampled = self.worker("w1", model="sampled", sampling=default)
        self.generate(model="sampled")
        run = sampled.requests[-1]
        self.assertEqual((run.sampling.temperature, run.sampling.top_p), (0.75, 0.5))
        self.assertEqual((run.sampling.top_k, run.sampling.min_p), (40, 0.25))
        self.assertNotEqual(run.sampling.seed, 0)
        self.generate(model="sampled", sampling=SAMPLING())
        self.assertEqual(sampled.requests[-1].sampling.temperature, 0)
        self.assertEqual(sampled.requests[-1].sampling.top_k, 0)
        self.generate(model="demo")
        self.assertEqual(self.one.requests[-1].sampling.temperature, 0)

    def test_generate_logprobs(self) -> None:
        """One for each token when asked for, none else."""
        self.assertEqual(len(self.generate(logprobs=0).logprobs), 0)
        answer = self.generate(logprobs=1, max_tokens=7)
        self.assertEqual([entry.token_id for entry in answer.logprobs], answer.ids)

    def test_generate_eos(self) -> None:
        """The model's end of text is delivered as an id alone; ignore_eos goes past it."""
        self.one.options["script"] = [*b"ab", cluster.EOS, *b"cd"]
        answer = self.generate(max_tokens=10)
        self.assertEqual((answer.ids, answer.text), ([*b"ab", cluster.EOS], "ab"))
        self.assertEqual((answer.finished.reason, answer.finished.stop_sequence), (STOP, ""))
        answer = self.generate(max_tokens=5, ignore_eos=True)
        self.assertEqual(len(answer.ids), 5)
        self.assertEqual(answer.finished.reason, LENGTH)

    def test_generate_resume_within_stop(self) -> None:
        """A stop string that begins before the cut and ends after it."""
        whole = self.generate(max_tokens=40)
        stop = whole.text[8:14]
        at = whole.text.index(stop)
        asked = {"max_tokens": 40, "stop": [stop]}
        first = self.generate(**asked)
        for cut in range(at, at + 5):
            rest = self.generate(**asked, resume_token_ids=whole.ids[:cut])
            before = self.text_after(whole.ids[:cut], stop)
            self.assertEqual(before + rest.text, first.text, cut)
            self.assertEqual(rest.finished.stop_sequence, stop)

    def text_after(self, ids: list[int], stop: str) -> str:
        """The text of the Deltas that carried these ids: what may begin a stop is held back."""
        text = text_of(ids)
        for size in range(min(len(stop), len(text)), 0, -1):
            if text.endswith(stop[:size]):
                return text[:-size]
        return text

    def test_text_whole_characters(self) -> None:
        """Characters of several tokens come whole; a part at the end is U+FFFD."""
        self.one.options["script"] = list("aé漢😀".encode()) + [0xE6]
        answer = self.generate(max_tokens=11)
        self.assertEqual(answer.text, "aé漢😀\ufffd")
        self.assertNotIn("\ufffd", "".join(answer.texts[:-1]))


if __name__ == "__main__":
    tap.main()
