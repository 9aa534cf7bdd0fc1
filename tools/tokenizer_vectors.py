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
import unicodedata

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, processors, trainers

SENTENCES = [
    "The quick brown fox jumps over the lazy dog; it didn't stop, we'll see, I'M sure they've won.",
    "Straße, Äpfel und Öl: Größe über alles, daß man's glaubt. Schloß Neuschwanstein, 1869.",
    "Le cœur déçu mais l'âme plutôt naïve, Louÿs rêva de crapaüter en canoë au delà des îles.",
    "El pingüino Wenceslao hizo kilómetros bajo exhaustiva lluvia y frío, ¿añoraba a su querido?",
    "Příliš žluťoučký kůň úpěl ďábelské ódy. Zażółć gęślą jaźń. Árvíztűrő tükörfúrógép.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. Їжак їсть ґанок.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία· γαζέες καὶ μυρτιὲς δὲν θὰ βρῶ πιὰ.",
    "نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر ومغلف بجلد أزرق. ١٢٣٤٥",
    "דג סקרן שט בים מאוכזב ולפתע מצא חברה. בְּרֵאשִׁית בָּרָא אֱלֹהִים",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश करने वाले १२३४",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า กว่าบรรดาฝูงสัตว์เดรัจฉาน ๑๒๓",
    "我能吞下玻璃而不傷身體。人人生而自由,在尊严和权利上一律平等。一二三",
    "いろはにほへと ちりぬるを。カタカナと漢字、そして「括弧」。ガギグゲゴ",
    "키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다. 한글 ᄒᆞᆫ글",
    "আমি কাঁচ খেতে পারি, তাতে আমার কোনো ক্ষতি হয় না। தமிழ் மொழி நான்",
    "მე მინას ვჭამ და არა მტკივა. Կրնամ ապակի ուտել և ինծի անհանգիստ չըներ։",
    "Tôi có thể ăn thủy tinh mà không hại gì. İstanbul'da ılık ığdır çiçeği",
    "for (int i = 0; i < n; i++) {\n\tif (a[i] != b[i])\n\t\treturn -1; /* x->y */\n}\n",
    'def f(x: float = 1e-5) -> str:\n    return f"{x!r:>{10}}" if x else None  # ok\n',
    "SELECT id, COUNT(*) FROM t WHERE x >= 3.14 AND y LIKE '%a_b%' GROUP BY 1;\r\n",
    '<div class="a-b">&amp;&#39;</div>\n<!-- comment -->\n{"key": [1, 2.50, null, true]}',
    "👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 🇩🇪🇫🇷 ☺️ ❤️‍🔥 1️⃣ 🤷🏾‍♀️ emoji",
    "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋, α ∧ ¬β = ¬(¬α ∨ β), √2 ≈ 1.41421, ½ ² ³ Ⅷ ① ㊿ ﬁ ﬂ Å Å ℡ ㎏",
    "1234567890 12 345 6,789.00 0x1F3a 1e10 2026-11-24 23:59:59 +49 (0)30 1/2 ٣٤٥ ४५६ 一千",
]

PIECES = [
    " ",
    "  ",
    "    ",
    "\t",
    "\n",
    "\n\n",
    "\r\n",
    " \n",
    "\n ",
    "\t\t",
    "\u00a0",
    "\u3000",
    "\u2028",
    "\u200b",
    "\u180e",
    "\u0085",
    "\u1680",
    "\ufeff",
    "\x00",
    "\x01",
    "\x1f",
    "\x7f",
    "\u200d",
    "\ufe0f",
    "\u0301",
    "\u0323\u0301",
    "\u0301\u0323",
    "e\u0301",
    "\u00e9",
    "\u1e69",
    "\u1100\u1161\u11a8",
    "\uac01",
    "\u212b",
    "\u2126",
    "\ufb01",
    "\uff21",
    "\u0130",
    "\u017f",
    "\u1e9e",
    "'s",
    "'S",
    "'ll",
    "'LL",
    "'\u017f",
    "\u2019s",
    "don't",
    "DON'T",
    "_",
    "__init__",
    "...",
    "!!!",
    "?!",
    "---",
    "```",
    "$$",
    "\\n",
    "://",
    "@",
    "#",
    "a",
    "A",
    "aB",
    "Zz",
    "\u00df",
    "1",
    "12",
    "123",
    "1234",
    "12345678901",
    "1.5",
    "\u00bd",
    "\u2167",
    "\u0663\u0664",
    "x1y2",
    "<s>",
    "</s>",
    "<unk>",
    "<0x0A>",
    "\u2581",
    "\u2581\u2581",
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|begin_of_text|>",
    "<|eot_id|>",
    "<think>",
    "</think>",
    "<|im_",
    "im_end|>",
    "[MASK]",
    "<mark>",
    "\u0120",
    "\u010a",
    "\U0001f600",
    "\U0001f468\u200d\U0001f469",
    "\U00020000",
    "\U0001d11e",
    "\ufffd",
    "\ufffe",
    "\U0010ffff",
    "\ue000",
]

