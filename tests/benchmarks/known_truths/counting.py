"""The toy task of DiffMask: is one digit more frequent than another?  All positions with one of them count equally."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interp_plugin.attribution import LayerInformationLoss
from interp_plugin.comparison.interface import Inputs, Method, seeded
from interp_plugin.method.perturbation import LayerCall
from interp_plugin.method.solver import Solver
from interp_plugin.text.models import PlainModel
from interp_plugin.text.states import State
from known_truths.evaluation import Evaluation, Measure, Question, evaluate

DIGITS = 10
LENGTH = 10  # of a sequence, at most
HEAD = 3  # the two digits of the query and a bar
BAR = 2 * DIGITS
FLOOR = 1e-6  # share of an attribution that a place without any gets: the mean of KL stays finite
ACCURACY = 0.99
EVENNESS = 0.35

Noise = Literal["hidden", "embedding"]
Watched = Literal["logit", "state"]


class Counter(nn.Module):
    """Embedding, feed-forward with the query, GRU, one logit: is the first digit of the query more frequent?

    Ids, (B, 3 + T), are the query's two digits (numbered from 10), a bar and the sequence; mask, (B, 3 + T),
    is true at real tokens, which come first.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(BAR + 1, width)
        self.encoder = nn.Sequential(nn.Linear(3 * width, width), nn.Tanh(), nn.Linear(width, 2))
        self.gru = nn.GRU(2, width, batch_first=True)
        self.state = nn.Identity()  # the GRU's last state, (B, width), as a layer that can be watched
        self.head = nn.Linear(width, 1)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.embedding(ids)
        query = x[:, :2].flatten(1).unsqueeze(1).expand(-1, x.shape[1], -1)  # (B, 3 + T, 2 width)
        digits = self.encoder(torch.cat([query, x], -1))[:, HEAD:]  # (B, T, 2)
        states, _ = self.gru(digits)
        last = mask[:, HEAD:].sum(1) - 1
        logit: Tensor = self.head(self.state(states[torch.arange(len(ids), device=ids.device), last]))
        return logit


@dataclass(frozen=True)
class CountingTask:
    """A trained counter.

    Attributes:
        module: the counter.
        accuracy: on 2,000 fresh sequences.
    """

    module: Counter
    accuracy: float

    def model(self, noise: Noise = "hidden") -> PlainModel:
        """As methods get it: they attribute to the output of the feed-forward (as published), or to the embedding."""
        if noise not in ("hidden", "embedding"):
            raise ValueError(
                f"noise is {noise!r}; choose 'hidden' (the feed-forward's output) or 'embedding'"
            )
        where = self.module.encoder if noise == "hidden" else self.module.embedding
        return PlainModel(self.module, read, where, {"state": self.module.state}, pads=True)


def read(text: str) -> dict[str, Any]:
    """Tokens of a query and a sequence; those of the query have no offsets, as special tokens, and are not ranked.

    Examples::
        >>> read("3 7 | 1 3 3")["input_ids"]
        [13, 17, 20, 1, 3, 3]

    Raises:
        ValueError: the text is not two different digits, a bar, and one digit or more.
    """
    words = text.split()
    digits = words[:2] + words[3:]
    if (
        len(words) <= HEAD
        or words[2] != "|"
        or words[0] == words[1]
        or not all(d in "0123456789" for d in digits)
    ):
        raise ValueError(f"{text!r} is not a query and a sequence of digits; write them like '3 7 | 1 3 3'")
    ids = [int(words[0]) + DIGITS, int(words[1]) + DIGITS, BAR, *map(int, words[HEAD:])]
    starts = [sum(len(word) + 1 for word in words[:place]) for place in range(len(words))]
    offsets = [(0, 0)] * HEAD + [(start, start + 1) for start in starts[HEAD:]]
    return {"input_ids": ids, "tokens": words, "offset_mapping": offsets}


