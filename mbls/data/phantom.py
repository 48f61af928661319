"""A short-axis heart whose true label probabilities are known, written in the layout of ACDC.

The anatomy of each patient (left and right ventricle, myocardium, papillary muscles, organs around them) is drawn from
one of the five ACDC groups, in end-diastole and end-systole, from apex to base. Then an annotator is modelled. Every
contour is uncertain by a known number of millimetres, which gives each voxel a distribution over the four classes.
The labels are drawn from exactly these distributions. They are smooth in space, because a hand that slips moves a
stretch of contour and not single voxels. The image is made from the anatomy with partial volume, bias field and
Rician noise.

So a forecaster who knows the anatomy is perfectly calibrated with the stored probabilities, and a network can be
compared with them voxel by voxel. The sizes follow the class fractions of real ACDC volumes. It is still a phantom,
and its files say so.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.special import ndtr

from mbls.data.acdc import GROUPS, NUM_CLASSES, PHANTOM_MARKER, PHASES
from mbls.files import read_json, write_json
from mbls.progress import progress_bar

__all__ = ["make_phantom"]

_VERSION = 1

_SPACING = (1.5, 1.5, 10.0)  # mm
_ES_FRAME = 11

#: Root-mean-square over the slices, mm and mm2: radius of the LV cavity, thickness of the wall, area of the RV. From
#: the class fractions of 160 real ACDC volumes (centred 128 x 128 voxels), read as areas at 1.5 mm a voxel.
_SIZES = {
    ("NOR", "ED"): (22.0, 7.2, 1830),
    ("NOR", "ES"): (14.2, 10.6, 830),
    ("DCM", "ED"): (30.5, 7.9, 1680),
    ("DCM", "ES"): (27.6, 9.2, 1130),
    ("HCM", "ED"): (21.3, 11.0, 1300),
    ("HCM", "ES"): (12.2, 16.2, 500),
    ("MINF", "ED"): (25.4, 7.3, 1270),
    ("MINF", "ES"): (21.3, 9.4, 640),
    ("RV", "ED"): (20.5, 6.0, 2520),
    ("RV", "ES"): (14.0, 8.8, 1740),
}


@dataclass(frozen=True)
class _Heart:
    """One patient's anatomy; lengths in mm, angles in radian, both relative to the centre of the image."""

    group: str
    grid: tuple[int, int, int]
    centre: tuple[float, float]
    drift: tuple[float, float]  # movement of the axis from base to apex
    rv_angle: float
    scale: float
    wobble: np.ndarray  # amplitude and phase of the contour's harmonics 2..5, for endo- and epicardium
    scar_angle: float
    valve: float  # depth of the valve plane in end-systole, as a fraction of the long axis
    blood: float
    muscle: float


def make_phantom(root: str | Path, num_patients: int = 20, seed: int = 0) -> Path:
    """Write a phantom data set. One that was made with the same arguments is left as it is.

    Args:
        root: folder to make. It has ``training/patientXXX`` as ACDC, with ``patientXXX_frameNN_prob.npz`` beside the
            labels: array "probs", (4, x, y, z) uint8, in 1/255, summing to 255 in each voxel.
        num_patients: 1..999; the groups take turns.
        seed: the same seed gives the same data on every machine (numpy's frozen RandomState; intensities and
            probabilities are rounded).

    Returns:
        The root.

    Raises:
        ValueError: an argument out of range.
        FileExistsError: a folder that holds something else, which is left untouched.

    Example:
        >>> import tempfile
        >>> root = make_phantom(Path(tempfile.mkdtemp()), num_patients=1)
        >>> sorted(path.name for path in (root / "training" / "patient001").iterdir())[:3]
        ['Info.cfg', 'patient001_frame01.nii.gz', 'patient001_frame01_gt.nii.gz']
    """
    root = Path(root)
    if not 1 <= num_patients <= 999:
        raise ValueError(f"num_patients: got {num_patients}, expected 1..999")
    if not 0 <= seed < 2**31:
        raise ValueError(f"seed: got {seed}, expected 0..2^31 - 1")
    recipe = {
        "what": "synthetic cardiac phantom, not patients",
        "num_patients": num_patients,
        "seed": seed,
        "version": _VERSION,
    }
    marker = root / PHANTOM_MARKER
    if marker.is_file() and read_json(marker) == recipe:
        return root
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(
            f"root: got {root}, which holds something else than this phantom; delete it or name another folder"
        )
    # Built under a temporary name, so that an interrupted run leaves no half phantom behind the real name; its process
    # is in the name, so that two runs at once do not disturb each other.
    building = root.with_name(f".{root.name}.{os.getpid()}.part")
    _remove_left_over(root, building)
    try:
        for number in progress_bar(range(1, num_patients + 1), desc="phantom", unit="patient"):
            _write_patient(building / "training" / f"patient{number:03d}", number, seed)
        # Last, so that it also marks a complete phantom.
        write_json(recipe, building / PHANTOM_MARKER)
        try:
            with suppress(OSError):  # an empty folder makes room
                root.rmdir()
            building.rename(root)
        except OSError:
            if not (marker.is_file() and read_json(marker) == recipe):
                raise
            # Another run made the same in the meantime.
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return root


