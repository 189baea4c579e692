"""What people look at: the report of an evaluation, and the pictures that a training leaves."""

import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from monai.data import MetaTensor
from monai.engines import SupervisedEvaluator
from monai.networks.utils import one_hot
from monai.transforms import SpatialCrop
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from monai_scaleequiv.data import case_sizes, write_record
from monai_scaleequiv.handlers import TrainingCurve, ValidationOverlay, draw_overlay
from monai_scaleequiv.handlers._checkpoint_files import check_checkpoint_dir
from monai_scaleequiv.handlers._overlay import (
    CaseSlice,
    case_slice,
    colour_of,
    columns_of,
    frame,
    label_maps,
    legend_lines,
)
from monai_scaleequiv.handlers._report import _short_names
from monai_scaleequiv.handlers._report_pages import ROWS, save_report
from monai_scaleequiv.handlers._report_tables import Report, case_table, summary_table
from tests.bundle_runs import load, per_case, run, torchrun, train, write_probe

METRICS = ("val_mean_dice", "val_hd95")


def text_of(pdf):
    """The text of each page of a PDF that matplotlib wrote, in the order in which it was drawn."""
    content = pdf.read_bytes()
    assert content.startswith(b"%PDF-")
    assert content.rstrip().endswith(b"%%EOF")
    pages = []
    for stream in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", content, flags=re.S):
        plain = zlib.decompress(stream) if stream[:1] == b"x" else stream
        if plain.startswith(b"/DeviceRGB CS"):  # a page, no font or image
            shown = re.findall(rb"\[((?:[^\\\]]|\\.)*)\]\s+TJ|(\((?:[^\\()]|\\.)*\))\s+Tj", plain)
            pieces = [re.findall(rb"\(((?:[^\\()]|\\.)*)\)", b"".join(part)) for part in shown]
            pages.append([re.sub(rb"\\([()\\])", rb"\1", b"".join(part)).decode("latin-1") for part in pieces])
    assert len(pages) == len(re.findall(rb"/Type /Page\b", content))
    return pages


