"""Labelled images: slices, formats and hashes."""

import hashlib

import pytest
import torch

from stn_train.data.images import Images


def images(count=6, channels=1, classes=10):
    """Noise (count, channels, 4, 5), labelled in turn."""
    shape = (count, channels, 4, 5)
    pixels = torch.randint(256, shape, generator=torch.Generator().manual_seed(0))
    names = tuple(f"class {number}" for number in range(classes))
    return Images(pixels.byte(), torch.arange(count) % classes, names)


@pytest.mark.parametrize(
    "part", [slice(1, 3), slice(None), slice(0, 0), torch.tensor([5, 0, 5])], ids=str
)
def test_a_part_has_the_pixels_labels_and_classes_of_its_images(part):
    whole = images()
    taken = whole[part]
    assert torch.equal(taken.pixels, whole.pixels[part])
    assert torch.equal(taken.labels, whole.labels[part])
    assert taken.classes == whole.classes
    assert len(taken) == len(whole.labels[part])


@pytest.mark.parametrize("channels", [1, 3])
def test_format_is_the_shape_of_an_image_and_the_classes(channels):
    whole = images(channels=channels)
    assert whole.format == ((channels, 4, 5), whole.classes)
    assert whole[:0].format == whole.format


def test_images_move_to_a_device_as_a_whole():
    moved = images().to(torch.device("meta"))
    assert (moved.pixels.device.type, moved.labels.device.type) == ("meta", "meta")
    assert moved.format == images().format


def test_hash_is_of_the_pixels_and_of_one_byte_a_label():
    whole = images()
    expected = hashlib.sha256(whole.pixels.numpy().tobytes() + bytes([0, 1, 2, 3, 4, 5]))
    assert whole.sha256() == expected.hexdigest()


def test_hash_depends_on_every_pixel_and_label_but_not_on_strides():
    whole = images(channels=3)
    other_pixels, other_labels = whole.pixels.clone(), whole.labels.clone()
    other_pixels[5, 2, 3, 4] ^= 1
    other_labels[5] += 1
    hashes = {
        whole.sha256(),
        Images(other_pixels, whole.labels, whole.classes).sha256(),
        Images(whole.pixels, other_labels, whole.classes).sha256(),
        whole[:5].sha256(),
    }
    assert len(hashes) == 4
    strided = whole.pixels.contiguous(memory_format=torch.channels_last)
    assert Images(strided, whole.labels, whole.classes).sha256() == whole.sha256()


def test_labels_of_many_classes_do_not_share_a_hash():
    one, other = images(300, classes=300), images(300, classes=300)
    other.labels[299] -= 256
    assert one.sha256() != other.sha256()
