"""Command line: ``python -m monai_scaleequiv COMMAND``; it parses, checks and hands over to ``monai.bundle``."""

from monai_scaleequiv.cli._bundles import find_bundle, merged_record
from monai_scaleequiv.cli._main import main

__all__ = ["find_bundle", "main", "merged_record"]
