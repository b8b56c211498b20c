"""States of few elements, such as class outputs: exact where linear, at a smaller rate where need be, and honest."""

import math
import warnings
from itertools import combinations

import pytest
import torch
from scipy import stats
from torch import nn

from interp_plugin import InformationLoss, LayerInformationLoss, Solver, TextExplainer, huggingface
from interp_plugin.method.few import UNSEEN

RATE = 0.1


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def classifier():
    model, tokenizer = huggingface.load(huggingface.default_model_path())
    return model.requires_grad_(False), tokenizer


@pytest.mark.parametrize("seed", range(12))
def test_a_linear_state_of_one_number_is_exact_whatever_the_draws(seed):
    x, weights = normal(2, 1, 5, 1 + seed % 3, seed=seed)
    fit = InformationLoss(lambda x: (weights * x).sum((1, 2))).fit(x, max_sigma=1e4, solver=Solver(seed=seed))
    v2 = float((weights * x).sum()) ** 2
    expected = (RATE / 10 * v2 / weights.square().sum(2)).sqrt()
    torch.testing.assert_close(fit.sigma, expected, rtol=1e-4, atol=0)
    assert fit.converged.item() and fit.rate.item() == pytest.approx(RATE)
    assert fit.regime_index.item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("size", [1, 2])
def test_a_quadratic_state_of_few_elements_is_within_its_errors(size):
    # D = sum over elements of 4 x^2 s^2 + 3 s^4, over M v^2
    outside = 0
    for seed in range(12):
        x = normal(1, 6, size, seed=seed)
        fit = InformationLoss(lambda x: x**2).fit(x, max_sigma=100.0, solver=Solver(seed=seed))
        goal, square = float(fit.rate) / 6, x[0].double().square().sum(1)
        scale = x.numel() * float(x.double().pow(4).mean())
        root = (-8 * square + (64 * square.square() + 48 * size * goal * scale).sqrt()) / (24 * size)
        error = (fit.sigma[0].double().log() - root.log() / 2) / fit.standard_error[0].clamp(min=1e-3)
        outside += int((error.abs() > 3).sum()) if fit.converged else 0
        assert not fit.converged or error.abs().max() < 5
    assert outside <= 3  # of at most 72


@pytest.mark.parametrize("text", ["a gorgeous , witty , seductive movie .", "it is a bore"])
def test_maps_of_a_class_agree_between_seeds_and_say_at_which_rate(classifier, text):
    model, tokenizer = classifier
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    target = int(model(ids).logits.argmax())
    method = LayerInformationLoss(lambda ids: model(ids).logits, model.bert.embeddings.word_embeddings)
    fits = [method.fit(ids, target=target, solver=Solver(seed=seed)) for seed in range(3)]
    assert all(fit.converged for fit in fits)
    assert len({float(fit.rate) for fit in fits}) == 1 and float(fits[0].rate) < RATE
    ranks = [stats.spearmanr(a.sigma[0], b.sigma[0]).statistic for a, b in combinations(fits, 2)]
    assert min(ranks) > 0.9
    gaps = [
        (a.sigma.log() - b.sigma.log()) / (a.standard_error.square() + b.standard_error.square()).sqrt()
        for a, b in combinations(fits, 2)
    ]
    assert (torch.cat(gaps).abs() < 2).float().mean() > 0.85
    assert max(int(fit.n_backward) for fit in fits) <= 250


def test_the_rate_that_is_solved_does_not_depend_on_the_tolerance_or_the_budget(classifier):
    model, tokenizer = classifier
    ids = tokenizer("a funny film", return_tensors="pt")["input_ids"]
    method = LayerInformationLoss(lambda ids: model(ids).logits, model.bert.embeddings)
    solvers = (Solver(tolerance=0.05), Solver(), Solver(tolerance=0.01), Solver(max_passes=56, seed=3))
    fits = [method.fit(ids, target=1, solver=solver) for solver in solvers]
    assert len({float(fit.rate) for fit in fits}) == 1
    for a, b in combinations(fits[:3], 2):
        error = (a.standard_error.square() + b.standard_error.square()).sqrt()
        assert ((a.sigma.log() - b.sigma.log()).abs() < 3 * error).all()


def test_noise_at_the_embedding_block_is_not_all_at_the_cap(classifier):
    """It was, and called converged: the cap came from the table inside the block."""
    model, tokenizer = classifier
    ids = tokenizer("a funny film", return_tensors="pt")["input_ids"]
    fit = LayerInformationLoss(lambda ids: model(ids).logits, model.bert.embeddings).fit(ids, target=1)
    assert not fit.at_cap.any() and fit.converged.item()


