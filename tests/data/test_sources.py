"""Sources of images on tiny data sets in their own file formats, and how they are split."""

import gzip
import hashlib
import io
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision import datasets

from stn_train.config import Config
from stn_train.data.folder import Folder
from stn_train.data.images import Images
from stn_train.data.source import DATA_DIR_VARIABLE, data_directory
from stn_train.data.sources import SOURCES, DataSettings, Splits, load_splits
from stn_train.data.torchvision_sets import TorchvisionSource
from stn_train.errors import ConfigError, DataError

DOWNLOADED = {name: kind for name, kind in SOURCES.items() if issubclass(kind, TorchvisionSource)}
EVERY_DOWNLOADED = pytest.mark.parametrize("name", DOWNLOADED)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def unreachable(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)


def settings(**changes) -> DataSettings:
    return DataSettings.model_validate({"validation": 100, **changes})


def lengths(splits: Splits) -> list[int]:
    return [len(part) for part in (splits.training, splits.validation, splits.test)]


def same(one: Images, other: Images) -> bool:
    return torch.equal(one.pixels, other.pixels) and torch.equal(one.labels, other.labels)


# Splits.


def test_validation_is_the_end_of_the_training_images(all_mnist):
    training, test = all_mnist
    split = load_splits(settings(validation=1000))
    assert same(split.training, training[:-1000])
    assert same(split.validation, training[-1000:])
    assert same(split.test, test)


def test_all_images_are_for_training_by_default():
    assert lengths(load_splits(DataSettings())) == [60_000, 0, 10_000]


@pytest.mark.parametrize(("key", "there"), [("training_digits", 60_000), ("test_digits", 10_000)])
def test_more_images_than_there_are_cannot_be_had(key, there):
    with pytest.raises(ConfigError, match=rf"data\.{key} is {there + 1}; there are {there}"):
        load_splits(settings(**{key: there + 1}))
    assert lengths(load_splits(settings(**{key: there}))) == [59_900, 100, 10_000]


def test_smaller_sets_are_the_first_images(all_mnist):
    training, test = all_mnist
    split = load_splits(settings(training_digits=300, test_digits=50))
    assert lengths(split) == [200, 100, 50]
    assert same(split.training, training[:200])
    assert same(split.validation, training[200:300])
    assert same(split.test, test[:50])


@pytest.mark.parametrize("validation", [300, 301, 10**9])
def test_validation_must_leave_images_to_train_on(validation):
    with pytest.raises(ConfigError, match=rf"data\.validation is {validation}, .* 300 training"):
        load_splits(settings(training_digits=300, validation=validation))


def test_one_training_image_is_enough():
    assert lengths(load_splits(settings(training_digits=101))) == [1, 100, 10_000]


def test_splits_move_to_a_device_as_a_whole(splits):
    moved = splits.to(torch.device("meta"))
    for part, there in zip(splits[:3], moved[:3], strict=True):
        assert (there.pixels.device.type, there.labels.device.type) == ("meta", "meta")
        assert there.pixels.shape == part.pixels.shape
    assert moved.origin == splits.origin
    stayed = splits.to(torch.device("cpu"))
    assert all(same(part, there) for part, there in zip(splits[:3], stayed[:3], strict=True))


# Where data sets are kept.


def test_folder_is_what_the_user_names_then_the_variable_then_the_cache(nowhere, monkeypatch):
    assert data_directory() == nowhere / "cache" / "stn_train"
    monkeypatch.setenv(DATA_DIR_VARIABLE, str(nowhere / "variable"))
    assert data_directory() == nowhere / "variable"
    assert data_directory(nowhere / "named") == nowhere / "named"


def test_empty_variables_name_nothing(nowhere, monkeypatch):
    monkeypatch.setenv(DATA_DIR_VARIABLE, "")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert data_directory() == Path.home() / ".cache" / "stn_train"


# MNIST ships.


def test_mnist_needs_neither_folder_nor_network(nowhere):
    split = load_splits(DataSettings(), nowhere / "nothing")
    assert lengths(split) == [60_000, 0, 10_000]
    assert "MNIST" in split.origin
    assert [*nowhere.iterdir()] == []


# Data sets that torchvision downloads: tiny ones, in their own files.


def idx(values: torch.Tensor) -> bytes:
    """Bytes or integers in the format of MNIST's files, big-endian."""
    kind, dtype = (8, ">u1") if values.dtype == torch.uint8 else (12, ">i4")
    header = b"".join(number.to_bytes(4, "big") for number in values.shape)
    return bytes([0, 0, kind, values.ndim]) + header + values.numpy().astype(dtype).tobytes()


