"""The head: features of every token from one forward pass without noise, and a small network that predicts log sigma.

Features are vectors, and a few numbers that a linear map of the vectors cannot compute.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from tqdm.auto import tqdm

from interp_plugin.corpus.result import CorpusResult
from interp_plugin.files import ids_digest
from interp_plugin.method.perturbation import in_this_thread, no_fastpath
from interp_plugin.statistics import Agreement, Compared, HeldOut
from interp_plugin.text.batch import Batch, batches
from interp_plugin.text.explanation import TextExplanation
from interp_plugin.text.models import Encoding, TextModel, shown
from interp_plugin.text.scoring import Plan
from interp_plugin.text.states import State

SIZE = 96  # width of the head
HEADS = 4
DROPOUT = 0.2  # in training
BATCH = 16  # texts in a training step
RATE = 2e-3  # learning rate of AdamW, with cosine decay
DECAY = 0.02  # weight decay
SMALLEST = 1e-3  # smallest spread of an input or output column; smaller ones are replaced by it
FEWEST = 20  # minimum number of texts, for training and held out together
# of the features
ROUNDING = 1e-3  # added to a norm, as a share of the vector's: smaller norms depend on the batch
TINY = 1e-6  # added to a norm
SMALLEST_SPREAD = 1e-6  # smallest spread before a normalisation
LEAST_ATTENTION = 1e-3  # added to an attention weight
_SOFTMAX = (functional.softmax, torch.softmax, Tensor.softmax)


# -- features


class Recorder(TorchFunctionMode):
    """Records the spread before each normalisation and the attention to each token while a model runs.

    A normalisation divides the noise by that spread, and attention moves noise between tokens.  Normalisations are
    recognised by their class (LayerNorm, or a name that ends in RMSNorm), attention by torch's fused kernel or by a
    softmax over tokens; nothing is recorded for ``torch.nn.MultiheadAttention``, which hides both.

    Args:
        module: the model.
        mask: which tokens are real, (B, T); its rows may run in several consecutive forward passes.

    Examples::
        >>> from torch.nn.functional import scaled_dot_product_attention
        >>> class Attend(torch.nn.Module):
        ...     def forward(self, x):
        ...         return scaled_dot_product_attention(x, x, x)
        >>> model = Attend()
        >>> with Recorder(model, torch.ones(2, 5, dtype=torch.bool)) as inside:
        ...     _ = model(torch.randn(2, 3, 5, 4))  # 3 heads
        >>> inside.numbers().shape
        torch.Size([2, 5, 6])
    """

    def __init__(self, module: nn.Module, mask: Tensor) -> None:
        super().__init__()
        self._module, self._mask = module, mask
        self._forwards: list[list[Tensor]] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> Recorder:
        begin = in_this_thread(lambda module, args: self._forwards.append([]))
        normalise = in_this_thread(self._normalise)
        self._hooks = [
            self._module.register_forward_pre_hook(begin),
            *(m.register_forward_pre_hook(normalise) for m in self._module.modules() if _normalises(m)),
        ]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()

    def numbers(self) -> Tensor:
        """Return logarithms, (B, T, F): one spread for each normalisation, two attention weights for each head.

        They are the root of the summed squares of all tokens' attention to a token, and its attention to itself.
        """
        if not self._forwards or not all(self._forwards):
            return self._mask.new_zeros(*self._mask.shape, 0, dtype=torch.float32)
        return torch.cat([torch.cat(found, -1) for found in self._forwards])

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        if self._forwards and func is functional.scaled_dot_product_attention:
            self._attend(_weights(*args, **kwargs))
        elif self._forwards and func in _SOFTMAX and found.ndim == 4:
            self._attend(found)
        return found

    def _normalise(self, module: nn.Module, args: Sequence[Any]) -> None:
        given = args[0] if args else None
        if isinstance(given, Tensor) and given.ndim == 3 and given.shape[1] == self._mask.shape[1]:
            spread = given.detach().float().std(-1, unbiased=False, keepdim=True)
            self._forwards[-1].append(spread.clamp(min=SMALLEST_SPREAD).log())

    def _attend(self, weights: Tensor) -> None:
        """Record attention weights, (R, heads, T, T); a row has the weights with which one token attends to all."""
        if weights.shape[2:] != (self._mask.shape[1],) * 2:
            return
        first = sum(len(found[0]) for found in self._forwards[:-1] if found)  # first row of this forward pass
        real = self._mask[first : first + len(weights)].to(weights.device)
        weights = weights.detach().float() * real[:, None, :, None]
        got, own = weights.square().sum(2).sqrt(), weights.diagonal(dim1=2, dim2=3)
        self._forwards[-1].append((torch.cat([got, own], 1) + LEAST_ATTENTION).log().transpose(1, 2))


def _normalises(module: nn.Module) -> bool:
    return isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("RMSNorm")


@torch.no_grad()
def _weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return the weights that ``scaled_dot_product_attention`` uses for the same arguments, (R, heads, T, T)."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    scores = query.float() @ key.float().mT * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        allowed = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -math.inf) if allowed else scores + attn_mask
    return scores.softmax(-1).nan_to_num()  # NaN in rows that attend to nothing


def features(
    model: TextModel, batch: Batch, states: Sequence[State], inside: Recorder
) -> tuple[Tensor, Tensor]:
    """Return the concatenated vectors of every token, (B, T, W), and its numbers, (B, T, F).

    Args:
        model: the model that ran the batch.
        batch: of texts.
        states: the states to predict.
        inside: the recorder of :func:`watch`, after the forward pass.
    """
    given = _vectors(model, batch, states)
    return torch.cat(given, -1), _numbers(given, batch.token_mask, inside)


def _vectors(model: TextModel, batch: Batch, states: Sequence[State]) -> list[Tensor]:
    """Return the noise layer's output and every state for each token, (B, T, width) each, float32.

    Every token gets the mean of a state with other tokens (a decoder's), and the whole of a state without tokens.
    Other states with more than two dimensions are left out, because their width would depend on the text.
    """
    count = batch.token_mask.shape[1]
    found = [batch.origin.float()]
    for state in states:
        whole = batch.whole(state.site).to(batch.origin.device).float()
        places = batch.places(state)
        if places is None:
            if whole.ndim == 2:
                found.append(whole.unsqueeze(1).expand(-1, count, -1))
            continue
        whole = whole.flatten(2)
        if model.axis[state.label] != "input":
            share = places.to(whole) / places.sum(1, keepdim=True)  # (B, places)
            whole = torch.einsum("bp,bpw->bw", share, whole).unsqueeze(1).expand(-1, count, -1)
        found.append(whole)
    return found


def watch(model: TextModel, encodings: Sequence[Encoding]) -> Recorder:
    """Return the context in which to run a batch of texts.

    Nothing is recorded for an encoder-decoder, which has two sequences of tokens.
    """
    lengths = torch.tensor([len(encoding.ids) for encoding in encodings])
    mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
    return Recorder(nn.Module() if "decoder" in model.axis.values() else model.module, mask)


def _numbers(given: Sequence[Tensor], mask: Tensor, inside: Recorder) -> Tensor:
    """Return numbers of each token that a linear map of its vectors cannot compute, (B, T, F).

    They are the number of tokens, the position from both ends, the norms of each vector, of its deviation from its own
    mean and of its deviation from the text's mean vector, and the recorded numbers; all as logarithms, because sigma of
    a linear state is a product of powers of them: sigma^2 = rate / (2 n c).
    """
    share = mask.to(given[0]) / mask.sum(1, keepdim=True)  # (B, T)
    n = mask.sum(1, keepdim=True).expand_as(mask).to(given[0])
    place = torch.arange(1, mask.shape[1] + 1, device=mask.device).expand_as(mask).to(given[0])
    found = [n.log(), place.log(), (n - place + 1).clamp(min=1).log()]
    for each in given:
        middle = torch.einsum("bt,btw->bw", share, each).unsqueeze(1)
        least = ROUNDING * each.norm(dim=-1) + TINY
        found += [
            (part.norm(dim=-1) + least).log()
            for part in (each, each - each.mean(-1, keepdim=True), each - middle)
        ]
    return torch.cat([torch.stack(found, -1), inside.numbers().to(given[0])], -1)


# -- the network and its training


@dataclass(frozen=True)
class Example:
    """A training text with T tokens and L layers.

    Attributes:
        vectors: of :func:`features`, (T, W) float16.
        numbers: of :func:`features`, (T, F).
        target: log sigma, (T, L).
        capped: whether sigma is at the cap, (T, L).
        variance: mean over the tokens of the squared standard error of the target, (L,).
    """

    vectors: Tensor
    numbers: Tensor
    target: Tensor
    capped: Tensor
    variance: Tensor


class Scale(nn.Module):
    """Standardises C columns by their mean and spread.

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
        """Set mean and spread from rows, (N, C)."""
        self.centre.copy_(rows.mean(0))
        self.spread.copy_(rows.std(0, unbiased=False).clamp(min=SMALLEST))

    def forward(self, values: Tensor) -> Tensor:
        return (values - self.centre) / self.spread


class Head(nn.Module):
    """A linear projection, one transformer block over the text's tokens, and an output for each layer.

    Args:
        width: W, width of the vectors.
        few: F, number of the numbers.
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
        """Return a head with this number of layers and this state, ready for use.

        Raises:
            ValueError: the tensors are not those of such a head.
        """
        try:
            sizes = [state[f"{name}.centre"].numel() for name in ("vectors", "numbers")]
            with torch.device("meta"):  # wrong sizes must not take memory before they are detected
                head = cls(sizes[0], sizes[1], layers)
            head.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
        except (KeyError, RuntimeError) as error:  # torch's, for wrong names or shapes
            raise ValueError("its tensors are not those of a head of its layers") from error
        if any((scale.spread <= 0).any() for scale in (head.vectors, head.numbers, head.target)):
            raise ValueError("one of its spreads is not positive")
        return head.eval().requires_grad_(False)

    def forward(self, vectors: Tensor, numbers: Tensor, mask: Tensor) -> Tensor:
        """Return log sigma, (B, T, L), from vectors (B, T, W), numbers (B, T, F) and the mask of real tokens (B, T)."""
        few = self.numbers(numbers)
        joined = torch.cat([self.vectors(vectors), few], -1)
        with no_fastpath():  # with the fast path, the result would depend on padding
            found = self.block(self.project(self.dropout(joined)), src_key_padding_mask=~mask)
        units: Tensor = self.out(found) + self.direct(few)
        return units * self.target.spread + self.target.centre


def learn(examples: Sequence[Example], epochs: int, seed: int, show_progress: bool = False) -> Head:
    """Fit a head by least squares of log sigma, with texts and layers weighted by the precision of their targets.

    A target at the cap is a lower bound, so a larger prediction has no loss.
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
    rising = max(0.1, 1.5 / planned)  # with exactly one rising step, the schedule would divide by 0
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, planned, pct_start=rising)
    left = head.target.spread.square() / 100  # residual variance apart from noise of the targets, (L,)
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
    """Yield padded batches of shuffled examples: vectors, numbers, target, capped, variance, mask."""
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
    """Return the solver's explanation and the encoding of each text.

    Raises:
        ValueError: the tokenizer gives other tokens than in the study; there are too few texts.
    """
    found = []
    for study in studies:
        seen = set()
        for text in study.explanation():
            encoding = model.encode(text.text, text.pair, truncation=study.settings["truncation"])
            if encoding.tokens != text.tokens:
                raise ValueError(
                    f"the tokenizer gives {len(encoding.tokens)} tokens for text {shown(text.text)}, and the study has "
                    f"{len(text.tokens)}, or other ones; give the tokenizer of the study"
                )
            seen.add(ids_digest(encoding.ids))
            found.append((text, encoding))
        if not seen.issuperset(part.about.ids for part in study.parts if part.about.texts):
            raise ValueError(
                f"the tokenizer gives other ids for the tokens of the texts of {str(study.path)!r}; give the tokenizer "
                "of the study"
            )
    if len(found) < FEWEST:
        raise ValueError(
            f"the studies have {len(found)} texts, and a head needs at least {FEWEST}, better hundreds; score more"
        )
    return found