def train(
    epochs: int = 50, size: int = 9000, batch: int = 128, width: int = 64, seed: int = 0
) -> CountingTask:
    """Train a counter as its authors did.

    Adam (1e-3) on the cross entropy less 0.35 times the entropy of a softmax over the logits *of a batch*, a
    term of their code that keeps logits even: without it they grow with how clear the count is.

    Args:
        epochs, size, batch: passes over so many sequences, in batches.
        width: of embedding, feed-forward and GRU.
        seed: of weights and sequences; the caller's random state stays as it is.

    Raises:
        ValueError: it did not learn the task (99 % of fresh sequences).
    """
    generator = torch.Generator().manual_seed(seed)
    data = sequences(size, generator)
    with seeded(seed), torch.enable_grad():
        module = Counter(width)
        adam = torch.optim.Adam(module.parameters())
        for _ in range(epochs):
            for rows in torch.randperm(size, generator=generator).split(batch):
                ids, mask, labels = (values[rows] for values in data)
                logits = module(ids, mask)[:, 0]
                evenness = torch.distributions.Categorical(logits=logits).entropy()
                loss = F.binary_cross_entropy_with_logits(logits, labels) - EVENNESS * evenness
                adam.zero_grad()
                loss.backward()
                adam.step()
    module.eval().requires_grad_(False)
    ids, mask, labels = sequences(2000, generator)
    accuracy = float(((module(ids, mask)[:, 0] > 0) == labels.bool()).float().mean())
    if accuracy < ACCURACY:
        raise ValueError(
            f"the counter is right on {accuracy:.1%} of sequences after {epochs} epochs, and {ACCURACY:.0%} are needed "
            "for its truth to be known; give it more epochs or sequences"
        )
    return CountingTask(module, accuracy)


