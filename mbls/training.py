"""Fit and judge a segmentation network: the same call on a CPU, one GPU, or many processes (Lightning Fabric).

``fit`` runs in the process it is called from. Started by ``fabric run`` or ``torchrun``, every process calls it and
Fabric joins them.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import is_wrapped
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler
from tqdm.auto import tqdm

from mbls.acdc import CLASS_NAMES, SliceDataset, VolumeSlices
from mbls.constraints import logit_distances
from mbls.metrics import (
    CalibrationBins,
    adaptive_calibration_error,
    average_over_volumes,
    brier_score,
    negative_log_likelihood,
    region_mask,
    segmentation_scores,
)

__all__ = ["CHECKPOINT", "Evaluation", "Fit", "FitSettings", "evaluate", "fit", "load_weights", "make_fabric", "predict_volumes"]

#: In the output folder: the state to resume from, and the weights of the best validation epoch.
CHECKPOINT = "last.pt"
BEST = "best.pt"

#: Regions that calibration is judged over, with the ending of their columns; and the figures taken in each.
_REGIONS = {"all": "", "foreground": "_fg"}
_CALIBRATION = ("ece", "cece", "aece", "nll", "brier", "mean_distance")


@dataclass(frozen=True)
class FitSettings:
    """How to train; the defaults are the official protocol of arXiv 2209.09641 on ACDC.

    Attributes:
        epochs: passes over the training slices. batch_size: slices a step, in each process.
        learning_rate: of Adam, multiplied by lr_decay every lr_step epochs.
        validate_every: epochs between validations (the last epoch is always validated).
        seed: of the order of the slices, of augmentation and dropout.
    """

    epochs: int = 100
    batch_size: int = 4
    learning_rate: float = 1e-3
    lr_step: int = 50
    lr_decay: float = 0.1
    validate_every: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "lr_step", "validate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if not self.learning_rate > 0 or not 0 < self.lr_decay <= 1:
            raise ValueError(
                f"learning_rate, lr_decay: got {self.learning_rate}, {self.lr_decay}, expected a rate > 0 and a decay in (0, 1]"
            )


@dataclass
class Fit:
    """What ``fit`` returns: one row an epoch (loss, learning rate, alpha, validation figures, seconds) and the best epoch."""

    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int | None = None
    best_dsc: float | None = None


def make_fabric(precision: str = "32-true", accelerator: str = "auto") -> Fabric:
    """Fabric for this process: one device when started plainly, the launcher's devices under ``fabric run`` or ``torchrun``.

    Args:
        precision: "32-true", "bf16-mixed" or "16-mixed", as Fabric names them.
        accelerator: "auto", "cpu" or "cuda".
    """
    if "LT_CLI_USED" in os.environ:  # set by `fabric run`, which also sets accelerator, devices and precision
        fabric = Fabric()
    elif "LOCAL_WORLD_SIZE" in os.environ:
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // local
        fabric = Fabric(accelerator=accelerator, devices=local, num_nodes=nodes, strategy="ddp", precision=precision)
    else:
        fabric = Fabric(accelerator=accelerator, devices=1, precision=precision)
    fabric.launch()
    return fabric


def fit(
    model: nn.Module,
    loss: nn.Module,
    train: SliceDataset,
    val: SliceDataset | None = None,
    settings: FitSettings | None = None,
    fabric: Fabric | None = None,
    out: str | Path | None = None,
    alpha_schedule: Callable[[int], float] | None = None,
    progress: bool = True,
) -> Fit:
    """Train a network with Adam and leave it with the weights of the best validation epoch (or of the last, without ``val``).

    With ``out``, ``last.pt`` there is rewritten after every epoch and, on Ctrl-C or SIGTERM, after the step in progress.
    Calling ``fit`` again with the same arguments goes on from it; on the same CPU the result is the same to the bit as
    without the interruption. Seeds torch's global generator.

    Args:
        model: (B, 1, H, W) float -> logits (B, K, H, W). loss: as in mbls.losses.
        train, val: slices; the mean DSC over structures and volumes of ``val`` names the best epoch.
        settings: :class:`FitSettings`. fabric: :func:`make_fabric` when None.
        out: folder for the checkpoints; None keeps nothing on disk.
        alpha_schedule: epoch -> weight of the loss's penalty, e.g. :class:`mbls.losses.AlphaSchedule`.

    Raises:
        ValueError: no training slice; a checkpoint of other settings, or one that cannot be read; NaN logits (from the loss).
        KeyboardInterrupt: after Ctrl-C, once the checkpoint is written.
    """
    settings = settings or FitSettings()
    fabric = fabric or make_fabric()
    if len(train) == 0:
        raise ValueError("train: got no slice, expected at least one")
    out = None if out is None else Path(out)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    _seed(settings.seed, 0, fabric)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    network, optimizer = fabric.setup(model, optimizer)
    loss = fabric.to_device(loss)
    result = Fit()
    best_weights: dict[str, torch.Tensor] | None = None
    epoch, done_batches, loss_sum = 0, 0, 0.0
    generator_state = None
    if out is not None and (out / CHECKPOINT).is_file():
        state = _load(out / CHECKPOINT)
        _check_same_run(state, settings, out / CHECKPOINT)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        result = Fit(state["history"], state["best_epoch"], state["best_dsc"])
        epoch, done_batches, loss_sum, generator_state = state["epoch"], state["batches"], state["loss_sum"], state["generator"]
        if result.best_epoch is not None:
            best_weights = _load(out / BEST)["model"]

    def save(epoch: int, batches: int, loss_sum: float) -> None:
        if out is None:
            return
        _save(
            fabric,
            out / CHECKPOINT,
            {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "epoch": epoch,
                "batches": batches,
                "loss_sum": loss_sum,
                "generator": torch.get_rng_state(),
                "history": result.history,
                "best_epoch": result.best_epoch,
                "best_dsc": result.best_dsc,
                "settings": asdict(settings),
            },
        )

    sampler = DistributedSampler(train, fabric.world_size, fabric.global_rank, shuffle=True, seed=settings.seed)
    loader = DataLoader(train, settings.batch_size, sampler=sampler)
    total = settings.epochs * len(loader)
    with (
        _stop_after_step() as stop,
        tqdm(
            total=total,
            initial=epoch * len(loader) + done_batches,
            desc="fit",
            unit="step",
            leave=False,
            disable=not progress or fabric.global_rank > 0,
        ) as bar,
    ):
        while epoch < settings.epochs:
            started = time.perf_counter()
            # Everything random in an epoch follows from (seed, epoch, rank), so that a checkpoint between epochs needs no more.
            _seed(settings.seed, epoch, fabric)
            sampler.set_epoch(epoch)
            if hasattr(train.transform, "set_random_state"):
                train.transform.set_random_state(seed=_epoch_seed(settings.seed, epoch, fabric.global_rank))
            rate = settings.learning_rate * settings.lr_decay ** (epoch // settings.lr_step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            alpha = _set_alpha(loss, alpha_schedule, epoch)
            network.train()
            # float32: Apple's GPUs have no float64, and read only once an epoch, so that no step waits for the host.
            running = torch.tensor(loss_sum, dtype=torch.float32, device=fabric.device)
            for batch, (images, labels) in enumerate(loader):
                if batch < done_batches:  # already trained on before the interruption
                    continue
                if generator_state is not None:
                    torch.set_rng_state(generator_state)
                    generator_state = None
                optimizer.zero_grad()
                value = loss(network(fabric.to_device(images)), fabric.to_device(labels))
                fabric.backward(value)
                optimizer.step()
                running += value.detach()
                bar.update()
                if _asked_to_stop(stop, fabric):
                    save(epoch, batch + 1, float(running))
                    raise KeyboardInterrupt(f"fit: stopped in epoch {epoch + 1} of {settings.epochs}")
            done_batches, loss_sum, generator_state = 0, 0.0, None
            row = {"epoch": epoch + 1, "loss": float(fabric.all_reduce(running)) / len(loader), "learning_rate": rate}
            if alpha is not None:
                row["alpha"] = alpha
            if val is not None and ((epoch + 1) % settings.validate_every == 0 or epoch + 1 == settings.epochs):
                figures = evaluate(network, val, fabric, surface=False, progress=False).summary()
                row |= {f"val_{name}": figures[name] for name in ("dsc", "ece", "ece_fg", "nll", "mean_distance")}
                if result.best_dsc is None or figures["dsc"] > result.best_dsc:
                    result.best_epoch, result.best_dsc = epoch + 1, figures["dsc"]
                    best_weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
                    if out is not None:
                        _save(fabric, out / BEST, {"model": best_weights, "epoch": epoch + 1, "val_dsc": figures["dsc"]})
            row["seconds"] = time.perf_counter() - started
            result.history.append(row)
            bar.set_postfix(epoch=epoch + 1, loss=f"{row['loss']:.3f}", refresh=False)
            epoch += 1
            save(epoch, 0, 0.0)
    if best_weights is not None:
        model.load_state_dict(best_weights)
    return result


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Load the weights of a ``best.pt`` or ``last.pt`` written by :func:`fit`. Returns the model.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that cannot be read, or weights of another network.
    """
    state = _load(Path(path))
    try:
        model.load_state_dict(state["model"])
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{path}: holds weights of another network ({_first_line(error)})") from error
    return model


