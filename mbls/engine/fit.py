"""Fit a segmentation network: the same call on a CPU, one GPU, or many processes (Lightning Fabric).

``fit`` runs in the process it is called from. Started by ``fabric run`` or ``torchrun``, every process calls it and
Fabric joins them.

The module has three rooms: a run and its checkpoint (``_Run``), an epoch (``_train_epoch``) and a validation
(``_validate_epoch``). Everything random in a step follows from (seed, epoch, batch, process), so a checkpoint needs no
state of a random number generator, and nothing that happens between two steps can disturb the next one.
"""

from __future__ import annotations

import hashlib
import math
import operator
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn
from tqdm.auto import tqdm

from mbls.data.slices import SliceDataset
from mbls.engine.devices import forward_flops, make_fabric, set_memory_format, threads_for
from mbls.engine.judge import columns, judge
from mbls.engine.predict import predict
from mbls.files import atomic_write
from mbls.progress import progress_bar

__all__ = ["BEST", "CHECKPOINT", "Fit", "FitSettings", "TrainingSet", "fit", "load_weights", "weights_checksum"]

#: In the output folder: the state to resume from, and the weights of the best validation epoch.
CHECKPOINT = "last.pt"
BEST = "best.pt"

#: Metrics of every validation that the history keeps, as ``val_dsc`` and so on.
VALIDATED = ("dsc", "ece", "ece_fg", "nll", "mean_distance")


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
        full_validation_every: of the validations, those of each so many epochs keep every metric of
            :func:`mbls.engine.judge.columns`, but for the surface distances; None: none does.
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
    full_validation_every: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ["epochs", "batch_size", "lr_step", "validate_every"]
        if self.full_validation_every is not None:
            counts.append("full_validation_every")
        for name in counts:
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
    """What :func:`fit` returns.

    Attributes:
        history: a row an epoch with epoch (from 1), loss, learning_rate and seconds; alpha with a schedule; val_dsc,
            val_ece, val_ece_fg, val_nll and val_mean_distance where the epoch was validated, and ``val_`` with every
            other metric where it was a full validation.
        best_epoch: the epoch of the highest validation DSC, the first of several; None where there is none.
        best_dsc: the validation DSC of that epoch, or None.
        best_weights: the state dict of that epoch, on the CPU, or None.
        last_weights: the state dict of the last epoch, on the CPU.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int | None = None
    best_dsc: float | None = None
    best_weights: dict[str, torch.Tensor] | None = field(default=None, repr=False, compare=False)
    last_weights: dict[str, torch.Tensor] = field(default_factory=dict, repr=False, compare=False)


class TrainingSet(Protocol):
    """What :func:`fit` asks of a training set; :class:`mbls.data.slices.SliceDataset` is one.

    Attributes:
        images: (N, C, *spatial) float.
        labels: (N, *spatial) integer.
        transform: None, where an item is just its image and label; else the item is asked for one by one. MONAI's
            ``set_random_state`` is called where the transform has it.
    """

    images: torch.Tensor
    labels: torch.Tensor
    transform: Any

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[torch.Tensor, torch.Tensor]: ...


def fit(
    model: nn.Module,
    loss: nn.Module,
    train: TrainingSet,
    val: SliceDataset | None = None,
    settings: FitSettings | None = None,
    fabric: Fabric | None = None,
    out: str | Path | None = None,
    alpha_schedule: Callable[[int], float] | None = None,
    on_validation: Callable[[int, nn.Module, dict[str, float]], None] | None = None,
    progress: bool = True,
) -> Fit:
    """Train a network with Adam; it is left with the weights of the best validation epoch, or of the last without one.

    The best epoch is the one of the highest mean DSC over structures and volumes of ``val``, the first of several.
    Where the validation labels hold no structure, the DSC is NaN, and such an epoch is never the best.

    With ``out``, ``last.pt`` there is rewritten after every epoch and, on Ctrl-C or SIGTERM, after the step in
    progress; ``best.pt`` is rewritten after every best epoch. Calling ``fit`` again with the same arguments goes on
    from there; a finished run is returned at once. With more epochs it trains on; what was the last epoch before
    stays validated. On the same CPU the result is the same to the bit as without the interruption. That covers what a
    network, a loss or a transform draws from the global generators of torch, numpy and Python, and from MONAI's; a
    generator of its own is not covered. The global generators are left as they were found.

    Args:
        model: images (B, C, *spatial) float -> logits (B, K, *spatial).
        loss: (logits, labels) -> scalar, as in mbls.losses.
        train: a :class:`TrainingSet`, of any number of dimensions and channels.
        val: the set that names the best epoch; None trains without validation.
        settings: how to train.
        fabric: where to train; :func:`mbls.engine.devices.make_fabric` when None.
        out: folder for the checkpoints; None keeps nothing on disk.
        alpha_schedule: epoch (from 0) -> weight of the loss's penalty, e.g. :class:`mbls.losses.AlphaSchedule`.
        on_validation: called in every process after each validation with the epoch (from 1), the model in eval mode
            and the metrics (dsc, ece, ...). What it draws at random, or a mode that it sets, does not reach the
            training. An epoch that is interrupted before its checkpoint is written is validated again.
        progress: whether to show a bar.

    Raises:
        ValueError: an empty training set; a schedule for a loss without ``alpha``, or one that leaves the numbers >= 0;
            a loss or weights that are NaN or infinite; a checkpoint of another run, of more epochs, or one that cannot
            be read.
        KeyboardInterrupt: after Ctrl-C, once the checkpoint is written.
    """
    settings = settings or FitSettings()
    fabric = fabric or make_fabric()
    if len(train) == 0:
        raise ValueError("train: got no item, expected at least one")
    alphas = None if alpha_schedule is None else _alphas(alpha_schedule, settings.epochs)
    if alphas is not None:
        _set_alpha(loss, alphas[0])
    run = _Run.start(model, settings, fabric)
    if out is not None:
        run.load(Path(out), _identity(model, loss, train, val, settings, alphas, fabric))
    loss = fabric.to_device(loss)
    batches = _Batches(train, settings, fabric)
    flops = forward_flops(model, (min(settings.batch_size, len(train)), *train.images.shape[1:]))
    bar = progress_bar(
        total=settings.epochs * len(batches),
        initial=run.epoch * len(batches) + run.batches,
        desc="fit",
        unit="step",
        leave=False,
        disable=not progress or fabric.global_rank > 0,
    )
    with bar, threads_for(flops, fabric.device), _generators_kept(fabric.device), _stop_after_step() as stop:
        while run.epoch < settings.epochs:
            started = time.perf_counter()
            row = _train_epoch(run, loss, batches, alphas, stop, bar)
            if val is not None and _is_validated(run.epoch, settings):
                row |= _validate_epoch(run, val, on_validation)
            run.finish_epoch(row | {"seconds": time.perf_counter() - started})
            bar.set_postfix(epoch=run.epoch, loss=f"{row['loss']:.3f}", refresh=False)
            _stop_if_asked(stop, run)
    return run.finish()


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Load the weights of a ``best.pt`` or ``last.pt`` written by :func:`fit`.

    Args:
        model: the network that the weights are for.
        path: the file.

    Returns:
        The model.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that cannot be read, or weights of another network.
    """
    state = _read(Path(path))
    try:
        model.load_state_dict(state["model"])
    except (AttributeError, RuntimeError, TypeError) as error:
        raise ValueError(f"{path}: holds weights of another network ({_first_line(error)})") from error
    return model


