"""Threads: explanations do not depend on other threads, and do not affect threads that use the same models."""

from __future__ import annotations

import asyncio
import copy
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from test_conformance import BERT, FAST, IDS, TransformerClassifier, hooks, normal, seeded
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from torch.nn.parallel import DataParallel
from torch.utils.checkpoint import checkpoint
from transformers import BertForSequenceClassification

from interp_plugin import (
    InformationLoss,
    Interpreter,
    LayerCall,
    LayerInformationLoss,
    Solver,
    TextExplainer,
    huggingface,
)
from interp_plugin.amortised.head import Recorder
from interp_plugin.huggingface import tokenization
from interp_plugin.method.perturbation import ForwardMode, at_site, no_fastpath, note_fast_paths, uncompiled

TEXTS = ["a funny film", "dull", "a plot that never quite works"]
PADDING = torch.tensor([[False] * 5, [False, False, False, True, True]])


def in_thread(call: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def process() -> tuple[Any, ...]:
    """Global state of the process."""
    return (
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.cudnn.enabled,
        list(warnings.filters),
        torch.get_default_dtype(),
        torch.get_rng_state().tolist(),
        len(torch.nn.modules.module._global_forward_hooks),
        torch._dynamo.eval_frame._stance.stance,
    )


@contextmanager
def repeated(call: Callable[[], Any]) -> Iterator[list[Any]]:
    """Call a function repeatedly in other threads inside the block, and collect the results."""
    found: list[Any] = []
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            found.append(call())

    with ThreadPoolExecutor(2) as pool:
        workers = [pool.submit(work) for _ in range(2)]
        try:
            yield found
        finally:
            stop.set()
            for worker in workers:
                worker.result()


def logits(ids: Tensor) -> Tensor:
    scores: Tensor = BERT(ids).logits
    return scores


def explained() -> Tensor:
    """Noise at the word embeddings, the state at a layer."""
    words, layer = BERT.get_input_embeddings(), BERT.bert.encoder.layer[1]
    return LayerInformationLoss(logits, words, layer).fit(IDS, solver=FAST).sigma


ENCODER = seeded(TransformerClassifier)


def explained_encoder() -> Tensor:
    """A state before padding is masked, noise at the word embeddings."""
    method = LayerInformationLoss(ENCODER, ENCODER.embedding, ENCODER.encoder.layers[0].linear1)
    return method.fit(IDS, None, PADDING, token_mask=~PADDING, solver=FAST).sigma


# Predictions of other threads


@torch.no_grad()
def predicted_encoder() -> Tensor:
    return ENCODER.encoder(ENCODER.embedding(IDS), src_key_padding_mask=PADDING)


@pytest.mark.parametrize(
    "predict, explain",
    [(torch.no_grad()(lambda: logits(IDS)), explained), (predicted_encoder, explained_encoder)],
    ids=["BERT", "fast path"],
)
def test_predictions_of_other_threads_are_the_same_bit_for_bit(
    predict: Callable[[], Tensor], explain: Callable[[], Tensor]
) -> None:
    expected, alone = predict(), explain()
    before = (
        process(),
        hooks(BERT),
        hooks(ENCODER),
    )  # transformers leaves hooks for output_hidden_states
    with repeated(predict) as predictions:
        for _ in range(3):
            assert torch.equal(explain(), alone)
    assert len(predictions) > 10 and all(torch.equal(each, expected) for each in predictions)
    assert (process(), hooks(BERT), hooks(ENCODER)) == before


def test_a_hook_inside_an_encoder_layer_leaves_the_fast_path_of_other_threads_on() -> None:
    """A hook on any part would switch the fast path off: other threads' predictions would differ in the last digits."""
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    encoder = seeded(lambda: nn.TransformerEncoder(layer, 2))
    x, padding = normal(3, 9, 64), torch.arange(9) >= torch.tensor([9, 6, 2]).unsqueeze(1)

    @torch.no_grad()
    def predict() -> Tensor:
        found: Tensor = encoder(x, src_key_padding_mask=padding)
        return found

    fast = predict()
    inside = encoder.layers[1].linear1
    given = {"additional_forward_args": (None, padding), "token_mask": ~padding, "solver": FAST}
    alone = InformationLoss(encoder, inside).fit(x, **given).sigma
    seen = []
    with at_site(inside, seen.append), no_fastpath():
        assert not inside._forward_hooks
        assert torch.equal(in_thread(predict), fast) and not seen
        predict()
        assert len(seen) == 1 and seen[0].shape == (3, 9, 128)
    with repeated(predict) as predictions:
        assert torch.equal(InformationLoss(encoder, inside).fit(x, **given).sigma, alone)
    assert predictions and all(torch.equal(each, fast) for each in predictions)


def test_a_users_own_hook_comes_before_ours() -> None:
    layer = seeded(lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    note_fast_paths([layer])
    x, seen = normal(2, 3, 8), []
    for _ in range(2):
        with at_site(layer.linear1, seen.append):
            layer(x)
        layer.linear1.register_forward_hook(lambda module, args, output: output + 1)
    torch.testing.assert_close(seen[1], seen[0] + 1)


@pytest.mark.parametrize("side", ["output", "input"])
def test_a_hook_acts_in_its_own_thread_only(side: Any) -> None:
    layer = nn.Linear(3, 3)
    x = normal(2, 3)
    plain, seen = layer(x), []

    def spoil(passing: Any) -> Any:
        seen.append(threading.get_ident())
        return (0 * passing[0],) if side == "input" else 0 * passing

    with at_site(LayerCall(layer, side=side), spoil):
        assert torch.equal(in_thread(lambda: layer(x)), plain)
        assert not torch.equal(layer(x), plain)
    assert seen == [threading.get_ident()] and not hooks(layer)


def test_a_hook_may_be_removed_while_another_thread_calls_it() -> None:
    """Torch looks up whether a hook takes keyword arguments at the call; after its removal this may be lost."""
    layer = nn.Linear(3, 3)
    with at_site(LayerCall(layer, side="input"), lambda passing: None):
        [hook] = layer._forward_pre_hooks.values()
    assert in_thread(lambda: hook(layer, (normal(2, 3),))) is None


def test_no_global_state_changes_while_the_model_runs() -> None:
    class Looking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Any] = []

        def forward(self, x: Tensor) -> Tensor:
            self.seen.append(in_thread(process))
            return x.tanh()

    model = Looking()
    before = process()
    with torch.random.fork_rng():
        InformationLoss(model).fit(normal(2, 3, 4), solver=FAST)
    assert len(model.seen) > 5 and all(seen == before for seen in model.seen)


def test_modes_leave_the_fast_path_of_other_threads_on() -> None:
    fast = predicted_encoder()
    for mode in (no_fastpath(), ForwardMode()):
        with mode:
            slow = predicted_encoder()
            assert torch.equal(in_thread(predicted_encoder), fast)
        assert slow[1, 3:].any() and not fast[1, 3:].any()  # the fast path zeroes padding


def test_compiled_models_of_other_threads_run_compiled() -> None:
    runs: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        def run(*args: Any) -> Any:
            runs.append(threading.get_ident())
            return graph.forward(*args)

        return run

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.inner(x).tanh()

    model, x = seeded(Residual), normal(2, 3, 4)
    model.compile(backend=backend)
    try:
        with torch.no_grad():
            expected = model(x)
        runs.clear()
        before = process()
        with uncompiled(), uncompiled(), torch.no_grad(), at_site(model, lambda passing: 0 * passing):
            assert not model(x).any() and not runs
            assert torch.equal(in_thread(torch.no_grad()(lambda: model(x))), expected)
            assert len(runs) == 1 and runs != [threading.get_ident()]
        assert process() == before
        InformationLoss(model).fit(x, solver=FAST)
        assert len(runs) == 1 and process() == before
    finally:
        torch.compiler.reset()


# Threads that explain


def test_threads_get_the_same_explanations_as_a_single_one() -> None:
    model, tokenizer = huggingface.load(huggingface.default_model_path())
    explainer = TextExplainer(model, tokenizer)

    def explain(text: str) -> list[Tensor]:
        found = explainer.explain(text, layers=[1, "output"], solver=FAST)
        return [row.sigma for row in found[0].rows]

    alone, before = [explain(text) for text in TEXTS], process()
    calls: Sequence[str] = TEXTS * 4
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(explain, calls))
    for text, found in zip(calls, together):
        assert all(map(torch.equal, found, alone[TEXTS.index(text)]))
    assert process() == before and not hooks(model)


