"""Co-localisation: the canvases, the loss against loops, and a run that finds its digits."""

import json

import pytest
import torch
from pydantic import ValidationError

from stn_train.cell import Cell
from stn_train.config import Config
from stn_train.config_file import load_config
from stn_train.data.clutter import Clutter
from stn_train.data.distortions import Translation
from stn_train.data.images import ImageFormat
from stn_train.errors import ConfigError
from stn_train.geometry.grids import AttentionGrid
from stn_train.models.network import Locator, parameter_count
from stn_train.runs.directory import RunDirectory, load_run
from stn_train.runs.result import Result
from stn_train.table.paper import TABLES, published_for
from stn_train.table.plan import cells_like, jobs_for
from stn_train.table.rows import comma_separated, table_rows
from stn_train.tasks.colocalisation import (
    Colocalisation,
    intersection_over_union,
    maps_of,
    triplet_loss,
)
from stn_train.tasks.encoder import Encoder, frozen_encoder
from stn_train.tasks.examples import Examples, draw_pass
from stn_train.trainer.loop import train
from stn_train.visualiser.animation import learning_frames
from stn_train.visualiser.charts import PICTURES, pictures_of
from stn_train.visualiser.pages import digits_page

CPU = torch.device("cpu")
MNIST = ImageFormat((1, 28, 28), tuple("0123456789"))
TABLE = TABLES["colocalisation"]


def settings(*overrides, name="colocalisation_tc"):
    return load_config(name, overrides)


@pytest.fixture(scope="module")
def twenty():
    """A config of twenty cluttered canvases, and their images."""
    config = settings("task.colocalisation.subject=3", "task.colocalisation.count=20")
    return config, config.load_splits()


@pytest.fixture(scope="module")
def batch(twenty):
    config, splits = twenty
    return Examples.for_test(config.task, splits.test, 0).batch(slice(None))


# The canvases.


def test_a_run_is_about_images_of_one_class_that_the_seed_chooses(twenty, all_mnist):
    config, splits = twenty
    assert len(splits.training) == len(splits.test) == 20
    assert splits.training.pixels.equal(splits.test.pixels)
    assert set(splits.test.labels.tolist()) == {3}
    assert not len(splits.validation)
    test = {each.numpy().tobytes() for each in all_mnist[1].pixels}
    assert all(each.numpy().tobytes() in test for each in splits.test.pixels)
    assert splits.test.cut_from.equal(all_mnist[0].pixels)  # clutter is of training digits
    other = config.model_copy(update={"seed": 2}).load_splits()
    assert not other.test.pixels.equal(splits.test.pixels)


def test_settings_can_be_chosen_on_training_digits(all_mnist):
    config = settings("task.colocalisation.drawn_from=training", "task.colocalisation.count=5")
    training = {each.numpy().tobytes() for each in all_mnist[0].pixels}
    assert all(each.numpy().tobytes() in training for each in config.load_splits().test.pixels)


def test_the_canvases_of_training_and_test_are_the_same(twenty, batch):
    config, splits = twenty
    examples = Examples.watched(config.task, splits.training)
    assert examples.batch(slice(None)).inputs.equal(batch.inputs)
    for passed in (0, 1):
        shown = draw_pass(config.task, splits.training, 7, passed, passed)
        again = config.task.batch(splits.training, shown.order, shown.draws)
        assert again.inputs.equal(batch.inputs[shown.order])
        assert again.targets.equal(batch.targets[shown.order])


def test_a_digit_lies_in_its_box():
    task = Colocalisation(count=20).with_distortion(Translation(canvas_px=84))
    splits = settings("task.colocalisation.count=20", name="colocalisation_t").load_splits()
    inputs, boxes, _ = Examples.for_test(task, splits.test, 0).batch(slice(None))
    assert len(set(map(tuple, boxes.tolist()))) == 20
    for canvas, box, image in zip(inputs[:, 0], boxes, splits.test.pixels[:, 0], strict=True):
        left, top, right, bottom = ((box + 1) * 42).round().int().tolist()
        assert (right - left, bottom - top) == (28, 28)
        torch.testing.assert_close(canvas[top:bottom, left:right], image / 255, atol=1e-4, rtol=0)


def test_pieces_are_cut_from_the_images_around(twenty):
    _, splits = twenty
    distortion = Clutter(canvas_px=84, patches=16)
    _, sources, _, _ = distortion.draws(splits.test, torch.Generator().manual_seed(0))
    assert int(sources.max()) > 50_000
    assert int(distortion.draws(splits.test.around[:20], torch.Generator())[1].max()) < 60_000


# The parts of the loss.


def test_features_of_all_places_are_those_of_the_windows_there(batch):
    encoder = frozen_encoder(CPU)
    maps = encoder.everywhere(batch.inputs[:2])  # (B, P, G)
    assert maps.shape == (2, 29 * 29, 4 * 32 + 11)
    for row, column in ((0, 0), (3, 28), (17, 5)):
        window = batch.inputs[:2, :, 2 * row : 2 * row + 28, 2 * column : 2 * column + 28]
        wanted = encoder.features(window)[:, -maps.shape[2] :]
        torch.testing.assert_close(maps[:, 29 * row + column], wanted, rtol=1e-4, atol=1e-5)


