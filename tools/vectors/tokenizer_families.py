"""Tokenizers of the published families: small vocabularies, trained under exactly the normalizer,
pre-tokenizer, post-processor and decoder of each family's tokenizer.json."""

import json
import unicodedata

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, processors, trainers

from vectors.tokenizer_texts import PIECES, SENTENCES

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


def fallback_decoder():
    """Marks to spaces, <0xNN> to bytes, and not the space that the mark at the start makes."""
    return decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )


def train_with_unknowns(tokenizer, form):
    """With an alphabet of the most common characters only, so that others stay unknown."""
    texts = [unicodedata.normalize(form, text).lower() for text in SENTENCES]
    alphabet = common_characters(texts + ["▁" * 1000], 61)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>"],
        show_progress=False,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)


def minicpm():
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.decoder = fallback_decoder()
    fallback_vocabulary(t, 1800, ["<unk>", "<s>", "</s>"])
    t.add_special_tokens(special("<|im_start|>", "<|im_end|>"))
    t.add_special_tokens(
        [
            AddedToken(n, rstrip=True, normalized=False, special=True)
            for n in ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
        ]
    )
    t.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    return t


def metaspace():
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    t.decoder = fallback_decoder()
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
    train_with_unknowns(t, "NFD")
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
    train_with_unknowns(t, "NFKD")
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
