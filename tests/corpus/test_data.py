"""Texts from files and data sets."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import pandas
import pyarrow
import pytest
from pyarrow import parquet
from tiny_plain import cnn

from interp_plugin import TextExplainer
from interp_plugin.data import EMPTY, Record, Wanted, columns, read_texts, records

ROWS = [{"sentence": "a good film", "label": 1}, {"sentence": "a dull one", "label": 0}]


def written(path: Path) -> Path:
    """Write the rows to a file of the kind of the path's suffix."""
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
    """The URI of a folder's copy in an object store; "memory" represents stores that only fsspec reads."""
    if scheme == "file":
        return folder.as_uri()
    store = fsspec.filesystem("memory")
    for path in folder.iterdir():
        store.pipe(f"/{folder.name}/{path.name}", path.read_bytes())
    return f"memory://{folder.name}"


@pytest.mark.parametrize("scheme", ["file", "memory"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_file_in_an_object_store_is_read_like_a_local_file(
    tmp_path: Path, suffix: str, scheme: str
) -> None:
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
        ("memory://elsewhere/films.pdf", "cannot be read"),
        ("memory://elsewhere", "cannot be read"),
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
    with pytest.raises(
        ValueError, match=r"data set 'no/such:thing' cannot be loaded .* give an existing file"
    ):
        read_texts("no/such:thing", split="test")


def test_columns_have_numbers_in_a_file_without_a_header(tmp_path: Path) -> None:
    [first, _] = of(tmp_path / "x.tsv", b'say "hi"\t1\nbye\t0\n', header=False)
    assert first.values == {0: 'say "hi"', 1: "1"}


def test_a_quoted_cell_of_csv_may_hold_line_breaks(tmp_path: Path) -> None:
    [row, after] = of(tmp_path / "x.csv", b'text,label\n"one\ntwo, three",1\nfour,0\n')
    assert row.values == {"text": "one\ntwo, three", "label": "1"}
    assert after.where == "x.csv, line 4"


@pytest.mark.parametrize("end", [b"", b"\n", b"\nfour,0\n"])
def test_a_quote_that_is_not_closed_is_a_record_that_cannot_be_read(tmp_path: Path, end: bytes) -> None:
    """It was one text with all lines after it."""
    [before, row] = of(tmp_path / "x.csv", b'text,label\na film,0\n"one,1' + end)
    assert before.values == {"text": "a film", "label": "0"}
    assert not row.values and "a quote that opens in line 3 is not closed" in row.error


def test_a_byte_order_mark_is_not_part_of_the_first_text(tmp_path: Path) -> None:
    assert of(tmp_path / "x.txt", b"\xef\xbb\xbfa film\n")[0].values == {"text": "a film"}
    for name, content in (("x.csv", b'"text",label\na film,1\n'), ("x.tsv", b"text\tlabel\na film\t1\n")):
        for encoding in ("utf-8", "utf-8-sig", "latin-1"):
            [row] = of(tmp_path / name, b"\xef\xbb\xbf" + content, encoding=encoding)
            assert row.values == {"text": "a film", "label": "1"}


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


def test_a_long_line_is_read_as_a_text(tmp_path: Path) -> None:
    for name in ("x.txt", "x.csv"):
        found = of(tmp_path / name, b"text\n" + b"word " * 20_000 + b"\n")
        assert len(str(found[-1].text("text"))) >= 99_999


def test_a_missing_column_is_an_error_that_lists_the_columns(tmp_path: Path) -> None:
    path = written(tmp_path / "films.csv")
    with pytest.raises(
        ValueError, match=r"no column 'words' in films.csv, line 2: there are columns 'sentence', 'label'"
    ):
        read_texts(path, text_column="words")
    path = tmp_path / "films.jsonl"
    path.write_text('{"text": "a", "label": 1}\n{"text": "b"}\n', encoding="utf-8")
    found = read_texts(path)
    assert (found.texts, found.labels) == (("a",), (1,))
    assert found.left_out == (
        "films.jsonl, line 2 has no column 'label': there are columns 'text'; choose one",
    )


def test_a_missing_column_is_an_error_that_names_the_one_like_it(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    for header in ("text,Label", "text, label", "text,lable"):
        path.write_text(f"{header}\na good film,1\n", encoding="utf-8")
        named = header.partition(",")[2]
        with pytest.raises(
            ValueError, match=rf"there are columns 'text', '{named}' \(did you mean '{named}'\?\)"
        ):
            read_texts(path, label_column="label")
    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"Text": ["a good film"]}), path)
    with pytest.raises(ValueError, match=r"did you mean 'Text'\?"):
        read_texts(path, text_column="text")
    with pytest.raises(ValueError, match="there are columns 'Text'; choose one"):
        read_texts(path, text_column="comment")


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_columns_of_one_name_are_numbered_as_in_pandas(tmp_path: Path, suffix: str) -> None:
    """The last one was taken for all."""
    path, mark = tmp_path / f"x{suffix}", "\t" if suffix == ".tsv" else ","
    rows = (["text", "label", "text", "text"], ["a good film", "1", "bad", "so-so"])
    path.write_text("".join(mark.join(row) + "\n" for row in rows), encoding="utf-8")
    assert read_texts(path).texts == ("a good film",)
    assert read_texts(path, text_column="text.2").texts == ("so-so",)
    [row] = records(path)
    assert list(row.values) == list(pandas.read_csv(path, sep=mark).columns)
    table = pandas.DataFrame([["a good film", "bad"]], columns=["text", "text"])
    assert read_texts(table).texts == ("a good film",)


