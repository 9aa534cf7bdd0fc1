"""Runs unittest cases and prints TAP, as the test runner counts it."""

from __future__ import annotations

import sys
import traceback
import unittest

SKIPPED = 77


class TapResult(unittest.TestResult):
    """Prints a line for each case as it ends; a case with a failed sub-test fails as one."""

    def __init__(self) -> None:
        """Starts with no case reported."""
        super().__init__()
        self.number = 0
        self.broken: set[unittest.TestCase] = set()

    def report(self, test: unittest.TestCase, verdict: str, remark: str = "") -> None:
        """One line of TAP."""
        self.number += 1
        name = test.id().rsplit(".", 1)[-1]
        print(f"{verdict} {self.number} - {name}{remark}", flush=True)

    def explain(self, error: tuple) -> None:
        """The failure as TAP comments."""
        for line in "".join(traceback.format_exception(*error)).splitlines():
            print(f"# {line}", flush=True)

    def addSuccess(self, test: unittest.TestCase) -> None:
        """A case passed, unless one of its sub-tests did not."""
        super().addSuccess(test)
        self.report(test, "ok")

    def addFailure(self, test: unittest.TestCase, err: tuple) -> None:
        """A case failed."""
        super().addFailure(test, err)
        self.explain(err)
        self.report(test, "not ok")

    def addError(self, test: unittest.TestCase, err: tuple) -> None:
        """A case, or what is set up for its class, raised something else."""
        super().addError(test, err)
        self.explain(err)
        self.report(test, "not ok")

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        """A case was skipped."""
        super().addSkip(test, reason)
        self.report(test, "ok", f" # SKIP {reason}")

    def addSubTest(
        self, test: unittest.TestCase, subtest: unittest.TestCase, err: tuple | None
    ) -> None:
        """A sub-test failed: the case is reported once, with the first failure."""
        super().addSubTest(test, subtest, err)
        if err is None:
            return
        print(f"# {subtest}")
        self.explain(err)
        if test not in self.broken:
            self.broken.add(test)
            self.report(test, "not ok")


def main(module: str = "__main__") -> None:
    """Runs every case of the module; names on the command line pick cases."""
    loader = unittest.TestLoader()
    if len(sys.argv) > 1:
        loader.testNamePatterns = [f"*{name}*" for name in sys.argv[1:]]
    suite = loader.loadTestsFromModule(sys.modules[module])
    result = TapResult()
    print(f"1..{suite.countTestCases()}", flush=True)
    suite.run(result)
    sys.exit(0 if result.wasSuccessful() and result.testsRun > 0 else 1)