INVALID = [
    b"\xff",
    b"\xc3",
    b"\xe2\x82",
    b"\xf0\x9f\x98",
    b"\x80",
    b"\xc0\xaf",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\xf8\x88\x80\x80\x80",
    b"\xe2\x28\xa1",
    b"\xf0\x80\x80\xaf",
    b"\xc3(",
]

RANGES = [
    (0x20, 0x7E),
    (0xA0, 0x24F),
    (0x300, 0x36F),
    (0x370, 0x3FF),
    (0x400, 0x52F),
    (0x591, 0x5F4),
    (0x600, 0x6FF),
    (0x900, 0x97F),
    (0x980, 0x9FE),
    (0xB80, 0xBFF),
    (0xE00, 0xE5B),
    (0xF00, 0xFDA),
    (0x10A0, 0x10FF),
    (0x1100, 0x11FF),
    (0x1200, 0x139F),
    (0x1780, 0x17F9),
    (0x1E00, 0x1FFF),
    (0x2000, 0x206F),
    (0x2070, 0x218B),
    (0x2190, 0x23FF),
    (0x2460, 0x24FF),
    (0x2600, 0x27BF),
    (0x3000, 0x30FF),
    (0x3130, 0x318E),
    (0x3200, 0x33FF),
    (0x4E00, 0x9FA5),
    (0xA000, 0xA4C6),
    (0xAC00, 0xD7A3),
    (0xF900, 0xFAD9),
    (0xFB00, 0xFDFF),
    (0xFE20, 0xFE2F),
    (0xFE30, 0xFFEE),
    (0x1D400, 0x1D7FF),
    (0x1F300, 0x1F64F),
    (0x20000, 0x20100),
    (0x2F800, 0x2FA1D),
]


def random_text(rng):
    kind = rng.randrange(8)
    sentence = rng.choice(SENTENCES)
    if kind == 0:
        start = rng.randrange(len(sentence))
        return sentence[start : start + rng.randrange(1, 50)]
    if kind == 1:
        return "".join(rng.choice(PIECES) for _ in range(rng.randrange(1, 10)))
    if kind == 2:
        low, high = rng.choice(RANGES)
        return "".join(chr(rng.randint(low, high)) for _ in range(rng.randrange(1, 14)))
    if kind == 3:
        form = rng.choice(["NFC", "NFD", "NFKC", "NFKD"])
        start = rng.randrange(len(sentence))
        return unicodedata.normalize(form, sentence[start : start + 40])
    if kind == 4:
        parts = [rng.choice(PIECES + sentence.split()) for _ in range(rng.randrange(1, 9))]
        return rng.choice(["", " ", "  ", "\n"]).join(parts)
    if kind == 5:
        return rng.choice(
            [" ", "\n", "\t", "a", "1", "-", "é", "中", "\u0301", "ab", "\r\n"]
        ) * rng.randrange(1, 40) + rng.choice(["", "x", " y", "\n", "7"])
    if kind == 6:
        words = (" ".join(SENTENCES)).split(" ")
        return " ".join(rng.choice(words) for _ in range(rng.randrange(1, 8)))
    while True:
        point = rng.choice([rng.randrange(0x250), rng.randrange(0x3000), rng.randrange(0x11000)])
        low = rng.choice(RANGES)[0]
        # U+0D81 came after the Unicode version of the library's normalization tables.
        if not 0xD800 <= point <= 0xDFFF and point != 0xD81 and unicodedata.category(chr(point)) != "Cn":
            return rng.choice(["", " ", "a", "1"]) + chr(point) + rng.choice(["", "b", chr(low)])


def make_texts(count):
    rng = random.Random(20)
    texts = [b"", b" ", b"\n", b"a", "é".encode(), "▁".encode()]
    texts += [s.encode() for s in SENTENCES] + [p.encode() for p in PIECES] + INVALID
    while len(texts) < count:
        data = random_text(rng).encode("utf-8", "surrogatepass")
        if rng.randrange(12) == 0:
            at = rng.randrange(len(data) + 1)
            data = data[:at] + rng.choice(INVALID) + data[at:]
        texts.append(data)
    return texts


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def special(*names):
    return [AddedToken(n, special=True, normalized=False) for n in names]


