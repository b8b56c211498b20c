"""The amortised head: accuracy against known results, checks by the solver, and refusal of other models."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models
import torch
from tiny_plain import WORDS, cnn
from torch import Tensor, nn

from interp_plugin import AmortisedEstimator, Calibration, CorpusResult, CorpusStudy, PlainModel, Solver
from interp_plugin.amortised import estimator
from interp_plugin.amortised import head as heads
from interp_plugin.amortised.estimator import common_settings
from interp_plugin.corpus.study import is_checked
from interp_plugin.statistics import Agreement, HeldOut

SIZE, CAP, RATE = 6, 3.0, 0.1
VOCABULARY = 30
CLOSED = Solver(
    iterations=0
)  # exact for a linear state in which each element depends on one element of the input


class Gains(nn.Module):
    """Two linear states: each word's vector times the word's gain, and the mean of those."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embedding = nn.Embedding.from_pretrained(torch.randn(VOCABULARY, SIZE, generator=generator))
        self.register_buffer("gains", torch.linspace(-1.0, 1.0, VOCABULARY).exp())
        self.gains[0] = 1e-4  # a word that no state needs
        self.scaled, self.mean = nn.Identity(), nn.Identity()

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        keep = mask.unsqueeze(-1)
        scaled = self.scaled(self.embedding(ids) * self.gains[ids].unsqueeze(-1)) * keep
        mean: Tensor = self.mean(scaled.sum(1) / keep.sum(1))
        return mean


def gains(seed: int = 0, shift: int = 0) -> PlainModel:
    """Words are numbers; ``shift`` makes another tokenizer."""
    net = Gains(seed).eval()
    return PlainModel(
        net, lambda text: [(int(word) + shift) % VOCABULARY for word in text.split()], net.embedding,
        {"scaled": net.scaled, "mean": net.mean}, pads=True,
    )  # fmt: skip


UNIT = Calibration("Gains", 1, {"scaled": torch.full((SIZE,), 2.0), "mean": torch.full((SIZE,), 0.5)})


def truth(text: str) -> tuple[Tensor, Tensor]:
    """sigma of each word: sigma^2 = rate / (2 n c), and c is the gain^2 / (v^2 n) or gain^2 / (v^2 n^2)."""
    gain = Gains().gains[[int(word) for word in text.split()]]
    n = len(gain)
    return tuple(  # type: ignore[return-value]
        (math.sqrt(RATE / (2 * n)) * v * root / gain).clamp(max=CAP)
        for v, root in ((2.0, math.sqrt(n)), (0.5, n))
    )


def sentences(count: int, seed: int = 0, longest: int = 9) -> list[str]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        length = int(torch.randint(2, longest, (1,), generator=generator))
        found.append(" ".join(map(str, torch.randint(VOCABULARY, (length,), generator=generator).tolist())))
    return found


def of_gains(**settings: Any) -> CorpusStudy:
    usual = {"calibration": UNIT, "solver": CLOSED, "max_sigma": CAP, "rate": RATE}
    return CorpusStudy(gains(), **{**usual, **settings})


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> CorpusResult:
    """The solver's study of 160 sentences."""
    return of_gains().run(sentences(160), tmp_path_factory.mktemp("learned"), show_progress=False)


@pytest.fixture(scope="module")
def head(learned: CorpusResult) -> AmortisedEstimator:
    return AmortisedEstimator.train(gains(), None, learned, UNIT, show_progress=False)


# -- predictions


def test_the_closed_form_of_a_linear_state_is_recovered(head: AmortisedEstimator) -> None:
    new = sentences(40, seed=1)
    off = []
    for found in head.predict(new):
        for row, sigma in zip(found.rows, truth(found.text)):
            off.append((row.sigma.log() - sigma.log()).abs())
    assert float(torch.cat(off).square().mean().sqrt()) < 0.08
    assert (
        max(head.held_out.error) < 0.08
    )  # a tenth of the spread; another number of threads trains another head
    assert min(head.held_out.spearman) > 0.95


def test_a_word_that_no_state_needs_is_at_the_cap_with_error_0(head: AmortisedEstimator) -> None:
    [text] = head.predict("0 29 0 28")
    for row in text.rows:
        assert row.sigma[[0, 2]].tolist() == [CAP, CAP] == [row.max_sigma] * 2
        assert (row.standard_error > 0).tolist() == [False, True, False, True]


