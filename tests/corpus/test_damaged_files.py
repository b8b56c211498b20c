"""Saved files that are damaged, malformed, or much larger in memory: errors name the file."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from test_amortised import UNIT, gains, of_gains, sentences
from tiny_corpus import made_up
from torch import Tensor

from interp_plugin import AmortisedEstimator, Calibration, CorpusResult, Explanation, files
from interp_plugin.amortised import estimator
from interp_plugin.comparison import StudyResult
from interp_plugin.comparison.result import example as study
from interp_plugin.files import blank_seal, sealed
from interp_plugin.text import storage
from interp_plugin.text.explanation import example as explanation
from interp_plugin.text.states import FORMAT

FLIPS = 500


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> AmortisedEstimator:
    """A head trained on few texts."""
    learned = of_gains().run(sentences(24), tmp_path_factory.mktemp("learned"), show_progress=False)
    return AmortisedEstimator.train(gains(), None, learned, UNIT, held_out=0.3, epochs=1, show_progress=False)


def load_head(path: Path) -> AmortisedEstimator:
    return AmortisedEstimator.load(path, gains())


def flipped(content: bytes, generator: random.Random) -> bytes:
    """Change one bit of a file."""
    changed = bytearray(content)
    changed[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    return bytes(changed)


# -- one bit


@pytest.mark.parametrize("kind", ["explanation", "calibration", "head", "study"])
def test_a_file_with_a_changed_bit_is_refused_with_its_name(
    kind: str, tmp_path: Path, head: AmortisedEstimator
) -> None:
    saved: dict[str, tuple[Any, Callable[[Path], Any]]] = {
        "explanation": (explanation(), Explanation.load),
        "calibration": (
            Calibration("é", 2, {"1": torch.ones(40), "2": torch.ones(3)}, 0.5, "x"),
            Calibration.load,
        ),
        "head": (head, load_head),
        "study": (study(), StudyResult.load),
    }
    thing, load = saved[kind]
    path = tmp_path / "saved"
    thing.save(path)
    load(path)
    content, generator = path.read_bytes(), random.Random(0)
    for number in range(FLIPS):
        path.write_bytes(flipped(content, generator) if number else content[: len(content) // 2])
        with pytest.raises(ValueError, match="saved'"):
            load(path)


def test_a_part_with_a_changed_bit_is_not_read(tmp_path: Path) -> None:
    [part] = made_up(tmp_path, [[("a", None), ("b", None)]], [[[0.5, 0.1], [0.6, 0.2]]]).parts
    content, generator = part.path.read_bytes(), random.Random(0)
    for _ in range(FLIPS):
        part.path.write_bytes(flipped(content, generator))
        with pytest.raises(ValueError, match=r"parts \[0\] are missing or damaged"):
            CorpusResult.load(tmp_path)


def test_a_text_that_looks_like_a_checksum_is_a_text(tmp_path: Path) -> None:
    text = f"interp-plugin sha256 {'0' * 64}"
    first = explanation()[0]
    given = Explanation(
        (type(first)(**{**vars(first), "text": text}),), explanation().settings, 0.5
    )  # fmt: skip
    given.save(tmp_path / "a")
    assert Explanation.load(tmp_path / "a") == given


# -- undamaged, but malformed


def about_of(head: AmortisedEstimator, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    head.save(path)
    return files.read_tensors(path, estimator.FORMAT, "")


ABOUT = {"model": "m", "texts": 2, "input_std": 0.5, "noise_layer": "x"}


@pytest.mark.parametrize(
    "about, tensors",
    [
        ({}, {"1": torch.ones(3)}),
        ([], {"1": torch.ones(3)}),
        ({**ABOUT, "more": 1}, {"1": torch.ones(3)}),
        ({**ABOUT, "model": 3}, {"1": torch.ones(3)}),
        ({**ABOUT, "texts": "2"}, {"1": torch.ones(3)}),
        ({**ABOUT, "texts": True}, {"1": torch.ones(3)}),
        ({**ABOUT, "input_std": -1.0}, {"1": torch.ones(3)}),
        ({**ABOUT, "input_std": float("nan")}, {"1": torch.ones(3)}),
        (ABOUT, {"1": torch.full((3,), torch.nan)}),
        (ABOUT, {"1": torch.full((3,), torch.inf)}),
        (ABOUT, {"1": -torch.ones(3)}),
        (ABOUT, {"1": torch.ones(3, dtype=torch.int64)}),
    ],
)
def test_a_malformed_calibration_is_refused_with_its_name(
    about: Any, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    files.write_tensors(tmp_path / "saved", FORMAT, about, tensors)
    with pytest.raises(ValueError, match=r"saved' .*calibrate again"):
        Calibration.load(tmp_path / "saved")


def without(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}


def test_a_malformed_head_is_refused_with_its_name(head: AmortisedEstimator, tmp_path: Path) -> None:
    about, tensors = about_of(head, tmp_path / "good")
    weight = tensors["head.project.weight"]
    settings, held_out = about["settings"], about["held_out"]
    wrong: list[tuple[Any, dict[str, Tensor]]] = [
        *((without(about, name), tensors) for name in ("settings", "texts", "held_out", "words")),
        *(({**about, "settings": without(settings, name)}, tensors) for name in settings),
        *(
            ({**about, "settings": {**settings, name: None}}, tensors)
            for name in ("rate", "layers", "max_sigma")
        ),
        ({**about, "settings": {**settings, "rate": -0.1}}, tensors),
        ({**about, "settings": {**settings, "layers": ["scaled"]}}, tensors),
        ({**about, "settings": {**settings, "layers": [["scaled"], 2]}}, tensors),
        ({**about, "held_out": {**held_out, "error": [0.1]}}, tensors),
        ({**about, "held_out": {**held_out, "error": "ab"}}, tensors),
        ({**about, "words": [["a"]]}, tensors),
        ({**about, "words": [3]}, tensors),
        ({**about, "calibration": {}}, tensors),
        ({**about, "calibration": 3}, tensors),
        (about, without(tensors, "head.out.bias")),
        (about, {**tensors, "head.more": torch.ones(3)}),
        (about, {**tensors, "head.project.weight": weight[:, :-1]}),
        (about, {**tensors, "head.project.weight": torch.full_like(weight, torch.nan)}),
        (about, {**tensors, "head.vectors.centre": torch.zeros(10**6)}),
        (about, {**tensors, "head.target.spread": torch.zeros(2)}),
        (about, {}),
    ]
    for number, (some, values) in enumerate(wrong):
        files.write_tensors(tmp_path / "saved", estimator.FORMAT, some, values)
        with pytest.raises(ValueError, match=r"saved' ") as caught:
            load_head(tmp_path / "saved")
        assert "train one again" in str(caught.value), number


def rewritten(
    path: Path, change: Callable[[pa.Table], pa.Table], dictionaries: Sequence[str] = (), **header: Any
) -> None:
    """Change a file's table and renew its checksum; members of the header that are None are removed."""
    found = parquet.read_metadata(path).metadata
    [(key, value)] = [(key, value) for key, value in found.items() if key.startswith(b"interp_plugin")]
    blank = blank_seal()
    known = {**json.loads(value), **header, "seal": blank}
    known = {name: value for name, value in known.items() if value is not None}
    made = change(parquet.read_table(path).replace_schema_metadata())
    content = storage.parquet_bytes(made, key, known, use_dictionary=list(dictionaries))
    path.write_bytes(sealed(content.to_pybytes(), blank))