def _remove_left_over(root: Path, building: Path) -> None:
    """What killed runs left beside the root: of a process that is gone, or that had our number."""
    for folder in root.parent.glob(f".{root.name}.*.part"):
        number = folder.name.removesuffix(".part").rpartition(".")[2]
        if folder == building or not (number.isdigit() and _is_running(int(number))):
            shutil.rmtree(folder, ignore_errors=True)


def _is_running(process: int) -> bool:
    if os.name != "posix":  # the signal 0 asks only there
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        pass
    return True


def _write_patient(folder: Path, number: int, seed: int) -> None:
    # RandomState is frozen by numpy's compatibility policy; newer generators may change their streams.
    random = np.random.RandomState([seed, number])
    heart = _draw_heart(random, GROUPS[(number - 1) % len(GROUPS)])
    folder.mkdir(parents=True)
    affine = np.diag([*_SPACING, 1.0])
    for phase in PHASES:
        probs, image = _draw_phase(random, heart, phase)
        labels = _draw_labels(random, probs)
        stem = folder / f"{folder.name}_frame{1 if phase == 'ED' else _ES_FRAME:02d}"
        for array, ending in ((image, ""), (labels, "_gt")):
            nifti = nib.Nifti1Image(array, affine)
            nifti.header.set_xyzt_units("mm")
            nib.save(nifti, f"{stem}{ending}.nii.gz")
        np.savez_compressed(f"{stem}_prob.npz", probs=probs)
    height = 150 + 40 * random.rand()
    weight = height - 100 + 20 * random.rand()
    (folder / "Info.cfg").write_text(
        f"ED: 1\nES: {_ES_FRAME}\nGroup: {heart.group}\nHeight: {height:.1f}\nNbFrame: 30\nWeight: {weight:.1f}\n"
    )


def _draw_heart(random: np.random.RandomState, group: str) -> _Heart:
    grid = (int(random.choice([144, 152, 160])), int(random.choice([152, 160, 168])), int(random.randint(7, 11)))
    return _Heart(
        group=group,
        grid=grid,
        centre=(random.uniform(-4, 12), random.uniform(-8, 8)),
        drift=(random.uniform(4, 12), random.uniform(0, 8)),
        rv_angle=np.pi + random.uniform(-0.5, 0.15),
        scale=random.uniform(0.92, 1.06),
        wobble=np.stack(
            [random.normal(0, [[0.03], [0.02], [0.012], [0.008]], (4, 2)), random.uniform(0, 2 * np.pi, (4, 2))]
        ),
        scar_angle=random.uniform(0, 2 * np.pi),
        valve=random.uniform(0.0, 0.16),
        blood=random.uniform(560, 780),
        muscle=random.uniform(170, 270),
    )


