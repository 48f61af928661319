"""Data sets that describe themselves, in the layouts of ACDC, nnU-Net and MSD; their splits and slices; the phantom."""

from mbls.data.dataset import Case, Dataset, Split, Volume, read_split, split
from mbls.data.home import data_home, find_data, recorded
from mbls.data.layout import check_dataset, read_dataset
from mbls.data.phantom import make_phantom
from mbls.data.slices import SliceDataset, augmentation

__all__ = [
    "Case",
    "Dataset",
    "SliceDataset",
    "Split",
    "Volume",
    "augmentation",
    "check_dataset",
    "data_home",
    "find_data",
    "make_phantom",
    "read_dataset",
    "read_split",
    "recorded",
    "split",
]
