"""TextExplainer on plain PyTorch models and the default model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_plain import CLASSES, WORDS, cnn, lstm
from torch import Tensor, nn

from interp_plugin.attribution import LayerInformationLoss
from interp_plugin.method.solver import Solver
from interp_plugin.text import scoring
from interp_plugin.text.batch import batches
from interp_plugin.text.explainer import TextExplainer
from interp_plugin.text.explanation import Explanation
from interp_plugin.text.models import Encoding, PlainModel
from interp_plugin.text.states import Calibration

FAST = Solver(iterations=2)
TEXTS = ["the cat sat on a mat", "it was good", "a bad cat", "film", "the film was bad and the cat was good"]


def sigmas(explanation: Explanation) -> list[list[Tensor]]:
    return [[row.sigma for row in text.rows] for text in explanation]


def assert_same(one: Explanation, other: Explanation) -> None:
    for text, twin in zip(one, other, strict=True):
        assert text.tokens == twin.tokens
        for row, its in zip(text.rows, twin.rows, strict=True):
            assert (row.layer, row.position) == (its.layer, its.position)
            assert torch.allclose(row.sigma, its.sigma, rtol=1e-4)
            assert torch.allclose(row.standard_error, its.standard_error, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("make", [lstm, cnn, lambda: cnn(pads=False)])
@pytest.mark.parametrize("positions", [None, -1, "each"])
def test_a_text_does_not_depend_on_the_others(make: Any, positions: Any) -> None:
    explainer = TextExplainer(make())
    settings = {"layers": [*explainer.model.layers, "output"], "positions": positions, "solver": FAST}
    together = explainer.explain(TEXTS, **settings)
    alone = Explanation.merge(*(explainer.explain(text, **settings) for text in TEXTS))
    assert_same(together, alone)


def test_real_sentences_of_mixed_length_equal_single_ones(default: TextExplainer) -> None:
    texts = [
        "a good film",
        "not bad",
        "far too long and much too slow , yet somehow it works in the end",
        "awful",
    ]
    together = default.explain(texts, layers=[1, 4, "output"], solver=FAST)
    assert_same(
        together, Explanation.merge(*(default.explain(t, [1, 4, "output"], solver=FAST) for t in texts))
    )


def test_a_row_is_what_the_captum_class_fits() -> None:
    model = lstm()
    row = TextExplainer(model).explain("the cat sat", layers="lstm", solver=FAST)[0].rows[0]
    method = LayerInformationLoss(model.module, model.module.embedding, model.module.lstm)
    fit = method.fit(torch.tensor([model.encode("the cat sat").ids]), solver=FAST)
    assert torch.allclose(row.sigma, fit.sigma[0], rtol=1e-5)
    assert torch.allclose(row.standard_error, fit.standard_error[0], rtol=1e-4)
    assert (row.n_forward, row.n_backward) == (int(fit.n_forward[0]), int(fit.n_backward[0]))


def test_a_time_step_is_what_the_captum_class_fits_for_that_position() -> None:
    model = lstm()
    row = TextExplainer(model).explain("the cat sat", layers="lstm", positions=1, solver=FAST)[0].rows[0]
    method = LayerInformationLoss(model.module, model.module.embedding, model.module.lstm)
    ids = torch.tensor([model.encode("the cat sat").ids])
    fit = method.fit(ids, neuron_selector=(1,), solver=FAST)
    assert row.position == 1
    assert torch.allclose(row.sigma, fit.sigma[0], rtol=0.02)  # other random signs probe a smaller state


def test_a_recurrent_state_keeps_exactly_nothing_of_later_words() -> None:
    text = TextExplainer(lstm()).explain(
        "the cat sat on a mat", layers="lstm", positions="each", solver=FAST
    )[0]
    assert [row.position for row in text.rows] == list(range(6))
    kept = text.scores("kept").values
    assert torch.equal(kept.triu(1), torch.zeros_like(kept))
    assert (kept.diagonal() > 0).all()


def test_neurons_watch_a_part_of_the_state() -> None:
    model = lstm()
    text = TextExplainer(model).explain("the cat sat", layers="lstm", neurons=[0, 3], solver=FAST)[0]
    method = LayerInformationLoss(model.module, model.module.embedding, model.module.lstm)
    fit = method.fit(
        torch.tensor([model.encode("the cat sat").ids]),
        neuron_selector=lambda state: state[..., [0, 3]],
        solver=FAST,
    )
    assert torch.allclose(text.rows[0].sigma, fit.sigma[0], rtol=1e-5)


def test_a_target_by_name_is_that_class() -> None:
    model = lstm()
    explanation = TextExplainer(model).explain(TEXTS[:2], layers="output", target=["good", 0], solver=FAST)
    for text, index in zip(explanation, (2, 0)):
        method = LayerInformationLoss(model.module, model.module.embedding)
        fit = method.fit(torch.tensor([model.encode(text.text).ids]), target=index, solver=FAST)
        assert text.target == CLASSES[index]
        assert torch.allclose(text.rows[0].sigma, fit.sigma[0], rtol=1e-5)


def test_the_prediction_is_the_models_own() -> None:
    model = lstm()
    text = TextExplainer(model).explain("it was good", solver=FAST)[0]
    with torch.no_grad():
        scores = model.module(torch.tensor([model.encode("it was good").ids]))[0].softmax(0)
    assert text.predicted == CLASSES[int(scores.argmax())]
    assert text.probability == pytest.approx(float(scores.max()))


def test_layers_in_one_call_agree_with_single_calls_within_their_errors(default: TextExplainer) -> None:
    text = "a funny film with charm"
    together = default.explain(text, layers="all")[0].rows
    for row in together:
        alone = default.explain(text, layers=row.layer)[0].rows[0]
        error = (row.standard_error.square() + alone.standard_error.square()).sqrt()
        assert ((row.sigma.log() - alone.sigma.log()).abs() < 5 * error + 1e-5).all()


def test_the_closed_form_alone_is_the_same_for_one_layer_and_for_several(default: TextExplainer) -> None:
    closed = Solver(iterations=0)
    together = default.explain("a funny film", [1, 2], solver=closed)[0]
    alone = default.explain("a funny film", 2, solver=closed)[0]
    assert torch.allclose(together.row(2).sigma, alone.row(2).sigma, rtol=1e-5)


def test_noise_can_enter_at_another_layer(default: TextExplainer) -> None:
    model = default.model.module
    by_name = TextExplainer(default.model, noise_layer="bert.embeddings").explain("a film", 1, solver=FAST)
    by_module = TextExplainer(default.model, noise_layer=model.bert.embeddings).explain(
        "a film", 1, solver=FAST
    )
    assert by_name.settings.noise_layer == "bert.embeddings"
    assert_same(by_name, by_module)
    assert not torch.allclose(
        by_name[0].rows[0].sigma, default.explain("a film", 1, solver=FAST)[0].rows[0].sigma, rtol=0.01
    )


def test_calibration_is_the_spread_of_the_states_and_the_unit_of_distortion(tmp_path: Any) -> None:
    model = lstm()
    explainer = TextExplainer(model)
    calibration = explainer.calibrate(TEXTS, show_progress=False)
    states = [model.module.lstm(model.module.embedding(torch.tensor(model.encode(t).ids)))[0] for t in TEXTS]
    expected = torch.cat(states).std(0, unbiased=False)
    assert torch.allclose(calibration.of("lstm"), expected, rtol=1e-5)

    method = LayerInformationLoss(model.module, model.module.embedding, model.module.lstm)
    fit = method.fit(torch.tensor([model.encode(TEXTS[0]).ids]), state_std=expected, solver=FAST)
    explanation = explainer.explain(TEXTS[0], layers="lstm", solver=FAST)
    assert explanation.settings.state_std
    assert torch.allclose(explanation[0].rows[0].sigma, fit.sigma[0], rtol=1e-4)

    calibration.save(tmp_path / "spread.safetensors")
    again = TextExplainer(model, calibration=Calibration.load(tmp_path / "spread.safetensors"))
    assert_same(explanation, again.explain(TEXTS[0], layers="lstm", solver=FAST))


def test_a_state_that_was_not_calibrated_is_named() -> None:
    explainer = TextExplainer(lstm())
    explainer.calibrate(TEXTS, "lstm", show_progress=False)
    with pytest.raises(ValueError, match="'output' was not calibrated"):
        explainer.explain("film", layers="output")


def test_a_calibration_of_another_model_causes_a_warning() -> None:
    calibration = TextExplainer(cnn()).calibrate(TEXTS, show_progress=False)
    with pytest.warns(UserWarning, match="of model 'Cnn', and this is 'Lstm'"):
        TextExplainer(lstm(), calibration=calibration)


def test_a_file_that_is_no_calibration(tmp_path: Any) -> None:
    (tmp_path / "x").write_bytes(b"something else")
    with pytest.raises(ValueError, match="not a safetensors file"):
        Calibration.load(tmp_path / "x")


def test_a_state_without_spread_is_refused_as_a_unit() -> None:
    explainer = TextExplainer(lstm())
    explainer.calibrate(["it was good"], show_progress=False)
    explainer.explain("a bad cat", layers="lstm", solver=FAST)
    with pytest.raises(ValueError, match="'output' was the same in all 1 texts of the calibration"):
        explainer.explain("a bad cat", layers="output")


def test_the_error_of_a_total_is_of_the_tokens_below_the_cap() -> None:
    text = TextExplainer(lstm()).explain("the cat sat on a mat", layers="lstm", positions=0, solver=FAST)[0]
    [row] = text.rows  # which depends on the first word only
    assert (row.sigma[1:] == row.max_sigma).all() and row.standard_error[0] > 0
    assert float(text.total("loss")[1][0]) == pytest.approx(8 * float(row.standard_error[0]), rel=1e-3)
    slope = 8 / (1 + (float(row.sigma[0]) / row.input_std) ** 2)
    assert float(text.total("kept")[1][0]) == pytest.approx(slope * float(row.standard_error[0]), rel=1e-3)


def test_explanations_of_different_parts_do_not_merge() -> None:
    explainer = TextExplainer(lstm())
    whole = explainer.explain("it was good", layers="lstm", solver=FAST)
    part = explainer.explain("it was good", layers="lstm", neurons=0, solver=FAST)
    assert part.settings.part == "neurons 0"
    with pytest.raises(ValueError, match="part"):
        Explanation.merge(whole, part)


def test_all_layers_and_the_output_in_one_call() -> None:
    text = TextExplainer(lstm()).explain("it was good", layers=["all", "output"], solver=FAST)[0]
    assert text.layers == ("lstm", "head", "output")


def test_a_second_parameter_that_is_no_mask_is_left_alone() -> None:
    class Warm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = lstm().module

        def forward(self, ids: Tensor, temperature: float | None = None) -> Tensor:
            assert temperature is None
            scores: Tensor = self.net(ids)
            return scores

    warm = Warm()
    model = PlainModel(warm, lambda t: [WORDS.index(w) for w in t.split()], warm.net.embedding)
    TextExplainer(model).explain("it was good", layers="output", solver=FAST)


def test_special_tokens_of_a_fast_tokenizer_are_not_words(default: TextExplainer) -> None:
    tokenizer = default.model.tokenizer
    net = nn.Sequential(nn.Embedding(len(tokenizer), 4), nn.Flatten(), nn.LazyLinear(2))
    model = PlainModel(net, lambda t: tokenizer(t, return_offsets_mapping=True), net[0])
    encoding = model.encode("a film")
    assert encoding.tokens == ("[CLS]", "a", "film", "[SEP]")
    assert encoding.offsets == (None, (0, 0, 1), (0, 2, 6), None)


class Greedy(nn.Module):
    """Runs out of memory if there are too many rows."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(WORDS), 4)
        self.head = nn.Linear(4, 3)
        self.error, self.seen = error, 0

    def forward(self, ids: Tensor) -> Tensor:
        if len(ids) > 5:
            raise self.error
        self.seen = max(self.seen, len(ids))
        scores: Tensor = self.head(self.embedding(ids).mean(1).tanh())
        return scores


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_the_rows_are_halved_whenever_memory_runs_out(error: Exception) -> None:
    torch.manual_seed(0)
    net = Greedy(error)
    explainer = TextExplainer(PlainModel(net, lambda t: [WORDS.index(w) for w in t.split()], net.embedding))
    few = explainer.explain("the cat sat", layers="output", solver=FAST)
    assert net.seen == 4  # 64, 32, 16, 8, 4
    net.error = RuntimeError("not about memory")
    with pytest.raises(RuntimeError, match="not about memory"):
        explainer.explain("the cat sat", layers="output", solver=FAST)
    fixed = explainer.explain("the cat sat", layers="output", solver=FAST, internal_batch_size=3)
    assert_same(few, fixed)


