"""The networks of the comparison, for any number of classes and channels."""

from mbls.networks.backbones import NETWORKS, build_network
from mbls.networks.unet import UNet

__all__ = ["NETWORKS", "UNet", "build_network"]
