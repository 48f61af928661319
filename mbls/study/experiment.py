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
from typing import Any, Literal, NamedTuple

import pandas as pd
import torch
from lightning_fabric import Fabric
from torch import nn

from mbls.data.dataset import Dataset, Split, read_split, repeated, split
from mbls.data.layout import read_dataset
from mbls.data.slices import Scaling, SliceDataset, augmentation, fingerprint
from mbls.engine.devices import make_fabric
from mbls.engine.fit import BEST, CHECKPOINT, Fit, FitSettings, fit, load_weights, weights_checksum
from mbls.engine.judge import Judgement, columns, judge
from mbls.engine.predict import Prediction, fit_temperature, keep, predict, read_kept, write_index
from mbls.files import read_json, write_json, write_table
from mbls.losses import AlphaSchedule, build_loss, loss_name
from mbls.networks.backbones import build_network
from mbls.networks.unet import Norm
from mbls.study.results import HISTORY, RESULT, WEIGHTS, Result, as_table, provenance, write_tables

__all__ = [
    "Data",
    "Experiment",
    "Run",
    "Weights",
    "compare",
    "judge_run",
    "load_data",
    "parse_shard",
    "run_experiment",
    "sweep",
]

#: Which weights of a run are judged: of the best validation epoch, or of the last.
Weights = Literal["best", "last"]
_EXPERIMENT = "experiment.json"
_PREDICTIONS = "predictions"


@dataclass(frozen=True)
class Experiment:
    """One training run and its judgement; the defaults are the official protocol of arXiv 2209.09641 on ACDC.

    Attributes:
        loss: a name of mbls.losses.LOSSES with options, "mbls:margin=5".
        alpha_schedule: of the weight of the loss's penalty, as :meth:`mbls.losses.AlphaSchedule.parse` reads it.
        model: as :func:`mbls.networks.backbones.build_network`; so are base_channels, levels and norm.
        size: of the slices, as :class:`mbls.data.slices.SliceDataset`; so are crop and scaling.
        augment: adds :func:`mbls.data.slices.augmentation`.
        subject: finds the subject in a case's id, as :func:`mbls.data.layout.read_dataset`.
        patients: subjects to train, to validate and to test, as numbers (int) or fractions (float).
        split_seed: chooses which.
        split: a file as :func:`mbls.data.dataset.read_split` reads it, instead of patients and split_seed.
        train_patients: only the first so many training subjects; None takes all.
        fit: :class:`mbls.engine.fit.FitSettings`; its seed also makes the initial weights.
        judged: which weights, "best" and "last", a row each; without validation there are only the last.
        surface: whether HD95 and ASD are computed.
    """

    loss: str = "mbls"
    alpha_schedule: str | None = None
    model: str = "unet"
    base_channels: int = 32
    levels: int = 5
    norm: Norm | None = None
    size: int = 192
    crop: int | None = None
    scaling: Scaling = "zscore"
    augment: bool = False
    subject: str | None = None
    patients: tuple[float, float, float] = (0.7, 0.1, 0.2)
    split_seed: int = 0
    split: str | None = None
    train_patients: int | None = None
    fit: FitSettings = field(default_factory=FitSettings)
    judged: tuple[Weights, ...] = ("best",)
    surface: bool = True

    @property
    def name(self) -> str:
        """Folder name of the run, e.g. "mbls-margin5-seed0", "ce-unet++-seed0", "ce-5patients-seed0"."""
        loss = re.sub(r"[^\w.+-]+", "-", loss_name(self.loss).replace("=", ""))
        schedule = "" if self.alpha_schedule is None else "-" + re.sub(r"[^\w.]+", "-", self.alpha_schedule)
        model = "" if self.model == "unet" else f"-{self.model}"
        few = "" if self.train_patients is None else f"-{self.train_patients}patients"
        return f"{loss}{schedule}{model}{few}-seed{self.fit.seed}"

    def check(self) -> None:
        """Raise what is wrong with loss, schedule or network, before any data is read.

        Raises:
            ValueError: as building them raises.
        """
        make_loss(self, num_classes=2)
        _check_network(self.model, self.base_channels, self.levels, self.norm)


def make_loss(experiment: Experiment, num_classes: int) -> tuple[nn.Module, AlphaSchedule | None]:
    """The loss of an experiment, and the schedule of its penalty's weight."""
    loss = build_loss(experiment.loss, num_classes)
    if experiment.alpha_schedule is None:
        return loss, None
    alpha: Any = getattr(loss, "alpha", None)
    if alpha is None:
        raise ValueError(
            f"alpha_schedule: got one for {experiment.loss!r}, expected a loss with a penalty weight alpha"
        )
    return loss, AlphaSchedule.parse(experiment.alpha_schedule, float(alpha))


