"""TLS of the RPC server with stock gRPC clients: who is let in, who is not, and wrong files."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

import grpc
import rpc
import tap
from grpc_health.v1 import health_pb2, health_pb2_grpc

ECHO = "nosa.test.v1.Echo"
SAY = rpc.message("nosa.test.v1.SayRequest")
COUNT = rpc.message("nosa.test.v1.CountRequest")
BENCH = os.environ.get("NOSA_BENCH") or str(rpc.BUILD / "bin" / "nosa-bench")
PATIENCE_S = 60 if rpc.SANITIZED else 20


class Tls(unittest.TestCase):
    """One authority, a server's and a client's certificate, and strangers."""

    folder: Path

    @classmethod
    def setUpClass(cls) -> None:
        """Makes the certificates."""
        if not shutil.which("openssl"):
            raise unittest.SkipTest("no openssl to make certificates with")
        cls.folder = Path(tempfile.mkdtemp())
        cls.authority = rpc.Authority(cls.folder, "authority")
        cls.stranger = rpc.Authority(cls.folder, "stranger")
        cls.server_cert, cls.server_key = cls.authority.issue("server")
        cls.client_cert, cls.client_key = cls.authority.issue("client.example")
        cls.strange_cert, cls.strange_key = cls.stranger.issue("strange")

    @classmethod
    def tearDownClass(cls) -> None:
        """Removes them."""
        shutil.rmtree(cls.folder, ignore_errors=True)

    def server(self, *arguments: str) -> rpc.Server:
        """A server with its certificate."""
        return rpc.Server(
            "--tls-cert", str(self.server_cert), "--tls-key", str(self.server_key), *arguments
        )

    def channel(
        self, server: rpc.Server, authority: rpc.Authority, own: tuple[Path, Path] | None = None
    ) -> grpc.Channel:
        """A connection that trusts an authority, with an own certificate or without."""
        credentials = grpc.ssl_channel_credentials(
            authority.cert.read_bytes(),
            own[1].read_bytes() if own else None,
            own[0].read_bytes() if own else None,
        )
        options = [("grpc.use_local_subchannel_pool", 1)]
        return grpc.secure_channel(f"localhost:{server.ports[0]}", credentials, options)

    def say(self, channel: grpc.Channel) -> grpc.StatusCode:
        """How a call ends."""
        with channel:
            call = rpc.Service(channel, ECHO).Say
            return rpc.status_of(lambda: call(SAY(text="x"), timeout=PATIENCE_S))[0]

    def test_tls(self) -> None:
        """Who trusts the authority gets through; who does not, and plain text, do not."""
        with self.server() as server:
            with self.channel(server, self.authority) as channel:
                echo = rpc.Service(channel, ECHO)
                answer = echo.Say(SAY(text="secret"), timeout=PATIENCE_S)
                self.assertEqual((answer.text, answer.peer_name), ("secret", ""))
                self.assertEqual(sum(1 for _ in echo.Count(COUNT(count=2000))), 2000)
            self.assertEqual(
                self.say(self.channel(server, self.stranger)), grpc.StatusCode.UNAVAILABLE
            )
            self.assertEqual(self.say(server.channel()), grpc.StatusCode.UNAVAILABLE)

    def test_mutual_tls(self) -> None:
        """A CA makes client certificates compulsory, and their name is known to the server."""
        with self.server("--tls-ca", str(self.authority.cert)) as server:
            own = (self.client_cert, self.client_key)
            with self.channel(server, self.authority, own) as channel:
                answer = rpc.Service(channel, ECHO).Say(SAY(text="x"), timeout=PATIENCE_S)
                self.assertEqual(answer.peer_name, "client.example")
            self.assertEqual(
                self.say(self.channel(server, self.authority)), grpc.StatusCode.UNAVAILABLE
            )
            strange = (self.strange_cert, self.strange_key)
            self.assertEqual(
                self.say(self.channel(server, self.authority, strange)),
                grpc.StatusCode.UNAVAILABLE,
            )

    def own_client(self, server: rpc.Server, *arguments: object) -> tuple[int, str]:
        """The project's own client: its exit code, and what it says when it fails."""
        done = subprocess.run(
            [BENCH, "rpc", "--address", f"localhost:{server.ports[0]}", "--seconds", "0.05", "--kind",
             "unary", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )  # fmt: skip
        return done.returncode, done.stderr.splitlines()[-1] if done.stderr else ""

    def test_own_client(self) -> None:
        """The C client over mutual TLS, with the wrong authority, without a certificate."""
        ca, stranger = self.authority.cert, self.stranger.cert
        own = ("--tls-cert", self.client_cert, "--tls-key", self.client_key)
        with self.server("--tls-ca", str(ca)) as server:
            self.assertEqual(self.own_client(server, "--tls-ca", ca, *own), (0, ""))
            for arguments in (("--tls-ca", stranger, *own), ("--tls-ca", ca), ()):
                code, text = self.own_client(server, *arguments)
                self.assertEqual(code, 1)
                self.assertIn("UNAVAILABLE", text)
            code, text = self.own_client(server, "--tls-ca", ca, *own[:3], self.strange_key)
            self.assertEqual(code, 2)
            self.assertIn(f"{self.strange_key} does not belong to {self.client_cert}", text)

    def test_plain_port_beside(self) -> None:
        """A second port without TLS, as probes want it."""
        with self.server(
            "--tls-ca", str(self.authority.cert), "--also-listen", "127.0.0.1:0"
        ) as server:
            with grpc.insecure_channel(f"127.0.0.1:{server.ports[1]}") as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
                self.assertEqual(answer.status, health_pb2.HealthCheckResponse.SERVING)

    def refused(self, *arguments: object) -> str:
        """What a server says that cannot start."""
        done = subprocess.run(
            [rpc.SERVER, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        return done.stderr.strip().removeprefix("rpc-test-server: ")

    def test_wrong_files(self) -> None:
        """Each is named in one line."""
        cert, key, ca = self.server_cert, self.server_key, self.authority.cert
        garbage = self.folder / "garbage.pem"
        garbage.write_text("-----BEGIN CERTIFICATE-----\nno\n-----END CERTIFICATE-----\n")
        empty = self.folder / "empty.pem"
        empty.write_bytes(b"")
        binary = self.folder / "binary.pem"
        binary.write_bytes(b"\0\1\2")
        locked = self.folder / "locked.key"
        self.authority.run("ec", "-in", key, "-aes128", "-passout", "pass:x", "-out", locked)
        not_cert = "not a certificate in PEM format"
        not_key = "not a private key in PEM format without passphrase"
        missing = self.folder / "missing.pem"
        together = "a TLS certificate and its key are given together"
        cases = [
            ((cert, None, None), f"{together}: the key is missing"),
            ((None, key, None), f"{together}: the certificate is missing"),
            ((None, None, ca), "a TLS server needs a certificate and its key beside the CA"),
            ((garbage, key, None), f"{garbage}: {not_cert}"),
            ((empty, key, None), f"{empty}: {not_cert}"),
            ((binary, key, None), f"{binary}: not a PEM file"),
            ((key, key, None), f"{key}: {not_cert}"),
            ((cert, cert, None), f"{cert}: {not_key}"),
            ((cert, locked, None), f"{locked}: {not_key}"),
            ((cert, self.client_key, None), f"{self.client_key} does not belong to {cert}"),
            ((cert, key, garbage), f"{garbage}: {not_cert}"),
        ]
        for files, text in cases:
            arguments = []
            for flag, file in zip(("--tls-cert", "--tls-key", "--tls-ca"), files, strict=True):
                if file:
                    arguments += [flag, file]
            self.assertEqual(self.refused(*arguments), text)
        self.assertIn(str(missing), self.refused("--tls-cert", missing, "--tls-key", key))
        self.assertIn(str(self.folder), self.refused("--tls-cert", self.folder, "--tls-key", key))

    def test_expired(self) -> None:
        """A certificate that is out of date is not served."""
        cert, key = self.authority.issue("old", days=-1)
        text = self.refused("--tls-cert", cert, "--tls-key", key)
        self.assertEqual(text, f"{cert}: the certificate has expired")


if __name__ == "__main__":
    tap.main()