def split(pattern):
    return pre_tokenizers.Split(Regex(pattern), "isolated", invert=False)


def byte_level(use_regex, prefix=False):
    return pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=use_regex)


def train(tokenizer, size, first=(), alphabet=()):
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(first),
        show_progress=False,
        initial_alphabet=list(alphabet),
    )
    tokenizer.train_from_iterator(SENTENCES * 3 + PIECES, trainer)
    return tokenizer


def train_bytes(pre_tokenizer, size, first, normalizer=None, ignore_merges=False):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return train(tokenizer, size, first, pre_tokenizers.ByteLevel.alphabet())


def llama3():
    t = train_bytes(
        pre_tokenizers.Sequence([split(LLAMA3), byte_level(False)]),
        2400,
        special(
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
        ),
        ignore_merges=True,
    )
    bos = t.token_to_id("<|begin_of_text|>")
    t.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<|begin_of_text|> $A",
                pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
                special_tokens=[("<|begin_of_text|>", bos)],
            ),
        ]
    )
    return t


def qwen():
    t = train_bytes(
        pre_tokenizers.Sequence([split(QWEN), byte_level(False)]),
        2400,
        special("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        normalizers.NFC(),
    )
    t.add_tokens(
        [
            AddedToken(n, normalized=False)
            for n in ("<tool_call>", "</tool_call>", "<think>", "</think>")
        ]
    )
    return t


def smollm():
    return train_bytes(
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level(True)]),
        2400,
        special("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    )


def common_characters(texts, limit):
    """The most frequent characters; the trainer's own choice differs from run to run."""
    counts = {}
    for c in "".join(texts):
        counts[c] = counts.get(c, 0) + 1
    return sorted(counts, key=lambda c: (-counts[c], c))[:limit]


def fallback_vocabulary(tokenizer, size, first):
    """Trains, then rebuilds the vocabulary with the byte tokens behind `first`."""
    scratch = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    scratch.normalizer = normalizers.Replace(" ", "▁")
    scratch.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    alphabet = common_characters(SENTENCES + ["▁" * 1000], 180)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(first),
        show_progress=False,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
    )
    scratch.train_from_iterator([" " + s for s in SENTENCES * 3], trainer)
    model = json.loads(scratch.to_str())["model"]
    names = list(first) + [f"<0x{b:02X}>" for b in range(256)]
    ordered = sorted(model["vocab"], key=model["vocab"].get)
    names += [n for n in ordered if n not in names]
    vocab = {n: i for i, n in enumerate(names)}
    merges = [tuple(m) for m in model["merges"]]
    tokenizer.model = models.BPE(
        vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    tokenizer.add_special_tokens(special(*first))
    return tokenizer


def minicpm():
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    fallback_vocabulary(t, 1800, ["<unk>", "<s>", "</s>"])
    t.add_special_tokens(special("<|im_start|>", "<|im_end|>"))
    t.add_special_tokens([AddedToken(n, rstrip=True, normalized=False, special=True)
                          for n in ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")])
    t.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    return t


def metaspace():
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    t.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    fallback_vocabulary(t, 700, ["<unk>", "<s>", "</s>"])
    t.add_tokens([AddedToken("<用户>", normalized=True), AddedToken("<AI>", normalized=False)])
    t.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return t


def gemma():
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.Replace(" ", "▁")
    t.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    t.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    fallback_vocabulary(t, 700, ["<pad>", "<eos>", "<bos>", "<unk>"])
    t.add_special_tokens(special("<start_of_turn>", "<end_of_turn>"))
    t.add_tokens([AddedToken("\n\n", normalized=False), AddedToken("▁▁", normalized=False)])
    return t


def o200k():
    return train_bytes(
        pre_tokenizers.Sequence([split(O200K), byte_level(False)]),
        700,
        special("<|endoftext|>"),
        normalizers.NFKC(),
    )


def unknowns():
    """No byte fallback: unknown tokens not fused; Metaspace splits and its own decoder."""
    t = Tokenizer(models.BPE(unk_token="<unk>"))
    t.normalizer = normalizers.Sequence(
        [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    t.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always", split=True)
    t.decoder = decoders.Metaspace("▁", prepend_scheme="always")
    texts = [unicodedata.normalize("NFD", text).lower() for text in SENTENCES]
    alphabet = common_characters(texts + ["▁" * 1000], 61)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>"],
        show_progress=False,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
    )
    t.train_from_iterator(SENTENCES, trainer)
    return t


def mixed():
    """Added tokens of every kind, and character classes."""
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    t.normalizer = normalizers.Sequence(
        [
            normalizers.Strip(),
            normalizers.NFKD(),
            normalizers.Replace(Regex(r"\s{2,}"), " "),
            normalizers.Lowercase(),
        ]
    )
    t.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Whitespace(),
            pre_tokenizers.Digits(individual_digits=False),
            pre_tokenizers.Punctuation("contiguous"),
        ]
    )
    texts = [unicodedata.normalize("NFKD", text).lower() for text in SENTENCES]
    alphabet = common_characters(texts + ["▁" * 1000], 61)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>"],
        show_progress=False,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
    )
    t.train_from_iterator(SENTENCES, trainer)
    t.add_special_tokens(
        [
            AddedToken("[MASK]", lstrip=True, normalized=False, special=True),
            AddedToken("</s>", rstrip=True, normalized=False, special=True),
            AddedToken("<s>", normalized=True, special=True),
        ]
    )
    t.add_tokens(
        [
            AddedToken("im_end", single_word=True, normalized=False),
            AddedToken("don't", normalized=True),
            AddedToken("DON", normalized=True),
            AddedToken("zz", single_word=True, normalized=True),
            AddedToken("!!", normalized=False),
            AddedToken("!!!", normalized=False),
        ]
    )
    return t


def behaviors():
    """Every split behaviour once, with \\s, \\w, \\d, \\h and repeated repetition."""
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\s"), "merged_with_next"),
            pre_tokenizers.Split(Regex(r"[\w]{1,2}+"), "contiguous", invert=True),
            pre_tokenizers.Split(Regex(r"\d\h*"), "merged_with_previous"),
            pre_tokenizers.Split("a", "isolated"),
            pre_tokenizers.Split(Regex(r"[^\S\n]+$"), "removed"),
            byte_level(True, prefix=True),
        ]
    )
    t.decoder = decoders.ByteLevel()
    t.post_processor = processors.ByteLevel(trim_offsets=True)
    return train(t, 500, special("<|endoftext|>"), pre_tokenizers.ByteLevel.alphabet())


