"""Fit a segmentation network: the same call on a CPU, one GPU, or many processes (Lightning Fabric).

``fit`` runs in the process it is called from. Started by ``fabric run`` or ``torchrun``, every process calls it and
Fabric joins them.
"""

from __future__ import annotations

import math
import operator
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.utils.data import DistributedSampler
from tqdm.auto import tqdm

from mbls.data.acdc import SliceDataset
from mbls.engine.devices import forward_flops, make_fabric, set_memory_format, threads_for
from mbls.engine.judge import evaluate
from mbls.files import atomic_write

__all__ = ["BEST", "CHECKPOINT", "Fit", "FitSettings", "fit", "load_weights"]

#: In the output folder: the state to resume from, and the weights of the best validation epoch.
CHECKPOINT = "last.pt"
BEST = "best.pt"


@dataclass(frozen=True)
class FitSettings:
    """How to train; the defaults are the official protocol of arXiv 2209.09641 on ACDC.

    Numbers of numpy and torch become plain Python numbers.

    Args:
        epochs: passes over the training set, >= 1.
        batch_size: items a step, in each process, >= 1.
        learning_rate: of Adam in the first epochs, > 0.
        lr_step: epochs between two decays of the learning rate, >= 1.
        lr_decay: what the learning rate is multiplied by, in (0, 1].
        validate_every: epochs between validations, >= 1; the last epoch is always validated.
        seed: of the order of the items, of augmentation and of dropout, 0 <= seed < 2**32.

    Raises:
        ValueError: a setting out of range, or no number.

    Example:
        >>> import numpy as np
        >>> FitSettings(epochs=np.int64(3)).epochs
        3
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
            self._check(name, _whole, lambda value: value >= 1, "a whole number, at least 1")
        self._check("seed", _whole, lambda value: 0 <= value < 2**32, "a whole number from 0 to 2**32 - 1")
        self._check("learning_rate", _real, lambda value: 0 < value < math.inf, "a finite number > 0")
        self._check("lr_decay", _real, lambda value: 0 < value <= 1, "a number > 0, at most 1")

    def _check(self, name: str, plain: Callable[[Any], float], valid: Callable[[float], bool], expected: str) -> None:
        given = getattr(self, name)
        value = _or_none(plain, given)
        if value is None or not valid(value):
            raise ValueError(f"{name}: got {given!r}, expected {expected}")
        object.__setattr__(self, name, value)  # the dataclass is frozen


@dataclass
class Fit:
    """What ``fit`` returns: one row an epoch (loss, learning rate, alpha, validation figures, seconds) and the best epoch."""

    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int | None = None
    best_dsc: float | None = None


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
    set_memory_format(model, fabric)
    # fused: the whole update in one pass instead of a dozen small operations a weight tensor.
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, fused=True)
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
        epoch, done_batches, loss_sum, generator_state = (
            state["epoch"],
            state["batches"],
            state["loss_sum"],
            state["generator"],
        )
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
    batches = -(-len(sampler) // settings.batch_size)
    # All slices go to the device at once (ACDC at full size: 0.2 GB), so that no step waits for the host. A transform is MONAI's,
    # which runs on the host, slice by slice.
    held = fabric.to_device((train.images, train.labels)) if train.transform is None else None
    flops = forward_flops(model, (min(settings.batch_size, len(train)), *train.images.shape[1:]))
    with (
        threads_for(flops, fabric.device),
        _stop_after_step() as stop,
        tqdm(
            total=settings.epochs * batches,
            initial=epoch * batches + done_batches,
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
            for batch, (images, labels) in enumerate(_batches(train, held, sampler, settings.batch_size, fabric)):
                if batch < done_batches:  # already trained on before the interruption
                    continue
                if generator_state is not None:
                    torch.set_rng_state(generator_state)
                    generator_state = None
                optimizer.zero_grad()
                value = loss(network(images), labels)
                fabric.backward(value)
                optimizer.step()
                running += value.detach()
                bar.update()
                if _asked_to_stop(stop, fabric):
                    save(epoch, batch + 1, float(running))
                    raise KeyboardInterrupt(f"fit: stopped in epoch {epoch + 1} of {settings.epochs}")
            done_batches, loss_sum, generator_state = 0, 0.0, None
            row = {"epoch": epoch + 1, "loss": float(fabric.all_reduce(running)) / batches, "learning_rate": rate}
            if alpha is not None:
                row["alpha"] = alpha
            if val is not None and ((epoch + 1) % settings.validate_every == 0 or epoch + 1 == settings.epochs):
                figures = evaluate(network, val, fabric, surface=False, progress=False).summary()
                row |= {f"val_{name}": figures[name] for name in ("dsc", "ece", "ece_fg", "nll", "mean_distance")}
                if result.best_dsc is None or figures["dsc"] > result.best_dsc:
                    result.best_epoch, result.best_dsc = epoch + 1, figures["dsc"]
                    best_weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
                    if out is not None:
                        _save(
                            fabric, out / BEST, {"model": best_weights, "epoch": epoch + 1, "val_dsc": figures["dsc"]}
                        )
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


def _batches(
    train: SliceDataset,
    held: tuple[torch.Tensor, torch.Tensor] | None,
    order: Iterable[int],
    batch_size: int,
    fabric: Fabric,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Images and labels, batch by batch, on the network's device; from ``held``, which is there already, or by the transform."""
    for indices in torch.tensor(list(order)).split(batch_size):
        if held is not None:
            indices = fabric.to_device(indices)
            yield held[0][indices], held[1][indices].long()
        else:
            items = [train[index] for index in indices.tolist()]
            yield fabric.to_device(
                (torch.stack([image for image, _ in items]), torch.stack([label for _, label in items]))
            )


def _epoch_seed(seed: int, epoch: int, rank: int) -> int:
    return (seed * 1_000_003 + epoch * 1_009 + rank) % 2**32


def _seed(seed: int, epoch: int, fabric: Fabric) -> None:
    torch.manual_seed(_epoch_seed(seed, epoch, fabric.global_rank))


def _set_alpha(loss: nn.Module, schedule: Callable[[int], float] | None, epoch: int) -> float | None:
    if schedule is None:
        return None
    target = loss.loss if hasattr(loss, "loss") else loss  # WithDice keeps the penalty in its inner loss
    if not hasattr(target, "alpha"):
        raise ValueError(
            f"alpha_schedule: got one for {type(target).__name__}, expected a loss with a penalty weight alpha"
        )
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


def _save(fabric: Fabric, path: Path, state: dict[str, Any]) -> None:
    if fabric.global_rank == 0:
        with atomic_write(path) as part:
            torch.save(state, part)
    fabric.barrier()


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing, expected a checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a different type for each kind of damage
        raise ValueError(
            f"{path}: cannot be read as a checkpoint ({_first_line(error)}); delete it to start anew"
        ) from error
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


# Plain numbers.


def _or_none(plain: Callable[[Any], float], value: Any) -> float | None:
    try:
        return plain(value)
    except (TypeError, ValueError, RuntimeError):  # each library refuses in its own way
        return None


def _whole(value: Any) -> int:
    return int(operator.index(value))


def _real(value: Any) -> float:
    return float(+value)  # the sign refuses text, which float would read
