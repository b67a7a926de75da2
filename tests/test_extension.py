"""One new plug-in of each kind, a class and a dict entry, through every command."""

import json
from typing import Annotated

import pytest
import torch
import torch.nn.functional as F
import yaml
from pydantic import Field, ValidationError
from torch import nn
from typing_extensions import override

from stn_train.cell import Cell
from stn_train.config import Config
from stn_train.data.distortion import Warping, distort
from stn_train.data.distortions import DISTORTIONS
from stn_train.data.draws import draw_uniform
from stn_train.data.images import DIGIT_PX, ImageFormat, Images
from stn_train.data.source import Source
from stn_train.data.sources import SOURCES
from stn_train.geometry.grids import MatrixGrid
from stn_train.geometry.transforms import TRANSFORMS, Transform
from stn_train.models.backbone import Backbone
from stn_train.models.backbones import BACKBONES
from stn_train.models.spatial_transformer import OutputLayer
from stn_train.runs.directory import load_run
from stn_train.runs.result import Result
from stn_train.table.paper import TABLES, PaperTable, published_for
from stn_train.table.plan import cells_like, jobs_for
from stn_train.tasks import TASKS
from stn_train.tasks.base import Batch, Measure, Task
from stn_train.visualiser.animation import ANIMATIONS
from stn_train.visualiser.charts import PICTURES, pictures_of

SIDE = 20


class Shear(Warping):
    """Each row moved sideways, the further from the middle the more."""

    max_shear: Annotated[float, Field(ge=0, le=1)] = 0.5
    """The shear is uniform between minus this and this."""

    @override
    def draw(self, count, generator):
        return draw_uniform(-self.max_shear, self.max_shear, (count, 1), generator)

    @override
    def map_points(self, parameters, points):
        x, y = points.unbind(-1)
        return torch.stack([x + parameters * y, y.expand(len(parameters), -1)], dim=-1)


class ZoomedGrid(MatrixGrid):
    """Isotropic scale and translation, 3 parameters: the paper's equation 2."""

    def __init__(self, zoom):
        super().__init__(torch.tensor([1 / zoom, 0.0, 0.0]))

    @override
    def matrix(self, theta):
        scale, zero = theta[:, :1], torch.zeros_like(theta[:, :1])
        entries = [scale, zero, theta[:, 1:2], zero, scale, theta[:, 2:]]
        return torch.cat(entries, dim=1).view(-1, 2, 3)

    @override
    def theta(self, matrix):
        return torch.cat([matrix[:, 0, :1], matrix[:, :, 2]], dim=1)


class Zoomed(Transform):
    """A square of the image."""

    file_name = "zoomed"

    zoom: Annotated[float, Field(ge=1, le=4)] = 1.0
    """How far it is zoomed in at the start."""

    @override
    def build(self):
        return ZoomedGrid(self.zoom)


class Small(Backbone):
    """One hidden layer."""

    units: Annotated[int, Field(ge=1)] = 16
    """In each of its networks."""

    @override
    def classifier(self, shape, outputs):
        return nn.Sequential(self.localisation(shape)[0], OutputLayer(self.units, outputs))

    @override
    def localisation(self, shape):
        pixels = torch.Size(shape).numel()
        return nn.Sequential(nn.Flatten(), nn.Linear(pixels, self.units), nn.ReLU()), self.units


