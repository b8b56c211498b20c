"""Our scores inside shap, Quantus, inseq and interpreto: each test runs where that package is installed."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import model_of, tiny
from torch import Tensor, nn

from interp_plugin import (
    Explanation,
    InformationLoss,
    LayerInformationLoss,
    Solver,
    TextExplainer,
    huggingface,
)
from interp_plugin.interop import quantus_explain_func, register_inseq, to_interpreto, to_shap
from interp_plugin.method.problem import std_of_table
from interp_plugin.text.explanation import example

TEXTS = ["not a bad film", "it isn't funny, <b>it's</b> dull", "a charming story"]
QUICK = Solver(tolerance=0.3)


@cache
def classifier() -> tuple[Any, Any]:
    return huggingface.load(huggingface.default_model_path())


@cache
def explained() -> Explanation:
    return TextExplainer(*classifier()).explain(TEXTS, layers=[1, 2], solver=QUICK)


@pytest.mark.parametrize(
    "package, call",
    [
        ("shap", lambda: to_shap(example())),
        ("inseq", register_inseq.__wrapped__),
        ("interpreto", lambda: to_interpreto(example(), nn.Identity(), None)),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    package: str, call: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"needs {package}, .*: pip install {package}"):
        call()


# shap


def test_shap_gets_the_pieces_of_the_text_with_their_information_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handed: list[Any] = []
    monkeypatch.setitem(
        sys.modules, "shap", SimpleNamespace(Explanation=lambda *a, **k: handed.append((a, k)))
    )
    for number, text in enumerate(TEXTS):
        to_shap(explained()[number], layer=2)
        (values, base, pieces), named = handed[-1]
        assert "".join(pieces) == f"[CLS] {text} [SEP] "
        total, _ = explained()[number].total("kept")
        assert base + values.sum() == pytest.approx(float(total[1]))
        assert torch.equal(torch.tensor(named["error_std"]), explained()[number].scores().standard_error[1])


def test_shap_pieces_of_a_pair_are_separate_and_unknown_characters_keep_their_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handed: list[Any] = []
    monkeypatch.setitem(sys.modules, "shap", SimpleNamespace(Explanation=lambda *a, **k: handed.append(a[2])))
    model = tiny("bert", "BertForSequenceClassification")
    pair = TextExplainer(model).explain([("It was good", "a dull story")], layers=1)
    to_shap(pair[0], granularity="word")
    assert "".join(handed[0]) == "[CLS] It was good [SEP] a dull story [SEP] "


def test_an_empty_explanation_is_refused_for_shap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shap", SimpleNamespace())
    with pytest.raises(ValueError, match="0 texts"):
        to_shap(example()[:0])


def test_the_text_plot_of_shap_shows_the_words_and_nats() -> None:
    shap = pytest.importorskip("shap")
    item = explained()[0]
    page = shap.plots.text(to_shap(item, layer=1), display=False)
    assert isinstance(page, str)
    kept = item.scores("kept").values[0]
    for word, nats in zip(("not", "bad", "film"), kept[[1, 3, 4]]):
        assert f">{word}" in page
        assert f"{float(nats):.3f}"[:6] in page


def test_several_texts_are_rows_of_one_shap_explanation_even_if_equally_long() -> None:
    shap = pytest.importorskip("shap")
    for texts in (explained(), Explanation.merge(explained()[:1], explained()[:1])):
        values = to_shap(texts, layer=2, granularity="word")
        assert len(values) == len(texts)
        for number, item in enumerate(texts):
            scores = item.scores("kept", "word", "mean")
            assert values[number].values.tolist() == scores.values[-1].tolist()
            assert values[number].error_std.tolist() == scores.standard_error[-1].tolist()
            assert values[number].base_values == 0
            assert "".join(values[number].data) == f"[CLS] {item.text} [SEP] "
        page = shap.plots.text(values, display=False)
        assert all(word in page for item in texts for word in ("not", "bad") if word in item.text)


def test_shap_draws_bars_of_our_units() -> None:
    shap = pytest.importorskip("shap")
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    axes = shap.plots.bar(to_shap(explained()[0], layer=1), show=False)
    labels = " ".join(label.get_text() for label in axes.get_yticklabels())
    assert "not" in labels
    assert "film" in labels


# Quantus


class FromEmbeddings(nn.Module):
    """Class scores of embedded texts without padding."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, embeddings: Tensor) -> Tensor:
        logits: Tensor = self.model(inputs_embeds=embeddings).logits
        return logits


