#!/usr/bin/env python3
"""The test runner counts what ctest's programs report, and a failure is never lost. Prints TAP.

Usage: test_run_tests.py <source tree>
"""
import os
import subprocess
import sys
import tempfile

TAP_GOOD = "printf '1..2\\nok 1 - a\\nok 2 - b\\n'"

# name, shell command, properties, expected (passed, failed, skipped), expected FAILED line or None
CASES = [
    ("tap", TAP_GOOD, "", (2, 0, 0), None),
    ("plain", "true", "", (1, 0, 0), None),
    ("odd_bytes", "printf 'ok 1 - \\377\\001 <&>\\n]]>\\nok 2 - b\\n'", "", (2, 0, 0), None),
    ("tap_failed", "printf '1..2\\nok 1 - a\\nnot ok 2 - b\\n'; exit 1", "", (1, 1, 0),
     "FAILED tap_failed: b"),
    ("tap_failed_but_exits_0", "printf '1..1\\nnot ok 1 - b\\n'", "", (0, 1, 0),
     "FAILED tap_failed_but_exits_0: b"),
    ("plain_failed", "exit 3", "", (0, 1, 0), "FAILED plain_failed: "),
    ("died_after_a_case", "printf '1..2\\nok 1 - a\\n'; kill -SEGV $$", "", (1, 1, 0),
     "FAILED died_after_a_case: "),
    ("passes_then_exits_1", TAP_GOOD + "; exit 1", "", (2, 1, 0), "FAILED passes_then_exits_1: "),
    ("plan_not_kept", "printf '1..3\\nok 1 - a\\n'", "", (1, 1, 0),
     "FAILED plan_not_kept: 2 planned cases did not report"),
    ("skip_program", "exit 77", "SKIP_RETURN_CODE 77", (0, 0, 1), None),
    ("skip_case", "printf '1..2\\nok 1 - a\\nnot ok 2 # SKIP b\\n'", "", (1, 0, 1), None),
    ("timed_out", "sleep 20", "TIMEOUT 1", (0, 1, 0), "FAILED timed_out: "),
    ("long_one", "false", "LABELS long", (0, 0, 0), None),
]


def write_tests(folder, cases):
    with open(os.path.join(folder, "CTestTestfile.cmake"), "w", encoding="utf-8") as file:
        for name, command, properties, _, _ in cases:
            file.write(f"add_test({name} sh -c [=[{command}]=])\n")
            if properties:
                file.write(f"set_tests_properties({name} PROPERTIES {properties})\n")


def run(tree, folder, *arguments):
    script = os.path.join(tree, "scripts", "run_tests.py")
    return subprocess.run([sys.executable, script, "--build", folder, *arguments],
                          capture_output=True, text=True, check=False)


def expected_line(passed, failed, skipped):
    line = f"{passed} passed, {failed} failed"
    return line + (f", {skipped} skipped" if skipped else "")


def check(result, counts, failed_line):
    """Returns None or what differs."""
    lines = result.stdout.splitlines()
    if not lines or lines[-1] != expected_line(*counts):
        return f"last line is {lines[-1:]}, not {expected_line(*counts)!r}: {result.stderr}"
    if failed_line and not any(line.startswith(failed_line) for line in lines):
        return f"no line starts with {failed_line!r}"
    success = counts[0] > 0 and counts[1] == 0
    if (result.returncode == 0) != success:
        return f"exit code {result.returncode}"
    return None


def main():
    tree = sys.argv[1]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            write_tests(folder, [case])
            results.append((case[0], check(run(tree, folder), case[3], case[4])))
        write_tests(folder, CASES)
        total = tuple(sum(case[3][i] for case in CASES) for i in range(3))
        results.append(("all", check(run(tree, folder), total, None)))
        write_tests(folder, CASES[-1:])
        result = run(tree, folder, "--long")
        results.append(("long", check(result, (0, 1, 0), "FAILED long_one")))
        write_tests(folder, [("absent", "", "", None, None)])
        with open(os.path.join(folder, "CTestTestfile.cmake"), "w", encoding="utf-8") as file:
            file.write("add_test(absent /nonexistent/program)\n")
        results.append(("absent", check(run(tree, folder), (0, 1, 0), "FAILED absent: ")))
    print(f"1..{len(results)}")
    for number, (name, difference) in enumerate(results, 1):
        print(f"{'not ok' if difference else 'ok'} {number} - test_run_tests_{name}")
        if difference:
            print(f"# {difference}")
    sys.exit(1 if any(difference for _, difference in results) else 0)


if __name__ == "__main__":
    main()
