"""Models with compiled or offloaded forwards or without gradients, and kinds of outputs of layers."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from test_conformance import BERT, FAST, IDS, MLP, X, hooks, normal, seeded, small_bert, small_mlp, untouched
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.overrides import TorchFunctionMode
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertModel,
    XLNetConfig,
    XLNetModel,
)
from transformers.modeling_outputs import BaseModelOutput

from interp_plugin import (
    InformationLoss,
    LayerCall,
    LayerInformationLoss,
    NeuronInformationLoss,
    TextExplainer,
    huggingface,
)
from interp_plugin.method.perturbation import _RECURRENT, ForwardMode, _as_in_training

EMBEDDING = "bert.embeddings.word_embeddings"


def logits(model: Any) -> Callable[[Tensor], Tensor]:
    return lambda ids: model(ids).logits


def of_bert(model: Any, forward: Callable[..., Any] | None = None) -> Tensor:
    """Sigma of class 1, noise at the word embeddings."""
    layer = model.get_submodule(EMBEDDING)
    fit = LayerInformationLoss(forward or logits(model), layer).fit(IDS, target=1, solver=FAST)
    return fit.sigma


PLAIN = of_bert(BERT)


# Compiled models


def compiled_whole() -> tuple[Any, Any]:
    model = seeded(small_bert)
    return model, torch.compile(model, backend="eager")


def compiled_in_place() -> tuple[Any, Any]:
    model = seeded(small_bert)
    model.compile(backend="aot_eager")
    return model, model


def compiled_forward() -> tuple[Any, Any]:
    model = seeded(small_bert)
    model.forward = torch.compile(model.forward, backend="eager")
    return model, model


def compiled_part() -> tuple[Any, Any]:
    model = seeded(small_bert)
    model.bert.compile(backend="eager")
    return model, model


@pytest.mark.parametrize("make", [compiled_whole, compiled_in_place, compiled_forward, compiled_part])
def test_a_model_that_was_compiled_and_run_gives_what_it_gives_uncompiled(make: Any) -> None:
    model, called = make()
    try:
        with torch.no_grad():
            expected = called(IDS).logits
        torch.testing.assert_close(of_bert(model, logits(called)), PLAIN, rtol=1e-4, atol=0)
        states = LayerInformationLoss(
            logits(called), model.get_submodule(EMBEDDING), model.bert.encoder.layer[0]
        )
        plain = LayerInformationLoss(logits(BERT), BERT.get_submodule(EMBEDDING), BERT.bert.encoder.layer[0])
        torch.testing.assert_close(
            states.fit(IDS, solver=FAST).sigma, plain.fit(IDS, solver=FAST).sigma, rtol=1e-4, atol=0
        )
        assert not hooks(model)
        with (
            torch.no_grad(),
            torch.compiler.set_stance("fail_on_recompile"),
        ):  # the compiled code is still used
            assert torch.equal(called(IDS).logits, expected)
    finally:
        torch.compiler.reset()


@pytest.mark.parametrize("moody", ["noise", "state"])
def test_a_layer_that_is_skipped_under_noise_is_an_error(moody: str) -> None:
    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.noise, self.state, self.left = nn.Linear(5, 5), nn.Linear(5, 5), 1

        def forward(self, x: Tensor) -> Tensor:
            self.left -= 1
            for name in ("noise", "state"):
                x = getattr(self, name)(x) if name != moody or self.left >= 0 else x
            return x

    model = Moody()
    method = LayerInformationLoss(model, model.noise, model.state)
    with pytest.raises(
        ValueError, match=f"the {moody} layer Linear ran once without noise and 0 times with it"
    ):
        method.attribute(X, solver=FAST)
    assert not hooks(model)


# Gradients switched off


def test_no_grad_inside_the_forward_changes_nothing() -> None:
    def switched_off(ids: Tensor) -> Tensor:
        with torch.no_grad():
            return BERT(ids).logits

    with untouched(BERT):
        assert torch.equal(of_bert(BERT, switched_off), PLAIN)
        assert torch.equal(of_bert(BERT, torch.no_grad()(logits(BERT))), PLAIN)

    def for_good(ids: Tensor) -> Tensor:
        torch.set_grad_enabled(False)
        return BERT(ids).logits

    assert torch.equal(of_bert(BERT, for_good), PLAIN)
    assert torch.is_grad_enabled()


def test_inference_mode_inside_the_forward_is_named() -> None:
    def inferred(ids: Tensor) -> Tensor:
        with torch.inference_mode():
            return BERT(ids).logits

    def inside(x: Tensor) -> Tensor:
        with torch.inference_mode():
            hidden = MLP[0](x)
        return MLP[2](hidden.clone())

    with pytest.raises(ValueError, match=r"under torch\.inference_mode"), untouched(BERT):
        of_bert(BERT, inferred)
    with pytest.raises(ValueError, match=r"under torch\.inference_mode"):
        InformationLoss(inside).attribute(X, 0, solver=FAST)


def test_inference_mode_around_the_call_changes_nothing() -> None:
    with torch.inference_mode():
        assert torch.equal(of_bert(BERT), PLAIN)
        method = InformationLoss(MLP)
        found = method.attribute(X.clone(), 0, solver=FAST)
        signed = method.attribute(X.clone(), 0, score="signed", solver=FAST)
    assert torch.equal(found, method.attribute(X, 0, solver=FAST))
    assert torch.equal(signed, method.attribute(X, 0, score="signed", solver=FAST))


# Models that accelerate offloads


def meta(model: nn.Module) -> list[bool]:
    return [p.is_meta for p in model.parameters()]


class WithOwnWeight(nn.Module):
    """A model with a parameter of its own, which is loaded when its forward begins."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.model = small_bert()

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(ids).logits * self.scale


