"""Files are whole or absent, whenever their writer dies and however it fails."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from defuse_core.base.files import file_sha256, store_chunks, write_bytes

SIZE = 300_000

WRITER = f"""
import sys
from pathlib import Path
from defuse_core.base.files import write_bytes
path, number = Path(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
while True:
    number += 1
    write_bytes(path, number.to_bytes(8, "big") * ({SIZE} + number % 1000))
"""

SMALL_DISK = """
import resource, sys
from pathlib import Path
from defuse_core.base.files import store_chunks, write_bytes
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
write_bytes(Path(sys.argv[1]) / "small", b"fits")
for write in (lambda: write_bytes(Path(sys.argv[1]) / "x", bytes(200_000)),
              lambda: store_chunks(Path(sys.argv[1]), (bytes(30_000) for _ in range(10)))):
    try:
        write()
    except OSError as error:
        print("refused", error.errno)
"""


def number_of(content: bytes) -> int:
    """Which of the writer's contents this is; fails where it is not one of them as a whole."""
    number = int.from_bytes(content[:8], "big")
    assert content == content[:8] * (SIZE + number % 1000), f"torn after {len(content)} bytes"
    return number


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_torn_write_is_never_read(tmp_path: Path) -> None:
    """Killed 20 times at random moments, most of them in the middle of a write of 2.4 MB.

    Every other writer is killed only once a content of its own was read.
    """
    path = tmp_path / "x"
    rng = random.Random(0)
    seen = [0]

    def read_for(seconds: float, *, least: int) -> None:
        end, before = time.monotonic() + seconds, len(set(seen))
        while time.monotonic() < end or (len(set(seen)) < before + least and time.monotonic() < end + 10):
            if path.exists():
                seen.append(number_of(path.read_bytes()))

    for number in range(20):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(seen[-1])], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        read_for(rng.uniform(0, 0.03), least=number % 2)
        time.sleep(rng.uniform(0, 0.01))
        writer.kill()
        writer.communicate()
        if path.exists():
            seen.append(number_of(path.read_bytes()))
    assert seen == sorted(seen), "an older content came back"
    assert len(set(seen)) > 10
    assert len(names(tmp_path)) > 1, "no writer was killed in the middle of a write"


def test_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "x"
    contents = [bytes([number]) * (100_000 + number) for number in range(4)]
    write_bytes(path, contents[0])
    stop = threading.Event()

    def write(content: bytes) -> None:
        while not stop.is_set():
            write_bytes(path, content)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    seen: list[bytes] = []
    until = time.monotonic() + 10
    while (len(seen) < 100 or len(set(seen)) < 3) and time.monotonic() < until:
        seen.append(path.read_bytes())
    stop.set()
    for thread in threads:
        thread.join()
    assert set(seen) <= set(contents)
    assert len(set(seen)) >= 3
    assert names(tmp_path) == ["x"]


def test_a_file_is_written_with_its_folders_and_may_be_read_by_others(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "x"
    write_bytes(path, b"first")
    write_bytes(path, b"")
    assert path.read_bytes() == b""
    assert path.stat().st_mode & 0o777 == 0o644
    assert names(path.parent) == ["x"]


def test_a_folder_in_the_way_stays_and_no_temporary_does(tmp_path: Path) -> None:
    (tmp_path / "x" / "inner").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        write_bytes(tmp_path / "x", b"content")
    assert names(tmp_path) == ["x"]
    assert names(tmp_path / "x") == ["inner"]


@given(chunks=st.lists(st.binary(max_size=50), max_size=8))
def test_chunks_are_stored_under_the_sha256_of_their_content(chunks: list[bytes]) -> None:
    whole = b"".join(chunks)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "blobs"
        assert store_chunks(folder, iter(chunks)) == (hashlib.sha256(whole).hexdigest(), len(whole))
        assert names(folder) == [hashlib.sha256(whole).hexdigest()]
        assert (folder / names(folder)[0]).read_bytes() == whole
        assert file_sha256(folder / names(folder)[0]) == names(folder)[0]


def test_equal_content_is_stored_once_and_mends_a_damaged_file(tmp_path: Path) -> None:
    sha256, _ = store_chunks(tmp_path, [b"ab", b"c"])
    (tmp_path / sha256).write_bytes(b"abd")
    assert store_chunks(tmp_path, [b"a", b"bc"]) == (sha256, 3)
    assert names(tmp_path) == [sha256]
    assert (tmp_path / sha256).read_bytes() == b"abc"


def test_an_upload_is_never_held_in_memory(tmp_path: Path) -> None:
    """48 MB in chunks of 1 MB, stored and checked with less than 4 MB."""
    chunk = 2**20
    tracemalloc.start()
    try:
        sha256, size = store_chunks(tmp_path, (bytes([i]) * chunk for i in range(48)))
        checked = file_sha256(tmp_path / sha256)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (size, checked) == (48 * chunk, sha256)
    assert chunk <= peak < 4 * chunk


@pytest.mark.parametrize("error", [ValueError, ConnectionResetError, KeyboardInterrupt, GeneratorExit])
def test_an_upload_that_breaks_off_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    kept, _ = store_chunks(tmp_path, [b"earlier"])
    seen: list[list[str]] = []

    def broken() -> Iterator[bytes]:
        yield b"x" * 100_000
        seen.append(names(tmp_path))
        raise error("broken off")

    with pytest.raises(error):
        store_chunks(tmp_path, broken())
    assert len(seen[0]) == 2, "the temporary was there"
    assert names(tmp_path) == [kept]


def test_a_chunk_that_is_not_bytes_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        store_chunks(tmp_path, [b"bytes", "text"])
    assert names(tmp_path) == []


def test_a_disk_that_is_full_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_bytes(tmp_path / "x", b"old")
    told = subprocess.run(
        [sys.executable, "-c", SMALL_DISK, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert told.stdout.split() == ["refused", "27", "refused", "27"]  # EFBIG
    assert names(tmp_path) == ["small", "x"]
    assert (tmp_path / "x").read_bytes() == b"old"
    assert (tmp_path / "small").read_bytes() == b"fits"


def test_a_missing_file_has_no_checksum(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone"):
        file_sha256(tmp_path / "gone")


def test_a_link_is_followed_and_a_pipe_written_into(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"
    os.mkfifo(tmp_path / "pipe")
    reading = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_bytes(tmp_path / "pipe", b"through")
        assert os.read(reading, 100) == b"through"
    finally:
        os.close(reading)
    assert (tmp_path / "pipe").is_fifo()
    write_bytes(Path("/dev/null"), b"gone")
    assert Path("/dev/null").is_char_device()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe", "target"]
