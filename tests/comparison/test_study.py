"""Studies: questions and notes, continuation after interruptions, and results."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import killed_study
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tiny_plain import cnn, lstm
from torch import Tensor

from interp_plugin import huggingface
from interp_plugin.comparison import Method, Metric, Study, StudyResult
from interp_plugin.comparison.costs import COSTS, StudyColumn
from interp_plugin.comparison.interface import Inputs, Trial
from interp_plugin.comparison.journal import Entry, Journal
from interp_plugin.comparison.metrics import rationale_tokens
from interp_plugin.comparison.result import MethodInfo, StudyText, example
from interp_plugin.method.perturbation import LayerCall
from interp_plugin.text.models import Encoding
from interp_plugin.text.states import Calibration

TEXTS = [
    "the cat sat on a mat",
    "it was good",
    "a bad film and a bad cat",
    "the film was good and it was bad",
]
COST_NAMES = [column.name for column in COSTS]


def place(inputs: Inputs, target: int | None, state: object) -> Tensor:
    """The last token is the most important."""
    return torch.arange(inputs.length)


def gradient(inputs: Inputs, target: int | None, state: object) -> Tensor:
    """One forward and one backward pass."""
    embeddings = inputs.embeddings.clone().requires_grad_()
    model = inputs.model
    handle = model.embedding.layer.register_forward_hook(lambda module, args, output: embeddings)
    try:
        [slopes] = torch.autograd.grad(model(*inputs.arguments)[0, target or 0], embeddings)
    finally:
        handle.remove()
    return slopes[0].norm(dim=-1)


PLACE = Method("place", place)
DRAW = Method("draw", lambda inputs, target, state: torch.rand(inputs.length), signed=True, draws=True)
LENGTH = Metric("length", lambda trial: trial.inputs.length, True, "by hand")
TOP = Metric("top", lambda trial: float(trial.scores.max()), False, "by hand")
HIT = Metric(
    "hit",
    lambda trial: None if trial.rationale is None else float(trial.rationale[trial.order()[0]]),
    True,
    "by hand",
    judges="class",
)


def counted(method: Method) -> tuple[Method, list[str]]:
    """The method, and the texts that it was called with."""
    texts: list[str] = []

    def score(inputs: Inputs, target: int | None, state: Any) -> Tensor:
        texts.append(inputs.encoding.text)
        return method.score(inputs, target, state)

    return Method(method.name, score, method.signed, method.explains, method.source), texts


def failing(on: Callable[[Inputs], bool], name: str = "fails") -> Method:
    def score(inputs: Inputs, target: int | None, state: object) -> Tensor:
        if on(inputs):
            raise RuntimeError("no such luck")
        return torch.zeros(inputs.length)

    return Method(name, score)


def study(**settings: Any) -> Study:
    return Study(**{"model": lstm(), "methods": [PLACE, DRAW], "metrics": [LENGTH, TOP], **settings})


def run(texts: Any = TEXTS, **settings: Any) -> StudyResult:
    names = ("labels", "rationales", "target", "output", "retry_failed", "keep_scores")
    asked = {name: settings.pop(name) for name in names if name in settings}
    return study(**settings).run(texts, **asked, show_progress=False)


def without_costs(result: StudyResult) -> StudyResult:
    return result.select(metrics=[name for name in result.names["metric"] if name not in COST_NAMES])


def journal_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


# Questions and notes


def test_a_result_has_the_metrics_of_the_methods_scores() -> None:
    result = run()
    lengths = [len(text.split()) for text in TEXTS]
    assert result.names["metric"] == ["length", "top", *COST_NAMES]
    assert result.cells[:, 0, 0, 0].tolist() == lengths
    assert result.cells[:, 0, 0, 1].tolist() == [n - 1 for n in lengths]
    for text, n in enumerate(lengths):  # each draw is of the study's seed, and of nothing else
        torch.manual_seed(0)
        assert result.cells[text, 0, 1, 1] == torch.rand(n).max()


def test_methods_are_used_for_the_class_and_layers_that_they_can_explain() -> None:
    of_state = Method("of state", place, explains="state")
    of_class = Method("of class", place, explains="class")
    result = run(methods=[of_state, of_class], metrics=[LENGTH, HIT], layers=["lstm", "output"])
    assert result.questions == ("class", "layer lstm", "output")
    known = ~np.isnan(result.cells[0, :, :, 0])
    assert known.tolist() == [[False, True], [True, False], [True, False]]


def test_costs_are_those_of_the_method_alone() -> None:
    metric = Metric(
        "runs the model", lambda trial: trial.inputs.model(*trial.inputs.arguments).sum().item(), True, "-"
    )
    result = run(methods=[Method("gradient", gradient), PLACE], metrics=[metric])
    costs = result.select(metrics=["forward passes", "backward passes"]).cells
    assert (costs[:, 0, 0] == 1).all()
    assert (costs[:, 0, 1] == 0).all()
    assert (result.select(metrics=["seconds"]).cells > 0).all()


def test_every_method_is_called_once_to_warm_up_and_then_once_for_each_question() -> None:
    method, texts = counted(PLACE)
    run(methods=[method], layers="lstm", metrics=[LENGTH, TOP])
    assert texts == [TEXTS[0], *(text for text in TEXTS for _ in range(2))]


def test_the_predicted_class_is_explained_or_the_label() -> None:
    model = lstm()
    seen: list[int | None] = []

    def spy(inputs: Inputs, target: int | None, state: object) -> Tensor:
        seen.append(target)
        return torch.zeros(inputs.length)

    method = Method("spy", spy)
    predicted = [int(model(*model.collate([model.encode(text)])[0]).argmax()) for text in TEXTS]
    result = run(methods=[method], labels=["bad", 1, "2", None])
    assert seen[1:] == predicted
    assert [text.label for text in result.texts] == ["bad", "so-so", "good", None]
    assert [text.target for text in result.texts] == [model.class_name(i) for i in predicted]
    seen.clear()
    run(TEXTS[:3], methods=[method], labels=np.array([2, 0, 1]), target="label")
    assert seen[1:] == [2, 0, 1]


def test_a_repeated_text_is_computed_once_and_counted_each_time() -> None:
    method, texts = counted(PLACE)
    result = run([TEXTS[0], TEXTS[1], TEXTS[0]], methods=[method])
    assert len(texts) == 1 + 2
    assert result.cells[0, 0, 0, 0] == result.cells[2, 0, 0, 0] == 6


def test_rationales_reach_the_metrics() -> None:
    result = run(TEXTS[:3], metrics=[HIT], rationales=[[[16, 19]], [1, 0, 0], None], methods=[PLACE])
    assert result.cells[:2, 0, 0, 0].tolist() == [1.0, 0.0]
    assert np.isnan(result.cells[2, 0, 0, 0])


SPLIT = Encoding(
    "unlovely film",
    None,
    ("[CLS]", "un", "##lovely", "film", "[SEP]"),
    (None, (0, 0, 2), (0, 2, 8), (0, 9, 13), None),
    (0, 1, 2, 3, 4),
)


@given(st.integers(0, 12), st.integers(1, 13))
def test_a_token_is_in_a_span_if_it_shares_a_character(start: int, size: int) -> None:
    stop = min(start + size, 13)
    inside = set(range(start, stop))
    expected = [o is not None and bool(inside & set(range(o[1], o[2]))) for o in SPLIT.offsets]
    assert rationale_tokens([(start, stop)], SPLIT).tolist() == expected


@pytest.mark.parametrize(
    "mask", [[1, 0], [1, 1, 0], [0, 1, 1, 0, 0], "[[0, 8]]", np.array([True, False]), [(0, 0, 8)]]
)
def test_masks_may_count_words_or_tokens(mask: Any) -> None:
    assert rationale_tokens(mask, SPLIT).tolist() == [False, True, True, False, False]


def test_the_second_text_of_a_pair_has_spans_of_its_own() -> None:
    pair = Encoding("a", "good", ("a", "good"), ((0, 0, 1), (1, 0, 4)), (0, 1))
    assert rationale_tokens([(1, 0, 2)], pair).tolist() == [False, True]


@pytest.mark.parametrize(
    "rationale, message",
    [
        (
            [1, 0, 1, 1, 1, 1],
            "mask of length 6, but the text has 2 words, 5 tokens, and 3 tokens without special",
        ),
        ([(3, 99)], r"has the span \(3, 99\), which is not in the text"),
        (["film"], "has the span 'film', which is not in the text"),
        ("film", "is 'film'; give a list"),
        (3, "is 3; give a list"),
    ],
)
def test_a_rationale_that_does_not_fit_says_what_would(rationale: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rationale_tokens(rationale, SPLIT)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"labels": ["bad"]}, "labels has 1 entries for 4 texts"),
        ({"labels": ["bad", "ugly", None, None]}, "text 1, 'it was good': target 'ugly' is not a class"),
        ({"labels": [0.5, 0, 0, 0]}, "text 0, .*: target 0.5 is not a class of the model"),
        ({"target": "label"}, "there are no labels"),
        ({"target": "label", "labels": [0, 1, None, 2]}, "text 2, .* it has no label"),
        ({"target": "true"}, "target is 'true'; choose 'predicted' or 'label'"),
        ({"rationales": [[0]] * 4}, "text 0, .*: its rationale is a mask of length 1"),
        ({"explain_class": False}, "nothing to explain"),
        ({"layers": "attic"}, "layer 'attic' does not exist"),
        ({"methods": "loom"}, "method 'loom' is not known"),
        ({"metrics": "loom"}, "metric 'loom' is not known"),
        ({"methods": [Method("seconds", place)]}, "method 'seconds' has the name of a cost"),
        (
            {"methods": [Method("state only", place, explains="state")]},
            "'state only' does not apply to classes",
        ),
    ],
)
def test_invalid_studies_are_refused_before_anything_runs(wrong: dict[str, Any], message: str) -> None:
    method, texts = counted(PLACE)
    with pytest.raises(ValueError, match=message):
        run(**{"methods": [method], **wrong})
    assert not texts


def test_texts_that_cannot_be_used_are_left_out_and_named() -> None:
    texts = [TEXTS[0], "", TEXTS[1], TEXTS[2]]
    given = study().run(
        texts,
        ["bad", "good", "ugly", None],
        [None, None, None, [[0, 99]]],
        skip_invalid=True,
        show_progress=False,
    )
    assert [text.text for text in given.texts] == TEXTS[:2]
    assert [text.label for text in given.texts] == ["bad", None]
    left_out, no_class = given.notes
    assert left_out.startswith("2 of 4 texts left out: text 1, '': ")
    assert "text 3" in left_out and "has the span [0, 99], which is not in the text" in left_out
    assert "1 of 4 labels treated as not known" in no_class and "'ugly' is not a class" in no_class
    for table in given.tables():
        assert table.notes[-2:] == given.notes
    by_label = study().run(texts[2:], ["ugly", 2], target="label", skip_invalid=True, show_progress=False)
    assert [text.target for text in by_label.texts] == ["good"]
    with pytest.raises(ValueError, match="none of the 1 texts can be used: text 0, '': "):
        study().run([""], skip_invalid=True, show_progress=False)


def test_notes_are_saved_and_merged(tmp_path: Path) -> None:
    first = study().run(["", TEXTS[0]], skip_invalid=True, show_progress=False)
    first.save(tmp_path / "first.parquet")
    assert StudyResult.load(tmp_path / "first.parquet").notes == first.notes
    second = study().run(["", "", TEXTS[1]], skip_invalid=True, show_progress=False)
    assert StudyResult.merge(first, second).notes == (*first.notes, *second.notes)


def test_the_estimated_time_grows_with_texts_methods_and_metrics() -> None:
    def estimated(count: int, methods: Any = "quick", metrics: Any = "quick") -> float:
        return study(methods=methods, metrics=metrics).estimated_seconds(TEXTS[:1] * count)

    assert 0 < estimated(1) < estimated(20)
    assert estimated(1) < estimated(1, methods=None)
    assert estimated(1) < estimated(1, metrics=None)


def test_only_the_layers_of_a_model_without_classes_are_explained() -> None:
    model = lstm()
    model.task = "none"
    with pytest.raises(
        ValueError,
        match="does not classify texts, so there is no class to explain; give layers, and explain_class=False",
    ):
        study(model=model)
    assert study(model=model, layers="lstm", explain_class=False).questions[0].name == "layer lstm"


# Failures


def test_a_method_that_does_not_apply_to_the_model_is_an_error_at_the_first_text() -> None:
    with pytest.raises(
        ValueError, match=r"'attention rollout' cannot be used for 'class' of text 0, 'the cat"
    ):
        run(methods=["attention rollout"])


def test_a_metric_that_does_not_apply_to_the_model_is_an_error_at_the_first_text() -> None:
    with pytest.raises(ValueError, match=r"metric 'comp.*' of 'place' cannot be used for .*no mask token"):
        run(metrics=["comprehensiveness (mask)"])


def test_all_runs_the_methods_and_metrics_that_apply_to_the_model() -> None:
    result = run(TEXTS[1:2], model=cnn(), methods=None, metrics=["comprehensiveness (delete)"])
    assert "method 'attention rollout', class" in result.left_out
    known = [m for m in result.names["method"] if not np.isnan(result.select(methods=[m]).cells[0, 0, 0, 0])]
    assert "information kept" in known
    assert "integrated gradients (zero, signed)" in known
    everything = run(TEXTS[1:2], metrics=None, methods=["random"])
    assert "no mask token" in everything.left_out["metric 'comprehensiveness (mask)', class"]
    assert not np.isnan(everything.select(metrics=["comprehensiveness (delete)"]).cells).any()
    assert "metric 'comprehensiveness (mask)' (" in "".join(everything.tables()[0].notes)


def test_a_method_that_fails_on_one_text_leaves_a_hole_and_a_note() -> None:
    method = failing(lambda inputs: inputs.length > 7)
    result = run(methods=[method, PLACE])
    assert np.isnan(result.cells[3, 0, 0]).all()
    assert not np.isnan(result.cells[:3, 0, 0, 0]).any()
    assert not np.isnan(result.cells[:, 0, 1, 0]).any()
    assert [(f.text, f.method, f.reason) for f in result.failures] == [
        (3, "fails", "RuntimeError: no such luck")
    ]
    assert (
        "fails failed on 1 of 4 texts, first on text 3: RuntimeError: no such luck."
        in result.tables()[0].notes
    )


def test_a_metric_without_a_finite_number_fails_for_that_text_only() -> None:
    metric = Metric("odd", lambda trial: float("nan") if trial.inputs.length == 3 else 1.0, True, "-")
    result = run(metrics=[metric, LENGTH], methods=[PLACE])
    assert result.cells[:, 0, 0, 1].tolist() == [6, 3, 7, 8]
    assert np.isnan(result.cells[1, 0, 0, 0])
    assert [(f.text, f.metric) for f in result.failures] == [(1, "odd")]


def test_failures_are_retried_only_on_request(tmp_path: Path) -> None:
    run(methods=[failing(lambda inputs: inputs.length > 7), PLACE], output=tmp_path)
    mended, texts = counted(failing(lambda inputs: False))
    assert run(methods=[mended, PLACE], output=tmp_path).failures
    assert not texts
    result = run(methods=[mended, PLACE], output=tmp_path, retry_failed=True)
    assert set(texts) == {TEXTS[3]}
    assert not result.failures
    assert not np.isnan(result.cells[..., :2]).any()


# Continuation


def test_a_study_killed_again_and_again_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    output, calls = tmp_path / "study", tmp_path / "calls"
    script = [sys.executable, str(Path(killed_study.__file__)), str(output), str(calls)]
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}  # of pytest
    done = subprocess.run(script, capture_output=True, text=True, check=True, env=paths)
    killed = int(done.stdout)
    assert killed >= 3
    undisturbed = killed_study.run(None)
    before = len(journal_of(output))
    resumed = killed_study.run(output)
    assert len(journal_of(output)) == before  # nothing was missing
    assert without_costs(resumed) == without_costs(undisturbed)
    assert np.array_equal(np.isnan(resumed.cells), np.isnan(undisturbed.cells))  # each trial has its costs
    trials = [
        (line["text"], line["question"], line["method"]) for line in journal_of(output) if "text" in line
    ]
    assert len(trials) == len(set(trials)) == len(killed_study.TEXTS) * 2 * 2
    warm_ups, lost = 2 * (killed + 1), killed
    assert len(calls.read_text().splitlines()) <= len(trials) + warm_ups + lost


def test_a_finished_study_is_read_and_not_run(tmp_path: Path) -> None:
    first = run(output=tmp_path, layers="lstm")
    method, texts = counted(PLACE)
    again = run(output=tmp_path, layers="lstm", methods=[method, DRAW])
    assert not texts
    assert again == first


def test_more_texts_methods_metrics_and_layers_cost_only_themselves(tmp_path: Path) -> None:
    run(TEXTS[:2], output=tmp_path, methods=[PLACE], metrics=[LENGTH])
    method, texts = counted(PLACE)
    run(TEXTS, output=tmp_path, methods=[method], metrics=[LENGTH])
    assert texts == [TEXTS[2], *TEXTS[2:]]  # one to warm up
    texts.clear()
    more = run(TEXTS, output=tmp_path, methods=[DRAW, method], metrics=[TOP, LENGTH])
    assert not texts  # the new metric evaluates the stored scores
    assert without_costs(more) == without_costs(run(TEXTS, methods=[DRAW, PLACE], metrics=[TOP, LENGTH]))
    run(TEXTS, output=tmp_path, methods=[method], metrics=[LENGTH], layers="lstm")
    assert texts == [TEXTS[0], *TEXTS]


def test_a_part_of_a_study_is_read_from_a_larger_one(tmp_path: Path) -> None:
    whole = run(output=tmp_path, layers="lstm")
    part = run([TEXTS[2], TEXTS[0]], output=tmp_path, methods=[DRAW], metrics=[TOP])
    assert part == whole.select(["class"], ["draw"], ["top", *COST_NAMES], [2, 0])


def test_a_text_with_another_target_or_rationale_is_computed_again(tmp_path: Path) -> None:
    run(output=tmp_path, methods=[PLACE], metrics=[HIT], rationales=[[[0, 2]]] * 4)
    method, texts = counted(PLACE)
    result = run(output=tmp_path, methods=[method], metrics=[HIT], rationales=[[[0, 2]]] * 3 + [[[29, 32]]])
    assert set(texts) == {TEXTS[3]}
    assert result.cells[:, 0, 0, 0].tolist() == [0, 0, 0, 1]
    texts.clear()
    run(
        output=tmp_path,
        methods=[method],
        metrics=[HIT],
        rationales=[[[0, 2]]] * 4,
        labels=[0] * 4,
        target="label",
    )
    assert set(texts) == set(TEXTS)


def other_weights() -> Any:
    model = lstm()
    with torch.no_grad():
        model.module.head.bias[0] += 1e-6
    return model


@pytest.mark.parametrize(
    "other, message",
    [
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"with_special": True}, "special tokens is False there and True here"),
        ({"model": other_weights()}, r"weights is '\w+' there and '\w+' here\)"),
        ({"model": cnn()}, "model is 'Lstm' there and 'Cnn' here; weights is"),
        (
            {"calibration": Calibration("Lstm", 2, {"lstm": torch.ones(12)})},
            r"calibration is None there and '\w+' here",
        ),
        (
            {"methods": [Method("place", place, signed=True)]},
            "another method with the name 'place' .signed is False",
        ),
        ({"metrics": [Metric("top", TOP.measure, True, "by hand")]}, "another metric with the name 'top'"),
    ],
)
def test_another_study_is_not_mixed_into_a_folder(
    tmp_path: Path, other: dict[str, Any], message: str
) -> None:
    run(TEXTS[:1], output=tmp_path)
    before = (tmp_path / "journal.jsonl").read_bytes()
    with pytest.raises(ValueError, match=message):
        run(TEXTS[:1], output=tmp_path, **other)
    assert (tmp_path / "journal.jsonl").read_bytes() == before


def test_other_versions_of_packages_make_another_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(TEXTS[:1], output=tmp_path)
    monkeypatch.setattr("interp_plugin.comparison.study.versions", lambda: {"torch": "3.0"})
    with pytest.raises(ValueError, match=r"versions\.torch is '2.*' there and '3.0' here"):
        run(TEXTS[:1], output=tmp_path)


def test_scores_are_kept_on_request_and_equal_those_of_the_journal(tmp_path: Path) -> None:
    assert not run().scores
    fresh = run(keep_scores=True)
    run(output=tmp_path)
    read = run(output=tmp_path, keep_scores=True)
    assert set(fresh.scores) == {(i, "class", name) for i in range(4) for name in ("place", "draw")}
    for key, scores in fresh.scores.items():
        assert np.array_equal(read.scores[key], scores)
        assert scores.dtype == np.float32


# The journal

ENTRY = Entry(
    "9f3c", "class", "random", {"top": 0.1, "hit": None}, (0.5, -1.25), {"odd": "ValueError: é\n"}, 1
)


def opened(folder: Path) -> AbstractContextManager[Journal]:
    return Journal.held(folder, {"seed": 0}, {})


def entries(folder: Path) -> list[Entry]:
    with opened(folder) as journal:
        return [entry for _, entry in journal.entries()]


def test_a_line_that_was_cut_off_anywhere_is_dropped_and_nothing_else(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        journal.append(ENTRY)
        start = journal.append(ENTRY)
    whole = journal.path.read_bytes()
    for end in range(start, len(whole)):
        journal.path.write_bytes(whole[:end])
        assert entries(tmp_path) == [ENTRY]
        assert journal.path.stat().st_size == start  # so that the next line begins there


def test_a_block_of_zeros_at_the_end_is_a_line_that_was_cut_off(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        journal.append(ENTRY)
    journal.path.write_bytes(journal.path.read_bytes() + bytes(4096))
    assert entries(tmp_path) == [ENTRY]


def test_a_damaged_line_is_named_and_can_be_taken_out(tmp_path: Path) -> None:
    run(output=tmp_path)
    path = tmp_path / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    number = next(i for i, line in enumerate(lines) if b'"text"' in line) + 2
    lines[number - 1] = lines[number - 1].replace(b"0.", b"1.", 1)  # still JSON: the checksum tells
    path.write_bytes(b"".join(lines))
    with pytest.raises(ValueError, match=f"line {number} of .*journal.jsonl' is damaged; delete that line"):
        run(output=tmp_path)
    path.write_bytes(b"".join(lines[: number - 1] + lines[number:]))
    assert without_costs(run(output=tmp_path)) == without_costs(run())


def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"dear": "diary"}\n')
    with pytest.raises(ValueError, match="is not the journal of a study"):
        entries(tmp_path)
    assert path.read_text() == '{"dear": "diary"}\n'
    with pytest.raises(ValueError, match="is a file; give a folder"):
        entries(path)


def test_a_newer_journal_requires_a_newer_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("interp_plugin.comparison.journal.FORMAT", 2)
        entries(tmp_path)
    with pytest.raises(
        ValueError, match="has format 2, and this version reads up to 1: pip install --upgrade"
    ):
        entries(tmp_path)


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(ValueError, match="another process is running a study in"):
        run(output=tmp_path)
    assert entries(tmp_path) == []  # and the folder is free again


@contextmanager
def files_at_most(size: int) -> Iterator[None]:
    """As on a full disk: a write past it is cut short, and the next one fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_loses_only_the_line_that_did_not_fit(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        journal.append(ENTRY)
        with files_at_most(journal.path.stat().st_size + 40), pytest.raises(OSError):
            journal.append(ENTRY)
        journal.append(ENTRY)
    assert entries(tmp_path) == [ENTRY, ENTRY]


# Results


def made_up(cells: Any, signed: tuple[bool, ...] = (), texts: int = 0, seconds: Any = None) -> StudyResult:
    """Values of methods, (N, M), for one metric; with mean seconds of each."""
    values = np.asarray(cells, float)
    n, m = values.shape
    numbers = np.full((n, 1, m, 2), 1.0)
    numbers[:, 0, :, 0] = values
    if seconds is not None:
        numbers[:, 0, :, 1] = seconds
    return StudyResult(
        texts=tuple(StudyText(f"text {i}", None, 3, None, "good", f"{texts + i}") for i in range(n)),
        questions=("class",),
        methods=tuple(MethodInfo("abcdefgh"[j], bool(signed) and signed[j], "") for j in range(m)),
        metrics=(StudyColumn("quality", True, "-"), COSTS[0]),
        cells=numbers,
        settings={"special tokens": False, "calibration": None, "target": "predicted", "seed": 0},
    )


RNG = np.random.default_rng(0)
VALUES = RNG.normal([0.0, 0.4, 0.5, 0.6], 1.0, (40, 4))


def test_a_table_has_means_the_best_of_each_group_and_scipys_p_against_it() -> None:
    table = made_up(VALUES, (False, False, False, True)).table("class", "quality").set_index("method")
    assert table["mean"].to_numpy() == pytest.approx(VALUES.mean(0))
    assert table["group"].tolist() == ["unsigned"] * 3 + ["signed"]
    best = int(VALUES[:, :3].mean(0).argmax())
    assert table["best"].tolist() == [i in (best, 3) for i in range(4)]
    others = [i for i in range(3) if i != best]
    ps = [stats.wilcoxon(VALUES[:, best] - VALUES[:, i]).pvalue for i in others]
    low, high = min(ps), max(ps)
    corrected = {low: min(1, 2 * low), high: max(high, min(1, 2 * low))}
    assert table["p"].iloc[others].to_numpy() == pytest.approx([corrected[p] for p in ps])
    assert table["p"].iloc[[best, 3]].isna().all()


def test_lower_is_better_where_the_metric_says_so() -> None:
    table = made_up(VALUES, seconds=[3.0, 1.0, 2.0, 4.0]).table(metric="seconds")
    assert table.loc[table["best"], "method"].tolist() == ["b"]


def test_comparisons_are_paired_on_texts_that_both_have_and_stay_in_the_group() -> None:
    values = VALUES.copy()
    values[:7, 1] = np.nan
    found = made_up(values, (False, False, False, True)).comparisons("a").query("metric == 'quality'")
    assert found["method"].tolist() == ["b", "c"]
    assert found["n"].tolist() == [33, 40]
    difference = values[7:, 0] - values[7:, 1]
    assert found["difference"].iloc[0] == pytest.approx(difference.mean())
    assert found["p"].iloc[0] == pytest.approx(stats.wilcoxon(difference).pvalue)
    assert found["low"].iloc[0] < difference.mean() < found["high"].iloc[0]
    assert found["better"].tolist() == [bool(d > 0) for d in found["difference"]]


def test_the_best_of_each_group_can_be_the_reference() -> None:
    found = made_up(VALUES, (False, True, False, True)).comparisons("best").query("metric == 'quality'")
    means = VALUES.mean(0)
    assert found["reference"].tolist() == ["ac"[int(means[2] > means[0])], "bd"[int(means[3] > means[1])]]
    assert (found["difference"] > 0).all()
    with pytest.raises(ValueError, match="method 'z' is not in the study; choose from 'a', 'b'"):
        made_up(VALUES).comparisons("z")


def test_methods_that_never_differ_have_p_1() -> None:
    found = made_up(np.ones((6, 2))).comparisons("a")
    assert found["holm"].tolist() == [1.0, 1.0]
    assert not found["better"].any()


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4), st.booleans()), min_size=1, max_size=8))
def test_the_front_has_the_undominated_methods_of_each_group(methods: list[tuple[int, int, bool]]) -> None:
    result = made_up(
        [[q for q, _, _ in methods]], tuple(s for _, _, s in methods), seconds=[c for _, c, _ in methods]
    )
    for (q, c, s), point in zip(methods, result.front("quality", "class"), strict=True):
        rivals = [(q2, c2) for q2, c2, s2 in methods if s2 == s]
        beaten = any(q2 >= q and c2 <= c and (q2, c2) != (q, c) for q2, c2 in rivals)
        assert point.on_front == (not beaten)


