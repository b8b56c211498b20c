"""HuggingFaceModel: a model of ``transformers`` with the interface that the text explainer needs."""

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


# Arguments of a forward that users may not set: the text itself, labels, caches, and options of the output.
_RESERVED = {
    "input_ids", "attention_mask", "inputs_embeds", "decoder_input_ids", "decoder_inputs_embeds",
    "decoder_attention_mask", "labels", "start_positions", "end_positions", "past_key_values", "use_cache",
    "cache_position", "return_dict", "output_attentions", "output_hidden_states", "encoder_outputs", "logits_to_keep",
    "kwargs", "args",
}  # fmt: skip
CHOICES = "choices"  # last argument of a call whose texts have several choices, (B, C)


def predicted_class(model: PreTrainedModel, logits: Tensor) -> tuple[str, float]:
    """Return the name and probability of the likeliest class: softmax, or sigmoid for multi-label classifiers.

    Args:
        logits: logits of one text, shape (C,).

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
            The model is not changed.  A pipeline, DataParallel, CrossEncoder or PEFT adapter is unwrapped.
        tokenizer: the tokenizer that the model was trained with.

    Attributes:
        embedding: the word embeddings (of the encoder, in an encoder-decoder), to which noise is added.
        layers: the blocks by label: 1, 2, ... or "encoder.1", ..., "decoder.1", ... .  The output of a layer is the
            output of its block.  In models that normalise the last block's output (GPT-2, Llama, T5, ModernBERT) it
            differs from the last of ``hidden_states``, which is normalised.
        states: where the state of each layer is read, by label.  In a pre-norm model (GPT-2, Llama, T5) it is the
            normalised input of the next block, and for the last layer the output of the final norm: one dimension of
            one token can make up 99 % of a block's own output (a massive activation; Sun et al., 2024) and would
            alone determine the distortion.  In a post-norm model (BERT) it is the block's output.
            "hidden_states.1" and so on are the blocks' own outputs, in every model.
        axis: which tokens dimension 1 of a layer's output (and of "output") runs over.
        module: the model.
        task: what a call returns (see below).
        name: the model's name or path, or else its class.

    A call with the arguments from ``collate`` returns (B, C) for sequence classes and choices, (B, T, C) for token
    classes and masked tokens, (B, 2, T) for the first and the last token of an answer, (B, T, V) for the next token (T
    is the decoder's length in an encoder-decoder), and the last hidden state (B, T, H) for a model without a head.

    Raises:
        TypeError: model or tokenizer is of another type.
        ValueError: word embeddings or blocks are not found, or the output of the model is of an unknown kind.

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
    """Dimension 1 of every layer's state runs over exactly the tokens of its axis."""

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
        self._extra_names: tuple[str, ...] = ()  # further arguments, given with the texts
        self.pads = architectures.keeps_padding_out(self._base)
        self._head = outputs.head_of(self._base, self._names, self.device)
        self.task: Task = self._head.task

    @cached_property
    def states(self) -> Mapping[Label, LayerCall]:
        """See the class; found by a forward on two tokens."""
        ids = torch.arange(2, device=self.device).unsqueeze(0)
        inputs = {name: torch.ones_like(ids) if name == "attention_mask" else ids for name in self._names}
        body = getattr(self._base, "base_model", self._base)  # heads may need more than two tokens
        norms = architectures.input_norms(body, self._blocks, lambda: outputs.run(body, inputs))
        read = {label: self._viewed(site, label) for label, site in norms.items()}
        hidden: dict[Label, LayerCall] = {f"{HIDDEN}{label}": site for label, site in self.layers.items()}
        return {**self.layers, **read, **hidden}

    def taking(self, names: Iterable[str]) -> HuggingFaceModel:
        """Return a copy that passes further arguments to the forward; encodings hold them in ``extra``.

        Raises:
            ValueError: the forward has no such argument, or it is reserved for the explainer.
        """
        known = architectures.forward_names(self._base) - _RESERVED
        for name in names:
            if name not in known:
                raise ValueError(
                    f"{name!r} is no argument that {type(self._base).__name__} takes with a text; it takes "
                    f"{listed(sorted(known))}"
                )
        other = copy(self)
        other._extra_names = tuple(name for name in names if name not in self._names)
        return other

    @property
    def device(self) -> torch.device:
        """Device of the word embeddings, to which inputs are moved."""
        return device_of(self.embedding.layer)

    @property
    def vocabulary(self) -> int:
        """Size of a language model's vocabulary; 0 for other models."""
        return self._vocabulary().size if self.task == "next token" else 0

    @property
    def exclusive(self) -> bool:
        """Whether classes exclude each other (softmax); otherwise each has its own probability (sigmoid)."""
        return getattr(self.model.config, "problem_type", None) != "multi_label_classification"

    @property
    def pad_id(self) -> int:
        """The padding token, or any other token: padding is masked."""
        if self._offset is not None:  # RoBERTa computes positions from the ids that are not the padding id
            return self._offset - 1
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(int(i) for i in ids if i is not None and i < self._vocabulary().size)

    @property
    def mask_id(self) -> int | None:
        """The mask token, or else the unknown token, or else None."""
        ids = (self.tokenizer.mask_token_id, self.tokenizer.unk_token_id)
        return next((int(i) for i in ids if i is not None and i < self._vocabulary().size), None)

    @property
    def limit(self) -> int:
        """Largest number of tokens, special tokens included."""
        prompt = architectures.prompt_of(self.model)  # its virtual tokens count, too
        limit = architectures.token_limit(self._base, self.tokenizer)
        return limit if prompt is None else limit - int(prompt.num_virtual_tokens)

    def encode(
        self, text: Source, pair: Second = None, *, target: Target = None, truncation: bool = False
    ) -> Encoding:
        """Tokenize one text (or a pair of texts).

        Args:
            text: a string; token ids, which are used unchanged; or the messages of a chat, which are formatted with
                the tokenizer's chat template, special tokens included.
            pair: a second text, read together with the first; or choices, each of which is read together with the
                first text, for models for multiple choice or pair classifiers with a class "entailment".
            target: for language models, the tokens whose prediction is explained; other models ignore it.
                A string: the tokens of this continuation (for an encoder-decoder, of the decoder's text); include a
                leading space if needed.  ``(continuation, (start, stop))``: only its tokens at these characters.
                An int: this token id, as the next token.  None: no target.
                For answer spans: "start", "end" or "both" of the model's own answer, or a pair of one of these and an
                answer, which is a string or the characters (start, stop) of the text (of its pair, if there is one).
            truncation: cut a text that is too long, on the tokenizer's truncation side.

        Raises:
            TypeError: text, pair or target is of another type.
            ValueError: a text of special tokens only, or one that is too long; a target that is not in the text; ids
                without an embedding.
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
        encode = self._encoder()
        if has_choices:
            choices = cast(Sequence[str], pair)
            if not choices:
                raise ValueError("there are 0 choices; give one or more")
            if self._head.reads != "choices":
                outputs.entailment(self.model.config)
            return with_choices([encode(text, choice, None, truncation) for choice in choices], choices)
        second = cast("str | None", pair)
        if self.task == "answer span":
            return outputs.with_answer(encode(text, second, None, truncation), target)
        return encode(text, second, target, truncation)

    def steps(self, text: Source, continuation: str | Sequence[int]) -> tuple[Encoding, list[Encoding]]:
        """Encode a text with its continuation, and one text for each token of the continuation as the target."""
        return self._encoder().steps(text, continuation)

    @torch.no_grad()
    def generate(self, text: Source, max_new_tokens: int, **options: Any) -> tuple[int, ...]:
        """Generate token ids after a text, greedily unless ``options`` of ``generate`` say otherwise.

        Raises:
            ValueError: the model is not a language model, or has too few positions for so many tokens; or more than
                one continuation is asked for.
        """
        if self.task != "next token":
            raise ValueError(f"{self.name} cannot generate text; give a language model")
        config = options.get("generation_config") or self.model.generation_config
        count = options.get("num_return_sequences") or getattr(config, "num_return_sequences", None) or 1
        if count > 1:
            raise ValueError(
                f"num_return_sequences is {count}, and one continuation is explained in a call; leave it out, and call "
                "once for each"
            )
        inputs = {"do_sample": False, "pad_token_id": self.pad_id, **options}
        ids = torch.tensor([self.encode(text).ids], device=self.device)
        start = len(self._decoder_start()) if self._has_decoder else ids.shape[1]
        room = self.limit - start + self._has_decoder  # the last token of a decoder is not an input
        refused = ValueError(
            f"max_new_tokens is {max_new_tokens}, and the model has positions for {room} tokens after the "
            f"{start} that it begins with: the model takes at most {self.limit}; give fewer"
        )
        if room < 1:
            raise refused
        found = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=min(max_new_tokens, room),
            **inputs,
        )
        sequences = getattr(found, "sequences", found)  # an attribute with return_dict_in_generate
        new = tuple(sequences[0, start:].tolist())
        if max_new_tokens > room and not self._ends & set(new):
            raise refused
        return new

    @property
    def _ends(self) -> set[Any]:
        """The ids of the tokens that end a generated text."""
        ends: Any = getattr(self.model.generation_config, "eos_token_id", None)
        return set(ends) if isinstance(ends, (list, tuple)) else {ends}

    def collate(self, encodings: Sequence[Encoding]) -> tuple[tuple[Tensor, ...], Tensor]:
        """Pad several texts to one batch, on the model's device.

        Padding is on the right, whatever the tokenizer's side: noise samples belong to columns, and a text must get
        the same samples alone and in a batch.

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
        names = (*self._names, *self._extra_names)
        for name in names:
            if all(name in encoding.extra for encoding in encodings):
                fill = pad if name == "decoder_input_ids" else 0
                rows = [encoding.extra[name] for encoding in encodings]
                architectures.check_rows(self._base, name, rows)
                columns[name] = self._padded(rows, fill)
        return tuple(columns[name] for name in names), mask.bool()

    def _collated_choices(self, encodings: Sequence[Encoding]) -> tuple[tuple[Tensor, ...], Tensor]:
        """As ``collate``: choices padded to the longest and concatenated, (B, C * T); last argument: ones, (B, C)."""
        counts = {len(encoding.choices) for encoding in encodings}
        if len(counts) > 1:
            raise ValueError(
                f"the texts of a batch have {sorted(counts)} choices; give texts with equal numbers of choices"
            )
        [count] = counts
        separate = [
            encoding.only([choice == number for choice in encoding.extra["choice"]]).without_choices
            for encoding in encodings
            for number in range(count)
        ]
        if not self.pads and len({len(encoding.ids) for encoding in separate}) > 1:
            lengths = sorted({len(encoding.ids) for encoding in separate})
            raise ValueError(
                f"{self.name} does not mask padding, and the choices have {lengths} tokens; give choices of one "
                "length, or each as a second text"
            )
        arguments, mask = self.collate(separate)
        flat = [value.unflatten(0, (-1, count)).flatten(1, 2) for value in (*arguments, mask)]
        return (*flat[:-1], flat[0].new_ones(len(encodings), count)), flat[-1]

    def __call__(self, *arguments: Tensor) -> Tensor:
        """Return logits or the last hidden state; see the class."""
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
        """Return a language model's logits at some positions of each row, (R, n, V); places is (R, n).

        If the model supports it (``logits_to_keep``), the head is run at these positions only; the head has a fifth of
        the weights of a small model.
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
        """Return the attention weights of each block, (R, heads, T, T) each; arguments as in a call.

        They are computed with eager attention, whatever kernel the model uses.

        Raises:
            ValueError: an encoder-decoder, a model with virtual tokens, or one that returns no weights.
        """
        if architectures.prompt_of(self.model) is not None:
            raise ValueError(
                f"{self.name} also attends to the virtual tokens of {type(self.model).__name__}, which are not part of "
                "the text; use another method"
            )
        return outputs.attention_weights(self.model, self._named(arguments))

    def value_site(self, label: Label) -> tuple[LayerCall, int] | None:
        """Return where a layer's self-attention computes its value vectors: (B, T, parts * width), the last part.

        Returns:
            The site and the number of parts (3 if queries and keys come first); None if it is not known.
        """
        block = self._block(label)
        return None if self._kind(label) else architectures.value_site(block)

    def class_index(self, target: int | str) -> int:
        """Return the index of a class (or of a token, if the classes are tokens) given by its label or index.

        Raises:
            TypeError: the target is neither an int nor a string.
            ValueError: there is no such class.
        """
        return self._classes().index(target)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Labels of all classes; None if they are tokens."""
        known = self._classes()
        return known.names if isinstance(known, Labels) else None

    def class_name(self, index: int) -> str:
        """Return the label of a class; the token itself, if the classes are tokens."""
        return self._classes().name(index)

    def predicted(self, logits: Tensor) -> tuple[str, float] | None:
        """Return the name and probability of the likeliest class (sequence classes) or token (next token).

        Args:
            logits: logits of one text (at one position, for a language model), (C,) or (V,).

        Returns:
            None if there is no single answer: a regression head, classes for every token, a bare model.
        """
        is_one_of = self.task in ("sequence classes", "next token") and logits.ndim == 1 and len(logits) > 1
        if not is_one_of or getattr(self.model.config, "problem_type", None) == "regression":
            return None
        if self.task == "next token" or self._head.names:
            index, probability = likeliest(logits)
            return self.class_name(index), probability
        return predicted_class(self.model, logits)

    def head_site(self, label: Label) -> tuple[LayerCall, int, int] | None:
        """Return where the heads of a layer's self-attention are concatenated, (B, T, heads * width).

        Returns:
            The site, the number of heads and the width of each; None if they are not known.
        """
        site = architectures.head_site(self._block(label))
        width = None if site is None else architectures.heads_width(site)
        number = architectures.attention_heads(self._base, label)
        if site is None or not number or not width or width % number:
            return None
        return self._viewed(site, label), number, width // number

    def target_name(self, encoding: Encoding) -> str:
        """Return the target tokens as text."""
        if self.task == "answer span":
            return outputs.name_of_answer(encoding)
        return str(self.tokenizer.decode(list(encoding.target)))

    def _named(self, arguments: Sequence[Tensor]) -> dict[str, Tensor]:
        names = (*self._names, *self._extra_names)
        if len(arguments) == len(names) + 1 and self.task == "sequence classes":
            names = (*names, CHOICES)
        if len(arguments) != len(names):
            raise TypeError(
                f"{len(arguments)} arguments are given: the model takes {', '.join(names)}; use those from collate"
            )
        return dict(zip(names, arguments, strict=True))

    def _block(self, layer: Label) -> LayerCall:
        if layer not in self._blocks:
            names = listed(list(self._blocks))
            raise ValueError(f"layer {layer!r} does not exist: the model has {names}; choose one of them")
        return self._blocks[layer]

    def _embedding(self) -> LayerCall:
        """Return the module to whose output noise is added: the one that PEFT's prompts call, or the model's own."""
        table = getattr(self.model, "word_embeddings", None) if self._virtual["input"] else None
        table = architectures.word_embedding(self._base) if table is None else table
        if not (architectures.pads_to_windows(self._base) and isinstance(table, nn.Embedding)):
            return LayerCall(table)
        view = EmbeddingView(table)
        self._views[view.site] = view
        return LayerCall(view)

    def _kind(self, label: Label) -> Kind | None:
        """Return the layout of a block's output if dimension 1 does not run over exactly the tokens."""
        kind = architectures.view_of_states(self._base, label)
        if not self._virtual[self.axis[label]]:
            return kind
        if kind is not None:
            raise ValueError(
                f"{type(self.model).__name__} puts virtual tokens before the text, and "
                f"{type(self._base).__name__} adds positions of its own: which ones belong to the text is not known; "
                "give the base model"
            )
        return "tokens at the end"

    def _viewed(self, site: LayerCall, label: Label) -> LayerCall:
        """Return a site whose output has the tokens in dimension 1: the given site or a view of it."""
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
        """Return the first decoder tokens: the start token and, if forced in generation (BART), the next one."""
        start = self._setting("decoder_start_token_id")
        start = self._setting("bos_token_id") if start is None else start
        if start is None:
            raise ValueError(
                f"{type(self._base).__name__} has no start token for its decoder: config.decoder_start_token_id "
                "is None; set it to the token id that the model was trained with"
            )
        forced = self._setting("forced_bos_token_id")
        return (start,) if forced is None else (start, forced)

    def _setting(self, name: str) -> int | None:
        """Return a token id from the configuration or the generation configuration."""
        for config in (self._base.config, getattr(self._base, "generation_config", None)):
            value = getattr(config, name, None)
            if value is not None:
                return int(value[0] if isinstance(value, (list, tuple)) else value)
        return None

    def _padded(self, rows: Sequence[Sequence[Any]], fill: int) -> Tensor:
        """Pad rows of numbers, or of lists of numbers (boxes), with ``fill`` to the longest, (R, T, ...)."""
        tensors = [torch.tensor(row) for row in rows]
        return nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=fill).to(self.device)

    # -- the model

    def _argument_names(self) -> tuple[str, ...]:
        taken = architectures.forward_names(self._base)
        if self._base is not self.model:
            taken &= architectures.names_kept(self.model)
        names = ["input_ids", "attention_mask"]
        types = getattr(architectures.text_config(self._base), "type_vocab_size", 0) or 0
        returned = "token_type_ids" in self.tokenizer.model_input_names
        if types > 1 and returned and "token_type_ids" in taken:  # GPT-2 looks them up among its words
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