@cache
def embedded() -> tuple[Any, Tensor, np.ndarray, np.ndarray, float]:
    """The classifier behind its embeddings; ids, embeddings and predicted classes of three equally long texts."""
    model, tokenizer = classifier()
    ids = tokenizer(["not a bad film", "a very funny film", "it was so dull"], return_tensors="pt")[
        "input_ids"
    ]
    table = model.get_input_embeddings()
    with torch.no_grad():
        embeddings, classes = table(ids).numpy(), model(ids).logits.argmax(1).numpy()
    std = std_of_table(table)
    assert std is not None
    return FromEmbeddings(model).eval(), ids, embeddings, classes, std


def first_layer() -> str:
    """The name of the first layer in the model that Quantus gets."""
    wrapped = embedded()[0]
    first = huggingface.transformer_layers(wrapped.model)[0]
    return next(name for name, module in wrapped.named_modules() if module is first)


@cache
def kept_of_embedded() -> np.ndarray:
    """The same texts the other way: token ids in, noise at the embedding layer; (B, T)."""
    wrapped, ids, _, classes, _ = embedded()
    method = LayerInformationLoss(lambda ids: wrapped.model(ids).logits, wrapped.model.get_input_embeddings())
    kept = method.attribute(
        ids, target=torch.tensor(classes), score="kept", return_input_shape=False, solver=QUICK
    )
    assert isinstance(kept, Tensor)
    return kept.numpy()


def test_quantus_gets_the_information_kept_of_each_token() -> None:
    wrapped, _, embeddings, classes, std = embedded()
    given = quantus_explain_func(wrapped, embeddings, classes, input_std=std, solver=QUICK)
    assert given.shape == (*embeddings.shape[:2], 1)
    assert given[..., 0] == pytest.approx(kept_of_embedded(), rel=1e-3, abs=0.05)


def test_a_named_state_layer_is_found_in_quantus_copy_of_the_model() -> None:
    wrapped, _, embeddings, classes, _ = embedded()
    name = next(
        n for n, m in wrapped.named_modules() if m is huggingface.transformer_layers(wrapped.model)[0]
    )
    settings = {"rate": 0.2, "solver": Solver(iterations=0)}
    expected = InformationLoss(wrapped, wrapped.get_submodule(name)).attribute(
        torch.tensor(embeddings), score="kept", return_input_shape=False, **settings
    )
    for model in (wrapped, copy.deepcopy(wrapped)):
        given = quantus_explain_func(model, embeddings, classes, state_layer=name, **settings)
        assert torch.tensor(given[..., 0]).allclose(expected, rtol=1e-4)


def test_quantus_gets_one_score_for_each_pixel_of_an_image() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(2 * 3 * 4, 5), nn.Tanh(), nn.Linear(5, 2)).eval()
    images, pixels = torch.randn(2, 2, 3, 4), torch.arange(12).reshape(1, 1, 3, 4).expand(1, 2, 3, 4)
    given = quantus_explain_func(model, images.numpy(), np.array([0, 1]), axis=1, feature_mask=pixels)
    kept = InformationLoss(model).attribute(
        images, target=torch.tensor([0, 1]), score="kept", feature_mask=pixels, return_input_shape=False
    )
    assert given.shape == (2, 1, 3, 4)
    assert torch.tensor(given).reshape(2, 12).allclose(kept, rtol=1e-4)


