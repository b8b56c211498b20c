"""Studies of a corpus: no row is lost, repeated or wrong after interruptions and errors."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas
import pyarrow
import pytest
import tiny_corpus
import tiny_models
import torch
from pyarrow import parquet
from tiny_corpus import SOLVER, TEXTS, WINDOW, files, made_up, rows, run, study, texts
from tiny_plain import WORDS, cnn
from torch import Tensor, nn

from interp_plugin import CorpusResult, CorpusStudy, PlainModel, TextExplainer, data
from interp_plugin.corpus import tables
from interp_plugin.corpus.parts import Folder
from interp_plugin.corpus.reading import Failure, Item, Reader, windows
from interp_plugin.files import weights_digest

SCRIPT = Path(tiny_corpus.__file__)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> CorpusResult:
    return run(tmp_path_factory.mktemp("undisturbed"))


# -- what is written


def test_the_line_of_each_text_and_layer_equals_the_result_of_explain(tmp_path: Path) -> None:
    some = texts(10)
    result = study(layers=["output", "features"]).run(some, tmp_path, show_progress=False)
    explained = TextExplainer(cnn()).explain(some, ["features", "output"], solver=SOLVER)
    found = result.explanation()
    assert [item.text for item in found] == some
    for ours, theirs in zip(found, explained):
        assert ours.layers == theirs.layers == ("features", "output")
        for row, other in zip(ours.rows, theirs.rows):
            torch.testing.assert_close(row.sigma, other.sigma, rtol=1e-4, atol=0)
            assert row.n_backward == other.n_backward


def test_a_part_stores_the_settings_that_its_results_depend_on(undisturbed: CorpusResult) -> None:
    settings = undisturbed.settings
    assert settings["weights"] == weights_digest(cnn().module)
    assert (settings["model"], settings["rate"], settings["seed"]) == ("Cnn", 0.1, 0)
    assert settings["versions"]["torch"] == version("torch")


def test_the_digest_of_weights_depends_on_every_bit_and_the_type() -> None:
    layer = nn.Linear(3, 2)
    before = weights_digest(layer)
    with torch.no_grad():
        layer.weight[0, 0] = torch.nextafter(layer.weight[0, 0], torch.tensor(9.0))
    assert len({before, weights_digest(layer), weights_digest(layer.double())}) == 3


def test_no_more_than_a_window_and_one_row_is_read_ahead(tmp_path: Path) -> None:
    read: list[int] = []

    def source() -> Iterator[str]:
        for number, text in enumerate(texts()):
            parts = len(list(tmp_path.glob("part-*")))
            assert number <= (parts + 1) * WINDOW
            read.append(number)
            yield text

    assert run(tmp_path, source()).texts == TEXTS == len(read)


def test_texts_come_from_files_pairs_mappings_and_bytes(tmp_path: Path) -> None:
    file = tmp_path / "films.tsv"
    file.write_text("sentence\tlabel\nthe film was good\t1\nit was bad\t0\n")
    result = run(tmp_path / "file", data.records(file))
    assert [item.text for item in result.explanation()] == ["the film was good", "it was bad"]
    mixed = [b"the cat", {"text": "a mat"}, "it sat"]
    assert [item.text for item in run(tmp_path / "mixed", mixed).explanation()] == [
        "the cat",
        "a mat",
        "it sat",
    ]
    items = next(windows([("a", "b")], 4, Reader())).items
    assert items == [Item(0, "a", "b")]


def test_a_malformed_first_row_does_not_choose_the_column(tmp_path: Path) -> None:
    given = [
        {"label": "good"},
        *({"words": "the cat sat", "label": "good"} for _ in range(2)),
        {"words": "a mat"},
    ]
    given += [{"words": "it sat"}]
    result = run(tmp_path, given, window=9)
    assert [failure.row for failure in result.failures()] == [0]
    usual = [{"label": "good"}, {"sentence": "the cat sat", "label": "good"}]
    assert [item.text for item in run(tmp_path / "usual", usual).explanation()] == ["the cat sat"]


def test_a_single_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"texts is a str.*data\.records"):
        run(tmp_path, "the cat sat")


def test_a_corpus_without_rows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no texts"):
        run(tmp_path, [])


@pytest.mark.parametrize("family, name", [("gpt2", "GPT2LMHeadModel"), ("t5", "T5ForConditionalGeneration")])
def test_language_models_and_encoder_decoders_are_studied_too(tmp_path: Path, family: str, name: str) -> None:
    model = tiny_models.tiny(family, name)
    result = CorpusStudy(model, layers=["output", "all"], solver=SOLVER).run(
        ["a good film", "not bad", "a bad film"], tmp_path, show_progress=False
    )
    assert result.texts == 3
    assert result.layer_labels == (*model.layers, "output")
    assert result.explanation([1])[0].layers == result.layer_labels


# -- killed, and run again


def test_a_run_killed_at_any_moment_loses_and_repeats_no_row(
    tmp_path: Path, undisturbed: CorpusResult
) -> None:
    generator = random.Random(0)
    path = os.pathsep.join([str(SCRIPT.parents[2]), str(SCRIPT.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    for wanted in (1, 2, 4):
        process = subprocess.Popen([sys.executable, str(SCRIPT), str(tmp_path)], env=environment)
        while len(list(tmp_path.glob("part-*"))) < wanted and process.poll() is None:
            time.sleep(0.002)
        time.sleep(generator.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "finished before it was killed: make the study longer"
    found = run(tmp_path)
    assert rows(found).equals(rows(undisturbed))
    assert {name[:5] for name in files(tmp_path)} == {"part-"}


def test_a_finished_study_is_not_scored_again(
    undisturbed: CorpusResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interp_plugin.corpus.study.score", None)
    assert run(undisturbed.path).texts == TEXTS


def test_a_study_without_its_end_is_incomplete(tmp_path: Path) -> None:
    run(tmp_path)
    next(tmp_path.glob("part-00000005-*")).unlink()
    with pytest.raises(ValueError, match="the end is missing"):
        CorpusResult.load(tmp_path)


def test_a_folder_without_a_study_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no study"):
        CorpusResult.load(tmp_path)


# -- another study in the same folder


@pytest.mark.parametrize(
    "settings, named",
    [
        ({"rate": 0.2}, r"rate is 0\.2 now and 0\.1 there"),
        ({"solver": replace(SOLVER, seed=3)}, "seed is 3 now and 0 there"),
        (
            {"layers": ["features", "output"]},
            r"layers is \['features', 'output'\] now and \['features'\] there",
        ),
        ({"max_sigma": 9.0}, r"max_sigma is 9\.0 now"),
    ],
)
def test_other_settings_are_refused_by_name(
    undisturbed: CorpusResult, settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        study(**settings).run(texts(), undisturbed.path, window=WINDOW, show_progress=False)


def test_other_weights_and_windows_are_refused(undisturbed: CorpusResult) -> None:
    model = cnn()
    with torch.no_grad():
        model.module.head.weight.add_(1)
    with pytest.raises(ValueError, match="weights is"):
        CorpusStudy(model, solver=SOLVER).run(texts(), undisturbed.path, window=WINDOW, show_progress=False)
    with pytest.raises(ValueError, match="window is 7 now and 4 there"):
        run(undisturbed.path, window=7)


def test_a_run_out_of_memory_can_be_continued_with_a_smaller_batch(undisturbed: CorpusResult) -> None:
    result = study(batch_size=1).run(texts(), undisturbed.path, window=WINDOW, show_progress=False)
    assert result.texts == TEXTS


def test_other_texts_are_refused(undisturbed: CorpusResult) -> None:
    changed = texts()
    changed[13] = "a cat"
    with pytest.raises(ValueError, match="other texts: rows 12 to 15 differ"):
        run(undisturbed.path, changed)
    for fewer in (texts()[:-WINDOW], texts()[:-1], texts()[:WINDOW]):
        with pytest.raises(
            ValueError, match=f"a study of more texts than these {len(fewer)}: give all of them"
        ):
            run(undisturbed.path, fewer)
    assert CorpusResult.load(undisturbed.path).texts == TEXTS


def test_another_tokenizer_is_refused(undisturbed: CorpusResult) -> None:
    model = cnn()
    tokenizer = model.tokenizer
    model.tokenizer = lambda text: [(i + 1) % len(WORDS) for i in tokenizer(text)]
    with pytest.raises(ValueError, match="another tokenizer"):
        CorpusStudy(model, solver=SOLVER).run(texts(), undisturbed.path, window=WINDOW, show_progress=False)


# -- texts that fail


def test_a_row_without_a_text_is_recorded_and_the_others_are_scored(tmp_path: Path) -> None:
    bad: list[Any] = [
        b"\xff\xfe film", "", "   ", {"label": 1}, None, 7, ("a", "b", "c"), "unknown words", "\ud800", "a cat " * 5,
    ]  # fmt: skip
    given = [x for pair in zip(texts(10), bad) for x in pair]
    result = run(tmp_path, given)
    assert result.texts == 11
    failures = {failure.row: failure.reason for failure in result.failures()}
    assert set(failures) == {2 * i + 1 for i in range(9)}
    assert "utf-8" in failures[1] and "empty" in failures[3] and "columns" in failures[7]
    assert "int" in failures[11] and "unknown" in failures[15]
    assert sorted(item.text for item in result.explanation()) == sorted([*texts(10), "a cat " * 5])


def test_the_good_lines_of_a_file_with_bad_ones_are_scored(tmp_path: Path) -> None:
    file = tmp_path / "films.jsonl"
    lines = [b'{"text": "the film was good"}'] * 6
    lines[1:4] = [b"\xff\xfe", b"", b'{"label": 1}']
    file.write_bytes(b"\n".join(lines))
    result = run(tmp_path / "out", data.records(file))
    reasons = [failure.reason for failure in result.failures()]
    assert result.texts == 3
    assert ["not UTF-8" in reasons[0], "empty line" in reasons[1], "no column 'text'" in reasons[2]] == [
        True
    ] * 3


def test_records_that_python_cannot_represent_are_failures_of_every_run(tmp_path: Path) -> None:
    """In the middle of a window, of a batch and of a row group; each with its file and row."""
    lines = [b'{"text": "the film was good"}'] * 12
    lines[5] = b'{"text": "bad", "n": ' + b"9" * 5_000 + b"}"
    lines[6] = b'{"text": "bad", "n": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(b"\n".join(lines))
    years = pyarrow.array([0] * 4 + [316_516_147_200_000_000] + [0] * 3, pyarrow.timestamp("us"))
    tags = pyarrow.array([b"new"] * 4 + [b"\xff"] + [b"old"] * 3, pyarrow.binary())
    tags = pyarrow.StringArray.from_buffers(8, *tags.buffers()[1:])
    table = pyarrow.table({"text": ["a cat was bad"] * 8, "when": years, "tag": tags})
    parquet.write_table(table, folder / "b.parquet", row_group_size=4, compression="zstd")
    parquet.write_table(table.slice(0, 4), folder / "c.parquet", compression="zstd", use_dictionary=False)
    chunk = parquet.read_metadata(folder / "c.parquet").row_group(0).column(0)
    content = bytearray((folder / "c.parquet").read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size - 3] ^= 16
    (folder / "c.parquet").write_bytes(content)

    first = run(out, data.records(folder))
    reasons = {failure.row: failure.reason for failure in first.failures()}
    assert list(reasons) == [5, 6, 20, 21, 22, 23]
    assert reasons[5].startswith("ValueError: a.jsonl, line 6: not JSON that can be read (Exceeds the limit")
    assert reasons[6].startswith("ValueError: a.jsonl, line 7: not JSON that can be read (maximum recursion")
    assert reasons[20].startswith("ValueError: c.parquet, row 1: in a damaged part of the file (")
    assert first.texts == 18, "year and tag are in columns that nobody asked for"
    next(out.glob("part-00000001-*")).unlink()  # as if killed
    again = run(out, data.records(folder))
    assert (again.failures(), again.texts) == (first.failures(), 18)
    tagged = run(tmp_path / "tagged", data.records(folder / "b.parquet"), tag_column="tag")
    assert [(f.row, f.reason.split(" (")[0]) for f in tagged.failures()] == [
        (4, "ValueError: b.parquet, row 5: a value that cannot be read")
    ]


def test_a_row_that_cannot_be_printed_is_a_failure(tmp_path: Path) -> None:
    circle: dict[str, Any] = {"label": 1}
    circle["self"] = circle
    huge = 10**5_000
    given = ["a cat", {"text": huge}, {"label": huge}, huge, (huge,), circle, {(1, 2): 3}, "the film"]
    result = run(tmp_path, given)
    assert [failure.row for failure in result.failures()] == [1, 2, 3, 4, 5, 6]
    assert result.texts == 2


class Fussy(nn.Module):
    """Gives NaN for "bad", and refuses any batch with "film"."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = cnn().module
        self.embedding = self.inner.embedding
        self.relu = self.inner.relu

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        if (ids == WORDS.index("film")).any():
            raise RuntimeError("no films")
        scores: Tensor = self.inner(ids, mask)
        spoilt = (ids == WORDS.index("bad")).any(1, keepdim=True)
        return torch.where(spoilt, torch.nan, scores)


