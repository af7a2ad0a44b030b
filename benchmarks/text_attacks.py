"""DLG on text, TAG, LAMP and DAGER, each in the setting that its paper is remembered for.

`dlg`: three sentences like those of DLG's table, of which 15 % of the tokens are masked, read off
an untrained BERT of two layers and width 128 with the vocabulary of bert-base-uncased; at several
sizes of its weights and of the start. `tag`: 32 tokens off an untrained GPT-2 of three layers.
`lamp`: sentences of CoLA and their class, off an untrained BERT and GPT-2, by TAG and LAMP with the
same number of steps; where everything is heard, where no embedding is (they are frozen), and under
noise. `dager`: one, two and four sentences of CoLA, 16 tokens each, of which 15 % are masked, off
a BERT of two layers and width 128, untrained and trained. The text is in shared/data beside the
repository. What stands in for a start that nobody improved is the control: tokens read out of
random embeddings.

    python -m benchmarks.text_attacks dlg --output benchmarks/results/text_dlg.json
    python -m benchmarks.text_attacks dlg --markdown benchmarks/results/text_dlg.json
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional

from attacks.metrics.text import rouge, token_accuracy
from attacks.observation import Kind, Knowledge, Observation
from attacks.text.dager import DAGER
from attacks.text.dlg_text import DLGText
from attacks.text.embedding_matching import EmbeddingMatching
from attacks.text.lamp import LAMP
from attacks.text.language import cross_entropy
from attacks.text.tag import TAG
from attacks.text.tokens import Head, Tokens
from benchmarks.dlg_cifar100 import DATA, environment
from fedsim.data.text import masked
from fedsim.data.vocabulary import Vocabulary, read_vocabulary
from fedsim.models.language_models import bert, gpt2
from fedsim.seeds import stream

LENGTH = 32
SENTENCES = (
    "Tickets for the conference sell out within eleven minutes.",
    "All authors should submit their papers before Friday evening.",
    "Tutorials start in the main hall at nine o'clock sharp.",
)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One text, and what the adversary heard of it.

    Attributes:
        text: Padded, (1, T).
        seen: The gradient.
        known: What the adversary knew.
    """

    text: Tensor
    seen: Observation
    known: Knowledge


@cache
def vocabulary() -> Vocabulary:
    """That of bert-base-uncased."""
    return read_vocabulary(DATA / "text" / "bert-base-uncased")


@cache
def cola() -> tuple[tuple[str, int], ...]:
    """All sentences of CoLA's training set, and whether linguists accept them."""
    rows = (DATA / "text" / "cola" / "in_domain_train.tsv").read_text(encoding="utf-8")
    parts = [line.split("\t") for line in rows.splitlines()]
    return tuple((part[3].strip(), int(part[1])) for part in parts)


def padded(texts: Iterable[str], tokens: Tokens, *, length: int = LENGTH) -> Tensor:
    """Return texts as tokens, (N, T)."""
    rows = []
    for ids in vocabulary().encode(list(texts)):
        row = [tokens.start, *ids[: length - 2], tokens.end]
        rows.append(row + [tokens.pad] * (length - len(row)))
    return torch.tensor(rows)


def overhear(
    model: nn.Module, inputs: Tensor, labels: Tensor, text: Tensor, known: Knowledge
) -> Trial:
    """Return the trial of one example."""
    named = dict(model.named_parameters())
    slopes = torch.autograd.grad(
        known.loss(model(inputs), labels),
        list(named.values()),
        allow_unused=True,
        materialize_grads=True,
    )
    seen = Observation(
        round=1,
        sender="client-0",
        receiver="server",
        kind=Kind.GRADIENT,
        update=dict(zip(named, slopes, strict=True)),
        weights={name: weight.detach() for name, weight in named.items()},
    )
    return Trial(text=text, seen=seen, known=known)


def knowledge(model: nn.Module, head: Head, num_classes: int) -> Knowledge:
    """What every adversary here knows."""
    return Knowledge(
        model=model,
        loss=functional.cross_entropy if head == "classes" else cross_entropy,
        input_shape=(LENGTH,),
        num_classes=num_classes,
        batch_size=1,
        tokens=vocabulary().tokens(head),
    )


def masked_trial(number: int, seed: int, *, scale: float = 1.0) -> Trial:
    """DLG's setting: sentence `number`, 15 % masked, off a BERT of its own weights."""
    tokens = vocabulary().tokens("masked")
    size = tokens.vocabulary_size
    model = bert((LENGTH,), size, rng=stream(seed, "model"), tokens=tokens)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(scale)
    text = padded(SENTENCES, tokens)
    inputs, labels = masked(text, tokens, 0.15)
    one = slice(number, number + 1)
    known = knowledge(model, "masked", size)
    return overhear(model, inputs[one], labels[one], text[one], known)


