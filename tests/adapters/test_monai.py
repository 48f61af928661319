"""The MONAI adapter: buffers and reductions, ignite's evaluator, a bundle's YAML, two processes.

The file is also the program that each of two processes runs.
"""

import subprocess
import sys
import textwrap

import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.networks.utils import one_hot

from mbls.adapters.monai import CalibrationHandler, CalibrationMetric
from mbls.losses import MbLSLoss
from mbls.metrics import CalibrationBins

K, IGNORED = 4, 255
FIGURES = ("ece", "cece", "ace", "mce")


def make_images(number=5, seed=3):
    """Probabilities (K, 20, 24) and labels (1, 20, 24) of some images."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(number, K, 20, 24, generator=generator)
    target = torch.randint(0, K, (number, 1, 20, 24), generator=generator)
    return logits.softmax(1), target


def of_each(figure, probs, target, ignore_index=None):
    return [
        getattr(CalibrationBins(K, ignore_index=ignore_index).update(*image), figure)()
        for image in zip(probs.split(1), target.split(1), strict=True)
    ]


@pytest.mark.parametrize("figure", FIGURES)
def test_reductions(figure):
    probs, target = make_images()
    metric = CalibrationMetric(K, figure)
    metric(probs[:3], target[:3])
    metric(y_pred=probs[3:], y=target[3:])
    each = of_each(figure, probs, target)
    assert metric.aggregate().item() == pytest.approx(sum(each) / len(each), abs=1e-15)
    assert metric.aggregate("none").flatten().tolist() == each
    assert torch.equal(metric.get_buffer(), metric.aggregate("none"))
    together = getattr(CalibrationBins(K).update(probs, target), figure)()
    assert metric.aggregate("pooled").item() == pytest.approx(together, abs=1e-15)
    assert CalibrationMetric(K, figure).reduction == "mean"


def test_several_epochs():
    metric = CalibrationMetric(K)
    for seed in range(3):
        probs, target = make_images(seed=seed)
        metric(probs, target)
        assert metric.aggregate("none").flatten().tolist() == of_each("ece", probs, target)
        metric.reset()
    with pytest.raises(ValueError, match="no image"):
        metric.aggregate()


def test_labels_one_hot_maps_lists_and_metatensors_are_the_same():
    probs, target = make_images()
    maps = one_hot(target, K)
    forms = [
        (probs, target),
        (probs, target.squeeze(1).float()),
        (probs, maps),
        (list(probs), list(target)),
        (list(probs), list(maps)),
        (MetaTensor(probs), MetaTensor(target.float())),
        ([MetaTensor(image) for image in probs], [MetaTensor(image) for image in maps]),
    ]
    for region in ("all", "boundary"):
        tables = [torch.as_tensor(CalibrationMetric(K, region=region)(*form)) for form in forms]
        assert all(torch.equal(table, tables[0]) for table in tables)


def test_ignored_voxels_masks_and_images_without_a_counted_voxel():
    probs, target = make_images(3)
    target[:, :, :5] = IGNORED
    target[1] = IGNORED
    metric = CalibrationMetric(K, ignore_index=IGNORED)
    metric(probs, target)
    first, third = of_each("ece", probs[::2], target[::2], IGNORED)
    assert metric.aggregate().item() == pytest.approx((first + third) / 2, abs=1e-15)
    assert metric.get_buffer().isnan().flatten().tolist() == [False, True, False]
    masked = CalibrationMetric(K)
    masked(probs, target.where(target != IGNORED, 0), mask=target != IGNORED)
    assert torch.equal(metric.get_buffer().nan_to_num(), masked.get_buffer().nan_to_num())
    alone = CalibrationMetric(K, ignore_index=IGNORED)
    alone(probs[1:2], target[1:2])
    assert alone.aggregate().isnan()
    assert alone.aggregate("pooled").isnan()


def test_wrong_options_and_input_are_refused_by_name():
    probs, target = make_images(1)
    with pytest.raises(ValueError, match="reduction: got 'mean_batch'"):
        CalibrationMetric(K, reduction="mean_batch")
    with pytest.raises(ValueError, match="figure: got 'nll'"):
        CalibrationMetric(K, "nll")
    maps = one_hot(target, K)
    maps[:, :, 0] = 0
    with pytest.raises(ValueError, match="y: got one-hot"):
        CalibrationMetric(K)(probs, maps)
    with pytest.raises(ValueError, match="mask: got 2 images, expected 1"):
        CalibrationMetric(K)(list(probs), list(target), mask=torch.ones(2, 20, 24, dtype=torch.bool))
    with pytest.raises(ValueError, match="y: got None"):
        CalibrationMetric(K)(probs)
    with pytest.raises(ValueError, match="expected probabilities"):
        CalibrationMetric(K)(probs.log(), target)


def test_two_processes_are_one(tmp_path):
    command = [sys.executable, "-W", "ignore", __file__, str(tmp_path / "store")]
    running = [subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True) for rank in range(2)]
    outputs = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    metric = CalibrationMetric(K)
    metric(*make_images())
    for output in outputs:
        one = [metric.aggregate("mean").item(), metric.aggregate("pooled").item()]
        assert [float(word) for word in output.split()] == pytest.approx(one, abs=1e-12)


BUNDLE = """
num_classes: 4
loss:
  _target_: mbls.losses.MbLSLoss
  margin: 5.0
