"""Arguments, shapes and files as nobody would write them: a right result, or an error of ours, and never anything else.

A mutated file is judged by a reader of this test's own (``strictly_read``), which takes nothing on trust: it wants a
whole gzip stream with a right checksum, the mark of NIfTI, as many bytes as the header promises, and nothing but zeros
after them, a bitpix that fits, known codes and units, a place on this planet, three axes, real and finite voxels. A
file that it rejects has to be an error of ``check_dataset`` and of the preprocessing of the bundle's inference. One
that it takes is a valid volume, the original or another one. It may be an error of one line, for its voxel size, say;
or it may be taken, but then with exactly the voxels, the shape and the affine that it holds, and the affine has to be
finite, invertible and without shear. Whatever else is raised is a crash, and a case that takes longer than ``LONGEST``
seconds hangs. In the end, the bundle's inference runs over the folder of all of them: each is either listed as failed,
or has a label map on its grid, with the labels that its voxels call for.
"""

import functools
import gzip
import math
import signal
import sys
import zlib
from collections import Counter
from contextlib import contextmanager

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset

import monai_scaleequiv
from monai_scaleequiv.data import check_dataset, one_line, root_cause

from .conftest import BUNDLES
from .fault_files import write_volume

LONGEST = 20
SHAPE = (9, 8, 7)
SPACING = (1.5, 1.2, 0.9)  # along left to right, back to front, bottom to top
FORMATS = ("a.nii.gz", "a.nii", "nifti2.nii.gz", "stored.nii.gz")
REAL = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
INTERNAL = ("Traceback", "Expected ", "CUDA", "tuple index", "list index", "shape mismatch", "size mismatch")


@contextmanager
def in_time(seconds=LONGEST):
    def stop(*_):
        raise TimeoutError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# Files.


def sound_file(folder, name):
    values = np.random.default_rng(5).normal(100, 30, SHAPE).astype(np.float32 if "2" in name else np.int16)
    affine = np.array([[0, -1.5, 0, 9], [1.2, 0, 0, -30], [0, 0, 0.9, 4], [0, 0, 0, 1]])
    file = write_volume(folder / name, values, affine)
    if name.startswith("nifti2"):
        nib.save(nib.Nifti2Image(values, affine), file)
    if name.startswith("stored"):
        file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes()), compresslevel=0))
    return file.read_bytes()


def mutate(content, packed, rng):
    """Another content, and what was done."""
    kind = rng.choice(["header field", "header bytes", "stream bytes", "cut", "insert", "zeros", "repeat"])
    if kind.startswith("header"):
        plain = bytearray(gzip.decompress(content) if packed else content)
        start = int(rng.integers(0, 348))
        if kind == "header field":  # two aligned bytes or four, to values with a history
            width = int(rng.choice([2, 4]))
            start -= start % width
            value = rng.choice([0, 1, 2, 7, 8, 64, 255, 2**15 - 1, 2**15, 2**16 - 1, 2**31 - 1, 0x7FC00000, 0x7F800000])
            plain[start : start + width] = int(value % 256**width).to_bytes(width, "little")
        else:
            for place in rng.integers(0, 348, int(rng.integers(1, 6))):
                plain[place] = rng.integers(0, 256)
        return gzip.compress(bytes(plain), compresslevel=1) if packed else bytes(plain), kind
    changed = bytearray(content)
    place = int(rng.integers(0, len(changed)))
    if kind == "stream bytes":
        for place in rng.integers(0, len(changed), int(rng.integers(1, 4))):
            changed[place] ^= 1 << int(rng.integers(0, 8))
    elif kind == "cut":
        del changed[place:]
    elif kind == "insert":
        changed[place:place] = rng.bytes(int(rng.integers(1, 40)))
    elif kind == "zeros":
        changed[place : place + 16] = bytes(len(changed[place : place + 16]))
    else:
        changed += changed[place:]
    return bytes(changed), kind