def made_up(cases, classes, worst=4):
    """A report on random values, among them classes that a case does not have and a prediction that is missing."""
    random = np.random.default_rng(0)
    dice, hd95 = random.uniform(0.3, 0.9, (cases, classes)), random.uniform(0.5, 8, (cases, classes))
    if cases > 2:
        dice[0], hd95[0], dice[1, 0], hd95[1, 0], hd95[2, 0] = np.nan, np.nan, np.nan, np.nan, np.inf
    labels = np.zeros((20, 16), int)
    labels[4:9, 3:8], labels[9:14, 3:8] = 1, min(2, classes)
    image = CaseSlice(random.normal(size=(20, 16)), labels, np.roll(labels, 1, 0), (20, 32), "axial slice 3 of 9", "RA")
    names = [f"case_{i:03d}" for i in range(cases)]
    return Report(
        "Evaluation of $x_1$ (draft)", ["facts"], names, dict(zip(METRICS, (dice, hd95), strict=True)),
        [f"organ {i}" for i in range(1, classes + 1)], [(name, image) for name in names[-worst:]],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("cases", "classes", "expected"),
    [(1, 1, 3), (5, 2, 3), (40, 9, 5), pytest.param(200, 60, 11, marks=pytest.mark.slow)],
)
def test_report_of_any_size(cases, classes, expected, tmp_path, recwarn):
    report = made_up(cases, classes)
    save_report(report, tmp_path / "report.pdf")
    pages = text_of(tmp_path / "report.pdf")
    assert len(pages) == expected
    assert report.title in pages[0]
    assert {name for name, _ in report.worst} <= set(pages[1])
    listed = [text for page in pages[2:] for text in page if text.startswith("case_")]
    assert sorted(listed) == report.cases
    titles = [page[0][:11] for page in pages[2:]]  # further on is a ligature
    assert titles == ["All cases, "] * -(-cases // ROWS) + ["All classes"] * -(-(classes + 1) // ROWS) * (classes > 8)
    for name in report.classes:
        assert any(name in text for page in pages for text in page)
    assert [str(warning.message) for warning in recwarn] == []


def test_tables_say_what_was_measured():
    report = made_up(6, 2)
    header, rows = summary_table(report)
    assert header[1:6] == ["Dice", "95 % interval", "median", "range", "cases"]
    assert [row[0] for row in rows] == ["mean of classes", "organ 1", "organ 2"]
    dice = report.values["val_mean_dice"]
    assert rows[1][1] == f"{np.nanmean(dice[:, 0]):.3f}"
    assert [row[5] for row in rows] == ["5", "4", "5"]  # one case has nothing, another not the first class
    assert [row[10] for row in rows] == ["5", "3", "5"]  # and of one, a prediction is missing
    header, rows = case_table(report)
    assert header[0], header[-1] == ("case", "HD95 (mm)\norgan 2")
    means = [float(row[1]) for row in rows[:-1]]
    assert means == sorted(means)
    assert rows[-1] == ["case_000", *"-" * 6]
    by_name = {row[0]: row for row in rows}
    assert by_name["case_001"][2] == "-"
    assert by_name["case_002"][5] == "inf"


def test_of_many_classes_the_worst_is_named():
    report = made_up(4, 6)
    _, rows = case_table(report)
    worst = int(report.values["val_mean_dice"][3].argmin())
    farthest = int(report.values["val_hd95"][3].argmax())
    (row,) = [row for row in rows if row[0] == "case_003"]
    assert row[2].startswith(f"organ {worst + 1}: 0.")
    assert row[4].startswith(f"organ {farthest + 1}: ")
    assert rows[-1][2] == "-"


def test_names_that_the_files_alone_do_not_tell_apart():
    assert _short_names(["/a/x.nii.gz", "/a/y.v1.nii"]) == {"/a/x.nii.gz": "x", "/a/y.v1.nii": "y.v1"}
    assert list(_short_names(["/a/1/t1.nii.gz", "/a/2/t1.nii.gz"]).values()) == ["1/t1", "2/t1"]


# --- slices and outlines ---

SPACING = (1.0, 2.0, 5.0)


def case_of(image, label, prediction, affine):
    """As the evaluator leaves it."""
    maps = [one_hot(torch.as_tensor(x)[None, None].float(), 3)[0] for x in (label, prediction)]
    case = dict(zip(("image", "label", "pred"), (torch.as_tensor(image)[None].float(), *maps), strict=True))
    return {key: MetaTensor(value, affine=affine) for key, value in case.items()}


@pytest.fixture
def case():
    """To the left and posterior, with thick slices; prediction and label differ most in the slice 5."""
    affine = torch.diag(torch.tensor([-SPACING[0], -SPACING[1], SPACING[2], 1.0], dtype=torch.float64))
    affine[:3, 3] = torch.tensor([40.0, 30.0, -7.0])
    image = np.arange(30 * 20 * 8.0).reshape(30, 20, 8)
    label = np.zeros(image.shape, int)
    label[3:9, 4:9, 2:6], label[3:9, 4:12, 3] = 1, 1
    prediction = label.copy()
    prediction[3:9, 9:14, 5] = 2
    return case_of(image, label, prediction, affine), image, label, prediction


def test_slice_of_the_largest_difference_as_it_lies_in_the_volume(case):
    output, image, label, prediction = case
    found = case_slice(output, worst=True)
    assert (found.place, found.ends, found.size) == ("axial slice 6 of 8", "RA", (30.0, 40.0))
    for shown, volume in ((found.image, image), (found.truth, label), (found.prediction, prediction)):
        np.testing.assert_allclose(shown, volume[::-1, ::-1, 5], atol=1e-3)
    assert case_slice(output, worst=False).place == "axial slice 4 of 8"  # where the label is largest


def test_slice_of_an_image_on_another_grid(case):
    """The network's grid has other voxels; the picture shows the place that the label has."""
    output, image, _, _ = case
    fine = MetaTensor(torch.as_tensor(image).flip(0, 1)[None].float().repeat_interleave(2, dim=2))
    affine = torch.diag(torch.tensor([1.0, 1.0, 5.0, 1.0], dtype=torch.float64))
    affine[:3, 3] = torch.tensor([40.0 - 29, 30.0 - 38 - 0.5, -7.0])
    fine.affine = affine
    found = case_slice({**output, "image": fine}, worst=True)
    np.testing.assert_allclose(found.image, image[::-1, ::-1, 5], atol=1e-2)


def test_nothing_is_smeared_around_an_image_that_was_cropped(case):
    """As the BraTS bundle evaluates: an image of the head alone beside labels of the whole grid."""
    output, image, _, _ = case
    whole = MetaTensor(output["image"].as_tensor() * 0 + 7, affine=output["image"].affine)
    found = case_slice({**output, "image": SpatialCrop(roi_start=(4, 6, 0), roi_end=(20, 15, 8))(whole)}, worst=True)
    expected = np.zeros(image.shape[:2])
    expected[4:20, 6:15] = 7
    np.testing.assert_allclose(found.image, expected[::-1, ::-1], atol=1e-3)


def test_slices_across_the_largest_voxels_in_2d_and_without_labels(case):
    output, image, label, _ = case
    wide = case_of(image, label, label, torch.diag(torch.tensor([1.0, 7.0, 1.0, 1.0])))
    found = case_slice(wide, worst=True)
    assert (found.place.split(" slice")[0], found.ends, found.size) == ("coronal", "RS", (30.0, 8.0))
    assert found.truth.any()  # no difference anywhere: the most of the label
    empty = case_of(image, 0 * label, 0 * label, output["label"].affine)
    assert case_slice(empty, worst=True).place == case_slice(empty, worst=False).place == "axial slice 5 of 8"
    flat = case_of(image[..., 0], label[..., 3], label[..., 2], torch.diag(torch.tensor([2.0, 3.0, 1.0])))
    found = case_slice(flat, worst=True)
    assert (found.place, found.size, found.image.shape) == ("", (60.0, 60.0), (30, 20))


def test_outlines_are_where_the_labels_are():
    labels, truth = np.zeros((30, 20), int), np.zeros((30, 20), int)
    labels[3:9, 4:12], truth[5:9, 4:20] = 2, 1
    axes = Figure().subplots()
    draw_overlay(axes, np.zeros((60, 10)), (30.0, 40.0), labels, truth)
    (picture,) = axes.images
    assert picture.get_extent() == [0, 30, 0, 40]
    colours = [collection.get_edgecolor()[0][:3].tolist() for collection in axes.collections]
    expected = [[int(colour_of(2)[i : i + 2], 16) / 255 for i in (1, 3, 5)], [0, 0, 0], [1, 1, 1]]
    np.testing.assert_allclose(colours, expected)
    for collection, bounds in zip(axes.collections, ((3, 8, 9, 24), (5, 8, 9, 40), (5, 8, 9, 40)), strict=True):
        (path,) = collection.get_paths()  # in mm, from edge to edge of the voxels, closed at the border
        np.testing.assert_allclose(path.get_extents().extents, bounds)


def test_pixels_of_an_overlay():
    """On the outline the label's colour, within and without the image."""
    labels = np.zeros((40, 40), int)
    labels[10:30, 10:30] = 1
    figure = Figure(figsize=(4, 4), dpi=100)
    draw_overlay(figure.add_axes((0, 0, 1, 1)), np.eye(40), (40.0, 40.0), labels)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[::-1, :, :3].astype(int)  # upwards, and (y, x)
    is_colour = np.abs(pixels - [0xE6, 0x9F, 0x00]).max(axis=2) < 40
    assert is_colour[100, 150:250].all()
    assert is_colour[150:250, 300].all()
    assert not is_colour[110:290, 110:290].any()
    assert not is_colour[:90].any()


def test_frame_is_square_and_holds_the_label():
    mask = np.zeros((100, 50), bool)
    for size in ((100.0, 200.0), (100.0, 10.0)):
        for part in ((slice(90, 100), slice(2, 8)), (slice(0, 100), slice(0, 50)), (slice(0, 0), slice(0, 0))):
            mask[:] = False
            mask[part] = True
            axes = Figure().subplots()
            frame(axes, mask, size, "RA")
            (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
            assert right - left == pytest.approx(top - bottom)
            steps = size[0] / 100, size[1] / 50
            assert left <= part[0].start * steps[0] + 1e-9
            assert right >= part[0].stop * steps[0] - 1e-9
            assert bottom <= part[1].start * steps[1] + 1e-9
            assert top >= part[1].stop * steps[1] - 1e-9
            assert {text.get_text() for text in axes.texts} == {"R", "A"}


# --- an evaluation ---


@pytest.fixture(scope="module")
def probe(phantoms, tmp_path_factory):
    """A network that tells classes by brightness, and has seen one of the five cases."""
    probe = write_probe(tmp_path_factory.mktemp("probe") / "probe.pt")
    seen = case_sizes([{"image": str(phantoms / "imagesTr" / "phantom_002.nii.gz")}])
    write_record(Path(probe["ckpt_path"]).with_suffix(".json"), {"training_cases": seen})
    return probe


@pytest.fixture(scope="module")
def evaluated(bundle, phantoms, probe, tmp_path_factory):
    output = tmp_path_factory.mktemp("evaluated")
    run(bundle, "train", "evaluate", dataset_dir=phantoms, output_dir=output, **probe)
    return output


def test_evaluation_leaves_a_report_of_its_tables(evaluated):
    pages = text_of(evaluated / "report.pdf")
    assert any(text.startswith("Evaluation of SEUNet hippocampus segmentation 0.") for text in pages[0])
    assert any("monai_scaleequiv 0." in text for text in pages[0])
    assert any(text.startswith("4 cases of ") for text in pages[0])
    assert {"body", "core"} <= set(pages[0]) & set(pages[1])
    dice = per_case(evaluated, METRICS[0])
    ranked = [name.split(".")[0] for name, _ in sorted(dice, key=lambda item: item[1][-1])]
    assert [text for text in pages[1] if text.startswith("phantom_")] == ranked[:4]
    assert [text for text in pages[2] if text.startswith("phantom_")] == ranked
    means = dict(zip(ranked, sorted(values[-1] for _, values in dice), strict=True))
    for name in ranked[:4]:
        assert any(text.startswith(f"Dice {means[name]:.3f}, HD95 ") for text in pages[1])


@pytest.mark.slow
def test_two_processes_leave_the_same_report(bundle, phantoms, probe, evaluated, tmp_path):
    options = {"network_def": probe["network_def"], "ckpt_path": probe["ckpt_path"], "roi_size": probe["roi_size"]}
    job = torchrun(bundle, phantoms, tmp_path / "out", "train", "evaluate", "multi_gpu_evaluate", **options)
    assert job.wait(timeout=300) == 0, (tmp_path / "out.log").read_text()[-2000:]
    assert text_of(tmp_path / "out" / "report.pdf") == text_of(evaluated / "report.pdf")


# --- a training ---


def pictures(folder):
    return {path.name for path in folder.glob("*.png")}


def test_training_leaves_its_curve_and_overlays_and_goes_on_with_both(bundle, phantoms, trained, tmp_path):
    models = trained / "models"
    assert pictures(models) == {"curve.png", "overlay_epoch=1.png", "overlay_epoch=2.png"}
    events = EventAccumulator(str(trained / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    assert [event.step for event in events.Images("overlay")] == [1, 2]
    first, second = (imread(models / f"overlay_epoch={epoch}.png") for epoch in (1, 2))
    assert first.std() > 0.1
    assert not np.array_equal(first, second)  # the title at least
    np.testing.assert_array_equal(first[50:400, 30:360], second[50:400, 30:360])  # the label's panel
    known = load(models / "checkpoint_epoch=2.pt")["curve"]
    assert sorted(known["loss"]) == sorted(known["metric"]) == [1, 2]
    train(bundle, phantoms, tmp_path, epochs=3, resume=str(models), tensorboard=False)
    curve = load(tmp_path / "models" / "checkpoint_epoch=3.pt")["curve"]
    assert {epoch: curve["loss"][epoch] for epoch in (1, 2)} == known["loss"]
    assert sorted(curve["metric"]) == [1, 2, 3]
    assert pictures(tmp_path / "models") == {"curve.png", "overlay_epoch=3.png"}
    assert not (tmp_path / "tensorboard").exists()


def curve_of(save_dir, scores):
    """A trainer whose losses are known, validated at every second epoch."""
    validator = SupervisedEvaluator(torch.device("cpu"), [], torch.nn.Identity())
    validator.state.key_metric_name = "val_mean_dice"
    curve = TrainingCurve(save_dir, validator)
    trainer = Engine(lambda engine, batch: [{"loss": torch.tensor(float(batch + engine.state.epoch))}])

    @trainer.on(Events.EPOCH_COMPLETED(every=2))
    def validate(engine):
        validator.state.epoch = engine.state.epoch
        validator.state.metrics = {"val_mean_dice": scores[engine.state.epoch]}

    curve.attach(trainer)
    return curve, trainer


def test_curve_holds_means_of_epochs_and_what_was_validated(tmp_path):
    curve, trainer = curve_of(tmp_path / "new", {2: 0.5, 4: float("nan"), 6: 0.4})
    trainer.run([1, 3], max_epochs=3)
    assert curve.state_dict() == {"loss": {1: 3, 2: 4, 3: 5}, "metric": {2: 0.5}}
    assert pictures(tmp_path / "new") == {"curve.png"}
    trainer.run([1, 3], max_epochs=6)
    (loss, dice) = curve._figure("val_mean_dice").axes
    np.testing.assert_array_equal(loss.lines[0].get_xydata(), [[n, n + 2] for n in range(1, 7)])
    np.testing.assert_array_equal(dice.lines[0].get_xydata(), [[2, 0.5], [4, np.nan], [6, 0.4]])
    assert dice.get_title() == "val_mean_dice, best 0.500 at epoch 2"


def test_checkpoint_from_before_the_curve_is_gone_on_from(bundle, phantoms, trained, tmp_path):
    checkpoint = load(trained / "models" / "checkpoint_epoch=2.pt")
    del checkpoint["curve"]
    torch.save(checkpoint, tmp_path / "checkpoint_epoch=2.pt")
    train(bundle, phantoms, tmp_path / "out", epochs=3, resume=str(tmp_path))
    curve = load(tmp_path / "out" / "models" / "checkpoint_epoch=3.pt")["curve"]
    assert sorted(curve["loss"]) == sorted(curve["metric"]) == [3]


def test_overlay_shows_the_first_case_alone(case, tmp_path):
    outputs = iter([case[0], {}, case[0], {}])
    engine = Engine(lambda engine, batch: [next(outputs)])
    ValidationOverlay(tmp_path / "new").attach(engine)
    for epoch in (1, 7):
        engine.state.epoch, engine.state.iteration, engine.state.max_epochs = epoch - 1, 0, epoch
        engine.run([0, 0], max_epochs=epoch, epoch_length=2)
    assert pictures(tmp_path / "new") == {"overlay_epoch=1.png", "overlay_epoch=7.png"}


def test_new_training_keeps_the_pictures_of_the_one_before(tmp_path):
    weights = {"w": torch.ones(1)}
    torch.save(weights, tmp_path / "model.pt")
    names = {"curve.png", "overlay_epoch=3.png", "mine.png"}
    for name in names:
        (tmp_path / name).write_bytes(b"before")
    check_checkpoint_dir(tmp_path, None, "", [weights])  # which starts from the weights that are there
    assert pictures(tmp_path / "earlier_1") == names - {"mine.png"}
    assert pictures(tmp_path) == {"mine.png"}
    assert (tmp_path / "model.pt").is_file()


def test_regions_that_overlap_are_one_label_each():
    """Smaller ones on larger ones, the empty region nowhere; classes that exclude each other are left as they are."""
    whole, core = torch.zeros(2, 1, 6, 6, 6)
    whole[:, 1:5, 1:5, 1:5], core[:, 2:4, 2:4, 2:4] = 1, 1
    regions = MetaTensor(torch.cat([core, whole, 0 * core]))
    maps, labels = label_maps({"label": regions, "pred": regions.flip(1)})
    assert list(labels) == [1, 2, 3]
    torch.testing.assert_close(maps[0], torch.where(core[0] > 0, 1, torch.where(whole[0] > 0, 2, 0)).to(torch.int16))
    torch.testing.assert_close(maps[1], maps[0].flip(0))
    classes = one_hot(maps[:1, None].float(), 3)[0]
    again, labels = label_maps({"label": classes, "pred": classes})
    assert list(labels) == [1, 2]
    assert torch.equal(again[0], maps[0])


def test_a_picture_that_cannot_be_drawn_does_not_stop_a_run(case, tmp_path):
    """Volumes without an affine, as from a cache that leaves it out, or a place that cannot be written to."""
    output = case[0]
    plain = {key: value.as_tensor() for key, value in output.items()}
    (tmp_path / "file").write_text("mine")
    for found, folder in ((plain, tmp_path), (output, tmp_path / "file")):
        engine = Engine(lambda engine, batch, found=found: [found])
        ValidationOverlay(folder).attach(engine)
        with pytest.warns(UserWarning, match=r"overlay_epoch=1\.png: not drawn"):
            engine.run([0])
    assert (tmp_path / "file").read_text() == "mine"


def test_labels_of_one_colour_differ_in_their_lines():
    lines = legend_lines(range(1, 16), {})
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 15
    assert columns_of(lines, 150) == 6
    assert columns_of(legend_lines([1], {1: "a" * 200}), 150) == 1
