"""The reader of MNIST's files: whole ones are read, anything else is named."""

import gzip
import hashlib
import http.client
import io
import shutil
import tracemalloc
import urllib.error
import urllib.request
import urllib.response
from http.client import HTTPException, RemoteDisconnected
from pathlib import Path

import pytest
import torch

from stn_train import mnist
from stn_train.errors import DataError
from stn_train.mnist import FILES, IdxFile, data_directories, find_raw, load_mnist, read_idx


def test_real_mnist_has_its_published_counts(real_mnist):
    training, test = real_mnist
    assert (len(training), len(test)) == (60_000, 10_000)
    assert training.images.shape == (60_000, 28, 28)
    assert (training.images.dtype, training.labels.dtype) == (torch.uint8, torch.int64)


def test_real_mnist_has_each_class_as_often_as_published(real_mnist):
    # http://yann.lecun.com/exdb/mnist/ and every textbook since
    counts = [torch.bincount(part.labels).tolist() for part in real_mnist]
    assert counts[0] == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert counts[1] == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_real_mnist_begins_with_the_famous_digits(real_mnist):
    training, test = real_mnist
    assert training.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    mean = training.images.double().mean() / 255
    assert float(mean) == pytest.approx(0.1307, abs=5e-5)  # the constant of many tutorials


def test_real_mnist_has_frozen_hashes(real_mnist):
    training, test = real_mnist
    assert training.sha256() == TRAINING_SHA256
    assert test.sha256() == TEST_SHA256


TRAINING_SHA256 = "edc0d1098aa497be14ace79ddd5171e5a3dcf9c4d196c015389203eb3ba1f59b"
TEST_SHA256 = "c3f9adf9c66efb572b1f9326c3a511b45910c7173b97be66ceceeeeaef6b802b"


def test_files_have_their_published_lengths():
    assert [file.total_bytes for file in FILES] == [47_040_016, 60_008, 7_840_016, 10_008]


# Damage: four tiny files in MNIST's format stand for the real ones.


def idx_bytes(magic: int, values: torch.Tensor) -> bytes:
    header = b"".join(number.to_bytes(4, "big") for number in (magic, *values.shape))
    return header + values.numpy().tobytes()


@pytest.fixture
def small(monkeypatch, nowhere) -> dict[str, bytes]:
    """Teach the reader four tiny files; returns their content by name."""
    contents = {}
    pattern = torch.arange(20 * 28 * 28).mul(7).remainder(251).byte().view(20, 28, 28)
    for constant, count in [("TRAIN", 20), ("TEST", 12)]:
        for kind, values in [
            ("IMAGES", pattern[:count]),
            ("LABELS", torch.arange(count).remainder(10).byte()),
        ]:
            real: IdxFile = getattr(mnist, f"{constant}_{kind}")
            content = idx_bytes(real.magic, values)
            contents[real.name] = content
            file = real._replace(
                shape=tuple(values.shape), sha256=hashlib.sha256(content).hexdigest()
            )
            monkeypatch.setattr(mnist, f"{constant}_{kind}", file)
    names = ("TRAIN_IMAGES", "TRAIN_LABELS", "TEST_IMAGES", "TEST_LABELS")
    monkeypatch.setattr(mnist, "FILES", tuple(getattr(mnist, name) for name in names))
    return contents


