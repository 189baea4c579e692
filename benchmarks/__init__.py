"""Measurements of the package: ``python -m benchmarks`` in the repository's root, and scripts on their own."""

import os

# Before torch: threads that spin while they wait disturb others. Processes that are started inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
