"""A real etcd as a process on the loopback, with its data in a folder of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc
import rpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PROGRAM = shutil.which("etcd") or "/usr/bin/etcd"
CONTROL = shutil.which("etcdctl") or "/usr/bin/etcdctl"
SET = rpc.BUILD / "proto" / "nosa_etcd_proto.descriptor_set"
START_S = 60 if rpc.SANITIZED else 30
ELECTION_S = 10


def free_port() -> int:
    """A port that the kernel has just had free."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Etcd:
    """One member, alone in its cluster; use as a context."""

    def __init__(
        self,
        token: str = "nosa",
        tls: tuple[Path, Path, Path] | None = None,
        peers: dict[str, int] | None = None,
        name: str = "one",
    ) -> None:
        """Starts it; `token` names the cluster, `tls` is certificate, key and clients' CA. With
        `peers`, the cluster's names and ports, it is one of them, and not waited for."""
        self.folder = Path(tempfile.mkdtemp(prefix="nosa-etcd-"))
        self.port, self.name = free_port(), name
        self.peers = peers or {name: free_port()}
        self.token, self.tls = token, tls
        scheme = "https" if tls else "http"
        self.address = f"localhost:{self.port}" if tls else f"127.0.0.1:{self.port}"
        self.url = f"{scheme}://{self.address}"
        self.process: subprocess.Popen[bytes] | None = None
        self.launch()
        if not peers:
            self.wait()

    def command(self) -> list[str]:
        """How it is started."""
        client = self.url.replace("localhost", "127.0.0.1")
        peer = f"http://127.0.0.1:{self.peers[self.name]}"
        everyone = ",".join(f"{name}=http://127.0.0.1:{port}" for name, port in self.peers.items())
        words = [
            PROGRAM, "--name", self.name, "--data-dir", str(self.folder / "data"),
            "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
            "--initial-cluster", everyone, "--initial-cluster-token", self.token,
            "--logger", "zap", "--log-level", "error", "--unsafe-no-fsync",
        ]  # fmt: skip
        if self.tls:
            cert, key, authority = self.tls
            words += ["--cert-file", str(cert), "--key-file", str(key), "--client-cert-auth"]
            words += ["--trusted-ca-file", str(authority)]
        return words

    def start(self) -> None:
        """Starts it and waits until it serves."""
        self.launch()
        self.wait()

    def wait(self) -> None:
        """Until it serves."""
        rpc.eventually(self.is_serving, f"etcd serves: {self.folder / 'log'}", START_S)

    def launch(self) -> None:
        """Starts it."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={k: v for k, v in os.environ.items() if not k.startswith("ETCD")},
            )  # fmt: skip

    def is_serving(self) -> bool:
        """Whether it answers."""
        if self.process.poll() is not None:
            raise AssertionError((self.folder / "log").read_text(errors="replace")[-2000:])
        try:
            self.control("get", "/x")
        except subprocess.SubprocessError:
            return False
        return True

    def control(self, *arguments: str) -> str:
        """Runs etcdctl; what it prints."""
        words = [CONTROL, "--endpoints", self.url, "--command-timeout", "2s"]
        if self.tls:
            cert, key, authority = self.tls
            words += ["--cert", str(cert), "--key", str(key), "--cacert", str(authority)]
        done = subprocess.run(
            [*words, *arguments],
            env={**os.environ, "ETCDCTL_API": "3"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=10,
            check=True,
        )
        return done.stdout.decode()

    def keys(self, prefix: str = "/nosa/") -> list[str]:
        """Keys below a prefix. Asks again for a while: no cluster answers that elects a leader."""
        deadline = time.monotonic() + ELECTION_S
        while True:
            try:
                text = self.control("get", "--prefix", "--keys-only", prefix)
                break
            except subprocess.CalledProcessError:
                if time.monotonic() > deadline:
                    raise
        return [line[len(prefix) :] for line in text.splitlines() if line]

    def put_many(self, pairs: list[tuple[str, str]]) -> None:
        """Many keys, fast."""
        pool = descriptor_pool.DescriptorPool()
        for file in descriptor_pb2.FileDescriptorSet.FromString(SET.read_bytes()).file:
            pool.Add(file)

        def kind(name: str) -> Any:
            return message_factory.GetMessageClass(
                pool.FindMessageTypeByName(f"etcdserverpb.{name}")
            )

        with grpc.insecure_channel(self.address) as channel:
            call = channel.unary_unary(
                "/etcdserverpb.KV/Txn",
                request_serializer=kind("TxnRequest").SerializeToString,
                response_deserializer=kind("TxnResponse").FromString,
            )
            for start in range(0, len(pairs), 100):
                request = kind("TxnRequest")()
                for key, value in pairs[start : start + 100]:
                    request.success.add().request_put.CopyFrom(
                        kind("PutRequest")(key=key.encode(), value=value.encode())
                    )
                assert call(request, timeout=10).succeeded

    def signal(self, number: int) -> None:
        """Sends a signal."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and waits for the end."""
        self.process.kill()
        self.process.wait()

    def wipe(self) -> None:
        """Deletes the data of one that is dead."""
        shutil.rmtree(self.folder / "data")

    def __enter__(self) -> Etcd:
        """Itself."""
        return self

    def __exit__(self, *unused: object) -> None:
        """Ends it and its data."""
        if self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def cluster(count: int) -> list[Etcd]:
    """Members of one cluster, all serving."""
    peers = {f"m{i}": free_port() for i in range(count)}
    members = [Etcd(peers=peers, name=name) for name in peers]
    for member in members:
        member.wait()
    return members
