"""Tables and pictures of what a study found (study.py)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import chart
from errors import ToolError

BUCKET = 256
PLAIN = "plain full"
"""The case that all others are compared with."""
STEP = 1024
"""Positions of one point in the picture of losses by position."""
OTHER_SEED = ", seed"
"""Part of the name of a case that pictures leave out: the same fit with another seed."""


def read(folder: Path, key: str) -> dict[str, list[dict[str, Any]]]:
    """The rows of all result files with that key, by job; a job's shares are put together."""
    jobs: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            rows = json.loads(path.read_text(encoding="utf-8")).get(key)
        except (OSError, ValueError, AttributeError) as error:
            raise ToolError(f"{path}: not a result of a study ({error})") from error
        if rows:
            jobs.setdefault(re.sub(r"\d+$", "", path.stem), []).extend(rows)
    return jobs


def loss(row: dict[str, Any], case: str, length: int) -> float:
    """Summed loss of a window's first tokens."""
    return sum(row["cases"][case]["loss"][: length // BUCKET])


def difference(
    rows: Sequence[dict[str, Any]],
    case: str,
    other: str,
    length: int,
) -> tuple[float, float]:
    """Per cent of perplexity above another case, paired by window, and its standard error."""
    each = np.array([(loss(r, case, length) - loss(r, other, length)) / (length - 1) for r in rows])
    error = float(each.std(ddof=1)) / math.sqrt(len(each)) if len(each) > 1 else math.nan
    return 100 * math.expm1(float(each.mean())), 100 * error


def mean(rows: Sequence[dict[str, Any]], case: str, key: str) -> float:
    """Mean of a figure over windows."""
    return float(np.mean([row["cases"][case][key] for row in rows]))


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One job's cases as a Markdown table."""
    length = BUCKET * len(next(iter(rows[0]["cases"].values()))["loss"])
    base = PLAIN if PLAIN in rows[0]["cases"] else None
    lines = [
        f"{len(rows)} windows of {len({row['document'] for row in rows})} documents",
        "",
        f"| case | {length} % | {length // 2} % | last quarter % | KL | same top-1 | hits |"
        " 1.5x | 2x |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case in rows[0]["cases"]:
        cells = [case]
        for span in (length, length // 2) if base else ():
            percent, error = difference(rows, case, base, span)
            cells.append(f"{percent:.2f} ± {error:.2f}")
        if base:
            last = np.mean(
                [
                    loss(r, case, length)
                    - loss(r, base, length)
                    - loss(r, case, 3 * length // 4)
                    + loss(r, base, 3 * length // 4)
                    for r in rows
                ]
            )
            cells.append(f"{100 * math.expm1(float(last) / (length // 4)):.2f}")
        else:
            cells += ["", "", ""]
        cells += [f"{mean(rows, case, 'divergence'):.4f}", f"{mean(rows, case, 'agreement'):.4f}"]
        hits = mean(rows, case, "hits")
        cells.append("" if math.isnan(hits) else f"{hits:.4f}")
        tiers = [r["cases"][case]["tiers"] for r in rows if r["cases"][case]["tiers"]]
        for key in ("lru_1.5", "lru_2"):
            cells.append(f"{np.mean([t[key] for t in tiers]):.4f}" if tiers else "")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def merged_haystacks(jobs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Haystacks of all probe jobs; jobs that asked the same ones add their cases to them."""
    found: dict[str, dict[str, Any]] = {}
    for rows in jobs.values():
        for number, row in enumerate(rows):
            key = json.dumps([number, row["depths"]])
            found.setdefault(key, {"depths": row["depths"], "cases": {}})["cases"].update(
                row["cases"]
            )
    return list(found.values())


def answered(rows: Sequence[dict[str, Any]], case: str) -> dict[float, list[bool]]:
    """Whether all tokens of each answer were right, by depth."""
    result: dict[float, list[bool]] = {}
    for row in rows:
        for depth, tokens in zip(row["depths"], row["cases"][case]):
            result.setdefault(depth, []).append(all(tokens))
    return dict(sorted(result.items()))


def probe_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Retrieval as a Markdown table."""
    depths = sorted({depth for row in rows for depth in row["depths"]})
    count = sum(len(row["depths"]) for row in rows)
    lines = [
        f"{count} probes in {len(rows)} haystacks",
        "",
        "| case | answered | first token | " + " | ".join(f"{d:g}" for d in depths) + " |",
        "|---" * (3 + len(depths)) + "|",
    ]
    for case in rows[0]["cases"]:
        by_depth = answered(rows, case)
        first = np.mean([tokens[0] for row in rows for tokens in row["cases"][case]])
        every = [right for values in by_depth.values() for right in values]
        cells = [case, f"{np.mean(every):.3f}", f"{first:.3f}"]
        cells += [f"{np.mean(by_depth[depth]):.2f}" for depth in depths]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def draw_positions(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Loss above plain full by position."""
    series = []
    per = STEP // BUCKET
    for case in rows[0]["cases"]:
        if case == PLAIN or "/" in case or OTHER_SEED in case:
            continue
        points = []
        for step in range(len(rows[0]["cases"][case]["loss"]) // per):
            part = slice(per * step, per * step + per)
            gap = (
                np.mean(
                    [
                        sum(r["cases"][case]["loss"][part]) - sum(r["cases"][PLAIN]["loss"][part])
                        for r in rows
                    ]
                )
                / STEP
            )
            points.append((STEP * (step + 0.5), 100 * math.expm1(float(gap))))
        series.append(chart.Series(case, points))
    chart.draw(
        path,
        "What selection costs, by position",
        "position, tokens",
        "perplexity above plain full, per cent",
        series,
    )


def draw_trade(groups: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Perplexity against hit rate, of every case of the given jobs that selects."""
    series = []
    for name, rows in groups.items():
        length = BUCKET * len(next(iter(rows[0]["cases"].values()))["loss"])
        points = []
        for case in rows[0]["cases"]:
            hits = mean(rows, case, "hits")
            if OTHER_SEED in case:
                continue
            if case != PLAIN and not math.isnan(hits) and hits < 0.999:
                points.append((100 * hits, difference(rows, case, PLAIN, length)[0], case))
        labels = [label for _, _, label in points]
        series.append(
            chart.Series(name, [(x, y) for x, y, _ in points], False, marks=True, labels=labels)
        )
    chart.draw(
        path,
        "Quality and residency",
        "blocks that the step before selected too, per cent",
        "perplexity above plain full, per cent",
        series,
    )


def draw_depths(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Retrieval by depth."""
    series = [
        chart.Series(
            case,
            [(d, 100 * float(np.mean(v))) for d, v in answered(rows, case).items()],
            marks=True,
        )
        for case in rows[0]["cases"]
        if "/" not in case and OTHER_SEED not in case
    ]
    chart.draw(path, "Facts found again", "depth of the fact", "answered, per cent", series)


def run(folder: Path, pictures: Path | None) -> None:
    """Prints all tables; draws the pictures of the jobs `main`, `sizes` and `probe`."""
    scores, probes = read(folder, "windows"), read(folder, "haystacks")
    if not scores and not probes:
        raise ToolError(f"{folder} holds no result of a study")
    for name, rows in scores.items():
        print(f"\n## {name}\n\n" + "\n".join(table(rows)))
    haystacks = merged_haystacks(probes)
    if haystacks:
        print("\n## retrieval\n\n" + "\n".join(probe_table(haystacks)))
    if pictures is None:
        return
    pictures.mkdir(parents=True, exist_ok=True)
    if "main" in scores:
        draw_positions(scores["main"], pictures / "loss-by-position.svg")
    groups = {name: scores[name] for name in ("main", "sizes") if name in scores}
    if groups:
        draw_trade(groups, pictures / "quality-and-hits.svg")
    if "probe" in probes:
        draw_depths(probes["probe"], pictures / "retrieval-by-depth.svg")