def fussy() -> PlainModel:
    net = Fussy().eval()
    return PlainModel(net, cnn().tokenizer, net.embedding, {"features": net.relu}, pads=True)


def test_only_the_bad_text_of_a_batch_fails(tmp_path: Path) -> None:
    good = ["the cat sat on a mat", "it was good and good", "a cat on a mat and it", "the mat sat on the cat"]
    given = [
        good[0],
        "the film was good and it",
        good[1],
        good[2],
        "it was bad and so bad".replace("so ", ""),
        good[3],
    ]
    settings = {"layers": ["features", "output"], "batch_size": 8, "solver": SOLVER}
    result = CorpusStudy(fussy(), **settings).run(given, tmp_path / "a", show_progress=False)
    film, bad = result.failures()
    assert (film.row, film.reason) == (1, "RuntimeError: no films")
    assert bad.row == 4 and bad.reason.startswith(
        "ValueError: NaN or infinite values are in the state of text "
    )
    alone = CorpusStudy(fussy(), **settings).run(good, tmp_path / "b", show_progress=False)
    for ours, theirs in zip(result.explanation(), alone.explanation()):
        for row, other in zip(ours.rows, theirs.rows):
            torch.testing.assert_close(row.sigma, other.sigma, rtol=1e-4, atol=0)


