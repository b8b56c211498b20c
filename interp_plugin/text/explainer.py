"""TextExplainer: a model, its tokenizer and texts become an Explanation."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, cast

from tqdm.auto import tqdm

from interp_plugin import data, huggingface
from interp_plugin.fingerprint import versions
from interp_plugin.method.erasure import PASSES, Erasure, Side, Way, check_ways
from interp_plugin.method.perturbation import LayerCall, RunningStd, Site, module_of
from interp_plugin.method.problem import default_cap, std_of_table, warn_of_training
from interp_plugin.method.solver import Solver
from interp_plugin.text import scoring
from interp_plugin.text.batch import Batch, State, batches
from interp_plugin.text.calibration import Calibration
from interp_plugin.text.explanation import Explanation, Settings, TextExplanation
from interp_plugin.text.models import OUTPUT, Encoding, Label, TextModel, as_int, plain_values, shown
from interp_plugin.text.scoring import ErasureFinder, Plan, Positions, warn_of_deaf_states

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Text = str | tuple[str, str]
Layers = Label | Sequence[Label]


class TextExplainer:
    """Says how much of each token every layer of a model keeps, for any texts.

    Args:
        model: a model of Hugging Face, or a :class:`TextModel` (:class:`PlainModel` makes one of a plain
            PyTorch classifier).
        tokenizer: the model's, for a model of Hugging Face; a pipeline has its own.
        noise_layer: where noise enters: a module, its dotted name, or one of its runs.  None: the word
            embeddings.
        calibration: the spread of the states (:meth:`calibrate` sets it); None: each text is its own yardstick.

    Examples::
        >>> from interp_plugin import data, huggingface
        >>> model, tokenizer = huggingface.load(huggingface.default_model_path())
        >>> explanation = TextExplainer(model, tokenizer).explain("a good film", layers=1)
        >>> explanation[0].tokens, explanation[0].rows[0].sigma.shape
        (('[CLS]', 'a', 'good', 'film', '[SEP]'), torch.Size([5]))
    """

    def __init__(
        self,
        model: PreTrainedModel | TextModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        noise_layer: Site | str | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self.model = _text_model(model, tokenizer)
        self.noise_layer = _site_of(self.model, noise_layer)
        self.calibration = calibration
        if calibration is not None and calibration.model != self.model.name:
            warnings.warn(
                f"the calibration is of model {calibration.model!r}, and this is {self.model.name!r}: its units are "
                "another model's, unless only the name has changed",
                stacklevel=2,
            )

    def __call__(self, texts: Text | Sequence[Text], *args: Any, **kwargs: Any) -> Explanation:
        """The same as :meth:`explain`."""
        return self.explain(texts, *args, **kwargs)

    def states(self, layers: Layers = "all") -> list[State]:
        """Where the states of layers are read, and in which unit; ``layers`` as in :meth:`explain`.

        Raises:
            ValueError: a layer that is not there, or that the calibration does not have.
        """
        return list(self._states(self._labels(layers), None, None, None))

    def encode(self, texts: Text | Sequence[Text], truncation: bool = False) -> list[Encoding]:
        """Each text (or pair) as the model reads it, without a target.

        Raises:
            ValueError: an empty or too long text; the message names it.
            TypeError: texts that are not strings.
        """
        pairs = _pairs(texts)
        return self._encode(pairs, [None] * len(pairs), truncation)

    def explain(
        self,
        texts: Text | Sequence[Text],
        layers: Layers = "all",
        target: Any = None,
        positions: Positions = None,
        neurons: int | slice | Sequence[int] | None = None,
        heads: int | Sequence[int] | None = None,
        *,
        rate: float = 0.1,
        max_sigma: float | None = None,
        input_std: float | None = None,
        solver: Solver | None = None,
        batch_size: int = 16,
        internal_batch_size: int | Literal["auto"] = "auto",
        truncation: bool = False,
        show_progress: bool = False,
        score: Literal["kept", "erased"] = "kept",
        side: Side = "damage",
        ways: Sequence[Way] = ("mask",),
        passes: int = PASSES,
    ) -> Explanation:
        """Information kept of each token of each text by each layer, or what is lost with each token.

        A text's result does not depend on the others: they are batched by length, and padding bears no noise.

        Args:
            texts: one text, one pair of sentences (a tuple of two), or a list, array or Series of either; inside
                it a list of two is a pair, too.  A DataFrame, or what ``data.records(path)`` returns, has its texts in
                a column with a usual name, such as "text", or in the only one of words.
            layers: "all" of the layers, one label or several (``["all", "output"]``): 1 is the first block,
                "encoder.1" and "decoder.1" those of an encoder-decoder, names those of a plain model; "output" is what
                the model returns (class scores; of a language model, log probabilities of the target).
            target: which output: a class, as a number or by name; None is all of them.  For a language
                model what it should say next: a continuation (of an encoder-decoder, the decoder's
                text), the id of a token, or (continuation, (first, last character)) for a span of it;
                hidden states are then watched where that is predicted.  None is its own next token.  A
                list has one for each text.
            positions: None watches a layer at all tokens together; a token's index (from the end where
                negative), several, or "each" watch one token's vector a row: the paper's time steps.
                Scores of a whole text, and a language model's of its target, have no positions.
            neurons: indices into the last dimension of the layers' states (of "output" ``target`` picks).
            heads: attention heads to watch in place of the layers' outputs.
            rate: lambda > 0, the weight of the entropy against the distortion.
            max_sigma: cap on sigma; None: 10 times ``input_std``.
            input_std: tau, the standard deviation of one element of what the noise is added to: the spread that
                information kept is counted against.  None: that of the embedding table; of a noise layer that is no
                table, what the calibration measured there, or else each text's own.
            solver: how hard to look; default ``Solver()``.
            batch_size: texts at most in a batch.
            internal_batch_size: rows at most in one forward and backward; "auto" starts from what suits the
                length and halves when memory runs out.
            truncation: cut off what the model cannot take; otherwise too long a text is an error.
            show_progress: a progress bar.
            score: "kept" learns noise, and says how precisely a state knows each token; "erased" learns erasures, and
                says which tokens carry it: what is lost with a token of the log-odds of a class (without a target, of
                the predicted one), of a language model's log probability of its target, or in D of a layer.  Special
                tokens are never erased; the mask token stands for erased ones, the mean of the embedding table where
                there is none.
            side, ways, passes: of the erasures, as in :meth:`InformationErased.attribute`; ``solver`` gives the seed.

        Raises:
            ValueError: a layer, target, position or head that is not there, an empty or too long text,
                a tokenizer that does not fit.
            TypeError: texts that are not strings.
        """
        start = time.perf_counter()
        if not isinstance(solver, Solver | None):
            raise TypeError(f"solver is a {type(solver).__name__}; give a Solver, or None for the usual one")
        warn_of_training(self.model.module, stacklevel=3)
        _check_sizes(batch_size, internal_batch_size)
        finder = self._finder(score, side, ways, passes, 0 if solver is None else solver.seed)
        pairs = _pairs(texts)
        targets = _for_each(target, len(pairs))
        labels = self._labels(layers)
        base = self._terms(rate, max_sigma, input_std, solver)
        base = replace(
            base,
            positions=positions,
            max_rows=None if internal_batch_size == "auto" else internal_batch_size,
        )
        encodings = self._encode(pairs, targets, truncation)
        found: dict[int, TextExplanation] = {}
        with tqdm(total=len(pairs), desc="texts", disable=not show_progress) as bar:
            for wanted, indices in self._by_class(targets, labels).items():
                plan = replace(
                    base,
                    states=tuple(self._states(labels, wanted, neurons, heads)),
                    target=None if wanted is None else self.model.class_name(wanted),
                )
                for some in batches([encodings[i] for i in indices], batch_size, self.model.pads):
                    chosen = [indices[i] for i in some]
                    found.update(
                        zip(chosen, scoring.score(self.model, [encodings[i] for i in chosen], plan, finder))
                    )
                    bar.update(len(chosen))
        items = tuple(found[index] for index in range(len(pairs)))
        warn_of_deaf_states(items)
        settings = self.settings(base, neurons, heads)
        if finder is not None:
            settings = replace(settings, erased=finder.description)
        return Explanation(items, settings, time.perf_counter() - start)

    def _finder(
        self, score: str, side: Side, ways: Sequence[Way], passes: int, seed: int
    ) -> ErasureFinder | None:
        """What finds the rows; None: the solver."""
        if score not in ("kept", "erased"):
            raise ValueError(f"score is {score!r}; choose 'kept' or 'erased'")
        if score == "kept":
            return None
        return ErasureFinder(self.model, Erasure(side, passes, seed), check_ways(ways))

    def plan(
        self,
        layers: Layers = "all",
        *,
        rate: float = 0.1,
        max_sigma: float | None = None,
        input_std: float | None = None,
        solver: Solver | None = None,
    ) -> Plan:
        """What :meth:`explain` asks of every text, for those that call :func:`scoring.score` themselves.

        Args:
            layers, rate, max_sigma, input_std, solver: as in :meth:`explain`.

        Raises:
            ValueError: a layer that is not there, or that the calibration does not have.
        """
        states = self._states(self._labels(layers), None, None, None)
        return replace(self._terms(rate, max_sigma, input_std, solver), states=tuple(states))

    def calibrate(
        self,
        texts: Iterable[Text],
        layers: Layers = "all",
        target: Any = None,
        *,
        batch_size: int = 16,
        truncation: bool = True,
        show_progress: bool = True,
    ) -> Calibration:
        """Measure the spread of the states over texts, and use it as the unit of distortion from now on.

        Every token of every text is one sample of its layer.  The spread of the noise layer's output is measured
        too, and used where that layer is no embedding table.

        Args:
            texts: some tens to hundreds, of the kind that will be explained.
            layers: as in :meth:`explain`; "all" means the output too.
            target: of a language model, as in :meth:`explain`: an encoder-decoder's decoder has no other
                tokens than those of its target, and of None only the one it starts with.
            batch_size: texts at most in a forward.
            truncation: as in :meth:`explain`.
            show_progress: a progress bar.
        """
        _check_sizes(batch_size)
        pairs = _pairs(texts if isinstance(texts, (str, Sequence)) else list(texts))
        labels = [*self.model.layers, OUTPUT] if layers == "all" else self._labels(layers)
        states = {_key(label): State(label, self._site(label)) for label in labels}
        for label in labels:
            heads = self.model.head_site(label) if label != OUTPUT else None
            if heads is not None:
                states[_key(label, heads=True)] = State(label, heads[0])
        running, inputs = {key: RunningStd() for key in states}, RunningStd()
        asked = self._encode(pairs, _for_each(target, len(pairs)), truncation)
        encodings = [replace(e, target=(), target_positions=()) for e in asked]  # every token is a sample
        with tqdm(total=len(pairs), desc="calibrate", disable=not show_progress) as bar:
            for some in batches(encodings, batch_size, self.model.pads):
                batch = Batch(
                    self.model,
                    [encodings[i] for i in some],
                    self.noise_layer,
                    [s.site for s in states.values()],
                )
                inputs.update(batch.origin, batch.token_mask)
                for key, state in states.items():
                    values = batch.whole(state.site)
                    if state.site is None and self.model.task == "next token":
                        values = values.float().log_softmax(-1).amax(-1)  # each place's own next token
                    running[key].update(values, batch.places(state))
                bar.update(len(some))
        spreads = {key: spread.std() for key, spread in running.items()}
        self.calibration = Calibration(
            self.model.name, len(pairs), spreads, inputs.of_all_elements(), self._noise_layer_name
        )
        return self.calibration

    def _terms(
        self, rate: float, max_sigma: float | None, input_std: float | None, solver: Solver | None
    ) -> Plan:
        """A plan without states."""
        if not isinstance(input_std, (int, float, type(None))):
            raise TypeError(
                f"input_std is a {type(input_std).__name__}; give one number for all texts, or None"
            )
        if input_std is None:
            input_std = self._input_std()
        if max_sigma is None and input_std is not None:
            max_sigma = default_cap(input_std)
        return Plan(
            states=(),
            positions=None,
            noise_layer=self.noise_layer,
            target=None,
            rate=rate,
            max_sigma=max_sigma,
            solver=Solver() if solver is None else solver,
            input_std=input_std,
        )

    def _input_std(self) -> float | None:
        """tau of the noise layer, of its table or as it was calibrated; None: each text has its own."""
        known, unit = std_of_table(module_of(self.noise_layer)), self.calibration
        if known is None and unit is not None and unit.noise_layer == self._noise_layer_name:
            known = unit.input_std
        return known

    @property
    def _noise_layer_name(self) -> str:
        module = module_of(self.noise_layer)
        names = {id(each): name for name, each in self.model.module.named_modules()}
        return str(names.get(id(module), type(module).__name__))

    def _labels(self, layers: Layers) -> list[Label]:
        """The chosen layers, without repeats, each checked to be there."""
        known = list(self.model.layers)
        given = layers if isinstance(layers, Iterable) and not isinstance(layers, str) else [layers]
        spelt = [label for part in given for label in (known if part == "all" else [part])]
        wanted = list(dict.fromkeys(spelt))
        if not wanted:
            raise ValueError(f"layers {layers!r} names no layer: choose from {_listing(known)}, or 'all'")
        for label in wanted:
            if isinstance(label, bool) or (label != OUTPUT and label not in known):
                raise ValueError(
                    f"layer {label!r} does not exist: the model has {_listing(known)}; choose from them or 'output'"
                )
        return wanted

    def _site(self, label: Label) -> Site | None:
        return None if label == OUTPUT else self.model.layers[label]

    def _states(
        self,
        labels: Sequence[Label],
        wanted: int | None,
        neurons: int | slice | Sequence[int] | None,
        heads: int | Sequence[int] | None,
    ) -> Iterator[State]:
        """What each label means, with its unit."""
        if neurons is not None and heads is not None:
            raise ValueError("neurons and heads both pick a part of a state; give one of them")
        for name, part in (("neurons", neurons), ("heads", heads)):
            if isinstance(part, Sequence) and not part:
                raise ValueError(
                    f"{name} {part!r} names none; give at least one, or None for the whole state"
                )
        for label in labels:
            site, part, key = self._site(label), neurons, _key(label)
            if label == OUTPUT:
                part = wanted
            elif heads is not None:
                site, part = self._heads(label, heads)
                key = _key(label, heads=True)
            std = None if self.calibration is None else self.calibration.of(key)
            index = part if part is None or isinstance(part, (int, slice)) else list(part)
            yield State(label, site, index, std)

    def _heads(self, label: Label, heads: int | Sequence[int]) -> tuple[LayerCall, list[int]]:
        """Where a layer's heads are read, and the places of the chosen ones in the last dimension."""
        found = self.model.head_site(label)
        if found is None:
            raise ValueError(
                f"layer {label!r} has no attention heads that can be told apart; leave heads out"
            )
        site, count, width = found
        heads = plain_values(heads)
        chosen = [heads] if isinstance(heads, int) else list(heads)
        for head in chosen:
            if head not in range(count):
                raise ValueError(f"head {head!r} does not exist: layer {label!r} has heads 0 to {count - 1}")
        return site, [head * width + i for head in chosen for i in range(width)]

    def _by_class(self, targets: Sequence[Any], labels: Sequence[Label]) -> dict[int | None, list[int]]:
        """Texts that ask for the same class; a language model's targets are in the encodings."""
        if self.model.task == "next token" or all(t is None for t in targets):
            return {None: list(range(len(targets)))}
        first = next(t for t in targets if t is not None)
        if self.model.task == "none":
            raise ValueError(
                f"target {first!r} picks a class, and {self.model.name} has no head that gives any; leave target out "
                "or give the model with its head"
            )
        if OUTPUT not in labels:
            raise ValueError(
                f"target {first!r} picks a part of the output, and layers {labels} do not have it; give "
                "layers='output', or use neurons for a part of a layer"
            )
        groups: dict[int | None, list[int]] = {}
        for index, target in enumerate(targets):
            number = None if target is None else _class_number(self.model, target)
            groups.setdefault(number, []).append(index)
        return groups

    def _encode(
        self, pairs: Sequence[tuple[str, str | None]], targets: Sequence[Any], truncation: bool
    ) -> list[Encoding]:
        encodings = []
        for index, ((text, pair), target) in enumerate(zip(pairs, targets)):
            try:
                encodings.append(self.model.encode(text, pair, target=target, truncation=truncation))
            except (ValueError, TypeError) as error:
                if len(pairs) == 1:
                    raise
                kind = TypeError if isinstance(error, TypeError) else ValueError
                raise kind(f"text {index}, {shown(text)}: {error}") from error
        return encodings

    def settings(self, plan: Plan, neurons: Any = None, heads: Any = None) -> Settings:
        """What the numbers that come of a plan depend on."""
        return Settings(
            model=self.model.name,
            noise_layer=self._noise_layer_name,
            rate=plan.rate,
            seed=plan.solver.seed,
            tolerance=plan.solver.tolerance,
            draws=plan.solver.draws,
            iterations=plan.solver.iterations,
            max_passes=plan.solver.max_passes,
            state_std=self.calibration is not None,
            calibration=None if self.calibration is None else self.calibration.digest,
            part=next(
                (
                    f"{name} {part}"
                    for name, part in (("neurons", neurons), ("heads", heads))
                    if part is not None
                ),
                None,
            ),
            versions=versions(),
        )


