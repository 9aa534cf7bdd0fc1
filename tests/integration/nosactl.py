"""nosactl as a process. NOSACTL names the program (ctest sets it)."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import rpc

PROGRAM = os.environ.get("NOSACTL") or str(rpc.BUILD / "bin" / "nosactl")
TIMEOUT_S = 240 if rpc.SANITIZED else 60
OK, FAILED, USAGE, UNAVAILABLE, NOT_FOUND, REFUSED, DEADLINE, DENIED, CANCELLED = range(9)
INTERRUPTED, TERMINATED = 130, 143


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without any NOSA_ variable but `extra`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NOSA")}
    return {**kept, **extra}


def run(
    *arguments: Any, env: dict[str, str] | None = None, text: bytes = b"", stdout: Any = None
) -> subprocess.CompletedProcess[bytes]:
    """Runs it to its end."""
    return subprocess.run(
        [PROGRAM, *map(str, arguments)],
        input=text,
        stdout=stdout or subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(**(env or {})),
        timeout=TIMEOUT_S,
        check=False,
    )


def start(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
    """Starts it with both outputs on pipes."""
    options.setdefault("stdout", subprocess.PIPE)
    options.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.Popen(
        [PROGRAM, *map(str, arguments)],
        stderr=subprocess.PIPE,
        env=environment(**options.pop("env", {})),
        **options,
    )


def run_json(*arguments: Any, **options: Any) -> Any:
    """Runs with --json; what it prints, which is one line."""
    done = run(*arguments, "--json", **options)
    if done.returncode != 0:
        raise AssertionError(f"exit {done.returncode}: {done.stderr.decode(errors='replace')}")
    lines = done.stdout.decode().splitlines()
    if len(lines) != 1:
        raise AssertionError(f"{len(lines)} lines of JSON")
    return json.loads(lines[0])
