"""Measurements side by side with other software, run by ``python -m benchmarks``; no tests."""

import os

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

# Read by the libraries when they are first imported, in this process and those that it starts.
for _pool in ("OMP", "MKL", "NUMBA", "RAYON", "LK", "IRSPACK"):
    _name = f"{_pool}_NUM_THREADS" + "_DEFAULT" * (_pool == "IRSPACK")
    os.environ.setdefault(_name, str(CORES))

ALL = ["als", "poisson", "evaluation", "tag_network", "vq", "paper_shape", "growth", "preparation"]