def upright(count: int) -> torch.Tensor:
    """Pixels (count, 28, 28) that differ when turned or mirrored."""
    return torch.arange(count * 28 * 28).mul(7).remainder(251).byte().view(count, 28, 28)


COUNTS = {"training": 20, "test": 12}


def files_of(name: str) -> dict[str, bytes]:
    """The content of a tiny data set's files, by their names in its folder `raw`."""
    source = SOURCES[name]()
    classes, files = classes_of(name), {}
    for part, count in COUNTS.items():
        pixels, labels = upright(count), (torch.arange(count) % classes).byte()
        if source.dataset == "EMNIST":
            prefix = f"emnist-{source.split}-{part.removesuffix('ing')}"
            pixels = pixels.mT.contiguous()
        elif source.dataset == "QMNIST":
            prefix = f"qmnist-{part.removesuffix('ing')}"
            files[f"{prefix}-labels-idx2-int"] = idx(
                torch.stack([labels.int(), *torch.full((7, count), 70_000).int()], dim=1)
            )
        else:
            prefix = "train" if part == "training" else "t10k"
        files[f"{prefix}-images-idx3-ubyte"] = idx(pixels)
        if source.dataset != "QMNIST":
            files[f"{prefix}-labels-idx1-ubyte"] = idx(labels)
    return {name.replace("training", "train"): content for name, content in files.items()}


def classes_of(name: str) -> int:
    return 47 if name == "emnist" else 10


@pytest.fixture
def written(tmp_path):
    """Write a tiny data set as torchvision leaves it; returns its folder `raw`."""

    def written(name: str) -> Path:
        raw = tmp_path / SOURCES[name]().dataset / "raw"
        raw.mkdir(parents=True)
        for file, content in files_of(name).items():
            (raw / file).write_bytes(content)
        return raw

    return written


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """Write a tiny data set as it is downloaded; torchvision's checksums are taught."""

    def packed(name: str) -> Path:
        kind = getattr(datasets, SOURCES[name]().dataset)
        raw = tmp_path / kind.__name__ / "raw"
        raw.mkdir(parents=True)
        archives = {f"{file}.gz": gzip.compress(c) for file, c in files_of(name).items()}
        sums = {file: md5(content) for file, content in archives.items()}
        if kind is datasets.EMNIST:
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w") as archive:
                for file, content in archives.items():
                    archive.writestr(f"gzip/{file}", content)
            archives = {"gzip.zip": buffer.getvalue()}
            monkeypatch.setattr(kind, "md5", md5(buffer.getvalue()))
        elif isinstance(kind.resources, dict):
            taught = {
                part: [(url, sums.get(Path(url).name, known)) for url, known in resources]
                for part, resources in kind.resources.items()
            }
            monkeypatch.setattr(kind, "resources", taught)
        else:
            monkeypatch.setattr(kind, "resources", [(f, sums[f]) for f, _ in kind.resources])
        for file, content in archives.items():
            (raw / file).write_bytes(content)
        return raw

    return packed


@EVERY_DOWNLOADED
@pytest.mark.parametrize("how", ["written", "packed"])
def test_a_downloaded_set_is_read(name, how, request, tmp_path):
    request.getfixturevalue(how)(name)
    split = load_splits(DataSettings.model_validate({"source": name}), tmp_path)
    assert lengths(split) == [20, 0, 12]
    for part in (split.training, split.test):
        assert part.pixels[:, 0].equal(upright(len(part)))  # letters of EMNIST too
        assert part.labels.tolist() == [n % classes_of(name) for n in range(len(part))]
        assert (part.pixels.dtype, part.labels.dtype) == (torch.uint8, torch.int64)
        assert part.pixels.is_contiguous()
        assert part.format.shape == (1, 28, 28)
        assert len(part.classes) == len(set(part.classes)) == classes_of(name)
    assert split.origin == f"{SOURCES[name]().dataset} in {tmp_path}"


@EVERY_DOWNLOADED
def test_names_of_classes_are_plain(name, written, tmp_path):
    written(name)
    classes = load_splits(DataSettings.model_validate({"source": name}), tmp_path).test.classes
    assert not any(" - " in each for each in classes)
    if name == "qmnist":
        assert classes == tuple("0123456789")
    if name == "kmnist":
        assert classes[:3] == ("o", "ki", "su")


SPLITS_OF_EMNIST = {
    "balanced": 47,
    "letters": 26,
    "digits": 10,
    "byclass": 62,
    "bymerge": 47,
    "mnist": 10,
}