@dataclass
class Evaluation:
    """Figures of a network on some volumes.

    Attributes:
        volumes: one row a volume; see :func:`evaluate`.
        bins: pooled over all voxels of a region, "all" and "foreground".
    """

    volumes: list[dict[str, Any]]
    bins: dict[str, CalibrationBins]

    def summary(self) -> dict[str, float]:
        """Means over volumes, as the official evaluation takes them: calibration weighted by the voxels counted, DSC unweighted.

        ``hd95`` and ``asd`` are means over the structures found; ``missed`` counts the structures in the labels that were not, or
        the other way round.
        """
        figures: dict[str, float] = {}
        for score in ("dsc", "hd95", "asd"):
            values = np.array(
                [[row[f"{score}_{name}"] for name in CLASS_NAMES[1:]] for row in self.volumes if f"{score}_RV" in row]
            )
            if values.size:
                found = values[np.isfinite(values)]
                figures[score] = float(found.mean()) if found.size else float("nan")
                if score == "hd95":
                    figures["missed"] = int(np.isinf(values).sum())
        for region, suffix in _REGIONS.items():
            weights = [row[f"voxels{suffix}"] for row in self.volumes]
            if sum(weights) == 0:
                raise ValueError(f"volumes: got no {region} voxel in {len(self.volumes)} volumes, expected some")
            for score in _CALIBRATION:
                name = f"{score}{suffix}"
                figures[name] = average_over_volumes([row[name] for row in self.volumes], weights)
        return figures

    def pooled(self) -> dict[str, float]:
        """ECE, CECE, ACE and MCE over all voxels of a region at once, as if they were one volume."""
        figures = {}
        for region, suffix in _REGIONS.items():
            bins = self.bins[region]
            figures |= {f"{name}{suffix}": getattr(bins, name)() for name in ("ece", "cece", "ace", "mce")}
        return figures