def _text_model(model: PreTrainedModel | TextModel, tokenizer: PreTrainedTokenizerBase | None) -> TextModel:
    """A model that is one already, or one of Hugging Face with its tokenizer."""
    if hasattr(model, "encode") and hasattr(model, "collate"):
        return cast(TextModel, model)
    if isinstance(model, (str, PathLike)):
        raise TypeError(
            f"model is {str(model)!r}, a name; give TextExplainer(*huggingface.load({str(model)!r}))"
        )
    if isinstance(model, tuple):
        raise TypeError("model is a tuple; give its parts: TextExplainer(*huggingface.load(...))")
    model, tokenizer = huggingface.unwrapped(model, tokenizer)
    if tokenizer is None:
        raise ValueError(
            f"{type(model).__name__} comes without a tokenizer; give the model's, or a PlainModel for a model in plain "
            "PyTorch"
        )
    return huggingface.HuggingFaceModel(cast("PreTrainedModel", model), tokenizer)


def _site_of(model: TextModel, layer: Site | str | None) -> Site:
    """A noise layer given as a module, by its dotted name, or not at all."""
    if layer is None:
        return model.embedding
    if not isinstance(layer, str):
        return layer
    try:
        return model.module.get_submodule(layer)
    except AttributeError as error:
        parts = _listing([name for name, _ in model.module.named_children()])
        raise ValueError(
            f"noise_layer {layer!r} is not a module of {model.name}, whose parts are {parts}; dotted names go deeper"
        ) from error