def test_more_failures_than_allowed_stop_the_run_and_finished_parts_stay(tmp_path: Path) -> None:
    given = [*texts(WINDOW), "", "", "", *texts(3)]
    with pytest.raises(ValueError, match="texts failed and max_errors is 2; the last is row 6"):
        run(tmp_path, given, max_errors=2)
    assert len(list(tmp_path.glob("part-*"))) == 1
    assert run(tmp_path, given, max_errors=3).texts == WINDOW + 3
    with pytest.raises(ValueError, match="max_errors is 1"):
        run(tmp_path, given, max_errors=1)
    with pytest.raises(ValueError, match="3 texts failed and max_errors is 2"):
        CorpusResult.load(
            tmp_path, max_errors=2
        )  # as after several processes, each of which counted its own failures
    assert (
        json.loads(json.dumps(CorpusResult.load(tmp_path).to_dict(), allow_nan=False))["texts"] == WINDOW + 3
    )


def test_a_model_that_fails_on_every_text_is_an_error(tmp_path: Path) -> None:
    study_ = CorpusStudy(fussy(), layers="output")
    with pytest.raises(RuntimeError, match=r"the model failed on the first 32 texts.*no films"):
        study_.run(["the film"] * 40, tmp_path, show_progress=False)


def test_a_study_with_failures_only_has_no_results(tmp_path: Path) -> None:
    result = run(tmp_path, ["", " "])
    assert (result.texts, len(result.failures())) == (0, 2)
    for ask in (result.layers, result.word_classes, result.knowledge):
        with pytest.raises(ValueError, match="every text of its corpus failed"):
            ask()


