"""Networks by name, for any number of classes and channels."""

import pytest
import torch

from mbls.networks.backbones import NETWORKS, build_network


@pytest.mark.parametrize(("name", "channels"), [("unet", 4), ("attention_unet", 4), ("unet++", 4), ("swin_unetr", 12)])
def test_networks(name, channels):
    model = build_network(name, 3, in_channels=2, base_channels=channels)
    assert model(torch.randn(1, 2, 64, 64)).shape == (1, 3, 64, 64)
    assert set(NETWORKS) == {"unet", "attention_unet", "unet++", "swin_unetr"}


@pytest.mark.parametrize("name", ["unet", "attention_unet"])
def test_networks_in_three_dimensions(name):
    model = build_network(name, 3, spatial_dims=3, base_channels=2, levels=3)
    assert model(torch.randn(1, 1, 16, 16, 16)).shape == (1, 3, 16, 16, 16)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vnet", {}, "model: got 'vnet'"),
        ("unet++", {"levels": 4}, "levels: got 4"),
        ("swin_unetr", {}, "base_channels, levels: got 32"),
        ("attention_unet", {"norm": "batch"}, "norm: got 'batch'"),
        ("unet", {"norm": "layer"}, "norm: got 'layer'"),
    ],
)
def test_what_a_network_does_not_come_in(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_network(name, 4, **options)
