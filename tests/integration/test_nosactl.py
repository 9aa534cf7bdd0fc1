#!/usr/bin/env python3
"""nosactl against a real coordinator and a real worker: what operators call. Prints TAP."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import tempfile
import termios
import time
import unittest
from pathlib import Path
from typing import Any

import chaos
import cluster
import coordinator
import nosactl
import rpc
import tap

ENDLESS = 60000
"""Tokens that take seconds, whatever the machine."""
PATIENCE_S = cluster.PATIENCE_S
WORKER_KEYS = {
    "id", "address", "state", "model", "attention", "device", "version", "fingerprint",
    "tensor_parallel", "incarnation", "requests_running", "requests_waiting",
    "requests_suspended", "batch_max", "queue_max", "prefill_tokens_per_s",
    "decode_tokens_per_s", "tiers", "prefix_blocks", "heartbeat_age_ms", "uptime_ms", "reason",
}  # fmt: skip
REQUEST_KEYS = {
    "request_id", "worker_id", "state", "tokens", "prompt_tokens", "max_tokens", "model",
    "priority", "age_ms", "replays", "client", "client_name",
}  # fmt: skip
STATUS_KEYS = {
    "server", "version", "coordinator_id", "uptime_ms", "ready", "draining", "requests_running",
    "requests_waiting", "queue_max", "requests", "prompt_tokens", "generation_tokens",
    "replays_exact", "replays_inexact", "prompt_tokens_per_s", "generation_tokens_per_s",
    "ttft_p50_ms", "ttft_p99_ms", "inter_token_p50_ms", "inter_token_p99_ms", "workers", "models",
    "membership", "coordinators",
}  # fmt: skip


class Case(unittest.TestCase):
    """One cluster for all cases."""

    @classmethod
    def setUpClass(cls) -> None:
        """A coordinator and a worker."""
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        cls.model = chaos.make_model(Path(cls.folder.name))
        cls.server = coordinator.Coordinator("--drain-timeout", "60")
        cls.addClassCleanup(cls.server.stop)
        cls.worker = cluster.Worker(
            cls.model, "--coordinator", cls.server.address, "--id", "w1"
        )
        cls.addClassCleanup(cls.worker.__exit__)
        cls.env = {"NOSA_SERVER": cls.server.address}
        rpc.eventually(lambda: cls.states() == {"w1": "READY"}, "w1 is READY", PATIENCE_S)

    @classmethod
    def ctl(cls, *arguments: Any, **options: Any) -> subprocess.CompletedProcess[bytes]:
        """Runs nosactl on the cluster."""
        options["env"] = {**cls.env, **options.get("env", {})}
        return nosactl.run(*arguments, **options)

    @classmethod
    def json(cls, *arguments: Any) -> Any:
        """Runs it with --json."""
        return nosactl.run_json(*arguments, env=cls.env)

    @classmethod
    def states(cls) -> dict[str, str]:
        """Of the workers."""
        return {worker["id"]: worker["state"] for worker in cls.json("workers")}

    def refused(self, code: int, words: str, *arguments: Any, **options: Any) -> str:
        """It ends with this code and one line that has the words."""
        done = self.ctl(*arguments, **options)
        text = done.stderr.decode()
        self.assertEqual(done.returncode, code, f"{arguments}: {text}")
        self.assertIn(words, text)
        self.assertEqual(text.count("\n"), 1, text)
        self.assertTrue(text.startswith("nosactl: "), text)
        return text

    def endless(self, name: str) -> subprocess.Popen[bytes]:
        """A generation that runs for seconds, once it has begun."""
        stream = nosactl.start(
            "generate", "--prompt", "hello", "--max-tokens", ENDLESS, "--ignore-eos",
            "--request-id", name, env=self.env, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        self.addCleanup(self.reap, stream)
        rpc.eventually(lambda: name in self.running(), f"{name} runs", PATIENCE_S)
        return stream

    def reap(self, process: subprocess.Popen[bytes]) -> None:
        """Kills it if it lives, and closes what it leaves."""
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=PATIENCE_S)

    def running(self) -> dict[str, Any]:
        """The requests by their ids."""
        return {info["request_id"]: info for info in self.json("requests")}


class Usage(Case):
    """What needs no server, and what a server refuses."""

    def test_help_and_version(self) -> None:
        """On standard output, with 0."""
        for words in (["help"], ["--help"], ["-h"]):
            done = nosactl.run(*words)
            self.assertEqual((done.returncode, done.stderr), (0, b""), words)
            for command in ("workers", "status", "requests", "top", "cancel ID", "drain ID",
                            "resume ID", "generate", "bench", "completion"):  # fmt: skip
                self.assertIn(f"\n  {command} ", done.stdout.decode())
        self.assertRegex(nosactl.run("--version").stdout.decode(), r"^nosactl \d+\.\d+\.\d+\n$")
        self.assertRegex(nosactl.run("top", "--version").stdout.decode(), r"^nosactl \d")
        for words in (["help", "drain"], ["drain", "--help"], ["--help", "drain"]):
            text = nosactl.run(*words).stdout.decode()
            self.assertIn("Usage: nosactl drain ID [flags]", text)
            self.assertIn("--wait", text)
            self.assertIn("--server", text)

    def test_bad_usage(self) -> None:
        """One line that names the thing, and 2."""
        for words, said in (
            ([], "no command is given"),
            (["worker"], 'is "workers" meant'),
            (["xyzzy"], 'no command "xyzzy"'),
            (["drain"], "drain needs ID"),
            (["drain", "a", "b"], 'unexpected argument "b"'),
            (["workers", "--nope"], "--nope"),
            (["status", "--server", "nowhere"], '--server: "nowhere"'),
            (["status", "--server", "a:1,,b:2"], "an address is empty"),
            (["status", "--server", "127.0.0.1:0"], "it has no port"),
            (["status", "--timeout", "-1"], "--timeout"),
            (["status", "--token", "a b"], "--token"),
            (["status", "--token", "a", "--token-file", "b"], "given twice"),
            (["status", "--token-file", "/nonexistent"], "/nonexistent"),
            (["status", "--tls-ca", "/nonexistent"], "/nonexistent"),
            (["top", "--interval", "0"], "--interval"),
            (["completion", "tcsh"], 'no shell "tcsh"'),
            (["completion"], "completion needs bash|zsh|fish"),
            (["generate"], "exactly one of"),
            (["generate", "--prompt", "a", "--prompt-tokens", "1"], "exactly one of"),
            (["generate", "--prompt", ""], "the text is empty"),
            (["generate", "--prompt-tokens", "1,x"], "is not a token id"),
            (["generate", "--prompt-tokens", "1;2"], "where a comma was expected"),
            (["generate", "--prompt-tokens", "1", "--chat"], "--chat"),
            (["generate", "--prompt", "a", "--system", "b"], "goes with --chat"),
            (["generate", "--prompt", "a", "--logprobs", "1"], "goes with --json"),
            (["generate", "--prompt", "a", "--max-tokens", "0"], "--max-tokens"),
            (["generate", "--prompt", "a", "--top-p", "2"], "--top-p"),
            (["generate", "--prompt", "a", "--stop", "[1]"], "item 0 is no text"),
            (["generate", "--prompt", "a", "--stop", "[x"], "no JSON array"),
            (["generate", "--prompt-file", "/nonexistent"], "/nonexistent"),
            (["generate", "--prompt-file", "/"], "/"),
        ):
            self.refused(nosactl.USAGE, said, *words)
        self.refused(nosactl.USAGE, "NOSA_TIMEOUT", "status", env={"NOSA_TIMEOUT": "soon"})
        for text, said in (
            (b"", "standard input"),
            (b"\xff", "not UTF-8 at byte 0"),
            (b"a\0b", "a NUL at byte 1"),
        ):
            self.refused(nosactl.USAGE, said, "generate", "--prompt-file", "-", text=text)
        for text, said in (
            (b"[]", "at least one message"),
            (b"{", "line 1"),
            (b'[{"role": "user"}]', "message 0"),
        ):
            self.refused(nosactl.USAGE, said, "generate", "--messages", "-", text=text)

    def test_server_refuses(self) -> None:
        """The code of a call as an exit code, the field in the line."""
        self.refused(nosactl.NOT_FOUND, "worker_id", "drain", "nobody")
        self.refused(nosactl.NOT_FOUND, "worker_id", "resume", "nobody")
        self.refused(nosactl.NOT_FOUND, "request_id", "cancel", "nothing")
        ask = ("generate", "--prompt", "a")
        self.refused(nosactl.NOT_FOUND, "model", *ask, "--model", "none")
        self.refused(nosactl.USAGE, "cache_salt", *ask, "--cache-salt", "x" * 5000)
        self.refused(nosactl.USAGE, "stop_token_ids", *ask, "--stop-token-ids", "99999")
        self.refused(nosactl.USAGE, "resume_token_ids", *ask, "--resume-tokens", "99999")
        big = b"x" * (17 << 20)
        self.refused(nosactl.REFUSED, "text", "generate", "--prompt-file", "-", text=big)

    def test_server_away(self) -> None:
        """It says so, names who was asked, and 3; another address is asked."""
        dead = "127.0.0.1:1"
        for words in (["workers"], ["status"], ["requests"], ["cancel", "x"], ["drain", "x"],
                      ["resume", "x"], ["top", "--count", "1"],
                      ["generate", "--prompt", "a"]):  # fmt: skip
            self.refused(nosactl.UNAVAILABLE, dead, *words, "--server", dead)
        text = self.refused(
            nosactl.UNAVAILABLE, "no server answers at 127.0.0.1:1 and 127.0.0.1:2", "status",
            "--server", "127.0.0.1:1,127.0.0.1:2",
        )  # fmt: skip
        self.assertIn("UNAVAILABLE", text)
        both = f"{dead},{self.server.address}"
        self.assertEqual(self.json("status", "--server", both)["server"], self.server.address)
        done = self.ctl("generate", "--prompt", "a", "--max-tokens", 3, "--server", both)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(self.ctl("--server", both, "workers", "--quiet").stdout, b"w1\n")

    def test_output_fails(self) -> None:
        """A full disk is said, and 1."""
        with open("/dev/full", "wb") as full:
            for words in (["workers"], ["status", "--json"], ["help"], ["completion", "bash"],
                          ["generate", "--prompt", "a"]):  # fmt: skip
                done = self.ctl(*words, stdout=full)
                self.assertEqual(done.returncode, nosactl.FAILED, words)
                self.assertIn(b"standard output", done.stderr)
        rpc.eventually(lambda: not self.running(), "its call is cancelled", PATIENCE_S)

    def test_completion(self) -> None:
        """bash completes commands, flags, files, words and ids; other shells take their scripts."""
        folder = Path(nosactl.PROGRAM).parent
        path = {"PATH": f"{folder}:{os.environ['PATH']}", **self.env}
        script = nosactl.run("completion", "bash").stdout.decode()
        for line, word, expected in (
            ("nosactl wor", "wor", "workers"),
            ("nosactl drain --w", "--w", "--wait"),
            ("nosactl drain ", "", "w1"),
            ("nosactl completion z", "z", "zsh"),
            ("nosactl bench --arrivals e", "e", "even"),
            (f"nosactl generate --prompt-file {self.folder.name[:-1]}", self.folder.name[:-1],
             self.folder.name),
            ("nosactl workers --js", "--js", "--json"),
        ):  # fmt: skip
            words = line.split() + ([""] if line.endswith(" ") else [])
            asked = (
                f"{script}\nCOMP_LINE='{line}'\nCOMP_WORDS=({' '.join(map(repr, words))})\n"
                f"COMP_CWORD={len(words) - 1}\n_nosactl\nprintf '%s\\n' \"${{COMPREPLY[@]}}\""
            )
            done = subprocess.run(
                ["bash", "-c", asked], capture_output=True, text=True, check=False,
                env=nosactl.environment(**path), timeout=PATIENCE_S,
            )  # fmt: skip
            self.assertIn(expected, done.stdout.splitlines(), f"{line}: {done.stderr}")
            self.assertTrue(all(w.startswith(word) for w in done.stdout.split()), done.stdout)
        for shell in ("zsh", "fish"):
            text = nosactl.run("completion", shell).stdout
            self.assertIn(b"workers", text)
            if shutil.which(shell):
                done = subprocess.run([shell, "-n"], input=text, capture_output=True, check=False)
                self.assertEqual((done.returncode, done.stderr), (0, b""), shell)


class Looking(Case):
    """workers, status, requests, top."""

    def test_workers(self) -> None:
        """As text, as JSON, as ids."""
        (worker,) = self.json("workers")
        self.assertEqual(set(worker), WORKER_KEYS)
        self.assertEqual((worker["id"], worker["state"]), ("w1", "READY"))
        self.assertEqual(worker["address"], f"127.0.0.1:{self.worker.port}")
        self.assertEqual(worker["model"], self.model.name)
        self.assertEqual(worker["tiers"][0]["tier"], "gpu")
        self.assertGreater(worker["tiers"][0]["total_bytes"], 0)
        self.assertEqual(worker["batch_max"], 32)
        head, row = self.ctl("workers").stdout.decode().splitlines()
        self.assertEqual(head.split()[:3], ["WORKER", "STATE", "RUN"])
        self.assertRegex(row, r"^w1 +READY +\d/32 ")
        self.assertIn(worker["address"], row)
        self.assertEqual(self.ctl("workers", "--quiet").stdout, b"w1\n")
        done = self.ctl("workers", env={"NOSA_JSON": "true"})
        self.assertEqual(json.loads(done.stdout)[0]["id"], "w1")

    def test_status(self) -> None:
        """As text and as JSON."""
        before = self.json("status")
        self.assertEqual(set(before), STATUS_KEYS)
        self.ctl("generate", "--prompt", "hello", "--max-tokens", 5, "--ignore-eos")
        after = self.json("status")
        self.assertEqual(after["server"], self.server.address)
        self.assertEqual((after["ready"], after["draining"]), (True, False))
        self.assertEqual(after["workers"], {"READY": 1})
        self.assertEqual(after["requests"]["OK"], before["requests"].get("OK", 0) + 1)
        self.assertEqual(after["generation_tokens"], before["generation_tokens"] + 5)
        self.assertEqual(after["prompt_tokens"], before["prompt_tokens"] + 5)
        self.assertEqual(after["models"][0]["id"], self.model.name)
        self.assertEqual(after["membership"], "memory")
        text = self.ctl("status").stdout.decode()
        self.assertRegex(text, r"(?m)^state +ready$")
        self.assertRegex(text, r"(?m)^workers +1 READY$")
        self.assertIn(f"coordinator   {after['coordinator_id']}", text)

    def test_requests_and_cancel(self) -> None:
        """A stream is listed, and ends with 8 when it is cancelled."""
        self.assertEqual(self.json("requests"), [])
        self.assertEqual(self.ctl("requests").stdout, b"no requests\n")
        stream = self.endless("long one")
        info = self.running()["long one"]
        self.assertEqual(set(info), REQUEST_KEYS)
        self.assertEqual(info["worker_id"], "w1")
        self.assertIn(info["state"], ("QUEUED", "PREFILL", "DECODE", "PAUSED"))
        self.assertEqual((info["prompt_tokens"], info["max_tokens"]), (5, ENDLESS))
        self.assertIn("long one", self.ctl("requests").stdout.decode())
        self.assertEqual(self.ctl("requests", "--quiet").stdout, b"long one\n")
        done = self.ctl("cancel", "long one")
        self.assertEqual((done.returncode, done.stdout), (0, b"long one: cancelled\n"))
        _, text = stream.communicate(timeout=PATIENCE_S)
        self.assertEqual(stream.returncode, nosactl.CANCELLED, text)
        self.assertIn(b"CANCELLED", text)
        rpc.eventually(lambda: not self.running(), "nothing runs", PATIENCE_S)
        stream = self.endless("second")
        answer = self.json("cancel", "second")
        self.assertEqual(answer, {"request_id": "second", "cancelled": True})
        stream.communicate(timeout=PATIENCE_S)
        self.assertEqual(stream.returncode, nosactl.CANCELLED)

    def test_top_plain(self) -> None:
        """Without a terminal: looks one after the other, at most 80 columns; or JSON lines."""
        self.endless("watched")
        done = self.ctl("top", "--count", 3, "--interval", 0.1)
        text = done.stdout.decode()
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(text.count("WORKER"), 2 * 3)  # of workers and of requests
        self.assertIn("watched", text)
        self.assertNotIn("\033", text)
        self.assertLessEqual(max(map(len, text.splitlines())), 80)
        lines = self.ctl("top", "--count", 2, "--interval", 0.1, "--json").stdout.splitlines()
        for look in map(json.loads, lines):
            self.assertEqual(set(look), {"time", "status", "workers", "requests"})
            self.assertEqual(set(look["status"]), STATUS_KEYS)
            self.assertEqual(look["requests"][0]["request_id"], "watched")
        self.assertEqual(len(lines), 2)
        top = nosactl.start("top", "--interval", 0.1, env=self.env)
        self.addCleanup(self.reap, top)
        top.stdout.readline()
        top.send_signal(signal.SIGINT)
        top.communicate(timeout=PATIENCE_S)
        self.assertEqual(top.returncode, nosactl.INTERRUPTED)


class Terminal:
    """A pseudo-terminal with nosactl on it; use as a context."""

    def __init__(self, columns: int, lines: int, *arguments: Any, env: dict[str, str]) -> None:
        """Starts it."""
        self.master, slave = pty.openpty()
        self.slave = slave
        self.resize(columns, lines)
        self.before = termios.tcgetattr(slave)
        self.text = b""
        self.process = nosactl.start(
            *arguments, env={**env, "TERM": "xterm"}, stdin=slave, stdout=slave,
            start_new_session=True,
        )  # fmt: skip

    def resize(self, columns: int, lines: int) -> None:
        """Sets its size."""
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def read(self) -> None:
        """Takes what is there."""
        while select.select([self.master], [], [], 0.02)[0]:
            self.text += os.read(self.master, 65536)

    def screen(self) -> list[str]:
        """The lines of the last whole draw."""
        self.read()
        draws = re.findall(rb"\033\[\?2026h(.*?)\033\[\?2026l", self.text, re.DOTALL)
        if not draws:
            return []
        return [re.sub(r"\033\[[0-9?]*[A-Za-z]", "", line)
                for line in draws[-1].decode().replace("\r", "").split("\n")]  # fmt: skip

    def until(self, condition: Any, what: str) -> None:
        """Waits for the screen to show something."""
        rpc.eventually(lambda: condition(self.screen()), f"{what}: {self.screen()}", PATIENCE_S)

    def end(self) -> int:
        """Waits for its end; the exit status."""
        code = self.process.wait(PATIENCE_S)
        self.read()
        return code

    def __enter__(self) -> Terminal:
        """Itself."""
        return self

    def __exit__(self, *unused: object) -> None:
        """Ends it."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stderr.close()
        os.close(self.master)
        os.close(self.slave)