@cache
def _long() -> Tensor:
    """CoLA's sentences of 16 tokens or more, cut to that, (N, 16)."""
    pieces = vocabulary().encode([text for text, _ in cola()])
    tokens = vocabulary().tokens("masked")
    return torch.tensor([[tokens.start, *p[:14], tokens.end] for p in pieces if len(p) >= 14])


@cache
def _encoder(seed: int, steps: int) -> nn.Module:
    """BERT, after so many steps of AdamW on all sentences but the first 100."""
    tokens = vocabulary().tokens("masked")
    model = bert((16,), tokens.vocabulary_size, rng=stream(seed, "model"), tokens=tokens)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    rng = stream(seed, "training")
    for _ in range(steps):
        some = 100 + torch.randint(len(_long()) - 100, (16,), generator=rng)
        inputs, labels = masked(_long()[some], tokens, 0.15)
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model


def batch_trial(number: int, seed: int, *, steps: int) -> Trial:
    """DAGER's setting: `number` sentences off one gradient of an encoder."""
    tokens = vocabulary().tokens("masked")
    text = _long()[10 * seed : 10 * seed + number]
    inputs, labels = masked(text, tokens, 0.15)
    model = _encoder(seed, steps)
    known = knowledge(model, "masked", tokens.vocabulary_size)
    known = replace(known, input_shape=(16,), batch_size=number)
    return overhear(model, inputs, labels, text, known)


def causal_trial(seed: int) -> Trial:
    """TAG's setting: the first 32 tokens of a long paragraph."""
    tokens = vocabulary().tokens("causal")
    size = tokens.vocabulary_size
    lines = (DATA / "text" / "wikitext-2" / "test.txt").read_text(encoding="utf-8").splitlines()
    long = [line for line in lines if len(line) > 400 and "<unk>" not in line]
    model = gpt2(
        (LENGTH,),
        size,
        rng=stream(seed, "model"),
        tokens=tokens,
        layers=3,
        width=96,
        heads=8,
        inner=1536,
    )
    text = padded([long[seed]], tokens)
    labels = torch.cat([text[:, 1:], torch.full((1, 1), -100)], dim=1)
    return overhear(model, text, labels, text, knowledge(model, "causal", size))


@cache
def public() -> Tensor:
    """Sentences of CoLA that no trial is of, (N, T)."""
    return padded([text for place, (text, _) in enumerate(cola()) if place % 97], _classes())


def _classes() -> Tokens:
    return vocabulary().tokens("classes")


def class_trial(number: int, *, decoder: bool, embeddings: bool, noise: float) -> Trial:
    """LAMP's setting: sentence `number` of twenty or more, off a model of its own weights.

    Args:
        number: Of the sentence.
        decoder: Whether the model is GPT-2.
        embeddings: Whether their gradients are heard; else the length is known.
        noise: Standard deviation of what is added to every coordinate; the length is known, too.
    """
    tokens = _classes()
    sentence, label = cola()[97 * number]
    make = gpt2 if decoder else bert
    model = make((LENGTH,), 2, rng=stream(number, "model"), tokens=tokens)
    text = padded([sentence], tokens)
    known = replace(knowledge(model, "classes", 2), public_sample=public())
    trial = overhear(model, text, torch.tensor([label]), text, known)
    update = dict(trial.seen.update)
    left_out = {id(model.token_embedding.weight)}
    if model.position_embedding is not None:
        left_out.add(id(model.position_embedding.weight))
    names = {name for name, weight in model.named_parameters() if id(weight) in left_out}
    length = int((text != tokens.pad).sum())
    if not embeddings:
        update = {name: slope for name, slope in update.items() if name not in names}
        known = replace(known, public_sample=public()[:, :length], input_shape=(length,))
    if noise:
        rng = stream(number, "noise")
        update = {
            name: slope + noise * torch.randn(slope.shape, generator=rng)
            for name, slope in update.items()
        }
    return Trial(text=text, seen=replace(trial.seen, update=update), known=known)


