"""The head: a small network from the features of a text's tokens to log sigma of every layer, and its training."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from interp_plugin.amortised.features import numbers, vectors, watch
from interp_plugin.corpus.agreement import Agreement, HeldOut
from interp_plugin.corpus.result import CorpusResult
from interp_plugin.files import ids_digest
from interp_plugin.method.perturbation import no_fastpath
from interp_plugin.text.batch import Batch, batches
from interp_plugin.text.explanation import TextExplanation
from interp_plugin.text.models import Encoding, TextModel, shown
from interp_plugin.text.scoring import Plan

if TYPE_CHECKING:
    from interp_plugin.corpus.agreement import Compared

SIZE = 96  # of the head's own vectors
HEADS = 4
DROPOUT = 0.2  # of training
BATCH = 16  # texts in a step of training
RATE = 2e-3  # of Adam, falling to 0 by a cosine
DECAY = 0.02
SMALLEST = 1e-3  # spread of an input or output: less counts as none
FEWEST = 20  # texts to train on and to hold out


@dataclass(frozen=True)
class Example:
    """A text to learn from: T tokens, L layers.

    Attributes:
        vectors: of :func:`features.vectors`, joined, (T, W) float16.
        numbers: of :func:`features.numbers`, (T, F).
        target: log sigma, (T, L).
        capped: where sigma is the cap, so that it would be larger, (T, L).
        variance: mean over the tokens of the squared standard error of the target, (L,).
    """

    vectors: Tensor
    numbers: Tensor
    target: Tensor
    capped: Tensor
    variance: Tensor


class Scale(nn.Module):
    """The mean and the spread of C columns; what passes is put in units of them.

    Args:
        size: C.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(size, dtype=torch.float32))
        self.register_buffer("spread", torch.ones(size, dtype=torch.float32))

    def settle(self, rows: Tensor) -> None:
        """Take them from rows, (N, C)."""
        self.centre.copy_(rows.mean(0))
        self.spread.copy_(rows.std(0, unbiased=False).clamp(min=SMALLEST))

    def forward(self, values: Tensor) -> Tensor:
        return (values - self.centre) / self.spread


class Head(nn.Module):
    """A projection, one block of attention over the text's tokens, and a number for each layer.

    Args:
        width: W, of the vectors.
        few: F, how many numbers.
        layers: L.
    """

    def __init__(self, width: int, few: int, layers: int) -> None:
        super().__init__()
        self.few = few
        self.vectors, self.numbers, self.target = Scale(width), Scale(few), Scale(layers)
        self.project = nn.Linear(width + few, SIZE, dtype=torch.float32)
        self.block = nn.TransformerEncoderLayer(
            SIZE, HEADS, 2 * SIZE, DROPOUT, "gelu", batch_first=True, norm_first=True, dtype=torch.float32
        )
        self.out = nn.Linear(SIZE, layers, dtype=torch.float32)
        self.direct = nn.Linear(few, layers, dtype=torch.float32)
        nn.init.zeros_(self.direct.weight)
        self.dropout = nn.Dropout(DROPOUT)

    @classmethod
    def of(cls, state: Mapping[str, Tensor], layers: int) -> Head:
        """The head of so many layers with this state, ready for use.

        Raises:
            ValueError: these are no head's tensors.
        """
        try:
            sizes = [state[f"{name}.centre"].numel() for name in ("vectors", "numbers")]
            with torch.device("meta"):  # wrong sizes must not take memory before they are seen
                head = cls(sizes[0], sizes[1], layers)
            head.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
        except (KeyError, RuntimeError) as error:  # of torch, where names or shapes do not fit
            raise ValueError("its tensors are not those of a head of its layers") from error
        if any((scale.spread <= 0).any() for scale in (head.vectors, head.numbers, head.target)):
            raise ValueError("one of its spreads is not positive")
        return head.eval().requires_grad_(False)

    def forward(self, vectors: Tensor, numbers: Tensor, mask: Tensor) -> Tensor:
        """log sigma, (B, T, L), from (B, T, W), (B, T, F) and which tokens are real, (B, T)."""
        few = self.numbers(numbers)
        joined = torch.cat([self.vectors(vectors), few], -1)
        with no_fastpath():  # it would make padding count
            found = self.block(self.project(self.dropout(joined)), src_key_padding_mask=~mask)
        units: Tensor = self.out(found) + self.direct(few)
        return units * self.target.spread + self.target.centre


