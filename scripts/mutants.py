#!/usr/bin/env python3
"""Plants bugs, one at a time, and shows that the tests notice each.

The tree is copied to a temporary folder and built there once; tests/mutants/mutants.toml says what
is changed and which test programs must fail then: programs below build/tests, or "NAME.py CASE"
for cases of tests/integration with the programs of that build. Prints TAP and, last, "N caught,
N missed". Exits with 0 only when every bug is caught.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent
TABLE = Path("tests") / "mutants" / "mutants.toml"
TEST_TIMEOUT_S = 900
SCRIPT_TARGETS = ["nosa-coordinator", "nosa-worker", "nosa_test_preload"]  # that scripts run
FAILED_CASE = re.compile(r"^(?:not ok \d+ - |\[  FAILED  \] )(\S+)$", re.MULTILINE)


class Broken(Exception):
    """The table or the tree does not allow a verdict."""


def copy_tree(folder):
    """A copy of the sources, without what was built or cached."""
    ignored = shutil.ignore_patterns(".git", ".venv", "build", "build-*", "dist", "__pycache__")
    shutil.copytree(TREE, folder, ignore=ignored, symlinks=True)


class Build:
    """A copy of the tree and its build folder."""

    def __init__(self, source, jobs):
        self.source, self.jobs = source, jobs
        self.folder = source / "build"

    def configure(self):
        """Makes the build folder; a compiler cache spares compiling what is restored."""
        command = ["cmake", "-S", str(self.source), "-B", str(self.folder), "-G", "Ninja"]
        cache = shutil.which("ccache")
        if cache:
            command.append(f"-DCMAKE_C_COMPILER_LAUNCHER={cache}")
        self.call(command, "cannot configure")

    def make(self, targets):
        """Builds the targets."""
        command = ["cmake", "--build", str(self.folder), "-j", str(self.jobs), "--target", *targets]
        self.call(command, "does not build")

    def call(self, command, what):
        """Runs a command that must succeed."""
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            lines = (done.stdout + done.stderr).splitlines()
            errors = [line for line in lines if " error: " in line] or lines[-3:]
            raise Broken(f"{what}: {' / '.join(errors[:3])}")

    def command_of(self, test):
        """How a test program is run."""
        if not is_script(test):
            return [str(self.folder / "tests" / test)]
        name, *cases = test.split()
        script = self.source / "tests" / "integration" / name
        return [str(TREE / ".venv" / "bin" / "python"), "-B", str(script), *cases]

    def failure_of(self, test):
        """None when the test program passes, else what failed in it."""
        server = self.folder / "tests" / "rpc-test-server"
        environment = {
            **os.environ,
            "NOSA_BUILD": str(self.folder),
            "RPC_TEST_SERVER": str(server),
        }
        try:
            done = subprocess.run(
                self.command_of(test),
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TEST_TIMEOUT_S,
                check=False,
                env=environment,
            )
        except subprocess.TimeoutExpired:
            return "ran out of time"
        if done.returncode == 0:
            return None
        if done.returncode == 77:
            raise Broken(f"{test} was skipped")
        case = FAILED_CASE.search(done.stdout + done.stderr)
        return case.group(1) if case else f"exit code {done.returncode}"


def is_script(test):
    """Whether a test is a script with cases, which runs the programs."""
    return test.split()[0].endswith(".py")


def targets_of(tests):
    """What is to be built for tests."""
    scripts = any(is_script(test) for test in tests)
    return [test for test in tests if not is_script(test)] + (SCRIPT_TARGETS if scripts else [])


def plant(build, mutant):
    """Changes the file; returns what puts it right again."""
    path = build.source / mutant["file"]
    good = path.read_text(encoding="utf-8")
    old, new = mutant["old"].strip("\n"), mutant["new"].strip("\n")
    if good.count(old) != 1:
        raise Broken(f"{mutant['file']} holds the old text {good.count(old)} times, not once")
    path.write_text(good.replace(old, new), encoding="utf-8")
    return lambda: path.write_text(good, encoding="utf-8")


def stale(mutants):
    """Those whose old text does not stand in the tree exactly once."""

    def count(mutant):
        text = (TREE / mutant["file"]).read_text(encoding="utf-8")
        return text.count(mutant["old"].strip("\n"))

    return [mutant["name"] for mutant in mutants if count(mutant) != 1]


def catcher(build, mutant):
    """Which test notices the bug, or None."""
    restore = plant(build, mutant)
    try:
        build.make(targets_of(mutant["tests"]))
        for test in mutant["tests"]:
            failure = build.failure_of(test)
            if failure:
                return f"{test}: {failure}"
        return None
    finally:
        restore()


def check_without_bugs(build, tests):
    """The tests pass as long as nothing is planted."""
    build.configure()
    build.make(targets_of(tests))
    for test in tests:
        failure = build.failure_of(test)
        if failure:
            raise Broken(f"{test} fails without any planted bug: {failure}")


def run(build, mutants):
    """Plants them all; returns how many were caught."""
    check_without_bugs(build, sorted({test for mutant in mutants for test in mutant["tests"]}))
    print(f"1..{len(mutants)}", flush=True)
    caught = 0
    for number, mutant in enumerate(mutants, 1):
        try:
            found = catcher(build, mutant)
            remark = f"caught by {found}" if found else "MISSED"
        except Broken as reason:
            found, remark = None, f"BROKEN: {reason}"
        caught += found is not None
        verdict = "ok" if found else "not ok"
        print(f"{verdict} {number} - mutant_{mutant['name']}\n# {remark}", flush=True)
    return caught


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time")
    parser.add_argument("--only", metavar="REGEX", help="bugs whose name matches")
    parser.add_argument(
        "--check", action="store_true", help="build nothing: the table names text that is there"
    )
    options = parser.parse_args()
    mutants = tomllib.loads((TREE / TABLE).read_text(encoding="utf-8"))["mutant"]
    mutants = [m for m in mutants if not options.only or re.search(options.only, m["name"])]
    if not mutants:
        sys.exit("mutants: no such bug in the table")
    if options.check:
        names = stale(mutants)
        print(f"{len(mutants)} planted bugs, {len(names)} stale {' '.join(names)}".rstrip())
        sys.exit(1 if names else 0)
    with tempfile.TemporaryDirectory(prefix="nosa-mutants-") as holder:
        source = Path(holder) / "tree"
        copy_tree(source)
        try:
            caught = run(Build(source, options.jobs), mutants)
        except Broken as reason:
            sys.exit(f"mutants: {reason}")
    print(f"{caught} caught, {len(mutants) - caught} missed")
    sys.exit(0 if caught == len(mutants) else 1)


if __name__ == "__main__":
    main()