def test_quantus_gets_a_score_for_each_number_of_a_table_and_refuses_loss() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).eval()
    rows, classes = torch.randn(2, 4).numpy(), np.array([0, 1])
    kept, signed = (quantus_explain_func(model, rows, classes, score=score) for score in ("kept", "signed"))
    assert kept.shape == (2, 4)
    assert (kept >= 0).all()
    assert (signed < 0).any()
    direct = InformationLoss(model).attribute(
        torch.tensor(rows), target=torch.tensor(classes), score="signed"
    )
    assert signed == pytest.approx(direct.numpy(), rel=1e-4, abs=1e-5)
    with pytest.raises(ValueError, match=r"score is 'loss'.*'kept'"):
        quantus_explain_func(model, rows, classes, score="loss")


def called(metric: Any, **settings: Any) -> Any:
    """A metric of Quantus, called directly as its users do."""
    wrapped, _, embeddings, classes, std = embedded()
    return metric(
        model=wrapped,
        x_batch=embeddings,
        y_batch=classes,
        a_batch=None,
        channel_first=True,
        softmax=False,
        explain_func=quantus_explain_func,
        explain_func_kwargs={"input_std": std, "solver": QUICK, **settings},
    )


def test_pixel_flipping_of_quantus_starts_with_the_token_that_is_kept_most() -> None:
    quantus = pytest.importorskip("quantus")
    wrapped, _, embeddings, classes, _ = embedded()
    width = embeddings.shape[-1]
    curves = np.array(called(quantus.PixelFlipping(features_in_step=width, disable_warnings=True)))
    assert curves.shape == embeddings.shape[:2]
    erased = torch.tensor(embeddings)
    order = (-kept_of_embedded()).argsort(1)
    for step in range(2):
        erased[torch.arange(len(erased)), order[:, step]] = 0  # Quantus' "black"
        with torch.no_grad():
            scores = wrapped(erased).numpy()[np.arange(len(erased)), classes]
        assert curves[:, step] == pytest.approx(scores, abs=1e-4)


def test_evaluate_of_quantus_accepts_us_under_any_name() -> None:
    quantus = pytest.importorskip("quantus")
    wrapped, _, embeddings, classes, std = embedded()
    metrics = {"Sparseness": quantus.Sparseness(disable_warnings=True)}
    found = quantus.evaluate(
        metrics=metrics,
        xai_methods={"information kept": quantus_explain_func},
        model=wrapped,
        x_batch=embeddings,
        y_batch=classes,
        explain_func_kwargs={"input_std": std, "solver": QUICK},
        call_kwargs={"once": {"channel_first": True, "softmax": False}},
    )
    expected = called(quantus.Sparseness(disable_warnings=True))
    assert found["information kept"]["Sparseness"] == pytest.approx(expected, abs=1e-3)


def test_sparseness_of_quantus_is_the_gini_index_of_our_scores() -> None:
    quantus = pytest.importorskip("quantus")
    found = called(quantus.Sparseness(disable_warnings=True))
    kept = np.sort(kept_of_embedded().astype(float), axis=1)
    count = kept.shape[1]
    ranks = 2 * np.arange(1, count + 1) - count - 1
    assert found == pytest.approx((ranks * kept).sum(1) / (count * kept.sum(1)), abs=1e-3)


@pytest.mark.parametrize(
    "name, settings",
    [("FaithfulnessCorrelation", {"nr_runs": 10, "subset_size": 128}), ("MaxSensitivity", {"nr_samples": 2})],
)
def test_metrics_of_quantus_that_perturb_inputs_give_finite_numbers(
    name: str, settings: dict[str, Any]
) -> None:
    quantus = pytest.importorskip("quantus")
    np.random.seed(0)
    found = called(getattr(quantus, name)(disable_warnings=True, **settings))
    assert np.size(found)
    assert np.isfinite(found).all()


