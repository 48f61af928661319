"""On PYTHONPATH, Python runs this at its start: it lets torchvision load beside a CPU build of torch.

nnU-Net loads timm, and timm torchvision. The registry's torchvision is built for CUDA; beside a torch without CUDA its
operators are missing, and its import stops at the first that it asks for. None is used here.
"""

try:
    import torchvision  # noqa: F401
except ImportError:
    pass  # not installed
except RuntimeError as error:
    if "operator torchvision::nms does not exist" not in str(error):
        raise
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
