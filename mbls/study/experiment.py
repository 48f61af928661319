"""Compare losses, margins and backbones on the same data; every result is a row that says where it came from."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from lightning_fabric import Fabric
from torch import nn

from mbls.data.acdc import (
    NUM_CLASSES,
    SliceDataset,
    augmentation,
    find_patients,
    fingerprint,
    read_split,
    split_patients,
)
from mbls.data.home import data_name
from mbls.engine.devices import make_fabric
from mbls.engine.fit import BEST, CHECKPOINT, FitSettings, fit, load_weights
from mbls.engine.judge import CALIBRATION, REGIONS, Evaluation, evaluate, fit_temperature
from mbls.files import write_json, write_table
from mbls.losses import build_loss, parse_loss
from mbls.networks.backbones import build_model
from mbls.study.results import as_table, provenance, write_tables

__all__ = [
    "Data",
    "Experiment",
    "Run",
    "compare",
    "load_data",
    "parse_shard",
    "run_experiment",
    "sweep",
]


@dataclass(frozen=True)
class Experiment:
    """One training run and its judgement; the defaults are the official protocol of arXiv 2209.09641 on ACDC.

    Attributes:
        loss: a name of mbls.losses.LOSSES with options, "mbls:margin=5".
        model, base_channels, levels, norm: as :func:`mbls.networks.backbones.build_model`.
        size, crop, scaling, augment: the slices, as :class:`mbls.data.acdc.SliceDataset`;
            augment adds :func:`mbls.data.acdc.augmentation`.
        patients: train, val, test as numbers (int) or fractions (float); split_seed chooses which.
        split: a file as :func:`mbls.data.acdc.read_split` reads it, instead of patients and split_seed.
        train_patients: only the first so many training patients; None takes all.
        fit: :class:`mbls.engine.fit.FitSettings`; its seed also makes the initial weights.
        surface: whether HD95 and ASD are computed.
    """

    loss: str = "mbls"
    model: str = "unet"
    base_channels: int = 32
    levels: int = 5
    norm: str | None = None
    size: int = 192
    crop: int | None = None
    scaling: str = "zscore"
    augment: bool = False
    patients: tuple[float, float, float] = (0.7, 0.1, 0.2)
    split_seed: int = 0
    split: str | None = None
    train_patients: int | None = None
    fit: FitSettings = field(default_factory=FitSettings)
    surface: bool = True

    @property
    def name(self) -> str:
        """Folder name of the run, e.g. "mbls-margin5-seed0", "ce-unet++-seed0", "ce-5patients-seed0"."""
        loss = re.sub(r"[^\w.+-]+", "-", self.loss.replace("=", ""))
        model = "" if self.model == "unet" else f"-{self.model}"
        few = "" if self.train_patients is None else f"-{self.train_patients}patients"
        return f"{loss}{model}{few}-seed{self.fit.seed}"


@dataclass(frozen=True)
class Data:
    """The three sets of an experiment; ``val`` is None where the split leaves it empty."""

    train: SliceDataset
    val: SliceDataset | None
    test: SliceDataset
    name: str
    fingerprint: str  # of the files of all patients of the split, whichever of them train
    train_patients: int


@functools.lru_cache(maxsize=2)
def _cached_data(
    root: Path, sets: tuple[tuple[str, ...], ...], size: int, crop: int | None, scaling: str, augment: bool
) -> Data:
    by_id = {patient.id: patient for patient in find_patients(root)}
    train, val, test = ([by_id[name] for name in part] for part in sets)
    options = {"size": size, "crop": crop, "scaling": scaling}
    return Data(
        train=SliceDataset(train, **options, transform=augmentation() if augment else None),
        val=SliceDataset(val, **options) if val else None,
        test=SliceDataset(test, **options),
        name=data_name(root),
        fingerprint=fingerprint(train + val + test),
        train_patients=len(train),
    )


def load_data(experiment: Experiment, root: str | Path) -> Data:
    """The slices of an experiment; read once and shared by experiments on the same patients.

    Raises:
        ValueError: as the parts do; an empty test set; more training patients than the split has.
    """
    e = experiment
    found = find_patients(root)
    split = split_patients(found, *e.patients, seed=e.split_seed) if e.split is None else read_split(e.split, found)
    if not split.test:
        raise ValueError(
            f"patients: got {e.split or e.patients}, expected a test set of at least one patient of {len(found)}"
        )
    sets = tuple(tuple(patient.id for patient in part) for part in split)
    data = _cached_data(Path(root), sets, e.size, e.crop, e.scaling, e.augment)
    if e.train_patients is None:
        return data
    if not 1 <= e.train_patients <= data.train_patients:
        raise ValueError(
            f"train_patients: got {e.train_patients}, expected 1 to the {data.train_patients} of the split"
        )
    return replace(data, train=data.train.first_patients(e.train_patients), train_patients=e.train_patients)


class Run(NamedTuple):
    """A finished experiment."""

    row: dict[str, Any]  # configuration, figures on the test patients, provenance
    model: nn.Module
    evaluation: Evaluation
    history: pd.DataFrame  # an epoch a row
    volumes: pd.DataFrame  # a test volume a row; with a validation set also scaled_*, after temperature scaling


def run_experiment(
    experiment: Experiment,
    root: str | Path,
    out: str | Path | None = None,
    fabric: Fabric | None = None,
    progress: bool = True,
) -> Run:
    """Train and judge one network.

    With a validation set, temperature scaling is fitted on it, and every calibration figure is taken again after it (``scaled_*``).
    With ``out`` the folder gets ``experiment.json``, ``last.pt``, ``best.pt``, ``history.csv`` (an epoch a row),
    ``volumes.csv`` (a test volume a row), ``histograms.csv`` (a bin a row) and ``result.json``; a run found complete there
    is not trained again, an interrupted one goes on.

    Raises:
        ValueError: as the parts do; a folder that holds the result of another experiment.
    """
    fabric = fabric or make_fabric()
    out = None if out is None else Path(out)
    started = time.perf_counter()
    origin = provenance(fabric)  # now: the checkout may be another one when the run ends
    data = load_data(experiment, root)
    name, options = parse_loss(experiment.loss)
    loss = build_loss(name, NUM_CLASSES, **options)
    torch.manual_seed(experiment.fit.seed)
    model = build_model(experiment.model, experiment.base_channels, experiment.levels, experiment.norm)
    identity = _identity(experiment, data)
    done = None if out is None else out / "result.json"
    row = None
    if out is not None:
        _refuse_another(out / "experiment.json", identity)
    if done is not None and done.is_file():
        row = json.loads(done.read_text())
        if row["experiment"] != identity:
            raise ValueError(f"{done}: has another number of epochs, {row['epochs']}; name another folder")
        load_weights(model, out / (BEST if (out / BEST).is_file() else CHECKPOINT))
        history, volumes = pd.read_csv(out / "history.csv"), pd.read_csv(out / "volumes.csv")
    else:
        if out is not None and fabric.global_rank == 0:
            write_json(identity, out / "experiment.json")
        result = fit(model, loss, data.train, data.val, experiment.fit, fabric, out, progress=progress)
        history = pd.DataFrame(result.history)
    evaluation = evaluate(model, data.test, fabric, experiment.surface, progress=progress)
    if row is None:
        volumes = pd.DataFrame(evaluation.volumes)
        scaled_figures: dict[str, float] = {}
        if data.val is not None:
            scaling = fit_temperature(model, data.val, fabric)
            scaled = evaluate(model, data.test, fabric, surface=False, scale=scaling, progress=progress)
            after = {
                name: f"scaled_{name}" for region in REGIONS.values() for name in (f"{c}{region}" for c in CALIBRATION)
            }
            volumes = volumes.join(pd.DataFrame(scaled.volumes)[list(after)].rename(columns=after))
            figures = scaled.summary()
            scaled_figures = {"temperature": scaling.temperature, **{after[name]: figures[name] for name in after}}
        row = {
            "loss": experiment.loss,
            "model": experiment.model,
            "seed": experiment.fit.seed,
            "train_patients": data.train_patients,
            "data": data.name,
            **evaluation.summary(),
            **{f"pooled_{key}": value for key, value in evaluation.pooled().items()},
            **scaled_figures,
            "epochs": experiment.fit.epochs,
            "steps": experiment.fit.epochs * -(-len(data.train) // (experiment.fit.batch_size * fabric.world_size)),
            "best_epoch": result.best_epoch,
            "train_seconds": round(float(history["seconds"].sum()), 1),
            "wall_seconds": round(time.perf_counter() - started, 1),
            "experiment": identity,
            "provenance": {**origin, "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())},
        }
        if out is not None and fabric.global_rank == 0:
            write_table(history, out / "history.csv")
            write_table(volumes, out / "volumes.csv")
            write_table(evaluation.histograms(), out / "histograms.csv")
            write_json(row, done)
    fabric.barrier()
    return Run(row, model, evaluation, history, volumes)


def compare(
    experiments: Iterable[Experiment],
    root: str | Path,
    out: str | Path,
    fabric: Fabric | None = None,
    progress: bool = True,
    shard: tuple[int, int] | None = None,
) -> pd.DataFrame:
    """Run experiments one after the other; each in its own folder under ``out``, all in ``results.csv``, ``results.json``,
    ``volumes.csv`` and ``histograms.csv`` there.

    The four files are rewritten after each run, so what is finished is never lost, and calling it again goes on where it stopped.

    Args:
        shard: (i, n) runs every n-th experiment from the i-th on, for n independent jobs that may share ``out``. They leave the
            four files alone; :func:`mbls.study.results.merge` makes them when the jobs are done.

    Raises:
        ValueError: two experiments of the same name (their folders would collide); else as :func:`run_experiment`.
    """
    experiments = list(experiments)
    names = [experiment.name for experiment in experiments]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"experiments: got {', '.join(twice)} more than once, expected distinct losses, models or seeds"
        )
    for experiment in experiments:  # a misspelt loss is told before hours of training, not after
        name, options = parse_loss(experiment.loss)
        build_loss(name, NUM_CLASSES, **options)
    fabric = fabric or make_fabric()
    out = Path(out)
    if shard is not None:
        experiments = experiments[shard[0] - 1 :: shard[1]]
    runs = []
    for experiment in experiments:
        run = run_experiment(experiment, root, out / experiment.name, fabric, progress)
        runs.append((run.row, run.evaluation.histograms(), run.volumes))
        if shard is None and fabric.global_rank == 0:
            write_tables(runs, out)
    return as_table([row for row, *_ in runs])


def parse_shard(text: str) -> tuple[int, int]:
    """The second of four jobs, "2/4", as (2, 4).

    Raises:
        ValueError: anything but i/n with 1 <= i <= n.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"shard: got {text!r}, expected i/n with 1 <= i <= n, e.g. 2/4")
    return int(match[1]), int(match[2])