def test_weight_randomisation_of_quantus_finds_no_effect_of_weights_above_the_layer() -> None:
    quantus = pytest.importorskip("quantus")
    np.random.seed(0)
    metric = quantus.MPRT(
        disable_warnings=True, layer_order="bottom_up", similarity_func=quantus.correlation_pearson
    )
    found = called(metric, state_layer=first_layer(), solver=Solver(iterations=0))
    places = list(found)
    watched = max(i for i, name in enumerate(places) if name.startswith(first_layer()))
    similarity = np.array([np.ravel(found[name]) for name in places])  # to the original, from the bottom up
    assert (
        similarity[2 : watched + 1] < 0.95
    ).all()  # 0 is the original, 1 the table, for which we are not called
    assert (similarity[watched:] == similarity[watched]).all()
    assert watched < len(places) - 10


# inseq

PROMPT, ANSWER = "The film was", "The film was not bad and"


def inseq_model(model: Any, tokenizer: Any, **settings: Any) -> Any:
    inseq = pytest.importorskip("inseq")
    register_inseq()
    return inseq.load_model(model, "information_loss", tokenizer=tokenizer, **settings)


def attributed(model: Any, source: Any, text: Any, **settings: Any) -> Any:
    return model.attribute(
        source, text, attributed_fn="logit", show_progress=False, pretty_progress=False, **settings
    )


@cache
def decoder() -> Any:
    return tiny("gpt2", "GPT2LMHeadModel", initializer_range=0.3)


def test_inseq_finds_the_method_by_name_once() -> None:
    inseq = pytest.importorskip("inseq")
    assert register_inseq() is register_inseq()
    assert inseq.list_feature_attribution_methods().count("information_loss") == 1


@pytest.mark.parametrize("state", [None, "transformer.h.0"])
def test_inseq_gives_the_information_kept_of_the_prefix_when_a_token_is_generated(state: str | None) -> None:
    model, tokenizer = decoder().model, decoder().tokenizer
    settings = {} if state is None else {"state_layer": state}
    found = attributed(inseq_model(model, tokenizer, **settings), PROMPT, ANSWER, rate=0.2)
    [sequence] = found.sequence_attributions
    ids = tokenizer(ANSWER, return_tensors="pt")["input_ids"]
    start = tokenizer(PROMPT, return_tensors="pt")["input_ids"].shape[1]
    assert sequence.target_attributions.shape == (ids.shape[1], ids.shape[1] - start)
    for step, place in enumerate(range(start, ids.shape[1])):
        method = LayerInformationLoss(
            lambda ids, token=ids[0, place]: model(ids).logits[:, -1, token],
            model.get_input_embeddings(),
            None if state is None else model.get_submodule(state),
        )
        expected = method.attribute(ids[:, :place], score="kept", rate=0.2).sum(-1)[0]
        given = sequence.target_attributions[:, step]
        assert given[:place].tolist() == pytest.approx(expected.tolist(), rel=1e-3, abs=0.02)
        assert float(expected.max() - expected.min()) > 1  # there is something to compare
    assert "film" in found.show(display=False, return_html=True)


def test_inseq_gives_the_information_kept_of_source_and_prefix_of_an_encoder_decoder() -> None:
    pytest.importorskip("inseq")
    both = tiny("t5", "T5ForConditionalGeneration")
    model, tokenizer = both.model, both.tokenizer
    found = attributed(inseq_model(model, tokenizer), "The film was", "not bad")
    [sequence] = found.sequence_attributions
    assert sequence.target_attributions is None
    ids = tokenizer("The film was", return_tensors="pt")["input_ids"]
    prefix = torch.tensor([[token.id for token in sequence.target[:-1]]])
    for step in range(2):
        method = LayerInformationLoss(
            lambda ids, prefix, token=sequence.target[step + 1].id: model(
                input_ids=ids, decoder_input_ids=prefix
            ).logits[:, -1, token],
            both.embedding.layer,
        )
        expected = method.attribute(ids, additional_forward_args=prefix[:, : step + 1], score="kept").sum(-1)[
            0
        ]
        given = sequence.source_attributions[:, step]
        assert given.tolist() == pytest.approx(expected.tolist(), rel=1e-3, abs=0.02)
    found = attributed(inseq_model(model, tokenizer), "The film was", "not bad", attribute_target=True)
    [sequence] = found.sequence_attributions
    assert sequence.source_attributions.isfinite().all()
    assert (sequence.target_attributions[0] > 0).all()  # what the decoder starts with


