"""Eviction heads for Llama checkpoints: fit one, score it, merge it.

python tools/eviction_head fit   --model DIR --texts DIR --output FILE
python tools/eviction_head eval  --model DIR --texts DIR [--head FILE]
python tools/eviction_head merge --model DIR --head FILE --output DIR
python tools/eviction_head pack  --model DIR --texts DIR --output FILE
python tools/eviction_head study --model DIR --texts DIR --program FILE --output DIR
python tools/eviction_head report --results DIR [--pictures DIR]
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))

import headfile  # noqa: E402
from errors import ToolError  # noqa: E402

HEAD_DEFAULT = "head.safetensors"


def device_of(name: str):
    """The device of a flag."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "none"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ToolError("--device cuda: PyTorch finds no GPU")
    torch.backends.cuda.matmul.allow_tf32 = True
    return None if name == "none" else torch.device(name)


def fit(arguments: argparse.Namespace) -> None:
    """Fits a head and writes its file and the picture of its curve."""
    import torch

    import fit as fitting
    import study
    import texts
    from llama import Llama

    headfile.refuse_second_head(arguments.model)
    headfile.read_config(arguments.model)
    device = device_of(arguments.device)
    options = fitting.Options(
        **{
            f.name: getattr(arguments, f.name)
            for f in fields(fitting.Options)
            if hasattr(arguments, f.name)
        }
    )
    if options.steps < 1 or options.length < 512:
        raise ToolError("--steps must be at least 1, --length at least 512")
    corpus = texts.read_corpus(arguments.texts, arguments.model)
    if not corpus.part("train", options.length):
        raise ToolError(
            f"{arguments.texts}: no document of the train part has the "
            f"{options.length} tokens of a window"
        )
    model = Llama.load(arguments.model, device or torch.device("cpu"))
    if device is None:
        seconds = fitting.cpu_estimate(model, options, fitting.cpu_rate())
        raise ToolError(
            "no GPU: on this CPU the fit would take about "
            f"{fitting.duration(seconds)}; --device cpu does it all the same"
        )
    base = headfile.weights_sha256(arguments.model)
    state = fitting.Fit(model, corpus, options, study.encoder(arguments.model))
    fitting.run(state, arguments.output, base)
    tensors = {name: tensor.numpy() for name, tensor in state.head.tensors().items()}
    head = headfile.HeadFile(tensors, study.head_metadata(base, model, state))
    headfile.write_head(arguments.output, head)
    fitting.draw_curve(state, arguments.output.with_suffix(".svg"))
    print(arguments.output)