@pytest.mark.parametrize("where", ["cpu", "disk"])
@pytest.mark.parametrize("score", ["loss", "signed"])
def test_an_offloaded_model_gives_what_it_gives_loaded(where: str, score: str, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    plain, model = seeded(WithOwnWeight), seeded(WithOwnWeight)
    if where == "cpu":
        accelerate.cpu_offload(model, torch.device("cpu"))
    else:
        accelerate.disk_offload(model, str(tmp_path), torch.device("cpu"))
    before = meta(model)
    assert any(before)
    results = []
    for each in (plain, model):
        layer = each.model.get_submodule(EMBEDDING)
        method = LayerInformationLoss(each, layer)
        results.append(method.attribute(IDS, 1, score=score, solver=FAST))
        state = LayerInformationLoss(each, layer, each.model.bert.encoder.layer[0])  # left early
        results.append(state.attribute(IDS, solver=FAST))
        assert meta(model) == before
    torch.testing.assert_close(results[:2], results[2:], rtol=1e-5, atol=1e-5)


# Outputs of layers


class Pair(NamedTuple):
    name: str
    hidden: Tensor


@pytest.mark.parametrize(
    "wrap, unwrap",
    [
        (lambda h: BaseModelOutput(last_hidden_state=h), lambda out: out.last_hidden_state),
        (lambda h: {"note": None, "hidden": h}, lambda out: out["hidden"]),
        (lambda h: Pair("first", h), lambda out: out.hidden),
        (lambda h: [(h, None), 3], lambda out: out[0][0]),
    ],
    ids=["ModelOutput", "dict", "named tuple", "nested"],
)
def test_the_first_tensor_of_an_output_is_where_noise_enters_and_the_state_is(wrap: Any, unwrap: Any) -> None:
    class Wrapping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = seeded(small_mlp)

        def forward(self, x: Tensor) -> Any:
            return wrap(self.net(x))

    module, tail = Wrapping(), seeded(lambda: nn.Linear(3, 2))

    def forward(x: Tensor) -> Tensor:
        return tail(unwrap(module(x))).tanh()

    at_state = InformationLoss(forward, module).fit(X, solver=FAST)
    assert torch.equal(at_state.sigma, InformationLoss(module.net).fit(X, solver=FAST).sigma)
    at_noise = LayerInformationLoss(forward, module).fit(X, solver=FAST)
    assert torch.equal(at_noise.sigma, LayerInformationLoss(forward, module.net).fit(X, solver=FAST).sigma)


class Packed(nn.Module):
    """Two recurrent layers over sequences packed by their lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.GRU(4, 5, batch_first=True), nn.GRU(5, 3, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.second(self.first(packed)[0])[1][0]


class Padded(Packed):
    """The same for sequences of one length, without packing."""

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.second(self.first(x)[0])[1][0]


def test_packed_sequences_get_noise_and_are_states_like_single_ones() -> None:
    packed, padded, lengths = seeded(Packed), seeded(Padded), torch.tensor([4, 6, 2])
    x = normal(3, 6, 4)
    mask = torch.arange(6) < lengths.unsqueeze(1)
    for rows in (None, 2):
        given = {"token_mask": mask, "max_sigma": 50.0, "solver": FAST, "internal_batch_size": rows}
        state = InformationLoss(packed, packed.first).fit(x, None, lengths, **given)
        noise = LayerInformationLoss(packed, packed.first).fit(x, None, lengths, **given)
        for i, length in enumerate(lengths.tolist()):
            alone = {"max_sigma": 50.0, "solver": FAST}
            one = x[i : i + 1, :length], None, lengths[i : i + 1]
            at_state = InformationLoss(padded, padded.first).fit(*one, **alone)
            at_noise = LayerInformationLoss(padded, padded.first).fit(*one, **alone)
            torch.testing.assert_close(state.sigma[i, :length], at_state.sigma[0], rtol=1e-4, atol=0)
            torch.testing.assert_close(noise.sigma[i, :length], at_noise.sigma[0], rtol=1e-4, atol=0)
    read = pad_packed_sequence(packed.first(pack_padded_sequence(x, [6, 6, 6], batch_first=True))[0])[0]
    assert read.shape == (6, 3, 5)


# Half precision


class Recurrent(nn.Module):
    """Reads sequences, packed where their lengths are given."""

    def __init__(self, kind: Callable[..., nn.RNNBase], batch_first: bool = True) -> None:
        super().__init__()
        self.rnn, self.head = kind(16, 24, 2, batch_first=batch_first), nn.Linear(24, 3)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        x = x if self.rnn.batch_first else x.transpose(0, 1)
        if lengths is not None:
            x = pack_padded_sequence(x, lengths, self.rnn.batch_first, enforce_sorted=False)
        last = self.rnn(x)[1]
        return self.head((last[0] if isinstance(last, tuple) else last)[-1])


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
@pytest.mark.parametrize("how", ["batch first", "time first", "packed"])
@pytest.mark.parametrize("state", ["output", "class", "float16"])
def test_recurrent_layers_in_half_precision_give_a_batch_what_they_give_alone(
    kind: Any, how: str, state: str
) -> None:
    """Torch takes other kernels for one example alone: its log sigma differed by up to 0.4."""
    dtype = torch.float16 if state == "float16" else torch.bfloat16
    model = seeded(lambda: Recurrent(kind, how != "time first")).to(dtype)
    x, lengths = normal(3, 6, 16).to(dtype), torch.tensor([6, 4, 2])

    def sigma(rows: slice) -> Tensor:
        given = (x[rows], 1 if state == "class" else None, lengths[rows] if how == "packed" else None)
        method = InformationLoss(model, None if state == "class" else model.rnn)
        return method.fit(*given, max_sigma=9.0, input_std=1.0, solver=FAST).sigma

    whole = sigma(slice(None))
    for i in range(3):
        torch.testing.assert_close(sigma(slice(i, i + 1)), whole[i : i + 1], rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
@pytest.mark.parametrize("packed", [False, True])
def test_recurrent_layers_in_half_precision_round_their_result_alone(kind: Any, packed: bool) -> None:
    rnn = seeded(lambda: kind(4, 6, 2, bidirectional=True)).to(torch.bfloat16)
    x = normal(5, 3, 4).to(torch.bfloat16)
    given = pack_padded_sequence(x, [5, 4, 1]) if packed else x
    with ForwardMode() as mode:
        found, last = rnn(given)
    exact, exact_last = copy.deepcopy(rnn).double()(given.double())
    pairs = [*zip(last, exact_last)] if kind is nn.LSTM else [(last, exact_last)]
    pairs.append((found.data, exact.data) if packed else (found, exact))
    assert mode.needed
    for ours, theirs in pairs:
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours, theirs.to(torch.bfloat16), rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
@pytest.mark.parametrize("packed", [False, True])
def test_recurrent_kernels_run_as_in_training_give_what_they_give_in_eval_mode(
    kind: Any, packed: bool
) -> None:
    """As those of cuDNN are run, which have no backward in eval mode."""

    class AsInTraining(TorchFunctionMode):
        changed = 0

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in _RECURRENT:
                before, args = args, _as_in_training(args)
                self.changed += sum(a is not b for a, b in zip(before, args))
            return func(*args, **(kwargs or {}))

    rnn = seeded(lambda: kind(4, 6, 2, dropout=0.5))
    x = normal(5, 3, 4)
    given = pack_padded_sequence(x, [5, 4, 1]) if packed else x
    expected = rnn(given)
    with AsInTraining() as mode:
        found = rnn(given)
    assert mode.changed == 2  # dropout and training
    theirs, ours = ((each[0].data, each[1]) if packed else each for each in (expected, found))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="cuDNN's kernels need a GPU")
@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_recurrent_layers_on_a_gpu_give_what_they_give_on_a_cpu(kind: Any) -> None:
    model, x = seeded(lambda: Recurrent(kind)), normal(3, 6, 16)
    expected = InformationLoss(model, model.rnn).fit(x, solver=FAST).sigma
    before = torch.backends.cudnn.enabled
    found = InformationLoss(model.cuda(), model.rnn).fit(x.cuda(), solver=FAST).sigma
    torch.testing.assert_close(found.cpu(), expected, rtol=0.01, atol=0)
    assert torch.backends.cudnn.enabled == before


# The batch dimension


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.rnn, self.head = nn.Embedding(20, 4), nn.GRU(4, 5), nn.Linear(5, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.rnn(self.embedding(ids.T))[0][-1])


class BatchFirst(TimeFirst):
    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.rnn(self.embedding(ids).transpose(0, 1))[0][-1])


@pytest.mark.parametrize("batch, tokens", [(3, 5), (5, 5), (1, 5), (2, 1)])
@pytest.mark.parametrize("rows", [None, 2])
def test_layers_with_the_batch_second_give_what_they_give_with_it_first(
    batch: int, tokens: int, rows: int | None
) -> None:
    second, first = seeded(TimeFirst), seeded(BatchFirst)
    ids = torch.randint(20, (batch, tokens), generator=torch.Generator().manual_seed(3))
    given = {"solver": FAST, "internal_batch_size": rows}
    for target, at in ((1, None), (None, "rnn")):
        results = [
            LayerInformationLoss(m, m.embedding, at and m.rnn).attribute(ids, target, **given)
            for m in (second, first)
        ]
        assert results[0].shape == (batch, tokens, 4)
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_a_batch_of_xlnet_gives_what_single_calls_give() -> None:
    config = XLNetConfig(vocab_size=30, d_model=8, n_layer=2, n_head=2, d_inner=16)
    model = seeded(lambda: XLNetModel(config))
    method = LayerInformationLoss(lambda ids: model(ids)[0], model.word_embedding, model.layer[0])
    ids = torch.randint(3, 30, (5, 5), generator=torch.Generator().manual_seed(0))
    whole = method.attribute(ids, solver=FAST)
    for i in range(5):
        single = method.attribute(ids[i : i + 1], solver=FAST)
        torch.testing.assert_close(whole[i : i + 1], single, rtol=1e-4, atol=1e-4)


class Sentences(nn.Module):
    """Reads (B, S, T) ids, sentence by sentence."""

    def __init__(self, sentence_first: bool = False) -> None:
        super().__init__()
        self.embedding, self.reader, self.head = (
            nn.Embedding(20, 4),
            nn.GRU(4, 5, batch_first=True),
            nn.Linear(5, 3),
        )
        self.sentence_first = sentence_first

    def forward(self, ids: Tensor) -> Tensor:
        batch, sentences, tokens = ids.shape
        if self.sentence_first:
            read = self.reader(self.embedding(ids.transpose(0, 1).reshape(-1, tokens)))[1][0]
            read = read.reshape(sentences, batch, -1).transpose(0, 1)
        else:
            read = self.reader(self.embedding(ids.reshape(-1, tokens)))[1][0].reshape(batch, sentences, -1)
        return self.head(read.tanh()).sum(1)


def test_sentences_in_separate_rows_belong_to_their_example() -> None:
    model = seeded(Sentences)
    ids = torch.randint(20, (3, 2, 4), generator=torch.Generator().manual_seed(0))
    for target, state in ((1, None), (None, model.reader)):
        method = LayerInformationLoss(model, model.embedding, state)
        whole = method.attribute(ids, target, solver=FAST)
        assert whole.shape == (3, 2, 4, 4)
        for i in range(3):
            single = method.attribute(ids[i : i + 1], target, solver=FAST)
            torch.testing.assert_close(whole[i : i + 1], single, rtol=1e-4, atol=1e-4)


def test_entries_of_an_example_that_are_not_neighbours_are_refused() -> None:
    model = seeded(lambda: Sentences(sentence_first=True))
    ids = torch.randint(20, (3, 2, 4), generator=torch.Generator().manual_seed(0))
    method = LayerInformationLoss(model, model.embedding)
    with pytest.raises(ValueError, match=r"\(6, 4, 4\) for 3 examples.*move the batch first"):
        method.attribute(ids, 1, solver=FAST)


# A layer's input


def test_the_input_of_a_layer_called_with_keywords_is_a_site() -> None:
    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = BertModel(BERT.config).eval().encoder.layer[0]

        def forward(self, x: Tensor) -> Tensor:
            return self.body(attention_mask=None, hidden_states=x * 2)[..., :3].sum(1)

    model, x = seeded(Keywords), normal(2, 3, 8)
    site = LayerCall(model.body, side="input")
    doubled = InformationLoss(lambda x: x * 2).fit(x, solver=FAST, max_sigma=9.0).sigma
    state = InformationLoss(model, site).fit(x, solver=FAST, max_sigma=9.0).sigma
    assert torch.equal(state, doubled)
    noise = LayerInformationLoss(model, site).fit(x, solver=FAST).sigma
    direct = InformationLoss(lambda x: model(x / 2)).fit(x * 2, solver=FAST).sigma
    torch.testing.assert_close(noise, direct, rtol=1e-4, atol=0)


def test_neurons_of_a_packed_or_mapped_output_are_selected() -> None:
    class Named(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"out": MLP(x)}

    named = Named()
    found = NeuronInformationLoss(lambda x: named(x)["out"], named).attribute(X, 1, solver=FAST)
    assert torch.equal(found, InformationLoss(MLP).attribute(X, 1, solver=FAST))


# Texts


@pytest.mark.parametrize("how", ["offloaded", "compiled"])
def test_texts_are_explained_by_offloaded_and_compiled_models(how: str) -> None:
    path = str(huggingface.default_model_path())
    found = []
    for changed in (False, True):
        model = AutoModelForSequenceClassification.from_pretrained(path).eval()
        tokenizer = AutoTokenizer.from_pretrained(path)
        if changed and how == "offloaded":
            pytest.importorskip("accelerate").cpu_offload(model, torch.device("cpu"))
        elif changed:
            model.compile(backend="eager")
            model(**tokenizer("a funny film", return_tensors="pt"))
        explainer = TextExplainer(model, tokenizer)
        found.append(explainer.explain(["a funny film", "dull"], layers=[1, "output"]))
    torch.compiler.reset()
    for first, second in zip(*found):
        torch.testing.assert_close(
            second.scores("sigma").values, first.scores("sigma").values, rtol=1e-4, atol=0
        )


def test_a_forward_that_stops_early_leaves_no_reference_cycle() -> None:
    """The error's traceback was in a reference cycle with the model and its activations."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    alive = weakref.ref(model)
    gc.collect()
    gc.disable()
    try:
        LayerInformationLoss(model, model[0], model[1]).fit(torch.randn(1, 3, 4), solver=FAST)
        del model
        assert alive() is None
    finally:
        gc.enable()