def test_the_margin_is_the_distance_of_two_random_crops():
    """1 on average: scripts/train_encoder.py sets the scales so."""
    config = settings("task.colocalisation.drawn_from=training")
    splits = config.load_splits()
    inputs = Examples.for_test(config.task, splits.test, 0).batch(slice(None)).inputs
    crops = frozen_encoder(CPU).features(config.task.random_crops(inputs))
    distances = torch.pdist(crops) ** 2
    assert 0.6 < float(distances.mean()) < 1.6


def test_triplet_loss_is_the_mean_over_pairs_in_loops():
    generator = torch.Generator().manual_seed(1)
    windows, crops = torch.rand(2, 5, 7, generator=generator)
    settled = torch.tensor([True, True, False, True, True])
    total = 0.0
    for n in range(5):
        for m in range(5):
            if n != m and settled[n] and settled[m]:
                near = sum((a - b) ** 2 for a, b in zip(windows[n], windows[m], strict=True))
                far = sum((a - b) ** 2 for a, b in zip(windows[n], crops[n], strict=True))
                total += max(0.0, float(near - far + 0.5))
    assert float(triplet_loss(windows, crops, 0.5, settled)) == pytest.approx(total / 20, rel=1e-4)


def test_overlap_is_the_share_of_common_pixels():
    pairs = [
        ((0, 0, 4, 4), (0, 0, 4, 4)),
        ((0, 0, 4, 4), (1, 2, 5, 4)),
        ((0, 0, 2, 2), (3, 3, 5, 5)),
    ]
    for one, other in pairs:
        cells = [
            {(x, y) for x in range(left, right) for y in range(top, bottom)}
            for left, top, right, bottom in (one, other)
        ]
        share = len(cells[0] & cells[1]) / len(cells[0] | cells[1])
        boxes = torch.tensor([one, other]).float()
        assert float(intersection_over_union(boxes[:1], boxes[1:])) == pytest.approx(share)


def test_the_box_of_a_grid_is_the_square_that_it_reads():
    task = Colocalisation()
    grids = AttentionGrid()(torch.tensor([[1 / 3, 0.5, -0.25], [1.0, 0, 0]]), (28, 28))
    boxes = task.answers(grids)
    wanted = torch.tensor(
        [[0.5 - 1 / 3, -0.25 - 1 / 3, 0.5 + 1 / 3, -0.25 + 1 / 3], [-1, -1, 1, 1]]
    )
    torch.testing.assert_close(boxes, wanted, rtol=0, atol=1e-6)
    shifted = boxes + torch.tensor([[0.3], [0.7]])
    assert task.score(boxes, shifted).tolist() == [False, False]
    assert task.score(boxes, 0.99 * boxes).tolist() == [True, True]


def test_best_boxes_are_the_digits_where_the_windows_are(twenty, batch):
    config, _ = twenty
    encoder = frozen_encoder(CPU)
    corners = ((batch.targets[:, :2] + 1) * 42).round().int().tolist()
    digits = torch.stack(
        [
            canvas[:, top : top + 28, left : left + 28]
            for canvas, (left, top) in zip(batch.inputs, corners, strict=True)
        ]
    )
    best = config.task.best_boxes(maps_of(batch.inputs), encoder.features(digits))
    assert (intersection_over_union(best, batch.targets) > 0.5).float().mean() >= 0.95


def test_the_maps_of_a_batch_are_those_of_its_canvases_in_its_order(twenty, batch):
    config, splits = twenty
    shown = draw_pass(config.task, splits.training, 7, 0, 0)
    again = config.task.batch(splits.training, shown.order, shown.draws)
    for each in (batch, again):
        torch.testing.assert_close(each.context, maps_of(each.inputs), rtol=1e-4, atol=1e-5)
    torch.manual_seed(0)
    network = config.build_network(splits.test.format)
    losses = []
    for context in (again.context, maps_of(again.inputs)):
        torch.manual_seed(1)
        losses.append(config.task.loss(network, again._replace(context=context), 0.0))
    torch.testing.assert_close(*losses)


def test_no_label_of_place_or_class_has_a_part_in_the_loss(twenty, batch):
    config, splits = twenty
    torch.manual_seed(0)
    network = config.build_network(splits.test.format)
    losses = []
    for targets in (batch.targets, torch.zeros_like(batch.targets)):
        torch.manual_seed(1)
        losses.append(config.task.loss(network, batch._replace(targets=targets), 0.0))
    assert losses[0].equal(losses[1])
    losses[0].backward()
    assert float(network.transformer.regression.weight.grad.abs().sum()) > 0
    assert all(weight.grad is None for weight in frozen_encoder(CPU).parameters())