def weights_checksum(weights: nn.Module | Mapping[str, torch.Tensor]) -> str:
    """A fingerprint of weights: equal weights have equal ones, on any device and in any memory format.

    Args:
        weights: a network, or a state dict.

    Returns:
        The first 16 hexadecimal digits of the SHA-256 of names, types, shapes and values, in the order of the names.

    Example:
        >>> weights_checksum({"bias": torch.zeros(2), "weight": torch.ones(2, 2)})
        '25fb039c73f3db7b'
    """
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        if not isinstance(value, torch.Tensor):  # what a module adds by get_extra_state
            continue
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


# The first room: a run, and the files that it is resumed from.


@dataclass
class _Run:
    """What is trained and how far it has come."""

    model: nn.Module
    network: nn.Module  # the model as Fabric runs it
    optimizer: torch.optim.Optimizer
    settings: FitSettings
    fabric: Fabric
    loss_sum: torch.Tensor  # over the batches done in this epoch, in this process
    epoch: int = 0  # epochs done
    batches: int = 0  # batches done in the epoch under way
    result: Fit = field(default_factory=Fit)
    folder: Path | None = None  # None: nothing is kept on disk
    identity: dict[str, Any] = field(default_factory=dict)  # what makes the run the one it is

    @classmethod
    def start(cls, model: nn.Module, settings: FitSettings, fabric: Fabric) -> _Run:
        set_memory_format(model, fabric)
        # fused: the whole update in one pass instead of a dozen small operations a weight tensor.
        optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, fused=True)
        network, optimizer = fabric.setup(model, optimizer)
        # float32: Apple's GPUs have no float64.
        loss_sum = torch.zeros((), dtype=torch.float32, device=fabric.device)
        return cls(model, network, optimizer, settings, fabric, loss_sum)

    def mean_loss(self) -> float:
        """Over the batches done in this epoch, in all processes.

        Raises:
            ValueError: it or a weight is NaN or infinite, so the weights are spoilt and must not be kept.
        """
        # A copy, since the reduction writes into what it is given.
        mean = float(cast(torch.Tensor, self.fabric.all_reduce(self.loss_sum.clone()))) / self.batches
        if not math.isfinite(mean):
            raise ValueError(f"loss: got {mean} in epoch {self.epoch + 1}, expected finite values; lower learning_rate")
        # The loss shows what the last step made of the weights only in the step after it.
        if not torch.stack([weight.detach().isfinite().all() for weight in self.model.parameters()]).all():
            raise ValueError(
                f"weights: got NaN or infinite ones in epoch {self.epoch + 1}, expected finite values; "
                "lower learning_rate"
            )
        return mean

    def finish_epoch(self, row: dict[str, float]) -> None:
        self.result.history.append(row)
        self.epoch += 1
        self.batches = 0
        self.loss_sum.zero_()
        self.save()

    def finish(self) -> Fit:
        """Leave the model with the best weights, or with the last where no epoch is the best."""
        self.result.last_weights = _on_cpu(self.model)
        if self.result.best_weights is not None:
            self.model.load_state_dict(self.result.best_weights)
        return self.result

    def save(self) -> None:
        """Write the checkpoint; a best epoch's weights come after it, since :meth:`load` can make them from it."""
        if self.folder is None:
            return
        loss_sums = cast(torch.Tensor, self.fabric.all_gather(self.loss_sum)).reshape(-1).tolist()
        best = self.result.best_weights
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),  # the scale of 16-mixed, else empty
            "epoch": self.epoch,
            "batches": self.batches,
            "loss_sums": loss_sums,  # one for each process
            "history": self.result.history,
            "best_epoch": self.result.best_epoch,
            "best_dsc": self.result.best_dsc,
            "best_checksum": None if best is None else weights_checksum(best),
            "run": self.identity,
        }
        _write(self.fabric, self.folder / CHECKPOINT, state)
        if self._stands_at_the_best():
            self._save_best(self.folder)

    def load(self, folder: Path, identity: dict[str, Any]) -> None:
        """Keep the run in a folder from now on, and go on from the checkpoint there, where there is one.

        Raises:
            ValueError: the checkpoint belongs to another run, has more epochs than wanted, or cannot be read.
        """
        self.folder, self.identity = folder, identity
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / CHECKPOINT
        if not path.is_file():
            return
        state = _read(path)
        with _damage_named(path):
            different = _differences(state["run"], identity)
        if different:
            raise ValueError(
                f"{path}: belongs to another run ({'; '.join(different)}); name another folder or delete it"
            )
        with _damage_named(path):
            self._restore(state)
        begun = self.epoch + (self.batches > 0)
        if self.settings.epochs < begun:
            raise ValueError(f"epochs: got {self.settings.epochs}, expected at least the {begun} begun in {path}")
        if self.result.best_epoch is not None:
            self._restore_best(folder, state.get("best_checksum"))

    def _restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.epoch, self.batches = int(state["epoch"]), int(state["batches"])
        self.loss_sum.fill_(state["loss_sums"][self.fabric.global_rank])
        history = [dict(row) for row in state["history"]]
        if len(history) != self.epoch:
            raise ValueError(f"{len(history)} epochs of history beside epoch {self.epoch}")
        best_epoch, best_dsc = state["best_epoch"], state["best_dsc"]
        if best_epoch is not None:
            best_epoch, best_dsc = operator.index(best_epoch), float(best_dsc)
        self.result = Fit(history, best_epoch, best_dsc)

    def _restore_best(self, folder: Path, checksum: str | None) -> None:
        if self._stands_at_the_best():  # a kill may have come between the two files
            self.result.best_weights = _on_cpu(self.model)
            self._save_best(folder)
            return
        weights = _read(folder / BEST)["model"]
        if weights_checksum(weights) != checksum:
            raise ValueError(
                f"{folder / BEST}: got other weights than those of epoch {self.result.best_epoch}, which {CHECKPOINT} "
                "beside it names as the best; put this run's own file back, or delete both to start anew"
            )
        self.result.best_weights = weights

    def _stands_at_the_best(self) -> bool:
        return self.batches == 0 and self.epoch == self.result.best_epoch

    def _save_best(self, folder: Path) -> None:
        best = self.result
        state = {"model": best.best_weights, "epoch": best.best_epoch, "val_dsc": best.best_dsc}
        _write(self.fabric, folder / BEST, state)