class Screen(Case):
    """top on a terminal."""

    def check_restored(self, terminal: Terminal) -> None:
        """The terminal is as it was: its modes, its cursor, its first buffer."""
        self.assertEqual(termios.tcgetattr(terminal.slave), terminal.before)
        self.assertTrue(terminal.text.endswith(b"\033[?25h\033[?1049l"), terminal.text[-40:])
        self.assertEqual(terminal.text.count(b"\033[?1049h"), 1)

    def test_top_screen(self) -> None:
        """Readable at 80 columns, follows the window, q ends it."""
        self.endless("watched")
        with Terminal(80, 24, "top", "--interval", 0.2, env=self.env) as terminal:
            terminal.until(lambda lines: any("watched" in line for line in lines), "the request")
            lines = terminal.screen()
            self.assertLessEqual(len(lines), 24)
            self.assertLessEqual(max(map(len, lines)), 80)
            self.assertTrue(any(line.startswith("w1 ") and "READY" in line for line in lines))
            row = next(line for line in lines if line.startswith("watched"))
            self.assertIn("127.", row)  # the client, last of the columns, is not cut off
            self.assertNotEqual(termios.tcgetattr(terminal.slave), terminal.before)
            terminal.resize(40, 10)
            terminal.process.send_signal(signal.SIGWINCH)
            terminal.until(
                lambda lines: 0 < len(lines) <= 10 and max(map(len, lines)) <= 40, "40 columns"
            )
            terminal.resize(132, 50)
            terminal.process.send_signal(signal.SIGWINCH)
            terminal.until(lambda lines: any("ADDRESS" in line for line in lines), "132 columns")
            os.write(terminal.master, b"xq")
            self.assertEqual(terminal.end(), 0)
            self.check_restored(terminal)

    def test_top_interrupted(self) -> None:
        """Ctrl-C and SIGTERM give the terminal back."""
        for number, code in (
            (signal.SIGINT, nosactl.INTERRUPTED),
            (signal.SIGTERM, nosactl.TERMINATED),
        ):
            with Terminal(80, 24, "top", env=self.env) as terminal:
                terminal.until(lambda lines: any("READY" in line for line in lines), "the worker")
                terminal.process.send_signal(number)
                self.assertEqual(terminal.end(), code)
                self.check_restored(terminal)

    def test_top_without_server(self) -> None:
        """Says so on the screen, comes back with the server, and ends at once on q."""
        with coordinator.Coordinator() as other:
            address = other.address
        with Terminal(80, 24, "top", "--interval", 0.2, "--server", address,
                      env=self.env) as terminal:  # fmt: skip
            terminal.until(lambda lines: "no server answers" in "".join(lines), "it is away")
            with coordinator.Coordinator("--listen", address):
                terminal.until(lambda lines: "no workers" in "".join(lines), "it is back")
            terminal.until(lambda lines: "no server answers" in "".join(lines), "away again")
            os.write(terminal.master, b"q")
            self.assertEqual(terminal.end(), nosactl.UNAVAILABLE)
            self.check_restored(terminal)


