"""Retrieval: facts planted in long texts, and questions about them at the end.

A haystack is a window of held-out text with some facts between its sentences, each at its own
depth, and at the end the beginning of each fact again, to be gone on with. A probe is answered
when every token of the answer is the likeliest one. Facts for fitting are worded otherwise and
draw from other words than those for scoring.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DEPTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
FACTS_OF_A_HAYSTACK = 6

_SCORED = (
    ("The secret code for {} is", ("Cairo", "Lima", "Oslo", "Kyoto", "Boston", "Dublin"), "digits"),
    (
        "The captain of the {} is",
        ("Mermaid", "Albatross", "Comet", "Falcon", "Pelican", "Swan"),
        ("Henderson", "Morales", "Whitaker", "Fitzgerald", "Kowalski", "Bergman"),
    ),
    (
        "The password to the {} is",
        ("cellar", "archive", "tower", "workshop", "garage", "vault"),
        ("sunflower", "thunder", "marble", "cinnamon", "pelican", "velvet"),
    ),
    (
        "Doctor {} lives in",
        ("Ramsey", "Olsen", "Patel", "Lindgren", "Castro", "Novak"),
        ("Toronto", "Madrid", "Nairobi", "Helsinki", "Sydney", "Vienna"),
    ),
    (
        "The favourite fruit of {} is",
        ("Beatrice", "Samuel", "Ingrid", "Oliver", "Naomi", "Victor"),
        ("pineapple", "apricot", "mango", "cherry", "papaya", "grape"),
    ),
    (
        "The parcel for {} weighs",
        ("Gregory", "Matilda", "Edmund", "Harriet", "Leopold", "Rosalind"),
        "digits",
    ),
)
_FITTED = (
    (
        "{}'s bicycle has the number",
        ("Anna", "Peter", "Julia", "Martin", "Clara", "David"),
        "digits",
    ),
    (
        "{} keeps the key in the",
        ("Paul", "Emma", "Lucas", "Sophie", "Karl", "Nina"),
        ("drawer", "teapot", "basket", "cupboard", "suitcase", "jar"),
    ),
    (
        "The train to {} leaves from platform",
        ("Leeds", "Turin", "Basel", "Ghent", "Porto", "Graz"),
        "digits",
    ),
    (
        "In {} we saw a",
        ("January", "March", "May", "July", "September", "November"),
        ("zebra", "comet", "castle", "volcano", "whale", "parade"),
    ),
    (
        "The door of the {} is painted",
        ("bakery", "school", "chapel", "station", "library", "inn"),
        ("purple", "orange", "turquoise", "crimson", "silver", "green"),
    ),
    (
        "The account of {} ends in",
        ("Meyer", "Dubois", "Rossi", "Larsen", "Silva", "Jansen"),
        "digits",
    ),
)


@dataclass(frozen=True)
class Probe:
    """A question of a haystack: where the tokens of its answer stand, and the fact's depth."""

    depth: float
    begin: int
    end: int


@dataclass(frozen=True)
class Haystack:
    """Ids, and the probes in them."""

    ids: np.ndarray
    probes: Sequence[Probe]


def _facts(templates: Sequence, count: int, draw: np.random.Generator) -> list[tuple[str, str]]:
    """Beginnings and ends of some facts, each of another template."""
    facts = []
    for place in draw.permutation(len(templates))[:count]:
        begin, names, values = templates[place]
        name = names[draw.integers(len(names))]
        if values == "digits":
            value = "".join(str(digit) for digit in draw.integers(0, 10, 4))
        else:
            value = values[draw.integers(len(values))]
        facts.append((begin.format(name), f" {value}"))
    return facts


def plant(
    ids: np.ndarray,
    encode,
    draw: np.random.Generator,
    length: int,
    scored: bool,
    depths: Sequence[float],
) -> Haystack:
    """A haystack of exactly `length` tokens made from a window; encode: text to ids."""
    facts = _facts(_SCORED if scored else _FITTED, len(depths), draw)
    told = [np.array(encode(f"\n{begin}{end}.\n")) for begin, end in facts]
    asked = [np.array(encode("\n\nAs was said above:\n"))]
    spans = []
    for place in draw.permutation(len(facts)):
        begin, end = (np.array(encode(part)) for part in ("\n" + facts[place][0], facts[place][1]))
        at = sum(map(len, asked)) + len(begin)
        spans.append((depths[place], at, at + len(end)))
        asked += [begin, end, np.array(encode("."))]
    tail = np.concatenate(asked)
    room = length - len(tail) - sum(map(len, told))
    pieces, last = [], 0
    for depth, fact in sorted(zip(depths, told), key=lambda pair: pair[0]):
        at = int(depth * room)
        pieces += [ids[last:at], fact]
        last = at
    pieces += [ids[last:room], tail]
    whole = np.concatenate(pieces).astype(np.int64)
    shift = length - len(tail)
    return Haystack(whole, [Probe(d, shift + b, shift + e) for d, b, e in spans])


def haystacks(
    windows: Sequence[np.ndarray],
    encode,
    count: int,
    length: int,
    seed: int,
) -> list[Haystack]:
    """Haystacks for scoring: every depth as often as any other."""
    draw, depths, made = np.random.default_rng(seed), [], []
    for number in range(count):
        chosen = []
        while len(chosen) < FACTS_OF_A_HAYSTACK:
            depths = depths or [float(d) for d in draw.permutation(DEPTHS)]
            fresh = next((d for d in depths if d not in chosen), None)
            if fresh is None:
                depths = depths + [float(d) for d in draw.permutation(DEPTHS)]
                continue
            depths.remove(fresh)
            chosen.append(fresh)
        made.append(
            plant(np.asarray(windows[number % len(windows)]), encode, draw, length, True, chosen)
        )
    return made
