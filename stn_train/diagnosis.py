"""What spatial transformers do to a few images, whether that is healthy, and what to change.

Legend: B images, H height, W width, P parameters.

Convention: as in `stn_train.geometry.plane`. The pose of a grid is that of its least-squares
    affine fit: how wide an area it reads, how it turns the image, where it reads its middle.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stn_train.data.distortion import Warping
from stn_train.geometry.grids import TransformGrid
from stn_train.geometry.matrices import fit_affine
from stn_train.geometry.plane import pixel_centres
from stn_train.models.network import Network
from stn_train.models.spatial_transformer import SpatialTransformer, Warp
from stn_train.tasks.examples import Examples

# Measuring.


@torch.no_grad()
def describe(warp: Warp) -> dict[str, float]:
    """What a spatial transformer did to a batch, in the numbers that `judge` reads.

    outside_share: how many of the points it reads lie outside its input. theta_spread: the standard
    deviation of its parameters over the images, their mean. scale: side of the area it reads over
    that of the image; above 1 it zooms out. angle_deg: how far it turns the image,
    counter-clockwise; not of volumes. shift: from the middle of the image to where it reads the
    middle of its output; 1 is the edge. Of these three the mean over images, and as
    ``scale_spread``, ``angle_spread_deg`` and ``shift_spread`` the standard deviation. Poses are
    left out where no image has one.
    """
    outside = (warp.grid.abs() > 1).any(dim=-1).float().mean()
    spread = warp.theta.std(dim=0, correction=0).mean()
    found = {"outside_share": float(outside), "theta_spread": float(spread)}
    fits = nearest_affine(warp.grid)  # (B, D + 1, D + 1)
    fits = fits[fits.isfinite().all(dim=2).all(dim=1)]
    if not len(fits):
        return found
    dimensions = fits.shape[1] - 1
    linear, place = fits[:, :-1, :-1], fits[:, :-1, -1]
    scale = torch.linalg.det(linear).abs() ** (1 / dimensions)  # (B,)
    found |= {"scale": float(scale.mean()), "scale_spread": float(scale.std(correction=0))}
    if dimensions == 2:
        mean_deg, off_deg = circular(angles_deg(fits))
        found |= {"angle_deg": float(mean_deg), "angle_spread_deg": root_mean_square(off_deg)}
    off = place - place.mean(0)
    return found | {
        "shift": float(place.norm(dim=1).mean()),
        "shift_spread": math.sqrt(float(off.square().sum(1).mean())),
    }


@torch.no_grad()
def nearest_affine(grid: Tensor) -> Tensor:
    """Least-squares affine fits (B, 3, 3) to grids (B, H, W, 2), float64 on the CPU.

    In volumes (B, D, H, W, 3) -> (B, 4, 4). The points near the image decide, so that the horizon
    of a projective map does not; where few are near, all of them.
    """
    points = pixel_centres(tuple(grid.shape[1:-1]))
    mapped = grid.cpu().flatten(1, -2)  # the CPU has float64
    fits = fit_affine(points, mapped)
    far = fits.isnan().any(dim=2).any(dim=1)
    if far.any():
        fits[far] = fit_affine(points, mapped[far], reach=math.inf)
    return fits


def angles_deg(fits: Tensor) -> Tensor:
    """How far affine maps (B, 3, 3), from output to input, turn an image counter-clockwise."""
    sin, cos = fits[:, 1, 0] - fits[:, 0, 1], fits[:, 0, 0] + fits[:, 1, 1]
    return torch.rad2deg(torch.atan2(sin, cos))


def circular(angles: Tensor) -> tuple[Tensor, Tensor]:
    """The circular mean () of angles (B,) in degrees, and how far each is from it (B,).

    The deviations lie in (-180, 180].
    """
    radians = torch.deg2rad(angles)
    mean = torch.atan2(radians.sin().mean(), radians.cos().mean())
    turned = radians - mean
    return torch.rad2deg(mean), torch.rad2deg(torch.atan2(turned.sin(), turned.cos()))


def root_mean_square(values: Tensor) -> float:
    """Of deviations from a mean, their standard deviation."""
    return math.sqrt(float(values.square().mean()))


def gradient_norms(network: Network) -> tuple[dict[str, float], float | None]:
    """Norms of the newest gradient: of each localisation network, and of the classifier.

    The gradient is the one that the last step left in the weights: it costs nothing. Without one,
    before the first step, there are no norms. The last layer of a transformer is left out: its bias
    has a gradient even where the localisation network answers nothing.
    """
    transformers = network.transformers
    inside = {id(weight) for each in transformers.values() for weight in each.parameters()}
    others = [weight for weight in network.parameters() if id(weight) not in inside]
    norms = {
        name: gradient_norm([*each.localisation.parameters()])
        for name, each in transformers.items()
    }
    found = {name: norm for name, norm in norms.items() if norm is not None}
    return found, gradient_norm(others)


def gradient_norm(weights: list[nn.Parameter]) -> float | None:
    """The norm of the gradient of some weights together; None if none has a gradient."""
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    return float(nn.utils.get_total_norm(gradients)) if gradients else None


def watched(warps: Mapping[str, Warp], network: Network) -> dict[str, float]:
    """`describe` and `gradient_norms` of all spatial transformers, as metrics.jsonl has them.

    With several transformers each number is a mean, and each has its own as KEY.NAME as well.
    """
    found = {name: describe(warp) for name, warp in warps.items()}
    norms, classifier = gradient_norms(network)
    for name, norm in norms.items():
        found[name]["localisation_gradient_norm"] = norm
    record: dict[str, float] = {}
    for key in dict.fromkeys(key for each in found.values() for key in each):
        values = {name: each[key] for name, each in found.items() if key in each}
        record[key] = sum(values.values()) / len(values)
        if len(found) > 1:
            record |= {f"{key}.{name}": value for name, value in values.items()}
    return record if classifier is None else record | {"classifier_gradient_norm": classifier}


def of_transformer(record: Mapping[str, float], name: str) -> dict[str, float]:
    """The numbers of one transformer in a record of `watched`."""
    own = {
        key.removesuffix(f".{name}"): value
        for key, value in record.items()
        if key.endswith(f".{name}")
    }
    shared = {key: value for key, value in record.items() if "." not in key}
    return shared | own


# Judging.

BLACK_SHARE = 0.95
"""With at least this share of points outside, almost nothing is read, and almost nothing learnt."""

OUTSIDE_SHARE = 0.6
"""Above this share of points outside, a spatial transformer looks collapsed. A grid that fits the
image, turned by 45 degrees, has 17 % outside; one that reads twice as wide an area 75 %."""

ZOOM = 1.25
"""Above this scale, what lies outside is due to zooming out; below it, to looking elsewhere."""

SPOT_SCALE = 0.15
"""Below this scale the area is 4 of 28 pixels wide, little more than a stroke. The narrowest that
is useful here, an image of 28 px on a canvas of 84 px, has 0.33."""

STILL = 0.01
"""Below this spread of theta all images are moved alike: to within 0.14 of 28 pixels."""

TURNING_SHARE = 0.25
"""Below this share of the distortion's spread of angles, a transformer does not turn."""