def strictly_read(content, packed):
    """Voxels as they are stored times slope plus intercept, and None for a file that holds no sound 3D volume."""
    try:
        plain = gzip.decompress(content) if packed else content
    except (EOFError, OSError, zlib.error):
        return None
    for size, header_type in ((348, nib.Nifti1Header), (540, nib.Nifti2Header)):
        for order in ("<", ">"):
            if len(plain) >= size and int(np.frombuffer(plain[:4], f"{order}i4")[0]) == size:
                return _volume(plain, np.frombuffer(plain, header_type.template_dtype.newbyteorder(order), 1)[0], size)
    return None


def _volume(plain, header, size):
    count, dtype, offset = int(header["dim"][0]), REAL.get(int(header["datatype"])), float(header["vox_offset"])
    shape = [int(n) for n in header["dim"][1 : 1 + count]] if 3 <= count <= 7 else []
    order = header.dtype["dim"].base.byteorder
    order = order if order in "<>" else "<"
    if dtype is None or not shape or min(shape) < 1 or math.prod(shape[3:]) != 1:
        return None
    mark = plain[344:348] if size == 348 else plain[4:12]
    if not math.isfinite(offset) or mark not in (b"n+1\0", b"n+2\0\r\n\x1a\n", b"n+2\0\0\0\0\0"):
        return None
    offset, need = int(offset), math.prod(shape) * np.dtype(dtype).itemsize
    if offset < size + 4 or len(plain) < offset + need or any(plain[offset + need :]):
        return None
    if int(header["bitpix"]) != 8 * np.dtype(dtype).itemsize or not _placed(header):
        return None
    values = np.frombuffer(plain, order + dtype, math.prod(shape), offset).reshape(shape[:3], order="F")
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if math.isfinite(slope) and slope and math.isfinite(inter):
        values = values.astype(np.float64) * slope + inter
    elif math.isfinite(slope) and slope:
        return None
    with np.errstate(all="ignore"):
        return values if np.isfinite(values.astype(np.float32)).all() else None


def _placed(header):
    """Whether the header says in known words, and in mm, where the volume lies, or nothing at all."""
    codes = [int(header[name]) for name in ("sform_code", "qform_code")]
    if not all(0 <= code <= 5 for code in codes) or int(header["xyzt_units"]) % 8 not in (0, 2):
        return False
    places = [[header[f"srow_{axis}"][3] for axis in "xyz"], [header[f"qoffset_{axis}"] for axis in "xyz"]]
    used = next((place for place, code in zip(places, codes, strict=True) if code), [])
    return all(abs(float(x)) <= 1e6 for x in used)


def inference(**overrides):
    """The config of the bundle's inference, its working grid that of the sound file, and not huge."""
    parser = ConfigParser()
    parser.read_config(str(BUNDLES / "seunet_hippocampus_segmentation" / "configs" / "inference.json"))
    parser.update({"spacing": list(SPACING), **overrides})
    (check,) = (step for step in parser["preprocessing"]["transforms"] if step["_target_"] == "CheckVolumed")
    check["max_voxels"] = 2**20  # for the time that the test takes
    return parser


def bundle_preprocessing():
    """The preprocessing of the bundle's inference, up to the check of the volume, and the rest."""
    parser = inference()
    names = [step["_target_"] for step in parser["preprocessing"]["transforms"]]
    built = parser.get_parsed_content("preprocessing").transforms
    last = names.index("CheckVolumed") + 1
    return built[:last], built[last:]


def ours(error):
    """Whether an error is one of this package's, in one line: what was expected, what came, what to do."""
    text = str(root_cause(error))
    noted = all(word in text for word in ("expected ", ", got ", "; "))
    return isinstance(root_cause(error), ValueError) and noted and "\n" not in text


def checked(folder):
    """What the data check says: ``error`` or ``taken``."""
    report = check_dataset(images=folder, workers=1)
    assert all("expected " in line and ", got " in line and "\n" not in line for line in report.lines)
    return "error" if report.errors else "taken"