metric:
  _target_: mbls.adapters.monai.CalibrationMetric
  num_classes: "@num_classes"
  figure: cece
  region: foreground
handler:
  _target_: mbls.adapters.monai.CalibrationHandler
  num_classes: "@num_classes"
  reduction: pooled
  output_transform: "$monai.handlers.from_engine(['pred', 'label'])"
"""


def parse(tmp_path):
    path = tmp_path / "evaluate.yaml"
    path.write_text(textwrap.dedent(BUNDLE))
    parser = ConfigParser(globals={"monai": "monai"})
    parser.read_config(path)
    return parser


def test_a_bundles_yaml(tmp_path):
    parser = parse(tmp_path)
    loss, metric = parser.get_parsed_content("loss"), parser.get_parsed_content("metric")
    assert isinstance(loss, MbLSLoss)
    assert loss.margin == 5.0
    probs, target = make_images()
    metric(probs, target)
    bins = [
        CalibrationBins(K).update(*image, image[1] > 0) for image in zip(probs.split(1), target.split(1), strict=True)
    ]
    assert metric.aggregate().item() == pytest.approx(sum(one.cece() for one in bins) / len(bins), abs=1e-15)


@pytest.mark.parametrize("made_by", ["code", "bundle"])
def test_an_ignite_evaluator(tmp_path, made_by):
    engine = pytest.importorskip("ignite.engine", reason="pytorch-ignite is not installed (pip install -e '.[peers]')")
    from monai.handlers import from_engine

    if made_by == "code":
        handler = CalibrationHandler(K, reduction="pooled", output_transform=from_engine(["pred", "label"]))
    else:
        handler = parse(tmp_path).get_parsed_content("handler")
    evaluator = engine.Engine(lambda engine, batch: batch)
    handler.attach(evaluator, "val_ece")
    for seed in (0, 1):  # every run starts anew
        probs, target = make_images(seed=seed)
        batches = [{"pred": probs[:3], "label": target[:3]}, {"pred": probs[3:], "label": target[3:]}]
        metrics = evaluator.run(batches).metrics
        assert metrics["val_ece"] == pytest.approx(CalibrationBins(K).update(probs, target).ece(), abs=1e-15)
        details = evaluator.state.metric_details["val_ece"]
        assert details.flatten().tolist() == of_each("ece", probs, target)


def test_without_ignite_the_handler_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ignite", None)
    with pytest.raises(ImportError, match=r"needs pytorch-ignite: pip install 'mbls\[peers\]'"):
        CalibrationHandler(K)


if __name__ == "__main__":
    path, rank = sys.argv[1:]
    torch.distributed.init_process_group("gloo", f"file://{path}", rank=int(rank), world_size=2)
    metric, (probs, target) = CalibrationMetric(K), make_images()
    mine = slice(0, 3) if rank == "0" else slice(3, 5)
    metric(probs[mine], target[mine])
    print(metric.aggregate("mean").item(), metric.aggregate("pooled").item())
    torch.distributed.destroy_process_group()
