"""What the scripts of a generated algorithm run: its training, and its prediction for an ensemble."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from monai_scaleequiv.cli import merged_record
from monai_scaleequiv.data import read_record, write_record

SCORE, SCORE_FILE = "best_avg_dice_score", "models/progress.json"
# In place of a label map that is written: what an ensemble takes the mean of.
PROBABILITIES: list[dict[str, Any]] = [
    {"_target_": "EnsureTyped", "keys": "pred", "dtype": torch.float32, "device": "cpu"},
    {"_target_": "Activationsd", "keys": "pred", "softmax": True},
    {
        "_target_": "Invertd",
        "keys": "pred",
        "transform": "@preprocessing",
        "orig_keys": "image",
        "nearest_interp": False,
    },
]
HANDLERS = ("WeightsCheckpointLoader", "RequireWeightsHandler")


def run_training(config_file: str, **overrides: Any) -> None:
    """Trains a generated algorithm, and leaves its score once the training is complete.

    Args:
        config_file: its configs, with commas between, as ``BundleAlgo`` names them; all lie in one folder.
        overrides: values for ids of ``train.json``.
    """
    configs = Path(config_file.split(",")[0]).parent
    names = ["train", "multi_gpu_train"] if "LOCAL_RANK" in os.environ else ["train"]
    files = [str(configs / f"{name}.json") for name in names]
    overrides = {"bundle_root": str(configs.parent), **overrides}
    workflow = ConfigWorkflow(files, meta_file=[], workflow_type="train", **overrides)
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    evaluator, rank = (workflow.parser.get_parsed_content(id) for id in ("validate#evaluator", "rank"))
    if rank == 0:
        write_record(configs.parent / SCORE_FILE, {SCORE: float(evaluator.state.best_metric)})


class InferClass:
    """A trained algorithm, by the name that Auto3DSeg asks for.

    Args:
        config_file: the files of its folder ``configs``.
        rank: number of the GPU, where there are several.
        overrides: values for ids of ``inference.json``.

    Example::

        >>> InferClass(["seunet_0/configs/inference.json"]).infer("image.nii.gz")  # doctest: +SKIP
    """

    def __init__(self, config_file: Sequence[str], rank: int = 0, **overrides: Any) -> None:
        configs = Path(config_file[0]).parent
        self.parser = ConfigParser()
        self.parser.read_config(configs / "inference.json")
        handlers = [handler for handler in self.parser["handlers"] if handler["_target_"] in HANDLERS]
        own = {"bundle_root": str(configs.parent), "handlers": handlers, "postprocessing#transforms": PROBABILITIES}
        own |= merged_record(self.parser, read_record(configs.parent / "models" / "model.pt") or {})
        self.parser.update({**own, **({"device": f"cuda:{rank}"} if rank else {}), **overrides})

    def infer(self, image_file: Mapping[str, Any] | str) -> torch.Tensor:
        """Probabilities (K, D, H, W) of the classes on the image's own grid, from its path or ``{"image": path}``."""
        self.parser["datalist"] = [image_file]
        evaluator = self.parser.get_parsed_content("evaluator")
        evaluator.run()
        return evaluator.state.output[0]["pred"]