def test_the_column_of_texts_is_not_guessed_if_two_are_possible() -> None:
    with pytest.raises(ValueError, match="is not clear from columns 'title', 'body'"):
        columns([Record("x, row 1", {"title": "a", "body": "b"})])
    assert columns([Record("x, row 1", {"title": "a", "text": "b"})]) == "text"
    assert columns([Record("x, row 1", {"words": "a", "stars": "3"})]) == "words"


def test_pairs_come_from_two_columns(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("premise,hypothesis\na man runs,he moves\n", encoding="utf-8")
    assert read_texts(path, text_column="premise", pair_column="hypothesis").texts == (
        ("a man runs", "he moves"),
    )


def test_a_source_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no file '.*gone.csv'"):
        read_texts(tmp_path / "gone.csv")
    with pytest.raises(ValueError, match="cannot be read"):
        read_texts(tmp_path)
    (tmp_path / "blank.txt").write_text("\n\n", encoding="utf-8")
    with pytest.raises(ValueError, match="holds no texts"):
        read_texts(tmp_path / "blank.txt")


def test_records_are_read_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("one\ntwo\n", encoding="utf-8")
    found = records(path)
    assert next(found).values == {"text": "one"}
    assert read_texts(path, limit=1).texts == ("one",)


# -- unreadable records carry the reason, and the others are read

MANY_DIGITS = b'{"text": "two", "n": ' + b"9" * 5_000 + b"}"
DEEP = b'{"text": "two", "n": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize("bad", [MANY_DIGITS, DEEP, b'{"text": NUL}', b'{"text": "two"'])
def test_a_line_that_json_cannot_hold_is_one_bad_record(tmp_path: Path, bad: bytes) -> None:
    lines = [b'{"text": "one"}', bad, b'{"text": "three"}']
    first, second, third = of(tmp_path / "x.jsonl", b"\n".join(lines))
    assert (first.values["text"], third.values["text"]) == ("one", "three")
    assert (second.where, dict(second.values)) == ("x.jsonl, line 2", {})
    assert second.error is not None and second.error.startswith("not JSON that can be read (")


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".tsv"])
def test_a_line_too_long_to_hold_is_one_bad_record(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interp_plugin.data.LONGEST", 1_000)
    long = {".txt": b"word " * 1_000, ".jsonl": b'{"text": "' + b"word " * 1_000 + b'"}'}.get(
        suffix, b"a,b\t" * 1_000
    )
    short = {".jsonl": (b'{"text": "one"}', b'{"text": "three"}')}.get(suffix, (b"one", b"three"))
    for end in (b"\n", b""):
        found = of(tmp_path / f"x{suffix}", b"\n".join([short[0], long, short[1]]) + end, header=False)
        assert [record.values.get("text", record.values.get(0)) for record in found] == ["one", None, "three"]
        assert found[1].where == f"x{suffix}, line 2"
    last = of(tmp_path / f"x{suffix}", short[0] + b"\n" + long, header=False)[-1]
    assert last.error is not None


def strings(*values: bytes) -> pyarrow.Array:
    """A column declared as UTF-8, with any content."""
    given = pyarrow.array(values, pyarrow.binary())
    return pyarrow.StringArray.from_buffers(len(values), *given.buffers()[1:])


BAD_VALUES: dict[str, pyarrow.Array] = {
    "year 12000": pyarrow.array([0, 316_516_147_200_000_000, 0], pyarrow.timestamp("us")),
    "not UTF-8": strings(b"a", b"\xff\xfe", b"b"),
}


@pytest.mark.parametrize("bad", BAD_VALUES.values(), ids=list(BAD_VALUES))
def test_a_value_that_python_cannot_represent_affects_only_its_row(
    tmp_path: Path, bad: pyarrow.Array
) -> None:
    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"text": ["one", "two", "three"], "other": bad}), path)
    first, second, third = records(path)
    assert (first.values["text"], third.values["text"]) == ("one", "three")
    assert (second.where, dict(second.values)) == ("x.parquet, row 2", {})
    assert second.error is not None and second.error.startswith("a value that cannot be read (")
    assert read_texts(path).texts == ("one", "two", "three"), (
        "the other column is not read where it is not asked for"
    )
    found = read_texts(path, label_column="other")
    assert found.texts == ("one", "three")
    assert len(found.left_out) == 1
    assert found.left_out[0].startswith("x.parquet, row 2: a value that cannot be read")


