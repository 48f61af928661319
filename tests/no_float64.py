"""A device without float64, like Apple's MPS, emulated: tensors that live elsewhere (on "meta", which has no values of
its own), compute on the CPU, refuse float64 as MPS does, and do not mix with tensors of the CPU."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from mbls.losses import _has_float64

DEVICE = torch.device("meta")


class OnDevice(torch.Tensor):
    """Wraps a tensor of the CPU and computes there."""

    @staticmethod
    def __new__(cls, inner):
        if inner.dtype in (torch.float64, torch.complex128):
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )
        wrapped = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=DEVICE, requires_grad=False
        )
        wrapped.inner = inner
        return wrapped

    __torch_function__ = torch._C._disabled_torch_function_impl  # all goes through __torch_dispatch__

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def run(func, args, kwargs):
    kwargs = dict(kwargs)
    tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, torch.Tensor)]
    there = any(isinstance(one, OnDevice) for one in tensors)
    if kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]).type == DEVICE.type
        kwargs["device"] = torch.device("cpu")
    elif func is torch.ops.aten._local_scalar_dense.default:
        there = False
    elif there and func not in (torch.ops.aten.copy_.default,):
        alien = [one for one in tensors if not isinstance(one, OnDevice) and one.dim()]
        assert not alien, f"{func}: tensors of two devices"
    plain_args, plain_kwargs = tree_map_only(OnDevice, lambda one: one.inner, (args, kwargs))
    made = func(*plain_args, **plain_kwargs)
    outer = {id(one.inner): one for one in tensors if isinstance(one, OnDevice)}

    def back(one):
        if id(one) in outer:  # what an operation in place gives back
            return outer[id(one)]
        return OnDevice(one) if there else one

    return tree_map_only(torch.Tensor, back, made)


class _Mode(TorchDispatchMode):
    """For what is made on the device, or brought there, from tensors that are elsewhere."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


@contextmanager
def device_without_float64():
    """Within it, tensors that are brought to the device it gives, or made there, are such tensors."""
    _has_float64.cache_clear()
    try:
        with _Mode():
            yield DEVICE
    finally:
        _has_float64.cache_clear()