def sweep(base: Experiment, losses: Iterable[str], seeds: Iterable[int] = (0,)) -> list[Experiment]:
    """The experiments of a comparison: every loss with every seed, all else as in ``base``."""
    seeds = list(seeds)
    return [replace(base, loss=loss, fit=replace(base.fit, seed=seed)) for loss in losses for seed in seeds]


def _identity(experiment: Experiment, data: Data) -> dict[str, Any]:
    """What makes a run the one it is, as JSON gives it back: the configuration and the data."""
    identity = {**asdict(experiment), "data": data.name, "data_fingerprint": data.fingerprint}
    if experiment.split is not None:  # what is in the file counts, not where it lies
        path = Path(experiment.split)
        identity["split"] = f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()[:8]}"
    return json.loads(json.dumps(identity))


def _refuse_another(path: Path, identity: dict[str, Any]) -> None:
    """Raise where a folder is noted as another experiment's; more epochs than noted are a wish to train on."""

    def comparable(experiment: dict[str, Any]) -> dict[str, Any]:
        fit_settings = {name: value for name, value in experiment["fit"].items() if name != "epochs"}
        return {**experiment, "fit": fit_settings}

    if not path.is_file():
        return
    recorded, wanted = comparable(json.loads(path.read_text())), comparable(identity)
    different = [name for name in wanted if recorded.get(name) != wanted[name]]
    if different:
        raise ValueError(f"{path}: is of another experiment ({', '.join(different)} differ); name another folder")
