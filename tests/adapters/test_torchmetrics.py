"""The torchmetrics adapter counts what CalibrationBins counts: in batches, collections, processes and Lightning.

The file is also the program that each of two processes runs.
"""

import subprocess
import sys

import pytest
import torch

from mbls.metrics import CalibrationBins, region_mask

torchmetrics = pytest.importorskip("torchmetrics", reason="torchmetrics is not installed (pip install -e '.[peers]')")
from mbls.adapters.torchmetrics import CalibrationMetric  # noqa: E402

K, IGNORED = 4, 255
FIGURES = ("ece", "cece", "ace", "mce")


def make_batches(number=4, ignored=False):
    """Images of different sizes, so that a mean over batches is not the figure of all voxels."""
    generator = torch.Generator().manual_seed(7)
    batches = []
    for index in range(number):
        logits = 2 * torch.randn(2, K, 16 + 8 * index, 16, generator=generator)
        probs = logits.softmax(1)
        truth = (0.5 * logits).softmax(1).movedim(1, -1)
        target = truth.reshape(-1, K).multinomial(1, generator=generator).view(truth.shape[:-1])
        if ignored:
            target[:, :4] = IGNORED
        batches.append((probs, target))
    return batches


def expected(batches, figure, region="all", ignore_index=None):
    bins = CalibrationBins(K, ignore_index=ignore_index)
    for probs, target in batches:
        known = target if ignore_index is None else target.masked_fill(target == ignore_index, -1)
        bins.update(probs, target, region_mask(known, region))
    return getattr(bins, figure)()


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("region", ["all", "foreground", "dilated", "boundary"])
@pytest.mark.parametrize("figure", FIGURES)
def test_several_batches_are_the_bins_of_all(figure, region, ignored):
    ignore_index = IGNORED if ignored else None
    metric = CalibrationMetric(K, figure, region, ignore_index=ignore_index)
    batches = make_batches(ignored=ignored)
    for probs, target in batches:
        metric.update(probs, target.unsqueeze(1))
    assert metric.compute().dtype == torch.float64
    assert metric.compute().item() == expected(batches, figure, region, ignore_index)


def test_ignored_voxels_are_no_boundary():
    target = torch.zeros(1, 9, 9, dtype=torch.long)
    target[:, 4] = IGNORED
    probs = torch.full((1, K, 9, 9), 1 / K)
    metric = CalibrationMetric(K, region="boundary", ignore_index=IGNORED)
    assert metric(probs, target).isnan()
    target[:, :, 6:] = 1
    assert metric(probs, target) == expected([(probs, target)], "ece", "boundary", IGNORED)


def test_a_mask_is_joined_to_the_region():
    (probs, target), *_ = make_batches()
    mask = torch.rand(target.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    metric = CalibrationMetric(K, region="foreground")
    metric.update(probs, target.unsqueeze(1), mask.unsqueeze(1))
    assert metric.compute().item() == CalibrationBins(K).update(probs, target, mask & (target > 0)).ece()


def test_rows_need_no_image():
    (probs, target), *_ = make_batches()
    rows, labels = probs.movedim(1, -1).reshape(-1, K), target.flatten()
    metric = CalibrationMetric(K, "cece")
    metric.update(rows, labels)
    assert metric.compute().item() == pytest.approx(expected([(probs, target)], "cece"), abs=1e-12)


def test_forward_gives_the_figure_of_its_batch_and_reset_forgets():
    first, second, *_ = make_batches()
    metric = CalibrationMetric(K)
    assert metric(*first).item() == expected([first], "ece")
    assert metric(*second).item() == expected([second], "ece")
    assert metric.compute().item() == pytest.approx(expected([first, second], "ece"), abs=1e-15)
    metric.reset()
    metric.update(*second)
    assert metric.compute().item() == expected([second], "ece")


def test_collection_keeps_figures_apart_and_takes_changes_of_type():
    batches = make_batches()
    options = [(figure, region) for figure in FIGURES for region in ("all", "foreground")]
    collection = torchmetrics.MetricCollection(
        {f"{figure}_{region}": CalibrationMetric(K, figure, region) for figure, region in options}
    )
    module = torch.nn.ModuleDict({"metrics": collection}).half()  # as Lightning's true precision does
    for probs, target in batches:
        module["metrics"].update(probs, target)
    assert {name: value.item() for name, value in collection.compute().items()} == {
        f"{figure}_{region}": expected(batches, figure, region) for figure, region in options
    }
    collection.reset()
    collection.update(*batches[0])
    assert collection.compute()["ece_all"].item() == expected(batches[:1], "ece")


def test_nothing_counted_is_nan():
    metric = CalibrationMetric(K, region="foreground")
    metric.update(torch.full((1, K, 3, 3), 1 / K), torch.zeros(1, 3, 3, dtype=torch.long))
    assert metric.compute().isnan()


def test_wrong_options_and_input_are_refused_by_name():
    with pytest.raises(ValueError, match="figure: got 'nll'"):
        CalibrationMetric(K, "nll")
    with pytest.raises(ValueError, match="region: got 'border'"):
        CalibrationMetric(K, region="border")
    with pytest.raises(ValueError, match="num_classes: got 1"):
        CalibrationMetric(1)
    metric = CalibrationMetric(K)
    with pytest.raises(ValueError, match="expected probabilities"):
        metric.update(torch.randn(1, K, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long))


def test_two_processes_are_one(tmp_path):
    store = tmp_path / "store"
    command = [sys.executable, __file__, str(store)]
    running = [subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True) for rank in range(2)]
    outputs = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    one = [expected(make_batches(3), figure) for figure in FIGURES]
    for output in outputs:
        assert [float(word) for word in output.split()] == pytest.approx(one, abs=1e-12)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # Lightning 2.6 with torch 2.13
def test_lightning_logs_the_figure_of_the_epoch(tmp_path, monkeypatch):
    lightning = pytest.importorskip("lightning", reason="lightning is not installed (pip install -e '.[peers]')")
    monkeypatch.chdir(tmp_path)
    batches = make_batches()

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.metric = CalibrationMetric(K, "cece")

        def validation_step(self, batch, _):
            self.metric.update(*batch)
            self.log("val_cece", self.metric, on_step=False, on_epoch=True)

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(accelerator="cpu", devices=1, enable_checkpointing=False, **quiet)
    for number in (4, 2):  # reset between the epochs
        loader = torch.utils.data.DataLoader(batches[:number], batch_size=None)
        (logged,) = trainer.validate(Module(), loader, verbose=False)
        # Lightning keeps float32.
        assert logged["val_cece"] == pytest.approx(expected(batches[:number], "cece"), abs=1e-7)


if __name__ == "__main__":
    path, rank = sys.argv[1:]
    torch.distributed.init_process_group("gloo", f"file://{path}", rank=int(rank), world_size=2)
    metrics = [CalibrationMetric(K, figure) for figure in FIGURES]
    for batch in make_batches(3)[int(rank) :: 2]:  # two batches and one
        for metric in metrics:
            metric.update(*batch)
    print(*(metric.compute().item() for metric in metrics))
    torch.distributed.destroy_process_group()