def evaluate(
    model: nn.Module,
    dataset: SliceDataset,
    fabric: Fabric | None = None,
    surface: bool = True,
    scale: Callable[[torch.Tensor], torch.Tensor] | None = None,
    progress: bool = True,
) -> Evaluation:
    """Segment every volume and judge overlap and calibration; each process takes its share, all get all rows.

    Args:
        surface: False leaves out HD95 and ASD. Distances are in mm where the files know their spacing, else in voxels.
        scale: applied to the logits first, e.g. a fitted :class:`mbls.posthoc.TemperatureScaling`.

    Returns:
        An :class:`Evaluation`; its rows hold patient, group, phase, voxels, voxels_fg, dsc/hd95/asd of RV, MYO and LV, and
        ece, cece, aece, nll, brier, mean_distance over all voxels and (``_fg``) over those whose label is a structure.
    """
    fabric = fabric or make_fabric()
    share = dataset.volumes[fabric.global_rank :: fabric.world_size]
    rows = []
    bins = {region: CalibrationBins(len(CLASS_NAMES)) for region in _REGIONS}
    volumes = predict_volumes(model, dataset, fabric, share)
    for volume, logits, labels in tqdm(
        volumes, total=len(share), desc="evaluate", unit="volume", leave=False, disable=not progress
    ):
        logits = logits if scale is None else scale(logits)
        probs = logits.softmax(1)
        row: dict[str, Any] = {"patient": volume.patient, "group": volume.group, "phase": volume.phase}
        scores = segmentation_scores(logits.argmax(1), labels, len(CLASS_NAMES), volume.spacing, surface)
        for score, values in scores.items():
            row |= {f"{score}_{name}": value for name, value in zip(CLASS_NAMES[1:], values, strict=True)}
        distances = logit_distances(logits).mean(1)
        for region, suffix in _REGIONS.items():
            mask = region_mask(labels, region)
            row[f"voxels{suffix}"] = int(mask.sum())
            if not mask.any():
                row |= {f"{name}{suffix}": float("nan") for name in _CALIBRATION}
                continue
            volume_bins = CalibrationBins(len(CLASS_NAMES)).update(probs, labels, mask)
            bins[region].merge(volume_bins)
            row |= {
                f"ece{suffix}": volume_bins.ece(),
                f"cece{suffix}": volume_bins.cece(),
                f"aece{suffix}": adaptive_calibration_error(probs, labels, mask=mask),
                f"nll{suffix}": negative_log_likelihood(probs, labels, mask),
                f"brier{suffix}": brier_score(probs, labels, mask),
                f"mean_distance{suffix}": float(distances[mask].double().mean()),
            }
        rows.append(row)
    if fabric.world_size > 1:
        rows, bins = _gathered(rows, bins, fabric.world_size)
        order = {(volume.patient, volume.phase): place for place, volume in enumerate(dataset.volumes)}
        rows.sort(key=lambda row: order[row["patient"], row["phase"]])
    return Evaluation(rows, bins)