def _identity(
    model: nn.Module,
    loss: nn.Module,
    train: TrainingSet,
    val: SliceDataset | None,
    settings: FitSettings,
    alphas: list[float] | None,
    fabric: Fabric,
) -> dict[str, Any]:
    """What makes a run the one it is, by name, in plain values."""
    return {
        **asdict(settings),
        **_loss_options(loss),
        "alpha_schedule": alphas,
        "network": type(model).__name__,
        "network.layers": _layers(model),
        "train": _fingerprint(train),
        "train.transform": train.transform is not None,
        "val": None if val is None else _fingerprint(val),
        "processes": fabric.world_size,
        "precision": str(fabric.strategy.precision.precision),
    }


def _loss_options(loss: nn.Module) -> dict[str, Any]:
    """The classes of a loss and of the losses in it, their public scalars, and a checksum of all their tensors."""
    options: dict[str, Any] = {}
    for path, module in loss.named_modules(prefix="loss"):
        options[path] = type(module).__name__
        for name, value in sorted(vars(module).items()):
            if isinstance(value, np.generic) or (isinstance(value, torch.Tensor) and value.dim() == 0):
                value = value.item()
            kind = next((kind for kind in (bool, int, float, str) if isinstance(value, kind)), None)
            if kind is not None and not name.startswith("_") and name != "training":
                options[f"{path}.{name}"] = kind(value)  # an enumeration is not plain
    options["loss.tensors"] = weights_checksum({**dict(loss.named_parameters()), **dict(loss.named_buffers())})
    return options


