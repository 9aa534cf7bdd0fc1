"""Folders of texts: read, checked, split by document, tokenised, cut into windows.

A folder holds UTF-8 .txt files, those of one kind in one sub-folder. Documents are dealt to three
parts by the hash of their names, kind by kind: `train` is fitted on, `dev` is for choosing between
heads, `test` is for the figures that are reported. No document is in two parts. A packed file
(.npz) holds the same tokenised; it belongs to the tokenizer that made it.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from errors import ToolError

PARTS = ("train", "dev", "test")
SHARE_TEST = 0.2
SHARE_DEV = 0.1
TESTS_MIN, DEVS_MIN = 5, 2
"""Documents of a kind that are held out where there are few, if a third and a sixth allow it."""
TOKENS_OF_A_DOCUMENT_MAX = 1 << 15
"""Tokens of a document that are kept, so that long ones do not drown the others."""


@dataclass(frozen=True)
class Document:
    """A tokenised text."""

    name: str
    kind: str
    part: str
    ids: np.ndarray
    """[tokens] uint16 or uint32."""


@dataclass(frozen=True)
class Corpus:
    """Documents, and the hash of the tokenizer that their ids belong to."""

    documents: Sequence[Document]
    tokenizer_sha256: str

    def part(self, name: str, shortest: int) -> list[Document]:
        """The documents of a part that have at least so many tokens."""
        return [d for d in self.documents if d.part == name and len(d.ids) >= shortest]

    def kinds(self) -> list[str]:
        """The kinds, sorted."""
        return sorted({document.kind for document in self.documents})


def parts_of(names: Sequence[str]) -> dict[str, str]:
    """The part of each document of one kind; adding documents can move others."""
    order = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    tests = max(math.ceil(SHARE_TEST * len(order)), min(TESTS_MIN, len(order) // 3))
    devs = max(math.ceil(SHARE_DEV * len(order)), min(DEVS_MIN, len(order) // 6))
    tests, devs = (tests if len(order) > 1 else 0), (devs if len(order) > 2 else 0)
    parts = {}
    for place, name in enumerate(order):
        parts[name] = "test" if place < tests else "dev" if place < tests + devs else "train"
    return parts


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ToolError(f"{path}: {error.strerror}") from error


def read_text(path: Path) -> str:
    """A text file's content; refuses what is empty or not UTF-8."""
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ToolError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ToolError(f"{path}: not UTF-8 (byte {error.start})") from error
    if not text.strip():
        raise ToolError(f"{path}: empty")
    return text


def tokenizer_of(model: Path):
    """The tokenizer of a model directory."""
    from tokenizers import Tokenizer  # pylint: disable=import-outside-toplevel

    path = model / "tokenizer.json"
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ToolError(f"{path}: {error.strerror}") from error
    except Exception as error:  # the library raises no narrower one
        raise ToolError(f"{path}: not a tokenizer ({' '.join(str(error).split())})") from error


def read_folder(folder: Path, model: Path) -> Corpus:
    """Reads and tokenises a folder of texts with the tokenizer of a model directory."""
    if not folder.is_dir():
        raise ToolError(f"{folder} is not a directory")
    paths = sorted(folder.rglob("*.txt"))
    if not paths:
        raise ToolError(f"{folder} holds no .txt file")
    tokenizer = tokenizer_of(model)
    wide = np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.uint32
    groups: dict[str, list[Path]] = {}
    for path in paths:
        kind = path.relative_to(folder).parts[0] if path.parent != folder else "text"
        groups.setdefault(kind, []).append(path)
    documents = []
    for kind, members in sorted(groups.items()):
        parts = parts_of([path.name for path in members])
        texts = [read_text(path) for path in members]
        cut = [text[: 8 * TOKENS_OF_A_DOCUMENT_MAX] for text in texts]
        for path, coded in zip(members, tokenizer.encode_batch(cut, add_special_tokens=False)):
            ids = np.array(coded.ids[:TOKENS_OF_A_DOCUMENT_MAX], dtype=wide)
            documents.append(Document(path.name, kind, parts[path.name], ids))
    return Corpus(documents, file_sha256(model / "tokenizer.json"))


def write_packed(corpus: Corpus, path: Path) -> int:
    """Writes a corpus to a packed file; how many tokens it holds."""
    table = [[d.name, d.kind, d.part, len(d.ids)] for d in corpus.documents]
    about = json.dumps({"tokenizer_sha256": corpus.tokenizer_sha256, "documents": table})
    ids = np.concatenate([document.ids for document in corpus.documents])
    np.savez_compressed(path, about=np.array(about), ids=ids)
    return len(ids)


def read_packed(path: Path) -> Corpus:
    """Reads a packed file."""
    try:
        with np.load(path) as arrays:
            about, ids = json.loads(str(arrays["about"])), arrays["ids"]
        documents, start = [], 0
        for name, kind, part, count in about["documents"]:
            documents.append(Document(name, kind, part, ids[start : start + count]))
            start += count
        return Corpus(documents, about["tokenizer_sha256"])
    except OSError as error:
        raise ToolError(f"{path}: {error.strerror or error}") from error
    except (ValueError, LookupError, TypeError, EOFError, BadZipFile, zlib.error) as error:
        raise ToolError(f"{path}: not a packed corpus ({error})") from error


def read_corpus(source: Path, model: Path) -> Corpus:
    """Reads a folder of texts or a packed file, for the tokenizer of a model directory."""
    if source.is_dir():
        return read_folder(source, model)
    corpus = read_packed(source)
    if corpus.tokenizer_sha256 != file_sha256(model / "tokenizer.json"):
        raise ToolError(f"{source}: tokenised for another model than {model}")
    return corpus


def windows_of(
    corpus: Corpus,
    part: str,
    length: int,
    of_a_kind: int,
    of_a_document: int,
) -> list[tuple[str, str, np.ndarray]]:
    """Fixed windows for scoring: (kind, document, ids [length]), spread evenly over documents.

    Every document gives one window before any gives a second. Windows of one document do not
    overlap.
    """
    chosen = []
    for kind in corpus.kinds():
        members = [d for d in corpus.part(part, length) if d.kind == kind]
        candidates = []
        for document in members:
            slots = min(len(document.ids) // length, of_a_document)
            gap = (len(document.ids) - slots * length) // max(slots, 1)
            for slot in range(slots):
                start = slot * (length + gap)
                candidates.append((slot, document.name, document.ids[start : start + length]))
        candidates.sort(key=lambda entry: entry[0])
        chosen += [(kind, name, ids) for _, name, ids in candidates[:of_a_kind]]
    if not chosen:
        raise ToolError(f"no document of the {part} part has the {length} tokens of a window")
    return chosen


def random_window(corpus: Corpus, length: int, draw: np.random.Generator) -> np.ndarray:
    """A window of the train part: kinds equally often, documents by their length."""
    members = corpus.part("train", length)
    if not members:
        raise ToolError(f"no document of the train part has the {length} tokens of a window")
    kinds = sorted({document.kind for document in members})
    kind = kinds[draw.integers(len(kinds))]
    members = [document for document in members if document.kind == kind]
    weights = np.array([len(document.ids) for document in members], dtype=np.float64)
    document = members[draw.choice(len(members), p=weights / weights.sum())]
    start = draw.integers(len(document.ids) - length + 1)
    return np.asarray(document.ids[start : start + length])