def learn(examples: Sequence[Example], epochs: int, seed: int, show_progress: bool = False) -> Head:
    """A head that fits the examples: least squares of log sigma, each text and layer by how well its target is known.

    A target at the cap says only that sigma is no smaller, so a larger prediction costs nothing.
    """
    with torch.random.fork_rng(devices=[]):  # torch draws weights and dropout from the global generator
        torch.manual_seed(seed)
        first = examples[0]
        head = Head(first.vectors.shape[1], first.numbers.shape[1], first.target.shape[1])
        for scale, name in ((head.vectors, "vectors"), (head.numbers, "numbers"), (head.target, "target")):
            scale.settle(torch.cat([getattr(example, name) for example in examples]).float())
        _descend(head, examples, epochs, show_progress)
    return head.eval().requires_grad_(False)


def _descend(head: Head, examples: Sequence[Example], epochs: int, show_progress: bool) -> None:
    steps = epochs * math.ceil(len(examples) / BATCH)
    optimiser = torch.optim.AdamW(head.parameters(), RATE, weight_decay=DECAY)
    planned = max(2, steps)
    rising = max(0.1, 1.5 / planned)  # of exactly one step the schedule would divide by its length less one
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, planned, pct_start=rising)
    left = head.target.spread.square() / 100  # of variance that is no noise of the targets, (L,)
    with tqdm(total=steps, desc="train the head", disable=not show_progress) as bar:
        for _ in range(epochs):
            for some in _batches(examples):
                vectors, numbers, target, capped, variance, mask = some
                off = head(vectors, numbers, mask) - target
                off = torch.where(capped, off.clamp(max=0), off) * mask.unsqueeze(-1)
                weight = 1 / (variance + left)  # (B, L)
                per_text = off.square().sum(1) / mask.sum(1, keepdim=True)
                loss = (per_text * weight).sum() / weight.sum()
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(head.parameters(), 1.0)
                optimiser.step()
                schedule.step()
                bar.update()


def _batches(examples: Sequence[Example]) -> Iterator[tuple[Tensor, ...]]:
    """The examples in a new order, so many at a time and padded: vectors, numbers, target, capped, variance, mask."""
    for places in torch.randperm(len(examples)).split(BATCH):
        some = [examples[i] for i in places.tolist()]
        lengths = torch.tensor([len(example.target) for example in some])
        mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
        padded = [
            nn.utils.rnn.pad_sequence([getattr(example, name) for example in some], batch_first=True)
            for name in ("vectors", "numbers", "target", "capped")
        ]
        yield padded[0].float(), *padded[1:], torch.stack([example.variance for example in some]), mask


def solved_texts(model: TextModel, studies: Sequence[CorpusResult]) -> list[tuple[TextExplanation, Encoding]]:
    """What the solver found, and each text as the model reads it.

    Raises:
        ValueError: the tokenizer gives other tokens than there; too few texts.
    """
    found = []
    for study in studies:
        seen = set()
        for text in study.explanation():
            encoding = model.encode(text.text, text.pair, truncation=study.settings["truncation"])
            if encoding.tokens != text.tokens:
                raise ValueError(
                    f"the tokenizer makes {len(encoding.tokens)} tokens of text {shown(text.text)}, and the study has "
                    f"{len(text.tokens)}, or others; give the tokenizer that the study was made with"
                )
            seen.add(ids_digest(encoding.ids))
            found.append((text, encoding))
        if not seen.issuperset(part.about.ids for part in study.parts if part.about.texts):
            raise ValueError(
                f"the tokenizer makes other tokens of the texts of {str(study.path)!r}, under the same names; give the "
                "tokenizer that the study was made with"
            )
    if len(found) < FEWEST:
        raise ValueError(
            f"the studies hold {len(found)} texts, and a head needs at least {FEWEST}, better hundreds; score more"
        )
    return found