def write(folder: Path, contents: dict[str, bytes], zipped: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        path = folder / (f"{name}.gz" if zipped else name)
        path.write_bytes(gzip.compress(content) if zipped else content)
    return folder


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("below", ["MNIST/raw", ""])
def test_root_and_raw_folder_plain_and_gzipped_are_read(small, tmp_path, below, zipped):
    write(tmp_path / "here" / below, small, zipped)
    training, test = load_mnist(tmp_path / "here")
    assert (len(training), len(test)) == (20, 12)
    assert training.labels.tolist() == [*range(10), *range(10)]
    assert training.images[0, 0, :3].tolist() == [0, 7, 14]
    assert training.images[0, 1, 0] == 28 * 7 % 251


DAMAGES = {
    "truncated": (lambda content: content[:-1], "27 bytes long instead of 28"),
    "empty": (lambda content: b"", "0 bytes long instead of 28"),
    "longer": (lambda content: content + b"\0", "longer than 28 bytes"),
    "magic": (lambda content: b"\0\0\x08\x03" + content[4:], r"header reads \[2051, 20\]"),
    "count": (lambda content: content[:7] + b"\x15" + content[8:], r"header reads \[2049, 21\]"),
    "label": (lambda content: content[:-1] + b"\x0a", "a label above 9"),
    "one bit": (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "SHA-256"),
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_labels_are_refused_by_name(small, tmp_path, damage, zipped):
    change, told = DAMAGES[damage]
    name = "train-labels-idx1-ubyte"
    write(tmp_path, small | {name: change(small[name])}, zipped)
    with pytest.raises(DataError, match=rf"{name}.* is damaged: .*{told}.*delete it"):
        load_mnist(tmp_path)


def test_one_wrong_pixel_is_noticed(small, tmp_path):
    name = "t10k-images-idx3-ubyte"
    content = bytearray(small[name])
    content[5000] ^= 1
    write(tmp_path, small | {name: bytes(content)})
    with pytest.raises(DataError, match=f"{name} is damaged: SHA-256"):
        load_mnist(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda zipped: zipped[:-9],
        lambda zipped: zipped[:10],
        lambda zipped: b"<html>not found</html>",
        lambda zipped: zipped[:30] + bytes([zipped[30] ^ 255]) + zipped[31:],
        lambda zipped: zipped[:-5] + bytes([zipped[-5] ^ 1]) + zipped[-4:],
    ],
    ids=["truncated", "header alone", "not gzip", "flipped byte", "wrong checksum"],
)
def test_damaged_gzip_is_refused_by_name(small, tmp_path, damage):
    write(tmp_path, small, zipped=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz (cannot be read|is damaged)"):
        load_mnist(tmp_path)


def test_a_gzip_bomb_is_not_unpacked(small, tmp_path):
    write(tmp_path, small, zipped=True)
    bomb = gzip.compress(bytes(50_000_000), 1)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(bomb)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="longer than 28 bytes"):
            load_mnist(tmp_path)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 5_000_000


def test_a_file_that_went_missing_is_named(small, tmp_path):
    with pytest.raises(DataError, match="train-labels-idx1-ubyte is missing"):
        read_idx(tmp_path, mnist.TRAIN_LABELS)


# Where it is looked for.


def test_search_goes_from_what_the_user_names_to_the_cache(small, nowhere, monkeypatch):
    folders = [nowhere / "named", nowhere / "variable", nowhere / "data"]
    folders.append(nowhere / "cache" / "stn_train")
    monkeypatch.setenv("STN_DATA_DIR", str(folders[1]))
    assert [folder.resolve() for folder in data_directories(folders[0])] == folders
    for folder in folders:
        write(folder / "MNIST" / "raw", small)
    for folder in folders:
        found = find_raw(folders[0])
        assert found is not None
        assert found.resolve() == folder / "MNIST" / "raw"
        shutil.rmtree(folder)
    assert find_raw(folders[0]) is None


def test_empty_variables_name_nothing(nowhere, monkeypatch):
    monkeypatch.setenv("STN_DATA_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    cache = Path.home() / ".cache" / "stn_train"
    assert data_directories() == [Path("data"), cache]


def test_three_of_four_files_are_not_mnist(small, tmp_path):
    small.pop("t10k-labels-idx1-ubyte")
    write(tmp_path / "part", small)
    assert find_raw(tmp_path / "part") is None


def test_missing_without_network_says_what_where_and_what_else(nowhere, monkeypatch):
    monkeypatch.setenv("STN_DATA_DIR", str(nowhere / "variable"))
    with pytest.raises(DataError) as caught:
        load_mnist(nowhere / "named")
    told = str(caught.value)
    for file in FILES:
        assert file.name in told
    for folder in ("named", "variable", "data", "cache/stn_train"):
        assert str(Path(folder, "MNIST", "raw")) in told
    assert "no network" in told
    assert "--data-dir" in told
    assert "data.source=embedded" in told
    assert "quickstart.yaml" in told


# The download, from a folder instead of the network.


@pytest.fixture
def mirror(small, monkeypatch, nowhere):
    """A stand-in for `fetch`; remembers the addresses asked for."""
    served = write(nowhere / "mirror", small, zipped=True)
    asked: list[str] = []

    def fetch(url, path, _):
        asked.append(url)
        shutil.copy(served / url.rsplit("/", 1)[1], path)

    monkeypatch.setattr(mnist, "fetch", fetch)
    return served, asked


def test_download_leaves_the_four_files_and_nothing_else(mirror, nowhere):
    training, test = load_mnist(nowhere / "new")
    assert (len(training), len(test)) == (20, 12)
    raw = nowhere / "new" / "MNIST" / "raw"
    assert sorted(path.name for path in raw.iterdir()) == sorted(f"{f.name}.gz" for f in FILES)
    assert find_raw(nowhere / "new") == raw


def test_a_second_load_downloads_nothing(mirror, nowhere):
    _, asked = mirror
    load_mnist(nowhere / "new")
    load_mnist(nowhere / "new")
    assert len(asked) == 4


def test_download_goes_to_the_cache_where_the_user_names_no_folder(mirror, nowhere):
    load_mnist()
    assert find_raw() == nowhere / "cache" / "stn_train" / "MNIST" / "raw"


def test_download_goes_to_the_folder_of_the_variable(mirror, nowhere, monkeypatch):
    monkeypatch.setenv("STN_DATA_DIR", str(nowhere / "variable"))
    load_mnist()
    assert find_raw() == nowhere / "variable" / "MNIST" / "raw"


def test_only_https_mirrors_are_asked(mirror, nowhere):
    served, asked = mirror
    (served / "t10k-labels-idx1-ubyte.gz").write_bytes(b"damaged")
    with pytest.raises(DataError, match="could not be downloaded"):
        load_mnist(nowhere / "new")
    assert asked
    assert all(url.startswith("https://") for url in asked)


@pytest.mark.parametrize(
    "trouble",
    [
        urllib.error.URLError("cut"),
        RemoteDisconnected("cut"),
        HTTPException("cut"),  # a broken proxy
        OSError("cut"),
    ],
    ids=lambda trouble: type(trouble).__name__,
)
def test_failed_download_leaves_no_file(mirror, nowhere, monkeypatch, trouble):
    _, asked = mirror
    good = mnist.fetch

    def third_fails(url, path, most_bytes):
        if len(asked) == 2:
            path.write_bytes(b"half")
            raise trouble
        good(url, path, most_bytes)

    monkeypatch.setattr(mnist, "fetch", third_fails)
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz: .*cut"):
        load_mnist(nowhere / "new")
    assert not (nowhere / "new").exists()


def test_interrupted_download_leaves_no_file(mirror, nowhere, monkeypatch):
    def interrupted(url, path, _):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(mnist, "fetch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_mnist(nowhere / "new")
    assert not (nowhere / "new").exists()
    assert find_raw(nowhere / "new") is None


def test_damaged_download_is_told_and_not_kept(mirror, nowhere):
    served, _ = mirror
    path = served / "train-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(bytes(28)))
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte\.gz: .*header reads"):
        load_mnist(nowhere / "new")
    assert find_raw(nowhere / "new") is None
    assert not (nowhere / "new").exists()


@pytest.mark.parametrize("trouble", [OSError("cut"), KeyboardInterrupt()], ids=["cut", "interrupt"])
@pytest.mark.parametrize("there", ["new", "new/MNIST", "new/MNIST/raw"])
def test_failed_download_keeps_the_folders_that_were_there(nowhere, monkeypatch, trouble, there):
    def fails(url, path, _):
        path.write_bytes(b"half")
        raise trouble

    monkeypatch.setattr(mnist, "fetch", fails)
    (nowhere / there).mkdir(parents=True)
    with pytest.raises((DataError, KeyboardInterrupt)):
        load_mnist(nowhere / "new")
    assert (nowhere / there).is_dir()
    assert [*(nowhere / there).iterdir()] == []


def test_failed_download_keeps_what_others_put_into_its_folders(nowhere, monkeypatch):
    def fails(url, path, _):
        (nowhere / "new" / "mine").write_text("mine")
        raise OSError("cut")

    monkeypatch.setattr(mnist, "fetch", fails)
    with pytest.raises(DataError, match="cut"):
        load_mnist(nowhere / "new")
    assert [path.name for path in (nowhere / "new").iterdir()] == ["mine"]
    assert (nowhere / "new" / "mine").read_text() == "mine"


def test_failed_download_to_the_cache_leaves_no_cache(nowhere):
    with pytest.raises(DataError, match="no network"):
        load_mnist()
    assert [*nowhere.iterdir()] == []


def test_folder_that_cannot_be_made_is_told(mirror, nowhere):
    (nowhere / "new").write_text("a file, not a folder")
    with pytest.raises(DataError, match=r"could not be downloaded[\s\S]*new"):
        load_mnist(nowhere / "new")


# fetch itself, with a stand-in for the network below it.


class Answers(urllib.request.HTTPSHandler):
    """Answers every https request: the first with a redirect, if there is one, then a content."""

    def __init__(self, content: bytes, leads_to: str = "") -> None:
        super().__init__()
        self.content, self.leads_to, self.asked = content, leads_to, []

    def https_open(self, req):
        first = not self.asked
        self.asked.append(req.full_url)
        headers = http.client.HTTPMessage()
        if self.leads_to and first:
            headers["Location"] = self.leads_to
        content, code = io.BytesIO(self.content), 302 if self.leads_to and first else 200
        answer = urllib.response.addinfourl(content, headers, req.full_url, code)
        answer.msg = "told"
        return answer


@pytest.fixture
def answered(monkeypatch):
    """Have every request answered; returns who answers."""

    def answered(*answer) -> Answers:
        answers = Answers(*answer)
        build = urllib.request.build_opener
        monkeypatch.setattr(mnist, "build_opener", lambda *more: build(answers, *more))
        return answers

    return answered


def test_fetch_writes_what_is_served(answered, tmp_path):
    content = bytes(range(256)) * 1000
    answers = answered(content)
    mnist.fetch("https://here/file", tmp_path / "file", len(content))
    assert (tmp_path / "file").read_bytes() == content
    assert answers.asked == ["https://here/file"]


def test_fetch_follows_to_another_https_address(answered, tmp_path):
    answers = answered(b"content", "https://there/file")
    mnist.fetch("https://here/file", tmp_path / "file", 100)
    assert answers.asked == ["https://here/file", "https://there/file"]
    assert (tmp_path / "file").read_bytes() == b"content"


def test_fetch_does_not_follow_to_plain_http(answered, tmp_path):
    answered(b"content", "http://there/file")
    with pytest.raises(urllib.error.URLError, match="http://there/file, which is not https"):
        mnist.fetch("https://here/file", tmp_path / "file", 100)


def test_fetch_stops_where_a_file_is_longer_than_it_can_be(answered, tmp_path):
    answered(bytes(1_000_000))
    with pytest.raises(DataError, match="longer than 200,000 bytes"):
        mnist.fetch("https://here/file", tmp_path / "file", 200_000)
    assert (tmp_path / "file").stat().st_size <= 200_000