def test_truncation_by_another_thread_does_not_cut_our_texts() -> None:
    """Truncation is a setting of the tokenizer and affected all threads: some texts lost their end."""
    model, tokenizer = huggingface.load(huggingface.default_model_path())
    explainer = TextExplainer(model, tokenizer)
    given = {"padding": True, "truncation": True, "max_length": 4}
    served, text = tokenizer(TEXTS, **given)["input_ids"], TEXTS[2]
    whole = explainer.encode(text)[0].ids
    assert len(whole) > 4
    with repeated(lambda: tokenizer(TEXTS, **given)["input_ids"]) as found:
        assert all(explainer.encode(text)[0].ids == whole for _ in range(200))
    assert found and all(each == served for each in found)
    tokenizer.backend_tokenizer.enable_truncation(4)  # as in the middle of such a call
    assert explainer.encode(text)[0].ids == whole
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 4


def test_a_tokenizer_that_is_changed_later_is_followed() -> None:
    _, tokenizer = huggingface.load(huggingface.default_model_path())
    before = tokenization.split(tokenizer, "a funnyfilm")
    tokenizer.add_tokens(["funnyfilm"])
    assert len(tokenization.split(tokenizer, "a funnyfilm")) < len(before)
    only_end = TemplateProcessing(single="$A [SEP]", special_tokens=[("[SEP]", before.ids[-1])])
    tokenizer.backend_tokenizer.post_processor = only_end
    assert tokenization.split(tokenizer, "a").ids == (before.ids[1], before.ids[-1])


