"""CUB-200-2011's format: what is read of a folder, and what is said of a broken one."""

import hashlib
from pathlib import Path

import pytest
import torch
from PIL import Image

from stn_train.config import Config
from stn_train.data import cub, pictures
from stn_train.data.sources import DataSettings, load_splits
from stn_train.errors import ConfigError, DataError

NAMES = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross")
EACH = 4
"""Pictures of a class; every other one is for training."""


def colour_of(label: int, number: int) -> tuple[int, int, int]:
    return 60 * label + 20, 50 * number + 10, 200


@pytest.fixture
def root(tmp_path) -> Path:
    """A tiny folder of the format: pictures of one colour each, wider than high."""
    root, lines = tmp_path / "CUB_200_2011", {"images": [], "image_class_labels": []}
    split = []
    for label, name in enumerate(NAMES):
        (root / "images" / name).mkdir(parents=True)
        for number in range(EACH):
            path, image = f"{name}/bird_{number}.png", label * EACH + number + 1
            Image.new("RGB", (30, 20), colour_of(label, number)).save(root / "images" / path)
            lines["images"].append(f"{image} {path}")
            lines["image_class_labels"].append(f"{image} {label + 1}")
            split.append(f"{image} {number % 2}")
    lines |= {"train_test_split": split}
    lines |= {"classes": [f"{n} {name}" for n, name in enumerate(NAMES, start=1)]}
    for name, content in lines.items():
        (root / f"{name}.txt").write_text("\n".join(content) + "\n")
    return root


def settings(root: Path, **changes) -> DataSettings:
    source = {"cub_format": {"path": str(root), "size": 16, **changes}}
    return DataSettings.model_validate({"source": source})


def splits_of(root: Path, **changes):
    return load_splits(settings(root, **changes), root.parent)


def test_pictures_classes_and_split_are_those_of_the_folder(root):
    splits = splits_of(root)
    assert splits.training.classes == (
        "Black footed Albatross",
        "Laysan Albatross",
        "Sooty Albatross",
    )
    assert splits.training.format.shape == (3, 16, 16)
    for images, numbers in ((splits.training, {1, 3}), (splits.test, {0, 2})):
        assert len(images) == 6
        found = {(int(label), tuple(pixels[:, 5, 5].tolist())) for pixels, label in pairs(images)}
        assert found == {(c, colour_of(c, n)) for c in range(3) for n in numbers}
    assert splits.origin == f"pictures in {root}"


def pairs(images):
    return zip(images.pixels, images.labels, strict=True)


def test_any_part_of_the_pictures_is_of_all_classes(root):
    """The folder lists class by class; validation takes the last training pictures."""
    splits = splits_of(root)
    assert splits.training.labels.tolist() == splits.test.labels.tolist() == [0, 1, 2] * 2


def test_numbers_need_not_be_in_order(root):
    before = splits_of(root)
    for name in ("images", "image_class_labels", "train_test_split"):
        path = root / f"{name}.txt"
        path.write_text("\n".join(reversed(path.read_text().splitlines())))
    after = splits_of(root)
    assert after.training.pixels.equal(before.training.pixels)
    assert after.training.labels.equal(before.training.labels)


def test_pictures_stay_on_the_disk_and_are_resized_once(root, monkeypatch):
    first = splits_of(root)
    files = sorted((root.parent / "squares").iterdir())
    assert [path.stat().st_size for path in files] == [6 * 3 * 16 * 16] * 2

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a picture was read again")

    with monkeypatch.context() as patch:
        patch.setattr(pictures, "read_square", refuse)
        again = splits_of(root)
        assert again.training.pixels.equal(first.training.pixels)
    assert splits_of(root, size=20).training.format.shape == (3, 20, 20)
    assert len([*(root.parent / "squares").iterdir()]) == 4
    # What a run hashes is the same bytes as of a tensor in memory.
    digest = hashlib.sha256(first.test.pixels.clone().numpy().tobytes())
    digest.update(bytes(first.test.labels.tolist()))
    assert first.test.sha256() == digest.hexdigest()