@functools.cache  # a study asks for the same few networks again and again
def _check_network(model: str, base_channels: int, levels: int, norm: Norm | None) -> None:
    build_network(model, 2, base_channels=base_channels, levels=levels, norm=norm)


def _network(experiment: Experiment, num_classes: int, in_channels: int) -> nn.Module:
    return build_network(
        experiment.model,
        num_classes,
        in_channels=in_channels,
        base_channels=experiment.base_channels,
        levels=experiment.levels,
        norm=experiment.norm,
    )


@dataclass(frozen=True)
class Data:
    """The three sets of an experiment; ``val`` is None where the split leaves it empty."""

    train: SliceDataset
    val: SliceDataset | None
    test: SliceDataset
    fingerprint: str  # of all cases of the split, whichever of them train

    @property
    def name(self) -> str:
        return self.test.name

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.test.class_names


def load_data(experiment: Experiment, root: str | Path) -> Data:
    """The slices that an experiment trains on and is judged on; kept in memory for the next experiment on the same.

    Raises:
        FileNotFoundError, ValueError: as reading and splitting the data raise; an empty test set; train_patients of
            more than the split has.
    """
    e = experiment
    dataset = read_dataset(root, e.subject)
    parts = read_split(e.split, dataset) if e.split is not None else split(dataset, *e.patients, seed=e.split_seed)
    if not parts.test.cases:
        raise ValueError(f"patients: got {e.split or e.patients}, expected at least one subject to test on")
    # The root is part of the key: cases are equal by their names, wherever they lie.
    data = _cached_data(Path(root).resolve(), parts, e.size, e.crop, e.scaling, e.augment)
    if e.train_patients is None:
        return data
    if not 1 <= e.train_patients <= data.train.num_subjects:
        raise ValueError(
            f"train_patients: got {e.train_patients}, expected 1 to the {data.train.num_subjects} of the split"
        )
    return replace(data, train=data.train.first_subjects(e.train_patients))


@functools.lru_cache(maxsize=2)
def _cached_data(root: Path, parts: Split, size: int, crop: int | None, scaling: Scaling, augment: bool) -> Data:
    def slices(part: Dataset, transform: Any = None) -> SliceDataset:
        return SliceDataset(part, size, crop, scaling, transform=transform)

    train, val, test = parts
    sets = slices(train, augmentation() if augment else None), slices(val) if val.cases else None, slices(test)
    return Data(*sets, fingerprint(*(part for part in sets if part is not None)))


class Run(NamedTuple):
    """A finished experiment; with two kinds of weights judged, row and judgement are of the first kind."""

    row: dict[str, Any]  # configuration, metrics on the test subjects, provenance
    model: nn.Module
    judgement: Judgement
    history: pd.DataFrame  # an epoch a row
    rows: dict[Weights, dict[str, Any]]
    judgements: dict[Weights, Judgement]

    @property
    def cases(self) -> pd.DataFrame:
        """A test case a row; with a validation set also scaled_*, after temperature scaling."""
        return self.judgement.table()