def attacked(trial: Trial, attack: EmbeddingMatching, seed: int) -> dict[str, Any]:
    """Return what one attack got."""
    found = attack(trial.seen, trial.known, rng=stream(seed, "attack"))
    assert trial.known.tokens is not None
    special = trial.known.tokens.special

    def scores(guess: Tensor) -> dict[str, float]:
        similar = rouge(guess, trial.text, special=special)
        return {
            "accuracy": float(token_accuracy(guess, trial.text, special=special)),
            "rouge1": float(similar.one),
            "rouge2": float(similar.two),
        }

    assert found.inputs is not None
    first = found.snapshots[0]
    return {
        **scores(found.inputs),
        "proved": found.certified is not None,
        "steps": found.steps,
        "seconds": found.seconds,
        "start": scores(first.inputs),
        "looks": [[look.step, _words(look.inputs[0])] for look in found.snapshots],
        "truth": _words(trial.text[0][trial.text[0] != trial.known.tokens.pad]),
    }


def _words(tokens: Tensor) -> str:
    return " ".join(vocabulary().words[token] for token in tokens.tolist())


def assembled(trial: Trial, seed: int) -> dict[str, Any]:
    """Return what DAGER got of a batch, as `attacked` does, and seconds of the processor."""
    assert trial.known.tokens is not None
    special = trial.known.tokens.special
    start = time.process_time()
    found = DAGER()(trial.seen, trial.known, rng=stream(seed, "attack"))
    seconds = time.process_time() - start
    assert found.inputs is not None
    assert found.certified is not None
    table = torch.stack(
        [token_accuracy(found.inputs, one[None], special=special) for one in trial.text], dim=1
    )
    rows, columns = linear_sum_assignment(table, maximize=True)
    guess, text = found.inputs[rows], trial.text[columns]
    similar = rouge(guess, text, special=special)
    return {
        "accuracy": float(table[rows, columns].sum()) / len(trial.text),
        "rouge1": float(similar.one.sum()) / len(trial.text),
        "rouge2": float(similar.two.sum()) / len(trial.text),
        "proved": bool(found.certified.all()),
        "steps": int(found.notes["tokens in span"]),
        "seconds": seconds,
        "start": {"accuracy": 0.0},
    }


Rows = Iterable[tuple[str, Callable[[], Iterable[dict[str, Any]]]]]


def dlg(seeds: int) -> Rows:
    """Sizes of weights and of the start."""

    def runs(num: int, scale: float, **options: Any) -> Iterable[dict[str, Any]]:
        for seed in range(num):
            for number in range(len(SENTENCES)):
                attack = DLGText(looks=(0, 10, 20, 30), restarts=1, **options)
                yield attacked(masked_trial(number, seed, scale=scale), attack, seed)

    few = min(seeds, 2)
    yield "as drawn | as large as tokens", lambda: runs(seeds, 1.0)
    yield "as drawn | a tenth", lambda: runs(few, 1.0, start_size=0.1)
    yield "as drawn | ten times", lambda: runs(few, 1.0, start_size=10.0)
    yield "half | as large as tokens", lambda: runs(few, 0.5)
    yield "twice | as large as tokens", lambda: runs(few, 2.0)
    yield "four times | as large as tokens", lambda: runs(few, 4.0)


def tag(seeds: int) -> Rows:
    """Step sizes, and a bag of tokens."""

    def runs(num: int, **options: Any) -> Iterable[dict[str, Any]]:
        for seed in range(num):
            yield attacked(causal_trial(seed), TAG(**options), seed)

    yield "0.01 | all tokens", lambda: runs(seeds)
    yield "0.01 | those with a gradient", lambda: runs(seeds, use_bag=True)
    yield "0.05 | all tokens", lambda: runs(min(seeds, 2), step_size=0.05)
    yield "0.05 | those with a gradient", lambda: runs(min(seeds, 2), step_size=0.05, use_bag=True)