class Bars(Source):
    """Bars of three widths, of a brightness of their own."""

    count: Annotated[int, Field(ge=10)] = 120
    """Training images; half as many test images."""

    @property
    @override
    def side_px(self):
        return SIDE

    @override
    def load(self, data_dir):
        return self.drawn(self.count, 0), self.drawn(self.count // 2, 1)

    def drawn(self, count, seed):
        labels = torch.arange(count) % 3
        columns = (torch.arange(SIDE) - SIDE / 2 + 0.5).abs()
        bars = (columns < 2 * labels[:, None] + 2)[:, None].expand(-1, SIDE, -1)
        generator = torch.Generator().manual_seed(seed)
        brightness = torch.randint(128, 256, (count, 1, 1), generator=generator)
        return Images((bars * brightness).byte()[:, None], labels, ("thin", "middle", "wide"))

    @override
    def origin(self, data_dir):
        return "bars, drawn anew"


class Sums(Task):
    """What is the sum of the labels of an image and of another one, each in a channel?"""

    measure = Measure("right_percent", "share right", "%", lower_is_better=False)

    most: Annotated[int, Field(ge=1)] = 4
    """The largest sum."""

    @override
    def shape(self, images):
        return 2 * images.shape[0], self.distortion.canvas_px, self.distortion.canvas_px

    @override
    def classes(self, images):
        return tuple(f"sum {number}" for number in range(self.most + 1))

    @override
    def outputs(self, images):
        return self.most + 1

    @override
    def draw(self, images, generator):
        others = torch.randint(len(images), (len(images),), generator=generator)
        (mine,), (theirs,) = (self.distortion.draws(images, generator) for _ in range(2))
        return mine, theirs, others

    @override
    def batch(self, images, index, draws):
        mine, theirs, others = draws
        pair = [
            self.distortion.apply(images, index, (mine,)),
            self.distortion.apply(images, others, (theirs,)),
        ]
        return Batch(torch.cat(pair, dim=1), images.labels[index] + images.labels[others])

    @override
    def loss(self, network, batch, label_smoothing):
        logits = network(batch.inputs).float()
        return F.cross_entropy(logits, batch.targets, label_smoothing=label_smoothing)

    @override
    def answers(self, outputs):
        return outputs.argmax(1)

    @override
    def score(self, answers, targets):
        return answers == targets


CELL = Cell("Shear", "Small", "Zoomed")

TABLE = PaperTable(
    name="bars",
    title="Sums of bars",
    paper="Nobody 2000",
    place="Table 9",
    note="one run",
    task="sums",
    data="bars",
    columns=("Shear",),
    rows={("Small", "Zoomed"): (50.0,), ("Small", "none"): (None,)},
    rounding=0.5,
)

EXPERIMENT = {
    "task": "sums",
    "distortion": {"Shear": {"max_shear": 0.3}},
    "backbone": {"Small": {"units": 24}},
    "transform": {"Zoomed": {"zoom": 1.0}},
    "data": {"source": {"bars": {"count": 120}}, "validation": 20},
    "train": {"epochs": 3, "batch_size": 20, "learning_rate": 0.01, "log_every": 2},
    "evaluate": {"draws": 2},
    "log": {"snapshots": 2},
}
IMAGES = ImageFormat((1, SIDE, SIDE), ("thin", "middle", "wide"))


@pytest.fixture(scope="module", autouse=True)
def _named():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DISTORTIONS, "Shear", Shear)
        patch.setitem(TRANSFORMS, "Zoomed", Zoomed)
        patch.setitem(BACKBONES, "Small", Small)
        patch.setitem(SOURCES, "bars", Bars)
        patch.setitem(TASKS, "sums", Sums)
        patch.setitem(TABLES, "bars", TABLE)
        yield


# The config.


def test_config_takes_the_new_names_and_settings():
    config = Config.model_validate(EXPERIMENT)
    assert config.cell == CELL
    assert config.distortion.max_shear == 0.3
    assert config.distortion.canvas_px == config.distortion.image_px == SIDE
    assert config.title == "ST-Small Zoomed on Shear, sums, bars"
    assert config.cell.file_name == "shear_zoomed_small"
    assert Config.model_validate(config.as_dict()) == config
    assert Config.model_validate({"distortion": "Shear"}).distortion.max_shear == 0.5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"distortion": {"Shear": {"max_shear": 1.5}}}, r"max_shear\s+Input should be less than"),
        ({"distortion": {"Shear": {"max_sheer": 0.3}}}, r"max_sheer\s+Extra inputs"),
        ({"distortion": {"Shear": {"max_angle_deg": 9.0}}}, r"max_angle_deg\s+Extra inputs"),
        ({"transform": {"Zoomed": {"zoom": 0.5}}}, r"zoom\s+Input should be greater than"),
        ({"backbone": {"Small": {"hidden": 3}}}, r"hidden\s+Extra inputs"),
        ({"data": {"source": {"bars": {"count": 1}}}}, r"count\s+Input should be greater"),
        ({"task": {"sums": {"most": "4"}}}, r"most\s+Input should be a valid integer"),
    ],
    ids=str,
)
def test_config_refuses_wrong_settings_of_the_new_classes(wrong, message):
    with pytest.raises(ValidationError, match=message):
        Config.model_validate({**EXPERIMENT, **wrong})


# Each class by itself.