def examples(
    model: TextModel,
    plan: Plan,
    texts: Sequence[tuple[TextExplanation, Encoding]],
    batch_size: int,
    progress: bool,
) -> list[Example]:
    """Return the training examples of the texts, in their order, with one forward pass for each batch."""
    found: dict[int, Example] = {}
    encodings = [encoding for _, encoding in texts]
    sites = [state.site for state in plan.states]
    with tqdm(total=len(texts), desc="read the states", disable=not progress) as bar:
        for some in batches(encodings, batch_size, model.pads):
            chosen = [encodings[i] for i in some]
            with watch(model, chosen) as inside:
                batch = Batch(model, chosen, plan.noise_layer, sites, plan.max_rows)
            joined, few = features(model, batch, plan.states, inside)
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
    """Train a head on some texts, and return it with its error on the others.

    Equal texts are either all used for training or all held out.

    Args:
        texts, given: the solver's explanations and the training examples, in the same order.
        share: share of the texts that are held out.
        epochs: number of passes over the others.
        seed: of the choice of held-out texts, of the initial weights and of the order.
        progress: show bars.

    Raises:
        ValueError: too few texts for training, or too few held out.
    """
    outside = [_place(text, seed) < share for text in texts]
    inside = [example for example, out in zip(given, outside) if not out]
    others = [index for index, out in enumerate(outside) if out]
    if len(others) < 2 or len(inside) < 2:
        raise ValueError(
            f"held_out is {share}, which leaves {len(inside)} of {len(texts)} texts for training and holds out "
            f"{len(others)}; both need at least 2, so give a number such as 0.1, or more texts"
        )
    head = learn(inside, epochs, seed, progress)
    pairs = [(texts[index], given[index]) for index in others]
    plain = HeldOut.of(Agreement.of([_against(head, *pair) for pair in pairs]))
    # computed again with the error that coverage depends on
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
    """Return log sigma and its error, predicted and solved, for each layer."""
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
    """Return a pseudo-random number between 0 and 1 that depends on the text and the seed alone."""
    digest = hashlib.sha256(repr((seed, text.text, text.pair)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
