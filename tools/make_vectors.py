#!/usr/bin/env python3
"""Makes the golden vectors in tests/vectors that the C tests compare the engine with.

Parts: `random` (tiny NOSA checkpoints, against the float64 reference; needs NumPy), `rope` and
`smollm2` (against transformers; need tools/requirements-vectors.txt). The results are committed:
this runs only when the definition or the cases change.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

PARTS = ("random", "rope", "smollm2")
VECTORS = Path(__file__).resolve().parent.parent / "tests" / "vectors"


def make_part(part: str, output: Path, model: Path | None) -> None:
    """Makes one part anew. The imports are here because each part needs other packages."""
    if part == "random":
        from vectors.random_checkpoints import make_random

        with tempfile.TemporaryDirectory(dir=output) as scratch:
            fresh = Path(scratch) / part
            fresh.mkdir()
            make_random(fresh)
            shutil.rmtree(output / part, ignore_errors=True)
            fresh.rename(output / part)
    elif part == "rope":
        from vectors.rope import make_rope

        make_rope(output / "rope.json")
    else:
        from vectors.smollm2 import make_smollm2

        (output / part).mkdir(exist_ok=True)
        make_smollm2(output / part / "golden.json", model)


def main() -> int:
    """Runs the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)"
    )
    parser.add_argument(
        "--model", type=Path, metavar="DIR", help="demo model, for the part smollm2"
    )
    parser.add_argument(
        "--output", type=Path, default=VECTORS, metavar="DIR", help=f"default {VECTORS}"
    )
    arguments = parser.parse_args()
    parts = arguments.parts or PARTS
    for part in parts:
        if part not in PARTS:
            parser.error(f"no part {part}; there are {', '.join(PARTS)}")
    if "smollm2" in parts and not arguments.model:
        parser.error("the part smollm2 needs --model DIR (see make_demo_model.py)")
    arguments.output.mkdir(parents=True, exist_ok=True)
    for part in parts:
        make_part(part, arguments.output, arguments.model)
    return 0


if __name__ == "__main__":
    sys.exit(main())