@pytest.mark.parametrize(("split", "classes"), SPLITS_OF_EMNIST.items())
def test_divisions_of_emnist_have_their_classes(split, classes, tmp_path):
    raw = tmp_path / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    first = 1 if split == "letters" else 0  # the file numbers letters from 1 on
    labels = torch.arange(classes).byte() + first
    for part in ("train", "test"):
        (raw / f"emnist-{split}-{part}-images-idx3-ubyte").write_bytes(idx(upright(classes).mT))
        (raw / f"emnist-{split}-{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    source = {"emnist": {"split": split}}
    test = load_splits(DataSettings.model_validate({"source": source}), tmp_path).test
    assert test.labels.tolist() == [*range(classes)]
    assert len(test.classes) == classes
    assert test.classes[0] == ("a" if split == "letters" else "0")
    assert test.classes == tuple(sorted(test.classes))


@EVERY_DOWNLOADED
def test_without_network_the_folder_and_the_flag_are_told(name, nowhere):
    with pytest.raises(DataError) as caught:
        load_splits(DataSettings.model_validate({"source": name}), nowhere / "named")
    told = str(caught.value)
    assert "no network" in told
    assert str(nowhere / "named" / SOURCES[name]().dataset / "raw") in told
    assert "--data-dir" in told
    assert DATA_DIR_VARIABLE in told


DAMAGES = {
    "empty": lambda content: b"",
    "truncated header": lambda content: content[:6],
    "truncated": lambda content: content[:-1],
    "longer": lambda content: content + b"\0",
    "other type": lambda content: content[:2] + b"\x0b" + content[3:],
    "unknown type": lambda content: content[:2] + b"\x0a" + content[3:],
    "no idx": lambda content: b"<html>not found</html>",
    "fewer": lambda content: content[:7] + bytes([content[7] - 1]) + content[8:],
}


@EVERY_DOWNLOADED
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("which", ["images", "labels"])
def test_damaged_files_are_told_with_their_folder(name, damage, which, written, tmp_path):
    raw = written(name)
    path = next(path for path in sorted(raw.iterdir()) if which in path.name)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=rf"could not be loaded from {tmp_path}"):
        load_splits(DataSettings.model_validate({"source": name}), tmp_path)


@EVERY_DOWNLOADED
def test_a_label_of_no_class_is_told(name, written, tmp_path):
    raw = written(name)
    path = next(path for path in sorted(raw.iterdir()) if "labels" in path.name)
    content = bytearray(path.read_bytes())
    content[-32 if name == "qmnist" else -1] = 99
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match="label"):
        load_splits(DataSettings.model_validate({"source": name}), tmp_path)


@EVERY_DOWNLOADED
def test_nothing_is_printed_on_the_way(name, packed, tmp_path, capfd):
    packed(name)
    load_splits(DataSettings.model_validate({"source": name}), tmp_path)
    assert capfd.readouterr().out == ""


@EVERY_DOWNLOADED
def test_a_config_of_it_builds_a_network_for_its_classes(name, written, tmp_path):
    written(name)
    config = Config.model_validate({"data": {"source": name}, "backbone": "FCN"})
    split = load_splits(config.data, tmp_path)
    batch = config.task.batch(split.test, slice(None), config.task.draw(split.test, seeded()))
    network = config.build_network(split.test.format)
    assert network(batch.inputs).shape == (12, classes_of(name))
    assert config.title.endswith(f", {name}")


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


# Pictures in folders.


