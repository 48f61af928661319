"""What has to be the same on an NVIDIA GPU as on the CPU, by hand: ``pytest tests/test_cuda.py``."""

from dataclasses import replace

import pytest
import torch

from mbls.data.layout import read_dataset
from mbls.data.slices import SliceDataset
from mbls.engine.devices import make_fabric
from mbls.engine.fit import FitSettings, fit
from mbls.engine.judge import judge
from mbls.engine.predict import predict
from mbls.losses import LOSSES, build_loss
from mbls.metrics import CalibrationBins, adaptive_calibration_error, brier_score, negative_log_likelihood, region_mask
from mbls.networks.unet import UNet
from mbls.posthoc import TemperatureScaling

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
K = 4


def batch(shape: tuple[int, ...] = (2, K, 40, 48)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(K, (shape[0], *shape[2:]), generator=generator)
    return torch.randn(shape, generator=generator) * 4, labels


def test_cuda_is_chosen_where_it_is():
    assert make_fabric().device.type == "cuda"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_are_those_of_the_cpu(name, dtype):
    logits, labels = batch()
    found = {}
    for device in ("cpu", "cuda"):
        x = logits.clone().to(device, dtype).requires_grad_()
        value = build_loss(name, K).to(device)(x, labels.to(device))
        value.backward()
        found[device] = value.detach().cpu(), x.grad.cpu()
    # MONAI's NACL counts its neighbours in float32.
    exact = 1e-5 if dtype == torch.float32 else 1e-6 if name == "nacl" else 1e-10
    torch.testing.assert_close(found["cuda"][0], found["cpu"][0], rtol=exact, atol=exact)
    torch.testing.assert_close(found["cuda"][1], found["cpu"][1], rtol=100 * exact, atol=exact / logits[:, 0].numel())


def test_a_half_precision_loss_is_finite_and_near():
    logits, labels = batch()
    exact = build_loss("mbls:margin=5", K)(logits, labels).item()
    for dtype in (torch.float16, torch.bfloat16):
        x = logits.to("cuda", dtype).detach().requires_grad_()
        value = build_loss("mbls:margin=5", K)(x, labels.cuda())
        value.backward()
        assert x.grad.isfinite().all()
        assert value.item() == pytest.approx(exact, rel=0.02)


def test_bins_and_scores_are_those_of_the_cpu():
    logits, labels = batch()
    probs = logits.softmax(1)
    here, there = CalibrationBins(K).update(probs, labels), CalibrationBins(K).update(probs.cuda(), labels.cuda())
    assert there.ece() == pytest.approx(here.ece(), rel=1e-9)
    assert there.ace() == pytest.approx(here.ace(), rel=1e-9)
    mask = region_mask(labels, "boundary")
    assert torch.equal(region_mask(labels.cuda(), "boundary").cpu(), mask)
    for score in (adaptive_calibration_error, brier_score, negative_log_likelihood):
        wanted = score(probs, labels, mask=mask)
        assert score(probs.cuda(), labels.cuda(), mask=mask.cuda()) == pytest.approx(wanted, rel=1e-6)


def test_temperature_is_that_of_the_cpu():
    logits, labels = batch()
    wanted = TemperatureScaling().fit(logits, labels).temperature
    assert TemperatureScaling().fit(logits.cuda(), labels.cuda()).temperature == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_training_resumes_and_is_judged_on_the_device(phantom_root, tmp_path, precision):
    data = SliceDataset(read_dataset(phantom_root), size=48)

    def trained(epochs, out):
        torch.manual_seed(0)
        fabric = make_fabric(precision)
        model = UNet(len(data.class_names), base_channels=8, levels=3, norm="batch")
        return model, fit(model, build_loss("mbls:margin=5", K), data, data, FitSettings(epochs), fabric, out), fabric

    trained(1, tmp_path)
    model, result, fabric = trained(3, tmp_path)
    assert [row["epoch"] for row in result.history] == [1, 2, 3]
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    there = judge(predict(model, data, fabric), data.class_names, fabric=fabric).summary()
    made = [replace(p, logits=p.logits.cpu(), labels=p.labels.cpu()) for p in predict(model, data, fabric)]
    here = judge(made, data.class_names, fabric=make_fabric(accelerator="cpu")).summary()
    assert there == pytest.approx(here, rel=1e-4, abs=1e-6, nan_ok=True)
