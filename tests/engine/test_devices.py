"""Threads by the work of the network: chosen alike every time, and put back."""

import pytest
import torch
from torch import nn

from mbls.data.slices import SliceDataset
from mbls.engine.devices import ONE_THREAD_FLOPS, forward_flops, threads_for
from mbls.engine.fit import FitSettings, fit
from mbls.engine.predict import predict
from mbls.losses import CrossEntropyLoss
from mbls.networks.unet import UNet

CPU = torch.device("cpu")


class Watching(UNet):
    """Notes the number of threads at each forward pass with data."""

    def forward(self, images):
        if images.device.type == "cpu":
            self.seen = {*getattr(self, "seen", ()), torch.get_num_threads()}
        return super().forward(images)


def test_small_work_gets_one_thread_and_the_number_is_put_back():
    before = torch.get_num_threads()
    with threads_for(ONE_THREAD_FLOPS - 1, CPU):
        assert torch.get_num_threads() == 1
    with threads_for(ONE_THREAD_FLOPS, CPU):
        assert torch.get_num_threads() == before
    with pytest.raises(KeyError), threads_for(0, CPU):
        raise KeyError
    assert torch.get_num_threads() == before


def test_work_is_counted_for_each_network_and_shape():
    convolution = nn.Conv2d(1, 4, 3, padding=1)
    assert forward_flops(convolution, (2, 1, 8, 8)) == 2 * (2 * 8 * 8) * 4 * 9
    course, paper = UNet(4, base_channels=12, levels=4, norm="batch"), UNet(4)
    assert forward_flops(course, (8, 1, 48, 48)) < ONE_THREAD_FLOPS < forward_flops(paper, (4, 1, 192, 192))
    assert all(parameter.device == CPU for parameter in course.parameters())


def test_a_network_that_asks_for_data_keeps_all_threads():
    class Reads(nn.Module):
        def forward(self, images):
            return images if float(images.sum()) > 0 else -images

    assert forward_flops(Reads(), (1, 1, 4, 4)) == float("inf")


def test_fit_and_predict_use_one_thread_for_a_small_network(phantom):
    data = SliceDataset(phantom.first(1), size=32, crop=128)
    model = Watching(4, base_channels=4, levels=3)
    before = torch.get_num_threads()
    assert before > 1
    fit(model, CrossEntropyLoss(), data, settings=FitSettings(epochs=1, batch_size=8), progress=False)
    assert (model.seen, torch.get_num_threads()) == ({1}, before)
    model.seen = set()
    for _ in predict(model, data):
        assert torch.get_num_threads() == before
    assert model.seen == {1}
