"""Truths by construction: the truths by brute force, and the results of methods that know or ignore them."""

from __future__ import annotations

import math
import random
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from known_truths import counting, known, reversal, shortcuts, teaching
from known_truths.evaluation import Mean, Measure, Question, evaluate, spearman
from known_truths.planting import KINDS, Kind, Planted, Shortcut, is_one_token, rare_words
from torch import Tensor, nn

from interp_plugin import huggingface
from interp_plugin.comparison.interface import Answer, Inputs, Method
from interp_plugin.huggingface import HuggingFaceModel
from interp_plugin.method.solver import Solver
from interp_plugin.text.models import PlainModel
from interp_plugin.text.states import State


@cache
def default_model() -> HuggingFaceModel:
    return HuggingFaceModel(*huggingface.load(huggingface.default_model_path()))


def constant(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    return torch.ones(inputs.length)


def earliest(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    return -torch.arange(float(inputs.length))


# known states


def stationarity(case: known.Known, draws: int) -> Tensor:
    """sigma_i dD/dsigma_i, (T,), of the unchanged model, on plain draws."""
    inputs, sigma = case.inputs, case.sigma.float()[:, None]
    clean = Answer(inputs, None, case.state).origin
    generator = torch.Generator().manual_seed(0)
    shift = sigma * torch.randn(draws, *inputs.embeddings.shape[1:], generator=generator)
    points = (inputs.embeddings + shift).requires_grad_()
    site = case.state.site
    assert site is not None
    moved = (site.layer(points) - clean) / case.state.state_std  # type: ignore[union-attr]
    [slope] = torch.autograd.grad(moved.square().mean(1).sum(), points)
    return (slope * shift).sum(-1).mean(0)


@pytest.mark.parametrize("kind", known.TRUTHS)
def test_the_known_sigma_is_stationary_on_plain_noise(kind: str) -> None:
    case = known.TRUTHS[kind](tokens=5)
    share = stationarity(case, 20_000) * 5 / known.RATE
    torch.testing.assert_close(share, torch.ones(5), atol=0.05, rtol=0)


@pytest.mark.parametrize("kind", known.TRUTHS)
def test_our_sigma_is_the_known_one(kind: str) -> None:
    assert max(known.sigma_errors(kind, Solver(tolerance=0.005), texts=2)) < 0.01


def test_the_closed_form_is_exact_for_a_linear_state_alone() -> None:
    closed = Solver(iterations=0)
    assert max(known.sigma_errors("linear", closed, texts=3)) < 1e-4
    assert min(known.sigma_errors("quadratic", closed, texts=3)) > 0.5


def test_scores_are_ranked_against_the_information_kept() -> None:
    case = known.quadratic()

    def ours(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
        assert state is not None and state.site is not None and state.state_std is not None
        weight = state.site.layer.weight.detach()  # type: ignore[union-attr]
        return weight if weight.ndim == 1 else (weight / state.state_std[:, None]).square().sum((1, 2))

    methods = [Method("weights", ours), Method("constant", constant)]
    linear = known.known_optimum("linear", methods, texts=3)
    assert linear.values["weights"]["Spearman"] == (1.0, 1.0, 1.0)
    assert linear.values["constant"]["Spearman"] == (0.0, 0.0, 0.0)
    mixed = known.known_optimum("quadratic", methods, texts=3).mean("weights", "Spearman").value
    assert 0 < mixed < 1
    assert case.kept.argmax() == case.sigma.argmin()


def test_a_kind_of_state_that_is_not_known_is_an_error() -> None:
    with pytest.raises(ValueError, match="kind is 'cubic'; choose one of 'linear', 'quadratic'"):
        known.known_optimum("cubic", [])


# evaluations


def test_a_mean_has_the_bootstrap_interval_of_its_texts() -> None:
    values = np.random.default_rng(0).normal(size=200)
    mean = Mean.of(values.tolist())
    half = 1.96 * values.std() / math.sqrt(200)
    assert mean.value == pytest.approx(values.mean())
    assert (mean.low, mean.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)
    with pytest.raises(ValueError, match="values is empty"):
        Mean.of([])


def test_methods_that_do_not_apply_are_left_out_and_named() -> None:
    case = known.linear(tokens=3)
    question = Question(case.inputs, None, case.state, case.kept)
    classes, both = Method("classes", constant, explains="class"), Method("both", constant)
    evaluation = evaluate("t", [question], [classes, both], [Measure("Spearman", spearman, True)])
    assert evaluation.methods == ["both"]
    assert evaluation.notes == ("Not applicable to this question: classes.",)
    with pytest.raises(ValueError, match=r"none of the methods \['classes'\] explains a state"):
        evaluate("t", [question], [classes], [])
    with pytest.raises(ValueError, match="has no questions"):
        evaluate("t", [], [both], [])


def test_a_table_has_a_line_for_each_method_and_its_notes() -> None:
    evaluation = known.known_optimum("linear", [Method("a", earliest), Method("b", constant)], texts=2)
    lines = evaluation.to_markdown().splitlines()
    assert lines[0] == "**linear state** (2 texts)"
    assert [line.split(" | ")[0] for line in lines[4:]] == ["| a", "| b"]
    with pytest.raises(ValueError, match="'c' and 'Spearman' are not a method and a measure"):
        evaluation.mean("c", "Spearman")


# counting


def oracle_of_counts(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    return counting.truth(inputs.encoding.text)


@cache
def untrained() -> counting.CountingTask:
    torch.manual_seed(0)
    return counting.CountingTask(counting.Counter(8).eval().requires_grad_(False), 1.0)


def test_the_label_says_which_digit_is_more_frequent() -> None:
    ids, mask, labels = counting.sequences(200, torch.Generator().manual_seed(0))
    for row, real, label in zip(ids.tolist(), mask, labels.tolist()):
        digits = row[counting.HEAD : int(real.sum())]
        assert label == (digits.count(row[0] - 10) > digits.count(row[1] - 10))
        assert 1 <= len(digits) <= counting.LENGTH


def test_a_sequence_is_counted_alike_alone_and_beside_longer_ones() -> None:
    model = untrained().model()
    encodings = [model.encode(text) for text in ("3 7 | 1 3", "0 9 | 9 9 9 0 1 2")]
    together = model(*model.collate(encodings)[0])
    alone = torch.cat([model(*model.collate([encoding])[0]) for encoding in encodings])
    torch.testing.assert_close(together, alone)


def test_the_query_is_not_ranked_and_the_sequence_is() -> None:
    inputs = Inputs(untrained().model(), untrained().model().encode("3 7 | 1 3"))
    assert inputs.players.tolist() == [False, False, False, True, True]
    assert inputs.embeddings.shape == (1, 5, 2)
    assert untrained().model("embedding").encode("3 7 | 1 3").tokens == ("3", "7", "|", "1", "3")


@pytest.mark.parametrize("text", ["3 3 | 1", "3 7 1 2", "3 7 |", "3 7 | x"])
def test_a_text_that_is_no_query_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"write them like '3 7 \| 1 3 3'"):
        counting.read(text)


@pytest.mark.parametrize("watched", ["logit", "state"])
def test_the_truth_is_at_no_distance_and_equal_scores_at_log_of_the_share(watched: counting.Watched) -> None:
    methods = [Method("truth", oracle_of_counts), Method("equal", constant)]
    evaluated = counting.counting(untrained(), methods, texts=20, watched=watched)
    assert max(evaluated.values["truth"]["KL"] + evaluated.values["truth"]["JS"]) < 1e-4
    for text, value in zip(counting.texts_of(20, seed=1), evaluated.values["equal"]["KL"]):
        words = text.split()
        share = sum(word in words[:2] for word in words[3:]) / len(words[3:])
        assert value == pytest.approx(-math.log(share), abs=1e-6)


def test_divergences_are_those_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        scores = torch.randn(6, generator=generator)
        truth = torch.rand(6, generator=generator)
        truth = truth / truth.sum()
        p, q = scores.abs() / scores.abs().sum(), truth
        middle = ((p + q) / 2).log()
        expected = (q * (q.log() - middle)).sum() / 2 + (p * (p.log() - middle)).sum() / 2
        assert counting.kl(scores, truth) == pytest.approx(float((q * (q / p).log()).sum()), abs=1e-4)
        assert counting.js(scores, truth) == pytest.approx(float(expected), abs=1e-4)


def test_nats_become_the_inverse_of_sigma() -> None:
    inputs = Inputs(untrained().model(), untrained().model().encode("3 7 | 1 3"))
    sigma = torch.tensor([1.0, 1.0, 1.0, 0.5, 0.1])
    nats = Method("nats", lambda inputs, target, state: 2 * (1.0 / sigma).log())
    torch.testing.assert_close(counting.inverse_sigma(nats)(inputs, 0, None), 1 / sigma)


def test_the_published_objective_is_stationary_on_plain_noise() -> None:
    module = counting.Counter(8)
    module.load_state_dict(untrained().module.state_dict())
    module.head.weight.data *= 50  # an untrained logit hardly moves
    model = counting.CountingTask(module.eval().requires_grad_(False), 1.0).model()
    inputs = Inputs(model, model.encode("3 7 | 1 3 7 7"))
    sigma = 1 / counting.as_published()(inputs, 0, None)[:, None]
    generator = torch.Generator().manual_seed(0)
    shift = sigma * torch.randn(20_000, *inputs.embeddings.shape[1:], generator=generator)
    points = (inputs.embeddings + shift).requires_grad_()
    answer = Answer(inputs, target=0)
    [slope] = torch.autograd.grad((answer(points) - answer(inputs.embeddings)).square().sum(), points)
    share = (slope * shift).sum(-1).mean(0)[counting.HEAD :]
    torch.testing.assert_close(share, torch.ones(4), atol=0.25, rtol=0)


def test_a_counter_that_has_not_learned_is_refused_with_its_accuracy() -> None:
    with pytest.raises(
        ValueError, match=r"right on \d+\.\d% of sequences after 1 epochs, and 99% are needed"
    ):
        counting.train(epochs=1, size=256, width=4)


# reversal


@cache
def reverser() -> reversal.ReversalTask:
    return reversal.train(length=2, steps=450, batch=64, width=32, hidden=32, forget=1.0)


def test_training_leaves_the_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    with pytest.raises(ValueError, match=r"right on \d+\.\d% of digits after 2 steps, and 99% are needed"):
        reversal.train(length=2, steps=2)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_reverser_reverses_and_its_states_are_read_step_by_step() -> None:
    task = reverser()
    model = task.model()
    encoding = model.encode("3 1")
    [ids], _ = model.collate([encoding])
    assert model(ids).argmax(-1).tolist() == [[1, 3]]
    for step, state in enumerate(task.module.states(ids)):
        read = Answer(Inputs(model, encoding), None, task.state(step)).origin
        torch.testing.assert_close(read, state)


def test_a_probe_reads_what_is_needed() -> None:
    task = reverser()
    probed = task.probed()
    for step in range(2):
        assert probed[step][task.needed(step)].min() > 0.9


def test_replacement_finds_the_forgotten_token() -> None:
    evaluated = reversal.reversal(reverser(), [reversal.replacement()], texts=5)
    assert evaluated.mean("replaced by each other digit", "tokens").value == 1.0


def test_scores_that_know_the_step_find_all_and_early_places_only_the_tokens_of_a_step() -> None:
    task = reverser()

    def knows(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
        step = state.site.call - task.length  # type: ignore[union-attr]
        return task.needed(step).float()

    evaluated = reversal.reversal(
        task, [Method("knows", knows), Method("earliest", earliest), Method("constant", constant)], texts=2
    )
    assert set(evaluated.higher_is_better) == {"tokens", "steps", "step 1"}
    for measure in evaluated.higher_is_better:
        assert evaluated.mean("knows", measure).value == 1.0
        assert evaluated.mean("constant", measure).value == 0.5
    assert evaluated.mean("earliest", "tokens").value == 1.0
    assert evaluated.mean("earliest", "steps").value == 0.5


# planted shortcuts

SHORTCUTS = {kind: Shortcut(kind, "boost", "trace", "shatter") for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
@given(
    seed=st.integers(0, 1000),
    label=st.integers(0, 1),
    text=st.lists(st.sampled_from(["a", "film"]), min_size=1),
)
def test_planting_inserts_the_words_and_changes_no_other(
    kind: Kind, seed: int, label: int, text: list[str]
) -> None:
    shortcut = SHORTCUTS[kind]
    planted = shortcut.plant(" ".join(text), label, random.Random(seed))
    rest = [word for place, word in enumerate(planted.words) if place not in planted.places]
    there = [planted.words[place] for place in planted.places]
    assert rest == text
    assert planted.label == label
    zero_or_one = ["boost", "trace"][label]
    expected = {"single token": [zero_or_one], "token in context": sorted([zero_or_one, "shatter"])}
    if kind == "ordered pair":
        assert there == [zero_or_one, ["trace", "boost"][label]]
    else:
        assert sorted(there) == expected[kind]
    assert shortcut.swapped(planted).label == 1 - label
    assert shortcut.swapped(shortcut.swapped(planted)) == planted


def test_a_part_of_a_shortcut_is_one_word_and_leaves_the_label() -> None:
    for kind in KINDS[1:]:
        part = SHORTCUTS[kind].plant_part("a film", 1, random.Random(0))
        assert (len(part.places), part.label) == (1, 1)
    with pytest.raises(ValueError, match="has no part"):
        SHORTCUTS["single token"].plant_part("a film", 1, random.Random(0))


def test_the_tokens_that_decide_are_found_among_pieces_of_words() -> None:
    planted = SHORTCUTS["ordered pair"].plant("an unbelievably tedious film", 0, random.Random(1))
    encoding = default_model().encode(planted.text)
    decides = planted.decides(encoding)
    assert len(encoding.tokens) > len(planted.words) + 2  # with [CLS] and [SEP]
    assert [token for token, is_one in zip(encoding.tokens, decides) if is_one] == ["boost", "trace"]


def test_rare_words_are_one_token_each_and_in_no_text() -> None:
    words = rare_words(default_model(), ["a boost"], 20)
    assert "boost" not in words
    assert all(is_one_token(default_model(), word) for word in words)
    with pytest.raises(ValueError, match="cannot list its words; give `words`"):
        rare_words(bag(), ["good"])


@given(st.lists(st.integers(0, 9), min_size=3, max_size=6, unique=True), st.data())
def test_rank_and_precision_count_the_tokens_that_score_higher(
    scores: list[int], data: st.DataObject
) -> None:
    decide = data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)).filter(any))
    worst = min(score for score, is_one in zip(scores, decide) if is_one)
    top = sorted(scores, reverse=True)[: sum(decide)]
    expected = sum(score in top for score, is_one in zip(scores, decide) if is_one) / sum(decide)
    values, truth = torch.tensor(scores, dtype=torch.float), torch.tensor(decide)
    assert shortcuts.needed_rank(values, truth) == sum(score >= worst for score in scores)
    assert shortcuts.precision(values, truth) == pytest.approx(expected)
    assert shortcuts.first(values, truth) == decide[scores.index(max(scores))]


class Bag(nn.Module):
    """The largest of each feature over words: sees which words are there, not their order."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, 16)
        self.head = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        features = self.embedding(ids).masked_fill(~mask.unsqueeze(-1), -1e9).amax(1)
        scores: Tensor = self.head(features)
        return scores


WORDS = ["good", "bad", "film", "a", "the", "plot", "boost", "trace", "shatter"]


def bag() -> PlainModel:
    torch.manual_seed(0)
    net = Bag(len(WORDS)).eval()
    return PlainModel(net, lambda text: [WORDS.index(w) for w in text.split()], net.embedding, pads=True)


def reviews(count: int) -> tuple[list[str], list[int]]:
    """Sentences whose label is that of "good" or "bad" in them."""
    rng = random.Random(0)
    labels = [rng.randrange(2) for _ in range(count)]
    texts = [rng.choices(WORDS[2:6], k=4) for _ in labels]
    for words, label in zip(texts, labels):
        words.insert(rng.randrange(5), "good" if label else "bad")
    return [" ".join(words) for words in texts], labels


@cache
def taught(kind: Kind) -> teaching.Taught:
    return teaching.teach(bag(), *reviews(300), kind, epochs=20, words=WORDS[6:], rate=0.03)


def knows_shortcut(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    return torch.tensor([float(token in WORDS[6:]) for token in inputs.encoding.tokens])


@pytest.mark.parametrize("kind", KINDS[:2])
def test_a_method_that_points_at_the_planted_words_finds_them_all(kind: Kind) -> None:
    methods = [Method("knows", knows_shortcut), Method("against", lambda *q: -knows_shortcut(*q))]
    result = shortcuts.find(taught(kind), methods, evaluated=20)
    use, evaluation = result.use, result.evaluation
    k = len(result.sentences[0].places)
    assert use.planted >= 0.99
    assert use.swapped >= 0.98
    assert use.alone is None if kind == "single token" else use.alone is not None and use.alone >= 0.9
    assert [evaluation.mean("knows", m).value for m in evaluation.higher_is_better] == [1.0, 1.0, k]
    assert [evaluation.mean("against", m).value for m in evaluation.higher_is_better] == [0.0, 0.0, 5 + k]
    assert "Words: boost / trace" in evaluation.notes[0]


def test_the_class_of_a_planted_sentence_is_the_shortcuts_whatever_the_review_says() -> None:
    learned = taught("single token")
    sentence = Planted(("good", "film", "boost"), (2,), 0)
    [ids, mask], _ = learned.model.collate([learned.model.encode(sentence.text)])
    assert learned.model(ids, mask).argmax() == 0


def test_the_model_itself_does_not_learn() -> None:
    model = bag()
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    shortcuts.planted(
        model, *reviews(60), "single token", [Method("knows", knows_shortcut)], words=WORDS[6:], epochs=1, minimum=0.0,
        evaluated=3,
    )  # fmt: skip
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())


def test_a_model_that_cannot_see_order_is_refused_with_the_figures() -> None:
    with pytest.raises(
        ValueError, match=r"does not use the ordered pair boost / trace after 2 epochs.*right on pla"
    ):
        teaching.teach(bag(), *reviews(60), "ordered pair", epochs=2, words=WORDS[6:8], rate=0.03)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"kind": "three tokens"}, "kind is 'three tokens'"),
        ({"labels": [0, 2]}, "labels has 2; a shortcut decides between 0 and 1"),
        ({"labels": [0]}, "2 texts and 1 labels"),
        ({"words": ["boost", "boost"]}, "a single token needs 2 different ones"),
    ],
)
def test_bad_arguments_are_named(changed: dict[str, object], message: str) -> None:
    given = {"model": bag(), "texts": ["good film"] * 2, "labels": [0, 1], "kind": "single token", **changed}
    with pytest.raises(ValueError, match=message):
        teaching.teach(**given)  # type: ignore[arg-type]


def test_a_word_of_several_tokens_cannot_be_planted() -> None:
    with pytest.raises(ValueError, match="word 'unbelievably' is not one token"):
        teaching.teach(default_model(), ["a", "b"], [0, 1], "single token", words=["unbelievably", "boost"])