def _layers(model: nn.Module) -> str:
    """A fingerprint of a network's layers, with their options, and of the names and shapes of its weights."""
    layers = re.sub(r" at 0x[0-9a-f]+", "", repr(model))
    tensors = [*model.named_parameters(), *model.named_buffers()]
    shapes = [(name, tuple(tensor.shape)) for name, tensor in tensors]
    return hashlib.sha256(f"{layers} {shapes}".encode()).hexdigest()[:16]


def _fingerprint(data: TrainingSet | SliceDataset) -> str:
    return weights_checksum({"images": data.images, "labels": data.labels})


def _differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """The names whose values are not the same, with both values; another number of epochs is no difference."""
    pairs = {name: (there.get(name), here.get(name)) for name in {**there, **here} if name != "epochs"}
    was, now = pairs["alpha_schedule"]
    if was and now:  # over the epochs that both have; the first that differs says enough
        by_epoch = zip(was, now, strict=False)
        differing = ((f"{a} in epoch {e}", f"{b} in epoch {e}") for e, (a, b) in enumerate(by_epoch) if a != b)
        pairs["alpha_schedule"] = next(differing, (None, None))
    return [f"{name}={was!r} there, {now!r} here" for name, (was, now) in pairs.items() if was != now]


def _on_cpu(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the weights."""
    state = model.state_dict()
    # Not all of a state dict need be tensors: a module may add what it likes.
    return {name: value.cpu().clone() if isinstance(value, torch.Tensor) else value for name, value in state.items()}


def _write(fabric: Fabric, path: Path, state: dict[str, Any]) -> None:
    """Replace a file, once what is written has been read back; else the file of before stays."""
    if fabric.global_rank == 0:
        with atomic_write(path) as part:
            try:
                torch.save({**state, "checksum": weights_checksum(state["model"])}, part)
            except RuntimeError as error:  # what torch makes of a full disk
                raise OSError(
                    f"{path}: cannot be written ({_first_line(error)}); the file of before is kept"
                ) from error
            try:
                torch.load(part, map_location="cpu", weights_only=True)
            except Exception as error:  # torch raises a different type for each kind of trouble
                raise ValueError(
                    f"{path}: cannot be read back as written ({_first_line(error)}); the file of before is kept"
                ) from error
    fabric.barrier()


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing, expected a checkpoint")
    with _damage_named(path):
        state = torch.load(path, map_location="cpu", weights_only=True)
        checksum = weights_checksum(state["model"])
    if checksum != state.get("checksum"):
        raise ValueError(
            f"{path}: got weights of checksum {checksum}, expected {state.get('checksum')} as written by fit"
        )
    return state


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Whatever a damaged file makes the code inside raise, as an error that names the file."""
    try:
        yield
    except Exception as error:  # each kind of damage has its own
        raise ValueError(
            f"{path}: cannot be read as a checkpoint ({_first_line(error)}); delete it to start anew"
        ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


# The second room: an epoch, and what is random in it.


def _train_epoch(
    run: _Run, loss: nn.Module, batches: _Batches, alphas: list[float] | None, stop: threading.Event, bar: tqdm
) -> dict[str, float]:
    """Train on the batches that are left of an epoch; returns its row of the history."""
    settings = run.settings
    rate = settings.learning_rate * settings.lr_decay ** (run.epoch // settings.lr_step)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    if alphas is not None:
        _set_alpha(loss, alphas[run.epoch])
    run.network.train()
    for images, labels in batches.of_epoch(run.epoch, run.batches):
        run.optimizer.zero_grad()
        value = loss(run.network(images), labels)
        run.fabric.backward(value)
        run.optimizer.step()
        run.loss_sum += value.detach()  # read only once an epoch, so that no step waits for the host
        run.batches += 1
        bar.update()
        _stop_if_asked(stop, run)
    _share_buffers(run)
    row = {"epoch": run.epoch + 1, "loss": run.mean_loss(), "learning_rate": rate}
    return row if alphas is None else row | {"alpha": alphas[run.epoch]}


class _Batches:
    """The batches of a training set that this process trains on, on the device of the network."""

    def __init__(self, train: TrainingSet, settings: FitSettings, fabric: Fabric) -> None:
        self.train, self.settings, self.fabric = train, settings, fabric
        self.share = -(-len(train) // fabric.world_size)
        # All items go to the device at once (ACDC at full size: 0.2 GB), so that no step waits for the host.
        # A transform is MONAI's, which runs on the host, item by item.
        self.held = fabric.to_device((train.images, train.labels)) if train.transform is None else None

    def __len__(self) -> int:
        return -(-self.share // self.settings.batch_size)

    def of_epoch(self, epoch: int, first: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Images and labels, from batch ``first`` on; the random number generators are seeded anew for each."""
        rank, seed = self.fabric.global_rank, self.settings.seed
        for number, indices in enumerate(self._order(epoch).split(self.settings.batch_size)):
            if number >= first:
                _seed_generators(_seed("step", seed, epoch, number, rank), self.train.transform)
                yield self._batch(indices)

    def _order(self, epoch: int) -> torch.Tensor:
        """The items of this process, shuffled; the first ones twice, where the processes would not get equally many."""
        generator = torch.Generator().manual_seed(_seed("order", self.settings.seed, epoch))
        shuffled = torch.randperm(len(self.train), generator=generator)
        world_size = self.fabric.world_size
        return shuffled.repeat(world_size)[: self.share * world_size][self.fabric.global_rank :: world_size]

    def _batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.held is not None:
            indices = self.fabric.to_device(indices)
            images, labels = self.held
            return images[indices], labels[indices].long()
        items = [self.train[index] for index in indices.tolist()]
        return self.fabric.to_device(
            (torch.stack([image for image, _ in items]), torch.stack([label for _, label in items]))
        )


def _seed(*parts: str | int) -> int:
    """A seed of 64 bits; other parts give another one, as far as anybody will ever see."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big")


def _seed_generators(seed: int, transform: Any) -> None:
    """Seed every generator that a network, a loss or a transform may draw from."""
    torch.manual_seed(seed)  # on all devices
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (some of MONAI's functions draw from the global generator)
    if hasattr(transform, "set_random_state"):
        transform.set_random_state(seed=seed % 2**32)


@contextmanager
def _generators_kept(device: torch.device) -> Iterator[None]:
    """Leave the global generators as they were found."""
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)  # noqa: NPY002


def _share_buffers(run: _Run) -> None:
    """Give all processes the first one's buffers (means of batch normalisation), so that all have the same network."""
    if run.fabric.world_size > 1:
        for buffer in run.model.buffers():
            torch.distributed.broadcast(buffer, src=0)


def _alphas(schedule: Callable[[int], float], epochs: int) -> list[float]:
    """The weight in each epoch; all at once, so that a bad one is told before the training and not after hours of
    it."""
    alphas = []
    for epoch in range(epochs):
        given = schedule(epoch)
        alpha = _or_none(_real, given)
        if alpha is None or not 0 <= alpha < math.inf:
            raise ValueError(f"alpha_schedule: got {given!r} in epoch {epoch}, expected a finite number >= 0")
        alphas.append(alpha)
    return alphas


def _set_alpha(loss: nn.Module, alpha: float) -> None:
    if not hasattr(loss, "alpha"):
        raise ValueError(
            f"alpha_schedule: got one for {type(loss).__name__}, expected a loss with a penalty weight alpha"
        )
    cast(Any, loss).alpha = alpha


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


def _stop_if_asked(stop: threading.Event, run: _Run) -> None:
    """Raise KeyboardInterrupt where a signal has come, once the checkpoint is written."""
    asked = stop.is_set()
    if run.fabric.world_size > 1:
        # Signals reach the processes at different moments; they have to agree on the step to stop after, or some wait
        # for ever.
        flag = torch.tensor(float(asked), device=run.fabric.device)
        asked = bool(cast(torch.Tensor, run.fabric.all_reduce(flag, reduce_op="max")) > 0)
    if not asked:
        return
    if run.batches > 0:
        run.mean_loss()  # a NaN is not worth keeping
        run.save()
    raise KeyboardInterrupt(f"fit: stopped in epoch {run.epoch + (run.batches > 0)} of {run.settings.epochs}")


# The third room: a validation.


def _is_validated(epoch: int, settings: FitSettings) -> bool:
    return (epoch + 1) % settings.validate_every == 0 or epoch + 1 == settings.epochs


def _validate_epoch(
    run: _Run, val: SliceDataset, on_validation: Callable[[int, nn.Module, dict[str, float]], None] | None
) -> dict[str, float]:
    """Judge the network, keep its weights where they are the best so far; returns the metrics of the history's row."""
    every = run.settings.full_validation_every
    full = every is not None and (run.epoch + 1) % every == 0
    metrics = _validate(run.network, val, run.fabric, columns(surface=False) if full else VALIDATED)
    result = run.result
    if metrics["dsc"] > (-math.inf if result.best_dsc is None else result.best_dsc):  # NaN never is
        result.best_epoch, result.best_dsc = run.epoch + 1, metrics["dsc"]
        result.best_weights = _on_cpu(run.model)
    if on_validation is not None:
        on_validation(run.epoch + 1, run.model, dict(metrics))
    return {f"val_{name}": value for name, value in metrics.items()}


def _validate(network: nn.Module, val: SliceDataset, fabric: Fabric, wanted: Sequence[str]) -> dict[str, float]:
    """Metrics of a network, NaN where the labels hold nothing to judge. Leaves it in eval mode."""
    predictions = predict(network, val, fabric, val.volumes[fabric.global_rank :: fabric.world_size])
    metrics = judge(predictions, val.class_names, wanted, pool=False, fabric=fabric).summary()
    return {name: metrics[name] for name in wanted}


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
