"""The algorithm that Auto3DSeg generates, trains and asks for its score."""

import json
import shutil
from pathlib import Path
from typing import Any

from monai.apps.auto3dseg import BundleAlgo
from monai.bundle import ConfigParser
from monai.config import PathLike

from monai_scaleequiv.auto3dseg._plan import planned_values
from monai_scaleequiv.auto3dseg._runs import SCORE, SCORE_FILE
from monai_scaleequiv.cli import find_bundle

TEMPLATES = Path(__file__).parent / "templates"
BUNDLE = "seunet_hippocampus_segmentation"
# Where each config has the steps that bring an image to the network's grid; the last of them normalises.
STEPS = {"train": "to_working_grid", "inference": "preprocessing#transforms"}


class SEUNetAlgo(BundleAlgo):
    """:py:class:`SEUNet` as an algorithm of Auto3DSeg: the configs of this package's bundle, with values for the data.

    Voxel size, patch, normalisation, channels, classes, fold and epochs follow from the statistics of the data. For
    thick slices the network's filters and strides follow the voxels' shape. Training parameters have the names that
    they have in MONAI's algorithms, such as ``num_epochs``; all ids of the config ``train.json`` are parameters too.
    A training that was killed goes on where it was. Predictions are probabilities of the classes on the image's grid.

    Patch and batch do not follow from the GPU: ``gpu_customization`` has no effect.

    Args:
        template_path: folder with the template ``seunet``; the package's own by default.

    Example::

        >>> from monai.apps.auto3dseg import BundleGen
        >>> algos = {"seunet": {"_target_": "monai_scaleequiv.auto3dseg.SEUNetAlgo"}}
        >>> [algo.name for algo in BundleGen(algos=algos).algos]
        ['seunet']
    """

    def __init__(self, template_path: PathLike = TEMPLATES) -> None:
        super().__init__(str(template_path))

    def fill_template_config(self, data_stats_filename: str, algo_path: str, **kwargs: Any) -> dict:
        """Writes the configs.

        Args:
            data_stats_filename: the report of ``DataAnalyzer``.
            algo_path: folder of the generated algorithm.
            kwargs: ``fold``; values for ids of the configs; with ``fill_with_datastats=False`` the others are those of
                the last time.

        Returns:
            The values by config and id, of ``train.json``.
        """
        if kwargs.pop("fill_with_datastats", True):
            stats, source = (ConfigParser.load_config_file(f) for f in (data_stats_filename, self.data_list_file))
            values = planned_values(stats, source, kwargs.pop("fold", 0))
        else:
            values = self.fill_records["train.json"]
        values = {**values, **kwargs}
        self._write_configs(Path(algo_path) / "configs", values)
        return {"train.json": values}

    def _write_configs(self, folder: Path, values: dict[str, Any]) -> None:
        source = find_bundle(BUNDLE) / "configs"
        folder.mkdir(exist_ok=True)
        shutil.copy(source / "multi_gpu_train.json", folder)
        for name, steps in STEPS.items():
            parser = ConfigParser()
            parser.read_config(source / f"{name}.json")
            parser[f"{steps}#{len(parser[steps]) - 1}"] = _normalizing(values["normalization"])
            if name == "train" and values["crop_by_class"]:
                _crop_by_class(parser["train#random_transforms"])
            for id, value in values.items():
                if name == "train" or id.split("#")[0] in parser:
                    parser[id] = value
            ConfigParser.export_config_file(parser.get(), folder / f"{name}.json", indent=4)

    def get_score(self, *_: Any) -> float:
        """Mean Dice of the fold's cases, at the epoch whose weights are kept."""
        return json.loads((Path(self.output_path) / SCORE_FILE).read_text(encoding="utf-8"))[SCORE]


def _normalizing(normalization: dict[str, Any]) -> dict[str, Any]:
    # The names differ, so that other configs that take the record of a training do not take one for the other.
    target = "ScaleIntensityRanged" if "a_min" in normalization else "NormalizeIntensityd"
    return {"_target_": target, "keys": "image", **{key: f"@normalization#{key}" for key in normalization}}


def _crop_by_class(steps: list[dict[str, Any]]) -> None:
    """Crops around each class alike, and only then turns the crop: small organs are rare in large images."""
    crop, affine = (next(s for s in steps if s["_target_"] == name) for name in ("RandSpatialCropd", "RandAffined"))
    steps.remove(crop)
    by_class = {"label_key": "label", "num_classes": "@num_classes", "num_samples": 1, "warn": False}
    size = {"spatial_size": crop["roi_size"]}
    steps.insert(steps.index(affine), {"_target_": "RandCropByLabelClassesd", "keys": crop["keys"], **size, **by_class})
