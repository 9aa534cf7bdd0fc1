"""nosa-coordinator as a program: flags, tokens, TLS."""

from __future__ import annotations

import subprocess
import tempfile
import unittest
import urllib.request
from pathlib import Path

import coordinator as cluster
import grpc
import rpc
import tap
from coordinator import Coordinator
from coordinator_case import STATUS, Code


class Program(unittest.TestCase):
    """Flags, tokens, TLS, the end."""

    def test_bad_flags(self) -> None:
        """One line that names the thing, and exit code 2."""
        with Coordinator() as other, tempfile.TemporaryDirectory() as folder:
            empty = Path(folder) / "tokens"
            empty.write_text("justatoken\n")
            for arguments, word in (
                (("--listen", other.address), other.address),
                (("--listen", "nowhere"), "--listen"),
                (("--listen", "no-such-host.invalid:50"), "no-such-host.invalid"),
                (("--listen", "203.0.113.1:50"), "203.0.113.1:50"),
                (("--http", f"127.0.0.1:{other.http}"), f"127.0.0.1:{other.http}"),
                (("--http", "no-such-host.invalid:50"), "no-such-host.invalid"),
                (("--http", "nowhere"), "--http"),
                (("--replay-limit", "0"), "--replay-limit"),
                (("--drain-timeout", "-1"), "--drain-timeout"),
                (("--log-format", "xml"), "--log-format"),
                (("--no-such-flag",), "--no-such-flag"),
                (("--max-queue", "0"), "--max-queue"),
                (("--worker-timeout", "nan"), "--worker-timeout"),
                (("--auth-tokens", "/does/not/exist"), "/does/not/exist"),
                (("--auth-tokens", str(empty)), "line 1"),
                (("--tls-ca", "/no/ca"), "beside the CA"),
                (("--tls-cert", "/no/cert", "--tls-key", "/no/key"), "/no/"),
                (("--max-prompt-bytes", "auto"), "--max-prompt-bytes"),
            ):
                done = subprocess.run(
                    [cluster.PROGRAM, "--listen", "127.0.0.1:0", *arguments]
                    if "--listen" not in arguments
                    else [cluster.PROGRAM, *arguments],
                    capture_output=True, text=True, timeout=60, check=False,
                    env=cluster.environment(),
                )  # fmt: skip
                self.assertEqual(done.returncode, 2, done.stderr)
                self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
                self.assertIn(word, done.stderr)

    def test_auth_tokens(self) -> None:
        """Without a token, with a wrong one, with one that may not steer."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "tokens"
            file.write_text("# names\ns3cret alice\nweak bob inference\n")
            with Coordinator("--auth-tokens", str(file)) as server, server.channel() as channel:
                inference = rpc.Service(channel, cluster.INFERENCE)
                admin = rpc.Service(channel, cluster.ADMIN)
                models = rpc.message("nosa.v1.ListModelsRequest")()
                status = rpc.message("nosa.v1.StatusRequest")()
                for call, request, token, code in (
                    (inference.ListModels, models, None, Code.UNAUTHENTICATED),
                    (inference.ListModels, models, "wrong", Code.UNAUTHENTICATED),
                    (inference.ListModels, models, "s3cret", Code.OK),
                    (inference.ListModels, models, "weak", Code.OK),
                    (admin.Status, status, "s3cret", Code.OK),
                    (admin.Status, status, "weak", Code.PERMISSION_DENIED),
                ):
                    metadata = [("authorization", f"Bearer {token}")] if token else []
                    got = rpc.status_of(lambda: call(request, metadata=metadata, timeout=10))
                    self.assertEqual(got[0], code, f"{token}: {got}")

    def test_tls(self) -> None:
        """With a CA a client's certificate is compulsory, and its name is known."""
        with tempfile.TemporaryDirectory() as folder:
            authority = rpc.Authority(Path(folder), "authority")
            cert, key = authority.issue("server")
            own = authority.issue("carol")
            flags = ("--tls-cert", str(cert), "--tls-key", str(key), "--tls-ca")
            with Coordinator(*flags, str(authority.cert), tls=True) as server:
                root = authority.cert.read_bytes()
                models = rpc.message("nosa.v1.ListModelsRequest")()
                for pair, code in ((own, Code.OK), (None, Code.UNAVAILABLE)):
                    chain, private = (pair[0], pair[1]) if pair else (None, None)
                    credentials = grpc.ssl_channel_credentials(
                        root,
                        private.read_bytes() if private else None,
                        chain.read_bytes() if chain else None,
                    )
                    with grpc.secure_channel(server.address, credentials) as channel:
                        call = rpc.Service(channel, cluster.INFERENCE).ListModels
                        got = rpc.status_of(lambda: call(models, timeout=10))
                        self.assertEqual(got[0], code, got)
                url = f"http://127.0.0.1:{server.http}/healthz"
                with urllib.request.urlopen(url) as page:
                    self.assertEqual(page.status, 200)


if __name__ == "__main__":
    tap.main()