class Steering(Case):
    """drain and resume."""

    def test_drain_and_resume(self) -> None:
        """At once, with --wait, and with a bound."""
        stream = self.endless("in the way")
        start = time.monotonic()
        done = self.ctl("drain", "w1")
        self.assertLess(time.monotonic() - start, 5 if not rpc.SANITIZED else 30)
        self.assertEqual((done.returncode, done.stdout), (0, b"w1: DRAINING\n"))
        self.assertEqual(self.states(), {"w1": "DRAINING"})
        self.refused(nosactl.UNAVAILABLE, "ready", "generate", "--prompt", "a")
        self.refused(nosactl.DEADLINE, "DRAINING", "drain", "w1", "--wait", "--timeout", 0.5)
        waiting = nosactl.start("drain", "w1", "--wait", env=self.env)
        self.addCleanup(self.reap, waiting)
        time.sleep(0.3)
        self.assertIsNone(waiting.poll())
        self.ctl("cancel", "in the way")
        out, _ = waiting.communicate(timeout=PATIENCE_S)
        self.assertEqual((waiting.returncode, out), (0, b"w1: DRAINED\n"))
        stream.wait(PATIENCE_S)
        self.assertFalse(self.json("status")["ready"])
        self.assertRegex(self.ctl("status").stdout.decode(), "no worker is ready")
        self.assertEqual(self.json("drain", "w1"), {"worker_id": "w1", "state": "DRAINED"})
        self.assertEqual(self.json("resume", "w1"), {"worker_id": "w1", "state": "READY"})
        rpc.eventually(lambda: self.states() == {"w1": "READY"}, "READY", PATIENCE_S)
        self.assertEqual(self.ctl("generate", "--prompt", "a", "--max-tokens", 2).returncode, 0)