def test_a_coroutine_explains_in_a_thread() -> None:
    async def explain() -> list[Tensor]:
        return await asyncio.gather(*(asyncio.to_thread(explained) for _ in range(3)))

    alone = explained()
    assert all(torch.equal(found, alone) for found in asyncio.run(explain()))


def test_a_thread_that_raises_leaves_the_others_alone() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("broken on purpose")

    def fail() -> None:
        with pytest.raises(RuntimeError, match="broken on purpose"):
            InformationLoss(Broken()).fit(normal(2, 3, 4), solver=FAST)

    alone, before = explained(), process()
    with repeated(fail):
        assert torch.equal(explained(), alone)
    assert process() == before


def test_warning_filters_of_other_threads_are_not_changed() -> None:
    """A global filter was set while texts were explained, and stayed after two threads had done so."""
    seen: list[int] = []
    real = warnings.catch_warnings

    class Counted(real):  # type: ignore[misc, valid-type]
        def __enter__(self) -> Any:
            seen.append(1)
            return super().__enter__()

    model, tokenizer = huggingface.load(huggingface.default_model_path())
    warnings.catch_warnings = Counted  # type: ignore[misc]
    try:
        TextExplainer(model, tokenizer).explain("dull", layers=1, solver=FAST)
    finally:
        warnings.catch_warnings = real  # type: ignore[misc]
    assert not seen


def test_the_head_records_only_its_own_thread() -> None:
    model = nn.Sequential(nn.LayerNorm(4))
    x, mask = normal(2, 3, 4), torch.ones(2, 3, dtype=torch.bool)
    with Recorder(model, mask) as alone:
        model(x)
    with Recorder(model, mask) as inside:
        in_thread(lambda: model(5 * x))
        model(x)
        in_thread(lambda: model(5 * x))
    assert torch.equal(inside.numbers(), alone.numbers())


# DataParallel


class OnCpu(DataParallel[nn.Module]):
    """Torch's DataParallel over two devices that are both the CPU: replicas run in separate threads."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.device_ids, self.output_device = [0, 1], 0
        self.src_device_obj = torch.device("cpu")
        self.threads: set[int] = set()

    def scatter(self, inputs: Any, kwargs: Any, device_ids: Any) -> Any:
        [x] = inputs
        parts = x.chunk(len(device_ids))
        return [(part,) for part in parts], [kwargs for _ in parts]

    def replicate(self, module: Any, device_ids: Any) -> Any:
        return [replica_of(module) for _ in device_ids]

    def parallel_apply(self, replicas: Any, inputs: Any, kwargs: Any) -> Any:
        grad = torch.is_grad_enabled()

        def work(replica: nn.Module, args: Any) -> Any:
            self.threads.add(threading.get_ident())
            with torch.set_grad_enabled(grad):
                return replica(*args)

        with ThreadPoolExecutor(len(replicas)) as pool:
            return list(pool.map(work, replicas, inputs))

    def gather(self, outputs: Any, output_device: Any) -> Tensor:
        return torch.cat(outputs)


def replica_of(module: nn.Module) -> nn.Module:
    """As ``torch.nn.parallel.replicate`` makes one, with the module's own parameters."""
    replica: Any = module._replicate_for_data_parallel()
    for name, parameter in module._parameters.items():
        setattr(replica, name, None if parameter is None else parameter * 1)
    for name, child in module._modules.items():
        replica._modules[name] = child and replica_of(child)
    return replica


class Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))


NET, WORDS = seeded(Net), normal(4, 3, 4)


@pytest.mark.parametrize("noise, state", [(None, None), (0, None), (None, 2), (0, 2)])
def test_a_data_parallel_model_gives_the_same_as_its_module(noise: int | None, state: int | None) -> None:
    def sigma(model: nn.Module) -> Tensor:
        at = None if state is None else NET[state]
        method = InformationLoss(model, at) if noise is None else LayerInformationLoss(model, NET[noise], at)
        return method.fit(WORDS, solver=FAST).sigma

    parallel = OnCpu(NET)
    torch.testing.assert_close(sigma(parallel), sigma(NET), rtol=1e-5, atol=0)
    assert parallel.device_ids == [0, 1] and not hooks(NET)
    assert bool(parallel.threads) == (noise is None and state is None)