def test_padding_of_a_batch_in_inseq_keeps_nothing() -> None:
    pytest.importorskip("inseq")
    loaded = inseq_model(decoder().model, decoder().tokenizer)
    texts, answers = [PROMPT, "The film was good and it was"], [ANSWER, "The film was good and it was funny"]
    together = attributed(loaded, texts, answers).sequence_attributions
    alone = attributed(loaded, texts[:1], answers[:1]).sequence_attributions
    a, b = (each[0].target_attributions.nan_to_num() for each in (together, alone))
    assert a.shape == b.shape
    assert a.sum(0).tolist() == pytest.approx(b.sum(0).tolist(), rel=0.1)  # other draws


def test_inseq_puts_the_noise_at_the_target_layer() -> None:
    model, tokenizer = decoder().model, decoder().tokenizer
    ids = tokenizer(ANSWER, return_tensors="pt")["input_ids"]
    for layer in ("transformer.h.0", model.transformer.h[0]):
        found = attributed(inseq_model(model, tokenizer, target_layer=layer), PROMPT, ANSWER)
        last = found.sequence_attributions[0].target_attributions[:-1, -1]
        method = LayerInformationLoss(
            lambda ids: model(ids).logits[:, -1, tokenizer(ANSWER)["input_ids"][-1]], model.transformer.h[0]
        )
        expected = method.attribute(ids[:, :-1], score="kept").sum(-1)[0]
        assert last.tolist() == pytest.approx(expected.tolist(), rel=1e-3, abs=0.02)
    t5 = tiny("t5", "T5ForConditionalGeneration")
    loaded = inseq_model(t5.model, t5.tokenizer, target_layer="decoder.block.0")
    with pytest.raises(ValueError, match=r"target_layer is T5Block.*a layer of the encoder"):
        attributed(loaded, "The film was", "not bad")
    with pytest.raises(TypeError, match="target_layr"):
        inseq_model(model, tokenizer, target_layr="transformer.h.0")


def test_results_of_inseq_with_a_solver_can_be_saved_loaded_and_repeated(tmp_path: Path) -> None:
    inseq = pytest.importorskip("inseq")
    loaded = inseq_model(decoder().model, decoder().tokenizer)
    found = attributed(loaded, PROMPT, ANSWER, solver=QUICK, max_sigma=torch.tensor(0.5))
    found.save(tmp_path / "found.json")
    again = inseq.FeatureAttributionOutput.load(tmp_path / "found.json")
    noted = again.info["attribution_args"]
    assert noted["solver"]["tolerance"] == QUICK.tolerance
    assert noted["max_sigma"] == 0.5
    a, b, c = (
        each.sequence_attributions[0].target_attributions
        for each in (found, again, attributed(loaded, PROMPT, ANSWER, **noted))
    )
    assert torch.equal(a.nan_to_num(), b.nan_to_num())
    assert torch.equal(a.nan_to_num(), c.nan_to_num())