def test_the_standard_error_is_that_of_texts_held_out(head: AmortisedEstimator) -> None:
    [text] = head.predict("29 28 27")
    assert [float(row.standard_error[0]) for row in text.rows] == pytest.approx(head.held_out.error)
    assert [row.common_error for row in text.rows] == pytest.approx(head.held_out.mean_error)
    new = sentences(60, seed=2)
    for number in range(2):
        off = torch.cat([
            found.rows[number].sigma.log() - truth(found.text)[number].log() for found in head.predict(new)
        ])  # fmt: skip
        assert float(off.square().mean().sqrt()) < 2 * head.held_out.error[number]


def test_one_forward_a_batch_and_no_backward(head: AmortisedEstimator) -> None:
    runs = []
    hook = head.model.embedding.layer.register_forward_hook(lambda module, given, out: runs.append(len(out)))
    predicted = head.predict(sentences(12, longest=3), batch_size=4)
    hook.remove()
    assert runs == [4, 4, 4]
    assert {(row.n_forward, row.n_backward) for text in predicted for row in text.rows} == {(1, 0)}


def test_a_text_does_not_depend_on_its_batch_or_padding(head: AmortisedEstimator) -> None:
    some = ["1 2 3 4 5 6 7 8 9 10", "29 28 27 26 25 24 23 22 21", "5 7 9 11 13 15 17 19"]
    together = head.predict(some)
    for text, found in zip(some, together):
        for row, other in zip(found.rows, head.predict(text)[0].rows):
            torch.testing.assert_close(row.sigma, other.sigma, rtol=1e-4, atol=0)


def test_an_explanation_records_that_it_was_predicted(
    head: AmortisedEstimator, learned: CorpusResult
) -> None:
    predicted = head.predict("1 2 3")
    assert predicted.settings.amortised == head.digest
    assert learned.explanation().settings.amortised is None
    assert math.isnan(predicted[0].rows[0].regime_index)
    assert not predicted[0].rows[0].converged
    assert "3 tokens" in repr(predicted[0])


CASES = [
    ("bert", "BertForSequenceClassification", [1, 2, "output"]),
    ("gpt2", "GPT2LMHeadModel", [1, 2]),
    ("t5", "T5ForConditionalGeneration", ["encoder.1", "decoder.1"]),
]


@pytest.mark.parametrize("family, name, layers", CASES)
def test_models_of_hugging_face(family: str, name: str, layers: list[int | str], tmp_path: Path) -> None:
    """An encoder with its classes, a decoder, and states that have other tokens than the noise."""
    model = tiny_models.tiny(family, name)
    words = [
        "the",
        "film",
        "was",
        "not",
        "bad",
        "it",
        "good",
        "and",
        "funny",
        "a",
        "dull",
        "story",
        "with",
        "bold",
        "ending",
    ]
    some = [" ".join(words[(3 * i + j) % len(words)] for j in range(2 + i % 5)) for i in range(40)]
    found = CorpusStudy(model, layers=layers, solver=CLOSED).run(some, tmp_path, show_progress=False)
    head = AmortisedEstimator.train(model, None, found, held_out=0.2, epochs=20, show_progress=False)
    [text] = head.predict(some[3])
    assert text.layers == tuple(layers)
    solved = found.explanation([3])[0]
    for row, other in zip(text.rows, solved.rows):
        assert float((row.sigma.log() - other.sigma.log()).square().mean().sqrt()) < 1.0
    assert text.predicted == solved.predicted


def test_padding_and_pairs_on_a_transformer(tmp_path: Path) -> None:
    model = tiny_models.tiny("bert", "BertModel")
    words = ["the", "film", "was", "not", "bad", "it", "good", "and", "funny", "a", "dull", "story"]
    some = [(" ".join(words[i % 9 : i % 9 + 1 + i % 3]), words[i % 7]) for i in range(30)]
    found = CorpusStudy(model, layers=[1, 2], solver=CLOSED).run(some, tmp_path, show_progress=False)
    head = AmortisedEstimator.train(model, None, found, held_out=0.2, epochs=5, show_progress=False)
    given = [some[0], ("the film was not bad it good", "and funny"), some[4]]
    for pair, together in zip(given, head.predict(given)):
        for row, alone in zip(together.rows, head.predict([pair])[0].rows):
            torch.testing.assert_close(row.sigma, alone.sigma, rtol=1e-4, atol=0)


