"""TextExplainer: explain texts with a model and its tokenizer."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, cast

from tqdm.auto import tqdm

from interp_plugin import huggingface
from interp_plugin.files import versions
from interp_plugin.method.erasure import PASSES, Erasure, Side, Way, check_ways
from interp_plugin.method.perturbation import RunningStd, Site, module_of
from interp_plugin.method.problem import default_cap, std_of_table, warn_of_training
from interp_plugin.method.solver import Solver
from interp_plugin.text import scoring
from interp_plugin.text.batch import Batch, batches
from interp_plugin.text.explanation import Explanation, Settings, TextExplanation
from interp_plugin.text.inputs import (
    Given,
    Layers,
    arguments_of_each,
    for_each,
    is_one,
    read_texts,
    the_only,
    with_arguments,
    with_parts,
)
from interp_plugin.text.models import (
    OUTPUT,
    Encoding,
    Function,
    Label,
    Second,
    Source,
    TextModel,
    check_function,
    contrasted,
    shown,
    state_sites,
)
from interp_plugin.text.scoring import ErasureFinder, Plan, Positions, Progress, warn_of_unreached_states
from interp_plugin.text.states import Calibration, State, StateFinder, listing, requests_by_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOWERINGS = 2  # how often the rate is lowered to a tenth if a state saturates
READ = "what the next block reads"  # the states of a pre-norm model: see HuggingFaceModel.states


class TextExplainer:
    """Explain texts: how much of each token every layer of a model keeps, or which tokens carry a prediction.

    Args:
        model: a Hugging Face model, or a :class:`TextModel` (:class:`PlainModel` wraps a plain PyTorch classifier).
        tokenizer: the tokenizer of a Hugging Face model; a pipeline brings its own.
        noise_layer: where noise is added: a module, its dotted name, or one of its runs.  None: the word embeddings.
        calibration: the spread of the states (:meth:`calibrate` sets it), the unit of distortion; None: the unit is the
            size of each text's own state.

    Examples::
        >>> from interp_plugin import data, huggingface
        >>> model, tokenizer = huggingface.load(huggingface.default_model_path())
        >>> explanation = TextExplainer(model, tokenizer).explain("a good film", layers=1)
        >>> explanation[0].tokens, explanation[0].rows[0].sigma.shape
        (('[CLS]', 'a', 'good', 'film', '[SEP]'), torch.Size([5]))
        >>> explainer = TextExplainer(model, tokenizer)
        >>> explainer.explain("a good film", target="each", solver=explainer.solver(quick=True))[0].layers
        ('output.negative', 'output.positive')
        >>> words = explainer.explain(["so", "good!"], 1, solver=explainer.solver(quick=True), is_split_into_words=True)
        >>> words[0].scores(granularity="word").units
        ('[CLS]', 'so', 'good!', '[SEP]')
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

    def __call__(self, texts: Given | Sequence[Given], *args: Any, **kwargs: Any) -> Explanation:
        """Call :meth:`explain`."""
        return self.explain(texts, *args, **kwargs)

    @property
    def usual_solver(self) -> Solver:
        """The default settings of the solver for this model.

        The states of a language model scatter more from sample to sample than those of an encoder: the tolerance of
        log sigma is .05, which orders tokens well (mean Spearman correlation between seeds .98 at layers 5, 15 and 29
        of SmolLM2).
        """
        return Solver(tolerance=0.05, max_passes=840) if self.model.task == "next token" else Solver()

    def solver(
        self,
        tolerance: float | None = None,
        max_passes: int | None = None,
        seed: int = 0,
        quick: bool = False,
    ) -> Solver:
        """Return :attr:`usual_solver` with some settings changed.

        Args:
            tolerance, max_passes, seed: as for :class:`Solver`; None: the default.
            quick: use the closed form alone, 8 passes (4 for several layers); it is exact if E is 1.
        """
        usual = self.usual_solver
        return replace(
            usual,
            tolerance=usual.tolerance if tolerance is None else tolerance,
            max_passes=usual.max_passes if max_passes is None else max_passes,
            iterations=0 if quick else usual.iterations,
            seed=seed,
        )

    def states(self, layers: Layers = "all") -> list[State]:
        """Return where the states of layers are read, and their units; ``layers`` as in :meth:`explain`.

        Raises:
            ValueError: a layer does not exist, or is not in the calibration.
        """
        finder = self._state_finder
        return list(finder.states(finder.labels(layers)))

    def encode(
        self,
        texts: Given | Sequence[Given],
        truncation: bool = False,
        is_split_into_words: bool = False,
        target: Any = None,
        instead_of: Any = None,
    ) -> list[Encoding]:
        """Encode each text (or pair), for a language model with its target; arguments as in :meth:`explain`.

        Raises:
            ValueError: a text is empty or too long, or a target does not exist; the message names it.
            TypeError: texts are not strings.
        """
        pairs = read_texts(texts, is_split_into_words)
        targets, foils = for_each(target, len(pairs)), for_each(instead_of, len(pairs))
        return self._encode(pairs, targets, truncation, foils)

    def explain(
        self,
        texts: Given | Sequence[Given],
        layers: Layers | None = None,
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
        instead_of: Any = None,
        continuation: str | Sequence[int] | None = None,
        fixed: Any = None,
        units: Any = None,
        function: Function | None = None,
        score: Literal["kept", "erased"] = "kept",
        side: Side = "damage",
        ways: Sequence[Way] | None = None,
        passes: int = PASSES,
        is_split_into_words: bool = False,
        forward_args: Mapping[str, Any] | None = None,
    ) -> Explanation:
        """Compute how much information each layer keeps of each token, or what is lost when each token is erased.

        The result of a text does not depend on the other texts: they are batched by length, and padding has no noise.

        Args:
            texts: one text, one pair of sentences (a tuple of two), or a list, array or Series of either; within it a
                list of two is a pair as well.  A text may also be a list of token ids, which are used unchanged, or the
                messages of a chat (dictionaries with role and content), which the tokenizer's chat template formats.
                For a DataFrame or the result of ``data.records(path)``, the texts are in a column with a usual name,
                such as "text", or in the only column of words.  (text, [choice, choice, ...]) is a text with several
                second texts, each read together with it: the choices of a multiple-choice model, or the hypotheses of
                zero-shot classification with a model that has a class "entailment".  The choices are the classes.
            layers: "all" layers, one label or several (``["all", "output"]``): 1 is the first block, "encoder.1" and
                "decoder.1" are blocks of an encoder-decoder, and a plain model has names.  "output" is what the model
                returns: class scores, or a language model's log probabilities of the target.  None is "output" if the
                target is a class or an answer, if there is a continuation, or if tokens are erased and the model has
                an output; otherwise "all".  If the next block begins with a normalisation (GPT-2, Llama, T5), a
                layer's state is the output of that normalisation; "hidden_states.1" is the block's own output.
            target: which output to explain.  A class, by number or name (a choice by its text); None: all classes
                together; "each": every class in a row of its own, labelled "output." and its name.  If the answer is a
                span of the text: "start", "end" or "both" of the model's own answer, "each" of them in a row, or a pair
                with the answer, ("start", "in Paris"): log probabilities of these positions.  For a language model,
                what it is to predict next: a continuation (for an encoder-decoder, the decoder's text), the id of a
                token, or (continuation, (first, last character)) for a span of it; hidden states are then explained at
                the positions that predict it.  None is the model's own next token if "output" is among the layers.
                A list has one target for each text.
            positions: None explains a layer at all tokens together, or, if a language model has a target (a given one
                or its own next token), at the positions that predict it; "all" always explains all tokens together; the
                index of a token (negative from the end), several, or "each" explain one token's vector per row: the
                paper's time steps.  The scores of a whole text, and of a language model's target, have no positions.
            neurons: indices into the last dimension of the layers' states (for "output" use ``target``).
            heads: attention heads to explain instead of the layers' outputs.
            rate: lambda > 0, the weight of the entropy against the distortion.  A state that saturates at this rate,
                as the vector of one token often does, is solved at a tenth or a hundredth of it, which the row's
                ``rate`` shows.  Nats at different rates are not comparable; ``Solver(lower_rate=False)`` keeps one rate
                for all rows.
            max_sigma: cap on sigma; None: 10 times ``input_std``.
            input_std: tau, the standard deviation of one element of the noise layer's output, the reference of
                information kept.  None: that of the embedding table; for other noise layers the one measured by
                calibration, or else each text's own.
            solver: settings of the solver; None: :attr:`usual_solver`.  ``Solver(iterations=0)`` is the closed form
                alone: 8 passes (4 for several layers), with standard errors; it is exact if E is 1.
            batch_size: largest number of texts in a batch.
            internal_batch_size: largest number of rows in one forward and backward pass; "auto" starts from a number
                that depends on the length, and halves it when memory runs out.
            truncation: cut texts that are too long for the model; otherwise they are an error.
            show_progress: show a progress bar over the rows (layers and positions) of the texts, or over generated
                tokens; it moves with every batch of sample passes and shows the time left.
            instead_of: an alternative to compare the target with, in the same form as ``target``: "Paris" instead of
                "London".  If both are continuations, the first tokens in which they differ are compared, after the
                tokens that they have in common.
            continuation: the continuation of a single text, a string or token ids.  Each of its tokens is a target in
                turn, given the text and the tokens before it.  Rows of "output" have the position of the predicted
                token, rows of layers the position before it.
            fixed: tokens without noise, whose information kept is then 0: "special" (special tokens and a chat's
                template), a role ("system"), a span of characters (start, stop), a compiled regular expression, or a
                list of these.
            units: tokens that share one noise scale, or are erased together: "word", "sentence", "paragraph",
                "message", a compiled regular expression, or a list of spans (start, stop), such as the documents of a
                prompt.  The score of a unit is the sum over its tokens.
            function: the function of the target (a class or a token) to explain: "logit" (default for a class),
                "log_probability" (default for a language model), "probability", "log_odds" or "margin", the score minus
                the largest other one; see :func:`interp_plugin.text.models.watched`.  For SmolLM2's next tokens all
                five converge with E of 1, and seeds agree by .998 or more; "margin" needs the fewest passes.  With
                ``instead_of``, differences of log probabilities equal those of scores.
            score: "kept" learns noise: how precisely a state knows each token.  "erased" learns erasures: which tokens
                carry the state, that is, what is lost with a token of a class's log-odds (without a target, of the
                predicted class), of a language model's log probability of its target, or in D of a layer.  This is the
                mean loss while other tokens are erased as well: on SmolLM2 scores agree by .7 (rank correlation) with
                brute force over masks of the same probabilities, and by .2 with leaving one token out of the whole
                text, with which brute force agrees by .3 there and by .97 if 5 % are erased.  Special tokens are never
                erased.  Erased tokens are replaced by the mask token, or by the mean of the embedding table if there is
                none.
            side, ways, passes: settings of the erasures, as in :meth:`InformationErased.attribute`; the seed is that of
                ``solver``.  For classes that do not exclude each other, each class has its own log-odds.  ways None is
                "mask", but "delete" for a decoder's target: a decoder has no mask token, and a replacement misleads it
                (rank correlations with leaving tokens out: see tests/benchmarks/language_models.py).
            is_split_into_words: each text (each of a pair) is a list of words, as for tokenizers; otherwise a list of
                strings is a list of texts.  The result has these words.
            forward_args: further arguments of a Hugging Face model's forward, by name (token_type_ids, langs, bbox): a
                number for all texts; for one text its value; for a list of texts a list with one value for each.  The
                value of a text is a number for all its tokens, or one for each token including special ones, or one for
                each word of a text that is split into words (special tokens then get zeros); anything else is an
                argument of the text as a whole.

        Raises:
            ValueError: a layer, target, position or head does not exist, a text is empty or too long, the tokenizer
                does not fit, or the forward does not take an argument.
            TypeError: texts are not strings.
        """
        start = time.perf_counter()
        if not isinstance(solver, Solver | None):
            raise TypeError(f"solver is a {type(solver).__name__}; give a Solver, or None for the usual one")
        warn_of_training(self.model.module, stacklevel=3)
        _check_sizes(batch_size, internal_batch_size)
        check_function(function)
        if continuation is not None and (target is not None or instead_of is not None):
            raise ValueError("continuation and target both say what follows the text; give one of them")
        given = read_texts(texts, is_split_into_words)
        this, arguments = self._taking(forward_args, len(given), is_one(texts, is_split_into_words))
        if layers is None:
            layers = this._usual_layers(target, score, continuation)
        states = this._state_finder
        labels = states.labels(layers)
        finder = this._finder(score, side, ways, passes, 0 if solver is None else solver.seed, labels)
        base = replace(
            this._terms(rate, max_sigma, input_std, solver),
            positions=positions,
            max_rows=None if internal_batch_size == "auto" else internal_batch_size,
            function=function or "log_probability",
            lowerings=LOWERINGS,
        )
        if not base.solver.lower_rate or not base.solver.max_batches:
            base = replace(base, lowerings=0)
        targets, foils = for_each(target, len(given)), for_each(instead_of, len(given))
        whole = None
        if continuation is None:
            encodings = this._encode(given, targets, truncation, foils, arguments)
            encodings = [with_parts(encoding, fixed, units) for encoding in encodings]
        else:
            [(text, _)] = the_only(given)
            whole, encodings = this._steps(text, continuation, fixed, units, arguments)
            targets, foils = [None] * len(encodings), [None] * len(encodings)
        plans = []
        for request, indices in requests_by_text(
            this.model, encodings, targets, foils, labels, function
        ).items():
            watched = tuple(states.states(labels, request, function, neurons, heads))
            plans.append((replace(base, states=watched, target=states.target_name(request)), indices))
        items = this._scored(encodings, plans, batch_size, finder, show_progress, whole is None)
        warn_of_unreached_states(items)
        if whole is not None:
            items = (scoring.grid(this.model, whole, items),)
        settings = this.settings(base, neurons, heads)
        if function is not None:
            settings = replace(settings, function=function)
        if finder is not None:
            settings = replace(settings, erased=finder.description)
        return Explanation(items, settings, time.perf_counter() - start)

    def _taking(
        self, forward_args: Mapping[str, Any] | None, count: int, is_one: bool
    ) -> tuple[TextExplainer, list[Mapping[str, Any]]]:
        """Return an explainer whose model takes these arguments, and the arguments of each text."""
        if not forward_args:
            return self, [{}] * count
        if not isinstance(forward_args, Mapping):
            raise ValueError(f"forward_args is {forward_args!r}; give a dictionary of arguments by name")
        if not isinstance(self.model, huggingface.HuggingFaceModel):
            raise ValueError(
                f"forward_args are arguments of a Hugging Face model, and {self.model.name} is none; leave them out"
            )
        other = copy(self)
        other.model = self.model.taking(forward_args)
        return other, arguments_of_each(forward_args, count, is_one)

    def _scored(
        self,
        encodings: Sequence[Encoding],
        plans: Sequence[tuple[Plan, list[int]]],
        batch_size: int,
        finder: ErasureFinder | None,
        show_progress: bool,
        are_texts: bool,
    ) -> tuple[TextExplanation, ...]:
        """Explain the texts; each plan comes with the indices of its texts."""
        found: dict[int, TextExplanation] = {}
        rows = sum(plan.rows_of(encodings[index]) for plan, indices in plans for index in indices)
        passes = plans[0][0].passes if finder is None else finder.erasure.passes
        with Progress(rows, passes, "texts" if are_texts else "tokens", show_progress) as progress:
            for plan, indices in plans:
                plan = replace(plan, progress=progress if show_progress else None)
                for some in batches([encodings[i] for i in indices], batch_size, self.model.pads):
                    chosen = [indices[i] for i in some]
                    scored = scoring.score(self.model, [encodings[i] for i in chosen], plan, finder)
                    found.update(zip(chosen, scored))
        return tuple(found[index] for index in range(len(encodings)))

    def generate(
        self,
        text: Given,
        max_new_tokens: int = 20,
        *,
        generation: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Explanation:
        """Generate a continuation of a text, and explain which earlier tokens each generated token needs.

        Args:
            text: the prompt, or the messages of a chat.
            max_new_tokens: largest number of tokens to generate.
            generation: options of the model's own ``generate``, which come before ``max_new_tokens``; None: greedy
                decoding.
            options: options of :meth:`explain`, which is called with the generated tokens as ``continuation``.

        Raises:
            ValueError: the model is not a language model, or ``generation`` asks for several continuations.
        """
        model = self.model
        if not isinstance(model, huggingface.HuggingFaceModel) or model.task != "next token":
            raise ValueError(f"{model.name} is no language model: it generates no text; give one")
        [(prompt, pair)] = the_only(read_texts(text))
        if pair is not None:
            raise ValueError("text is a pair of sentences; give one prompt")
        ids = model.generate(prompt, **{"max_new_tokens": max_new_tokens, **(generation or {})})
        return self.explain(text, continuation=ids, **options)

    def _steps(
        self,
        text: Source,
        continuation: str | Sequence[int],
        fixed: Any,
        units: Any,
        arguments: Sequence[Mapping[str, Any]],
    ) -> tuple[Encoding, list[Encoding]]:
        """Encode a text with its continuation, and once more for each token of the continuation."""
        if not isinstance(self.model, huggingface.HuggingFaceModel) or self.model.task != "next token":
            raise ValueError(
                f"{self.model.name} is no language model, and nothing continues its texts; use target"
            )
        whole, steps = self.model.steps(text, continuation)
        whole = with_parts(with_arguments(whole, arguments[0]), fixed, units)
        given = {name: whole.extra[name] for name in arguments[0]}
        return whole, [
            replace(
                step,
                units=whole.units[: len(step.ids)],
                extra={**step.extra, **{name: values[: len(step.ids)] for name, values in given.items()}},
            )
            for step in steps
        ]

    def _usual_layers(self, target: Any, score: str, continuation: Any) -> Layers:
        """Return the layers to explain if the caller names none."""
        of_class = target is not None and self.model.task != "next token"
        has_output = continuation is not None or of_class or score == "erased"
        return OUTPUT if has_output and self.model.task != "none" else "all"

    def _usual_ways(self, labels: Sequence[Label]) -> tuple[Way, ...]:
        """Return the ways to erase if the caller names none; a state with positions needs all tokens in place."""
        is_decoder = self.model.task == "next token" and self.model.axis[OUTPUT] == "input"
        return ("delete",) if is_decoder and list(labels) == [OUTPUT] else ("mask",)

    def _finder(
        self,
        score: str,
        side: Side,
        ways: Sequence[Way] | None,
        passes: int,
        seed: int,
        labels: Sequence[Label],
    ) -> ErasureFinder | None:
        """Return what computes the rows; None: the solver."""
        if score not in ("kept", "erased"):
            raise ValueError(f"score is {score!r}; choose 'kept' or 'erased'")
        if score == "kept":
            scoring.check_unused(side, ways)
            return None
        ways = self._usual_ways(labels) if ways is None else ways
        if "delete" in ways and self.model.task == "answer span":
            raise ValueError(
                f"ways is {list(ways)}: deleting tokens would move the answer's positions; use 'mask' or "
                "'attention'"
            )
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
        """Return the plan of :meth:`explain`, for callers of :func:`scoring.score`.

        Args:
            layers, rate, max_sigma, input_std, solver: as in :meth:`explain`.

        Raises:
            ValueError: a layer does not exist, or is not in the calibration.
        """
        return replace(
            self._terms(rate, max_sigma, input_std, solver),
            states=tuple(self.states(layers)),
            positions="all",
        )

    def calibrate(
        self,
        texts: Iterable[Given],
        layers: Layers = "all",
        target: Any = None,
        *,
        batch_size: int = 16,
        truncation: bool = True,
        show_progress: bool = True,
        is_split_into_words: bool = False,
        forward_args: Mapping[str, Any] | None = None,
    ) -> Calibration:
        """Measure the spread of the states over texts, and use it as the unit of distortion from now on.

        Each token of each text is one sample of its layer.  The spread of the noise layer's output is measured as well,
        and used if that layer is not an embedding table.

        Args:
            texts: tens to hundreds of texts, similar to those that will be explained.
            layers: as in :meth:`explain`; "all" includes the output.
            target: for a language model, as in :meth:`explain`: the decoder of an encoder-decoder has only the tokens
                of its target, or without a target only its start token.
            batch_size: largest number of texts in a forward pass.
            truncation: as in :meth:`explain`.
            show_progress: show a progress bar.
            is_split_into_words, forward_args: as in :meth:`explain`.
        """
        _check_sizes(batch_size)
        texts = texts if isinstance(texts, (str, Sequence)) else list(texts)
        pairs = read_texts(texts, is_split_into_words)
        this, arguments = self._taking(forward_args, len(pairs), is_one(texts, is_split_into_words))
        asked = this._encode(pairs, for_each(target, len(pairs)), truncation, None, arguments)
        encodings = [e.unasked for e in asked]  # every token is a sample
        finder = self._state_finder
        labels = [*self.model.layers, OUTPUT] if layers == "all" else finder.labels(layers)
        if self.model.task == "answer span" or any(e.choices for e in encodings):
            labels = [
                label for label in labels if label != OUTPUT
            ]  # the number of scores depends on the text
        states = finder.to_calibrate(labels)
        running, inputs = {key: RunningStd() for key in states}, RunningStd()
        with tqdm(total=len(pairs), desc="calibrate", disable=not show_progress) as bar:
            for some in batches(encodings, batch_size, self.model.pads):
                batch = Batch(
                    this.model,
                    [encodings[i] for i in some],
                    self.noise_layer,
                    [s.site for s in states.values()],
                )
                inputs.update(batch.origin, batch.token_mask)
                for key, state in states.items():
                    values = batch.whole(state.site)
                    if state.site is None and self.model.task == "next token":
                        values = (
                            values.float().log_softmax(-1).amax(-1)
                        )  # the likeliest next token at each position
                    running[key].update(values, batch.places(state))
                bar.update(len(some))
        spreads = {key: spread.std() for key, spread in running.items()}
        self.calibration = Calibration(
            self.model.name, len(pairs), spreads, inputs.of_all_elements(), self._noise_layer_name
        )
        return self.calibration

    @property
    def _state_finder(self) -> StateFinder:
        return StateFinder(self.model, self.calibration)

    def _terms(
        self, rate: float, max_sigma: float | None, input_std: float | None, solver: Solver | None
    ) -> Plan:
        """Return a plan without states."""
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
            solver=self.usual_solver if solver is None else solver,
            input_std=input_std,
        )

    def _input_std(self) -> float | None:
        """Return tau of the noise layer: of its embedding table, or as calibrated; None: each text has its own."""
        known, unit = std_of_table(module_of(self.noise_layer)), self.calibration
        if known is None and unit is not None and unit.noise_layer == self._noise_layer_name:
            known = unit.input_std
        return known

    @property
    def _noise_layer_name(self) -> str:
        module = module_of(self.noise_layer)
        names = {id(each): name for name, each in self.model.module.named_modules()}
        return str(names.get(id(module), type(module).__name__))

    def _encode(
        self,
        pairs: Sequence[tuple[Source, Second]],
        targets: Sequence[Any],
        truncation: bool,
        foils: Sequence[Any] | None = None,
        arguments: Sequence[Mapping[str, Any]] = (),
    ) -> list[Encoding]:
        encodings = []
        for index, ((text, pair), target) in enumerate(zip(pairs, targets)):
            try:
                encoding = self.model.encode(text, pair, target=target, truncation=truncation)
                foil = None if foils is None or self.model.task != "next token" else foils[index]
                if foil is not None:
                    if target is None:
                        raise ValueError(
                            f"instead_of is {foil!r} and there is no target; give the target to compare it with"
                        )
                    other = self.model.encode(text, pair, target=foil, truncation=truncation)
                    encoding = contrasted(encoding, other)
                encodings.append(with_arguments(encoding, arguments[index]) if arguments else encoding)
            except (ValueError, TypeError) as error:
                if len(pairs) == 1:
                    raise
                kind = TypeError if isinstance(error, TypeError) else ValueError
                raise kind(f"text {index}, {shown(str(text))}: {error}") from error
        return encodings

    def settings(self, plan: Plan, neurons: Any = None, heads: Any = None) -> Settings:
        """Return the settings that the numbers of a plan depend on."""
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
            states=READ
            if any(state_sites(self.model)[k] != v for k, v in self.model.layers.items())
            else None,
        )


def _text_model(model: PreTrainedModel | TextModel, tokenizer: PreTrainedTokenizerBase | None) -> TextModel:
    """Return a TextModel unchanged; wrap a Hugging Face model with its tokenizer."""
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
    """Return the noise layer: the given module, the module with this dotted name, or the model's own choice."""
    if layer is None:
        return model.embedding
    if not isinstance(layer, str):
        return layer
    try:
        return model.module.get_submodule(layer)
    except AttributeError as error:
        parts = listing([name for name, _ in model.module.named_children()])
        raise ValueError(
            f"noise_layer {layer!r} is not a module of {model.name}, whose parts are {parts}; dotted names go deeper"
        ) from error


def _check_sizes(*sizes: int | str) -> None:
    for size in sizes:
        if size != "auto" and not (isinstance(size, int) and size > 0):
            raise ValueError(f"a batch size is {size!r}; give a positive number")