def prepared(file, load, rest, truth):
    """What the preprocessing does: ``error`` or ``taken``; it has to load what is in the file."""
    data = {"image": str(file)}
    try:
        for step in load:
            data = step(data)
        voxels, affine = data["image"][0].numpy(), data["image"].affine.numpy()
        for step in rest:
            data = step(data)
    except Exception as error:
        if not ours(error):
            raise
        return "error"
    assert torch.isfinite(data["image"]).all()
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=0.01)
    # As the header has it; MONAI's reader would put another one in its place without a word.
    np.testing.assert_allclose(affine, nib.load(file).header.get_best_affine(), rtol=1e-5, atol=1e-5)
    if truth is not None:
        np.testing.assert_allclose(voxels, truth.astype(np.float32), rtol=1e-5, atol=1e-30)
    return "taken"


def segment(folder, output):
    """What the inference of the bundle raises for each file, with a network that tells bright voxels from dark ones."""
    weights = {"weight": torch.tensor([0.0, 9.0, 0.0]).reshape(3, 1, 1, 1, 1), "bias": torch.tensor([0.0, 0.0, -9e9])}
    torch.save(weights, folder.parent / "model.pt")
    network = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 3, "kernel_size": 1}
    options = {"network_def": network, "ckpt_path": str(folder.parent / "model.pt"), "device": "cpu"}
    parser = inference(**options, dataset_dir=str(folder), output_dir=str(output))
    evaluator, transform = parser.get_parsed_content("evaluator"), parser.get_parsed_content("preprocessing")
    evaluator.interrupt_resume_enabled = False  # else the run after an error would be taken for its end
    failures = {}
    for case in parser.get_parsed_content("datalist"):
        evaluator.data_loader, evaluator.state.epoch_length = DataLoader(Dataset([case], transform), batch_size=1), 1
        try:
            evaluator.run()
        except Exception as error:
            failures[case["image"]] = one_line(error)
    return failures


def label_map_fault(file, mask, truth):
    """What is wrong with a label map, or None: it has to lie as its image does, with ones where the image is bright."""
    image, found = nib.load(file), nib.load(mask)
    affine = image.header.get_best_affine()
    if found.shape != image.shape or not np.allclose(found.affine, affine, rtol=1e-5, atol=1e-5):
        return f"lies elsewhere: {found.shape}, {found.affine.tolist()}"
    labels = np.asarray(found.dataobj).reshape(truth.shape)
    if not set(np.unique(labels)) <= {0, 1}:
        return f"has labels {np.unique(labels)}"
    if np.allclose(np.abs(affine[:3, :3]).max(1), SPACING, rtol=1e-6) and np.count_nonzero(affine[:3, :3]) == 3:
        values = truth.astype(np.float64)  # as they are, for the working grid is the image's own
        sure = np.abs(values - values.mean()) > 1e-3 * values.std()
        if not np.array_equal(labels[sure], (values > values.mean())[sure]):
            return "has wrong labels"
    return None


def segmentation_faults(folder, output, truths):
    """The cases whose inference goes wrong, and the outcome of each."""
    with in_time(LONGEST + len(truths)):
        failures = segment(folder, output)
    outcomes, wrong = {}, []
    for file, truth in truths.items():
        mask = output / f"{file.name.split('.')[0]}_seg.nii.gz"
        text = failures.get(str(file))
        outcomes[file] = "taken" if text is None else "error"
        if (text is None) != mask.exists():
            wrong.append(f"{file.name}: label map and failure, or neither: {text}")
        elif text is None and truth is None:
            wrong.append(f"{file.name}: a broken volume was segmented")
        elif text is None and (fault := label_map_fault(file, mask, truth)):
            wrong.append(f"{file.name}: its label map {fault}")
        elif text is not None and not ("expected " in text and ", got " in text and "\n" not in text):
            wrong.append(f"{file.name}: failed with {text}")
    return outcomes, wrong