def evaluate(arguments: argparse.Namespace) -> None:
    """Scores a head beside the plain model."""
    import numpy as np
    import torch

    import evaluate as scoring
    import fit as fitting
    import study
    import texts
    from llama import Llama

    headfile.read_config(arguments.model)
    if arguments.head:
        headfile.check_head(headfile.read_head(arguments.head), arguments.head, arguments.model)
    corpus = texts.read_corpus(arguments.texts, arguments.model)
    chosen = texts.windows_of(
        corpus, arguments.part, arguments.length, arguments.of_a_kind, arguments.of_a_document
    )
    device = device_of(arguments.device)
    model = Llama.load(arguments.model, device or torch.device("cpu"))
    head = study.head_of_file(arguments.head, model) if arguments.head else model.own_head()
    cases = scoring.standard_cases(model, head, model.sizes)
    if device is None:
        each = fitting.cpu_estimate_of_pass(model, arguments.length, fitting.cpu_rate())
        seconds = each * len(cases) * len(chosen)
        raise ToolError(
            f"no GPU: on this CPU {len(cases)} cases on {len(chosen)} windows would take about "
            f"{fitting.duration(seconds)}; --device cpu does it all the same"
        )
    rows = []
    for number, (_, _, ids) in enumerate(chosen):
        tensor = torch.as_tensor(ids.astype(np.int64), device=model.device)
        rows.append(scoring.score_window(model, cases, tensor, tiers=number % 6 == 0))
        print(f"eval: window {number + 1} of {len(chosen)}", file=sys.stderr, flush=True)
    lengths = [n for n in (arguments.length // 2, arguments.length) if n >= scoring.BUCKET]
    plain = [row[0] for row in rows]
    result = {
        case.name: scoring.summary([row[n] for row in rows], plain, lengths)
        for n, case in enumerate(cases)
    }
    print(json.dumps({"windows": len(rows), "cases": result}, indent=2))


def merge(arguments: argparse.Namespace) -> None:
    """Puts a head into a checkpoint directory."""
    headfile.merge(arguments.model, arguments.head, arguments.output, arguments.link)
    print(arguments.output)


def pack(arguments: argparse.Namespace) -> None:
    """Tokenises a folder of texts into one file."""
    import texts

    corpus = texts.read_folder(arguments.texts, arguments.model)
    count = texts.write_packed(corpus, arguments.output)
    print(f"{arguments.output}: {len(corpus.documents)} documents, {count} tokens")


def study_program(arguments: argparse.Namespace) -> None:
    """Runs a list of fits and scorings."""
    import study

    device = device_of(arguments.device)
    program = study.read_program(arguments.program)
    study.check_program(program, arguments.program, arguments.output, arguments.model)
    if device is None:
        raise ToolError(study.cpu_refusal(program, arguments.model))
    study.run(
        program, arguments.output, arguments.model, arguments.texts, device, arguments.seconds
    )


def report(arguments: argparse.Namespace) -> None:
    """Prints what a study found, and draws it."""
    import report as reporting

    reporting.run(arguments.results, arguments.pictures)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="eviction_head", description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, run, help_text: str, model: bool = True) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=help_text)
        sub.set_defaults(run=run)
        if model:
            sub.add_argument(
                "--model",
                type=Path,
                required=True,
                metavar="DIR",
                help="Hugging Face directory of the base model",
            )
        return sub

    one = verb("fit", fit, "fit a head to a checkpoint and texts")
    one.add_argument(
        "--texts",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of .txt files, or a packed file",
    )
    one.add_argument("--output", type=Path, default=Path(HEAD_DEFAULT), metavar="FILE")
    one.add_argument("--steps", type=int, default=160)
    one.add_argument("--rate", type=float, default=1e-2)
    one.add_argument("--length", type=int, default=8192, help="tokens of a window")
    one.add_argument("--seed", type=int, default=1)
    one.add_argument(
        "--planted",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="share of windows with planted facts",
    )
    one.add_argument(
        "--answers",
        type=float,
        default=0.1,
        metavar="WEIGHT",
        help="weight of the loss over the answers about planted facts",
    )
    one.add_argument(
        "--window",
        type=int,
        default=0,
        metavar="N",
        help="window_size in the fit (default: half the checkpoint's)",
    )
    one.add_argument(
        "--select",
        type=int,
        default=0,
        metavar="N",
        help="select_blocks in the fit (default: half the checkpoint's)",
    )
    one.add_argument(
        "--full",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of steps that read every block, which keeps full attention as it is",
    )
    one.add_argument("--device", default="auto")
    one = verb("eval", evaluate, "perplexity, agreement and hit rates beside the plain model")
    one.add_argument("--texts", type=Path, required=True, metavar="DIR")
    one.add_argument("--head", type=Path, metavar="FILE", help="default: the checkpoint's own")
    one.add_argument("--part", choices=("dev", "test"), default="test")
    one.add_argument("--length", type=int, default=8192)
    one.add_argument("--of-a-kind", type=int, default=18, metavar="N", help="windows of a kind")
    one.add_argument("--of-a-document", type=int, default=3, metavar="N")
    one.add_argument("--device", default="auto")
    one = verb("merge", merge, "write a checkpoint with the head in it")
    one.add_argument("--head", type=Path, required=True, metavar="FILE")
    one.add_argument("--output", type=Path, required=True, metavar="DIR")
    one.add_argument("--link", action="store_true", help="link shards in place of copying them")
    one = verb("pack", pack, "tokenise a folder of texts into one file")
    one.add_argument("--texts", type=Path, required=True, metavar="DIR")
    one.add_argument("--output", type=Path, required=True, metavar="FILE")
    one = verb("study", study_program, "run a list of fits and scorings")
    one.add_argument("--texts", type=Path, required=True, metavar="DIR")
    one.add_argument("--program", type=Path, required=True, metavar="FILE")
    one.add_argument("--output", type=Path, required=True, metavar="DIR")
    one.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    one.add_argument("--device", default="auto", help="cpu, or all GPUs of the machine")
    one = verb("report", report, "tables and pictures of a study", model=False)
    one.add_argument("--results", type=Path, required=True, metavar="DIR")
    one.add_argument("--pictures", type=Path, metavar="DIR", help="write SVG files there")
    return parser.parse_args()


def main() -> int:
    """Runs the tool; 0, 2 after an error that was told in one line, or 130 when interrupted."""
    arguments = parse_arguments()
    try:
        arguments.run(arguments)
    except ToolError as error:
        print(f"eviction_head: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"eviction_head: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(
            f"eviction_head: {error.name} is not installed "
            "(tools/eviction_head/requirements.txt)",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("eviction_head: interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
