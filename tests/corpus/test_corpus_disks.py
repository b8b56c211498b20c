"""Studies of a corpus on disks that are full, read-only or lose data: results are never wrong."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_corpus import TEXTS, WINDOW, files, rows, run, study, texts

from interp_plugin import CorpusResult
from interp_plugin.corpus.parts import Folder

COUNT = TEXTS // WINDOW
SOME = [*texts(5), "", *texts(4)]  # of which one fails


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> CorpusResult:
    return run(tmp_path_factory.mktemp("undisturbed"))


# -- a disk that is full, or read-only


class Disk:
    """Mount a small file system.

    Args:
        path: an empty folder, where it is put.
        size: that it holds, as mount has it.
    """

    def __init__(self, path: Path, size: str) -> None:
        self.path = path
        self._mount(f"size={size}", "tmpfs", str(path))

    def grow(self, size: str) -> None:
        self._mount(f"remount,size={size}", str(self.path))

    def lock(self) -> None:
        """Make it read-only for all files that are opened from now on."""
        path = str(self.path)
        subprocess.run(["mount", "--bind", path, path], check=True)
        subprocess.run(["mount", "-o", "remount,ro,bind", path], check=True)

    def unlock(self) -> None:
        subprocess.run(["umount", str(self.path)], check=True)

    @staticmethod
    def _mount(options: str, *what: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, *what], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A file system with room for some of the parts; skipped without permission to mount."""
    path = tmp_path / "disk"
    path.mkdir()
    try:
        made = Disk(path, "24k")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root may mount a file system")
    yield made
    subprocess.run(["umount", str(path)], check=True)


def test_a_disk_that_runs_full_keeps_the_finished_parts(disk: Disk, undisturbed: CorpusResult) -> None:
    with pytest.raises(OSError, match=r"cannot write to .*No space left.*: make room and run again"):
        run(disk.path)
    done = Folder(disk.path).windows()
    assert 0 < len(done) < COUNT
    assert {name[:5] for name in files(disk.path)} == {"part-"}, "nothing half-written is left"
    assert CorpusResult.load(disk.path, partial=True).texts == len(done) * WINDOW
    disk.grow("1m")
    assert rows(run(disk.path)).equals(rows(undisturbed))


def test_a_disk_that_becomes_read_only_during_a_run_keeps_the_finished_parts(
    disk: Disk, undisturbed: CorpusResult
) -> None:
    disk.grow("1m")

    def source() -> Iterator[str]:
        for number, text in enumerate(texts()):
            if number == 2 * WINDOW + 1:
                disk.lock()
            yield text

    with pytest.raises(OSError, match=r"Read-only.*: give a folder that can be written to"):
        run(disk.path, source())
    with pytest.raises(OSError, match=r"Read-only.*: give a folder that can be written to"):
        run(disk.path)
    assert CorpusResult.load(disk.path, partial=True).texts > 0, "what is there can be read"
    disk.unlock()
    assert rows(run(disk.path)).equals(rows(undisturbed))


