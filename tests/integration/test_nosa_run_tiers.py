#!/usr/bin/env python3
"""nosa-run over KV tiers: whatever they are and whatever happens to the file, the same bits.

NOSA_KILL_ROUNDS sets how often a run is killed (20); the long suite takes 200. Prints TAP.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import tempfile
import time
import unittest
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import tap
from program import (
    NOBODY,
    PROGRAM,
    RANDOM,
    SANITIZED,
    TIMEOUT_S,
    Checkpoint,
    as_nobody,
    dump_logits,
    environment,
    golden_tokens,
    run,
    run_json,
    start,
)

MODEL = "kv4_group4_d16_r1_yarn"
"""float32, eviction head, two layers, four KV heads of 16: a record is 8 KiB."""
LENGTH = 900
CACHED = (LENGTH - 1) // 64 * 64
"""What another run can take over: whole blocks that leave a token to compute."""
MODES = ("nosa", "infllmv2", "full")
POLICIES = ("eddma", "lru", "lowest-e")
FILE = "nosa-kv.dat"
PAGE = 4096
SEGMENT = 64
RECORDS = 8
IMAGE = 17 * PAGE
"""Eight records of two pages, and their summaries."""
KILL_ROUNDS = int(os.environ.get("NOSA_KILL_ROUNDS", "20"))


def flags(model: Any = RANDOM / MODEL, length: int = LENGTH, first: int = 0) -> list[Any]:
    """A model, a prompt from its goldens, eight tokens after it."""
    tokens = np.load(RANDOM / MODEL / "tokens.npy")[first : first + length]
    return [
        "--model", model, "--prompt-tokens", ",".join(map(str, tokens)), "--max-tokens", 8,
        "--ignore-eos", "--prefill-chunk", 64,
    ]  # fmt: skip


def least(*arguments: Any) -> int:
    """What the refusal of a first tier of one byte says is enough."""
    done = run(*flags(), *arguments, "--gpu-kv-bytes", 1)
    found = re.search(rb"give at least (\d+)\n\Z", done.stderr)
    if done.returncode != 2 or not found:
        raise AssertionError(done.stderr.decode())
    return int(found[1])


@dataclass
class Extent:
    """One block in the file."""

    number: int
    header: int  # offset, as the next
    payload: int
    tokens: tuple[int, ...]


def file_bytes(blocks: int) -> int:
    """Size of a file of one segment, with place for so many blocks."""
    return PAGE + SEGMENT * PAGE + blocks * IMAGE


def extents(path: Path) -> list[Extent]:
    """What a file of one segment holds, by the layout that extent_format.h states."""
    data = path.read_bytes()
    found = []
    for number in range((len(data) - file_bytes(0)) // IMAGE):
        header = PAGE + number * PAGE
        if data[header : header + 8] == b"NOSAEXT\n":
            tokens = struct.unpack_from("<64I", data, header + 160)
            found.append(Extent(number, header, file_bytes(number), tokens))
    return found


def flip(path: Path, *places: tuple[int, int]) -> None:
    """Turns bits over: (offset, bit)."""
    with open(path, "r+b") as file:
        for offset, bit in places:
            file.seek(offset)
            (byte,) = file.read(1)
            file.seek(offset)
            file.write(bytes([byte ^ 1 << bit]))


class Tiers(unittest.TestCase):
    """A folder, and what a run with everything resident gives in each mode."""

    expected: dict[tuple[str, int], tuple[bytes, list[int]]] = {}

    def setUp(self) -> None:
        """A folder of its own for every case, which others may enter."""
        self.holder = tempfile.TemporaryDirectory()
        self.folder = Path(self.holder.name)
        self.folder.chmod(0o755)
        self.nvme = self.folder / "kv"
        self.file = self.nvme / FILE

    def tearDown(self) -> None:
        """Removes it."""
        self.holder.cleanup()

    def resident(self, mode: str, tp: int) -> tuple[bytes, list[int]]:
        """Logits and tokens without any tier but the first."""
        if (mode, tp) not in self.expected:
            logits, result = dump_logits(*flags(), "--attention", mode, "--tp", tp)
            self.expected[mode, tp] = (logits.tobytes(), result["tokens"])
        return self.expected[mode, tp]

    def check(self, *arguments: Any, mode: str = "nosa", tp: int = 1) -> dict[str, Any]:
        """Runs; the same bits as resident; the JSON object."""
        logits, result = dump_logits(*flags(), "--attention", mode, "--tp", tp, *arguments)
        expected, tokens = self.resident(mode, tp)
        self.assertEqual(result["tokens"], tokens)
        self.assertEqual(logits.tobytes(), expected)
        return result

    def small_file(self) -> list[Any]:
        """Flags of a third tier with place for 20 blocks."""
        return ["--nvme-dir", self.nvme, "--nvme-kv-bytes", file_bytes(20)]

    def refused(self, needle: str, *arguments: Any) -> None:
        """Exit code 2 and one line that names the thing."""
        done = run(*flags(), "--json", *arguments)
        text = done.stderr.decode()
        self.assertEqual((done.returncode, done.stdout), (2, b""), text)
        self.assertRegex(text, rf"\Anosa-run: [^\n]*{needle}[^\n]*\n\Z")


class TestSameBits(Tiers):
    """Tiers of any size, any policy, any mode, any number of ranks."""

    def test_every_tier_huge_tiny_or_absent(self) -> None:
        """In memory: the first tier alone, huge, at its least and a little above."""
        for mode in MODES:
            for tp in (1, 2):
                small = least("--attention", mode, "--tp", tp)
                huge = ["--gpu-kv-bytes", "64M"]
                settings = [
                    [*huge, "--host-kv-bytes", 0],
                    [*huge, "--host-kv-bytes", "64M"],
                    *(["--gpu-kv-bytes", small, "--kv-policy", policy] for policy in POLICIES),
                    ["--gpu-kv-bytes", small * 5 // 4, "--host-kv-bytes", "64M"],
                ]
                for setting in settings:
                    with self.subTest(mode=mode, tp=tp, setting=setting):
                        kv = self.check(*setting, mode=mode, tp=tp)["kv"]
                        self.assertEqual(kv["host_hits"] > 0, setting[1] != "64M")
                        self.assertEqual(kv["nvme_hits"], 0)

    def test_prefix_is_found_by_a_second_process(self) -> None:
        """Written by a run whose tiers hold everything, and read by others, of any tiers."""
        for mode in MODES:
            for tp in (1, 2):
                directory = ["--nvme-dir", self.folder / f"{mode}{tp}"]
                small = least("--attention", mode, "--tp", tp)
                first = self.check(*directory, mode=mode, tp=tp)
                self.assertEqual(first["cached_prompt_tokens"], 0)
                self.assertGreaterEqual(first["kv"]["nvme_written_bytes"], 14 * IMAGE)
                for setting in (
                    [],
                    ["--gpu-kv-bytes", small, "--kv-policy", "lru"],
                    ["--gpu-kv-bytes", small, "--host-kv-bytes", 16 * IMAGE],
                    ["--gpu-kv-bytes", small * 5 // 4, "--kv-policy", "lowest-e"],
                ):
                    with self.subTest(mode=mode, tp=tp, setting=setting):
                        again = self.check(*directory, *setting, mode=mode, tp=tp)
                        self.assertEqual(again["cached_prompt_tokens"], CACHED)
                        self.assertGreaterEqual(again["kv"]["nvme_read_bytes"], 14 * IMAGE)
                        self.assertEqual(again["kv"]["recomputed_blocks"], 0)

    def test_sequence_larger_than_first_tier_and_host(self) -> None:
        """Four images beside the least first tier: blocks are left to NVMe and read in steps."""
        for mode in MODES:
            for tp in (1, 2):
                small = least("--attention", mode, "--tp", tp)
                for policy in POLICIES[: 3 if tp == 1 else 1]:
                    setting = ["--nvme-dir", self.folder / f"{mode}{tp}{policy}"]
                    setting += ["--gpu-kv-bytes", small, "--host-kv-bytes", 4 * IMAGE]
                    setting += ["--kv-policy", policy]
                    with self.subTest(mode=mode, tp=tp, policy=policy):
                        kv = self.check(*setting, mode=mode, tp=tp)["kv"]
                        self.assertGreater(kv["nvme_hits"], 0)
                        again = self.check(*setting, mode=mode, tp=tp)
                        self.assertEqual(again["cached_prompt_tokens"], CACHED)
                        self.assertEqual(again["kv"]["recomputed_blocks"], 0)

    def test_ranks_do_not_share_what_rounds_differently(self) -> None:
        """One rank's KV is not another number of ranks'; both are kept in one file."""
        directory = ["--nvme-dir", self.nvme]
        for tp, cached in ((1, 0), (2, 0), (1, CACHED), (2, CACHED)):
            result = self.check(*directory, tp=tp)
            self.assertEqual(result["cached_prompt_tokens"], cached)


    def test_sizes_taken_are_printed(self) -> None:
        """Of each tier that there is, what `auto` chose included, and how NVMe is reached."""
        first = r"KV cache [\d.]+ \w+ for (\d+) tokens"
        host = r", host tier ([\d.]+ \w+) for (\d+) tokens"
        nvme = r", NVMe tier ([\d.]+ \w+) for (\d+) tokens \((io_uring|threads)\)"

        def printed(pattern: str, *arguments: Any) -> tuple[str, ...]:
            done = run(*flags(), *arguments)
            self.assertEqual(done.returncode, 0, done.stderr)
            found = re.search(rf"; weights [\d.]+ \w+, {pattern}\n", done.stderr.decode())
            self.assertTrue(found, done.stderr)
            return found.groups()

        alone = int(printed(first)[0])
        self.assertGreaterEqual(alone, LENGTH + 8)
        small, size, held = printed(first + host, "--gpu-kv-bytes", least())
        self.assertLess(int(small), alone)
        self.assertNotEqual(size, "0 B")
        self.assertGreaterEqual(int(held), alone - int(small))
        wide = printed(first + host, "--gpu-kv-bytes", "64M", "--host-kv-bytes", 68 * IMAGE)
        self.assertEqual(wide[1:], ("4.5 MiB", str(68 * 64)))
        whole = printed(first + host + nvme, *self.small_file(), "--host-kv-bytes", 68 * IMAGE)
        self.assertEqual(whole[1:3], ("4.5 MiB", str(68 * 64)))
        self.assertEqual(whole[3:5], ("1.6 MiB", str(20 * 64)))
        auto = printed(first + host + nvme, "--nvme-dir", self.folder / "auto")
        self.assertGreaterEqual(int(auto[4]), 10 * alone)


class TestStaleFiles(Tiers):
    """Blocks of another model, mode or shape are never used."""

    def test_other_mode_weights_or_sizes_find_nothing(self) -> None:
        """And the first model finds its own blocks again after all of them."""
        directory = ["--nvme-dir", self.nvme]
        self.check(*directory)
        seeded = Checkpoint(self.folder, MODEL, tokenizer=False)
        seeded.fill("model.norm.weight", 0.5)
        other_topk = Checkpoint(self.folder, MODEL, tokenizer=False)
        other_topk.sparse(topk=7)
        other_rope = Checkpoint(self.folder, MODEL, tokenizer=False)
        other_rope.config(rms_norm_eps=1e-3)
        for name, arguments in {
            "mode": [*flags(), "--attention", "infllmv2"],
            "weights": flags(seeded.path),
            "topk": flags(other_topk.path),
            "eps": flags(other_rope.path),
        }.items():
            with self.subTest(name):
                alone, _ = dump_logits(*arguments)
                logits, result = dump_logits(*arguments, *directory)
                self.assertEqual(result["cached_prompt_tokens"], 0)
                self.assertEqual(logits.tobytes(), alone.tobytes())
        self.assertEqual(self.check(*directory)["cached_prompt_tokens"], CACHED)

    def test_file_of_another_shape_is_laid_out_anew(self) -> None:
        """It says so; what it held is gone."""
        directory = ["--nvme-dir", self.nvme]
        self.check(*directory)
        name = "kv1_group4_d16_r4"
        other = ["--model", RANDOM / name, "--prompt-tokens", golden_tokens(name, 300)]
        other += ["--max-tokens", 4, "--ignore-eos"]
        alone, _ = dump_logits(*other)
        done = run(*other, *directory, "--json")
        self.assertIn(b"blocks of another shape", done.stderr)
        self.assertEqual(json.loads(done.stdout)["cached_prompt_tokens"], 0)
        logits, result = dump_logits(*other, *directory)
        self.assertEqual(result["cached_prompt_tokens"], 256)
        self.assertEqual(logits.tobytes(), alone.tobytes())
        self.assertEqual(self.check(*directory)["cached_prompt_tokens"], 0)


class TestSpoiltFiles(Tiers):
    """What happens to the file between two runs."""

    def write(self) -> list[Extent]:
        """A file with the prompt's blocks, in the order of the prompt."""
        self.check(*self.small_file())
        prompt = [int(t) for t in np.load(RANDOM / MODEL / "tokens.npy")[:LENGTH]]
        found = extents(self.file)
        found.sort(key=lambda extent: prompt.index(extent.tokens[0]))
        blocks = {tuple(prompt[i : i + 64]): i // 64 for i in range(0, CACHED, 64)}
        found = [extent for extent in found if extent.tokens in blocks]
        found.sort(key=lambda extent: blocks[extent.tokens])
        self.assertEqual(len(found), CACHED // 64)
        return found

    def test_flipped_bit_in_a_payload_is_a_recomputed_block(self) -> None:
        """In the first and last byte of records and summaries of several blocks."""
        found = self.write()
        last = RECORDS * 2 * PAGE
        for block, offset, bit in ((0, 0, 0), (5, last - 1, 7), (9, last, 3), (13, last + 80, 6)):
            with self.subTest(block=block, offset=offset):
                flip(self.file, (found[block].payload + offset, bit))
                result = self.check(*self.small_file())
                self.assertEqual(result["cached_prompt_tokens"], 64 * block)
                self.assertEqual(result["kv"]["corrupt_blocks"], 1)
                self.assertGreaterEqual(result["kv"]["recomputed_blocks"], 1)
                whole = self.check(*self.small_file())
                self.assertEqual(whole["cached_prompt_tokens"], CACHED)
                self.assertEqual(whole["kv"]["corrupt_blocks"], 0)
                found = self.write()

    def test_flipped_bit_in_a_header_hides_a_block(self) -> None:
        """Any field: magic, version, layout, number, identity, key, tokens, sums."""
        for offset in (3, 8, 16, 24, 32, 64, 100, 130, 200, 418, 448, 448 + 16 * 8 - 1):
            with self.subTest(offset=offset):
                found = self.write()
                flip(self.file, (found[7].header + offset, offset % 8))
                result = self.check(*self.small_file())
                self.assertEqual(result["cached_prompt_tokens"], 7 * 64)
                self.assertEqual(result["kv"]["corrupt_blocks"], 0)

    def test_flipped_bits_in_the_superblock_start_anew(self) -> None:
        """A damaged one is laid out anew; without the magic the file is not ours to overwrite."""
        for offset in (9 + 8, 24, 28, 40, 100, 4095):
            with self.subTest(offset=offset):
                self.write()
                flip(self.file, (offset, 1))
                done = run(*flags(), *self.small_file(), "--json")
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assertIn(b"laid out anew", done.stderr)
                self.assertEqual(json.loads(done.stdout)["cached_prompt_tokens"], 0)
                self.assertEqual(self.check(*self.small_file())["cached_prompt_tokens"], CACHED)
        self.write()
        flip(self.file, (2, 1))
        before = self.file.read_bytes()
        self.refused("is not a KV file", *self.small_file())
        self.assertEqual(self.file.read_bytes(), before)

    def test_flipped_bits_all_over_change_no_token(self) -> None:
        """One in every page behind the superblock, then at random places, several times."""
        self.write()
        draw = random.Random(5)
        size = self.file.stat().st_size
        pages = range(PAGE, size, PAGE)
        flip(self.file, *((page + draw.randrange(PAGE), draw.randrange(8)) for page in pages))
        self.check(*self.small_file())
        corrupt = 0
        small = least()
        for n_flips in (1, 2, 4, 8, 16, 32):
            places = ((draw.randrange(PAGE, size), draw.randrange(8)) for _ in range(n_flips))
            flip(self.file, *places)
            setting = draw.choice(([], ["--gpu-kv-bytes", small, "--host-kv-bytes", 4 * IMAGE]))
            result = self.check(*self.small_file(), *setting)
            corrupt += result["kv"]["corrupt_blocks"]
        self.assertGreater(corrupt, 0)

    def test_truncated_file_keeps_what_is_left(self) -> None:
        """Cut anywhere, down to nothing."""
        size = None
        for share in (0.7, 0.5, 0.06, 0.001, 0):
            with self.subTest(share=share):
                self.write()
                size = size or self.file.stat().st_size
                os.truncate(self.file, int(size * share))
                result = self.check(*self.small_file())
                self.assertLess(result["cached_prompt_tokens"], CACHED)
                self.assertEqual(self.file.stat().st_size, size)
                whole = self.check(*self.small_file())
                self.assertEqual(whole["cached_prompt_tokens"], CACHED)

    def test_size_may_change_between_runs(self) -> None:
        """Smaller keeps what has a place; larger keeps all."""
        self.write()
        for blocks, cached in ((40, CACHED), (20, CACHED), (3, None), (20, None)):
            size = file_bytes(blocks)
            result = self.check("--nvme-dir", self.nvme, "--nvme-kv-bytes", size)
            if cached is not None:
                self.assertEqual(result["cached_prompt_tokens"], cached)
            self.assertEqual(self.file.stat().st_size, size)

    def test_newer_version_is_left_alone(self) -> None:
        """Refused, and not a byte of it changed."""
        self.write()
        superblock = bytearray(self.file.read_bytes()[: PAGE - 8])
        struct.pack_into("<I", superblock, 8, 2)
        library = ctypes.CDLL("libxxhash.so.0")
        library.XXH3_64bits.restype = ctypes.c_uint64
        checksum = library.XXH3_64bits(bytes(superblock), ctypes.c_size_t(len(superblock)))
        with open(self.file, "r+b") as file:
            file.write(superblock + struct.pack("<Q", checksum))
        before = self.file.read_bytes()
        self.refused("format 2, newer than 1", *self.small_file())
        self.assertEqual(self.file.read_bytes(), before)

    def test_removed_directory_is_made_again(self) -> None:
        """Between runs, and under a run, which ends as if nothing had happened."""
        self.write()
        shutil.rmtree(self.nvme)
        self.assertEqual(self.check(*self.small_file())["cached_prompt_tokens"], 0)
        shutil.rmtree(self.nvme)
        process = start(*flags(), *self.small_file(), "--json")
        while process.poll() is None and not (self.file.exists() and extents(self.file)):
            time.sleep(0.001)
        shutil.rmtree(self.nvme)
        output, text = process.communicate(timeout=TIMEOUT_S)
        self.assertEqual(process.returncode, 0, text)
        self.assertEqual(json.loads(output)["tokens"], self.resident("nosa", 1)[1])
        self.assertFalse(self.nvme.exists())


class TestRefusals(Tiers):
    """Bad sizes and directories."""

    def test_least_sizes_are_named_and_work(self) -> None:
        """One byte less than named is refused; what is named runs, with the same bits."""
        for mode in MODES:
            with self.subTest(mode=mode):
                small = least("--attention", mode)
                self.check("--gpu-kv-bytes", small, mode=mode)
                self.refused(
                    f"give at least {small}", "--attention", mode, "--gpu-kv-bytes", small - 1
                )
                where = ["--attention", mode, "--gpu-kv-bytes", small]
                done = run(*flags(), *where, "--host-kv-bytes", 2 * IMAGE)
                found = re.search(rb"--host-kv-bytes .* needs \d+, (\d+) bytes\n", done.stderr)
                self.assertTrue(found, done.stderr)
                host = int(found[1])
                self.check("--gpu-kv-bytes", small, "--host-kv-bytes", host, mode=mode)
                self.refused("--host-kv-bytes", *where, "--host-kv-bytes", host - 1)

    def test_sizes_that_hold_nothing(self) -> None:
        """Each names its flag and the least."""
        for needle, arguments in (
            ("--gpu-kv-bytes", ["--gpu-kv-bytes", 0]),
            ("without a host tier", ["--gpu-kv-bytes", "200K", "--host-kv-bytes", 0]),
            (f"at least {IMAGE}", ["--host-kv-bytes", 1]),
            (f"at least {4 * IMAGE}", ["--host-kv-bytes", "70K", "--nvme-dir", self.nvme]),
            ("holds no block; the least is", ["--nvme-dir", self.nvme, "--nvme-kv-bytes", "1K"]),
            ("are free", ["--nvme-dir", self.nvme, "--nvme-kv-bytes", "1000T"]),
            ("kv-policy", ["--kv-policy", "newest"]),
            ("nvme-kv-bytes", ["--nvme-kv-bytes", "many"]),
        ):
            with self.subTest(needle):
                self.refused(needle, *arguments)
        self.assertFalse(self.file.exists())

    def test_directories_that_cannot_be_used(self) -> None:
        """A file, one in no directory, one in /proc."""
        plain = self.folder / "plain"
        plain.write_bytes(b"x")
        for directory in (plain, self.folder / "a" / "b", Path("/proc/nosa")):
            with self.subTest(directory=directory):
                self.refused(re.escape(str(directory)), "--nvme-dir", directory)
        self.nvme.mkdir()
        self.file.mkdir()
        self.refused("Is a directory", *self.small_file())
        self.file.rmdir()
        self.file.write_bytes(b"something else" * 1000)
        self.refused("is not a KV file", *self.small_file())
        self.assertEqual(self.file.read_bytes(), b"something else" * 1000)

    def test_file_in_use_by_another_process(self) -> None:
        """The second one is refused, the first one ends as always."""
        first = start(*flags(), *self.small_file(), "--json")
        while not self.file.exists() or self.file.stat().st_size == 0:
            self.assertIsNone(first.poll())
            time.sleep(0.001)
        first.send_signal(signal.SIGSTOP)
        try:
            self.refused("in use by another process", *self.small_file())
        finally:
            first.send_signal(signal.SIGCONT)
        output, text = first.communicate(timeout=TIMEOUT_S)
        self.assertEqual(first.returncode, 0, text)
        self.assertEqual(json.loads(output)["tokens"], self.resident("nosa", 1)[1])


class TestLimits(Tiers):
    """What a process is not allowed to do."""

    def run_limited(
        self, limit: Callable[[], None], *arguments: Any, copy: bool = False
    ) -> subprocess.CompletedProcess[bytes]:
        """Runs with `limit` called before the program starts; a copy others may execute."""
        program = PROGRAM
        if copy:
            program = str(shutil.copy(PROGRAM, self.folder / "nosa-run"))
            os.chmod(program, 0o755)
        command = [program, *map(str, arguments), "--json"]
        return subprocess.run(
            command,
            preexec_fn=limit,
            env=environment(),
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )

    def same_tokens(self, done: subprocess.CompletedProcess[bytes], cached: int) -> None:
        """The run did what it always does."""
        self.assertEqual(done.returncode, 0, done.stderr)
        result = json.loads(done.stdout)
        self.assertEqual(result["tokens"], self.resident("nosa", 1)[1])
        self.assertEqual(result["cached_prompt_tokens"], cached)

    def test_io_uring_refused_is_replaced_by_threads(self) -> None:
        """A seccomp filter, as container runtimes have it: works, and says so."""
        for cached in (0, CACHED):
            done = self.run_limited(refuse_io_uring, *flags(), *self.small_file())
            self.same_tokens(done, cached)
            self.assertRegex(done.stderr, rb"io_uring is refused here [^\n]*threads instead")
        small = ["--gpu-kv-bytes", least(), "--host-kv-bytes", 4 * IMAGE]
        done = self.run_limited(refuse_io_uring, *flags(), *self.small_file(), *small)
        self.same_tokens(done, CACHED)
        self.assertGreater(json.loads(done.stdout)["kv"]["nvme_hits"], 0)
        self.assertEqual(self.check(*self.small_file())["cached_prompt_tokens"], CACHED)

    @unittest.skipIf(os.getuid() != 0, "only root can become another user")
    @unittest.skipIf(SANITIZED, "a sanitizer needs what is limited here")
    def test_little_memlock_degrades_and_says_so(self) -> None:
        """A user's limit; root would not be held to it."""
        model = Checkpoint(self.folder, MODEL, tokenizer=False)
        for path in (model.path.parent, model.path):
            path.chmod(0o755)
        self.nvme.mkdir()
        os.chown(self.nvme, NOBODY, NOBODY)
        done = self.run_limited(
            little_memlock, *flags(model.path), *self.small_file(), "--host-kv-bytes", "2M",
            "--gpu-kv-bytes", least(), copy=True,
        )  # fmt: skip
        self.same_tokens(done, 0)
        self.assertRegex(done.stderr, rb"memlock")

    @unittest.skipIf(os.getuid() != 0, "only root can become another user")
    @unittest.skipIf(SANITIZED, "a sanitizer's build finds its libraries as root only")
    def test_directory_that_is_read_only(self) -> None:
        """Refused for a user who may not write; the file stays as it is."""
        model = Checkpoint(self.folder, MODEL, tokenizer=False)
        for path in (model.path.parent, model.path):
            path.chmod(0o755)
        self.check(*self.small_file())
        before = self.file.read_bytes()
        for mode in (0o555, 0o000):
            self.nvme.chmod(mode)
            done = self.run_limited(as_nobody, *flags(model.path), *self.small_file(), copy=True)
            self.assertEqual((done.returncode, done.stdout), (2, b""))
            text = done.stderr.decode()
            self.assertRegex(text, rf"\Anosa-run: [^\n]*{re.escape(str(self.nvme))}[^\n]*\n\Z")
        self.nvme.chmod(0o755)
        self.assertEqual(self.file.read_bytes(), before)

    def test_write_budget_stops_writing_and_says_so(self) -> None:
        """Over both runs of the day together; what is not written is computed again."""
        budget = 5 * (IMAGE + PAGE)
        limited = [*self.small_file(), "--nvme-write-bytes-per-day", budget]
        done = run(*flags(), *limited, "--json")
        self.same_tokens(done, 0)
        self.assertRegex(done.stderr, rb"write budget of today \(UTC\) is spent")
        self.assertLessEqual(json.loads(done.stdout)["kv"]["nvme_written_bytes"], budget)
        written = len(extents(self.file))
        self.assertIn(written, (4, 5))
        again = self.check(*limited)
        self.assertEqual(again["cached_prompt_tokens"], written * 64)
        self.assertLess(again["kv"]["nvme_written_bytes"], IMAGE + PAGE)
        self.check(*self.small_file())
        self.assertEqual(self.check(*limited)["cached_prompt_tokens"], CACHED)


class TestRunning(Tiers):
    """Disks that go bad under a run, which ends as if nothing had happened."""

    def during(self, damage: Callable[[int], None], *arguments: Any) -> dict[str, Any]:
        """Runs; `damage` is done to the process while it stands, after a block was written."""
        before = len(extents(self.file)) if self.file.exists() else 0
        process = start(*flags(), *self.small_file(), *arguments, "--json")
        while process.poll() is None and not (
            self.file.exists() and len(extents(self.file)) > before
        ):
            time.sleep(0.001)
        if process.poll() is None:
            process.send_signal(signal.SIGSTOP)
            damage(process.pid)
            process.send_signal(signal.SIGCONT)
        output, text = process.communicate(timeout=TIMEOUT_S)
        self.assertEqual(process.returncode, 0, text)
        result: dict[str, Any] = json.loads(output)
        self.assertEqual(result["tokens"], self.resident("nosa", 1)[1])
        return result

    def test_writes_that_fail(self) -> None:
        """No byte more can be written: what is there stays, and is found."""

        def no_more(pid: int) -> None:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

        self.during(no_more)
        cached = self.check(*self.small_file())["cached_prompt_tokens"]
        self.assertEqual(cached % 64, 0)
        self.assertEqual(self.check(*self.small_file())["cached_prompt_tokens"], CACHED)

    def test_reads_that_fail(self) -> None:
        """The file ends before most blocks, which first tier and host do not hold."""
        small = ["--gpu-kv-bytes", least(), "--host-kv-bytes", 4 * IMAGE]
        self.during(lambda _: os.truncate(self.file, file_bytes(1)), *small)
        self.check(*self.small_file(), *small)

    def test_file_larger_than_the_limit(self) -> None:
        """RLIMIT_FSIZE, which also sends a signal."""

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (PAGE, PAGE))

        command = [PROGRAM, *map(str, flags() + self.small_file()), "--json"]
        done = subprocess.run(
            command,
            preexec_fn=limit,
            env=environment(),
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        text = done.stderr.decode()
        self.assertEqual((done.returncode, done.stdout), (2, b""), text)
        self.assertRegex(text, rf"\Anosa-run: [^\n]*{re.escape(str(self.nvme))}[^\n]*\n\Z")

    @unittest.skipIf(os.getuid() != 0, "only root can mount")
    def test_file_system_that_is_full(self) -> None:
        """Refused by size at the start; smaller files work beside what fills it."""
        self.nvme.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(self.nvme)]
        if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            self.skipTest("no file system can be mounted here")
        try:
            self.refused(r"are free", "--nvme-dir", self.nvme, "--nvme-kv-bytes", "8M")
            self.assertFalse(self.file.exists())
            (self.nvme / "rest").write_bytes(bytes(2 << 20))
            self.refused(r"are free", "--nvme-dir", self.nvme, "--nvme-kv-bytes", "3M")
            self.assertEqual(self.check(*self.small_file())["cached_prompt_tokens"], 0)
            self.assertEqual(self.check(*self.small_file())["cached_prompt_tokens"], CACHED)
        finally:
            subprocess.run(["umount", "-l", str(self.nvme)], check=True)


class TestKill(Tiers):
    """SIGKILL at any moment."""

    def test_run_after_a_kill_gives_the_same_tokens(self) -> None:
        """The file is so small that runs displace each other's blocks, and always write."""
        prompts = [flags(first=first) for first in (0, 400, 800)]
        alone = [run_json(*prompt)["tokens"] for prompt in prompts]
        small = ["--gpu-kv-bytes", least(), "--host-kv-bytes", 4 * IMAGE]
        settings = ([], ["--gpu-kv-bytes", least()], small)
        began = time.monotonic()
        run_json(*prompts[0], *self.small_file(), *small)
        lasts = time.monotonic() - began
        draw = random.Random(7)
        killed = cached = 0
        for number in range(KILL_ROUNDS):
            i = number % len(prompts)
            process = start(*prompts[i], *self.small_file(), *settings[number % 2])
            try:
                process.wait(timeout=draw.uniform(0, 1.2 * lasts))
            except subprocess.TimeoutExpired:
                process.kill()
                killed += 1
            process.communicate()
            result = run_json(*prompts[i], *self.small_file(), *draw.choice(settings))
            self.assertEqual(result["tokens"], alone[i])
            self.assertEqual(result["kv"]["corrupt_blocks"], 0)
            cached += result["cached_prompt_tokens"]
        self.assertGreater(killed, KILL_ROUNDS // 4)
        self.assertGreater(cached, 0)


# ---- limits of a process -----------------------------------------------------------------------


def refuse_io_uring() -> None:
    """Answers io_uring_setup with EPERM (a classic BPF filter over the call's number)."""
    setup, errno_eperm, allow = 425, 0x00050001, 0x7FFF0000
    program = b"".join(
        struct.pack("<HBBI", *step)
        for step in ((0x20, 0, 0, 0), (0x15, 0, 1, setup), (0x06, 0, 0, errno_eperm),
                     (0x06, 0, 0, allow))
    )  # fmt: skip
    memory = ctypes.create_string_buffer(program)
    filter_of = struct.pack("<HxxxxxxQ", len(program) // 8, ctypes.addressof(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, set_seccomp, mode_filter = 38, 22, 2
    if libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.prctl(
        set_seccomp, mode_filter, ctypes.create_string_buffer(filter_of), 0, 0
    ):
        raise OSError(ctypes.get_errno(), "no seccomp here")


def little_memlock() -> None:
    """64 KiB, and nobody to be exempt from it."""
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
    as_nobody()


if __name__ == "__main__":
    tap.main()