@pytest.mark.parametrize("function, of", [("contrast_prob_diff", 1), ("contrast_logits_diff", 0)])
def test_inseq_contrasts_the_tokens_of_two_texts(function: str, of: int) -> None:
    model, tokenizer = decoder().model, decoder().tokenizer
    loaded, other = inseq_model(model, tokenizer), "The film was not bad film"
    a, b = (tokenizer(text, return_tensors="pt")["input_ids"] for text in (ANSWER, other))
    assert a.shape == b.shape
    [different] = (a != b)[0].nonzero()[:, 0].tolist()
    found = loaded.attribute(
        PROMPT,
        ANSWER,
        attributed_fn=function,
        contrast_targets=other,
        show_progress=False,
        pretty_progress=False,
    )
    scores = found.sequence_attributions[0].target_attributions
    start = len(a[0]) - scores.shape[1]

    def difference(ids: Tensor) -> Tensor:
        output: Tensor = model(ids).logits[:, -1]
        output = output.softmax(-1) if of else output
        return output[:, a[0, different]] - output[:, b[0, different]]

    method = LayerInformationLoss(difference, model.get_input_embeddings())
    expected = method.attribute(a[:, :different], score="kept").sum(-1)[0]
    assert scores[:different, different - start].tolist() == pytest.approx(
        expected.tolist(), rel=1e-3, abs=0.02
    )
    assert not scores[:start, 0].any()  # the same token: their difference is 0, whatever is before
    with pytest.raises(ValueError, match=r"2 texts are contrasted|batch size \(2\)"):
        loaded.attribute(
            [PROMPT] * 2,
            [ANSWER] * 2,
            attributed_fn=function,
            contrast_targets=[other] * 2,
            show_progress=False,
        )


def test_step_scores_of_inseq_show_whether_each_fit_converged() -> None:
    model, tokenizer = decoder().model, decoder().tokenizer
    found = attributed(inseq_model(model, tokenizer), PROMPT, ANSWER, step_scores=["probability"])
    [sequence] = found.sequence_attributions
    ids = tokenizer(ANSWER, return_tensors="pt")["input_ids"]
    start = ids.shape[1] - sequence.target_attributions.shape[1]
    for step, place in enumerate(range(start, ids.shape[1])):
        method = LayerInformationLoss(
            lambda ids, token=ids[0, place]: model(ids).logits[:, -1, token], model.get_input_embeddings()
        )
        fit = method.fit(ids[:, :place])
        assert bool(sequence.step_scores["converged"][step]) == bool(fit.converged)
        residual = float(fit.residual.abs().max())
        assert float(sequence.step_scores["residual"][step]) == pytest.approx(residual, rel=0.05, abs=2e-3)
    assert set(sequence.step_scores) == {"converged", "residual", "probability"}
    assert "converged" in found.show(display=False, return_html=True)


def test_inseq_refuses_the_score_loss() -> None:
    pytest.importorskip("inseq")
    with pytest.raises(ValueError, match="score is 'loss'"):
        attributed(inseq_model(decoder().model, decoder().tokenizer), PROMPT, ANSWER, score="loss")


# interpreto


def test_interpreto_gets_the_information_kept_of_each_token() -> None:
    pytest.importorskip("interpreto")
    outputs = to_interpreto(explained(), *classifier(), layer=1)
    for output, item in zip(outputs, explained(), strict=True):
        assert output.attributions.tolist() == [pytest.approx(item.scores().values[0].tolist())]
        assert len(output.elements) == len(item.tokens)
        assert classifier()[0].config.id2label[int(output.targets)] == item.predicted


def test_interpreto_gets_the_nats_of_its_own_words() -> None:
    pytest.importorskip("interpreto")
    [output] = to_interpreto(explained()[1], *classifier(), layer=2, granularity="word", aggregate="sum")
    joined = "".join(output.elements).replace(" ", "").replace("##", "")
    assert joined == TEXTS[1].replace(" ", "")
    kept = explained()[1].scores().values[1]
    assert float(output.attributions.sum()) == pytest.approx(float(kept[1:-1].sum()))  # all but [CLS], [SEP]