def test_values_are_a_line_for_each_number() -> None:
    frame = run().values()
    assert list(frame.columns) == ["text", "question", "method", "metric", "value"]
    assert frame.query("text == 2 and method == 'place' and metric == 'top'")["value"].tolist() == [6.0]
    assert len(frame.query("metric == 'length'")) == 8


def test_saving_and_loading_gives_the_same_result(tmp_path: Path) -> None:
    method = failing(lambda inputs: inputs.length > 7)
    result = run(methods=[method, DRAW], metrics=[LENGTH, HIT], layers="lstm", labels=[0, 1, 2, 0])
    path = tmp_path / "study.parquet"
    result.save(path)
    loaded = StudyResult.load(path)
    assert loaded == result
    assert type(loaded) is StudyResult
    assert not loaded.scores
    assert [p.name for p in tmp_path.iterdir()] == ["study.parquet"]


def test_any_parquet_reader_sees_the_lines(tmp_path: Path) -> None:
    import pandas as pd

    result = run()
    result.save(tmp_path / "study.parquet")
    read = pd.read_parquet(tmp_path / "study.parquet")
    assert read.astype({"text": "int64"}).astype(str).equals(result.values().astype(str))


def test_files_that_are_not_results_are_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from interp_plugin.text.explanation import example as explanation

    path = tmp_path / "a.parquet"
    explanation().save(path)
    with pytest.raises(ValueError, match="holds no StudyResult"):
        StudyResult.load(path)
    path.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="holds no StudyResult"):
        StudyResult.load(path)
    with pytest.raises(FileNotFoundError):
        StudyResult.load(tmp_path / "none.parquet")
    with monkeypatch.context() as patch:
        patch.setattr("interp_plugin.comparison.result.FORMAT", 3)
        example().save(path)
    with pytest.raises(ValueError, match="has format 3, and this version reads up to 2"):
        StudyResult.load(path)


