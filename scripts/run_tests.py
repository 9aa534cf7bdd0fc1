#!/usr/bin/env python3
"""Runs ctest and counts single cases.

A test program that prints TAP (cmocka does when asked, and so should scripts: "ok 1 - name",
"not ok 2 - name", "# SKIP") counts case by case, any other as one. A program that dies, times out
or prints fewer cases than it planned counts as one more failure, whatever its cases said.

The last line is "N passed, N failed" and, when something was skipped, ", N skipped". Exits with 0
only when something passed and nothing failed.
"""
import argparse
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree

TREE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CASE = re.compile(r"^(not )?ok (\d+)\s*(?:-\s*)?(.*)$")
PLAN = re.compile(r"^1\.\.(\d+)\s*$")
SKIP = re.compile(r"# SKIP\b", re.IGNORECASE)


def count_cases(name, output):
    """Returns (passed, skipped, names of failed, planned cases that did not report)."""
    passed, skipped, failed, planned, seen = 0, 0, [], 0, 0
    for line in output.splitlines():
        plan = PLAN.match(line)
        if plan:
            planned += int(plan.group(1))
            continue
        case = CASE.match(line)
        if not case:
            continue
        seen += 1
        if SKIP.search(case.group(3)):
            skipped += 1
        elif case.group(1):
            failed.append(f"{name}: {case.group(3)}")
        else:
            passed += 1
    return passed, skipped, failed, planned - seen if planned > seen else 0


def count_program(case):
    """Counts one <testcase> of ctest's JUnit file."""
    name, status = case.get("name"), case.get("status")
    output = case.findtext("system-out") or ""
    passed, skipped, failed, silent = count_cases(name, output)
    if status == "run":
        if silent:
            failed.append(f"{name}: {silent} planned cases did not report")
        elif not passed and not skipped and not failed:
            passed = 1
    elif status in ("notrun", "disabled"):
        # Exit code 77 is "notrun" too, with a <skipped> element; a missing program is not.
        reason = case.find("skipped")
        message = reason.get("message", "") if reason is not None else ""
        if status == "disabled" or "SKIP_RETURN_CODE" in message:
            skipped += 1
        else:
            failed.append(f"{name}: did not run ({message or 'no such program'})")
    elif not failed or silent:
        failure = case.find("failure")
        message = failure.get("message", "") if failure is not None else ""
        failed.append(f"{name}: {message or 'failed outside its cases'}")
    return passed, skipped, failed


def demo_model():
    """The folder of the demo model without its eviction head, made when it is not there yet; None
    when it cannot be had."""
    command = [os.path.join(TREE, ".venv", "bin", "python"),
               os.path.join(TREE, "tools", "make_demo_model.py"), "--plain"]
    try:
        made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    except OSError as error:
        print(f"run_tests: {error.filename}: {error.strerror}", file=sys.stderr)
        return None
    if made.returncode != 0:
        print("run_tests: tests of the demo model are skipped", file=sys.stderr)
        return None
    return made.stdout.splitlines()[-1]


def run_ctest(options, junit):
    command = ["ctest", "--test-dir", options.build, "-j", str(options.jobs),
               "--output-on-failure", "--output-junit", junit,
               "--test-output-size-passed", str(16 << 20),
               "--test-output-size-failed", str(16 << 20)]
    if not options.long:
        command += ["-LE", "^long$"]
    if options.regex:
        command += ["-R", options.regex]
    environment = dict(os.environ, CMOCKA_MESSAGE_OUTPUT="TAP")
    environment.setdefault("UBSAN_OPTIONS", "print_stacktrace=1")
    if options.demo_model and "NOSA_DEMO_MODEL_DIR" not in environment:
        directory = demo_model()
        if directory:
            environment["NOSA_DEMO_MODEL_DIR"] = directory
    return subprocess.run(command, env=environment, check=False).returncode


def main():
    parser = argparse.ArgumentParser(description="run the tests and count their cases")
    parser.add_argument("--build", default="build", help="build folder")
    parser.add_argument("--jobs", type=int, default=2, help="programs at a time")
    parser.add_argument("--long", action="store_true", help="with the tests labelled long")
    parser.add_argument("--regex", help="only programs whose name matches")
    parser.add_argument("--demo-model", action="store_true",
                        help="fetch the demo model, for the tests that want it, unless "
                             "NOSA_DEMO_MODEL_DIR names its folder")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        junit = os.path.join(folder, "junit.xml")
        code = run_ctest(options, junit)
        try:
            cases = ElementTree.parse(junit).getroot().findall("testcase")
        except (OSError, ElementTree.ParseError) as error:
            sys.exit(f"run_tests: ctest left no readable result ({error})")
    passed, skipped, failed = 0, 0, []
    for case in cases:
        counts = count_program(case)
        passed += counts[0]
        skipped += counts[1]
        failed += counts[2]
    if code != 0 and not failed:
        failed.append("ctest failed without naming a test")
    print()
    for name in failed:
        print(f"FAILED {name}")
    line = f"{passed} passed, {len(failed)} failed"
    print(line + (f", {skipped} skipped" if skipped else ""), flush=True)
    sys.exit(1 if failed or not passed else 0)


if __name__ == "__main__":
    main()