def with_column(name: str, values: Any) -> Callable[[pa.Table], pa.Table]:
    """Replace a column by another one with this name and type."""

    def change(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index(name)
        return table.set_column(
            place, table.schema.field(place), [pa.array(values, table.schema.field(place).type)]
        )

    return change


@pytest.mark.parametrize(
    "change, header",
    [
        (lambda table: table, {"settings": None}),
        (lambda table: table, {"settings": {"model": "m"}}),
        (lambda table: table, {"settings": 3}),
        (lambda table: table, {"seconds": None}),
        (lambda table: table, {"format": "3"}),
        (lambda table: table.drop_columns(["sigma"]), {}),
        (lambda table: table.rename_columns([f"{name}x" for name in table.column_names]), {}),
        (with_column("sigma", [None] * 4), {}),
        (with_column("sigma", [[1.0]] * 4), {}),
        (with_column("standard_error", [[]] * 4), {}),
        (with_column("tokens", [["film"]] * 4), {}),
        (with_column("tokens", [None] * 4), {}),
        (with_column("offsets", [None] * 4), {}),
        (with_column("layer", ["one"] * 4), {}),
        (with_column("layer", [None] * 4), {}),
    ],
)
def test_a_malformed_explanation_is_refused_with_its_name(
    change: Callable[[pa.Table], pa.Table], header: dict[str, Any], tmp_path: Path
) -> None:
    explanation().save(tmp_path / "saved")
    rewritten(tmp_path / "saved", lambda table: table)
    assert Explanation.load(tmp_path / "saved") == explanation(), "but for the change it is good"
    rewritten(tmp_path / "saved", change, **header)
    with pytest.raises(ValueError, match="saved'"):
        Explanation.load(tmp_path / "saved")


# -- much larger in memory


@pytest.mark.parametrize("kind", ["numbers", "text", "dictionary"])
def test_a_small_file_that_would_take_much_memory_is_refused_before_it_is_unpacked(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "saved"
    explanation().save(path)
    if kind == "numbers":
        zeros = pa.ListArray.from_arrays(
            pa.array([0, 0, 0, 0, 12_000_000]), pa.array(torch.zeros(12_000_000).numpy())
        )
        rewritten(path, with_column("sigma", zeros))
    else:
        # each long text is stored once in the file
        some = ["text"] if kind == "dictionary" else []
        rewritten(path, with_column("text", ["a" * 12_000_000] * 4), some)
        monkeypatch.setattr(files, "SMALL", 2**30 if some else 2**25)
    assert path.stat().st_size < 64_000
    monkeypatch.setattr(parquet.ParquetFile, "read", lambda *given: pytest.fail("it was unpacked"))
    with pytest.raises(
        ValueError, match=r"saved' (has \d+ bytes and would take \d+ in memory|holds no Explanation)"
    ):
        Explanation.load(path)


def test_a_study_of_few_numbers_and_very_many_names_is_refused_before_it_takes_memory(tmp_path: Path) -> None:
    study().save(tmp_path / "saved")
    path = tmp_path / "saved"
    header = json.loads(parquet.read_metadata(path).metadata[b"interp_plugin study"])
    rewritten(path, lambda table: table, ["question", "method", "metric"])
    assert StudyResult.load(path) == study(), "but for the names it is good"
    many = {name: header[name] * 400 for name in ("questions", "methods", "metrics")}
    rewritten(path, lambda table: table, ["question", "method", "metric"], **many)
    with pytest.raises(ValueError, match="saved' holds no StudyResult, or a damaged one"):
        StudyResult.load(tmp_path / "saved")