def test_a_file_size_limit_is_a_clear_error_and_incomplete_files_are_ignored(
    tmp_path: Path, undisturbed: CorpusResult
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match=r"cannot write to .*make room and run again"):
            run(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(tmp_path) == []
    assert rows(run(tmp_path)).equals(rows(undisturbed))


def test_a_folder_that_cannot_be_written_to_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write to .*give a folder that can be written to"):
        run(tmp_path / "file" / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_a_clear_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(OSError, match="give a folder that can be written to"):
        run(tmp_path)


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_stop_at_each_step_of_writing_leaves_complete_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    undisturbed = rows(run(tmp_path / "undisturbed", SOME, window=4))
    original: Callable[..., Any] = getattr(os, function)
    for step in range(1, 7):
        calls = iter(range(1, 1000))

        def stopped(*arguments: Any, calls: Iterator[int] = calls, last: int = step) -> Any:
            if next(calls) == last:
                raise KeyboardInterrupt
            return original(*arguments)

        folder = tmp_path / str(step)
        monkeypatch.setattr(os, function, stopped)
        with pytest.raises(KeyboardInterrupt):
            run(folder, SOME, window=4)
            raise KeyboardInterrupt  # there are fewer steps
        monkeypatch.setattr(os, function, original)
        assert rows(run(folder, SOME, window=4)).equals(undisturbed)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_an_error_at_each_step_of_writing_is_reported_and_loses_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, number: int
) -> None:
    undisturbed = rows(run(tmp_path / "undisturbed", SOME, window=4))
    original: Callable[..., Any] = getattr(os, function)
    way_out = "make room" if number == errno.ENOSPC else "give a folder that can be written to"
    for step in range(1, 5):  # three parts and a file of failures
        calls = iter(range(1, 1000))

        def failing(*arguments: Any, calls: Iterator[int] = calls, last: int = step) -> Any:
            if next(calls) == last:
                raise OSError(number, os.strerror(number))
            return original(*arguments)

        folder = tmp_path / str(step)
        monkeypatch.setattr(os, function, failing)
        with pytest.raises(OSError, match=rf"cannot write to .*: {way_out}"):
            run(folder, SOME, window=4)
        monkeypatch.setattr(os, function, original)
        assert not [name for name in files(folder) if name.startswith(".")]
        assert rows(run(folder, SOME, window=4)).equals(undisturbed)


# -- files that were damaged


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("spoil", [truncated, flipped, emptied, Path.unlink])
@pytest.mark.parametrize("kind", ["part", "errors"])
def test_a_damaged_file_is_reported_and_computed_again(
    tmp_path: Path, spoil: Callable[[Path], None], kind: str
) -> None:
    some = [*texts(5), "", *texts(5)]
    before = rows(run(tmp_path, some, window=4))
    spoil(next(tmp_path.glob(f"{kind}-00000001-*")))
    with pytest.raises(ValueError, match=r"parts \[1\] are missing or damaged; run it again"):
        CorpusResult.load(tmp_path)
    assert CorpusResult.load(tmp_path, partial=True).texts == 7
    again = run(tmp_path, some, window=4)
    assert rows(again).equals(before)
    assert [failure.row for failure in again.failures()] == [5]
    assert len(files(tmp_path)) == 4


def test_a_part_with_a_changed_bit_or_a_missing_end_is_damaged(tmp_path: Path) -> None:
    part = run(tmp_path, texts(WINDOW)).parts[0].path
    content = part.read_bytes()
    for place in [*range(0, len(content), 97), *range(len(content) - 12, len(content))]:
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        for damage in (bytes(changed), content[:place]):
            part.write_bytes(damage)
            assert Folder(tmp_path).part(0) is None, place
    part.write_bytes(content)
    assert Folder(tmp_path).part(0) is not None


def exchange(one: Path, other: Path) -> None:
    """The contents of two files."""
    spare = one.with_name("spare")
    one.rename(spare)
    other.rename(one)
    spare.rename(other)


def test_every_part_damaged_in_another_place_is_computed_again(
    tmp_path: Path, undisturbed: CorpusResult
) -> None:
    for part in run(tmp_path).parts:
        window, size = part.about.window, part.path.stat().st_size
        content = bytearray(part.path.read_bytes())
        at = {0: 1, 1: size // 3, 2: size - 100, 3: size - 6}.get(window)  # magic, pages, footer, its length
        if at is not None:
            content[at] ^= 4
        part.path.write_bytes(content if at is not None else content[: size // 2] if window == 4 else b"")
    with pytest.raises(ValueError, match=r"parts \[0, 1, 2, 3, 4\] are missing or damaged"):
        CorpusResult.load(tmp_path)
    assert rows(run(tmp_path)).equals(rows(undisturbed))
    assert len(files(tmp_path)) == COUNT


def test_swapped_parts_are_computed_again(tmp_path: Path, undisturbed: CorpusResult) -> None:
    paths = [part.path for part in run(tmp_path).parts]
    exchange(paths[0], paths[1])
    moved = paths[2].name.replace("part-00000002", "part-00000003")
    paths[2].rename(tmp_path / moved)  # undamaged, but of another window
    paths[3].unlink()
    with pytest.raises(ValueError, match=r"parts \[0, 1, 2, 3\] are missing or damaged"):
        CorpusResult.load(tmp_path)
    assert rows(run(tmp_path)).equals(rows(undisturbed))
    assert len(files(tmp_path)) == COUNT


def test_incomplete_files_of_a_killed_run_are_ignored(tmp_path: Path, undisturbed: CorpusResult) -> None:
    path = run(tmp_path).parts[1].path
    content = path.read_bytes()
    for number, some in enumerate((content, content[:100], b"")):
        path.with_name(f".{path.name}.{number}").write_bytes(some)
    assert rows(CorpusResult.load(tmp_path)).equals(rows(undisturbed))
    path.unlink()
    assert Folder(tmp_path).part(1) is None
    assert rows(run(tmp_path)).equals(rows(undisturbed))
    assert len(files(tmp_path)) == COUNT, "and is cleared away with its window"


def test_a_part_of_another_study_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "a")
    other = study(rate=0.2).run(texts(), tmp_path / "b", window=WINDOW, show_progress=False).parts[1].path
    next((tmp_path / "a").glob("part-00000001-*")).unlink()
    shutil.copy(other, tmp_path / "a")
    with pytest.raises(ValueError, match="parts with different settings"):
        CorpusResult.load(tmp_path / "a")
    with pytest.raises(ValueError, match=r"other settings: rate is 0\.1 now and 0\.2 there"):
        run(tmp_path / "a")
