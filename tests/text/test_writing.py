"""Output files: written completely or not at all, keeping links, modes, pipes and devices."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from interp_plugin.files import check_local, check_output, replace_file

posix = pytest.mark.skipif(os.name != "posix", reason="links, modes and pipes of POSIX")


@posix
def test_a_symbolic_link_stays_and_its_file_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name, link in (("old", "link"), ("not-yet", "dangling")):
        (tmp_path / link).symlink_to(folder / name)
    (folder / "old").write_bytes(b"before")
    for link in ("link", "dangling"):
        replace_file(tmp_path / link, b"after")
        assert (tmp_path / link).is_symlink()
        assert (tmp_path / link).read_bytes() == b"after"
    assert sorted(os.listdir(folder)) == ["not-yet", "old"]


@posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o755])
def test_a_file_keeps_its_mode(tmp_path: Path, mode: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.html"
    path.write_bytes(b"before")
    path.chmod(mode)
    seen: list[int] = []
    original = os.fsync

    def fsync(descriptor: int) -> None:
        seen.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        original(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    replace_file(path, b"after")
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert seen[0] == mode, "the draft is no more open than the file"
    assert path.read_bytes() == b"after"


@posix
def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    check_output(path)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(path.read_bytes()))
    reader.start()
    replace_file(path, b"x" * 100_000)
    reader.join(10)
    assert found == [b"x" * 100_000]
    assert stat.S_ISFIFO(path.stat().st_mode)


@posix
def test_a_device_is_written_to_and_stays_a_device() -> None:
    before = os.stat("/dev/null")
    check_output("/dev/null")
    replace_file("/dev/null", b"x")
    assert os.stat("/dev/null").st_ino == before.st_ino
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@posix
@pytest.mark.parametrize("to", ["pipe", "file"])
def test_standard_output_gets_the_bytes_in_the_order_of_printing(tmp_path: Path, to: str) -> None:
    code = (
        "from interp_plugin.files import check_output, replace_file; print('before')\n"
        "check_output('/dev/stdout'); replace_file('/dev/stdout', b'content\\n'); print('after')"
    )
    command = [sys.executable, "-c", code]
    if to == "pipe":
        found = subprocess.run(command, check=True, capture_output=True).stdout
    else:
        with (tmp_path / "out").open("wb") as file:
            subprocess.run(command, check=True, stdout=file)
        found = (tmp_path / "out").read_bytes()
    assert found == b"before\ncontent\nafter\n"


def test_a_file_that_cannot_be_written_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    replace_file(path, b"before")

    def failing(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    for function in ("fsync", "replace"):
        with monkeypatch.context() as broken:
            broken.setattr(os, function, failing)
            with pytest.raises(OSError, match="No space left"):
                replace_file(path, b"after")
        assert path.read_bytes() == b"before"
        assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("uri", ["s3://bucket/x", "file:///x", "gs://bucket/x", "hf:/x"])
def test_a_uri_is_refused_as_a_place_for_results(uri: str) -> None:
    for path in (uri, Path(uri)):  # a Path has lost one of the slashes
        for check in (check_local, check_output, lambda path: replace_file(path, b"")):
            with pytest.raises(ValueError, match=r"is a URI.*give a path on it"):
                check(path)


def test_a_name_with_a_colon_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("run:1", "file:x"):
        check_output(name)
        replace_file(name, b"x")
    assert sorted(os.listdir()) == ["file:x", "run:1"]
