"""The metrics as torchmetrics and MONAI want them, and an nnU-Net trainer: thin, each imported by its own name.

- :mod:`mbls.adapters.torchmetrics`: a ``torchmetrics.Metric``, for Lightning's ``self.log`` and ``MetricCollection``.
- :mod:`mbls.adapters.monai`: a ``CumulativeIterationMetric`` and its ignite handler, for bundles too.
- ``mbls.adapters.nnunet``: a trainer of nnU-Net version 2.

The losses need no adapter: they are modules like MONAI's and torch's own. docs/integrations.md shows each at work. The
libraries are not installed with the package; ``pip install 'mbls[peers]'`` brings them all.
"""