def test_the_new_distortion_equals_rows_moved_by_hand():
    digits = torch.randint(0, 256, (1, 28, 28), dtype=torch.uint8)
    # At a shear of 1 a row 13.5 px below the middle is read from 13.5 px further right.
    sheared = distort(digits, Shear(), torch.ones(1, 1))
    for row, line in enumerate(digits[0] / 255):
        padded = F.pad(line, (14, 14))
        # Half a pixel of the shift is interpolated.
        expected = (padded[row : row + 28] + padded[row + 1 : row + 29]) / 2
        torch.testing.assert_close(sheared[0, 0, row], expected, rtol=0, atol=1e-4)


def test_the_new_transform_equals_affine_grid():
    theta = torch.tensor([[0.5, 0.1, -0.2], [2.0, 0.0, 0.3]])
    matrices = torch.zeros(2, 2, 3)
    matrices[:, 0, 0] = matrices[:, 1, 1] = theta[:, 0]
    matrices[:, :, 2] = theta[:, 1:]
    expected = F.affine_grid(matrices, [2, 1, 5, 8], align_corners=False)
    torch.testing.assert_close(ZoomedGrid(1)(theta, (5, 8)), expected)
    assert ZoomedGrid(1).theta(ZoomedGrid(1).matrix(theta)).equal(theta)


@pytest.mark.parametrize("distortion", DISTORTIONS)
@pytest.mark.parametrize("backbone", ["FCN", "Small"])
@pytest.mark.parametrize("iterations", [1, 3])
def test_a_network_learns_the_new_transform_on_any_distortion(distortion, backbone, iterations):
    data = {"distortion": distortion, "backbone": backbone, "transform": "Zoomed"}
    config = Config.model_validate({**data, "model": {"st_iterations": iterations}})
    images = Bars().drawn(6, 0)
    images = Images(F.pad(images.pixels, (4, 4, 4, 4)), images.labels, images.classes)  # 28 px
    draws = config.task.draw(images, torch.Generator().manual_seed(0))
    batch = config.task.batch(images, slice(None), draws)
    network = config.build_network(images.format)
    assert network.trace(batch.inputs).warps["transformer"].theta.shape == (6, 3)
    config.task.loss(network, batch, 0.1).backward()
    regression = network.transformers["transformer"].regression
    assert regression.bias.grad.isfinite().all()
    assert regression.bias.grad.any()


# All of them through the commands.


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder of runs with one run, trained by `stn-train`; returns the run's directory."""
    folder = tmp_path_factory.mktemp("extension")
    (folder / "bars.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    return folder / "runs" / "bars-seed1"


@pytest.fixture
def trained_run(run, command):
    if not run.exists():
        config = run.parent.parent / "bars.yaml"
        result = command("stn-train", "--config", config, "--out", run, "--json", "--quiet")
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout) == json.loads((run / "result.json").read_text())
    return run


def succeeded(result):
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_result_is_of_the_new_task(trained_run):
    data = json.loads((trained_run / "result.json").read_text())
    assert (data["task"], data["data"]) == ("sums", "bars")
    assert Cell(data["distortion"], data["backbone"], data["transform"]) == CELL
    result = Result.read(trained_run / "result.json")
    assert result.measure == Sums.measure
    assert result.test_percent == data["test_right_percent"] > 100 / 5  # better than guessing
    assert result.test_digits == 60
    assert published_for(result) == 50.0


def test_evaluation_finds_what_training_found(trained_run, command):
    report = json.loads(succeeded(command("stn-eval", trained_run, "--json")))
    data = json.loads((trained_run / "result.json").read_text())
    for field in ("test_right_percent", "draws_percent", "confusion", "draws_sha256"):
        assert report[field] == data[field]
    assert len(report["confusion"]) == 5
    told = succeeded(command("stn-eval", trained_run))
    assert "share right" in told
    assert "sum 3" in told


@pytest.mark.parametrize(
    "name", [name for name, kind in DISTORTIONS.items() if kind().canvas_px == DIGIT_PX]
)
def test_evaluation_on_another_distortion(trained_run, command, name):
    report = json.loads(succeeded(command("stn-eval", trained_run, "--distortion", name, "--json")))
    assert report["distortion"] == name
    assert len(report["draws_percent"]) == 2


@pytest.mark.parametrize("picture", PICTURES)
def test_every_picture_can_be_drawn_of_what_has_it(trained_run, command, tmp_path, picture):
    out = tmp_path / "picture.png"
    result = command("stn-visualize", trained_run, "--picture", picture, "--out", out)
    if picture in ("health", *pictures_of(load_run(trained_run).config)):
        succeeded(result)
        assert out.read_bytes().startswith(b"\x89PNG")
    else:  # which of the two images would have the pose? And there are no volumes.
        assert result.exit_code == 2
        told = {"poses": "poses need", "volumes": "there are no volumes"}
        assert told[picture] in result.stderr