def picture(path: Path, colour=(200, 100, 50), size=(40, 40), **options) -> None:
    """Write a picture of one colour, lighter to the right and downwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    across = Image.linear_gradient("L").rotate(90).resize(size)
    solid = Image.new("RGB", size, colour)
    Image.composite(solid, Image.new("RGB", (width, height)), across).save(path, **options)


@pytest.fixture
def parted(tmp_path):
    """A folder with `train` and `test`, of cats and dogs."""
    for part, count in (("train", 3), ("test", 2)):
        for label, kind in enumerate(["cat", "dog"]):
            for number in range(count):
                colour = (200, 100 + 50 * label, 10 * number)
                picture(tmp_path / "pets" / part / kind / f"{number}.png", colour)
    return tmp_path / "pets"


@pytest.fixture
def whole(tmp_path):
    """A folder with the folders of two classes, of ten and of five pictures."""
    for kind, count in (("cat", 10), ("dog", 5)):
        for number in range(count):
            picture(tmp_path / "all" / kind / f"{number}.jpg", (255, 20 * number, 0))
    return tmp_path / "all"


def load(path: Path, **options) -> Splits:
    source = {"folder": {"path": str(path), **options}}
    return load_splits(DataSettings.model_validate({"source": source}))


@pytest.mark.parametrize(("colour", "channels"), [(False, 1), (True, 3)])
@pytest.mark.parametrize("size", [8, 32, 50])
def test_pictures_are_read_in_grey_and_in_colour(parted, colour, channels, size):
    split = load(parted, size=size, colour=colour)
    assert lengths(split) == [6, 0, 4]
    assert split.training.format == ((channels, size, size), ("cat", "dog"))
    assert split.test.format == split.training.format
    assert split.training.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert split.test.labels.tolist() == [0, 0, 1, 1]
    assert split.training.pixels.dtype == torch.uint8
    assert split.origin == f"pictures in {parted}"


def test_channels_are_red_green_and_blue_and_grey_is_their_luminance(tmp_path):
    for part in ("train", "test"):
        path = tmp_path / part / "one" / "a.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (20, 20), (200, 100, 50)).save(path)
    coloured = load(tmp_path, size=20, colour=True).test.pixels
    assert [coloured[0, channel].unique().tolist() for channel in range(3)] == [[200], [100], [50]]
    grey = load(tmp_path, size=20).test.pixels
    assert grey.unique().tolist() == [round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)]  # ITU-R 601


def test_a_picture_of_the_right_size_keeps_its_bytes(tmp_path):
    noise = torch.randint(256, (20, 20, 3), generator=seeded()).byte()
    for part in ("train", "test"):
        path = tmp_path / part / "one" / "a.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(noise.numpy()).save(path)
    assert load(tmp_path, size=20, colour=True).test.pixels[0].equal(noise.permute(2, 0, 1))


@pytest.mark.parametrize("size", [(80, 20), (20, 80)])
def test_the_middle_of_an_oblong_picture_is_taken(tmp_path, size):
    stripes = Image.new("L", size, 0)
    width, height = size
    stripes.paste(255, (width // 2 - 10, height // 2 - 10, width // 2 + 10, height // 2 + 10))
    for part in ("train", "test"):
        (tmp_path / part / "one").mkdir(parents=True)
        stripes.save(tmp_path / part / "one" / "a.png")
    assert load(tmp_path, size=20).test.pixels.unique().tolist() == [255]


def test_pictures_are_turned_as_their_camera_says(tmp_path):
    upright = Image.new("L", (20, 20), 0)
    upright.paste(255, (0, 0, 20, 5))  # the sky
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side: rotate by 90 degrees clockwise
    for part in ("train", "test"):
        (tmp_path / part / "one").mkdir(parents=True)
        turned = upright.rotate(90)  # counter-clockwise
        turned.save(tmp_path / part / "one" / "a.jpg", exif=exif, quality=95)
    pixels = load(tmp_path, size=20).test.pixels[0, 0]
    assert pixels[:4].min() > 200
    assert pixels[8:].max() < 50


def test_a_share_of_each_class_is_kept_for_the_test(whole):
    split = load(whole)
    assert split.training.labels.bincount().tolist() == [8, 4]
    assert split.test.labels.bincount().tolist() == [2, 1]
    half = load(whole, test_share=0.5)
    assert half.test.labels.bincount().tolist() == [5, 2]
    most = load(whole, test_share=0.99)
    assert most.training.labels.bincount().tolist() == [1, 1]  # one at least to train on
    least = load(whole, test_share=0.01)
    assert least.test.labels.bincount().tolist() == [1, 1]


def test_the_choice_depends_on_the_names_of_the_files_alone(whole, monkeypatch):
    def kept(path: Path) -> list[bytes]:
        return [pixels.numpy().tobytes() for pixels in load(path, colour=True).test.pixels]

    expected = kept(whole)
    listed = datasets.folder.make_dataset

    def turned(*arguments, **options):
        return [*reversed(listed(*arguments, **options))]

    monkeypatch.setattr(datasets.DatasetFolder, "make_dataset", staticmethod(turned))
    assert sorted(kept(whole)) == sorted(expected)
    monkeypatch.undo()
    moved = whole.rename(whole.parent / "elsewhere")
    assert kept(moved) == expected
    for path in moved.glob("*/*.jpg"):
        picture(path, (7, 7, 7))
    assert len(kept(moved)) == len(expected)


def test_more_pictures_move_few_others_between_training_and_test(tmp_path):
    for number in range(20):
        picture(tmp_path / "one" / f"{number}.png", (number, 0, 0))
        picture(tmp_path / "two" / f"{number}.png", (number, 0, 0))

    def kept() -> set[bytes]:
        test = load(tmp_path, colour=True).test
        return {pixels.numpy().tobytes() for pixels in test.pixels[test.labels == 0]}

    before = kept()
    picture(tmp_path / "one" / "new.png", (99, 99, 99))
    assert len(before - kept()) <= 1


def test_a_class_with_one_picture_is_trained_on(whole):
    picture(whole / "emu" / "only.png")
    split = load(whole)
    assert split.training.classes == split.test.classes == ("cat", "dog", "emu")
    assert split.training.labels.bincount(minlength=3).tolist() == [8, 4, 1]
    assert split.test.labels.bincount(minlength=3).tolist() == [2, 1, 0]


def test_a_picture_for_each_class_leaves_none_for_the_test(tmp_path):
    picture(tmp_path / "cat" / "a.png")
    picture(tmp_path / "dog" / "a.png")
    with pytest.raises(DataError, match=rf"{tmp_path}.* too few pictures"):
        load(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [lambda content: content[: len(content) // 2], lambda content: b"", lambda content: b"GIF89a"],
    ids=["truncated", "empty", "another format"],
)
def test_a_damaged_picture_is_named(parted, damage):
    path = parted / "test" / "dog" / "1.png"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=f"{path} cannot be read"):
        load(parted)


def test_a_picture_too_large_to_unpack_is_named(parted, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"0\.png cannot be read"):
        load(parted)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_pictures_of_any_mode_are_read(tmp_path, mode):
    for part in ("train", "test"):
        (tmp_path / part / "one").mkdir(parents=True)
        white = Image.new("L", (20, 20), 255).convert("RGB").convert(mode)
        white.save(tmp_path / part / "one" / "a.tif")
    assert load(tmp_path, size=20, colour=True).test.pixels.unique().tolist() == [255]
    assert load(tmp_path, size=20).test.pixels.unique().tolist() == [255]


def test_pictures_of_16_bits_keep_their_grey(tmp_path):
    values = torch.arange(400).mul(163).view(20, 20)  # up to 65,037
    for part in ("train", "test"):
        (tmp_path / part / "one").mkdir(parents=True)
        path = tmp_path / part / "one" / "a.png"
        Image.fromarray(values.numpy().astype("uint16")).save(path)
    found = load(tmp_path, size=20).test.pixels[0, 0].int()
    assert (found - values // 257).abs().max() <= 1
    assert load(tmp_path, size=20, colour=True).test.pixels[0, 2].int().equal(found)


def test_other_classes_for_the_test_are_refused_by_name(parted):
    picture(parted / "test" / "emu" / "a.png")
    with pytest.raises(DataError, match=rf"{parted}.*same classes: emu"):
        load(parted)


def test_a_folder_without_pictures_is_told(tmp_path):
    empty = tmp_path / "empty"
    for path, told in [
        (tmp_path / "nothing", "nothing"),
        (empty, "empty"),
        (tmp_path / "file", "file"),
    ]:
        if path == empty:
            path.mkdir()
        elif path.name == "file":
            path.write_text("no folder")
        with pytest.raises(DataError, match=rf"{tmp_path / told} is no folder"):
            load(path)
    (empty / "cat").mkdir()
    (empty / "cat" / "notes.txt").write_text("no picture")
    with pytest.raises(DataError, match="cat"):
        load(empty)


def test_a_folder_is_found_from_home(parted, monkeypatch):
    monkeypatch.setenv("HOME", str(parted.parent))
    assert lengths(load(Path("~") / "pets")) == [6, 0, 4]


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("size", [20, 28, 64])
@pytest.mark.parametrize("distortion", ["R", "RTS"])
def test_a_config_of_a_folder_survives_its_own_file(parted, distortion, size, colour):
    source = {"folder": {"path": str(parted), "size": size, "colour": colour}}
    data = {"data": {"source": source}, "distortion": distortion, "backbone": "FCN"}
    config = Config.model_validate({**data, "model": {"st_output_px": None, "st_pool": None}})
    assert Config.model_validate(config.as_dict()) == config
    assert config.distortion.canvas_px == round(size * (1.5 if distortion == "RTS" else 1))
    split = load_splits(config.data)
    batch = config.task.batch(split.test, slice(None), config.task.draw(split.test, seeded()))
    assert config.build_network(split.test.format)(batch.inputs).shape == (4, 2)


def test_a_folder_must_be_named():
    with pytest.raises(ValueError, match="path"):
        DataSettings.model_validate({"source": "folder"})
    with pytest.raises(ValueError, match="path"):
        Folder.model_validate({"path": ""})