def _draw_phase(random: np.random.RandomState, heart: _Heart, phase: str) -> tuple[np.ndarray, np.ndarray]:
    """Label probabilities (4, x, y, z) uint8 and image (x, y, z) int16 of one phase."""
    nx, ny, nz = heart.grid
    x, y = np.meshgrid(
        (np.arange(nx) - (nx - 1) / 2) * _SPACING[0], (np.arange(ny) - (ny - 1) / 2) * _SPACING[1], indexing="ij"
    )
    body = _draw_body(random, x, y)
    probs = np.empty((NUM_CLASSES, nx, ny, nz))
    image = np.empty((nx, ny, nz))
    shift = 0.0 if phase == "ED" else heart.valve
    for z in range(nz):
        depths = ((z + 0.5 + offset) / nz - shift for offset in (0, -0.35, 0.35))
        sections = [_section(heart, phase, depth, x, y) for depth in depths]
        # The annotator sees the middle of the slice; the scanner averages over its thickness.
        probs[..., z] = _annotator(sections[0])
        image[..., z] = np.mean([_intensities(heart, section, body) for section in sections], axis=0)
    image *= 1 + 0.07 * _smooth_noise(random, image.shape, 3.0) + 0.05 * _smooth_noise(random, image.shape, 1.0)
    slope = random.uniform(-0.25, 0.25, 2)
    image *= np.exp((slope[0] * x / 100 + slope[1] * y / 100 - 0.1 * (x**2 + y**2) / 100**2)[..., None])
    noise = random.normal(0, 22, (2, *image.shape))
    image = np.hypot(image + noise[0], noise[1])  # magnitude of a complex signal: Rician
    ceiling = np.percentile(image, 99)
    return _rounded(probs), np.round(1000 * np.clip(image / ceiling, 0, 1)).astype(np.int16)


@dataclass(frozen=True)
class _Section:
    """One cut through the heart: signed distances in mm, positive inside, and where muscles and depth lie."""

    endo: np.ndarray
    epi: np.ndarray
    rv: np.ndarray
    papillary: np.ndarray
    x: np.ndarray  # mm from the LV's axis
    y: np.ndarray
    depth: float  # 0 at the base, 1 at the apex; negative above the valve plane


def _section(heart: _Heart, phase: str, depth: float, x: np.ndarray, y: np.ndarray) -> _Section:
    radius, wall, rv_area = _SIZES[heart.group, phase]
    inside = min(max(depth, 0.0), 1.0)
    # Profiles along the long axis with a mean square of about 1, so that the sizes above are met over all slices.
    profile = heart.scale * 1.16 * np.sqrt(max(1 - (0.88 * inside) ** 2, 0.05))
    rv_profile = heart.scale * 1.25 * np.sqrt(max(1 - (0.97 * inside) ** 1.6, 0.02))
    x = x - heart.centre[0] - heart.drift[0] * inside
    y = y - heart.centre[1] - heart.drift[1] * inside
    r = np.hypot(x, y)
    angle = np.arctan2(y, x)
    amplitude, offset = heart.wobble
    harmonics = np.cos(np.arange(2, 6)[:, None, None, None] * angle[None, None] + offset[..., None, None])
    waves = 1 + (amplitude[..., None, None] * harmonics).sum(0)
    thickness = wall * (0.85 + 0.15 * profile)
    if heart.group == "HCM":  # the septum, towards the RV, is the thickest part
        thickness = thickness * (1 + 0.35 * np.cos(angle - heart.rv_angle))
    if heart.group == "MINF":  # a thinned sector that no longer contracts
        thickness = thickness * (
            1 - 0.45 * np.exp(-(((angle - heart.scar_angle + np.pi) % (2 * np.pi) - np.pi) ** 2) / 0.5)
        )
    endo_radius = radius * profile * waves[0]
    epi_radius = radius * profile * (waves[0] + waves[1]) / 2 + thickness
    papillary = np.full_like(r, -99.0)
    if 0.2 < inside < 0.8:
        for side in (-0.9, 0.9):
            where = heart.rv_angle + np.pi + side
            px, py = (0.62 * radius * profile * f for f in (np.cos(where), np.sin(where)))
            size = 0.19 * radius * profile + (1.0 if phase == "ES" else 0.5)
            papillary = np.maximum(papillary, size - np.hypot(x - px, y - py))
    outer = float(np.mean(epi_radius))
    return _Section(
        endo=endo_radius - r,
        epi=epi_radius - r,
        rv=_rv_distance(heart, outer, rv_area * rv_profile**2, x, y),
        papillary=papillary,
        x=x,
        y=y,
        depth=depth,
    )


