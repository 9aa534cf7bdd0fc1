#!/usr/bin/env python3
"""nosactl generate and the Python example against real coordinators and workers: every flag, and
coordinators that die in the middle. Prints TAP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import unittest.mock
from pathlib import Path
from typing import Any

import chaos
import coordinator
import grpc
import nosactl
import rpc
import tap
from chaos import PATIENCE_S, Cluster
from coordinator_case import CHAT, MESSAGE, REQUEST, SAMPLING, Answer

EXAMPLE = rpc.TREE / "examples" / "generate.py"
LONG = 400 if rpc.SANITIZED else 3000
"""Tokens of a stream that outlives a kill in its middle."""
ENDLESS = 60000
TEMPLATE = {"chat_template": "<|im_start|>{{ message.role }}<|im_end|>"}


def make_model(folder: Path) -> Path:
    """A small model over bytes that has a chat format."""
    model = chaos.make_model(folder)
    (model / "tokenizer_config.json").write_text(json.dumps(TEMPLATE))
    return model


def cluster_of(model: Path, **options: Any) -> Cluster:
    """A cluster that serves this model."""
    with unittest.mock.patch.object(chaos, "make_model", lambda folder: model):
        return Cluster(**options)


class Case(unittest.TestCase):
    """One worker; two coordinators, at addresses that stay when they start again."""

    @classmethod
    def setUpClass(cls) -> None:
        """Starts them."""
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        cls.model = make_model(Path(cls.folder.name))
        cls.home = cluster_of(cls.model, workers=1, coordinators=2)
        cls.addClassCleanup(cls.home.__exit__)
        cls.first, cls.second = cls.home.coordinators
        cls.both = f"{cls.first.address},{cls.second.address}"
        cls.channel = grpc.insecure_channel(cls.second.address, options=chaos.KEEPALIVE)
        cls.addClassCleanup(cls.channel.close)
        cls.inference = rpc.Service(cls.channel, coordinator.INFERENCE)

    def ctl(self, *arguments: Any, **options: Any) -> subprocess.CompletedProcess[bytes]:
        """Runs nosactl generate on both."""
        return nosactl.run("generate", *arguments, "--server", self.both, **options)

    def json(self, *arguments: Any, **options: Any) -> Any:
        """Runs it with --json."""
        return nosactl.run_json("generate", *arguments, "--server", self.both, **options)

    def ask(self, **fields: Any) -> Answer:
        """What a stock client gets."""
        return Answer(self.inference.Generate(REQUEST(**fields), timeout=PATIENCE_S))

    def kill_at(self, slot: Any, request_id: str, tokens: int) -> threading.Thread:
        """Kills a coordinator once a request has delivered so many tokens; the thread that does."""

        def kill() -> None:
            rpc.eventually(
                lambda: any(info.request_id == request_id and info.tokens >= tokens
                            for info in slot.requests()),
                f"{request_id} has {tokens} tokens", PATIENCE_S,
            )  # fmt: skip
            slot.kill()

        thread = threading.Thread(target=kill)
        thread.start()
        return thread

    def again(self, slot: Any) -> None:
        """Starts a killed coordinator."""
        slot.start()
        self.home.await_ready()


class Asking(Case):
    """Every flag."""

    def test_text_and_json(self) -> None:
        """The text as it is, the object whole."""
        expected = self.ask(text="hello", max_tokens=40, ignore_eos=True)
        ask = ("--prompt", "hello", "--max-tokens", 40, "--ignore-eos")
        done = self.ctl(*ask)
        self.assertEqual(done.returncode, 0)
        self.assertEqual(done.stdout.decode(), expected.text + "\n")
        self.assertRegex(done.stderr.decode(), r"^5 prompt tokens.*finished: length; request \w+")
        self.assertEqual(self.ctl(*ask, "--quiet").stderr, b"")
        answer = self.json(*ask)
        self.assertEqual(
            set(answer),
            {"request_id", "worker_id", "seed", "prompt_tokens", "tokens", "text",
             "finish_reason", "stop_sequence", "usage", "breaks", "timing"},
        )  # fmt: skip
        self.assertEqual(answer["tokens"], expected.ids)
        self.assertEqual(answer["text"], expected.text)
        self.assertEqual(answer["prompt_tokens"], list(b"hello"))
        self.assertEqual((answer["finish_reason"], answer["breaks"]), ("length", 0))
        self.assertEqual(answer["worker_id"], self.home.workers[0].name)
        self.assertEqual(answer["usage"]["completion_tokens"], 40)
        self.assertGreaterEqual(answer["timing"]["total_s"], answer["timing"]["ttft_s"])

    def test_inputs(self) -> None:
        """Text, file, standard input, ids, chat, messages."""
        expected = self.ask(text="what now", max_tokens=9).ids
        path = Path(self.folder.name) / "prompt"
        path.write_bytes(b"what now")
        ids = ", ".join(map(str, b"what now"))
        for words, text in (
            (("--prompt", "what now"), b""),
            (("--prompt-file", path), b""),
            (("--prompt-file", "-"), b"what now"),
            (("--prompt-tokens", ids), b""),
        ):
            answer = self.json(*words, "--max-tokens", 9, text=text)
            self.assertEqual(answer["tokens"], expected, words)
        answer = self.json("--max-tokens", 9, env={"NOSA_PROMPT": "what now"})
        self.assertEqual(answer["tokens"], expected)
        answer = self.json("--prompt-tokens", ids, "--max-tokens", 9, env={"NOSA_PROMPT": "no"})
        self.assertEqual(answer["tokens"], expected)
        said = [MESSAGE(role="system", content="be kind"), MESSAGE(role="user", content="hi")]
        expected = self.ask(chat=CHAT(messages=said), max_tokens=9, return_prompt_token_ids=True)
        answer = self.json("--chat", "--system", "be kind", "--prompt", "hi", "--max-tokens", 9)
        self.assertEqual(answer["prompt_tokens"], list(expected.accepted.prompt_token_ids))
        self.assertEqual(answer["tokens"], expected.ids)
        text = json.dumps([{"role": m.role, "content": m.content} for m in said]).encode()
        answer = self.json("--messages", "-", "--max-tokens", 9, text=text)
        self.assertEqual(answer["tokens"], expected.ids)

    def test_sampling(self) -> None:
        """Each flag does what the field does."""
        for flags, fields in (
            (("--temperature", 0.8, "--seed", 7), {"temperature": 0.8, "seed": 7}),
            (("--top-k", 9, "--seed", 7), {"temperature": 1, "top_k": 9, "seed": 7}),
            (("--top-p", 0.5, "--temperature", 2, "--seed", 8),
             {"temperature": 2, "top_p": 0.5, "seed": 8}),
            (("--min-p", 0.1, "--seed", 9), {"temperature": 1, "min_p": 0.1, "seed": 9}),
            (("--repetition-penalty", 1.5, "--presence-penalty", 0.5, "--frequency-penalty", 0.25),
             {"repetition_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": 0.25}),
            (("--temperature", 0, "--seed", 5), {"seed": 5}),
        ):  # fmt: skip
            expected = self.ask(text="abc", max_tokens=30, sampling=SAMPLING(**fields))
            answer = self.json("--prompt", "abc", "--max-tokens", 30, *flags)
            self.assertEqual(answer["tokens"], expected.ids, flags)
            if "seed" in fields:
                self.assertEqual(answer["seed"], fields["seed"])
        one = self.json("--prompt", "abc", "--temperature", 1)
        two = self.json("--prompt", "abc", "--temperature", 1)
        self.assertNotEqual(one["seed"], two["seed"])
        again = self.json("--prompt", "abc", "--temperature", 1, "--seed", one["seed"])
        self.assertEqual(again["tokens"], one["tokens"])

    def test_seed_alone_keeps_the_models_settings(self) -> None:
        """--seed is no sampling flag."""
        with tempfile.TemporaryDirectory() as folder:
            model = chaos.make_model(Path(folder))
            settings = {"do_sample": True, "temperature": 0.9, "top_k": 30}
            (model / "generation_config.json").write_text(json.dumps(settings))
            with cluster_of(model, workers=1) as home:
                server = ("--server", home.coordinators[0].address)
                ask = ("generate", "--prompt", "abc", "--max-tokens", 30, "--ignore-eos", *server)
                whole = nosactl.run_json(*ask, "--seed", 11)
                self.assertEqual(whole["seed"], 11)
                same = nosactl.run_json(*ask, "--seed", 11, "--temperature", 0.9, "--top-k", 30)
                self.assertEqual(same["tokens"], whole["tokens"])
                self.assertNotEqual(nosactl.run_json(*ask)["tokens"], whole["tokens"])

    def test_stops_and_the_rest(self) -> None:
        """Stop strings and tokens, resumed tokens, log probabilities, names."""
        whole = self.ask(text="hello", max_tokens=60, ignore_eos=True)
        at = next(n for n, c in enumerate(whole.text) if n > 3 and c.isalnum())
        stop = whole.text[at]
        ask = ("--prompt", "hello", "--max-tokens", 60, "--ignore-eos")
        for given in (stop, json.dumps(["never so", stop])):
            answer = self.json(*ask, "--stop", given)
            self.assertEqual(answer["text"], whole.text[: whole.text.index(stop)])
            self.assertEqual((answer["stop_sequence"], answer["finish_reason"]), (stop, "stop"))
        last = whole.ids[20]
        answer = self.json(*ask, "--stop-token-ids", f"{last},{last}")
        self.assertEqual(answer["tokens"], whole.ids[: whole.ids.index(last) + 1])
        resumed = ",".join(map(str, whole.ids[:10]))
        answer = self.json(*ask, "--resume-tokens", resumed)
        self.assertEqual(answer["tokens"], whole.ids[10:])
        expected = self.ask(text="hello", max_tokens=5, logprobs=3)
        answer = self.json("--prompt", "hello", "--max-tokens", 5, "--logprobs", 3)
        self.assertEqual([len(top) for top in answer["top_logprobs"]], [3] * 5)
        self.assertEqual([e.logprob for e in expected.logprobs], answer["logprobs"])
        answer = self.json(*ask, "--request-id", "mine", "--cache-salt", "s", "--priority", -3,
                           "--model", self.model.name)  # fmt: skip
        self.assertEqual((answer["request_id"], answer["tokens"]), ("mine", whole.ids))

    def test_interrupt(self) -> None:
        """Ctrl-C and SIGTERM cancel the call; what came is printed."""
        for number, code, more in (
            (signal.SIGINT, nosactl.INTERRUPTED, ()),
            (signal.SIGTERM, nosactl.TERMINATED, ()),
            (signal.SIGINT, nosactl.INTERRUPTED, ("--json",)),
        ):
            stream = nosactl.start(
                "generate", "--prompt", "hello", "--max-tokens", ENDLESS, "--ignore-eos",
                "--request-id", "stopped", "--server", self.first.address, *more,
            )  # fmt: skip
            out: list[bytes] = []
            reader = threading.Thread(target=lambda p=stream, o=out: o.append(p.stdout.read()))
            reader.start()
            rpc.eventually(
                lambda: any(info.tokens > 100 for info in self.first.requests()), "it runs",
                PATIENCE_S,
            )  # fmt: skip
            stream.send_signal(number)
            self.assertEqual(stream.wait(PATIENCE_S), code)
            reader.join(PATIENCE_S)
            text = stream.stderr.read()
            stream.stdout.close()
            stream.stderr.close()
            if more:
                answer = json.loads(out[0])
                self.assertEqual(answer["finish_reason"], "interrupted")
                self.assertGreater(len(answer["tokens"]), 0)
                self.assertIsNone(answer["usage"])
            else:
                self.assertGreater(len(out[0]), 1)
                self.assertIn(b"finished: interrupted", text)
            self.home.await_quiet()

    def test_deadline(self) -> None:
        """--timeout ends the call with 6."""
        done = self.ctl("--prompt", "hello", "--max-tokens", ENDLESS, "--ignore-eos", "--timeout",
                        0.5, "--quiet")  # fmt: skip
        self.assertEqual(done.returncode, nosactl.DEADLINE, done.stderr)
        self.assertIn(b"DEADLINE_EXCEEDED", done.stderr)
        self.home.await_quiet()


    def test_cancel_at_another(self) -> None:
        """The coordinator that has the request is found."""
        stream = nosactl.start(
            "generate", "--prompt", "hello", "--max-tokens", ENDLESS, "--ignore-eos",
            "--request-id", "there", "--server", self.second.address, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        rpc.eventually(lambda: len(self.second.requests()) == 1, "it runs", PATIENCE_S)
        done = nosactl.run("cancel", "there", "--server", self.both)
        self.assertEqual((done.returncode, done.stdout), (0, b"there: cancelled\n"), done.stderr)
        stream.communicate(timeout=PATIENCE_S)
        self.assertEqual(stream.returncode, nosactl.CANCELLED)
        done = nosactl.run("cancel", "there", "--server", self.both)
        self.assertEqual(done.returncode, nosactl.NOT_FOUND, done.stderr)
        self.home.await_quiet()


class Dying(Case):
    """Coordinators and workers that die under a stream."""

    def carried(self, *flags: Any, server: str, down_s: float | None = None) -> Any:
        """A stream whose coordinator, the first, is killed; for so long, or until it has ended."""
        name = f"carried-{time.monotonic_ns()}"
        killer = self.kill_at(self.first, name, LONG // 10)

        def start_again() -> None:
            killer.join(PATIENCE_S)
            time.sleep(down_s)
            self.first.start()

        starter = threading.Thread(target=start_again)
        if down_s is not None:
            starter.start()
        answer = nosactl.run_json(
            "generate", "--max-tokens", LONG, "--ignore-eos", "--request-id", name, "--server",
            server, *flags,
        )  # fmt: skip
        killer.join(PATIENCE_S)
        if down_s is not None:
            starter.join(PATIENCE_S)
        else:
            self.first.start()
        self.home.await_ready()
        return answer

    def test_killed_with_another(self) -> None:
        """Greedy and drawn: tokens and text are those of an unbroken stream."""
        for flags in (
            ("--prompt", "hello"),
            ("--prompt", "hello", "--temperature", 0.9, "--top-p", 0.95, "--seed", 3),
            ("--prompt", "hello", "--temperature", 1.1, "--repetition-penalty", 1.3),
        ):
            carried = self.carried(*flags, server=self.both)
            self.assertEqual((carried["breaks"], len(carried["tokens"])), (1, LONG))
            seed = ("--seed", carried["seed"]) if "--seed" not in flags else ()
            whole = self.json(*flags, *seed, "--max-tokens", LONG, "--ignore-eos")
            self.assertEqual(carried["tokens"], whole["tokens"])
            self.assertEqual(carried["text"], whole["text"])
            self.assertEqual(carried["finish_reason"], "length")
            self.assertEqual(carried["usage"]["completion_tokens"], LONG)

    def test_killed_and_restarted(self) -> None:
        """The only coordinator comes back."""
        whole = self.json("--prompt", "again", "--max-tokens", LONG, "--ignore-eos")
        carried = self.carried("--prompt", "again", server=self.first.address, down_s=0.5)
        self.assertEqual(carried["tokens"], whole["tokens"])
        self.assertEqual(carried["text"], whole["text"])
        self.assertEqual(carried["breaks"], 1)

    def test_killed_text(self) -> None:
        """The text on standard output goes on letter by letter."""
        whole = self.json("--prompt", "text", "--max-tokens", LONG, "--ignore-eos")
        killer = self.kill_at(self.first, "printed", LONG // 10)
        done = self.ctl("--prompt", "text", "--max-tokens", LONG, "--ignore-eos", "--request-id",
                        "printed")  # fmt: skip
        killer.join(PATIENCE_S)
        self.again(self.first)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout.decode(), whole["text"] + "\n")
        self.assertIn(b"the stream broke, trying to go on", done.stderr)
        self.assertIn(b"went on after 1 broken stream", done.stderr)

    def test_connection_cut(self) -> None:
        """The coordinator lives, the connection does not: it goes on there."""
        whole = self.json("--prompt", "cut", "--max-tokens", LONG, "--ignore-eos")

        def cut() -> None:
            for tokens in (LONG // 10, LONG // 2):
                rpc.eventually(
                    lambda least=tokens: any(
                        info.request_id == "cut off" and info.tokens >= least
                        for info in self.first.requests()
                    ), "it runs", PATIENCE_S,
                )  # fmt: skip
                self.home.proxies.fault(self.first.link, "cut")

        thread = threading.Thread(target=cut)
        thread.start()
        answer = nosactl.run_json(
            "generate", "--prompt", "cut", "--max-tokens", LONG, "--ignore-eos", "--request-id",
            "cut off", "--server", self.first.address,
        )  # fmt: skip
        thread.join(PATIENCE_S)
        self.assertEqual((answer["tokens"], answer["text"]), (whole["tokens"], whole["text"]))
        self.assertGreaterEqual(answer["breaks"], 1)

    def test_frozen(self) -> None:
        """A coordinator that stops answering is left for the other one."""
        whole = self.json("--prompt", "ice", "--max-tokens", LONG, "--ignore-eos")

        def freeze() -> None:
            rpc.eventually(
                lambda: any(info.request_id == "frozen" and info.tokens > LONG // 10
                            for info in self.first.requests()), "it runs", PATIENCE_S,
            )  # fmt: skip
            os.kill(self.first.pid, signal.SIGSTOP)
            self.since = time.monotonic()

        thread = threading.Thread(target=freeze)
        thread.start()
        answer = self.json("--prompt", "ice", "--max-tokens", LONG, "--ignore-eos", "--request-id",
                           "frozen")  # fmt: skip
        thread.join(PATIENCE_S)
        seconds = time.monotonic() - self.since
        os.kill(self.first.pid, signal.SIGCONT)
        print(f"# it went on and ended {seconds:.1f} s after the freeze", flush=True)
        self.assertEqual((answer["tokens"], answer["text"]), (whole["tokens"], whole["text"]))
        self.assertEqual(answer["breaks"], 1)
        self.assertLess(seconds, PATIENCE_S / 2)
        self.home.await_ready()

    def test_killed_for_good(self) -> None:
        """Nobody to go on with: 3 after --resume-timeout, what came is printed."""
        for more in (("--resume-timeout", 0), ("--resume-timeout", 1)):
            name = f"lost-{more[1]}"
            killer = self.kill_at(self.first, name, 100)
            done = nosactl.run(
                "generate", "--prompt", "hello", "--max-tokens", ENDLESS, "--ignore-eos",
                "--request-id", name, "--server", self.first.address, "--json", *more,
            )  # fmt: skip
            killer.join(PATIENCE_S)
            self.again(self.first)
            self.assertEqual(done.returncode, nosactl.UNAVAILABLE, done.stderr)
            answer = json.loads(done.stdout)
            self.assertEqual(answer["finish_reason"], "failed")
            self.assertIn("UNAVAILABLE", answer["error"])
            self.assertGreater(len(answer["tokens"]), 0)

    def example(self, *arguments: Any) -> subprocess.CompletedProcess[bytes]:
        """Runs the Python example."""
        return subprocess.run(
            [sys.executable, "-B", EXAMPLE, *map(str, arguments)], capture_output=True,
            env=nosactl.environment(PYTHONIOENCODING="utf-8"), timeout=PATIENCE_S, check=False,
        )  # fmt: skip

    def test_example(self) -> None:
        """Answers, and says what is wrong."""
        expected = self.ask(text="hello", max_tokens=30)
        done = self.example("--server", self.first.address, "--plain", "--max-tokens", 30, "hello")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout.decode(), expected.text + "\n")
        said = CHAT(messages=[MESSAGE(role="user", content="hi")])
        done = self.example("--server", self.both, "--max-tokens", 9, "hi")
        self.assertEqual(done.stdout.decode(), self.ask(chat=said, max_tokens=9).text + "\n")
        done = self.example("--server", "127.0.0.1:1", "hello")
        self.assertEqual(done.returncode, 1)
        self.assertIn(b"UNAVAILABLE", done.stderr)

    def test_example_goes_on(self) -> None:
        """Its coordinator dies: another one, and the same after a restart."""
        for server, down in ((self.both, None), (self.first.address, 0.5)):

            def kill(down: float | None = down) -> None:
                rpc.eventually(
                    lambda: any(info.tokens >= LONG // 10 for info in self.first.requests()),
                    "it runs", PATIENCE_S,
                )  # fmt: skip
                self.first.kill()
                if down is not None:
                    time.sleep(down)
                    self.first.start()

            killer = threading.Thread(target=kill)
            killer.start()
            # No end-of-text token may end it early: a greedy prompt that is known to run long.
            done = self.example("--server", server, "--plain", "--temperature", 0, "--max-tokens",
                                LONG, self.long_prompt())  # fmt: skip
            killer.join(PATIENCE_S)
            if self.first.server.process.poll() is not None:
                self.again(self.first)
            self.home.await_ready()
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn(b"going on", done.stderr)
            whole = self.ask(text=self.long_prompt(), max_tokens=LONG, sampling=SAMPLING())
            self.assertEqual(done.stdout.decode(), whole.text + "\n")

    def test_example_connection_cut(self) -> None:
        """The coordinator lives, the connection does not: it goes on there, each token once, though
        the request's id is held for a moment."""
        prompt = self.long_prompt()
        cuts: list[int] = []

        def cut() -> None:
            for tokens in (LONG // 10, LONG // 2):
                rpc.eventually(
                    lambda least=tokens: any(
                        info.tokens >= least for info in self.first.requests()
                    ), "it runs", PATIENCE_S,
                )  # fmt: skip
                name = self.first.requests()[0].request_id
                self.home.proxies.fault(self.first.link, "cut")
                cuts.append(tokens)
                self.hold(name)

        thread = threading.Thread(target=cut)
        thread.start()
        done = self.example("--server", self.first.address, "--plain", "--temperature", 0,
                            "--max-tokens", LONG, prompt)  # fmt: skip
        thread.join(PATIENCE_S)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertTrue(cuts)
        self.assertIn(b"going on", done.stderr)
        whole = self.ask(text=prompt, max_tokens=LONG, sampling=SAMPLING())
        self.assertEqual(done.stdout.decode(), whole.text + "\n")

    def hold(self, name: str) -> None:
        """Takes the id of a broken request as soon as it is free, for longer than its client waits
        before it goes on; without success when the client was faster."""
        until = time.monotonic() + 0.5
        with grpc.insecure_channel(f"127.0.0.1:{self.first.server.port}") as channel:
            inference = rpc.Service(channel, coordinator.INFERENCE)
            while time.monotonic() < until:
                call = inference.Generate(
                    REQUEST(request_id=name, text="hold", max_tokens=ENDLESS, ignore_eos=True)
                )
                if rpc.status_of(lambda stream=call: next(stream))[0] == grpc.StatusCode.OK:
                    time.sleep(0.6)
                    call.cancel()
                    return

    def long_prompt(self) -> str:
        """A prompt whose greedy answer meets no end of text for LONG tokens."""
        if not hasattr(type(self), "found"):
            for number in range(200):
                text = f"prompt {number}"
                fields = {"text": text, "max_tokens": LONG, "sampling": SAMPLING()}
                if len(self.ask(**fields).ids) == LONG:
                    type(self).found = text
                    break
            else:
                raise AssertionError("every prompt ends early")
        return type(self).found


class Workers(unittest.TestCase):
    """A worker dies; nosactl sees nothing of it."""

    def test_worker_killed(self) -> None:
        """The stream goes on with the other one."""
        with Cluster(workers=2) as home:
            server = home.coordinators[0]
            ask = ("generate", "--prompt", "worker", "--max-tokens", LONG, "--ignore-eos",
                   "--server", server.address)  # fmt: skip
            whole = nosactl.run_json(*ask)

            def kill() -> None:
                running = lambda: [i for i in server.requests() if i.tokens > LONG // 10]
                rpc.eventually(lambda: bool(running()), "it runs", PATIENCE_S)
                name = running()[0].worker_id
                next(w for w in home.workers if w.name == name).end(signal.SIGKILL)

            killer = threading.Thread(target=kill)
            killer.start()
            answer = nosactl.run_json(*ask)
            killer.join(PATIENCE_S)
            self.assertEqual((answer["tokens"], answer["text"]), (whole["tokens"], whole["text"]))
            self.assertEqual(answer["breaks"], 0)


if __name__ == "__main__":
    tap.main()