MIN_TURNED_DEG = 10.0
"""A distortion that turns images by a smaller spread than this gives no reason to turn them."""

GRADIENT_SHARE = 1e-3
"""Below this share of the classifier's gradient norm, the localisation network learns nothing."""

MIN_BACKGROUND = 0.1
"""A background at least this bright cannot pass for the zeros of the padding."""


class Circumstances(NamedTuple):
    """What a transformer has to undo, and what it can do."""

    turned_deg: float = 0.0
    """Standard deviation of the angles by which the distortion turns images."""
    can_turn: bool = True
    """Whether the family of transforms holds rotations."""
    varied: bool = True
    """Whether the distortion moves images at all."""
    background: float = 0.0
    """Brightness of the images' border, in [0, 1]."""
    rate_scale: float = 1.0
    """train.localisation_learning_rate_scale."""
    iterations: int = 1
    """How often the localisation network runs."""


class Finding(NamedTuple):
    """What is the matter with a spatial transformer."""

    name: str
    told: str
    """What it does, as the end of a sentence that starts with its name."""
    advice: str = ""
    """What to change."""
    collapsed: bool = False
    """Whether it no longer shows the classifier the image, so that training on is in vain."""

    @property
    def healthy(self) -> bool:
        """Whether nothing is the matter."""
        return self.name == "healthy"


def judge(measured: Mapping[str, float], circumstances: Circumstances | None = None) -> Finding:
    """What is the matter with a spatial transformer, by what `describe` measured of it.

    The first of these that holds: black, zooms out, looks past the image, reads a spot, gets no
    gradient, does not move, cannot turn, does not turn; otherwise healthy. Numbers that were not
    measured, as by earlier versions, decide nothing.
    """
    given = circumstances or Circumstances()
    return collapse(measured, given) or idleness(measured, given) or health(measured)


def collapse(measured: Mapping[str, float], given: Circumstances) -> Finding | None:
    """How a transformer has lost the image, if it has."""
    outside, scale = measured["outside_share"], measured.get("scale", 1.0)
    share = f"{100 * outside:.0f} %"
    cure = gentler(given)
    if outside >= BLACK_SHARE:
        told = (
            f"makes everything black: {share} of the points that it reads lie outside the image, "
            "where no gradient leads back"
        )
        return Finding("black", told, cure, collapsed=True)
    if outside > OUTSIDE_SHARE and scale > ZOOM:
        told = (
            f"zooms out: it reads an area {scale:.1f} times as wide as the image, {share} of it "
            "outside, and what the classifier sees shrinks"
        )
        return Finding("zooms out", told, cure, collapsed=True)
    if outside > OUTSIDE_SHARE:
        told = f"looks past the image: {share} of the points that it reads lie outside"
        return Finding("looks past the image", told, cure, collapsed=True)
    if scale < SPOT_SCALE:
        told = f"has shrunk to a spot: it reads {scale:.2f} of the image's width, a mere blur"
        return Finding("reads a spot", told, cure, collapsed=True)
    return None