def predict_volumes(
    model: nn.Module, dataset: SliceDataset, fabric: Fabric | None = None, volumes: list[VolumeSlices] | None = None
) -> Iterator[tuple[VolumeSlices, torch.Tensor, torch.Tensor]]:
    """Each volume with its logits (N, K, H, W) float32 and labels (N, H, W) int64, on the CPU; the model is left in eval mode."""
    fabric = fabric or make_fabric()
    network = model if is_wrapped(model) else fabric.setup_module(model)
    network.eval()
    for volume in dataset.volumes if volumes is None else volumes:
        with torch.inference_mode():
            logits = network(fabric.to_device(dataset.images[volume.start : volume.stop])).float().cpu()
        yield volume, logits, dataset.labels[volume.start : volume.stop].long()


def _gathered(
    rows: list[dict[str, Any]], bins: dict[str, CalibrationBins], world_size: int
) -> tuple[list[dict[str, Any]], dict[str, CalibrationBins]]:
    parts: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(parts, (rows, bins))
    merged = {region: CalibrationBins(len(CLASS_NAMES)) for region in bins}
    for _, part in parts:
        for region in merged:
            merged[region].merge(part[region])
    return [row for part, _ in parts for row in part], merged


def _epoch_seed(seed: int, epoch: int, rank: int) -> int:
    return (seed * 1_000_003 + epoch * 1_009 + rank) % 2**32


def _seed(seed: int, epoch: int, fabric: Fabric) -> None:
    torch.manual_seed(_epoch_seed(seed, epoch, fabric.global_rank))


def _set_alpha(loss: nn.Module, schedule: Callable[[int], float] | None, epoch: int) -> float | None:
    if schedule is None:
        return None
    target = loss.loss if hasattr(loss, "loss") else loss  # WithDice keeps the penalty in its inner loss
    if not hasattr(target, "alpha"):
        raise ValueError(f"alpha_schedule: got one for {type(target).__name__}, expected a loss with a penalty weight alpha")
    target.alpha = schedule(epoch)
    return target.alpha


@contextmanager
def _stop_after_step() -> Iterator[threading.Event]:
    """Turn Ctrl-C and SIGTERM into a flag, so that a step is never cut in two; a second Ctrl-C interrupts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield stop
        return

    def ask(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _asked_to_stop(stop: threading.Event, fabric: Fabric) -> bool:
    if fabric.world_size == 1:
        return stop.is_set()
    # Signals reach the processes at different moments; they have to agree on the step to stop after, or some wait for ever.
    asked = torch.tensor(float(stop.is_set()), device=fabric.device)
    return bool(fabric.all_reduce(asked, reduce_op="max") > 0)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary name to write to, renamed at the end: a reader sees the old file or the new one, never half of one."""
    part = path.with_name(f".{path.name}.part")
    yield part
    os.replace(part, path)


def _save(fabric: Fabric, path: Path, state: dict[str, Any]) -> None:
    if fabric.global_rank == 0:
        with written_whole(path) as part:
            torch.save(state, part)
    fabric.barrier()


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing, expected a checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a different type for each kind of damage
        raise ValueError(f"{path}: cannot be read as a checkpoint ({_first_line(error)}); delete it to start anew") from error
    if not isinstance(state, dict) or "model" not in state:
        raise ValueError(f"{path}: got no model weights in it, expected a checkpoint written by fit")
    return state


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _check_same_run(state: dict[str, Any], settings: FitSettings, path: Path) -> None:
    # More epochs than before is a wish to train on, anything else is another run.
    wanted = asdict(settings)
    different = [
        f"{name}={state['settings'][name]!r} there, {wanted[name]!r} here"
        for name in wanted
        if name != "epochs" and state["settings"].get(name) != wanted[name]
    ]
    if different:
        raise ValueError(f"{path}: belongs to another run ({'; '.join(different)}); name another folder or delete it")