def run_experiment(
    experiment: Experiment,
    root: str | Path,
    out: str | Path | None = None,
    fabric: Fabric | None = None,
    progress: bool = True,
    keep_predictions: bool = False,
) -> Run:
    """Train and judge one network.

    With a validation set, temperature scaling is fitted on it, and every calibration metric is taken again after it
    (``scaled_*``). With ``out`` the folder gets ``experiment.json``, ``last.pt``, ``best.pt``, ``history.csv`` (an
    epoch a row), ``result.json`` (a row for each kind of weights judged), and for each kind ``cases-KIND.csv`` (a test
    case a row) and ``bins-KIND.npz``. A run found complete there is loaded; one that was interrupted goes on.

    Args:
        experiment: what is trained, and how.
        root: the data.
        out: folder for the files; None keeps nothing on disk.
        fabric: :func:`mbls.engine.devices.make_fabric` when None.
        progress: whether bars are shown.
        keep_predictions: also keep the log-probabilities of the test and validation cases, of the best and the last
            weights, in ``out/predictions``; :func:`judge_run` judges them again without the network.

    Raises:
        ValueError: as the parts do; a folder that holds the result of another experiment; predictions to be kept
            without a folder.
    """
    experiment.check()
    if keep_predictions and out is None:
        raise ValueError("keep_predictions: got True without out, expected a folder to keep them in")
    fabric = fabric or make_fabric()
    out = None if out is None else Path(out)
    started = time.perf_counter()
    origin = provenance(fabric)  # now: the checkout may be another one when the run ends
    data = load_data(experiment, root)
    torch.manual_seed(experiment.fit.seed)
    model = _network(experiment, len(data.class_names), data.train.num_channels)
    identity = _identity(experiment, data)
    if out is not None:
        _refuse_another(out / _EXPERIMENT, identity)
        if (out / RESULT).is_file():
            return _finished(out, model, identity)
        if fabric.global_rank == 0:
            write_json(identity, out / _EXPERIMENT)
    loss, schedule = make_loss(experiment, len(data.class_names))
    result = fit(model, loss, data.train, data.val, experiment.fit, fabric, out, schedule, progress=progress)
    history = pd.DataFrame(result.history)
    configured = {
        "loss": loss_name(experiment.loss),
        "model": experiment.model,
        "seed": experiment.fit.seed,
        "train_patients": data.train.num_subjects,
        "data": data.name,
        "distance_unit": "mm" if all(volume.spacing for volume in data.test.volumes) else "voxels",
    }
    spent = {
        "epochs": experiment.fit.epochs,
        "steps": experiment.fit.epochs * -(-len(data.train) // (experiment.fit.batch_size * fabric.world_size)),
        "best_epoch": result.best_epoch,
        "train_seconds": round(sum(row["seconds"] for row in result.history), 1),
    }
    kinds = _kinds(experiment, result)
    rows, judgements = {}, {}
    for kind in _all_kinds(result) if keep_predictions else kinds:
        model.load_state_dict(_weights(result, kind))
        kept = None if out is None or not keep_predictions else out / _PREDICTIONS / kind
        metrics, judgement = _judged(model, data, experiment.surface, fabric, kept, progress)
        if kind not in kinds:  # only its predictions were asked for
            continue
        judgements[kind] = judgement
        rows[kind] = {
            **configured,
            "weights": kind,
            **metrics,
            **spent,
            "weights_checksum": weights_checksum(model),
            "wall_seconds": round(time.perf_counter() - started, 1),
            "experiment": identity,
            "provenance": {**origin, "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())},
        }
    model.load_state_dict(_weights(result, kinds[0]))
    if out is not None and fabric.global_rank == 0:
        write_table(history, out / HISTORY)
        for kind, judgement in judgements.items():
            judgement.save(out, f"-{kind}")
        write_json(list(rows.values()), out / RESULT)  # last: it says that the run is complete
    fabric.barrier()
    return Run(rows[kinds[0]], model, judgements[kinds[0]], history, rows, judgements)


def judge_run(folder: str | Path, surface: bool = True) -> dict[Weights, tuple[dict[str, float], Judgement]]:
    """All metrics of a run once more, from the predictions that it kept, without data and network.

    Args:
        folder: the run's, in which ``keep_predictions`` left its predictions.
        surface: whether HD95 and ASD are computed.

    Returns:
        Kind of weights -> metrics, as in the run's row, and the judgement that they come from.

    Raises:
        FileNotFoundError: no kept predictions there.
        ValueError: predictions that cannot be read.
    """
    place = Path(folder) / _PREDICTIONS
    kinds = [kind for kind in ("best", "last") if (place / kind).is_dir()]
    if not kinds:
        raise FileNotFoundError(f"{place}: missing, expected the predictions of a run trained with --keep-predictions")
    found = {}
    for kind in kinds:
        test = read_kept(place / kind / "test")
        val = read_kept(place / kind / "val") if (place / kind / "val").is_dir() else None
        found[kind] = _metrics(test, val, test.class_names, surface)
    return found


def _all_kinds(result: Fit) -> list[Weights]:
    return ["last"] if result.best_weights is None else ["best", "last"]


def _kinds(experiment: Experiment, result: Fit) -> list[Weights]:
    """The kinds to be judged that there are."""
    return [kind for kind in experiment.judged if kind in _all_kinds(result)] or ["last"]


def _weights(result: Fit, kind: Weights) -> dict[str, torch.Tensor]:
    weights = result.best_weights if kind == "best" else result.last_weights
    assert weights is not None  # _all_kinds names those that there are
    return weights


def _judged(
    model: nn.Module, data: Data, surface: bool, fabric: Fabric, kept: Path | None, progress: bool
) -> tuple[dict[str, float], Judgement]:
    """The metrics of a network on the test set, with its predictions kept where a folder is named."""

    def predictions(part: SliceDataset, name: str, volumes: Any) -> Iterable[Prediction]:
        made = predict(model, part, fabric, volumes)
        known = volumes is None and fabric.global_rank > 0  # all have it, and the first process writes it
        return made if kept is None or known else keep(made, kept / name)

    val = None if data.val is None else predictions(data.val, "val", None)  # every process fits the same temperature
    test = predictions(data.test, "test", data.test.volumes[fabric.global_rank :: fabric.world_size])
    found = _metrics(test, val, data.class_names, surface, fabric, progress)
    if kept is not None and fabric.global_rank == 0:
        for part, name in ((data.val, "val"), (data.test, "test")):
            if part is not None:
                write_index(kept / name, data.name, data.class_names, [volume.id for volume in part.volumes])
    return found


def _metrics(
    test: Iterable[Prediction],
    val: Iterable[Prediction] | None,
    class_names: tuple[str, ...],
    surface: bool,
    fabric: Fabric | None = None,
    progress: bool = False,
) -> tuple[dict[str, float], Judgement]:
    scaling = None if val is None else fit_temperature(val)
    judgement = judge(test, class_names, columns(surface), scaling, fabric=fabric, progress=progress)
    metrics = judgement.summary() | {f"pooled_{name}": value for name, value in judgement.pooled().items()}
    return metrics | ({} if scaling is None else {"temperature": scaling.temperature}), judgement


def _finished(out: Path, model: nn.Module, identity: dict[str, Any]) -> Run:
    """A run that is complete, as it was judged then."""
    found = Result.load(out)
    row = found.rows[0]
    if row["experiment"] != identity:
        raise ValueError(f"{out / RESULT}: has another number of epochs, {row['epochs']}; name another folder")
    load_weights(model, out / (BEST if row[WEIGHTS] == "best" else CHECKPOINT))
    rows = {row[WEIGHTS]: row for row in found.rows}
    judgements = dict(zip(rows, found.judgements, strict=True))
    return Run(row, model, found.judgements[0], found.history, rows, judgements)


def compare(
    experiments: Iterable[Experiment],
    root: str | Path,
    out: str | Path,
    fabric: Fabric | None = None,
    progress: bool = True,
    shard: tuple[int, int] | None = None,
    keep_predictions: bool = False,
) -> pd.DataFrame:
    """Run experiments one after the other; each in its own folder under ``out``, and all in the tables of
    :func:`mbls.study.results.write_tables` there.

    The tables are rewritten after each run, so what is finished is never lost, and calling it again goes on where
    it stopped.

    Args:
        experiments: to run, in this order.
        root: the data.
        out: folder for the runs and tables.
        fabric: :func:`mbls.engine.devices.make_fabric` when None.
        progress: whether bars are shown.
        shard: (i, n) runs every n-th experiment from the i-th on, for n independent jobs that may share ``out``. They
            leave the tables alone; :func:`mbls.study.results.merge` makes them when the jobs are done.
        keep_predictions: as :func:`run_experiment`.

    Raises:
        ValueError: two experiments of the same name (their folders would collide); else as :func:`run_experiment`.
    """
    experiments = list(experiments)
    twice = repeated(experiment.name for experiment in experiments)
    if twice:
        raise ValueError(
            f"experiments: got {', '.join(twice)} more than once, expected distinct losses, models or seeds; "
            f"compare other settings in another folder"
        )
    for experiment in experiments:  # a misspelt loss shows before hours of training, not after
        experiment.check()
    fabric = fabric or make_fabric()
    out = Path(out)
    if shard is not None:
        experiments = experiments[shard[0] - 1 :: shard[1]]
    finished: list[Result] = []
    for experiment in experiments:
        run = run_experiment(experiment, root, out / experiment.name, fabric, progress, keep_predictions)
        finished.append(Result(list(run.rows.values()), list(run.judgements.values()), run.history))
        if shard is None and fabric.global_rank == 0:
            write_tables(finished, out)
    return as_table([row for run in finished for row in run.rows])


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
    identity = {**asdict(experiment), "loss": loss_name(experiment.loss)}
    identity |= {"data": data.name, "data_fingerprint": data.fingerprint, "class_names": data.class_names}
    if experiment.split is not None:  # what is in the file counts, not where it lies
        path = Path(experiment.split)
        identity["split"] = f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()[:8]}"
    return json.loads(json.dumps(identity))


def _refuse_another(path: Path, identity: dict[str, Any]) -> None:
    """Raise where a folder is noted as another experiment's; more epochs than noted mean to train on."""

    def comparable(experiment: dict[str, Any]) -> dict[str, Any]:
        fit_settings = {name: value for name, value in experiment["fit"].items() if name != "epochs"}
        return {**experiment, "fit": fit_settings}

    if not path.is_file():
        return
    try:
        recorded = comparable(read_json(path))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: cannot be read as an experiment ({error!r}); name another folder") from error
    wanted = comparable(identity)
    different = [name for name in wanted if recorded.get(name) != wanted[name]]
    if different:
        raise ValueError(f"{path}: is of another experiment ({', '.join(different)} differ); name another folder")
