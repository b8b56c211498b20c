"""A model of ``transformers`` as the text explainer uses it: feed it texts, watch its layers, read its answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from interp_plugin.huggingface import architectures, outputs
from interp_plugin.huggingface.architectures import EmbeddingView, Kind, View, showing
from interp_plugin.huggingface.outputs import Labels, Vocabulary, label_names, likeliest, listed, with_choices
from interp_plugin.huggingface.tokenization import Encoder, Reading
from interp_plugin.method.perturbation import LayerCall, device_of
from interp_plugin.text.models import (
    HIDDEN,
    OUTPUT,
    Axis,
    Encoding,
    Label,
    Second,
    Source,
    Target,
    Task,
    Words,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


# What a forward takes beside a text's own arguments: the text itself, and what a call asks for or has computed.
_NOT_GIVEN = {
    "input_ids", "attention_mask", "inputs_embeds", "decoder_input_ids", "decoder_inputs_embeds",
    "decoder_attention_mask", "labels", "start_positions", "end_positions", "past_key_values", "use_cache",
    "cache_position", "return_dict", "output_attentions", "output_hidden_states", "encoder_outputs", "logits_to_keep",
    "kwargs", "args",
}  # fmt: skip
CHOICES = "choices"  # the last argument of a call where there are several for each text, (B, C)


def predicted_class(model: PreTrainedModel, logits: Tensor) -> tuple[str, float]:
    """Name and probability of the likeliest class: softmax, or sigmoid where labels do not exclude each other.

    Args:
        logits: of one text, shape (C,).

    Raises:
        ValueError: fewer than two classes, as in a regression head.
    """
    if len(logits) < 2:
        raise ValueError(
            f"the model has {len(logits)} output: a classifier has at least 2; give a classifier"
        )
    many = getattr(model.config, "problem_type", None) == "multi_label_classification"
    index, probability = likeliest(logits, exclusive=not many)
    return label_names(model.config, len(logits))[index], probability


class HuggingFaceModel:
    """A model of ``transformers`` and its tokenizer, as one :class:`~interp_plugin.text.models.TextModel`.

    Args:
        model: an encoder, decoder or encoder-decoder: bare, or with a head for sequence classes, token
            classes, masked tokens, the next token, the next sentence, multiple choice or an answer in the text.
            It is used as it is: nothing on it changes.
            Of a pipeline, DataParallel, a CrossEncoder and PEFT's adapters the model inside is used.
        tokenizer: the one that the model was trained with.

    Attributes:
        embedding: the word embeddings (the encoder's, of an encoder-decoder), where noise enters.
        layers: the blocks by label: 1, 2, ... or "encoder.1", ..., "decoder.1", ... .  A layer's output is
            its block's: where the model normalises the last block's output once more (GPT-2, Llama, T5,
            ModernBERT), the last of its ``hidden_states`` is the normalised one.
        states: where the state of each layer is read, by label.  Of a pre-norm model (GPT-2, Llama, T5) that is what
            the next block reads: its input norm's output, and the final norm's for the last layer.  There one
            dimension of one token holds up to 99 % of a block's own output (a massive activation; Sun et al., 2024),
            so that noise would be measured by it alone.  Of a post-norm model (BERT) it is the block's output.
            "hidden_states.1" and so on are the blocks' own outputs, of every model.
        axis: which tokens dimension 1 of a layer's output (and of "output") runs over.
        module: the model.
        task: what a call returns (below).
        name: the model's name or path; its class where it has none.

    Calling it with what ``collate`` gave returns (B, C) for sequence classes and choices, (B, T, C) for token classes
    and masked tokens, (B, 2, T) for the first and the last token of an answer, (B, T, V) for the next token (T is the
    decoder's length in an encoder-decoder), and the last hidden state (B, T, H) for a model without a head.

    Raises:
        TypeError: model or tokenizer is something else.
        ValueError: no word embeddings or blocks are found, or what the model gives out is not known.

    Examples::
        >>> from interp_plugin.huggingface import default_model_path, load
        >>> model = HuggingFaceModel(*load(default_model_path()))
        >>> encoding = model.encode("A good film!")
        >>> encoding.tokens, encoding.offsets[2]
        (('[CLS]', 'a', 'good', 'film', '!', '[SEP]'), (0, 2, 6))
        >>> arguments, token_mask = model.collate([encoding, model.encode("Bad.")])
        >>> token_mask.sum(1).tolist(), model.task, model(*arguments).shape
        ([6, 4], 'sequence classes', torch.Size([2, 2]))
    """

    tokens_first = True
    """The state of every layer has the tokens of its axis, and no other places, in dimension 1."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        name = architectures.adapter_name(model)
        model, tokenizer = architectures.unwrapped(model, tokenizer)
        architectures.check_parts(model, tokenizer)
        self.model = model
        self.module: nn.Module = model
        self.tokenizer = tokenizer
        self._base: PreTrainedModel = architectures.base_of(model)
        self._virtual = architectures.virtual_tokens(model)
        self.name = architectures.name_of(model) + name
        self._has_decoder = architectures.is_encoder_decoder(self._base)
        self._offset = architectures.padding_offset(self._base)
        self._views: dict[LayerCall, View | EmbeddingView] = {}
        self.embedding = self._embedding()
        self._blocks: Mapping[Label, LayerCall] = architectures.layer_calls(self._base)
        labels = (*self._blocks, *(f"{HIDDEN}{label}" for label in self._blocks), OUTPUT)
        self.axis: Mapping[Label, Axis] = {label: self._axis_of(label) for label in labels}
        self.layers: Mapping[Label, LayerCall] = {
            label: self._viewed(block, label) for label, block in self._blocks.items()
        }
        self._names = self._argument_names()
        self._given: tuple[str, ...] = ()  # further arguments that texts come with
        self.pads = architectures.keeps_padding_out(self._base)
        self._head = outputs.head_of(self._base, self._names, self.device)
        self.task: Task = self._head.task

    @cached_property
    def states(self) -> Mapping[Label, LayerCall]:
        """See the class; found by a forward of two tokens."""
        ids = torch.arange(2, device=self.device).unsqueeze(0)
        inputs = {name: torch.ones_like(ids) if name == "attention_mask" else ids for name in self._names}
        body = getattr(self._base, "base_model", self._base)  # heads may ask for more than two tokens
        norms = architectures.input_norms(body, self._blocks, lambda: outputs.run(body, inputs))
        read = {label: self._viewed(site, label) for label, site in norms.items()}
        hidden: dict[Label, LayerCall] = {f"{HIDDEN}{label}": site for label, site in self.layers.items()}
        return {**self.layers, **read, **hidden}

    def taking(self, names: Iterable[str]) -> HuggingFaceModel:
        """The same model with further arguments of its forward, which encodings then have as ``extra``.

        Raises:
            ValueError: its forward takes no such argument, or only the explainer may give it.
        """
        known = architectures.forward_names(self._base) - _NOT_GIVEN
        for name in names:
            if name not in known:
                raise ValueError(
                    f"{name!r} is no argument that {type(self._base).__name__} takes with a text; it takes "
                    f"{listed(sorted(known))}"
                )
        other = copy(self)
        other._given = tuple(name for name in names if name not in self._names)
        return other

    @property
    def device(self) -> torch.device:
        """Where the word embeddings are, which is where inputs go."""
        return device_of(self.embedding.layer)

    @property
    def vocabulary(self) -> int:
        """Scores of a language model for each place; 0 of others."""
        return self._vocabulary().size if self.task == "next token" else 0

    @property
    def exclusive(self) -> bool:
        """Whether a text has one of the classes; otherwise each of them has a probability of its own."""
        return getattr(self.model.config, "problem_type", None) != "multi_label_classification"

    @property
    def pad_id(self) -> int:
        """The padding token, or any other: what stands at padding is masked."""
        if self._offset is not None:  # RoBERTa counts the positions of all other ids
            return self._offset - 1
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(int(i) for i in ids if i is not None and i < self._vocabulary().size)

    @property
    def mask_id(self) -> int | None:
        """The token that stands for a hidden word; the unknown one where there is none, None without either."""
        ids = (self.tokenizer.mask_token_id, self.tokenizer.unk_token_id)
        return next((int(i) for i in ids if i is not None and i < self._vocabulary().size), None)

    @property
    def limit(self) -> int:
        """The most tokens, special ones included."""
        prompt = architectures.prompt_of(self.model)  # whose virtual tokens take places, too
        limit = architectures.token_limit(self._base, self.tokenizer)
        return limit if prompt is None else limit - int(prompt.num_virtual_tokens)

    def encode(
        self, text: Source, pair: Second = None, *, target: Target = None, truncation: bool = False
    ) -> Encoding:
        """One text (or a pair of texts) as the model reads it.

        Args:
            text: a string; token ids, which are read as they are; or the messages of a chat, which the tokenizer's chat
                template writes, special tokens included.
            pair: a second text, read together with the first; or choices, each of which is read with it in turn, by a
                model for multiple choice, or one that classifies pairs and has a class "entailment".
            target: for language models, what the output is asked about; others do not look at it.
                A string: the tokens of this continuation, begun with a space where one belongs (for an
                encoder-decoder: of the decoder's text).  ``(continuation, (start, stop))``: only those of
                its tokens that stand on these characters.  An int: this token id, as the next one.
                None: nothing yet.
                Where the answer is a span of the text: "start", "end" or "both" of the model's own answer, or a pair
                of one of these and an answer, a string or the characters (start, stop) of the text (or of its pair).
            truncation: cut a text that is too long off, on the tokenizer's truncation side.

        Raises:
            TypeError: text, pair or target is of another type.
            ValueError: nothing but special tokens; longer than the model takes; a target that is not
                there; ids that the model has no embedding for.
        """
        is_list = isinstance(pair, (list, tuple)) and not isinstance(pair, Words)
        has_choices = is_list and self.task == "sequence classes"
        if self._head.reads == "choices" and not has_choices:
            raise ValueError(
                f"{self.name} chooses among several second texts; give (text, [choice, choice, ...]), on the command "
                "line --choices"
            )
        if self._head.reads == "pair" and pair is None:
            raise ValueError(
                f"{self.name} compares two sentences; give a pair (first, second), on the command line --pairs"
            )
        read = self._encoder()
        if has_choices:
            choices = cast(Sequence[str], pair)
            if not choices:
                raise ValueError("there are 0 choices; give one or more")
            if self._head.reads != "choices":
                outputs.entailment(self.model.config)
            return with_choices([read(text, choice, None, truncation) for choice in choices], choices)
        second = cast("str | None", pair)
        if self.task == "answer span":
            return outputs.asked_answer(read(text, second, None, truncation), target)
        return read(text, second, target, truncation)

    def steps(self, text: Source, continuation: str | Sequence[int]) -> tuple[Encoding, list[Encoding]]:
        """A text with what follows it, and one text for each token of that, as its target."""
        return self._encoder().steps(text, continuation)

    @torch.no_grad()
    def generate(self, text: Source, max_new_tokens: int, **options: Any) -> tuple[int, ...]:
        """The ids that the model generates after a text, greedily unless ``options`` of ``generate`` say otherwise."""
        if self.task != "next token":
            raise ValueError(f"{self.name} is no language model: it generates no text; give one")
        inputs = {"do_sample": False, "pad_token_id": self.pad_id, **options}
        ids = torch.tensor([self.encode(text).ids], device=self.device)
        found = self.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, **inputs
        )
        start = len(self._decoder_start()) if self._has_decoder else ids.shape[1]
        return tuple(found[0, start:].tolist())

    def collate(self, encodings: Sequence[Encoding]) -> tuple[tuple[Tensor, ...], Tensor]:
        """Several texts as one batch, on the model's device.

        Padding goes to the right, whatever the tokenizer's side: the draws of noise belong to columns, and
        a text must have the same ones alone and in a batch.

        Returns:
            The arguments of a call, ids first, each (B, T) (the decoder's ids (B, T_decoder)); and
            token_mask, (B, T), false at padding.
        """
        if not encodings:
            raise ValueError("there are 0 encodings to collate; give at least one")
        if encodings[0].choices:
            return self._collated_choices(encodings)
        pad = self.pad_id
        mask = self._padded([(1,) * len(encoding.ids) for encoding in encodings], 0)
        columns: dict[str, Tensor] = {
            "input_ids": self._padded([encoding.ids for encoding in encodings], pad),
            "attention_mask": mask,
            "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
        }
        names = (*self._names, *self._given)
        for name in names:
            if all(name in encoding.extra for encoding in encodings):
                fill = pad if name == "decoder_input_ids" else 0
                rows = [encoding.extra[name] for encoding in encodings]
                architectures.check_rows(self._base, name, rows)
                columns[name] = self._padded(rows, fill)
        return tuple(columns[name] for name in names), mask.bool()

    def _collated_choices(self, encodings: Sequence[Encoding]) -> tuple[tuple[Tensor, ...], Tensor]:
        """As ``collate``: every choice padded to the longest, one after another, (B, C * T); and ones, (B, C)."""
        counts = {len(encoding.choices) for encoding in encodings}
        if len(counts) > 1:
            raise ValueError(
                f"the texts of a batch have {sorted(counts)} choices; give texts with as many each"
            )
        [count] = counts
        apart = [
            encoding.only([choice == number for choice in encoding.extra["choice"]]).without_choices
            for encoding in encodings
            for number in range(count)
        ]
        if not self.pads and len({len(encoding.ids) for encoding in apart}) > 1:
            raise ValueError(
                f"{self.name} does not keep padding out, and the choices have {sorted({len(e.ids) for e in apart})} "
                "tokens; give choices of one length, or each as a second text"
            )
        arguments, mask = self.collate(apart)
        flat = [value.unflatten(0, (-1, count)).flatten(1, 2) for value in (*arguments, mask)]
        return (*flat[:-1], flat[0].new_ones(len(encodings), count)), flat[-1]

    def __call__(self, *arguments: Tensor) -> Tensor:
        """Logits, or the last hidden state; see the class."""
        inputs = self._named(arguments)
        if CHOICES in inputs:
            count = inputs.pop(CHOICES).shape[1]
            length = inputs["input_ids"].shape[1] // count
            with showing(self._views.values(), {"input": length, "decoder": length}):
                return outputs.answer_of_choices(self.model, self._base, self._head, inputs, count)
        lengths: dict[Axis, int] = {
            "input": inputs["input_ids"].shape[1],
            "decoder": inputs.get("decoder_input_ids", inputs["input_ids"]).shape[1],
        }
        with showing(self._views.values(), lengths):
            answer = outputs.answer(self.model, self._base, self.task, inputs)
        return answer if self.task == "sequence classes" else answer[:, -lengths[self.axis[OUTPUT]] :]

    def scores_at(self, arguments: Sequence[Tensor], places: Tensor) -> Tensor:
        """A language model's logits at some places of each row only, (R, n, V); places is (R, n).

        Where the model can (``logits_to_keep``), its head is not run at the others: it has a fifth of a small model's
        weights.
        """
        inputs = self._named(arguments)
        taken = self.task == "next token" and "logits_to_keep" in architectures.forward_names(self.model)
        rows = torch.arange(len(places), device=places.device).unsqueeze(1)
        if not taken or self._has_decoder or any(self._virtual.values()):
            answer = self(*arguments)
            return answer[rows.to(answer.device), places.to(answer.device)]
        kept, index = places.to(self.device).unique(return_inverse=True)
        with showing(self._views.values(), {"input": inputs["input_ids"].shape[1], "decoder": 0}):
            answer = outputs.answer(self.model, self._base, self.task, inputs, logits_to_keep=kept)
        return answer[rows.to(answer.device), index.to(answer.device)]

    def attentions(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        """What every token attends to in each block, (R, heads, T, T) each, for arguments as in a call.

        Whatever kernel the model uses, these are the weights of the plain computation.

        Raises:
            ValueError: an encoder-decoder, a model with virtual tokens, or one that gives no weights out.
        """
        if architectures.prompt_of(self.model) is not None:
            raise ValueError(
                f"{self.name} attends to the virtual tokens of {type(self.model).__name__} too, which are no tokens of "
                "the text; use another method"
            )
        return outputs.attention_weights(self.model, self._named(arguments))

    def value_site(self, label: Label) -> tuple[LayerCall, int] | None:
        """Where a layer's self-attention computes its value vectors, (B, T, parts * width), the last part.

        Returns:
            The site and the number of parts (3 where queries and keys stand before them); None where it is not known.
        """
        block = self._block(label)
        return None if self._kind(label) else architectures.value_site(block)

    def class_index(self, target: int | str) -> int:
        """Index of a class given by its label or index; of a token, for models whose classes are tokens.

        Raises:
            TypeError: neither an int nor a string.
            ValueError: there is no such class.
        """
        return self._classes().index(target)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Labels of all classes; None where they are tokens."""
        known = self._classes()
        return known.names if isinstance(known, Labels) else None

    def class_name(self, index: int) -> str:
        """Label of a class; the token itself, for models whose classes are tokens."""
        return self._classes().name(index)

    def predicted(self, logits: Tensor) -> tuple[str, float] | None:
        """Name and probability of the likeliest class (sequence classes) or token (next token).

        Args:
            logits: of one text (and of one position, for a language model): (C,) or (V,).

        Returns:
            None where there is no one answer: a regression head, classes for every token, a bare model.
        """
        is_one_of = self.task in ("sequence classes", "next token") and logits.ndim == 1 and len(logits) > 1
        if not is_one_of or getattr(self.model.config, "problem_type", None) == "regression":
            return None
        if self.task == "next token" or self._head.names:
            index, probability = likeliest(logits)
            return self.class_name(index), probability
        return predicted_class(self.model, logits)

    def head_site(self, label: Label) -> tuple[LayerCall, int, int] | None:
        """Where the heads of a layer's self-attention stand side by side, (B, T, heads * width).

        Returns:
            The site, the number of heads and the width of each; None where they are not known.
        """
        site = architectures.head_site(self._block(label))
        width = None if site is None else architectures.heads_width(site)
        number = architectures.attention_heads(self._base, label)
        if site is None or not number or not width or width % number:
            return None
        return self._viewed(site, label), number, width // number

    def target_name(self, encoding: Encoding) -> str:
        """The tokens that are asked for, as text."""
        if self.task == "answer span":
            return outputs.name_of_answer(encoding)
        return str(self.tokenizer.decode(list(encoding.target)))

    def _named(self, arguments: Sequence[Tensor]) -> dict[str, Tensor]:
        names = (*self._names, *self._given)
        if len(arguments) == len(names) + 1 and self.task == "sequence classes":
            names = (*names, CHOICES)
        if len(arguments) != len(names):
            raise TypeError(
                f"{len(arguments)} arguments are given: the model takes {', '.join(names)}; call collate for them"
            )
        return dict(zip(names, arguments, strict=True))

    def _block(self, layer: Label) -> LayerCall:
        if layer not in self._blocks:
            names = listed(list(self._blocks))
            raise ValueError(f"layer {layer!r} does not exist: the model has {names}; choose one of them")
        return self._blocks[layer]

    def _embedding(self) -> LayerCall:
        """Where noise enters: PEFT's prompts call the table that they found, an encoder its own."""
        table = getattr(self.model, "word_embeddings", None) if self._virtual["input"] else None
        table = architectures.word_embedding(self._base) if table is None else table
        if not (architectures.pads_to_windows(self._base) and isinstance(table, nn.Embedding)):
            return LayerCall(table)
        view = EmbeddingView(table)
        self._views[view.site] = view
        return LayerCall(view)

    def _kind(self, label: Label) -> Kind | None:
        """How the tokens stand in a block's output, where not alone in dimension 1."""
        kind = architectures.view_of_states(self._base, label)
        if not self._virtual[self.axis[label]]:
            return kind
        if kind is not None:
            raise ValueError(
                f"{type(self.model).__name__} puts virtual tokens before the text, and "
                f"{type(self._base).__name__} adds places of its own: which are the text's is not known; give the base "
                "model"
            )
        return "tokens at the end"

    def _viewed(self, site: LayerCall, label: Label) -> LayerCall:
        """A site whose output has the tokens in dimension 1: the given one, or the view of it."""
        kind = self._kind(label)
        if kind is None:
            return site
        return LayerCall(self._views.setdefault(site, View(site, kind, self.axis[label])))

    # -- texts

    def _encoder(self) -> Encoder:
        reading: Reading = "text"
        if self.task == "next token":
            reading = "decoder" if self._has_decoder else "continuation"
        elif self._has_decoder:
            reading = "echo"
        return Encoder(
            self.tokenizer,
            reading,
            self.limit,
            self._vocabulary(),
            with_types="token_type_ids" in self._names,
            start=self._decoder_start() if self._has_decoder else (),
            end=self._setting("eos_token_id") if self.task == "sequence classes" else None,
        )

    def _decoder_start(self) -> tuple[int, ...]:
        """What a decoder begins with: its start token, and the one that generation puts after it (BART)."""
        start = self._setting("decoder_start_token_id")
        start = self._setting("bos_token_id") if start is None else start
        if start is None:
            raise ValueError(
                f"{type(self._base).__name__} does not say what its decoder starts with: config.decoder_start_token_id "
                "is None; set it to the token id that the model was trained with"
            )
        forced = self._setting("forced_bos_token_id")
        return (start,) if forced is None else (start, forced)

    def _setting(self, name: str) -> int | None:
        """A token id from the configuration, or from that of generation."""
        for config in (self._base.config, getattr(self._base, "generation_config", None)):
            value = getattr(config, name, None)
            if value is not None:
                return int(value[0] if isinstance(value, (list, tuple)) else value)
        return None

    def _padded(self, rows: Sequence[Sequence[Any]], fill: int) -> Tensor:
        """Rows of numbers, or of lists of them (of boxes), with ``fill`` up to the longest, (R, T, ...)."""
        tensors = [torch.tensor(row) for row in rows]
        return nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=fill).to(self.device)

    # -- the model

    def _argument_names(self) -> tuple[str, ...]:
        taken = architectures.forward_names(self._base)
        if self._base is not self.model:
            taken &= architectures.names_kept(self.model)
        names = ["input_ids", "attention_mask"]
        types = getattr(architectures.text_config(self._base), "type_vocab_size", 0) or 0
        given = "token_type_ids" in self.tokenizer.model_input_names
        if types > 1 and given and "token_type_ids" in taken:  # GPT-2 would add them as words
            names.append("token_type_ids")
        if "position_ids" in taken and self._offset is None:
            names.append("position_ids")
        if self._has_decoder:
            names.append("decoder_input_ids")
        return tuple(names)

    def _axis_of(self, label: Label) -> Axis:
        ends_in_decoder = label == OUTPUT and self._has_decoder
        in_decoder = str(label).removeprefix(HIDDEN).startswith("decoder.")
        return "decoder" if ends_in_decoder or in_decoder else "input"

    def _vocabulary(self) -> Vocabulary:
        rows = getattr(self.embedding.layer, "num_embeddings", None)
        size = architectures.text_config(self._base).vocab_size if rows is None else rows
        return Vocabulary(self.tokenizer, int(size))

    def _classes(self) -> Labels | Vocabulary:
        if self._head.of_tokens:
            return self._vocabulary()
        if self._head.names:
            return Labels(self._head.names)
        count = getattr(self._base, "num_labels", 0)
        return Labels(label_names(self._base.config, count if isinstance(count, int) else 0))