def test_a_forward_with_fewer_features_than_in_training_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_models.tiny("bert", "BertModel")
    some = [f"the film was {how}" for how in ("not bad", "good", "funny", "dull")] * 6
    found = CorpusStudy(model, layers=[1], solver=CLOSED).run(some, tmp_path, show_progress=False)
    head = AmortisedEstimator.train(model, None, found, held_out=0.3, epochs=1, show_progress=False)
    blind = gains()  # neither attends nor normalises
    monkeypatch.setattr(estimator, "watch", lambda model, encodings: heads.watch(blind, encodings))
    with pytest.raises(
        ValueError, match=r"numbers of each token, and the head was trained with .* kernel differs"
    ):
        head.predict(some[0])


# -- training and saving


def test_a_saved_head_predicts_the_same(head: AmortisedEstimator, tmp_path: Path) -> None:
    head.save(tmp_path / "head.safetensors")
    again = AmortisedEstimator.load(tmp_path / "head.safetensors", gains())
    assert (again.digest, again.about.texts, again.held_out) == (head.digest, head.about.texts, head.held_out)
    assert again.calibration is not None
    assert again.calibration.digest == UNIT.digest
    for one, two in zip(head.predict(sentences(5)), again.predict(sentences(5))):
        assert one == two


def test_training_leaves_model_and_random_state_alone_and_repeats(learned: CorpusResult) -> None:
    model = gains()
    before = torch.random.get_rng_state()
    heads = [
        AmortisedEstimator.train(model, None, learned, UNIT, epochs=2, show_progress=False) for _ in range(2)
    ]
    assert torch.equal(before, torch.random.get_rng_state())
    assert heads[0].digest == heads[1].digest
    assert not any(module._forward_hooks for module in model.module.modules())
    other = AmortisedEstimator.train(model, None, learned, UNIT, epochs=2, seed=1, show_progress=False)
    assert other.digest != heads[0].digest


def test_training_may_have_a_single_step(tmp_path: Path) -> None:
    few = of_gains().run([str(i) for i in range(24)], tmp_path, show_progress=False)
    head = AmortisedEstimator.train(gains(), None, few, UNIT, held_out=0.5, epochs=1, show_progress=False)
    assert head.about.texts <= 16  # a batch: the schedule of a single step used to be an error
    assert head.predict("1 2")[0].rows[0].sigma.isfinite().all()


def test_several_studies_and_their_folders(learned: CorpusResult, tmp_path: Path) -> None:
    more = of_gains(solver=replace(CLOSED, seed=5)).run(sentences(20, 3), tmp_path, show_progress=False)
    head = AmortisedEstimator.train(
        gains(), None, [learned, str(tmp_path)], UNIT, epochs=1, show_progress=False
    )
    assert head.about.texts + head.held_out.texts == learned.texts + more.texts


def test_equal_texts_are_all_used_for_training_or_all_held_out(tmp_path: Path) -> None:
    same = of_gains().run(["1 2 3"] * 30, tmp_path, show_progress=False)
    with pytest.raises(ValueError, match="both need at least 2"):
        AmortisedEstimator.train(gains(), None, same, UNIT, show_progress=False)


# -- refusals


def refusal(model: PlainModel, result: Any, unit: Calibration | None = UNIT, **settings: Any) -> str:
    with pytest.raises(ValueError) as error:
        AmortisedEstimator.train(model, None, result, unit, show_progress=False, **settings)
    return str(error.value)


def test_studies_unsuitable_for_training_are_refused(
    learned: CorpusResult, head: AmortisedEstimator, tmp_path: Path
) -> None:
    assert "weights is" in refusal(gains(seed=1), learned)
    assert "other tokens" in refusal(gains(shift=1), learned) or "tokenizer" in refusal(
        gains(shift=1), learned
    )
    assert "calibration is None here" in refusal(gains(), learned, None)
    assert "at least one" in refusal(gains(), [])
    assert "held_out is 0.0" in refusal(gains(), learned, held_out=0.0)
    few = of_gains().run(sentences(5), tmp_path / "few", show_progress=False)
    assert "at least 20" in refusal(gains(), few)
    erased = of_gains(score="erased", ways=("delete",)).run(sentences(3), tmp_path / "e", show_progress=False)
    assert "is of erasures, and a head predicts sigma" in refusal(gains(), erased)
    own = of_gains(amortised=head).run(sentences(3), tmp_path / "own", show_progress=False)
    assert "was predicted by a head" in refusal(gains(), own)
    other = of_gains(rate=0.2).run(sentences(3), tmp_path / "other", show_progress=False)
    assert "rate is 0.2 here and 0.1 there" in refusal(gains(), [learned, other])