def lamp(seeds: int) -> Rows:
    """TAG and LAMP with as many steps each."""

    def runs(
        num: int, attack: EmbeddingMatching, decoder: bool, embeddings: bool, noise: float
    ) -> Iterable[dict[str, Any]]:
        for number in range(num):
            trial = class_trial(number, decoder=decoder, embeddings=embeddings, noise=noise)
            yield attacked(trial, attack, number)

    settings = [
        ("BERT, all heard", False, True, 0.0, seeds, (50, 400)),
        ("BERT, no embeddings heard", False, False, 0.0, seeds, (50, 100, 200, 400)),
        ("GPT-2, no embeddings heard", True, False, 0.0, seeds, (100,)),
        ("GPT-2, no embeddings heard, noise 0.003", True, False, 3e-3, min(seeds, 8), (200,)),
    ]
    for title, decoder, embeddings, noise, num, budgets in settings:
        for steps in budgets:
            choices: dict[str, EmbeddingMatching] = {
                "TAG": TAG(steps=steps),
                "LAMP": LAMP(steps=steps, moves_every=max(1, steps // 8)),
                "LAMP without moves": LAMP(steps=steps, moves=0),
            }
            for name, attack in choices.items():
                of = partial(runs, num, attack, decoder, embeddings, noise)
                yield f"{title} | {steps} | {name}", of


def dager(seeds: int) -> Rows:
    """Sizes of batches, before and after training."""

    def runs(number: int, steps: int) -> Iterable[dict[str, Any]]:
        for seed in range(seeds):
            yield assembled(batch_trial(number, seed, steps=steps), seed)

    for steps in (0, 300):
        for number in (1, 2, 4):
            yield f"{number} | {steps}", partial(runs, number, steps)


TABLES = {"dlg": dlg, "tag": tag, "lamp": lamp, "dager": dager}
COLUMNS = {
    "dlg": "weights | start",
    "tag": "step size | read out of",
    "lamp": "heard | most steps | attack",
    "dager": "sentences | steps of training",
}


def measure(table: str, seeds: int, *, rows: str, output: Path | None) -> dict[str, Any]:
    """Return all that was got, by row; write it after each.

    Args:
        table: Which.
        seeds: Or sentences.
        rows: Measure those whose title has this in it; others are kept as `output` has them.
        output: Where to write to.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    if output and output.exists():
        found = json.loads(output.read_text())["found"]
    results = {"table": table, "environment": environment(), "found": found}
    for title, runs in TABLES[table](seeds):
        if rows in title:
            found[title] = list(runs())
            print(_row(title, found[title]), flush=True)
            if output:
                output.write_text(json.dumps(results, indent=1) + "\n")
    return results


def markdown(results: Mapping[str, Any]) -> str:
    """Return the table for a page; for DLG, how sentences appear as well."""
    columns = (
        "texts | token accuracy | worst | at the start | ROUGE-1 | ROUGE-2 | proved | steps | s"
    )
    if results["table"] == "dager":
        columns = columns.replace("steps | s", "tokens in span | s of the processor")
    head = f"| {COLUMNS[results['table']]} | {columns} |"
    lines = [head, "|---" * (head.count("|") - 1) + "|"]
    lines += [_row(title, runs) for title, runs in results["found"].items()]
    if results["table"] == "dlg":
        lines += ["", "| step | " + " | ".join(["sentence"] * len(SENTENCES)) + " |"]
        lines += ["|---" * (len(SENTENCES) + 1) + "|"]
        shown = next(iter(results["found"].values()))[: len(SENTENCES)]
        for step in (0, 10, 20, 30):
            looks = [
                next((said for at, said in run["looks"] if at >= step), run["looks"][-1][1])
                for run in shown
            ]
            lines.append(f"| {step} | " + " | ".join(looks) + " |")
        lines.append("| truth | " + " | ".join(run["truth"] for run in shown) + " |")
    return "\n".join(lines)


def _row(title: str, runs: list[dict[str, Any]]) -> str:
    def mean(key: str) -> str:
        values = [run[key] for run in runs]
        error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
        return f"{statistics.mean(values):.3f} ± {error:.3f}"

    cells = [
        str(len(runs)),
        mean("accuracy"),
        f"{min(run['accuracy'] for run in runs):.2f}",
        f"{statistics.mean(run['start']['accuracy'] for run in runs):.3f}",
        mean("rouge1"),
        mean("rouge2"),
        str(sum(run["proved"] for run in runs)),
        f"{statistics.median(run['steps'] for run in runs):g}",
        f"{statistics.median(run['seconds'] for run in runs):.1f}",
    ]
    return f"| {title} | " + " | ".join(cells) + " |"


def main() -> None:
    """Measure and write JSON, or read JSON and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--seeds", type=int, help="or sentences, for 'lamp'; 5, or 20")
    parser.add_argument("--rows", default="", help="only those with this in their title")
    parser.add_argument("--output", type=Path, help="rows that it has are kept")
    parser.add_argument("--markdown", type=Path, help="print the table of this file")
    arguments = parser.parse_args()
    if arguments.markdown:
        print(markdown(json.loads(arguments.markdown.read_text())))
        return
    torch.set_num_threads(1)
    seeds = arguments.seeds or (20 if arguments.table == "lamp" else 5)
    results = measure(arguments.table, seeds, rows=arguments.rows, output=arguments.output)
    print(markdown(results))


if __name__ == "__main__":
    main()
