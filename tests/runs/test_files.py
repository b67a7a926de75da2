"""Files that are whole or not there, and JSON as people read it."""

import json
import os

import pytest

from stn_train.runs.files import (
    TEMPORARY,
    pretty_json,
    remove_temporaries,
    replacing,
    write_atomically,
    write_json,
)


def test_what_was_written_is_there_and_nothing_else(tmp_path):
    write_atomically(tmp_path / "file", lambda stream: stream.write(b"one"))
    write_atomically(tmp_path / "file", lambda stream: stream.write(b"two"))
    assert (tmp_path / "file").read_bytes() == b"two"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_block_that_raises_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def interrupted() -> None:
        with replacing(path) as temporary:
            assert temporary.parent == tmp_path
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert [*tmp_path.iterdir()] == [path]


def test_file_and_directory_are_flushed_around_the_rename(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, type(tmp_path).replace
    monkeypatch.setattr(os, "fsync", lambda at: (done.append("fsync"), fsync(at)))
    monkeypatch.setattr(
        type(tmp_path), "replace", lambda at, to: (done.append("rename"), replace(at, to))
    )
    write_atomically(tmp_path / "file", lambda stream: stream.write(b"content"))
    assert done == ["fsync", "rename", "fsync"]


def test_temporary_files_of_killed_processes_are_removed(tmp_path):
    for name in (f"{TEMPORARY}last.pt.123", "last.pt"):
        (tmp_path / name).write_text("")
    remove_temporaries(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_lists_of_numbers_stand_on_one_line(tmp_path):
    content = {"numbers": [1, -2.5, 3e-05], "rows": [[1, 2], [3, 4]], "words": ["a\n[1,\n2]"]}
    write_json(tmp_path / "file.json", content)
    text = (tmp_path / "file.json").read_text()
    assert json.loads(text) == content
    assert text == pretty_json(content) + "\n"
    lines = [line.strip() for line in text.splitlines()]
    assert '"numbers": [1, -2.5, 3e-05],' in lines
    assert "[1, 2]," in lines