def test_parts_of_a_study_merge_to_the_whole() -> None:
    method = failing(lambda inputs: inputs.length > 7)
    whole = run([*TEXTS, TEXTS[0]], methods=[PLACE, method], layers="lstm")
    by_text = [whole.select(texts=slice(0, 2)), whole.select(texts=slice(2, 5))]
    by_method = [whole.select(methods=[name]) for name in ("place", "fails")]
    by_metric = [
        whole.select(metrics=whole.names["metric"][:3]),
        whole.select(metrics=whole.names["metric"][2:]),
    ]
    by_question = [whole.select([name]) for name in whole.questions]
    for parts in (by_method, by_metric, by_question, [whole, whole]):
        assert StudyResult.merge(*parts) == whole
    first, second = by_text
    assert StudyResult.merge(first, second.select(texts=[0, 1])) == whole.select(texts=slice(0, 4))


def test_results_that_do_not_belong_together_are_not_merged() -> None:
    first = made_up(VALUES)
    with pytest.raises(ValueError, match="nothing to merge"):
        StudyResult.merge()
    with pytest.raises(ValueError, match="seed is 0 there and 1 here"):
        StudyResult.merge(run(TEXTS[:1]), run(TEXTS[1:2], seed=1))
    with pytest.raises(
        ValueError,
        match="two results have different numbers for 'quality' of 'a' for 'class' of text 'text 0'",
    ):
        StudyResult.merge(first, made_up(VALUES + 1))
    with pytest.raises(ValueError, match=r"method 'a' is .*signed=False.* and .*signed=True"):
        StudyResult.merge(first, made_up(VALUES, (True,) * 4, texts=40))