def damaged(path: Path, column: int = 0, group: int = 1, **options: Any) -> Path:
    """Three groups of four rows, a page of one of which is damaged."""
    table = pyarrow.table(
        {"text": [f"text {row}" for row in range(12)], "n": [float(row) for row in range(12)]}
    )
    parquet.write_table(table, path, row_group_size=4, use_dictionary=False, **options)
    chunk = parquet.read_metadata(path).row_group(group).column(column)
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size - 3] ^= 16
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "options",
    [{"write_page_checksum": True, "compression": "none"}, {"compression": "zstd"}],
    ids=["sum", "zstd"],
)
def test_a_damaged_page_affects_only_the_rest_of_its_row_group(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    path = damaged(tmp_path / "x.parquet", **options)
    found = list(records(path))
    assert [record.where for record in found] == [f"x.parquet, row {row}" for row in range(1, 13)]
    assert [record.values.get("text") for record in found if record.error is None] == [
        f"text {row}" for row in (0, 1, 2, 3, 8, 9, 10, 11)
    ]
    spoiled = {record.error for record in found[4:8]}
    assert all(error is not None and error.startswith("in a damaged part of the file (") for error in spoiled)
    assert list(records(path)) == found, "the same at every reading"
    path = damaged(path, column=1, **options)
    assert len(read_texts(path, label_column=None).texts) == 12, "the other column is not read"


def test_choosing_columns_later_does_not_restart_reading(tmp_path: Path) -> None:
    path = written(tmp_path / "x.parquet")
    some = records(path)
    assert next(some).values["sentence"] == "a good film"
    assert [record.values["sentence"] for record in some.only(Wanted("sentence"))] == ["a dull one"]


def test_a_file_that_is_not_parquet_is_one_bad_record(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"text": ["one"]}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    parquet.write_table(pyarrow.table({"text": ["three"]}), tmp_path / "c.parquet")
    found = list(records(tmp_path))
    assert [record.values.get("text") for record in found] == ["one", None, "three"]
    assert (found[1].where, str(found[1].error)[:35]) == ("b.parquet", "not a Parquet file that can be read")


def test_a_failing_disk_is_an_error_and_not_a_bad_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "x.parquet")

    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() < 200:
                raise OSError(errno.EIO, "Input/output error")
            return super().read(size)

    monkeypatch.setattr("interp_plugin.data._of_disk", lambda path: Failing(path.read_bytes()))
    with pytest.raises(OSError, match="Input/output error"):
        list(records(path))