def test_a_changed_picture_is_read_anew(root):
    before = splits_of(root).training.pixels.clone()
    path = root / "images" / NAMES[0] / "bird_1.png"
    Image.new("RGB", (40, 40), (1, 2, 3)).save(path)
    after = splits_of(root).training.pixels
    assert (after != before).flatten(1).any(1).sum() == 1


def test_an_interrupted_reading_leaves_no_half_file(root, monkeypatch):
    read, count = pictures.read_square, []

    def interrupted(*arguments: object, **options: object) -> torch.Tensor:
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt
        return read(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(pictures, "read_square", interrupted)
        with pytest.raises(KeyboardInterrupt):
            splits_of(root)
    assert list((root.parent / "squares").iterdir()) == []
    assert len(splits_of(root).training) == 6


def test_missing_and_damaged_pictures_are_named(root):
    damaged = root / "images" / NAMES[1] / "bird_1.png"
    damaged.write_bytes(damaged.read_bytes()[:40])
    with pytest.raises(DataError, match=rf"{damaged} cannot be read"):
        splits_of(root)
    for number in range(EACH):
        (root / "images" / NAMES[2] / f"bird_{number}.png").unlink()
    gone = root / "images" / NAMES[2]
    with pytest.raises(DataError, match=rf"2 of 6 pictures are missing: {gone}/bird_"):
        splits_of(root)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("classes", None, r"classes.txt cannot be read"),
        ("images", b"\xff\xfe", r"images.txt cannot be read"),
        ("images", b"", r"images.txt is empty"),
        ("images", b"1 a.png\n1 b.png\n", r"images.txt:2: number 1 is there twice"),
        ("classes", b"1 a\nodd\n", r"classes.txt:2: it must be a number and a word: 'odd'"),
        ("image_class_labels", b"1 1\n2 7\n", r"image_class_labels.txt:2: there is no '7'"),
        ("image_class_labels", b"1 1\n2 1\n", r"image_class_labels.txt and images.txt do not"),
        ("train_test_split", b"1 1\n2 2\n", r"train_test_split.txt:2: there is no '2'"),
        (
            "train_test_split",
            "\n".join(f"{n} 1" for n in range(1, 13)).encode(),
            r"train_test_split.txt lists no test pictures",
        ),
    ],
)
def test_a_broken_table_is_told_by_file_and_line(root, name, content, told):
    path = root / f"{name}.txt"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DataError, match=told):
        splits_of(root)


def test_the_real_set_is_looked_for_in_the_folder_of_data_sets(root):
    source = DataSettings.model_validate({"source": "cub"})
    with pytest.raises(DataError, match=rf"{root} is not CUB-200-2011: it lists 3 classes, 6 trai"):
        load_splits(source, root.parent)
    with pytest.raises(DataError, match=r"CUB_200_2011.tgz.*\n.*--data-dir"):
        load_splits(source, root.parent / "elsewhere")


def test_the_real_set_may_lie_elsewhere(root, monkeypatch):
    monkeypatch.setattr(cub, "CLASSES", 3)
    monkeypatch.setattr(cub, "TRAINING", 6)
    monkeypatch.setattr(cub, "TEST", 6)
    source = {"cub": {"path": str(root), "size": 16}}
    splits = load_splits(DataSettings.model_validate({"source": source}), root.parent / "other")
    assert len(splits.training) == len(splits.test) == 6
    assert [path.name for path in (root.parent / "other").iterdir()] == ["squares"]


def test_other_pictures_need_a_folder():
    with pytest.raises(ValueError, match=r"path\s+Field required"):
        DataSettings.model_validate({"source": "cub_format"})
    with pytest.raises((ValueError, ConfigError), match="size"):
        Config.model_validate({"data": {"source": {"cub": {"size": 4}}}})