def fuzz(folder, cases, seed):
    """Counts of mutation, truth, and outcome of check, preprocessing and inference; the cases that went wrong."""
    load, rest = bundle_preprocessing()
    sound = {name: sound_file(folder / "sound", name) for name in FORMATS}
    noted, truths, wrong = {}, {}, []
    (folder / "all").mkdir()
    for case in range(cases):
        rng = np.random.default_rng([seed, case])
        name = FORMATS[case % len(FORMATS)]
        content, kind = mutate(sound[name], name.endswith(".gz"), rng)
        file = folder / "case" / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
        truth = strictly_read(content, name.endswith(".gz"))
        try:
            with in_time():
                found = checked(file.parent), prepared(file, load, rest, truth)
        except Exception as error:
            wrong.append(f"case {case}, {name}, {kind}: {type(root_cause(error)).__name__}: {root_cause(error)}"[:300])
            found = ("wrong", "wrong")
        if truth is None and "taken" in found:
            wrong.append(
                f"case {case}, {name}, {kind}: a broken volume was taken: check {found[0]}, loading {found[1]}"
            )
        kept = file.rename(folder / "all" / f"{case:04d}-{name}")
        truths[kept], noted[kept] = truth, (kind, "valid" if truth is not None else "broken", *found)
    segmented, wrong_there = segmentation_faults(folder / "all", folder / "results", truths)
    return Counter((*noted[kept], segmented[kept]) for kept in noted), wrong + wrong_there


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cases", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_mutated_files(tmp_path, cases):
    outcomes, wrong = fuzz(tmp_path, cases, seed=0)
    for outcome, count in sorted(outcomes.items()):
        sys.stdout.write(f"{count} {', '.join(outcome)}\n")
    assert wrong == []
    assert sum(outcomes.values()) == cases
    assert {truth for _, truth, *_ in outcomes} == {"valid", "broken"}


@pytest.mark.parametrize(
    ("name", "place", "value", "noted"),
    [
        ("a.nii", 344, b"n+0\0", "expected a NIfTI header, got a file that begins with "),
        ("nifti2.nii.gz", 8, b"\n\x1a\n\0", "expected a NIfTI header, got a file that begins with "),
        ("a.nii", 108, np.float32(1e38).tobytes(), "expected "),
        ("a.nii", 112, np.float32(1e37).tobytes(), "expected values within float32, got "),
        ("a.nii", 70, b"\2\0", "expected bitpix 8, got 16; copy it again"),
        ("a.nii", 46, b"\3\0", "expected 432 bytes of voxels, got more of them; copy"),
        ("a.nii", 42, b"\x08\0", "expected 896 bytes of voxels, got more of them; copy"),
        ("nifti2.nii.gz", 32, b"\7\0", "expected 1764 bytes of voxels, got more of them; copy"),
        ("a.nii", 108, np.float32(350).tobytes(), "expected voxels from byte 352 on, got 350; copy it"),
        ("nifti2.nii.gz", 168, b"\x1c\2", "expected voxels from byte 544 on, got 540; copy it again"),
        ("a.nii", 254, b"\x63\0", "expected sform_code from 0 to 5, got 99; copy it again"),
        ("a.nii.gz", 252, b"\xff\xff", "expected qform_code from 0 to 5, got -1; copy it again"),
        ("a.nii", 292, np.float32(1e30).tobytes(), "expected a place within 1e+06 mm, got 1e+30 mm; correct"),
        ("a.nii", 123, b"\3", "expected mm as unit of length, got micron; convert its header to mm"),
        ("a.nii", 123, b"\1", "expected mm as unit of length, got meter; convert its header to mm"),
    ],
)
def test_headers_that_readers_pass_over(tmp_path, name, place, value, noted):
    content = sound_file(tmp_path / "in", name)
    plain = bytearray(gzip.decompress(content) if name.endswith(".gz") else content)
    plain[place : place + len(value)] = value
    file = tmp_path / "in" / name
    file.write_bytes(gzip.compress(plain) if name.endswith(".gz") else plain)
    assert strictly_read(file.read_bytes(), name.endswith(".gz")) is None
    (error,) = check_dataset(images=tmp_path / "in").errors
    assert error.startswith(f"{file}: {noted}")
    assert prepared(file, *bundle_preprocessing(), None) == "error"


