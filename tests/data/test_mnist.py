"""MNIST in the package: it is whole, and damage to its files is noticed and named."""

import lzma
import shutil
import tracemalloc
from pathlib import Path

import pytest
import torch

from stn_train.data import mnist
from stn_train.data.mnist import TEST_LABELS, TRAINING_LABELS, load_mnist, read_idx
from stn_train.errors import DataError

SHIPPED = mnist.FOLDER
FILES = [getattr(mnist, name) for name in vars(mnist) if name.endswith(("_IMAGES", "_LABELS"))]


def test_there_are_60000_and_10000_grey_digits(all_mnist):
    training, test = all_mnist
    assert training.pixels.shape == (60_000, 1, 28, 28)
    assert test.pixels.shape == (10_000, 1, 28, 28)
    assert (training.pixels.dtype, training.labels.dtype) == (torch.uint8, torch.int64)
    assert training.classes == test.classes == tuple("0123456789")


def test_each_class_is_there_as_often_as_published(all_mnist):
    # http://yann.lecun.com/exdb/mnist/ and every textbook since
    counts = [torch.bincount(part.labels).tolist() for part in all_mnist]
    assert counts[0] == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert counts[1] == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_it_begins_with_the_famous_digits(all_mnist):
    training, test = all_mnist
    assert training.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    mean = training.pixels.double().mean() / 255
    assert float(mean) == pytest.approx(0.1307, abs=5e-5)  # the constant of many tutorials


def test_hashes_have_not_changed(all_mnist):
    training, test = all_mnist
    assert training.sha256() == TRAINING_SHA256
    assert test.sha256() == TEST_SHA256


TRAINING_SHA256 = "edc0d1098aa497be14ace79ddd5171e5a3dcf9c4d196c015389203eb3ba1f59b"
TEST_SHA256 = "c3f9adf9c66efb572b1f9326c3a511b45910c7173b97be66ceceeeeaef6b802b"


def test_files_have_their_published_lengths():
    assert {file.total_bytes for file in FILES} == {47_040_016, 60_008, 7_840_016, 10_008}


def test_licence_is_told_beside_the_files():
    assert "Attribution-Share Alike 3.0" in (mnist.FOLDER / "NOTICE.txt").read_text()


# Damage.


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder that the program reads MNIST from, instead of its own."""
    monkeypatch.setattr(mnist, "FOLDER", tmp_path)
    # This file's `read_idx` was imported before tests/conftest.py had its results kept.
    monkeypatch.setattr(mnist, "read_idx", read_idx)
    return tmp_path


@pytest.fixture
def copied(folder):
    """Copy one of MNIST's files to that folder; returns where it lies."""
    return lambda file: Path(shutil.copy(SHIPPED / f"{file.name}.xz", folder))


def flipped(content: bytes, position: int) -> bytes:
    """Content with one bit flipped."""
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


def repacked(change):
    """A damage of the content, under an intact compression."""
    return lambda packed: lzma.compress(change(lzma.decompress(packed)), preset=0)


DAMAGES = {
    "flipped bit": lambda packed: flipped(packed, len(packed) // 2),
    "flipped bit in the header": lambda packed: flipped(packed, 3),
    "truncated": lambda packed: packed[: len(packed) // 2],
    "truncated header": lambda packed: packed[:10],
    "empty": lambda packed: b"",
    "not compressed": lambda packed: b"<html>not found</html>",
    "flipped bit within": repacked(lambda content: flipped(content, 5000)),
    "one byte short": repacked(lambda content: content[:-1]),
    "one byte long": repacked(lambda content: content + b"\0"),
    "nothing within": repacked(lambda content: b""),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("file", [TRAINING_LABELS, TEST_LABELS], ids=lambda file: file.name)
def test_damage_is_told_with_the_name_of_the_file(copied, file, damage):
    path = copied(file)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=rf"{path} .*install stn_train again") as caught:
        read_idx(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_flipped_bit_in_any_file_is_noticed(copied, file):
    path = copied(file)
    read_idx(file)  # as it is
    path.write_bytes(flipped(path.read_bytes(), path.stat().st_size // 2))
    with pytest.raises(DataError, match=str(path)):
        read_idx(file)


@pytest.mark.parametrize("missing", FILES, ids=lambda file: file.name)
def test_a_missing_file_is_named(folder, copied, missing):
    for file in FILES:
        copied(file)
    path = folder / f"{missing.name}.xz"
    path.unlink()
    with pytest.raises(DataError, match=f"{path} cannot be read"):
        load_mnist()


def test_exchanged_files_are_noticed(folder, copied):
    path = copied(TRAINING_LABELS).rename(folder / f"{TEST_LABELS.name}.xz")
    with pytest.raises(DataError, match=f"{path} is damaged"):
        read_idx(TEST_LABELS)


def test_a_bomb_is_not_unpacked(folder):
    (folder / f"{TEST_LABELS.name}.xz").write_bytes(lzma.compress(bytes(50_000_000), preset=0))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="is damaged"):
            read_idx(TEST_LABELS)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 5_000_000
