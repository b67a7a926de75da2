"""Pictures of one's own in `stn-eval --images` and `stn-visualize --image`."""

import json

import pytest
from PIL import Image

from stn_train.evaluator import wilson_interval


@pytest.fixture
def digits(tmp_path, splits):
    """Test digits as files, black on white and twice as large, in a folder for each class."""
    for number in range(12):
        pixels, label = splits.test.pixels[number, 0], int(splits.test.labels[number])
        path = tmp_path / "digits" / str(label) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((255 - pixels).numpy()).resize((56, 56)).save(path)
    return tmp_path / "digits"


def test_a_folder_of_classes_has_an_error(finished, command, digits):
    report = json.loads(command("stn-eval", finished.run.path, "--images", digits, "--json").stdout)
    assert report["pictures"] == len(report["predictions"]) == 12
    wrong = [each for each in report["predictions"] if each["prediction"] != each["class"]]
    assert report["wrong"] == len(wrong) == 12 - sum(row[i] for i, row in matrix(report))
    assert report["error_percent"] == pytest.approx(100 * len(wrong) / 12)
    assert report["interval_95_percent"] == pytest.approx(wilson_interval(len(wrong), 12))
    for each in report["predictions"]:
        assert each["file"].startswith(each["class"])
        assert 10 <= each["percent"] <= 100
    told = command("stn-eval", finished.run.path, "--images", digits).stdout
    assert f"{len(wrong)} of 12 pictures" in told
    assert told.count("   not ") == len(wrong)


def matrix(report):
    return enumerate(report["confusion"])


def test_a_folder_without_classes_is_predicted_in_the_same_way(finished, command, digits, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in digits.rglob("*.png"):
        (flat / path.name).write_bytes(path.read_bytes())
    arguments = ["stn-eval", finished.run.path, "--json", "--images"]
    one, other = (json.loads(command(*arguments, each).stdout) for each in (digits, flat))
    assert [other[key] for key in ("wrong", "error_percent", "confusion")] == [None] * 3

    def predictions(report):
        return {
            each["file"].rpartition("/")[2]: (each["prediction"], each["percent"])
            for each in report["predictions"]
        }

    assert predictions(one) == predictions(other)
    told = command("stn-eval", finished.run.path, "--images", flat).stdout
    assert len(told.splitlines()) == 2 + 12
    assert "error" not in told


def test_pictures_are_drawn_beside_the_run(finished, command, digits):
    files = sorted(digits.rglob("*.png"))[:3]
    result = command("stn-visualize", finished.run.path, "--image", *files)
    assert result.stdout == f"picture     {finished.run.path / 'pictures.png'}\n"
    with Image.open(finished.run.path / "pictures.png") as page:
        assert page.width > 900


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["stn-eval", "--images", "nothing"], 3, "nothing is no folder"),
        (["stn-eval", "--images", "empty"], 3, "empty holds no picture"),
        (["stn-eval", "--images", "cats"], 3, "no class of the model: cat\n"),
        (["stn-eval", "--images", "odd"], 3, "cannot be read as a picture"),
        (["stn-eval", "--images", "odd", "--draws", "2"], 2, "--draws goes with the test images"),
        (["stn-visualize", "--image", "odd/a.png"], 3, "cannot be read as a picture"),
        (["stn-visualize", "--image", "b.png"], 3, "there is no such file"),
        (["stn-visualize", "--image", "b.png", "--picture", "means"], 2, "--image goes with"),
        (["stn-visualize", "--image", "b.png", "--digits", "2"], 2, "--image goes with"),
        (["stn-visualize", *["--image", "odd/a.png"] * 61], 2, "a page has room for 60"),
    ],
    ids=str,
)
def test_what_cannot_be_shown_is_told(finished, command, nowhere, arguments, code, told):
    (nowhere / "empty").mkdir()
    (nowhere / "cats" / "cat").mkdir(parents=True)
    (nowhere / "odd").mkdir()
    (nowhere / "odd" / "a.png").write_text("no picture")
    name, *flags = arguments
    result = command(name, finished.run.path, *flags)
    assert result.exit_code == code
    assert told in result.stderr
    assert result.stdout == ""
