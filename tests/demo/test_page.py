"""The live page: what a real browser computes is what PyTorch computes, and nothing is sent."""

import math
import re

import pytest
import torch
from chromium import Chromium, find_browser
from conftest import untrained

from stn_train.data.distortion import distort
from stn_train.data.distortions import DISTORTIONS
from stn_train.data.images import ImageFormat, Images
from stn_train.demo.page import demo_page, save_page
from stn_train.errors import ConfigError
from stn_train.runs.directory import load_run
from stn_train.visualiser.poses import fit_affine, poses_undone_by

PHONE = (390, 844)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    program = find_browser()
    if program is None:
        pytest.skip("no browser that can be driven is on the PATH")
    browser = Chromium(program, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def test_digits(all_mnist):
    return all_mnist[1]


@pytest.fixture(scope="module")
def shipped(test_digits, tmp_path_factory):
    """The page of the model that ships, and its run."""
    run = load_run("rts_affine")
    return save_page(run, test_digits, tmp_path_factory.mktemp("page") / "demo.html"), run


@pytest.fixture
def page(chromium, shipped):
    """The page of the model that ships, open in a wide window."""
    chromium.window(1280, 900)
    chromium.open(shipped[0])
    return chromium


def shown(browser, part):
    """Values that the page holds, as a tensor."""
    return torch.tensor(browser.evaluate(f"Array.from(demo.{part})"))


def input_of(browser, run):
    """What the page gives the network."""
    return shown(browser, "input").view(1, *run.config.task.shape(run.format))


def angle_of(browser):
    """The angle that the transformer takes the image to be turned by, in degrees."""
    return browser.evaluate("demo.poses[0].turn")


def bar(x=0.5):
    """A stroke downwards."""
    return [(x, 0.15 + 0.07 * step) for step in range(11)]


# What it computes.


def test_outputs_are_those_of_pytorch(page, shipped):
    _, run = shipped
    page.slide(turn=30, size=0.9, right=4, down=-3)
    images = input_of(page, run)
    with torch.inference_mode():
        trace = run.model.trace(images)
    warp = trace.warps["transformer"]
    for part, wanted in {
        "logits": trace.outputs,
        "grid_0": warp.grid,
        "theta_0": warp.theta,
        "seen_0": run.model.shown(warp.output),
    }.items():
        given = shown(page, f"outputs.{part}")
        torch.testing.assert_close(given, wanted.flatten(), rtol=1e-4, atol=1e-4)


def test_sliders_distort_as_the_training_does(page, shipped, test_digits):
    _, run = shipped
    digit = test_digits.pixels[test_digits.labels == 4][:1]
    page.evaluate("document.querySelectorAll('#picks button')[4].click()")
    page.slide(turn=-40, size=1.1, right=3, down=2)
    pose = torch.tensor([[-40, 1.1, 3, 2]])
    wanted = distort(digit, DISTORTIONS["RTS"](), pose)
    torch.testing.assert_close(input_of(page, run), wanted, rtol=0, atol=2e-5)


def test_tilt_and_bend_are_maps_of_the_plane(page, shipped):
    _, run = shipped
    page.slide(tilt=0.3, bend=0.1, size=1)
    image = shown(page, "image").view(1, 1, 28, 28)
    side = (2 * torch.arange(42) + 1 - 42) / 28  # in image coordinates
    y, x = torch.meshgrid(side, side, indexing="ij")
    depth = 1 + 0.3 * x
    x, y = x / depth, y / depth
    x, y = x + 0.1 * (math.pi * y).sin(), y + 0.1 * (math.pi * x).sin()
    grid = torch.stack([x, y], dim=-1)[None]
    wanted = torch.nn.functional.grid_sample(image, grid, align_corners=False)
    torch.testing.assert_close(input_of(page, run), wanted, rtol=0, atol=2e-5)


def test_pose_is_that_of_the_visualiser(page):
    page.slide(turn=-25, size=0.8, right=5)
    grid = shown(page, "outputs.grid_0").view(1, -1, 2)
    side = math.isqrt(grid.shape[1])
    line = (2 * torch.arange(side) + 1 - side) / side
    points = torch.cartesian_prod(line, line).flip(-1)
    fitted = fit_affine(points, grid * 42 / 28)
    wanted = poses_undone_by(torch.linalg.inv(fitted), 28)
    pose = page.evaluate("demo.poses[0]")
    given = [pose[name] for name in ("turn", "size", "right", "down")]
    assert given == pytest.approx([float(value) for value in wanted], abs=1e-3)


UNTRAINED = {
    "Proj": {"distortion": "P", "transform": "Proj"},
    "TPS": {"distortion": "E", "transform": "TPS", "model": {"st_iterations": 2}},
    "baseline": {"distortion": "RTS", "backbone": "CNN", "transform": "none"},
    "two": {
        "transformers": {"front": {"count": 2}},
        "transform": "Rigid",
        "model": {"st_iterations": 1},
    },
}


@pytest.mark.parametrize("choices", UNTRAINED.values(), ids=UNTRAINED)
def test_every_kind_of_network_is_shown(choices, chromium, test_digits, tmp_path):
    run = untrained(tmp_path, **choices)
    chromium.open(save_page(run, test_digits, tmp_path / "demo.html"))
    chromium.slide(turn=20)
    with torch.inference_mode():
        trace = run.model.trace(input_of(chromium, run))
    given = shown(chromium, "outputs.logits")
    torch.testing.assert_close(given, trace.outputs[0], rtol=1e-4, atol=1e-4)
    for number, name in enumerate(run.model.front):
        given = shown(chromium, f"outputs.grid_{number}")
        torch.testing.assert_close(given, trace.warps[name].grid.flatten(), rtol=1e-4, atol=1e-4)
    panels = chromium.evaluate("document.querySelectorAll('.seen, .theta').length")
    assert panels == (2 if run.model.front else 0)
    assert chromium.evaluate("document.querySelectorAll('#looks canvas').length") == len(
        run.model.front
    )
    assert chromium.complaints() == []


def test_images_in_colour_and_many_classes(chromium, tmp_path):
    classes = tuple(f"class {number}" for number in range(14))
    pixels = torch.randint(256, (28, 3, 20, 20), dtype=torch.uint8)
    images = Images(pixels, torch.arange(28) % 14, classes)
    pictures = {"source": {"folder": {"path": "pictures", "size": 20, "colour": True}}}
    run = untrained(tmp_path, ImageFormat((3, 20, 20), classes), data=pictures, transform="none")
    chromium.open(save_page(run, images, tmp_path / "demo.html"))
    with torch.inference_mode():
        wanted = run.model(input_of(chromium, run))
    torch.testing.assert_close(shown(chromium, "outputs.logits"), wanted[0], rtol=1e-4, atol=1e-4)
    assert chromium.evaluate("document.querySelectorAll('#bars li').length") == 10
    assert chromium.evaluate("document.getElementById('pad-title').parentElement.innerText").count(
        "an image"
    )
    assert chromium.complaints() == []


# What a person does.


def test_a_bar_is_a_one(page):
    page.draw(*bar())
    assert page.evaluate("document.getElementById('said').textContent").startswith("1 ")
    assert page.evaluate("document.querySelector('.best').firstElementChild.textContent") == "1"
    page.evaluate("document.getElementById('clear').click()")
    page.settle()
    assert float(shown(page, "image").max()) == 0


def test_a_drawing_is_as_large_as_a_digit_and_centred(page):
    page.draw(*[(0.1 + 0.02 * step, 0.2 + 0.01 * step) for step in range(10)])
    image = shown(page, "image").view(28, 28)
    columns = (image.amax(0) > 0.5).nonzero().flatten()
    assert 18 <= columns.max() - columns.min() + 1 <= 21
    places = torch.arange(28) + 0.5
    for axis in (0, 1):
        assert float((image.sum(axis) * places).sum() / image.sum()) == pytest.approx(14, abs=0.3)


def test_a_finger_draws_on_a_phone(chromium, shipped):
    chromium.window(*PHONE, phone=True)
    chromium.open(shipped[0])
    chromium.touch(*bar())
    assert chromium.evaluate("document.getElementById('said').textContent").startswith("1 ")


def test_the_transformer_follows_a_slider(page):
    page.evaluate("document.querySelectorAll('#picks button')[7].click()")
    page.settle()
    before = angle_of(page)
    page.slide(turn=60)
    assert angle_of(page) - before == pytest.approx(60, abs=20)
    row = page.evaluate("document.querySelector('#poses tr').innerText")
    assert re.match(r"turned\s+\+60°\s+\+\d\d°", row)
    page.evaluate("document.getElementById('rest').click()")
    page.settle()
    assert angle_of(page) == pytest.approx(before, abs=1e-3)


def test_the_keyboard_picks_and_slides(page):
    page.evaluate("document.querySelectorAll('#picks button')[3].focus()")
    for kind in ("keyDown", "keyUp"):
        key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
        page.call("Input.dispatchKeyEvent", type=kind, **key)
    page.settle()
    assert page.evaluate("demo.picked") == 3
    page.evaluate("document.getElementById('slider-turn').focus()")
    for _ in range(5):
        key = {"key": "ArrowRight", "code": "ArrowRight", "windowsVirtualKeyCode": 39}
        page.call("Input.dispatchKeyEvent", type="keyDown", **key)
        page.call("Input.dispatchKeyEvent", type="keyUp", **key)
    page.settle()
    assert page.evaluate("demo.values.turn") == 5


def test_it_swings_until_it_is_stopped(page):
    page.evaluate("document.getElementById('swing').click()")
    page.wait("demo.values.turn > 10")
    page.evaluate("document.getElementById('swing').click()")
    page.settle()
    turn = page.evaluate("demo.values.turn")
    page.evaluate("new Promise(done => setTimeout(done, 100))")
    assert page.evaluate("demo.values.turn") == turn
    page.evaluate("document.getElementById('random').click()")
    page.settle()
    assert page.evaluate("demo.values.tilt") == 0  # never in this training


# What it is.


def test_nothing_is_asked_for_and_nothing_complained_of(page, shipped):
    page.slide(turn=10)
    asked = page.requests()
    assert asked[0] == shipped[0].as_uri()
    assert {url.partition(":")[0] for url in asked[1:]} <= {"blob", "data"}
    assert page.complaints() == []


@pytest.mark.parametrize("width", [320, 390, 800, 1280])
def test_nothing_is_wider_than_the_window(width, chromium, shipped):
    chromium.window(width, 800, phone=width < 700)
    chromium.open(shipped[0])
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width


def test_it_is_dark_where_the_reader_wants_it(page):
    colour = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(colour) == "rgb(255, 255, 255)"
    page.window(1280, 900, dark=True)
    assert page.evaluate(colour) == "rgb(13, 17, 23)"


def test_everything_has_a_name_for_those_who_do_not_see_it(page):
    unnamed = page.evaluate(
        "[...document.querySelectorAll('canvas, button, input, section, [role=group]')]"
        ".filter(each => !each.closest('button:not(:scope)') || each.matches('button'))"
        ".filter(each => !(each.getAttribute('aria-label') || each.getAttribute('aria-labelledby')"
        " || each.labels?.length || each.innerText)).map(each => each.outerHTML)"
    )
    assert unnamed == []
    assert page.evaluate("document.getElementById('said').getAttribute('aria-live')") == "polite"


def test_page_forbids_what_it_does_not_need(shipped):
    text = shipped[0].read_text()
    assert "default-src 'none'" in text
    assert not re.search(r"""(src|href)=["'](?!data:)""", text)
    assert "Copyright (c) Microsoft Corporation" in text


def test_it_tells_the_model_and_its_error(shipped):
    text = " ".join(shipped[0].read_text().split())
    assert "ST-CNN Aff on RTS, seed" in text
    assert re.search(r"\d\.\d\d % test error on 10,000 digits", text)


def test_other_tasks_than_classification_are_refused(test_digits, tmp_path):
    run = untrained(tmp_path, task="addition", distortion="RTS")
    with pytest.raises(ConfigError, match="the task of this run is addition"):
        demo_page(run, test_digits)


# The commands.


def test_export_writes_the_page(command, nowhere, shipped):
    result = command("stn-export", "rts_affine", "--format", "html")
    assert result.exit_code == 0
    assert result.stdout.startswith("exported    rts_affine-demo.html, ")
    assert (nowhere / "rts_affine-demo.html").read_text() == shipped[0].read_text()
    refused = command("stn-export", "rts_affine", "--format", "html", "--out", "page.htm")
    assert refused.exit_code == 2
    assert "the name must end in .html" in refused.stderr


def test_demo_opens_the_page_of_a_model_that_ships(command, nowhere, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    result = command("stn-demo")
    page = nowhere / "cache" / "stn_train" / "pages" / "rts_affine.html"
    assert result.stdout.startswith(f"page        {page}, ")
    assert opened == [page.as_uri()]
    shown = command("stn-demo", "rts_affine", "--out", nowhere / "demo.html", "--no-open")
    assert shown.exit_code == 0
    assert len(opened) == 1
    assert (nowhere / "demo.html").read_text() == page.read_text()


def test_demo_without_a_browser_says_so(command, nowhere, monkeypatch):
    monkeypatch.setattr("webbrowser.open", lambda url: False)
    assert "no browser was found" in command("stn-demo").stdout
    assert command("stn-demo", "nothing").exit_code == 4