@pytest.mark.parametrize("name", FORMATS)
def test_the_judge_knows_a_sound_file(tmp_path, name):
    content = sound_file(tmp_path, name)
    np.testing.assert_array_equal(strictly_read(content, name.endswith(".gz")), nib.load(tmp_path / name).get_fdata())
    assert strictly_read(content[:-20], name.endswith(".gz")) is None
    load, rest = bundle_preprocessing()
    truth = strictly_read(content, name.endswith(".gz"))
    assert (checked(tmp_path), prepared(tmp_path / name, load, rest, truth)) == ("taken", "taken")


# Arguments and shapes.

SCALES = st.lists(st.sampled_from([1.0, 0.9, 0.81, 0.5, 0.0, -1.0, 2.0, math.nan, math.inf, 1e-9, "1"]), max_size=3)
FILTERS = st.fixed_dictionaries(
    {},
    optional={
        "scales": SCALES,
        "kernel_size": st.sampled_from([3, 5, 4, 1, 0, -3, (3, 5), (3, 3, 3), None]),
        "sigma": st.sampled_from([0.95, 0.0, -1.0, math.nan]),
        "max_order": st.integers(-1, 3),
        "spacing": st.sampled_from([1.0, 0.0, -1.0, (1.0, 2.0), (1.0, 1.0, 2.0)]),
        "method": st.sampled_from(["least_squares", "sampled", "other"]),
        "other": st.just(1),
    },
)
LAYERS = {
    "ScaleLiftingConv": {
        "filters": FILTERS,
        "stride": st.sampled_from([1, 2, 0, -1, (1, 2), (1, 2, 1)]),
        "padding": st.sampled_from([None, 0, 1, -1, (1, 1)]),
        "is_transposed": st.booleans(),
    },
    "ScaleGroupConv": {
        "filters": FILTERS,
        "scale_size": st.integers(-1, 4),
        "stride": st.sampled_from([1, 2, 0, (1, 2)]),
        "is_transposed": st.booleans(),
    },
    "LargeKernelConv": {"kernel_size": st.sampled_from([3, 7, 8, 0, -1, 5.0, 5.5, (3, 5), (3, 5, 7), (21, 1), 21])},
    "ScalePointwiseConv": {"bias": st.booleans()},
    "ScaleNorm": {"norm": st.sampled_from(["batch", "instance", "group", ("group", {"num_groups": 3}), "none", ""])},
    "ScaleDownsample": {"factor": st.sampled_from([1, 2, 3, 0, -1, (1, 2)])},
    "ScaleUpsample": {"factor": st.sampled_from([1, 2, 3, 0, -1, (1, 2)])},
    "ScaleDropout": {"p": st.sampled_from([0.0, 0.5, 1.0, -0.1, 1.1, math.nan])},
    "ScaleProjection": {"mode": st.sampled_from(["mean", "max", "logsumexp", "attentive", "sum"])},
}
FIRST = {  # channels and the like, in the order of the arguments
    "ScaleLiftingConv": ("dims", "channels", "channels"),
    "ScaleGroupConv": ("dims", "channels", "channels"),
    "ScalePointwiseConv": ("dims", "channels", "channels"),
    "LargeKernelConv": ("dims", "channels"),
    "ScaleNorm": ("dims", "channels"),
    "ScaleDownsample": ("dims", "scales"),
    "ScaleUpsample": ("dims",),
    "ScaleDropout": (),
    "ScaleProjection": (),
}
LEADING = {"dims": st.integers(1, 4), "channels": st.integers(-1, 4), "scales": SCALES}


def raised_on_purpose(error):
    """Whether an error was raised on purpose: by MONAI, or by this package or PyTorch, in a line with what it got."""
    if not isinstance(error, (ValueError, TypeError, NotImplementedError)):
        return False
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals.get("__name__", "")
    noted = " got " in str(error) and "\n" not in str(error)
    return module.startswith("monai.") or (module.startswith(("monai_scaleequiv", "torch.nn.")) and noted)


def run_or_raise(make, x, check):
    """Builds, runs, checks the result; an error has to be one of ours."""
    try:
        with in_time():
            module = make()
            with torch.no_grad():
                check(module, module(x))
    except AssertionError:
        raise
    except Exception as error:
        if not raised_on_purpose(error):
            raise AssertionError(f"internal error: {type(error).__name__}: {error}") from error