class Access(unittest.TestCase):
    """Tokens and certificates."""

    def test_tokens(self) -> None:
        """By flag, by file, by environment; 7 without one that may."""
        with tempfile.TemporaryDirectory() as folder:
            tokens = Path(folder) / "tokens"
            tokens.write_text("secret alice\nweak bob inference\n")
            mine = Path(folder) / "mine"
            mine.write_text("secret\n")
            with coordinator.Coordinator("--auth-tokens", str(tokens)) as server:
                ask = ("workers", "--server", server.address)
                for more, env in (
                    (("--token", "secret"), {}),
                    (("--token-file", str(mine)), {}),
                    ((), {"NOSA_TOKEN": "secret"}),
                ):
                    done = nosactl.run(*ask, *more, env=env)
                    self.assertEqual(done.returncode, 0, done.stderr)
                for more, word in (((), b"UNAUTHENTICATED"), (("--token", "no"), b"UNAUTH"),
                                   (("--token", "weak"), b"PERMISSION_DENIED")):  # fmt: skip
                    done = nosactl.run(*ask, *more)
                    self.assertEqual(done.returncode, nosactl.DENIED, done.stderr)
                    self.assertIn(word, done.stderr)
                    self.assertNotIn(b"secret", done.stderr)

    def test_tls(self) -> None:
        """Both sides prove who they are; else 3 or 2."""
        with tempfile.TemporaryDirectory() as folder:
            root, other = rpc.Authority(Path(folder), "ca"), rpc.Authority(Path(folder), "other")
            cert, key = root.issue("server")
            mine, mine_key = root.issue("operator")
            flags = ("--tls-cert", str(cert), "--tls-key", str(key), "--tls-ca", str(root.cert))
            with coordinator.Coordinator(*flags, tls=True) as server:
                ask = ("status", "--server", server.address, "--timeout", 5)
                own = ("--tls-cert", mine, "--tls-key", mine_key)
                done = nosactl.run(*ask, "--tls-ca", root.cert, *own)
                self.assertEqual(done.returncode, 0, done.stderr)
                done = nosactl.run("status", "--server", f"127.0.0.1:{server.port}", "--tls-ca",
                                   root.cert, *own, "--tls-name", "localhost")  # fmt: skip
                self.assertEqual(done.returncode, 0, done.stderr)
                for more in ((), ("--tls-ca", root.cert), ("--tls-ca", other.cert, *own)):
                    done = nosactl.run(*ask, *more)
                    self.assertEqual(done.returncode, nosactl.UNAVAILABLE, more)
                done = nosactl.run(*ask, "--tls-cert", mine)
                self.assertEqual(done.returncode, nosactl.USAGE, done.stderr)


if __name__ == "__main__":
    tap.main()