def test_poses_can_be_drawn_of_the_new_distortion_and_transform(command, tmp_path):
    classified = {key: value for key, value in EXPERIMENT.items() if key != "task"}
    (tmp_path / "bars.yaml").write_text(yaml.safe_dump(classified))
    run = tmp_path / "run"
    succeeded(command("stn-train", "--config", tmp_path / "bars.yaml", "--out", run, "--quiet"))
    assert "poses" in pictures_of(load_run(run).config)
    succeeded(command("stn-visualize", run, "--picture", "poses"))
    assert (run / "poses.png").exists()


@pytest.mark.parametrize("name", ANIMATIONS)
def test_every_animation_can_be_made(trained_run, command, tmp_path, name):
    out = tmp_path / "moving.gif"
    succeeded(command("stn-visualize", trained_run, "--animate", f"{name}.gif", "--out", out))
    assert out.read_bytes().startswith(b"GIF8")


def test_its_mistakes_can_be_drawn(trained_run, command, tmp_path):
    out = tmp_path / "picture.png"
    succeeded(command("stn-visualize", trained_run, "--misclassified", "--out", out))


def test_the_new_table_shows_it_beside_the_published_value(trained_run, command):
    arguments = ["show", trained_run.parent, "--table", "bars"]
    (row,) = json.loads(succeeded(command("stn-table", *arguments, "--json")))
    result = Result.read(trained_run / "result.json")
    assert Cell(row["distortion"], row["backbone"], row["transform"]) == CELL
    assert (row["mean"], row["paper"], row["seeds"]) == (result.test_percent, 50.0, [1])
    for form in ([], ["--markdown"], ["--csv"]):
        told = succeeded(command("stn-table", *arguments, *form))
        assert "Shear" in told


def test_the_papers_table_leaves_it_out_and_says_so(trained_run, command):
    result = command("stn-table", "show", trained_run.parent)
    assert "ST-Small Zoomed on Shear, sums, bars" in succeeded(result) + result.stderr


def test_the_new_table_can_be_drawn_compared_and_reported(trained_run, command, tmp_path):
    table = ["--table", "bars"]
    runs, png = trained_run.parent, tmp_path / "table.png"
    succeeded(command("stn-table", "show", runs, "--png", png, *table))
    assert png.read_bytes().startswith(b"\x89PNG")
    (row,) = json.loads(succeeded(command("stn-table", "compare", runs, runs, "--json", *table)))
    assert row["difference"] == 0
    page = tmp_path / "report.html"
    succeeded(command("stn-table", "report", runs, "--out", page, *table))
    text = page.read_text(encoding="utf-8")
    assert "Sums of bars" in text
    for named in ("distortion=Shear", "backbone=Small", "task=sums", "data.source=bars"):
        assert f"--set {named}" in text  # the command that trains it again


def test_the_new_table_has_runs_of_its_own():
    overrides = ["train.epochs=3", "data.source.bars.count=40"]
    assert cells_like([], TABLE) == [CELL]  # the other has no published value
    jobs = jobs_for(TABLE, cells_like([*map(str, TABLE.values)], TABLE), [1, 2], overrides)
    assert {job.name for job in jobs} == {
        f"{name}-seed{seed}" for name in ("shear_zoomed_small", "shear_small") for seed in (1, 2)
    }
    for job in jobs:
        assert TABLE.holds(job.config)
        assert (job.config.train.epochs, job.config.data.source.count) == (3, 40)


def test_it_is_exported_for_pytorch(trained_run, command, tmp_path):
    out = tmp_path / "model.pt2"
    arguments = ["--format", "pt2", "--out", out, "--json"]
    report = json.loads(succeeded(command("stn-export", trained_run, *arguments)))
    assert report["input"] == [None, 2, SIDE, SIDE]
    inputs = torch.rand(3, 2, SIDE, SIDE)
    exported = torch.export.load(out).module()
    model = load_run(trained_run).model
    torch.testing.assert_close(exported(inputs), model(inputs), rtol=1e-4, atol=1e-4)
    assert model(inputs).shape == (3, Sums().outputs(IMAGES))


def test_a_dry_run_estimates_it(trained_run, command):
    config = trained_run.parent.parent / "bars.yaml"
    report = json.loads(succeeded(command("stn-train", "--config", config, "--dry-run", "--json")))
    assert report