def test_a_head_refuses_another_model_tokenizer_and_file(head: AmortisedEstimator, tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    head.save(path)
    with pytest.raises(ValueError, match=r"made for other settings.*weights is"):
        AmortisedEstimator.load(path, gains(seed=1))
    with pytest.raises(ValueError, match="trained with another tokenizer"):
        AmortisedEstimator.load(path, gains(shift=1))
    UNIT.save(tmp_path / "unit.safetensors")
    with pytest.raises(ValueError, match="'interp_plugin calibration 3'"):
        AmortisedEstimator.load(tmp_path / "unit.safetensors", gains())
    path.write_bytes(b"no head")
    with pytest.raises(ValueError, match="not a safetensors file"):
        AmortisedEstimator.load(path, gains())


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"rate": 0.2}, "rate is 0.2 here and 0.1 there"),
        ({"max_sigma": 2.0}, "max_sigma is 2.0"),
        ({"layers": ["mean"]}, r"layers is \['mean'\] here"),
        ({"score": "erased"}, "predicts sigma, and score='erased' learns erasures"),
        ({"noise_layer": "scaled"}, "noise_layer is 'scaled'"),
    ],
)
def test_a_study_with_other_settings_than_the_heads_is_refused(
    head: AmortisedEstimator, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        of_gains(amortised=head, **settings)


def test_a_study_takes_the_heads_calibration_and_layers_by_default(
    head: AmortisedEstimator,
) -> None:
    study = of_gains(amortised=head, calibration=None, layers="all")
    assert study.settings(1)["calibration"] == UNIT.digest
    assert study.settings(1)["layers"] == list(head.layers)


def test_a_study_must_have_the_heads_model_and_tokenizer(head: AmortisedEstimator) -> None:
    for model in (gains(seed=1), gains(shift=1)):
        with pytest.raises(ValueError, match=r"weights is|another tokenizer"):
            CorpusStudy(model, calibration=UNIT, max_sigma=CAP, amortised=head)


def test_the_output_of_a_language_model_is_refused(tmp_path: Path) -> None:
    model = tiny_models.tiny("gpt2", "GPT2LMHeadModel")
    found = CorpusStudy(model, layers=["output"], solver=CLOSED).run(
        ["the film was"], tmp_path, show_progress=False
    )
    with pytest.raises(ValueError, match="depends on its target"):
        AmortisedEstimator.train(model, None, found, show_progress=False)


# -- a study with a head


def predicted(head: AmortisedEstimator, given: list[str], folder: Path, **settings: Any) -> CorpusResult:
    return of_gains(amortised=head, **settings).run(given, folder, window=16, show_progress=False)


def test_a_study_without_input_std_is_refused(learned: CorpusResult) -> None:
    own = SimpleNamespace(path="own", is_erased=False, settings={**learned.settings, "input_std": None})
    with pytest.raises(ValueError, match="'own' has no input_std, so every text has its own"):
        common_settings([own])  # type: ignore[list-item]


def test_the_rows_are_the_heads_and_some_are_solved_too(head: AmortisedEstimator, tmp_path: Path) -> None:
    given = sentences(50, seed=4)
    result = predicted(head, given, tmp_path)
    for found, expected in zip(result.explanation(), head.predict(given)):
        for row, other in zip(found.rows, expected.rows):
            torch.testing.assert_close(row.sigma, other.sigma, rtol=1e-4, atol=0)
    assert result.explanation().settings.amortised == head.digest
    assert set(result.table()["n_forward"]) == {1}
    checked = [row for row in range(50) if is_checked(row)]
    table = result.check()
    assert table["texts"].tolist() == [len(checked)] * 2
    for number, line in enumerate(table.itertuples()):
        off = [
            head.predict(given[row])[0].rows[number].sigma.log() - truth(given[row])[number].log()
            for row in checked
        ]
        square = torch.stack([each.square().mean() for each in off]).mean()
        assert line.error == pytest.approx(float(square.sqrt()), rel=1e-3)
        std, differences = result.settings["input_std"], []
        for row in checked:  # information kept at the cap cancels in the difference
            pair = head.predict(given[row])[0].rows[number].sigma, truth(given[row])[number]
            ours, theirs = (SIZE / 2 * (1 + (std / sigma.double()) ** 2).log() for sigma in pair)
            differences.append((ours - theirs).mean())
        nats = torch.stack(differences)
        assert line.shift == pytest.approx(float(nats.mean()), abs=1e-4)
        assert line.shift_error == pytest.approx(float(nats.std() / math.sqrt(len(nats))), rel=1e-2)


def test_a_stopped_study_continues_with_the_same_rows_and_checks(
    head: AmortisedEstimator, tmp_path: Path
) -> None:
    given = sentences(50, seed=4)
    whole = predicted(head, given, tmp_path / "whole")
    half = predicted(head, given, tmp_path / "half")
    half.parts[1].path.unlink()
    half.parts[3].path.write_bytes(b"cut off")
    again = predicted(head, given, tmp_path / "half")
    assert again.table().equals(whole.table())
    assert again.check().equals(whole.check())


def test_predicted_and_solved_numbers_never_share_a_folder(head: AmortisedEstimator, tmp_path: Path) -> None:
    given = sentences(8, seed=4)
    predicted(head, given, tmp_path / "predicted")
    with pytest.raises(ValueError, match="other settings: amortised is None now"):
        of_gains().run(given, tmp_path / "predicted", window=16, show_progress=False)
    of_gains().run(given, tmp_path / "solved", window=16, show_progress=False)
    with pytest.raises(ValueError, match="other settings: amortised is"):
        predicted(head, given, tmp_path / "solved")
    with pytest.raises(ValueError, match="nothing was predicted"):
        CorpusResult.load(tmp_path / "solved").check()


def test_tables_and_pages_of_predictions(
    head: AmortisedEstimator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = predicted(head, [*sentences(20, seed=4), "  "], tmp_path)
        page = result.to_html()
        result.show()
        result.layers()
        result.plot("curve")
    assert "Predicted against solved" in str(page)
    assert "Regime index E over" not in str(page)
    printed = " ".join(capsys.readouterr().out.split())
    assert (
        "The solver checked" in printed and "predicted" in printed
    )  # a separate column, not "converged 0 %"
    assert [failure.row for failure in result.failures()] == [20]
    with pytest.raises(ValueError, match="E is known only"):
        result.plot("regime")


def test_one_row_in_a_hundred_is_checked_with_more_near_the_beginning() -> None:
    assert is_checked(0)
    assert 3 <= sum(map(is_checked, range(10))) <= 10
    assert 15 <= sum(map(is_checked, range(400))) <= 35
    assert 0.008 < sum(map(is_checked, range(10_000, 60_000))) / 50_000 < 0.012


def test_a_corpus_like_the_training_texts_raises_no_warning_and_another_does(tmp_path: Path) -> None:
    """The head saw six of the twelve words; the others are new to it."""

    def some(words: list[str], count: int, seed: int) -> list[str]:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(2, 8, (count,), generator=generator).tolist()
        places = [torch.randint(len(words), (n,), generator=generator).tolist() for n in lengths]
        return [" ".join(words[i] for i in each) for each in places]

    def of_cnn(**settings: Any) -> CorpusStudy:
        return CorpusStudy(cnn(), solver=Solver(tolerance=0.1), layers="features", **settings)

    learned = of_cnn().run(some(WORDS[:6], 120, 0), tmp_path / "learned", show_progress=False)
    head = AmortisedEstimator.train(cnn(), None, learned, held_out=0.25, show_progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = of_cnn(amortised=head).run(some(WORDS[:6], 150, 1), tmp_path / "same", show_progress=False)
    assert not same.check()["drift"].any()
    with pytest.warns(UserWarning, match="error of log sigma is larger on this corpus"):
        other = of_cnn(amortised=head).run(some(WORDS[6:], 150, 1), tmp_path / "other", show_progress=False)
    assert other.check()["drift"].all()


# -- the statistics of a check


def test_agreement_equals_scipy_and_plain_formulas() -> None:
    from scipy.stats import spearmanr

    generator = torch.Generator().manual_seed(0)
    texts = [[tuple(torch.rand(4, 7, generator=generator).double().numpy())] for _ in range(3)]
    found = Agreement.of(texts)  # type: ignore[arg-type]
    for number, [(ours, error, theirs, other)] in enumerate(texts):
        assert found.spearman[number, 0] == pytest.approx(spearmanr(ours, theirs).statistic)
        assert found.square[number, 0] == pytest.approx(((ours - theirs) ** 2).mean())
        assert found.shift[number, 0] == pytest.approx((ours - theirs).mean())
        assert found.noise[number, 0] == pytest.approx((other**2).mean())
        inside = abs(ours - theirs) <= 2 * (error**2 + other**2) ** 0.5
        assert found.covered[number, 0] == pytest.approx(inside.mean())
    known = HeldOut.of(found)
    assert known.error[0] == pytest.approx(found.square.mean() ** 0.5)
    assert known.mean_error[0] == pytest.approx((found.shift**2).mean() ** 0.5)