def test_similar_lengths_share_a_batch() -> None:
    texts = [Encoding("", None, ("a",) * n, (None,) * n, (0,) * n) for n in (5, 40, 38, 6, 5, 39)]
    parts = list(batches(texts, 2, pads=True))
    assert sorted(i for part in parts for i in part) == list(range(6))
    assert [[len(texts[i].ids) for i in part] for part in parts] == [[40, 39], [38], [6, 5], [5]]
    assert all(len({len(texts[i].ids) for i in part}) == 1 for part in batches(texts, 9, pads=False))


def test_a_batch_holds_at_most_some_tokens() -> None:
    texts = [Encoding("", None, ("a",) * 500, (None,) * 500, (0,) * 500)] * 10
    assert [len(part) for part in batches(texts, 16, pads=True)] == [4, 4, 2]


def test_the_users_model_comes_back_as_it_was(default: TextExplainer) -> None:
    model = default.model.module
    before = {name: p.clone() for name, p in model.state_dict().items()}
    state = torch.get_rng_state()
    default.explain(["a film", "not a good film"], layers=[1, "output"], positions="each", solver=FAST)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"layers": "lsmt"}, "layer 'lsmt' does not exist: the model has 'lstm', 'head'"),
        ({"layers": []}, "names no layer"),
        ({"target": "good"}, "layers='output'"),
        ({"layers": "output", "target": "great"}, "'great' is not a class"),
        ({"layers": "output", "target": 3}, "3 is not a class"),
        ({"target": ["good"] * 2}, "lists 2 for 1"),
        ({"positions": 3}, "position 3 does not exist in layer 'lstm' of text 'the cat sat', which has 3"),
        ({"neurons": 12}, "neurons=12 does not exist in layer 'lstm'"),
        ({"heads": 0}, "no attention heads"),
        ({"heads": 0, "neurons": 0}, "give one of them"),
        ({"rate": 0.0}, "rate is 0.0"),
    ],
)
def test_a_bad_request_is_refused_with_the_way_out(call: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextExplainer(lstm()).explain("the cat sat", **{"layers": "lstm", **call})


@pytest.mark.parametrize(
    ("texts", "error"), [([], ValueError), (3, TypeError), ([b"x"], TypeError), ("", ValueError)]
)
def test_texts_must_be_texts(texts: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        TextExplainer(lstm()).explain(texts)


def test_a_noise_layer_that_is_not_there() -> None:
    with pytest.raises(
        ValueError, match="'lstn' is not a module of Lstm, whose parts are 'embedding', 'lstm'"
    ):
        TextExplainer(lstm(), noise_layer="lstn")


def test_a_noise_layer_without_tokens() -> None:
    model = lstm()
    with pytest.raises(ValueError, match="give a layer whose output is"):
        TextExplainer(model, noise_layer=model.module.head).explain("the cat", layers="output")


def test_a_tokenizer_that_does_not_fit_the_embedding() -> None:
    torch.manual_seed(0)
    net = lstm().module
    model = PlainModel(net, lambda text: [0, 99], net.embedding)
    with pytest.raises(ValueError, match="id 99 is not one of the embedding's 12"):
        TextExplainer(model).explain("the cat")


def test_the_bar_moves_with_the_passes_of_a_single_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar used to stay at 0/1 for hours."""
    seen: list[float] = []

    class Bar(scoring.tqdm):  # type: ignore[misc]
        def update(self, n: float = 1) -> Any:
            seen.append(self.n + n)
            return super().update(n)

    monkeypatch.setattr(scoring, "tqdm", Bar)
    explainer = TextExplainer(lstm())
    for settings in ({"layers": "all", "positions": "each"}, {"score": "erased", "layers": "output"}):
        seen.clear()
        explainer.explain(TEXTS[0], solver=FAST, show_progress=True, **settings)  # type: ignore[arg-type]
        assert seen == sorted(seen) and len(set(seen)) > 2 and seen[0] < seen[-1] / 2


def test_progress_is_shown_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    TextExplainer(lstm()).explain(TEXTS, layers="lstm", solver=FAST, show_progress=True)
    shown = capsys.readouterr()
    assert "5/5" in shown.err and not shown.out


def test_a_saturated_vector_is_solved_at_a_smaller_rate(default: TextExplainer) -> None:
    """Nine of ten rows of positions="each" did not converge at the usual rate."""
    text = "a very well made , funny and entertaining picture"
    for seed in (0, 1):
        [kept] = default.explain(text, layers=3, positions=2, solver=Solver(seed=seed, lower_rate=False))[
            0
        ].rows
        [row] = default.explain(text, layers=3, positions=2, solver=Solver(seed=seed))[0].rows
        assert not kept.converged and kept.rate == pytest.approx(0.1)
        assert row.converged and row.rate == pytest.approx(0.01) and 0.65 < row.regime_index < 1.5
        assert row.n_backward > kept.n_backward


@pytest.mark.parametrize(
    "wrap",
    [lambda ids: torch.tensor(ids), lambda ids: torch.tensor([ids]), lambda ids: {"input_ids": [ids]}],
    ids=["tensor", "batch of one", "mapping"],
)
def test_a_tokenizer_may_return_a_batch_of_one(wrap: Any) -> None:
    net = cnn().module
    model = PlainModel(net, lambda text: wrap([WORDS.index(word) for word in text.split()]), net.embedding)
    assert model.encode("a good film").ids == cnn().encode("a good film").ids


def test_a_tokenizer_that_returns_words_is_named_in_the_error() -> None:
    net = cnn().module
    with pytest.raises(TypeError, match=r"the tokenizer gives .*'a', 'film'.* a whole number for each token"):
        PlainModel(net, str.split, net.embedding).encode("a film")