def test_a_batch_of_class_outputs_is_its_single_examples():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4 * 8, 16), nn.Tanh(), nn.Linear(16, 3)).requires_grad_(False)
    x = normal(3, 4, 8)
    together = InformationLoss(net).fit(x, target=[0, 1, 2])
    for i in range(3):
        alone = InformationLoss(net).fit(x[i : i + 1], target=i)
        torch.testing.assert_close(together.sigma[i], alone.sigma[0], rtol=1e-4, atol=0)
        assert together.rate[i] == alone.rate[0]


def test_attribute_warns_once_of_a_smaller_rate_and_of_what_did_not_converge(classifier):
    model, tokenizer = classifier
    ids = tokenizer("a funny film", return_tensors="pt")["input_ids"]
    method = LayerInformationLoss(lambda ids: model(ids).logits, model.bert.embeddings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        method.attribute(ids, target=1, solver=Solver(max_passes=28))
    [message] = [str(warning.message) for warning in caught]
    assert "1 of 1 examples did not converge" in message and "max_passes" in message
    assert "smaller rate" in message and caught[0].filename == __file__


def test_the_asked_rate_can_be_kept(classifier):
    model, tokenizer = classifier
    ids = tokenizer("a funny film", return_tensors="pt")["input_ids"]
    method = LayerInformationLoss(lambda ids: model(ids).logits, model.bert.embeddings)
    fit = method.fit(ids, target=1, solver=Solver(lower_rate=False))
    assert fit.rate.item() == pytest.approx(RATE)


def test_all_at_the_cap_is_not_converged_where_the_closed_form_says_otherwise():
    # far beyond the first minimum noise costs a saturated state nothing more
    fit = InformationLoss(lambda x: torch.tanh(1e3 * x).repeat(1, 1, 40)).fit(
        1e-4 * normal(1, 3, 16).sign(), max_sigma=10.0, rate=3.0, solver=Solver(lower_rate=False)
    )
    assert not (fit.converged & fit.at_cap.all(1)).any()


def test_a_looser_tolerance_has_no_smaller_budget():
    assert Solver(tolerance=0.1).max_rounds == Solver().max_rounds < Solver(tolerance=0.005).max_rounds
    assert Solver(max_passes=280).max_rounds == 10
    with pytest.raises(ValueError, match="max_passes is 5, and one round takes 28"):
        Solver(max_passes=5)


def test_a_state_that_is_not_linear_has_no_standard_error_of_nothing():
    torch.manual_seed(4)  # a rectifier's kinks are rare where noise is small
    net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 3)).requires_grad_(False)
    fit = InformationLoss(net).fit(normal(1, 10, seed=4), target=1)
    assert fit.standard_error[~fit.at_cap].min() >= 0.99 * UNSEEN or fit.standard_error.max() < 1e-4


def test_pages_and_tables_mark_a_row_of_a_smaller_rate(classifier, capsys):
    explanation = TextExplainer(*classifier).explain("a funny film", layers=[1, "output"], target=1)
    rows = explanation.to_dict()["texts"][0]["rows"]
    assert rows[0]["rate"] == pytest.approx(RATE) and rows[1]["rate"] < RATE
    explanation.show()
    printed = capsys.readouterr().out
    assert "Solved at a smaller rate" in printed and "not with other rows" in " ".join(printed.split())
    page = explanation.to_html()
    assert "Solved at a smaller rate" in page and "<strong>rate " in page


def test_the_distortion_of_a_class_is_what_fresh_draws_say(classifier):
    model, tokenizer = classifier
    ids = tokenizer("a funny film", return_tensors="pt")["input_ids"]
    fit = LayerInformationLoss(lambda ids: model(ids).logits, model.bert.embeddings).fit(ids, target=1)
    with torch.no_grad():
        x = model.bert.embeddings(ids)
        phi = lambda x: model.classifier(  # noqa: E731
            model.bert.pooler(model.bert.encoder(x).last_hidden_state)
        )[:, 1]
        moved = phi(x + fit.sigma[..., None] * normal(2048, *x.shape[1:], seed=9)) / phi(x) - 1
    values = moved.square()
    assert math.isclose(
        fit.distortion, values.mean(), rel_tol=4 * float(values.std() / values.mean()) / 2048**0.5
    )