HEALTH = list(HealthCheck)
QUIET = settings(max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=HEALTH)


def some_of(data, arguments):
    """Values for at most two arguments."""
    names = data.draw(st.sets(st.sampled_from(sorted(arguments)), max_size=2), label="arguments")
    return {name: data.draw(arguments[name], label=name) for name in sorted(names)}


def right_shape(name, leading, options, size):
    """Batch, scales and channels that go with a layer's arguments, which may be out of range themselves."""
    dims = 2 + leading[0] % 2 if "dims" in FIRST[name] else 3
    scales = dict(zip(FIRST[name], leading, strict=True)).get(
        "scales", options.get("filters", {}).get("scales", range(4))
    )
    channels = leading[1] if FIRST[name][1:2] == ("channels",) else 4
    flat = name in ("ScaleLiftingConv", "LargeKernelConv")
    return [2, *([] if flat else [max(1, len(scales))]), max(1, channels), *size[:dims]]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LAYERS)
@QUIET
@given(data=st.data())
def test_layers(name, data):
    leading = [data.draw(LEADING[kind], label=kind) for kind in FIRST[name]]
    options = some_of(data, LAYERS[name])
    shape = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=7), label="shape")
    if data.draw(st.booleans(), label="right channels"):
        shape = right_shape(name, leading, options, data.draw(st.lists(st.integers(0, 9), min_size=3, max_size=3)))
    x = torch.randn(shape)

    def make():
        layer = getattr(monai_scaleequiv, name)(*leading, **options).eval()
        return (lambda v: layer(v, [8] * leading[0])) if name == "ScaleUpsample" else layer

    run_or_raise(make, x, lambda layer, y: _sound(x, y))


def _sound(x, y):
    assert isinstance(y, torch.Tensor)
    assert y.shape[0] == x.shape[0]
    assert y.numel() == 0 or not torch.isnan(y).any()


def _network_output(out_channels):
    def check(network, x, y):
        assert y.shape == (x.shape[0], out_channels, *x.shape[2:])
        assert torch.isfinite(y).all()
        if x.shape[0] > 1:
            torch.testing.assert_close(y[:1], network(x[:1]), atol=1e-4, rtol=1e-4)

    return check


@pytest.mark.filterwarnings("ignore")
@QUIET
@given(data=st.data())
def test_seunet(data):
    dims, channels_in, channels_out = (data.draw(st.integers(low, 4)) for low in (1, -1, -1))
    channels = data.draw(st.lists(st.integers(0, 4), max_size=4), label="channels")
    strides = data.draw(st.lists(st.sampled_from([1, 2, 3, 0, 1.5, (1, 2), (2, 1, 2)]), max_size=4), label="strides")
    more = {
        "filters": FILTERS,
        "num_res_units": st.integers(-1, 2),
        "act": st.sampled_from([None, "PRELU", "nothing", ("LEAKYRELU", {"negative_slope": 0.2})]),
        "norm": st.sampled_from([None, "batch", "instance", "nothing"]),
        "dropout": st.sampled_from([0.0, 0.3, 2.0]),
        "adn_ordering": st.sampled_from(["NDA", "A", "", "NN", "X"]),
        "projection": st.sampled_from(["mean", "max", "other"]),
        "scale_size": st.integers(0, 3),
    }
    options = some_of(data, more)
    shape = data.draw(st.lists(st.integers(0, 14), min_size=2, max_size=5), label="shape")
    if data.draw(st.booleans(), label="right channels"):
        dims, shape = 2 + dims % 2, [max(1, min(shape[0], 2)), max(1, channels_in), *([9, 14, 6][: 2 + dims % 2])]
        channels = [max(1, n) for n in channels]
    x = torch.randn(shape)
    check = _network_output(channels_out)
    make = functools.partial(monai_scaleequiv.SEUNet, dims, channels_in, channels_out, channels, strides, **options)
    run_or_raise(lambda: make().eval(), x, lambda network, y: check(network, x, y))