# -- the first rows of a corpus, then the others


@pytest.mark.parametrize("first", [2, WINDOW, WINDOW + 1])
def test_a_run_on_the_first_rows_can_be_extended_to_all_rows(
    tmp_path: Path, undisturbed: CorpusResult, first: int
) -> None:
    """Used to be refused as a study of other texts, so that the folder could not be used after --limit 2."""
    assert run(tmp_path, texts()[:first]).texts == first
    assert rows(run(tmp_path)).equals(rows(undisturbed))


def test_a_corpus_file_with_an_unreadable_line_may_be_renamed(tmp_path: Path) -> None:
    """The study was refused as one of other texts: the digest of its windows held the file's name."""
    for name in ("reviews.jsonl", "renamed.jsonl"):
        (tmp_path / name).write_text('{"text": "a cat"}\nnot JSON\n{"text": "a mat"}\n')
        result = run(tmp_path / "out", data.records(tmp_path / name))
        assert (result.texts, len(result.failures())) == (2, 1)


def test_the_first_rows_of_other_texts_are_refused(tmp_path: Path) -> None:
    run(tmp_path, ["a cat", "a mat"])
    with pytest.raises(ValueError, match="other texts: rows 0 to 1 differ"):
        run(tmp_path)


# -- tables and files


def test_a_data_frame_is_read_by_its_rows(tmp_path: Path) -> None:
    """Used to score the names of the columns."""
    table = pandas.DataFrame({"stars": [5, 1, 3], "comment": ["a good film", None, "the cat sat"]})
    result = run(tmp_path, table)
    assert [item.text for item in result.explanation()] == ["a good film", "the cat sat"]
    assert [failure.row for failure in result.failures()] == [1]
    assert run(tmp_path / "series", table["comment"]).texts == 2