@pytest.mark.parametrize("kind", [pyarrow.binary(), pyarrow.large_binary()], ids=str)
def test_bytes_in_parquet_are_read_as_utf_8(tmp_path: Path, kind: Any) -> None:
    path = tmp_path / "x.parquet"
    texts = pyarrow.array(["sch\xf6n".encode(), b"\xff\xfe", b"bad"], kind)
    parquet.write_table(
        pyarrow.table({"text": texts, "label": pyarrow.array([b"pos", b"pos", b"neg"], kind)}), path
    )
    found = read_texts(path)
    assert (found.texts, found.labels) == (("sch\xf6n", "bad"), ("pos", "neg"))
    [left_out] = found.left_out
    assert left_out.startswith("x.parquet, row 2 holds") and left_out.endswith(
        "in column 'text': it must be a text that is not empty, and bytes must be UTF-8"
    )
    parquet.write_table(pyarrow.table({"review": texts, "stars": [5, 1, 1]}), path)
    assert read_texts(path).texts == read_texts(path, text_column="review").texts == found.texts


def test_only_the_requested_columns_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    columns = {name: [name] for name in ("text", "title", "label", "tags", "n")}
    parquet.write_table(pyarrow.table(columns), path)
    for wanted, names in [
        (Wanted(None), ["text"]),
        (Wanted("title"), ["title"]),
        (Wanted("title", ("tags",)), ["title", "tags"]),
        (Wanted(None, usual=("label", "class")), ["text", "label"]),
    ]:
        [record] = records(path).only(wanted)
        assert list(record.values) == names
    [record] = records(path).only(Wanted("words", ("tags",)))
    assert record.error == (
        "no column 'words': there are columns 'text', 'title', 'label', 'tags', 'n'; choose one"
    )
    with pytest.raises(
        ValueError, match=r"no column 'words' in x\.parquet, row 1: there are columns 'text', 'title'"
    ):
        read_texts(path, text_column="words")


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory of Linux")
def test_wide_rows_are_not_held_in_memory(tmp_path: Path) -> None:
    """A column of 400 KB a row beside the texts: it is not read, or a few pages of it at a time."""
    path = tmp_path / "x.parquet"
    schema = pyarrow.schema({"text": pyarrow.string(), "wide": pyarrow.binary()})
    options = {"compression": "none", "use_dictionary": False, "write_batch_size": 5}  # pages of some rows
    with parquet.ParquetWriter(path, schema, **options) as writer:
        for _ in range(3):
            rows = [{"text": "word " * 8, "wide": os.urandom(400_000)} for _ in range(250)]
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))
    code = (
        "import sys; from interp_plugin.data import records; from interp_plugin.data import Wanted\n"
        "import pyarrow.parquet\n"
        "def peak(): return int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) >> 10\n"
        "open('/proc/self/clear_refs', 'w').write('5'); before = peak()\n"
        "found = records(sys.argv[1]); found = found.only(Wanted('text')) if sys.argv[2] == 'text' else found\n"
        "assert sum(record.error is None for record in found) == 750\n"
        "print(peak() - before)"
    )
    for kind, most in (("text", 30), ("all", 220)):
        done = subprocess.run(
            [sys.executable, "-c", code, str(path), kind], capture_output=True, text=True, check=True
        )
        assert int(done.stdout) < most, f"MiB, and the file has {path.stat().st_size >> 20}"


# -- files as users have them


@pytest.mark.parametrize(
    "name, content",
    [
        ("x.csv", b"id;comment;stars\n1;a good, funny film;5\n2;not bad;1\n"),
        ("x.csv", b'id,comment\n1,"a good, funny film"\n2,not bad\n'),
        ("x.csv", b"id\tcomment\n1\ta good, funny film\n2\tnot bad\n"),
        ("x.csv", b"\xef\xbb\xbfid|comment\r\n1|a good, funny film\r\n2|not bad\r\n"),
        ("x.tsv", b"id\tcomment\n1\ta good, funny film\n2\tnot bad\n"),
        ("x.csv", b'comment\n"a good, funny film"\nnot bad\n'),
    ],
)
def test_separators_and_columns_are_detected(tmp_path: Path, name: str, content: bytes) -> None:
    """A .csv separated by anything but commas used to be one column, and its lines texts."""
    path = tmp_path / name
    path.write_bytes(content)
    assert read_texts(path).texts == ("a good, funny film", "not bad")


