"""Texts out of files and data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pytest
from pyarrow import parquet

from interp_plugin.data import EMPTY, Record, columns, read_texts, records

ROWS = [{"sentence": "a good film", "label": 1}, {"sentence": "a dull one", "label": 0}]


def written(path: Path) -> Path:
    """The rows as a file of the kind that the path's suffix says."""
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    else:
        mark = "\t" if path.suffix == ".tsv" else ","
        lines = [("sentence", "label"), *((row["sentence"], row["label"]) for row in ROWS)]
        path.write_text("".join(f"{a}{mark}{b}\n" for a, b in lines), encoding="utf-8")
    return path


def of(path: Path, content: bytes, **settings: Any) -> list[Record]:
    path.write_bytes(content)
    return list(records(path, **settings))


def stored(scheme: str, folder: Path) -> str:
    """The URI of a folder's copy in an object store; "memory" stands for those that only fsspec reads."""
    if scheme == "file":
        return folder.as_uri()
    store = fsspec.filesystem("memory")
    for path in folder.iterdir():
        store.pipe(f"/{folder.name}/{path.name}", path.read_bytes())
    return f"memory://{folder.name}"


@pytest.mark.parametrize("scheme", ["file", "memory"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_file_in_an_object_store_is_read_as_one_on_a_disk(tmp_path: Path, suffix: str, scheme: str) -> None:
    path = written(tmp_path / f"films{suffix}")
    assert list(records(f"{stored(scheme, tmp_path)}/{path.name}")) == list(records(path))


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_a_folder_in_an_object_store_is_read_in_the_order_of_its_names(tmp_path: Path, scheme: str) -> None:
    (tmp_path / "b.txt").write_bytes(b"two\n\xff\n\nthree\n")
    (tmp_path / "a.txt").write_text("one\n")
    (tmp_path / "notes.md").write_text("none of it\n")
    found = list(records(stored(scheme, tmp_path)))
    assert found == list(records(tmp_path))
    assert [record.values.get("text") for record in found] == ["one", "two", None, None, "three"]


def test_a_uri_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    fsspec.filesystem("memory").pipe("/elsewhere/films.pdf", b"")
    for uri, reason in [
        (f"{tmp_path.as_uri()}/none.txt", "there is no file 'file:"),
        ("memory://nowhere/none.txt", "there is no file 'memory:"),
        ("memory://elsewhere/films.pdf", "nothing that can be read"),
        ("memory://elsewhere", "nothing that can be read"),
        ("nothing-like-it://films.txt", r"cannot be reached \(Protocol not known"),
    ]:
        with pytest.raises(ValueError, match=reason):
            records(uri)
    with pytest.raises(ValueError, match="only a data set has splits"):
        records("memory://elsewhere", split="train")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_kind_of_file_gives_the_same_texts(tmp_path: Path, suffix: str) -> None:
    found = read_texts(written(tmp_path / f"films{suffix}"))
    assert found.texts == ("a good film", "a dull one")
    assert found.labels is not None
    assert list(map(int, found.labels)) == [1, 0]
    assert found.rationales is None


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second\n", encoding="utf-8")
    (tmp_path / "a.txt").write_text("first\n", encoding="utf-8")
    (tmp_path / "notes.md").write_text("not data", encoding="utf-8")
    assert read_texts(tmp_path).texts == ("first", "second")


def test_a_data_set_is_loaded_by_datasets_from_local_files(tmp_path: Path) -> None:
    written(tmp_path / "train.csv")
    found = read_texts(str(tmp_path), split="train")
    assert (found.texts, found.labels) == (("a good film", "a dull one"), (1, 0))


def test_a_data_set_out_of_reach_is_a_clear_error() -> None:
    with pytest.raises(ValueError, match=r"data set 'no/such:thing' cannot be loaded .* give a file"):
        read_texts("no/such:thing", split="test")


def test_columns_have_numbers_in_a_file_without_a_header(tmp_path: Path) -> None:
    [first, _] = of(tmp_path / "x.tsv", b'say "hi"\t1\nbye\t0\n', header=False)
    assert first.values == {0: 'say "hi"', 1: "1"}


def test_a_quoted_cell_of_csv_may_hold_line_breaks(tmp_path: Path) -> None:
    [row, after] = of(tmp_path / "x.csv", b'text,label\n"one\ntwo, three",1\nfour,0\n')
    assert row.values == {"text": "one\ntwo, three", "label": "1"}
    assert after.where == "x.csv, line 4"


def test_a_byte_order_mark_is_not_part_of_the_first_text(tmp_path: Path) -> None:
    assert of(tmp_path / "x.txt", b"\xef\xbb\xbfa film\n")[0].values == {"text": "a film"}
    assert of(tmp_path / "x.csv", b"\xef\xbb\xbftext\na film\n")[0].values == {"text": "a film"}


@pytest.mark.parametrize(
    "name, content, error",
    [
        ("x.txt", b"one\n\xff\xfe\nthree\n", "not UTF-8"),
        ("x.txt", b"one\n\nthree\n", EMPTY),
        ("x.jsonl", b'{"text": "one"}\n{"text": \n{"text": "three"}\n', "not JSON"),
        ("x.jsonl", b'{"text": "one"}\n[2]\n{"text": "three"}\n', "not a JSON object"),
        ("x.tsv", b"text\none\n\xfftwo\nthree\n", "not UTF-8"),
        ("x.csv", b"text\none\n\nthree\n", EMPTY),
        ("x.tsv", b"text\none\ntwo\t2\nthree\n", "2 columns, and the header names 1"),
    ],
)
def test_a_bad_line_says_why_and_the_others_are_read(
    tmp_path: Path, name: str, content: bytes, error: str
) -> None:
    first, bad, last = of(tmp_path / name, content)
    assert (first.text("text"), last.text("text")) == ("one", "three")
    assert bad.error is not None
    assert bad.error.startswith(error)
    assert not bad.values


def test_a_long_line_is_a_text_like_others(tmp_path: Path) -> None:
    for name in ("x.txt", "x.csv"):
        found = of(tmp_path / name, b"text\n" + b"word " * 20_000 + b"\n")
        assert len(str(found[-1].text("text"))) >= 99_999


def test_a_missing_column_names_those_that_there_are(tmp_path: Path) -> None:
    path = written(tmp_path / "films.csv")
    with pytest.raises(
        ValueError, match=r"no column 'words' in films.csv, line 2: there are columns 'sentence', 'label'"
    ):
        read_texts(path, text_column="words")
    with pytest.raises(ValueError, match="no column 'label', which others have"):
        path = tmp_path / "films.jsonl"
        path.write_text('{"text": "a", "label": 1}\n{"text": "b"}\n', encoding="utf-8")
        read_texts(path)


def test_the_column_of_texts_is_not_guessed_where_two_would_do() -> None:
    with pytest.raises(ValueError, match="cannot be told from columns 'title', 'body'"):
        columns(Record("x, row 1", {"title": "a", "body": "b"}))
    assert columns(Record("x, row 1", {"title": "a", "text": "b"}))[0] == "text"
    assert columns(Record("x, row 1", {"words": "a", "stars": 3}))[0] == "words"


def test_pairs_come_from_two_columns(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("premise,hypothesis\na man runs,he moves\n", encoding="utf-8")
    assert read_texts(path, text_column="premise", pair_column="hypothesis").texts == (
        ("a man runs", "he moves"),
    )


def test_what_is_no_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no file '.*gone.csv'"):
        read_texts(tmp_path / "gone.csv")
    with pytest.raises(ValueError, match="nothing that can be read"):
        read_texts(tmp_path)
    (tmp_path / "blank.txt").write_text("\n\n", encoding="utf-8")
    with pytest.raises(ValueError, match="holds no texts"):
        read_texts(tmp_path / "blank.txt")


def test_records_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("one\ntwo\n", encoding="utf-8")
    found = records(path)
    assert next(found).values == {"text": "one"}
    assert read_texts(path, limit=1).texts == ("one",)