def sequences(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Ids and mask, (count, 13) each, and labels, (count,): each digit of the query at a quarter of the places."""
    query = torch.rand(count, DIGITS, generator=generator, dtype=torch.float32).argsort(1)[:, :2]
    share = torch.full((count, DIGITS), 0.5 / (DIGITS - 2), dtype=torch.float32).scatter(1, query, 0.25)
    digits = torch.multinomial(share, LENGTH, replacement=True, generator=generator)
    lengths = torch.randint(1, LENGTH + 1, (count, 1), generator=generator)
    real = torch.arange(LENGTH) < lengths
    first, second = (((digits == query[:, side : side + 1]) & real).sum(1) for side in (0, 1))
    head = torch.cat([query + DIGITS, torch.full((count, 1), BAR)], 1)
    mask = torch.cat([torch.ones_like(head, dtype=torch.bool), real], 1)
    return torch.cat([head, digits], 1), mask, (first > second).float()


def counting(
    task: CountingTask,
    methods: Sequence[Method],
    texts: int = 200,
    noise: Noise = "hidden",
    watched: Watched = "logit",
    seed: int = 1,
) -> Evaluation:
    """How far attributions are from the truth, as De Cao et al. (2020, section 4) measure it.

    The truth is 1/n at each of the n places that hold a digit of the query.  An attribution is the scores'
    absolute values over their sum, of the sequence's places alone (all equal where all scores are 0); a place
    with nothing gets a millionth.  ``KL`` is ``D(truth || attribution)``, ``JS`` the Jensen-Shannon
    divergence, both in nats.

    Published, on the hidden state and about the logit: Guan et al. 0.861 / 0.232, integrated gradients
    1.355 / 0.270, IBA 1.159 / 0.189, DiffMask 0.037 / 0.013.  They normalised 1 / sigma of Guan et al. and
    |sum of IG over dimensions| (their notebook); :func:`inverse_sigma` makes the former of scores in nats.

    Data, model and training are theirs, by their code, with other random numbers; and those matter: over seeds 0
    to 15 of :func:`train` (50 texts) integrated gradients had a KL of 0.28 to 0.96, as their baseline, zeros, is no
    digit's hidden state, and :func:`as_published` one of 0.65 to 0.85; the former was the larger in 4 of 16.  So
    compare methods over several trainings.  Our own method asks something else than :func:`as_published`: noise is
    measured in units of the logit itself, with rate 0.1.  Both are solved for (theirs: 500 steps of RMSprop
    from sigma = softplus(-5)).  The query's places bear noise as well, which the hidden state's answers do not
    feel.

    Args:
        task: from :func:`train`.
        methods: to be evaluated.
        texts: sequences, those without a digit of the query left out.
        noise: what is attributed to: "hidden", the feed-forward's output (two numbers a place), or "embedding".
        watched: the question: "logit", or "state", the GRU's last one.
        seed: of the sequences.
    """
    if watched not in ("logit", "state"):
        raise ValueError(f"watched is {watched!r}; choose 'logit' or 'state'")
    model = task.model(noise)
    state = State("state", LayerCall(task.module.state)) if watched == "state" else None
    questions = []
    for index, text in enumerate(texts_of(texts, seed)):
        inputs = Inputs(model, model.encode(text), seed=index)
        questions.append(Question(inputs, 0 if state is None else None, state, truth(text)))
    measures = [Measure("KL", kl, False), Measure("JS", js, False)]
    title = f"is digit a more frequent than b: {watched}, attributed to the {noise}"
    return evaluate(
        title, questions, methods, measures, [f"The model is right on {task.accuracy:.1%} of sequences."]
    )


def texts_of(count: int, seed: int) -> list[str]:
    """Sequences with their queries, each with a digit of the query at least."""
    generator = torch.Generator().manual_seed(seed)
    found: list[str] = []
    while len(found) < count:
        ids, mask, _ = sequences(count, generator)
        for row, real in zip(ids.tolist(), mask):
            first, second = row[0] - DIGITS, row[1] - DIGITS
            digits = row[HEAD : int(real.sum())]
            if first in digits or second in digits:
                found.append(f"{first} {second} | {' '.join(map(str, digits))}")
    return found[:count]


def truth(text: str) -> Tensor:
    """The distribution over places, (3 + T,): equal where a digit of the query is.

    Examples::
        >>> truth("3 7 | 1 3 3")
        tensor([0.0000, 0.0000, 0.0000, 0.0000, 0.5000, 0.5000])
    """
    words = text.split()
    decides = torch.tensor(
        [0.0] * HEAD + [float(word in words[:2]) for word in words[HEAD:]], dtype=torch.float32
    )
    return decides / decides.sum()


def as_published() -> Method:
    """Guan et al. (2019) as De Cao et al. ran it on the logit: its raw squared error, the entropy of every place with
    weight 1, and 1 / sigma for a score.

    Only the optimiser is ours.  In our terms v is 1 and the rate is the number of tokens.
    """

    def score(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
        ids, *others = inputs.arguments
        fit = LayerInformationLoss(inputs.model, inputs.model.embedding).fit(
            ids,
            additional_forward_args=tuple(others),
            state_std=1.0,
            rate=float(inputs.length),
            solver=Solver(seed=inputs.seed, lower_rate=False),
        )
        return 1 / fit.sigma[0]

    return Method(
        "Guan et al., as published", score, explains="class", source="De Cao et al. 2020", draws=True
    )


def inverse_sigma(method: Method) -> Method:
    """A method that gives nats, with 1 / sigma (times the cap) instead: exp(nats / K), as it was published.

    Examples::
        >>> constant = Method("nats", lambda inputs, target, state: torch.ones(inputs.length))
        >>> inverse_sigma(constant).name
        'nats, as 1 / sigma'
    """

    def score(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
        return (method.score(inputs, target, state) / inputs.embeddings.shape[-1]).exp()

    return Method(
        f"{method.name}, as 1 / sigma", score, method.signed, method.explains, method.source, method.draws
    )


def kl(scores: Tensor, truth: Tensor) -> float:
    """D(truth || attribution), in nats (SciPy's ``entropy``)."""
    from scipy.stats import entropy

    return float(entropy(truth.double().numpy(), _attribution(scores).numpy()))


def js(scores: Tensor, truth: Tensor) -> float:
    """Jensen-Shannon divergence of truth and attribution, in nats (the square of SciPy's distance)."""
    from scipy.spatial.distance import jensenshannon

    return float(jensenshannon(truth.double().numpy(), _attribution(scores).numpy())) ** 2


def _attribution(scores: Tensor) -> Tensor:
    """Absolute scores as a distribution; of none at all, an equal one."""
    size = scores.double().abs()
    share = size / size.sum() if size.any() else torch.full_like(size, 1 / len(size))
    share = share.clamp(min=FLOOR)
    return share / share.sum()