def test_a_selection_keeps_the_failures_that_belong_to_it() -> None:
    result = run(methods=[failing(lambda inputs: inputs.length > 7), PLACE])
    [failure] = result.select(texts=[3, 0]).failures
    assert failure.text == 0
    assert not result.select(methods=["place"]).failures
    assert not result.select(texts=slice(0, 3)).failures
    with pytest.raises(ValueError, match="text 4 is not in the study, which has 4 texts"):
        result.select(texts=[4])
    with pytest.raises(ValueError, match="question 'layer 9' is not in the study; choose from 'class'"):
        result.select(["layer 9"])


def test_notes_state_what_a_reader_must_know() -> None:
    result = run(labels=[0, 0, 0, 0], layers="lstm", metrics=[LENGTH, HIT])
    of_class, of_layer = (" ".join(table.notes) for table in result.tables())
    right = np.mean([text.target == "bad" for text in result.texts])
    assert "4 texts; special tokens are neither ranked nor removed." in of_class
    assert f"the class that the model predicts, which is the true one in {right:.1%} of 4 texts" in of_class
    assert "No text could be evaluated with hit." in of_class
    assert "the state of layer lstm, in units of its root mean square in each text" in of_layer
    assert "ranked and removed like others" in run(with_special=True).tables()[0].notes[0]