def examples(
    model: TextModel,
    plan: Plan,
    texts: Sequence[tuple[TextExplanation, Encoding]],
    batch_size: int,
    progress: bool,
) -> list[Example]:
    """The texts as the head sees them, in their order, by one forward of each batch."""
    found: dict[int, Example] = {}
    encodings = [encoding for _, encoding in texts]
    sites = [state.site for state in plan.states]
    with tqdm(total=len(texts), desc="read the states", disable=not progress) as bar:
        for some in batches(encodings, batch_size, model.pads):
            chosen = [encodings[i] for i in some]
            with watch(model, chosen) as inside:
                batch = Batch(model, chosen, plan.noise_layer, sites, plan.max_rows)
            given = vectors(model, batch, plan.states)
            few, joined = numbers(given, batch.token_mask, inside), torch.cat(given, -1)
            for place, index in enumerate(some):
                mask = batch.token_mask[place]
                found[index] = _example(texts[index][0], joined[place, mask], few[place, mask])
            bar.update(len(some))
    return [found[index] for index in range(len(texts))]


def train(
    texts: Sequence[TextExplanation],
    given: Sequence[Example],
    share: float,
    epochs: int,
    seed: int,
    progress: bool,
) -> tuple[Head, HeldOut]:
    """A head that learned from most texts, and how far it is off on the others.

    Equal texts are on the same side.

    Args:
        texts, given: what the solver found, and what the head sees, in the same order.
        share: of the texts that are held out.
        epochs: how often each of the others is looked at.
        seed: of the choice, of the first weights and of the order.
        progress: show bars.

    Raises:
        ValueError: a share that leaves none for one of the two.
    """
    outside = [_place(text, seed) < share for text in texts]
    inside = [example for example, out in zip(given, outside) if not out]
    others = [index for index, out in enumerate(outside) if out]
    if len(others) < 2 or len(inside) < 2:
        raise ValueError(
            f"held_out is {share}, which leaves {len(inside)} of {len(texts)} texts to learn from and holds out "
            f"{len(others)}; both need at least 2, so give a number such as 0.1, or more texts"
        )
    head = learn(inside, epochs, seed, progress)
    pairs = [(texts[index], given[index]) for index in others]
    plain = HeldOut.of(Agreement.of([_against(head, *pair) for pair in pairs]))
    # once more, now that the error that decides what is covered is known
    return head, HeldOut.of(Agreement.of([_against(head, *pair, plain.error) for pair in pairs]))


def _example(text: TextExplanation, joined: torch.Tensor, few: torch.Tensor) -> Example:
    sigma = torch.stack([row.sigma for row in text.rows], 1)  # (T, L)
    errors = torch.stack([row.standard_error for row in text.rows], 1)
    caps = torch.tensor([row.max_sigma for row in text.rows], dtype=torch.float32)
    return Example(
        joined.half().cpu(), few.cpu(), sigma.log(), sigma >= caps * (1 - 1e-6), errors.square().mean(0)
    )


def _against(
    head: Head, text: TextExplanation, example: Example, error: Sequence[float] | None = None
) -> list[Compared]:
    """log sigma and its error of each layer, predicted and solved."""
    everyone = torch.ones(1, len(example.target), dtype=torch.bool)
    log_sigma = head(example.vectors[None].float(), example.numbers[None], everyone)[0]
    pairs: list[Compared] = []
    for number, row in enumerate(text.rows):
        cap = torch.tensor(row.max_sigma, dtype=torch.float32).log()
        predicted = log_sigma[:, number].minimum(cap)
        own = 0.0 if error is None else error[number]
        values = (predicted, own * (predicted < cap), example.target[:, number], row.standard_error)
        predicted_, error_, solved, solved_error = (value.double().numpy() for value in values)
        pairs.append((predicted_, error_, solved, solved_error))
    return pairs


def _place(text: TextExplanation, seed: int) -> float:
    """Where a text falls between 0 and 1, by its words alone."""
    digest = hashlib.sha256(repr((seed, text.text, text.pair)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