def test_a_layer_that_runs_in_threads_of_the_forward_is_refused() -> None:
    parallel = OnCpu(NET)
    with pytest.raises(ValueError, match="neither do threads that the forward starts, as DataParallel's"):
        LayerInformationLoss(lambda x: parallel(x), NET[0]).fit(WORDS, solver=FAST)


def test_replicas_of_other_threads_are_unchanged() -> None:
    parallel = OnCpu(NET)
    expected = parallel(WORDS)
    with repeated(lambda: parallel(WORDS)) as predictions:
        LayerInformationLoss(NET, NET[0], NET[2]).fit(WORDS, solver=Solver(draws=8, iterations=4))
    assert predictions and all(torch.equal(each, expected) for each in predictions)


# Checkpointed blocks


class Checkpointed(nn.Module):
    """Two blocks, with or without checkpoints."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.embedding = nn.Linear(4, 6)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)) for _ in "ab")
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        for block in self.blocks:
            if self.reentrant is None:
                x = x + block(x)
            else:
                x = x + checkpoint(block, x, use_reentrant=self.reentrant)
        return x.tanh()


def checkpointed(reentrant: bool | None) -> Checkpointed:
    model: Checkpointed = seeded(lambda: Checkpointed(reentrant))
    return model


@pytest.mark.parametrize("state", [None, "blocks.0", "blocks.1.1"])
def test_noise_before_checkpointed_blocks_has_the_same_result_as_without(state: str | None) -> None:
    found = []
    for reentrant in (None, False):
        model = checkpointed(reentrant)
        at = None if state is None else model.get_submodule(state)
        found.append(LayerInformationLoss(model, model.embedding, at).fit(WORDS, solver=FAST).sigma)
    assert torch.equal(*found)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("noise", ["blocks.0.0", "blocks.1", "blocks.1.1"])
def test_noise_inside_a_checkpointed_block_is_refused(reentrant: bool, noise: str) -> None:
    """The hook was missing when the block was recomputed: log sigma was wrong by many standard errors."""
    model = checkpointed(reentrant)
    method = LayerInformationLoss(model, model.get_submodule(noise))
    with pytest.raises(ValueError, match=r"noise layer \w+ runs inside torch\.utils\.checkpoint"):
        method.fit(WORDS, solver=FAST)
    with torch.autograd.graph.save_on_cpu():  # hooks of the caller are accepted
        plain = checkpointed(None)
        LayerInformationLoss(plain, plain.get_submodule(noise)).fit(WORDS, solver=FAST)
    assert not hooks(model)


def test_an_embedding_inside_a_checkpoint_is_refused_by_the_first_interface() -> None:
    def state(ids: Tensor) -> Tensor:
        found: Tensor = checkpoint(lambda x: BERT(x).logits[0], ids, use_reentrant=False)
        return found

    with pytest.raises(ValueError, match=r"embedding layer Embedding runs inside torch\.utils\.checkpoint"):
        Interpreter(IDS[:1], state).optimize(2)


def test_reentrant_checkpoints_are_refused() -> None:
    model = checkpointed(True)
    with pytest.raises(ValueError, match="use_reentrant=True, which gives no gradient of its inputs"):
        InformationLoss(model).fit(WORDS, solver=FAST)
    with pytest.raises(ValueError, match=r"state layer Tanh runs inside torch\.utils\.checkpoint"):
        InformationLoss(model, model.blocks[0][1]).fit(WORDS, solver=FAST)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_model_of_transformers_that_checkpoints_its_blocks_is_right_or_refused(reentrant: bool) -> None:
    config = copy.deepcopy(BERT.config)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    model, plain = (seeded(lambda: BertForSequenceClassification(config)).train() for _ in "ab")
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})

    def sigma(bert: Any, noise: str, state: str | None) -> Tensor:
        layer, at = bert.get_submodule(noise), None if state is None else bert.get_submodule(state)
        return (
            LayerInformationLoss(lambda ids: bert(ids).logits, layer, at)
            .fit(IDS, target=0 if at is None else None, solver=FAST)
            .sigma
        )

    words, block, inside = "bert.embeddings", "bert.encoder.layer.0", "bert.encoder.layer.1.attention"
    if reentrant:
        with pytest.raises(ValueError, match=r"checkpoint"):
            sigma(model, words, None)
    else:
        for state in (None, block, inside):
            assert torch.equal(sigma(model, words, state), sigma(plain, words, state))
    with pytest.raises(ValueError, match=r"noise layer BertAttention runs inside torch\.utils\.checkpoint"):
        sigma(model, inside, None)
    model.eval()
    assert torch.equal(sigma(model, inside, None), sigma(plain.eval(), inside, None))