def test_a_missing_column_is_a_clear_error_before_a_folder_is_created(tmp_path: Path) -> None:
    given = [{"comment": "a good film", "stars": "5"}, {"comment": "bad", "stars": "1"}]
    for name in ("coment", "text"):
        with pytest.raises(
            ValueError, match=f"no column '{name}' in row 0: there are columns 'comment', 'st"
        ):
            run(tmp_path / "out", given, text_column=name)
    with pytest.raises(ValueError, match="the column of texts is not clear from columns 'a', 'b'; name it"):
        run(tmp_path / "out", [{"a": "one", "b": "two"}])
    with pytest.raises(
        TypeError, match=r"texts is a PosixPath: give an iterable of texts; for a file, data\.rec"
    ):
        run(tmp_path / "out", tmp_path / "films.csv")
    assert not (tmp_path / "out").exists()


# -- rows that did not converge


def test_the_means_have_the_share_of_converged_rows(tmp_path: Path) -> None:
    words = [[("[CLS]", None), ("film", None), (",", None)]]
    sigmas = [[[0.5, 0.1, 0.9], [0.6, 0.2, 1.0]]]
    result = made_up(tmp_path, words * 4, sigmas * 4, facts={"converged": False})
    for table in (result.layers(), result.word_classes(), result.knowledge(), result.monotonicity()):
        assert (table["converged"] == 0).all()
    assert (result.compare(result)["converged"] == 0).all()


@pytest.mark.parametrize("saturated, way", [(True, "a lower --rate"), (False, "a larger --tolerance")])
def test_a_corpus_that_did_not_converge_names_options_that_the_command_has(
    tmp_path: Path, saturated: bool, way: str
) -> None:
    """It named --max-passes, which the command corpus does not have."""
    facts = {"converged": False, "saturated": saturated}
    result = made_up(tmp_path, [[("film", None)]] * 4, [[[0.5], [0.6]]] * 4, facts=facts)
    status = tables.report(result).sections[0].status
    assert way in status and "--max-passes" not in status and "0 % of the texts" in status


def test_saturated_and_noisy_layers_of_a_corpus_get_different_advice(tmp_path: Path) -> None:
    """One saturated layer used to hide that the others need more passes."""
    of = {("saturated", "sentence", 1): {"mean": 0.1}, ("saturated", "sentence", 2): {"mean": 0.4}}
    of |= {("converged", "sentence", layer): {"converged": 0.5} for layer in (1, 2)}
    result = made_up(tmp_path, [[("film", None)]], [[[0.5], [0.6]]])
    status = tables._status(result, of, [1, 2])
    assert "The states of layer 2 saturate" in status and "For the others, more passes" in status


def test_the_median_regime_index_does_not_depend_on_one_sentence(tmp_path: Path) -> None:
    """One state that hardly moved used to make the mean of E 1e37."""
    words, sigmas = [[("film", None)]], [[[0.5], [0.6]]]
    calm = made_up(tmp_path / "a", words * 9, sigmas * 9, window=9)
    table = calm.layers()
    of = table[(table["quantity"] == "regime_index") & (table["per"] == "median sentence")]
    assert of["mean"].tolist() == [1.0, 1.0]
    still = made_up(tmp_path / "b", words, sigmas, facts={"regime_index": math.inf, "distortion": 0.0})
    table = still.layers()
    of = table[(table["quantity"] == "regime_index") & (table["per"] == "median sentence")]
    assert of["mean"].isna().all() and (of["sentences"] == 0).all()