def test_a_table_of_the_report_has_a_column_for_each_metric_with_a_value() -> None:
    [table] = run(metrics=[HIT, LENGTH]).tables()
    assert table.columns[0].name == "length"
    assert {group: [row.name for row in rows] for group, rows in table.groups.items()} == {
        "unsigned methods": ["place"],
        "signed methods": ["draw"],
    }
    cell = table.rows[0].cells[0]
    assert cell is not None
    assert (cell.value, cell.note, cell.best, cell.mark) == (6.0, "", True, "")


def test_a_result_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = made_up(VALUES, (False, False, False, True), seconds=[3.0, 1.0, 2.0, 4.0])
    assert f"**{VALUES[:, 3].mean():.2f}**" in result.to_markdown()
    result.show()
    assert "neither ranked nor removed" in capsys.readouterr().out
    page = result.to_html(tmp_path / "study.html").read_text(encoding="utf-8")
    assert "quality, class" in page
    assert result.plot().axes[0].get_xscale() == "log"
    widths = sorted(bar.get_width() for axes in result.plot("bars").axes for bar in axes.patches)
    assert widths == pytest.approx(sorted(VALUES.mean(0)))
    with pytest.raises(ValueError, match="kind is 'pie'; choose"):
        result.plot("pie")  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match="metric 'taste' has no number for 'class'; choose from 'quality', 'seconds'"
    ):
        result.plot("bars", "taste")


