"""TextExplainer: a model, its tokenizer and texts become an Explanation."""

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

LOWERINGS = 2  # of the rate, each to a tenth, where a state saturates
READ = "what the next block reads"  # of a pre-norm model: see HuggingFaceModel.states


class TextExplainer:
    """Explains texts: how much of each token every layer of a model keeps, or which tokens carry an answer.

    Args:
        model: a model of Hugging Face, or a :class:`TextModel` (:class:`PlainModel` makes one of a plain
            PyTorch classifier).
        tokenizer: the model's, for a model of Hugging Face; a pipeline has its own.
        noise_layer: where noise enters: a module, its dotted name, or one of its runs.  None: the word
            embeddings.
        calibration: the spread of the states (:meth:`calibrate` sets it), the unit of distortion; None: each text is
            measured by its own states.

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
        """The same as :meth:`explain`."""
        return self.explain(texts, *args, **kwargs)

    @property
    def usual_solver(self) -> Solver:
        """The solver's settings where the caller gives none.

        A language model's states scatter more than an encoder's from sample to sample: its log sigma are found to .05,
        which orders tokens well (Spearman .98 between seeds at layers 5, 15 and 29 of SmolLM2, in the mean).
        """
        return Solver(tolerance=0.05, max_passes=840) if self.model.task == "next token" else Solver()

    def solver(
        self,
        tolerance: float | None = None,
        max_passes: int | None = None,
        seed: int = 0,
        quick: bool = False,
    ) -> Solver:
        """:attr:`usual_solver` with some of its settings changed.

        Args:
            tolerance, max_passes, seed: as of :class:`Solver`; None: the usual ones.
            quick: the closed form alone, in 8 passes (4 of several layers), which is exact where E is 1.
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
        """Where the states of layers are read, and their units; ``layers`` as in :meth:`explain`.

        Raises:
            ValueError: a layer that is not there, or that the calibration does not have.
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
        """Each text (or pair) as the model reads it, of a language model with its target; arguments as of `explain`.

        Raises:
            ValueError: an empty or too long text, a target that is not there; the message names it.
            TypeError: texts that are not strings.
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
        """Information kept of each token of each text by each layer, or what is lost with each token.

        A text's result does not depend on the others: they are batched by length, and padding bears no noise.

        Args:
            texts: one text, one pair of sentences (a tuple of two), or a list, array or Series of either; inside
                it a list of two is a pair, too.  A text may be token ids, which are read as they are, or the messages
                of a chat, dictionaries with role and content, which the tokenizer's chat template writes.  A DataFrame,
                or what ``data.records(path)`` returns, has its texts in a column with a usual name, such as "text", or
                in the only one of words.  (text, [choice, choice, ...]) is a text with several second ones, each of
                which is read with it in turn: of a model for multiple choice, or, of one with a class "entailment", the
                hypotheses of zero-shot classification; they are its classes.
            layers: "all" of the layers, one label or several (``["all", "output"]``): 1 is the first block,
                "encoder.1" and "decoder.1" those of an encoder-decoder, names those of a plain model; "output" is what
                the model returns (class scores; of a language model, log probabilities of the target).  None is
                "output" with a class or answer as target, with a continuation and for what is erased of a model that
                has one, otherwise "all".  Where the next
                block begins with a normalisation (GPT-2, Llama, T5), a layer's state is what comes out of that;
                "hidden_states.1" is the block's own output.
            target: which output: a class, as a number or by name (a choice, by its text); None is all of them
                together, "each" every one in a row of its own, labelled "output." and its name.  Where the answer is
                a span of the text "start", "end" or "both" of the model's own answer, "each" of them in a row, or with
                the answer in a pair, ("start", "in Paris"): log probabilities of these places.  For a language
                model what it should say next: a continuation (of an encoder-decoder, the decoder's
                text), the id of a token, or (continuation, (first, last character)) for a span of it;
                hidden states are then watched where that is predicted.  None is its own next token, if
                "output" is among the layers.  A list has one for each text.
            positions: None watches a layer at all tokens together, and where a language model has a target (a
                given one, or its own next token), where that is predicted; "all" watches all tokens together in any
                case; a token's index (from the end where negative), several, or "each" watch one token's vector a
                row: the paper's time steps.  Scores of a whole text, and a language model's of its target, have no
                positions.
            neurons: indices into the last dimension of the layers' states (of "output" ``target`` picks).
            heads: attention heads to watch in place of the layers' outputs.
            rate: lambda > 0, the weight of the entropy against the distortion.  A state that saturates at this
                rate, as one token's vector often does, is solved at a tenth or a hundredth of it, as the row's ``rate``
                says.  Nats of different rates do not compare; ``Solver(lower_rate=False)`` keeps one rate for all rows.
            max_sigma: cap on sigma; None: 10 times ``input_std``.
            input_std: tau, the standard deviation of one element of what the noise is added to: the spread that
                information kept is counted against.  None: that of the embedding table; of a noise layer that is no
                table, what the calibration measured there, or else each text's own.
            solver: how hard to look; None: :attr:`usual_solver`.  ``Solver(iterations=0)`` is the closed form alone: 8
                passes (4 of several layers), whose standard errors the rows have; it is exact where E is 1.
            batch_size: texts at most in a batch.
            internal_batch_size: rows at most in one forward and backward; "auto" starts from what suits the
                length and halves when memory runs out.
            truncation: cut off what the model cannot take; otherwise too long a text is an error.
            show_progress: a progress bar over the rows (layers and positions) of the texts, or of generated tokens,
                that moves with every batch of sample passes, with the time left.
            instead_of: what the target is compared with, as ``target``: "Paris" instead of "London".  Of two
                continuations, the first tokens in which they differ are compared, after what they have in common.
            continuation: what follows the one text, a string or token ids: every token of it is a target in turn, seen
                from the text and what stands before it.  The rows of
                "output" have the position of the token that is predicted, those of layers the one before it.
            fixed: tokens that bear no noise, whose information kept is then 0: "special" (marks and a chat's template),
                a role ("system"), a span of characters (start, stop), a compiled regular expression, or a list of
                these.
            units: what shares one scale of noise, or is erased together: "word", "sentence", "paragraph", "message", a
                compiled regular expression, or a list of spans (start, stop), such as the documents of a prompt.  A
                unit's score is the sum over its tokens.
            function: what is watched of the target, a class or a token: "logit" (of a class, where None is given),
                "log_probability" (of a language model, where None is given), "probability", "log_odds" or "margin", the
                score less the largest other one; see :func:`interp_plugin.text.models.watched`.  On SmolLM2's next
                tokens all five converge with E of 1 and seeds that agree by .998 and more; "margin" takes the fewest
                passes.  With ``instead_of`` logarithms of probabilities differ as scores do.
            score: "kept" learns noise, and says how precisely a state knows each token; "erased" learns erasures, and
                says which tokens carry it: what is lost with a token of the log-odds of a class (without a target, of
                the predicted one), of a language model's log probability of its target, or in D of a layer.  That
                is the mean loss while other tokens are erased too: on SmolLM2 scores agree by .7 (rank correlation)
                with brute force over masks of the same probabilities, and by .2 with leaving one token out of the
                whole text, with which brute force agrees by .3 there and by .97 where 5 % are erased.  Special tokens
                are never erased; the mask token stands for erased ones, the mean of the embedding table where there is
                none.
            side, ways, passes: of the erasures, as in :meth:`InformationErased.attribute`; ``solver`` gives the seed.
                Of classes that do not exclude one another the log-odds are each one's own.
                ways None is "mask", and of a decoder's target "delete": it has no mask token, and what stands for one
                misleads it (rank correlations with leaving tokens out: see tests/benchmarks/language_models.py).
            is_split_into_words: a text is a list of words, and of a pair each is: as tokenizers have it, for a list of
                strings is a list of texts otherwise.  The words of the result are these.
            forward_args: further arguments of the forward of a model of Hugging Face, by name (token_type_ids, langs,
                bbox): a number for all texts, or of one text its value, and of a list of texts a list with one for
                each.  A text's value is a number for all its tokens, or has one for each of them, special ones too, or
                for each word of a text that is split into words (special tokens then get zeros); anything else is an
                argument of the text as a whole.

        Raises:
            ValueError: a layer, target, position or head that is not there, an empty or too long text,
                a tokenizer that does not fit, an argument that the forward does not take.
            TypeError: texts that are not strings.
        """
        start = time.perf_counter()
        if not isinstance(solver, Solver | None):
            raise TypeError(f"solver is a {type(solver).__name__}; give a Solver, or None for the usual one")
        warn_of_training(self.model.module, stacklevel=3)
        _check_sizes(batch_size, internal_batch_size)
        check_function(function)
        if continuation is not None and (target is not None or instead_of is not None):
            raise ValueError("continuation and target are both what follows the text; give one of them")
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
        """An explainer whose model takes these arguments, and the arguments of each text."""
        if not forward_args:
            return self, [{}] * count
        if not isinstance(forward_args, Mapping):
            raise ValueError(f"forward_args is {forward_args!r}; give a dictionary of arguments by name")
        if not isinstance(self.model, huggingface.HuggingFaceModel):
            raise ValueError(
                f"forward_args are arguments of a model of Hugging Face, and {self.model.name} is none; leave them out"
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
        """Generate a continuation of a text, and explain which earlier tokens each generated token rests on.

        Args:
            text: the prompt, or the messages of a chat.
            max_new_tokens: of them at most.
            generation: options of the model's own ``generate``; None: greedily.
            options: of :meth:`explain`, which this is with what was generated as the ``continuation``.

        Raises:
            ValueError: a model that is no language model.
        """
        model = self.model
        if not isinstance(model, huggingface.HuggingFaceModel) or model.task != "next token":
            raise ValueError(f"{model.name} is no language model: it generates no text; give one")
        [(prompt, pair)] = the_only(read_texts(text))
        if pair is not None:
            raise ValueError("text is a pair of sentences; give one prompt")
        ids = model.generate(prompt, max_new_tokens, **(generation or {}))
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
        """The layers explained where the caller names none."""
        of_class = target is not None and self.model.task != "next token"
        has_output = continuation is not None or of_class or score == "erased"
        return OUTPUT if has_output and self.model.task != "none" else "all"

    def _usual_ways(self, labels: Sequence[Label]) -> tuple[Way, ...]:
        """The ways to erase where the caller names none; a state with positions needs all tokens in place."""
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
        """What computes the rows; None: the solver."""
        if score not in ("kept", "erased"):
            raise ValueError(f"score is {score!r}; choose 'kept' or 'erased'")
        if score == "kept":
            scoring.check_unused(side, ways)
            return None
        ways = self._usual_ways(labels) if ways is None else ways
        if "delete" in ways and self.model.task == "answer span":
            raise ValueError(
                f"ways is {list(ways)}: an answer's place would move where tokens are deleted; use 'mask' or "
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
        """The plan of :meth:`explain`, for callers of :func:`scoring.score`.

        Args:
            layers, rate, max_sigma, input_std, solver: as in :meth:`explain`.

        Raises:
            ValueError: a layer that is not there, or that the calibration does not have.
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
            labels = [label for label in labels if label != OUTPUT]  # of each text another number of scores
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
                        values = values.float().log_softmax(-1).amax(-1)  # each place's own next token
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
            solver=self.usual_solver if solver is None else solver,
            input_std=input_std,
        )

    def _input_std(self) -> float | None:
        """tau of the noise layer: of its embedding table, or as calibrated; None: each text has its own."""
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
                            f"instead_of is {foil!r} and there is no target; give the target that it is compared with"
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
        """The settings that the numbers of a plan depend on."""
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
    """Return a TextModel as it is; wrap a model of Hugging Face with its tokenizer."""
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
    """The noise layer, given as a module, by its dotted name, or left to the model."""
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