# -- several processes


def test_two_ranks_write_the_rows_of_one_process(tmp_path: Path, undisturbed: CorpusResult) -> None:
    first = run(tmp_path, rank=0, world_size=2)
    assert first.texts == TEXTS // 2
    run(tmp_path, rank=1, world_size=2)
    assert rows(CorpusResult.load(tmp_path)).equals(rows(undisturbed))


def test_a_rank_without_windows_may_finish_first(tmp_path: Path) -> None:
    idle = run(tmp_path, ["a film"], rank=1, world_size=2)  # used to say that the folder holds no study
    assert (idle.texts, idle.failures(), idle.layer_labels) == (0, [], run(tmp_path, ["a film"]).layer_labels)
    with pytest.raises(ValueError, match="has no results"):
        idle.layers()


def test_a_study_can_be_continued_with_another_number_of_ranks(
    tmp_path: Path, undisturbed: CorpusResult
) -> None:
    run(tmp_path, rank=2, world_size=3)
    assert rows(run(tmp_path)).equals(rows(undisturbed))


@pytest.mark.parametrize("options", [{"rank": 2, "world_size": 2}, {"window": 0}, {"world_size": 0}])
def test_impossible_sizes_are_refused(tmp_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="; give "):
        run(tmp_path, **options)


def test_parts_of_an_older_format_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [[("film", None), (",", None)]]
    with monkeypatch.context() as older:
        older.setattr("interp_plugin.corpus.parts.FORMAT", 1)
        made_up(tmp_path, words, [[[0.5, 0.1], [0.6, 0.2]]])
    with pytest.raises(ValueError, match=r"has format 1, which an older version.*in another folder"):
        CorpusResult.load(tmp_path)


# -- pictures and pages


def test_the_page_escapes_what_texts_and_names_hold_and_runs_nothing(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    result = made_up(
        tmp_path / "study",
        [[("[CLS]", None), ("film", None), (",", None)]] * 3,
        [[[0.5, 0.1, 0.9], [0.6, 0.2, 1.0]]] * 3,
        failures=[Failure(3, f"ValueError: {evil}", evil)],
        model=evil,
    )
    page = Path(result.to_html(tmp_path / "page.html")).read_text()
    assert page.count("<script") == 1
    assert "&lt;script&gt;alert(1)" in page
    assert "default-src 'none'" in page
    assert page.count("<svg") == 2
    assert "punctuation" in page


def test_the_curve_draws_the_means_of_each_study(tmp_path: Path) -> None:
    sentences = [[("film", None), ("good", None)]] * 3
    one = made_up(tmp_path / "a", sentences, [[[0.1, 0.2], [0.5, 0.5]]] * 3)
    two = made_up(tmp_path / "b", sentences, [[[0.3, 0.2], [0.5, 1.0]]] * 3)
    figure = one.plot("curve", per="sentence", others={"other": two}, name="mine")
    drawn = [[float(y) for y in line.get_ydata()] for line in figure.axes[0].lines]
    for heights, result in zip(drawn, (one, two)):
        assert heights == pytest.approx(result.sentences.totals["kept"].mean(0).tolist())
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["mine", "other"]


def test_unknown_plots_are_refused(tmp_path: Path) -> None:
    result = made_up(tmp_path, [[("film", None)]] * 2, [[[0.1], [0.2]]] * 2)
    assert result.plot("regime").axes and result.plot("classes").axes
    with pytest.raises(ValueError, match="kind 'cake' is not known; there are: curve, classes, regime"):
        result.plot("cake")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="per is 'word'"):
        result.plot("curve", per="word")  # type: ignore[arg-type]


def test_other_files_in_the_folder_are_left_unchanged(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "part-x.parquet").write_text("mine too")
    run(tmp_path, texts(3))
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "part-x.parquet").exists()
    assert Folder(tmp_path).windows() == [0]