FAMILIES = {
    "llama3": llama3,
    "qwen": qwen,
    "smollm": smollm,
    "minicpm": minicpm,
    "metaspace": metaspace,
    "gemma": gemma,
    "o200k": o200k,
    "unknowns": unknowns,
    "mixed": mixed,
    "behaviors": behaviors,
}


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


CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by "
    "Hugging Face<|im_end|>\\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
QWEN25 = (
    "{%- if messages[0]['role'] == 'system' %}\n    {{- '<|im_start|>system\\n' + "
    "messages[0]['content'] + '<|im_end|>\\n' }}\n{%- else %}\n    "
    "{{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful "
    "assistant.<|im_end|>\\n' }}\n{%- endif %}\n{%- for message in messages %}\n    "
    '{%- if (message.role == "user") or (message.role == "system" and not loop.first) or '
    '(message.role == "assistant" and not message.tool_calls) %}\n        '
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n"
    "    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    "
    "{{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n"
)
QWEN3 = (
    "{%- set ns = namespace(last_query_index=messages|length - 1, open=true) %}\n"
    "{%- for message in messages[::-1] %}\n    "
    "{%- set index = (messages|length - 1) - loop.index0 %}\n    "
    '{%- if ns.open and message.role == "user" %}{%- set ns.open = false %}'
    "{%- set ns.last_query_index = index %}{%- endif %}\n{%- endfor %}\n"
    "{%- for message in messages %}\n    {%- set content = message.content %}\n    "
    "{%- if message.role == \"assistant\" %}\n        {%- set reasoning_content = '' %}\n"
    "        {%- if '</think>' in content %}\n            {%- set reasoning_content = "
    "content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}\n"
    "            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}\n"
    "        {%- endif %}\n        {{- '<|im_start|>' + message.role + '\\n' + content }}\n"
    "        {{- '<|im_end|>\\n' }}\n    {%- else %}\n        "
    "{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}\n"
    "    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    "
    "{{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n"
)
LLAMA3_CHAT = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
LLAMA31_CHAT = (
    "{{- bos_token }}\n{%- if not date_string is defined %}\n    "
    '{%- set date_string = "26 Jul 2024" %}\n{%- endif %}\n'
    "{%- if messages[0]['role'] == 'system' %}\n    "
    "{%- set system_message = messages[0]['content']|trim %}\n    "
    "{%- set messages = messages[1:] %}\n{%- else %}\n    "
    '{%- set system_message = "" %}\n{%- endif %}\n'
    '{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}\n'
    '{{- "Cutting Knowledge Date: December 2023\\n" }}\n'
    '{{- "Today Date: " + date_string + "\\n\\n" }}\n{{- system_message }}\n'
    '{{- "<|eot_id|>" }}\n{%- for message in messages %}\n        '
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ "
    "message['content'] | trim + '<|eot_id|>' }}\n{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n    "
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n{%- endif %}\n"
)
LLAMA2_CHAT = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}"
    "{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + "
    "message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL_CHAT = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
    "{% else %}{{ raise_exception('Only user and assistant roles') }}{% endif %}"
    "{% endfor %}"
)
GEMMA_CHAT = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}"
    "{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\\n' + "
    "message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"
)
PHI3_CHAT = (
    "{% for message in messages %}{% if message['role'] == 'system' and "
    "message['content'] %}{{'<|system|>\\n' + message['content'] + '<|end|>\\n'}}"
    "{% elif message['role'] == 'user' %}"
    "{{'<|user|>\\n' + message['content'] + '<|end|>\\n'}}"
    "{% elif message['role'] == 'assistant' %}"
    "{{'<|assistant|>\\n' + message['content'] + '<|end|>\\n'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}"
    "{% endif %}"
)
ZEPHYR_CHAT = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n"
    "{% endif %}\n{% endfor %}"
)
MINICPM_CHAT = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{'<用户>' + message['content'].strip() + '<AI>'}}{% else %}"
    "{{message['content'].strip()}}{% endif %}{% endfor %}"
)

