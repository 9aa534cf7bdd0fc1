"""The strings that tokenizers are compared on: many scripts, code, emoji, digits, whitespace,
invalid bytes, and random mixtures of them; always the same ones."""

import random
import unicodedata

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
        if (
            not 0xD800 <= point <= 0xDFFF
            and point != 0xD81
            and unicodedata.category(chr(point)) != "Cn"
        ):
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
