"""Where the tests find shared data, and small data sets made on the spot."""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
BUNDLES = ROOT / "bundles"


def shared(*parts: str) -> Path:
    """A path of the shared data, or a skip with the reason."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {'/'.join(parts)} in a folder 'shared' beside the checkout")
    return path


def rule_weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The parameter of that name: reference outputs are stored, their weights follow from this rule."""
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) > 1:
        return torch.from_numpy(values / np.sqrt(np.prod(shape[1:])))
    return torch.from_numpy(0.1 * values + (1.0 if name.endswith("norm.weight") else 0.0))


def load_reference(path: Path) -> tuple[dict, np.ndarray, torch.Tensor]:
    """Configuration, output and input of one stored reference."""
    stored = np.load(path)
    meta = json.loads(str(stored["meta"]))
    output = stored["output"] if "output" in stored else stored["basis"]
    x = None
    if "input_seed" in meta:
        x = torch.from_numpy(np.random.default_rng(meta["input_seed"]).standard_normal(meta["input_shape"]))
    return meta, output, x


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def float64():
    """Default dtype of the test is float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def without_tf32():
    """On a GPU single precision is what it says, for this test: by default cuDNN rounds inputs to ten bits."""
    places = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [place.allow_tf32 for place in places]  # which monkeypatch cannot set
    for place in places:
        place.allow_tf32 = False
    yield
    for place, value in zip(places, before, strict=True):
        place.allow_tf32 = value


# Bundles, trained once for all tests. What imports MONAI stands in the fixtures, so that other tests start faster.


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory):
    """Five made-up cases."""
    from monai_scaleequiv.data import make_phantom_dataset
    from tests.bundle_runs import SIZE

    return make_phantom_dataset(tmp_path_factory.mktemp("phantoms"), cases=5, size=SIZE).parent


@pytest.fixture(scope="session", params=["seunet_hippocampus_segmentation"])
def bundle(request, tmp_path_factory):
    """A copy of one bundle, which stands for all: they differ in their networks alone, as a test holds."""
    return Path(shutil.copytree(BUNDLES / request.param, tmp_path_factory.mktemp("bundles") / request.param))


@pytest.fixture(scope="session")
def trained(bundle, phantoms, tmp_path_factory):
    """Output of two epochs with a small network."""
    from tests.bundle_runs import train

    return train(bundle, phantoms, tmp_path_factory.mktemp("trained"))
