"""Golden logits and greedy tokens of the demo model, from transformers and from the float64
reference.

transformers computes everything in float32 on the CPU from the checkpoint's bfloat16 weights. The
reference rounds K and V to bfloat16 as the product does, and also gives the mode `infllmv2`.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from reference.nosa_reference import Model, forward, load_model

GREEDY_TOKENS = 32
TOP = 32
REFERENCE_MODES = ("full", "infllmv2")

_PLACES = ("harbour", "lighthouse", "old mill", "market square", "northern pass", "observatory")
_PEOPLE = ("the keeper", "a young surveyor", "the miller", "two fishermen", "the doctor", "a pilot")
_ACTIONS = (
    "measured the wind and wrote the figures into the log",
    "repaired the lamp before the fog came in",
    "counted the crates and found one missing",
    "talked about the winter that everyone remembered",
    "drew a map of the coast with every rock on it",
    "waited for the mail and read the letters aloud",
)
_ENDINGS = (
    "Nobody expected what happened next.",
    "The rest of the day was quiet.",
    "By evening the rain had stopped.",
    "It was the best week of the year.",
    "The report was sent to the capital the same night.",
)


@dataclass(frozen=True)
class Prompt:
    """A prompt: plain text, or the messages of a chat."""

    name: str
    text: str | None = None
    chat: list[dict[str, str]] | None = None


def log_book(days: int) -> str:
    """A ship's log of that many days, made of sentences drawn with a fixed seed."""
    draw = random.Random(2718)
    entries = []
    for day in range(1, days + 1):
        entries.append(
            f"Day {day}. At the {draw.choice(_PLACES)}, {draw.choice(_PEOPLE)} "
            f"{draw.choice(_ACTIONS)}. The temperature was {draw.randint(-9, 31)} degrees and the "
            f"wind came from the {draw.choice(('north', 'east', 'south', 'west'))}. "
            f"{draw.choice(_ENDINGS)}"
        )
    return "\n\n".join(entries)


def prompts() -> list[Prompt]:
    """Short and long ones."""
    question = "What is the capital of France, and what is it known for?"
    book = log_book(54)
    summary = f"Here is a log book.\n\n{book}\n\nIn one sentence, what is this text about?"
    return [
        Prompt("short", text="Water is made of two elements:"),
        Prompt("chat", chat=[{"role": "user", "content": question}]),
        Prompt("medium", text=log_book(13) + "\n\nDay 14. At the"),
        Prompt("long", chat=[{"role": "user", "content": summary}]),
    ]


def greedy(model: PreTrainedModel, prompt_ids: list[int]) -> list[int]:
    """The next tokens, best one first each time; end-of-text does not end it."""
    step = model(torch.tensor([prompt_ids]), use_cache=True, logits_to_keep=1)
    tokens = [int(step.logits[0, -1].argmax())]
    while len(tokens) < GREEDY_TOKENS:
        step = model(
            torch.tensor([tokens[-1:]]), past_key_values=step.past_key_values, use_cache=True
        )
        tokens.append(int(step.logits[0, -1].argmax()))
    return tokens


def describe_row(position: int, logits: torch.Tensor) -> dict[str, Any]:
    """The best logits of one position, and their spread."""
    top = logits.topk(TOP)
    values = top.values.tolist()
    return {
        "position": position,
        "mean": round(float(logits.double().mean()), 6),
        "std": round(float(logits.double().std(correction=0)), 6),
        "margin": round(values[0] - values[1], 6),
        "top_ids": top.indices.tolist(),
        "top_logits": [round(value, 5) for value in values],
    }


def add_reference(reference: Model, ids: list[int], rows: list[dict[str, Any]]) -> None:
    """Adds the reference's logits of each row's best tokens to the rows."""
    positions = [row["position"] for row in rows]
    for mode in REFERENCE_MODES:
        logits = forward(reference, ids, mode, positions).logits
        for row, values in zip(rows, logits):
            best = values[row["top_ids"]].tolist()
            row.setdefault("reference", {})[mode] = [round(value, 5) for value in best]


def describe(
    model: PreTrainedModel, reference: Model, prompt: Prompt, prompt_ids: list[int]
) -> dict[str, Any]:
    """All goldens of one prompt."""
    continued = greedy(model, prompt_ids)
    ids = prompt_ids + continued
    count = len(prompt_ids)
    logits = model(torch.tensor([ids]), use_cache=False).logits[0]
    targets = torch.tensor(prompt_ids[1:])
    chosen = logits[: count - 1].gather(1, targets[:, None])[:, 0]
    per_token = chosen.double() - logits[: count - 1].double().logsumexp(dim=1)
    steps = logits[count - 1 : -1].topk(2).values
    positions = sorted({0, count // 2, count - 1, count, len(ids) - 2})
    rows = [describe_row(position, logits[position]) for position in positions]
    add_reference(reference, ids, rows)
    source = {"text": prompt.text} if prompt.text else {"chat": prompt.chat}
    return {
        "name": prompt.name,
        **source,
        "prompt_ids": prompt_ids,
        "log_likelihood": round(float(per_token.sum()), 4),
        "greedy_ids": continued,
        "greedy_margins": [round(value, 5) for value in (steps[:, 0] - steps[:, 1]).tolist()],
        "rows": rows,
    }


@torch.no_grad()
def make_smollm2(path: Path, directory: Path) -> None:
    """Writes the goldens of the model in `directory`."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    reference = load_model(directory)
    entries = []
    for prompt in prompts():
        if prompt.chat:
            ids = tokenizer.apply_chat_template(prompt.chat, add_generation_prompt=True)
        else:
            ids = tokenizer(prompt.text).input_ids
        entries.append(describe(model, reference, prompt, ids))
        margin = min(entries[-1]["greedy_margins"])
        text = tokenizer.decode(entries[-1]["greedy_ids"])
        print(
            f"{prompt.name}: {len(ids)} tokens, smallest margin {margin:.4f}: {text!r}", flush=True
        )
    body = ",\n  ".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
    path.write_text(f'{{"prompts": [\n  {body}\n]}}\n', encoding="utf-8")
