"""Made-up cases in the layouts of the papers' own tasks: BraTS and FLARE as downloaded."""

import nibabel as nib
import numpy as np

from monai_scaleequiv.data import make_phantom_dataset
from tests.bundle_runs import SIZE

MODALITIES = {"flair": "t2f", "t1": "t1n", "t1ce": "t1c", "t2": "t2w"}


def _phantoms(folder, cases):
    root = make_phantom_dataset(folder, cases=cases, size=SIZE).parent
    for file in sorted((root / "imagesTr").iterdir()):
        yield file, nib.load(file), nib.load(root / "labelsTr" / file.name)


def _save(values, like, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, like.affine), path)


def make_brats(folder, source, cases=5, since_2023=False):
    """Cases of four modalities: the phantoms' body is oedema, the core necrotic on one side, enhancing on the other."""
    sign, enhancing = ("-", 3) if since_2023 else ("_", 4)
    for file, image, label in _phantoms(source, cases):
        name, values, labels = file.name.split(".")[0], image.get_fdata(), np.asarray(label.dataobj)
        left = np.arange(SIZE[0])[:, None, None] < np.argwhere(labels == 2)[:, 0].mean()
        seg = np.choose(labels, [0, 2, np.where(left, 1, enhancing)]).astype(np.uint8)
        for index, names in enumerate(MODALITIES.items()):
            contrast = (values * (1 + index * (seg == 1)) + values.mean() * (seg == enhancing)).astype(np.float32)
            contrast[:1], contrast[-3:], contrast[:, -2:] = 0, 0, 0  # air, more of it on one side
            _save(contrast, image, folder / name / f"{name}{sign}{names[since_2023]}.nii.gz")
        _save(seg, image, folder / name / f"{name}{sign}seg.nii.gz")
    return folder


def make_flare(folder, source, cases=5):
    """CT with four organs in nnU-Net's names without a dataset.json: halves of the phantoms' body and core."""
    for file, image, label in _phantoms(source, cases):
        name, values, labels = file.name.split(".")[0], image.get_fdata(), np.asarray(label.dataobj)
        low = np.arange(SIZE[1])[None, :, None] < np.argwhere(labels > 0)[:, 1].mean()
        organs = np.where(labels > 0, 2 * labels - low, 0).astype(np.uint8)
        units = (values / values.max() * 300 - 150 + 20 * organs).astype(np.int16)
        _save(units, image, folder / "imagesTr" / f"{name}_0000.nii.gz")
        _save(organs, image, folder / "labelsTr" / f"{name}.nii.gz")
    return folder