def _rv_distance(heart: _Heart, outer: float, area: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance, along the ray, to an ellipse that hugs the LV and shows ``area`` mm2 of itself outside it."""
    height = 0.40 * np.sqrt(area) + 0.50 * outer
    coarse_x, coarse_y = np.meshgrid(np.arange(-110.0, 110.0, 3.0), np.arange(-110.0, 110.0, 3.0), indexing="ij")
    outside = np.hypot(coarse_x, coarse_y) > outer
    narrow, wide = 1.0, 90.0
    for _ in range(10):  # the area outside the LV grows with the width, so bisection finds it
        width = (narrow + wide) / 2
        shown = 9.0 * np.count_nonzero(
            (_ellipse_distance(heart, outer, width, height, coarse_x, coarse_y) > 0) & outside
        )
        narrow, wide = (width, wide) if shown < area else (narrow, width)
    return _ellipse_distance(heart, outer, width, height, x, y)


def _ellipse_distance(
    heart: _Heart, outer: float, width: float, height: float, x: np.ndarray, y: np.ndarray
) -> np.ndarray:
    along, across = np.cos(heart.rv_angle), np.sin(heart.rv_angle)
    u = x * along + y * across - 0.7 * outer
    v = -x * across + y * along
    v = v + 0.006 * u * u  # the tip bends down around the septum
    rho = np.hypot(u / width, v / height)
    r = np.hypot(u, v)
    return np.where(rho > 1e-6, r / np.maximum(rho, 1e-6) - r, min(width, height))


def _annotator(section: _Section) -> np.ndarray:
    """Distribution of the label that an annotator gives each voxel, (4, x, y); contours have a normal error, in mm."""
    if section.depth < 0:  # above the valve plane there is nothing to label
        probs = np.zeros((NUM_CLASSES, *section.endo.shape))
        probs[0] = 1
        return probs
    unsure = 1 + 0.8 * max(0.0, 2 * abs(section.depth - 0.5) - 0.4)  # base and apex are harder
    in_heart = ndtr(section.epi / (1.1 * unsure))
    in_cavity = ndtr(section.endo / (0.9 * unsure))
    in_rv = ndtr(section.rv / (1.5 * unsure))
    rv = (1 - in_heart) * in_rv
    myo = in_heart * (1 - in_cavity)
    lv = in_heart * in_cavity
    return np.stack([1 - rv - myo - lv, rv, myo, lv])


def _rounded(probs: np.ndarray) -> np.ndarray:
    """Probabilities in 1/255 that still sum to one: differences of the rounded cumulative sums."""
    cumulative = np.round(255 * np.cumsum(probs, axis=0)).astype(np.int16)
    cumulative[-1] = 255
    return np.diff(cumulative, axis=0, prepend=0).astype(np.uint8)


def _draw_labels(random: np.random.RandomState, probs: np.ndarray) -> np.ndarray:
    """Labels with exactly the given distribution at each voxel, smooth in the plane (a Gaussian copula)."""
    shape = probs.shape[1:]
    field = np.stack([_smooth_noise(random, shape[:2], 4.0) for _ in range(shape[2])], axis=-1)
    cumulative = np.cumsum(probs, axis=0, dtype=np.int16)
    return (255 * ndtr(field) >= cumulative[:-1]).sum(0).astype(np.uint8)


def _smooth_noise(random: np.random.RandomState, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    """Stationary Gaussian field of mean 0 and variance 1 at every voxel, correlated in plane over sigma voxels."""
    widths = [sigma, sigma, 0][: len(shape)]
    white = random.normal(size=shape)
    impulse = np.zeros(shape)
    impulse[tuple(n // 2 for n in shape)] = 1
    gain = np.sqrt((gaussian_filter(impulse, widths, mode="wrap") ** 2).sum())
    return gaussian_filter(white, widths, mode="wrap") / gain


@dataclass(frozen=True)
class _Body:
    """What lies around the heart, fixed through the slices: intensities and the fat's unevenness."""

    organs: np.ndarray
    fat: np.ndarray


def _draw_body(random: np.random.RandomState, x: np.ndarray, y: np.ndarray) -> _Body:
    def ellipse(cx: float, cy: float, a: float, b: float, edge: float = 2.0) -> np.ndarray:
        """Soft mask of a jittered ellipse, in mm."""
        cx, cy = cx + random.normal(0, 4), cy + random.normal(0, 4)
        a, b = a * random.uniform(0.9, 1.1), b * random.uniform(0.9, 1.1)
        rho = np.hypot((x - cx) / a, (y - cy) / b)
        return ndtr((1 - rho) * min(a, b) / edge)

    def paint(image: np.ndarray, mask: np.ndarray, value: float | np.ndarray) -> np.ndarray:
        return image * (1 - mask) + mask * value

    texture = _smooth_noise(random, x.shape, 6.0)
    fine = _smooth_noise(random, x.shape, 2.5)
    body = ellipse(5, 5, 118, 112)
    image = paint(np.full_like(x, 25.0), body, 830 + 90 * texture)  # skin and fat under it
    image = paint(image, ellipse(5, 8, 104, 98), 230 + 60 * fine)  # chest wall muscle
    image = paint(image, ellipse(5, 10, 96, 88), 430 + 220 * fine)  # fat and vessels between the organs
    image = paint(image, ellipse(15, -38, 82, 46), 60 + 25 * fine)  # lung
    image = paint(image, ellipse(72, 15, 34, 40), 70 + 30 * fine)
    for _ in range(14):  # vessels in the lung
        image = paint(image, ellipse(random.uniform(-40, 75), random.uniform(-70, -25), 1.8, 1.8, 1.0), 420)
    image = paint(image, ellipse(-45, 58, 66, 34), 290 + 30 * texture)  # liver
    for _ in range(10):
        image = paint(image, ellipse(random.uniform(-90, 0), random.uniform(40, 80), 2.5, 5.0, 1.0), 480)
    image = paint(image, ellipse(42, 62, 34, 24), 350 + 150 * texture)  # stomach
    image = paint(image, ellipse(5, 92, 20, 16), 330 + 120 * fine)  # spine
    image = paint(image, ellipse(33, 60, 11, 11), 640)  # descending aorta
    return _Body(organs=np.clip(image, 15, 1000), fat=ndtr(1.5 * texture))


def _intensities(heart: _Heart, section: _Section, body: _Body) -> np.ndarray:
    """Signal of one cut without noise; masks are soft over about a voxel (partial volume in plane)."""
    edge = 0.45 * _SPACING[0]

    def inside(distance: np.ndarray) -> np.ndarray:
        return ndtr(distance / edge)

    envelope = np.maximum(section.epi, section.rv)
    image = body.organs
    around = inside(envelope + 5) * (0.25 + 0.75 * body.fat)  # fat between the heart and the lung
    image = image * (1 - around) + around * 620
    rv_wall = inside(section.rv + 2.5)
    image = image * (1 - rv_wall) + rv_wall * heart.muscle * 1.1
    chamber = inside(section.rv)
    image = image * (1 - chamber) + chamber * heart.blood * 0.84
    muscle = inside(section.epi)
    image = image * (1 - muscle) + muscle * heart.muscle * (1 if section.depth >= 0 else 1.3)
    cavity = inside(section.endo)
    image = image * (1 - cavity) + cavity * heart.blood
    trabeculae = inside(section.papillary) * cavity
    return image * (1 - trabeculae) + trabeculae * (0.7 * heart.muscle + 0.3 * heart.blood)
