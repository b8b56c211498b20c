"""Training: studies of the solver become a head, and a measure of how far it is off on texts it did not see."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from tqdm.auto import tqdm

from interp_plugin.amortised.features import numbers, vectors, watch
from interp_plugin.amortised.head import Example, Head, learn
from interp_plugin.corpus.check import Agreement, HeldOut
from interp_plugin.corpus.result import CorpusResult
from interp_plugin.fingerprint import ids_digest
from interp_plugin.text.batch import Batch, batches
from interp_plugin.text.explanation import TextExplanation
from interp_plugin.text.models import Encoding, TextModel, shown
from interp_plugin.text.scoring import Plan

if TYPE_CHECKING:
    from interp_plugin.corpus.check import Compared

FEWEST = 20  # texts to learn from and to hold out


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
