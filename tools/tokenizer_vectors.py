#!/usr/bin/env python3
"""Makes the tokenizer test vectors with the `tokenizers` and `jinja2` packages (the committed ones
with tokenizers 0.23.3 and jinja2 3.1.6).

For each family a small vocabulary is trained under exactly the normalizer, pre-tokenizer,
post-processor and decoder of the family's published tokenizer.json, and ids and texts are recorded
for one list of strings of many scripts. Output, all in --out:

  texts.txt           one base64 text (bytes, not always UTF-8) per line
  FAMILY.json         the tokenizer
  FAMILY.txt          per text: base64 of LEB128 ids, then base64 of the decoded text, or "=" where
                      it is the text itself (repaired to UTF-8); the line's number modulo 4 says how
                      it was encoded: 1 with special tokens added, 2 with special tokens left as text
  FAMILY.decode.txt   random ids and what they decode to
  chat.jsonl          a template and its tokenizer, then lines of conversations with the ids of the
                      rendered text, up to the next template
  smollm2.txt         with --smollm2-json: as FAMILY.txt, for a tokenizer.json that is not copied

Usage: tokenizer_vectors.py --out tests/vectors/tokenizer [--smollm2-json FILE]
"""

import argparse
import base64
import json
import os
import random

from tokenizers import Tokenizer

from vectors.tokenizer_chats import write_chats
from vectors.tokenizer_families import FAMILIES
from vectors.tokenizer_texts import make_texts

FULL = ("llama3", "qwen", "smollm", "minicpm")  # with all texts; the others with a third


def pack(ids):
    out = bytearray()
    for value in ids:
        while value >= 0x80:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
    return base64.b64encode(bytes(out)).decode() or "-"


def write_vectors(tokenizer, texts, path):
    with open(path, "w", encoding="ascii") as out:
        for i, data in enumerate(texts):
            text = data.decode("utf-8", "replace")
            tokenizer.encode_special_tokens = i % 4 == 2
            ids = tokenizer.encode(text, add_special_tokens=i % 4 == 1).ids
            decoded = tokenizer.decode(ids, skip_special_tokens=True)
            shown = "=" if decoded == text else base64.b64encode(decoded.encode()).decode() or "-"
            out.write(f"{pack(ids)} {shown}\n")
    tokenizer.encode_special_tokens = False


def write_decodes(tokenizer, path):
    rng = random.Random(30)
    size = tokenizer.get_vocab_size()
    low = [i for i in range(min(size, 300))]
    with open(path, "w", encoding="ascii") as out:
        for i in range(150):
            count = rng.randrange(0, 14)
            ids = [
                rng.choice(low) if rng.randrange(2) else rng.randrange(size) for _ in range(count)
            ]
            decoded = tokenizer.decode(ids, skip_special_tokens=True)
            out.write(f"{pack(ids)} {base64.b64encode(decoded.encode()).decode() or '-'}\n")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, help="folder to write to")
    parser.add_argument("--count", type=int, default=2200, help="number of texts")
    parser.add_argument("--smollm2-json", help="tokenizer.json of SmolLM2")
    arguments = parser.parse_args()
    os.makedirs(arguments.out, exist_ok=True)
    texts = make_texts(arguments.count)
    with open(os.path.join(arguments.out, "texts.txt"), "w", encoding="ascii") as out:
        for data in texts:
            out.write((base64.b64encode(data).decode() or "-") + "\n")
    tokenizers = {}
    for name, make in FAMILIES.items():
        tokenizer = make()
        path = os.path.join(arguments.out, name)
        with open(path + ".json", "w", encoding="utf-8") as out:
            json.dump(
                json.loads(tokenizer.to_str()), out, ensure_ascii=False, separators=(",", ":")
            )
        tokenizer = Tokenizer.from_file(path + ".json")
        count = len(texts) if name in FULL else len(texts) // 3
        write_vectors(tokenizer, texts[:count], path + ".txt")
        write_decodes(tokenizer, path + ".decode.txt")
        tokenizers[name] = tokenizer
    write_chats(tokenizers, pack, os.path.join(arguments.out, "chat.jsonl"))
    if arguments.smollm2_json:
        tokenizer = Tokenizer.from_file(arguments.smollm2_json)
        write_vectors(tokenizer, texts, os.path.join(arguments.out, "smollm2.txt"))


if __name__ == "__main__":
    main()
