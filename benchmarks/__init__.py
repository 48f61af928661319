"""How fast mbls is beside its peers: ``make bench``, or ``python -m benchmarks``."""