def gentler(given: Circumstances) -> str:
    """What to change where the localisation network has taken too large steps."""
    scale = min(given.rate_scale / 10, 1)
    rate = f"train.localisation_learning_rate_scale={scale:g}"
    cure = f"train it anew with --set {rate}, or a lower train.learning_rate"
    return after_background(given, cure)


def after_background(given: Circumstances, cure: str) -> str:
    """The cure; a background that is not zero must be mended first."""
    if given.background < MIN_BACKGROUND:
        return cure
    return (
        f"the background of the images has a brightness of {given.background:.2f}, that of the "
        f"padding around them is 0: invert them, or subtract it; if that is not enough, {cure}"
    )


def idleness(measured: Mapping[str, float], given: Circumstances) -> Finding | None:
    """What a transformer should do and does not."""
    others = measured.get("classifier_gradient_norm", 0.0)
    share = measured.get("localisation_gradient_norm", math.inf) / others if others else math.inf
    # With a learning rate of 0 its last layer stays zero, and passes nothing on.
    if share < GRADIENT_SHARE and given.rate_scale > 0:
        told = f"gets no gradient: its norm is {share:.1g} of the classifier's"
        advice = (
            "units of its localisation network that never answer are dead: train it anew with a "
            "lower train.learning_rate or another seed"
        )
        return Finding("gets no gradient", told, advice)
    if given.varied and measured.get("theta_spread", math.inf) < STILL:
        told = f"does not move: it does the same to every image, to within {STILL:g} of theta"
        return Finding("does not move", told, livelier(given))
    turned_deg = measured.get("angle_spread_deg")
    if turned_deg is None or given.turned_deg < MIN_TURNED_DEG:
        return None
    if not given.can_turn:
        told = f"cannot turn; the angles of the images have a spread of {given.turned_deg:.0f}°"
        advice = "choose a transform that can: Rigid, Similarity, Aff, Proj, TPS or CPAB"
        return Finding("cannot turn", told, advice)
    if turned_deg < TURNING_SHARE * given.turned_deg:
        told = (
            f"does not turn: the spread of its angles is {turned_deg:.1f}°, that of the images "
            f"{given.turned_deg:.0f}°"
        )
        return Finding("does not turn", told, livelier(given))
    return None


def livelier(given: Circumstances) -> str:
    """What to change where the localisation network has learnt too little."""
    rate = f"train.localisation_learning_rate_scale is {given.rate_scale:g}"
    if given.rate_scale < 1:
        return after_background(given, f"{rate}: raise it, and train longer")
    if given.rate_scale > 1:
        return after_background(given, f"{rate}: train it anew with a lower one")
    twice = "let it look twice (model.st_iterations=2); " if given.iterations < 2 else ""
    cure = f"train longer; {twice}give it a larger localisation network, or another learning rate"
    return after_background(given, cure)


def health(measured: Mapping[str, float]) -> Finding:
    """What a transformer does that is in order."""
    parts = [f"{100 * (1 - measured['outside_share']):.0f} % of what it reads lies in the image"]
    if "scale" in measured:
        parts.append(f"it reads {measured['scale']:.2f} of the image's width")
    if "angle_spread_deg" in measured:
        parts.append(f"its angles have a spread of {measured['angle_spread_deg']:.0f}°")
    return Finding("healthy", f"is healthy: {', '.join(parts)}")


def circumstances(
    examples: Examples, transformer: SpatialTransformer, rate_scale: float
) -> Circumstances:
    """What a transformer has to undo in examples, and what it can do.

    rate_scale: train.localisation_learning_rate_scale.
    """
    pixels = examples.images.pixels
    border = torch.cat([pixels[..., [0, -1], :].flatten(), pixels[..., [0, -1]].flatten()])
    distortion, turned_deg, varied = examples.task.distortion, 0.0, True
    if isinstance(distortion, Warping):
        points = pixel_centres((distortion.image_px, distortion.image_px))
        parameters = examples.draws[0].cpu()
        fits = fit_affine(points, distortion.map_points(parameters, points))
        fits = fits[fits.isfinite().all(dim=2).all(dim=1)]
        _, off_deg = circular(angles_deg(fits))
        turned_deg = root_mean_square(off_deg)
        varied = float(fits.std(dim=0, correction=0).max()) > STILL
    return Circumstances(
        turned_deg,
        turns(transformer.transform),
        varied or len(examples.draws) > 1,
        float(border.float().median()) / 255,
        rate_scale,
        transformer.iterations,
    )


def turns(transform: TransformGrid) -> bool:
    """Whether a transform can turn an image; volumes have no single angle and count as turning."""
    if transform.dimensions != 2:
        return True
    generator = torch.Generator().manual_seed(0)
    identity = transform.identity
    theta = identity + torch.rand(8, len(identity), generator=generator).to(identity.device) / 2
    _, off_deg = circular(angles_deg(nearest_affine(transform(theta, (8, 8)))))
    return root_mean_square(off_deg) > 0.1