def test_interpreto_separates_the_words_of_a_pair() -> None:
    metrics = pytest.importorskip("interpreto.attributions.metrics")
    from interpreto import Granularity

    model, tokenizer = classifier()
    pair = TextExplainer(model, tokenizer).explain([("not bad", "it is unfunny")], layers=1, solver=QUICK)
    kept = pair[0].scores().values[0]
    [output] = to_interpreto(pair, model, tokenizer, granularity=Granularity.WORD)
    assert output.elements == ["not", "bad", "it", "is", "unfunny"]
    units = [[1], [2], [4], [5], [*range(6, len(pair[0].tokens) - 1)]]
    expected = [float(kept[unit].mean()) for unit in units]
    assert output.attributions[0].tolist() == pytest.approx(expected)
    area, [[curve]] = metrics.Deletion(model, tokenizer).evaluate([output])
    assert 0 < area < 1
    first = torch.tensor(tokenizer("not bad", "it is unfunny")["input_ids"])
    first[units[int(np.argmax(expected))]] = tokenizer.mask_token_id
    types = tokenizer("not bad", "it is unfunny", return_tensors="pt")["token_type_ids"]
    with torch.no_grad():
        logits = model(first[None], token_type_ids=types).logits
    assert float(curve[1]) == pytest.approx(float(logits.softmax(1)[0, int(output.targets)]), abs=1e-4)
    with pytest.raises(ValueError, match="'sentence' of interpreto joins the two texts"):
        to_interpreto(pair, model, tokenizer, granularity="sentence")


def test_deletion_and_insertion_of_interpreto_start_with_the_token_that_is_kept_most() -> None:
    pytest.importorskip("interpreto")
    metrics = pytest.importorskip("interpreto.attributions.metrics")
    model, tokenizer = classifier()
    outputs = to_interpreto(explained(), model, tokenizer, layer=2, granularity="token")
    for metric, first in ((metrics.Deletion, False), (metrics.Insertion, True)):
        area, curves = metric(model, tokenizer).evaluate(outputs)
        assert 0 < area < 1
        for item, [curve] in zip(explained(), curves, strict=True):
            ids = torch.tensor(tokenizer(item.text)["input_ids"])
            order = item.scores().values[-1][1:-1].argsort(descending=True, stable=True) + 1
            whole, empty = ids.clone(), ids.clone()
            empty[order] = tokenizer.mask_token_id
            for step in range(3):
                tokens = (empty if first else whole).clone()
                tokens[order[:step]] = ids[order[:step]] if first else tokenizer.mask_token_id
                with torch.no_grad():
                    probability = model(tokens[None]).logits.softmax(1)[
                        0, model.config.label2id[item.predicted]
                    ]
                assert float(curve[step]) == pytest.approx(float(probability), abs=1e-4)


def test_interpreto_plots_the_words(tmp_path: Path) -> None:
    interpreto = pytest.importorskip("interpreto")
    [output] = to_interpreto(explained()[0], *classifier(), layer=1, granularity="word")
    interpreto.plot_attributions(output, save_path=tmp_path / "plot.html")
    page = (tmp_path / "plot.html").read_text(encoding="utf-8")
    assert all(word in page for word in TEXTS[0].split())
    assert f"{float(output.attributions.max()):.4f}"[:6] in page


def test_interpreto_gets_the_requested_class() -> None:
    pytest.importorskip("interpreto")
    asked = TextExplainer(*classifier()).explain(TEXTS[0], layers="output", target=0)
    assert int(to_interpreto(asked, *classifier())[0].targets) == 0
    assert int(to_interpreto(asked, *classifier(), targets=1)[0].targets) == 1


def test_arguments_of_interpreto_that_do_not_fit_are_refused() -> None:
    pytest.importorskip("interpreto")
    other = tiny("bert", "BertForSequenceClassification")
    with pytest.raises(ValueError, match="this tokenizer gives"):
        to_interpreto(explained(), other.model, other.tokenizer)
    with pytest.raises(ValueError, match="granularity is 'letter': choose from all_tokens"):
        to_interpreto(explained(), *classifier(), granularity="letter")
    with pytest.raises(ValueError, match=r"next token.*register_inseq"):
        to_interpreto(explained(), decoder().model, decoder().tokenizer)
    bare = model_of("bert", "BertForSequenceClassification", num_labels=1)
    explained_score = TextExplainer(bare, other.tokenizer).explain("It was good", layers=1)
    with pytest.raises(ValueError, match="no predicted class"):
        to_interpreto(explained_score, bare, other.tokenizer)