@pytest.mark.filterwarnings("ignore")
@QUIET
@given(data=st.data())
def test_pyramid(data):
    dims, in_millimetres = data.draw(st.integers(1, 4), label="dims"), data.draw(st.booleans(), label="mm")
    more = {
        "scales": SCALES,
        "projection": st.sampled_from(["mean", "max", "logsumexp", "attentive", "sum"]),
        "size_divisor": st.sampled_from([1, 2, 0, 1.5, (1, 2), (1, 2, 3)]),
        "with_scale_map": st.booleans(),
        "smoothing": st.sampled_from([0.0, 0.5, -1.0, math.nan]),
    }
    options = {"size_divisor": 1, **some_of(data, more)}
    sizes = st.sampled_from([1.0, 0.5, (1.0, 2.0, 0.7), 0.0, math.nan])
    options["voxel_size"] = data.draw(sizes, label="voxel size") if in_millimetres else None
    spacing = data.draw(
        st.sampled_from([None, [1.0] * 3, [1.0, math.nan, 1.0], [1e-9] * 3, [1e9] * 3]), label="spacing"
    )
    x = torch.randn(data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=6), label="shape"))
    if data.draw(st.booleans(), label="right shape"):
        x = torch.randn(2, 2, *[5, 6, 4][: max(2, min(dims, 3))])

    def make():
        pyramid = monai_scaleequiv.ScalePyramid(torch.nn.Identity(), spatial_dims=dims, **options)
        return lambda v: pyramid(v, spacing)

    run_or_raise(make, x, lambda net, y: _sound(x, y))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8])
def test_whole_numbers_are_no_images(dtype):
    x = torch.zeros(1, 1, 8, 8, dtype=dtype)
    for network in (
        monai_scaleequiv.SEUNet(2, 1, 2, (4, 8), (2,)),
        monai_scaleequiv.RepUXNet(2, 1, 2, (1,), (4,), 5, 4),
        monai_scaleequiv.LargeKernelConv(2, 1, 5),
    ):
        with pytest.raises(ValueError, match=r"expected input of a floating point type, got torch\..*; convert it"):
            network(x)


@pytest.mark.filterwarnings("ignore")
@QUIET
@given(data=st.data())
def test_repuxnet(data):
    dims, channels_in, channels_out = (data.draw(st.integers(low, 4)) for low in (1, -1, -1))
    depths = data.draw(st.lists(st.integers(0, 2), max_size=3), label="depths")
    feature_size = data.draw(st.lists(st.sampled_from([0, 1, 2, 4]), max_size=3), label="feature_size")
    more = {
        "kernel_size": st.sampled_from([3, 7, 4, 0, (3, 5)]),
        "hidden_size": st.sampled_from([0, 1, 4]),
        "norm_name": st.sampled_from(["instance", "batch", "nothing"]),
        "res_block": st.booleans(),
        "encoder_norm": st.sampled_from(["batch", "instance", "layer", "nothing"]),
        "encoder_act": st.sampled_from(["gelu", "nothing"]),
        "drop_path_rate": st.sampled_from([0.0, 0.5, 1.0, -1.0]),
        "layer_scale_init_value": st.sampled_from([None, 0, 1, 0.1]),
        "frequency_prior": st.sampled_from([None, 1.0, 0.0, -1.0, math.inf, 1e-320]),
        "prior_mode": st.sampled_from(["fixed", "gradient", "learned", "other"]),
        "full_size_channels": st.sampled_from([None, 0, 1, 3]),
        "deploy": st.booleans(),
    }
    options = {"kernel_size": 3, "hidden_size": 4, **some_of(data, more)}
    size = data.draw(st.sampled_from([[8, 8, 8], [16, 8, 24], [9, 8, 8], [1, 1, 1], [0, 8, 8], [8, 8]]), label="size")
    x = torch.randn(data.draw(st.integers(0, 2), label="batch"), max(channels_in, 0), *size[:dims])
    check = _network_output(channels_out)
    make = functools.partial(
        monai_scaleequiv.RepUXNet, dims, channels_in, channels_out, depths, feature_size, **options
    )
    run_or_raise(lambda: make().eval(), x, lambda network, y: check(network, x, y))