def test_a_part_without_seconds_is_shown_without_a_picture_of_them(tmp_path: Path) -> None:
    part = made_up(VALUES, seconds=[3.0, 1.0, 2.0, 4.0]).select(metrics=["quality"])
    assert not any(point.on_front for point in part.front("quality", "class"))
    page = part.to_html(tmp_path / "study.html").read_text(encoding="utf-8")
    assert "up is better, left is cheaper" not in page


def test_the_users_model_comes_back_as_it_was() -> None:
    model = lstm()
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    state = torch.get_rng_state()
    run(model=model, methods=["random", "saliency (L2)", PLACE], layers="lstm")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
    assert all(parameter.grad is None for parameter in model.module.parameters())
    assert isinstance(model.embedding, LayerCall)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.module.modules())


def test_the_comparison_package_loads_its_parts_on_demand() -> None:
    code = "import interp_plugin.comparison as c, sys; print('torch' in sys.modules, dir(c).count('METHODS'))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.split() == ["False", "1"]
    import interp_plugin.comparison as package

    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Studio'"):
        package.Studio  # type: ignore[attr-defined]  # noqa: B018


def test_metrics_get_the_order_of_the_trial() -> None:
    orders: list[list[int]] = []

    def look(trial: Trial) -> float:
        orders.append(trial.order())
        return 0.0

    run(["it was good"], methods=[PLACE], metrics=[Metric("look", look, True, "-")])
    assert orders == [[2, 1, 0]]


def test_methods_are_grouped_by_sign_for_a_class_only() -> None:
    model, tokenizer = huggingface.load(huggingface.default_model_path())
    names = ["feature ablation", "random"]
    metrics = ["comprehensiveness (mask)", "state erasure (mask)"]
    study = Study(model, tokenizer, names, metrics, layers=1)
    of_class, of_layer = study.run(["a good film", "a dull one"], show_progress=False).tables()
    assert {group: [row.name for row in rows] for group, rows in of_class.groups.items()} == {
        "unsigned methods": ["random"],
        "signed methods": ["feature ablation"],
    }
    assert {group: [row.name for row in rows] for group, rows in of_layer.groups.items()} == {
        "unsigned methods": names
    }