def _pairs(texts: Text | Sequence[Text]) -> list[tuple[str, str | None]]:
    """One text or pair, or a list of them, as (text, pair or None)."""
    texts = data.in_memory(texts)
    if isinstance(texts, (str, tuple)):
        texts = [texts]
    texts = plain_values(texts)
    if not isinstance(texts, Sequence) or isinstance(texts, bytes):
        raise TypeError(
            f"texts is a {type(texts).__name__}: it must be a str, a pair of str or a list of them"
        )
    if not texts:
        raise ValueError("texts is empty; give at least one text")
    pairs: list[tuple[str, str | None]] = []
    for index, text in enumerate(texts):
        text = plain_values(text)
        parts = text if isinstance(text, (tuple, list)) and len(text) == 2 else (text, None)
        if not isinstance(parts[0], str) or not isinstance(parts[1], (str, type(None))):
            raise TypeError(
                f"text {index} is {text!r}: it must be a str, or a tuple or list of two for a pair of sentences"
            )
        pairs.append((parts[0], parts[1]))
    return pairs


def _class_number(model: TextModel, target: Any) -> int:
    """Of a class by name or number; digits that name no class are a number, as labels of files are written."""
    try:
        return model.class_index(target)
    except ValueError:
        if isinstance(target, str) and re.fullmatch(r"\d{1,9}", target):
            return model.class_index(int(target))
        raise


def _for_each(target: Any, count: int) -> list[Any]:
    """One target for each text."""
    target = plain_values(target)
    targets = [as_int(each) for each in target] if isinstance(target, list) else [target] * count
    if len(targets) != count:
        raise ValueError(f"target lists {len(targets)} for {count} texts; give one for each")
    return targets


def _check_sizes(*sizes: int | str) -> None:
    for size in sizes:
        if size != "auto" and not (isinstance(size, int) and size > 0):
            raise ValueError(f"a batch size is {size!r}; give a positive number")


def _key(label: Label, heads: bool = False) -> str:
    """The name of a state in a calibration."""
    return f"{label}.heads" if heads else str(label)


def _listing(labels: Sequence[Label]) -> str:
    """Labels in a message: the ends of a long row of numbers, otherwise all."""
    if len(labels) > 2 and all(isinstance(label, int) for label in labels):
        return f"layers {labels[0]} to {labels[-1]}"
    return ", ".join(map(repr, labels))
