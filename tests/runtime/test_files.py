"""Files are replaced by a rename, and errors leave nothing behind."""

import os

import pytest

from siglightning.runtime.files import atomic_write, remove_temporaries, temporary_name, write_text


def test_the_written_file_itself_takes_the_name(tmp_path):
    """A copy to the final name would be another file, and could be seen half done."""
    path = tmp_path / "file"
    path.write_text("old")
    with atomic_write(path) as file:
        written = os.fstat(file.fileno()).st_ino
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.stat().st_ino == written
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_keeps_the_old_content(tmp_path):
    path = tmp_path / "file"
    write_text(path, "älter")

    def interrupted():
        with atomic_write(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "älter"
    assert list(tmp_path.iterdir()) == [path]


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    path = tmp_path / "step-1.ckpt"
    path.write_text("whole")
    temporary_name(path).write_text("half")
    remove_temporaries(tmp_path)
    assert list(tmp_path.iterdir()) == [path]
