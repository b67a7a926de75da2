"""The runtime that ships: believed only when checked, and with its licence."""

import gzip
import hashlib

import pytest

from stn_train.demo import runtime
from stn_train.demo.runtime import PROGRAM, SCRIPT, notice, read_packed
from stn_train.errors import DataError


@pytest.mark.parametrize("file", [SCRIPT, PROGRAM], ids=lambda file: file.name)
def test_file_is_the_one_whose_digest_is_written_down(file):
    content = gzip.decompress(read_packed(file))
    assert hashlib.sha256(content).hexdigest() == file.sha256
    start = b"\0asm" if file is PROGRAM else b"/*!\n * ONNX Runtime Web v1."
    assert content.startswith(start)


@pytest.fixture
def damaged(tmp_path, monkeypatch):
    """The folder of the runtime with the script alone, and the path of that."""
    monkeypatch.setattr(runtime, "FOLDER", tmp_path)
    path = tmp_path / f"{SCRIPT.name}.gz"
    path.write_bytes(gzip.compress(b"export default 1;"))
    return path


def test_other_content_is_refused(damaged):
    with pytest.raises(DataError, match=r"is damaged: SHA-256 .* install stn_train again"):
        read_packed(SCRIPT)


@pytest.mark.parametrize("content", [b"", b"no archive", gzip.compress(b"a", mtime=0)[:-3]])
def test_what_is_no_archive_is_refused(damaged, content):
    damaged.write_bytes(content)
    with pytest.raises(DataError, match="install stn_train again"):
        read_packed(SCRIPT)


def test_missing_file_is_told(damaged):
    with pytest.raises(DataError, match=r"wasm\.gz cannot be read"):
        read_packed(PROGRAM)


def test_licence_is_there():
    assert "MIT License\n\nCopyright (c) Microsoft Corporation" in notice()
    assert (runtime.FOLDER / "ThirdPartyNotices.txt.xz").exists()