def test_the_encoder_reads_digits_and_knows_when_there_is_none(all_mnist):
    _, test = all_mnist
    digits = test.pixels[:1000].float() / 255
    encoder = frozen_encoder(CPU)
    assert isinstance(encoder, Encoder)
    assert (encoder(digits).argmax(1) == test.labels[:1000]).float().mean() > 0.96
    assert set(encoder(torch.roll(digits, 12, dims=3)).argmax(1).tolist()) >= {10}
    assert (encoder(torch.roll(digits, 12, dims=3)).argmax(1) == 10).float().mean() > 0.9


# The network, the config, the table.


def test_the_network_is_a_transformer_alone_of_the_papers_size(twenty, batch):
    config, _ = twenty
    network = config.build_network(MNIST)
    assert isinstance(network, Locator)
    assert parameter_count(network) == 5947
    warp = network.transformer.warp(batch.inputs)
    assert network(batch.inputs).equal(warp.grid)
    assert warp.output.shape == (20, 1, 28, 28)
    middle = torch.tensor([-0.3333, -0.3333, 0.3333, 0.3333]).expand(20, 4)
    torch.testing.assert_close(config.task.answers(warp.grid), middle, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["distortion=R"], "set distortion to T or TC"),
        (["transform=none"], "name a transform"),
        (["transformers.front.count=2"], "only one transformer"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_is_refused(overrides, told):
    with pytest.raises(ConfigError) as refused:
        settings(*overrides)
    assert told in str(refused.value.problems)


def test_too_few_images_are_told():
    config = settings("task.colocalisation.count=5000")
    with pytest.raises(ConfigError, match="there are 980 test images"):
        config.load_splits()
    with pytest.raises(ConfigError, match="a class from 0 to 9"):
        settings("task.colocalisation.subject=10").load_splits()


def test_other_distortions_have_no_places():
    with pytest.raises(ValidationError, match="T or TC"):
        Config.model_validate({"task": "colocalisation", "distortion": "P"})


def test_the_table_is_that_of_appendix_a_2():
    printed = dict(enumerate((81, 82, 88, 75, 94, 84, 93, 85, 89, 87)))
    for cell, value in TABLE.values.items():
        assert value == (100 if cell.distortion == "T" else printed[int(cell.subject)])
        assert published_for(settings(*subject(cell), name=TABLE.config_name(cell))) == value
    assert len(TABLE.cells) == 20


def subject(cell):
    return [f"task.colocalisation.subject={cell.subject}"]


def test_cells_are_named_with_their_subject():
    (cell,) = cells_like(["TC:*:3"], TABLE)
    assert cell == Cell("TC", "strided", "Attention", "3")
    assert (str(cell), cell.model) == ("TC:strided:Attention:3", "ST-strided Attention (3)")
    assert (TABLE.file_name(cell), TABLE.config_name(cell)) == (
        "colocalisation_tc_3",
        "colocalisation_tc",
    )
    jobs = jobs_for(TABLE, cells_like(["T:*"], TABLE), [1], [])
    assert [job.config.cell.subject for job in jobs] == [*map(str, range(10))]
    assert jobs[4].name == "colocalisation_t_4-seed1"
    with pytest.raises(ConfigError, match="--cells and --seeds decide"):
        jobs_for(TABLE, [cell], [1], ["task.colocalisation.subject=4"])


# A run.


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run on twenty canvases without clutter."""
    config = settings(
        "task.colocalisation.count=20",
        "task.colocalisation.subject=6",
        "train.epochs=120",
        "train.validate_every=120",
        "log.snapshots=3",
        name="colocalisation_t",
    )
    claimed = RunDirectory.claim(tmp_path_factory.mktemp("colocalisation") / "run")
    return config, claimed, train(config, config.load_splits(), claimed, CPU)


def test_a_run_finds_its_digits(run):
    assert run[2].evaluation.test_percent >= 90


def test_a_result_has_its_subject_and_is_read_again(run):
    _, claimed, trained = run
    written = json.loads(claimed.result.read_text())
    assert written["subject"] == "6"
    assert written["test_located_percent"] == trained.evaluation.test_percent
    again = Result.read(claimed.result)
    assert again.cell == Cell("T", "strided", "Attention", "6")
    assert again == trained.result
    rows = table_rows([again], TABLE)
    assert rows[0].as_dict()["subject"] == "6"
    assert comma_separated(rows).startswith("distortion,backbone,transform,subject,paper,")


def test_pictures_show_the_boxes(run):
    config, claimed, _ = run
    loaded, test = load_run(claimed.path), config.load_splits().test
    assert pictures_of(loaded.config) == ["grid", "means", "poses", "curves"]
    for name in pictures_of(loaded.config):
        assert PICTURES[name](loaded, test).axes or name == "grid"
    assert len(digits_page(loaded, test, count=3).subfigs[1].subfigs[0].axes) == 2
    frames = list(learning_frames(loaded, test))
    assert [frame.title.rsplit(": ", 1)[1] for frame in frames][-1].startswith("share located")
    assert [*frames[0].inspected.grids] == ["transformer"]
