"""The U-Net: sizes, form and what bad input is told."""

import pytest
import torch
from torch import nn

from mbls.engine.devices import make_fabric, set_memory_format
from mbls.networks.unet import UNet


@pytest.mark.parametrize("norm", [None, "batch", "instance"])
@pytest.mark.parametrize(("spatial_dims", "size"), [(2, (64, 96)), (2, (75, 67)), (3, (64, 64, 65))])
def test_logits_have_the_size_of_the_image(spatial_dims, size, norm):
    model = UNet(3, spatial_dims=spatial_dims, in_channels=2, base_channels=4, norm=norm)
    assert model(torch.randn(2, 2, *size)).shape == (2, 3, *size)


def test_is_the_network_of_the_paper():
    model = UNet(4)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert [conv.out_channels for conv in convolutions[:10]] == [32, 32, 64, 64, 128, 128, 256, 256, 512, 512]
    assert len(convolutions) == 2 * 5 + 2 * 4 + 1
    assert convolutions[-1].kernel_size == (1, 1)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    # 192 / 2 / 2 / 2 / 4 = 6 at the bottom.
    sizes = []
    model.encoder[-1].register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[-2:]))
    model(torch.zeros(1, 1, 192, 192))
    assert sizes == [(6, 6)]


def test_every_parameter_is_trained():
    model = UNet(4, base_channels=4, levels=3, norm="batch")
    model(torch.randn(2, 1, 16, 16)).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.head.parameters())
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: UNet(4, spatial_dims=4), "spatial_dims: got 4"),
        (lambda: UNet(1), "out_channels: got 1"),
        (lambda: UNet(4, levels=1), "levels: got 1"),
        (lambda: UNet(4, norm="group"), "norm: got 'group'"),
        (lambda: UNet(4)(torch.zeros(1, 1, 64)), "images: got shape"),
        (lambda: UNet(4)(torch.zeros(1, 3, 64, 64)), "images: got shape"),
        (lambda: UNet(4)(torch.zeros(1, 1, 64, 16)), "images: got size"),
        (lambda: UNet(4, norm="instance")(torch.zeros(1, 1, 64, 32)), "expected at least 64"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_memory_format_keeps_the_values(spatial_dims):
    torch.manual_seed(0)
    model = UNet(4, spatial_dims=spatial_dims, base_channels=2, levels=2).eval()
    images = torch.randn(1, 1, *[8] * spatial_dims)
    before = model(images)
    set_memory_format(model, make_fabric(accelerator="cpu"))
    torch.testing.assert_close(model(images), before)