CHATS = [  # template, tokenizer, bos, eos, accepts a system message
    (CHATML, "minicpm", "<s>", "</s>", True),
    (SMOLLM2, "smollm", None, "<|im_end|>", True),
    (QWEN25, "qwen", None, "<|im_end|>", True),
    (QWEN3, "qwen", None, "<|im_end|>", True),
    (LLAMA3_CHAT, "llama3", "<|begin_of_text|>", "<|eot_id|>", True),
    (LLAMA31_CHAT, "llama3", "<|begin_of_text|>", "<|eot_id|>", True),
    (LLAMA2_CHAT, "minicpm", "<s>", "</s>", True),
    (MISTRAL_CHAT, "metaspace", "<s>", "</s>", False),
    (GEMMA_CHAT, "gemma", "<bos>", "<eos>", False),
    (PHI3_CHAT, "minicpm", "<s>", "</s>", True),
    (ZEPHYR_CHAT, "metaspace", "<s>", "</s>", True),
    (MINICPM_CHAT, "metaspace", "<s>", "</s>", None),
]


def write_chats(tokenizers, path):
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = lambda m: (_ for _ in ()).throw(
        jinja2.TemplateError(m)
    )
    user = "What is  the capital of France?\nTell me, please. "
    turns = [
        [("user", user)],
        [("user", "  Hi \t\n"), ("assistant", " Hello! \n"), ("user", "Größe 12 中 👍🏽?")],
        [("user", ""), ("assistant", "<think>\nhm\n</think>\n\nYes"), ("user", "\n\nx")],
    ]
    systems = [[("system", " Be brief. ")] + t for t in turns] + [[("system", "")] + turns[0]]
    with open(path, "w", encoding="utf-8") as out:
        for template, name, bos, eos, system in CHATS:
            out.write(
                json.dumps(
                    {"tokenizer": name, "template": template, "bos": bos, "eos": eos},
                    ensure_ascii=False,
                )
                + "\n"
            )
            compiled = environment.from_string(template)
            for messages in turns + (systems if system else []):
                for generate in (True, False):
                    items = [{"role": r, "content": c} for r, c in messages]
                    text = compiled.render(
                        messages=items,
                        add_generation_prompt=generate,
                        bos_token=bos or "",
                        eos_token=eos,
                    )
                    ids = tokenizers[name].encode(text, add_special_tokens=False).ids
                    out.write(
                        json.dumps(
                            {"generate": generate, "messages": messages, "ids": pack(ids)},
                            ensure_ascii=False,
                        )
                        + "\n"
                    )


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
    write_chats(tokenizers, os.path.join(arguments.out, "chat.jsonl"))
    if arguments.smollm2_json:
        tokenizer = Tokenizer.from_file(arguments.smollm2_json)
        write_vectors(tokenizer, texts, os.path.join(arguments.out, "smollm2.txt"))


if __name__ == "__main__":
    main()