def test_a_first_line_that_is_a_text_is_not_a_header(tmp_path: Path) -> None:
    for content in ("a good film\nnot bad\n", "a good film,1\nnot bad,0\n"):
        path = tmp_path / "x.csv"
        path.write_text(content, encoding="utf-8")
        assert read_texts(path).texts == ("a good film", "not bad")


def test_empty_and_broken_rows_are_left_out_and_named(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('text,label\na good film,1\n,0\nbad,0,9,9\n\n"two\nlines",1\n', encoding="utf-8")
    found = read_texts(path)
    assert (found.texts, found.labels) == (("a good film", "two\nlines"), ("1", "1"))
    assert found.left_out == (
        "x.csv, line 3 holds '' in column 'text': it must be a text that is not empty",
        "x.csv, line 4: 4 columns, and the header names 2",
    )


def test_a_latin_1_file_is_read_with_that_encoding(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes("text,label\ncaf\xe9,1\n".encode("latin-1"))
    with pytest.raises(
        ValueError, match="line 2: not UTF-8 text; if it is Latin-1, give the encoding latin-1"
    ):
        read_texts(path)
    assert read_texts(path, encoding="latin-1").texts == ("caf\xe9",)
    with pytest.raises(ValueError, match="encoding 'utf-16' is unknown, or does not write line breaks"):
        read_texts(path, encoding="utf-16")
    path.write_bytes("text,label\nfilm,1\n".encode("utf-16"))
    with pytest.raises(ValueError, match="a file in UTF-16, as spreadsheets write it; convert it to UTF-8"):
        read_texts(path)


def test_a_split_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only a data set has splits"):
        records(written(tmp_path / "x.csv"), split="validation")


# -- texts to explain


def test_texts_are_read_from_series_arrays_tables_and_records(tmp_path: Path) -> None:
    path = tmp_path / "films.csv"
    path.write_text("id;comment\n1;a good film\n2;it was bad\n", encoding="utf-8")
    table = pandas.read_csv(path, sep=";")
    explainer = TextExplainer(cnn())
    for given in (records(path), table, table["comment"], table["comment"].to_numpy()):
        assert [encoding.text for encoding in explainer.encode(given)] == ["a good film", "it was bad"]
    for name in (str(path), path):
        with pytest.raises(ValueError, match=r"films\.csv' is a file, not a text; give data\.read_texts"):
            explainer.encode(name)


def test_texts_in_memory_are_read_like_those_of_a_file() -> None:
    table = pandas.DataFrame({"comment": ["a good film", "", "bad"], "stars": [5, 3, 1]})
    found = read_texts(table, label_column="stars")
    assert (found.texts, found.labels) == (("a good film", "bad"), (5, 1))
    assert found.left_out == ("row 1 holds '' in column 'comment': it must be a text that is not empty",)
    texts = ["a good film", "bad"]
    for given in (texts, tuple(texts), iter(texts), pandas.Series(texts), [{"text": text} for text in texts]):
        assert read_texts(given).texts == tuple(texts)
    assert read_texts(texts, limit=1).texts == ("a good film",)
    for wrong in ({"text": texts}, 5, None):
        with pytest.raises(TypeError, match=f"texts is a {type(wrong).__name__}: give an iterable of texts"):
            read_texts(wrong)
    with pytest.raises(ValueError, match="split is 'test' and the texts are in memory"):
        read_texts(texts, split="test")


def test_labels_of_a_file_are_classes_by_name_or_number() -> None:
    explainer = TextExplainer(cnn())
    found = explainer.explain(["a good film", "it was bad"], "output", ["1", "bad"])
    assert [item.target for item in found] == ["so-so", "bad"]


def test_only_the_first_records_are_read(tmp_path: Path) -> None:
    path = tmp_path / "films.csv"
    path.write_text("comment,stars\na,1\nb,2\nc,3\n", encoding="utf-8")
    assert [record.values["comment"] for record in records(path, limit=2)] == ["a", "b"]
    assert [record.values["comment"] for record in records(path, limit=2).only(Wanted("comment"))] == [
        "a",
        "b",
    ]
