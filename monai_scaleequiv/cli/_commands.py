"""The commands: thin over ``monai.bundle`` and the functions of this package."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple

from monai_scaleequiv.cli._bundles import DEFAULT_BUNDLE, NATIVE, absolute, find_bundle, input_paths, run_bundle, say
from monai_scaleequiv.cli._export import write_bundle
from monai_scaleequiv.cli._overrides import NONE, is_expression
from monai_scaleequiv.cli._tables import sweep_table
from monai_scaleequiv.data import check_dataset, check_output_dir, make_phantom_dataset, whole_file

ARGUMENTS = {"bundle_root": "bundle", "dataset_dir": "input", "output_dir": "output"}


def demo(*, output: str = "scaleequiv_demo") -> None:
    """Trains, evaluates and segments on made-up volumes, in a few minutes and with no data at hand.

    Args:
        output: new folder for the volumes, the trained network, the table of metrics and the picture.
    """
    # Its plots and tables are of no use to the other commands, which start faster without them.
    from monai_scaleequiv.cli._demo import make_demo

    make_demo(Path(absolute(output)))


def phantom(*, output: str, cases: int = 20, seed: int = 0) -> None:
    """Writes made-up volumes and labels, laid out like a Medical Segmentation Decathlon task.

    Args:
        output: folder to write to.
        cases: number of volumes.
        seed: another seed gives other volumes.
    """
    say(f"{cases} volumes: {make_phantom_dataset(absolute(output), cases=cases, seed=seed)}\n")


def check(
    input: str = "", *, images: str = "", labels: str = "", output: str = "",
    num_classes: int | None = None, channels: int | None = None, workers: int | None = None,
) -> None:  # fmt: skip
    """Checks a data set before a training: every file, read to its end, and how they fit together.

    The exit status is 1 if there are errors.

    Args:
        input: data set: folder with dataset.json (or that file), of the Medical Segmentation Decathlon or nnU-Net.
        images: instead of input, a folder with NIfTI images.
        labels: folder with their label maps, under the same names.
        output: new JSON file for the report.
        num_classes: labels are 0 to num_classes - 1; by default as in dataset.json.
        channels: channels of each image; by default as in dataset.json, else what most images have.
        workers: number of processes; by default one per CPU core if there is much to read.
    """
    target = Path(absolute(output))
    if output:
        if target.exists():
            raise FileExistsError(f"--output: {target} exists already; choose another file or remove it.")
        check_output_dir(target.parent, "--output")
    paths = {"source": input, "images": images, "labels": labels}
    options: dict[str, Any] = {name: absolute(path) for name, path in paths.items() if path}
    report = check_dataset(**options, num_classes=num_classes, channels=channels, workers=workers, progress=True)
    say(report.table() + "".join(f"{line}\n" for line in report.lines))
    if output:
        with whole_file(target, replace=False) as unfinished:
            unfinished.write_text(json.dumps(report.as_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        say(f"{target}\n")
    if report.errors:
        raise ValueError(f"{report.source}: expected no errors, got {len(report.errors)}; see the lines above.")


def train(
    *, input: str = "", output: str = "", bundle: str = DEFAULT_BUNDLE, config: str = "", **overrides: Any
) -> None:
    """Trains a bundle's network, after a check of the data. Any --ID=VALUE overrides the config, as in --epochs=3.

    Processes of torchrun train together.

    Args:
        input: data set: folder with dataset.json (or that file), of the Medical Segmentation Decathlon or nnU-Net; or
            BraTS or FLARE as downloaded.
        output: folder for checkpoints, logs and pictures.
        bundle: folder of a bundle, or name of one that comes with this package.
        config: names of further configs of the bundle that lie on top, such as paper; with commas between.
        overrides: new values for ids of the bundle's train.json, such as num_classes, in_channels for images of several
            channels, and weights for a file to start from.
    """
    _run_command("train", input, output, bundle, config, overrides)


def evaluate(
    *, input: str = "", output: str = "", bundle: str = DEFAULT_BUNDLE, config: str = "", **overrides: Any
) -> None:
    """Measures a trained network on the cases that its training has not seen. Any --ID=VALUE overrides the config.

    Args:
        input: data set: folder with dataset.json (or that file), of the Medical Segmentation Decathlon or nnU-Net.
        output: folder for tables and report.pdf; those of an earlier evaluation are replaced with --overwrite alone.
        bundle: folder of a bundle, or name of one that comes with this package.
        config: names of further configs of the bundle that lie on top, such as paper; with commas between.
        overrides: new values for ids of the bundle's train.json and evaluate.json, such as ckpt_path for the weights.
    """
    _run_command("evaluate", input, output, bundle, config, overrides)


def sweep(
    *, input: str = "", output: str = "", bundle: str = DEFAULT_BUNDLE, config: str = "", **overrides: Any
) -> None:
    """Measures a trained network as evaluate does, on images in many sizes: Dice against the size of the anatomy.

    The network is shown each image larger or smaller, as if its voxels were the same, and its answer is brought back to
    the image's own grid. The oracle, of images brought back to their size beforehand, is what resampling alone costs.

    Args:
        input: data set: folder with dataset.json (or that file), of the Medical Segmentation Decathlon or nnU-Net.
        output: folder for sweep.csv, sweep.json and sweep.png; those of an earlier sweep are replaced with --overwrite.
        bundle: folder of a bundle, or name of one that comes with this package.
        config: names of further configs of the bundle that lie on top, such as paper; with commas between.
        overrides: --scales=[0.7,1,1.4] for other sizes, --thickness=[2,3] for thicker slices as well, ckpt_path for the
            weights; any other ids of the bundle's train.json, evaluate.json and sweep.json.
    """
    _run_command("sweep", input, output, bundle, config, overrides)
    if os.environ.get("RANK", "0") == "0":  # the first process of torchrun writes the files
        say(sweep_table(Path(absolute(output))))


def infer(
    *, input: str = "", output: str = "", bundle: str = DEFAULT_BUNDLE, config: str = "", native: bool = False,
    **overrides: Any,
) -> None:  # fmt: skip
    """Segments volumes. Any --ID=VALUE overrides the config, as in --ckpt_path=model.pt.

    A volume that fails does not stop the others: it is reported, listed in failures.json, and the exit status is 1.
    With --skip_existing, volumes that have a label map already are left out, as after an interruption. Processes of
    torchrun share the volumes.

    Args:
        input: a folder with NIfTI files, a file, or several of them with commas between.
        output: folder for the label maps.
        bundle: folder of a bundle, or name of one that comes with this package.
        config: names of further configs of the bundle that lie on top, such as paper; with commas between.
        native: let the network see each image at the image's own voxel size, with the bundle's inference_native.json.
        overrides: new values for ids of the bundle's inference.json, or inference_native.json.
    """
    if not isinstance(native, bool):
        raise ValueError(f"--native={native}: expected true or false; give --native alone.")
    _run_command(NATIVE if native else "infer", input, output, bundle, config, overrides)


def equivariance(
    *, output: str = "", bundle: str = "", network: str | dict = "", input: str = "", cases: int = 3, seed: int = 0,
    ratios: Sequence[float] | float | None = None, divisor: int | None = None, **overrides: Any,
) -> None:  # fmt: skip
    """Measures how far any network is from scale-equivariant. With a bundle, any --ID=VALUE overrides its config.

    Energies, relative to f(T x) and without the outer tenth of each axis, of a network f and a rescaling T of
    whole images x. "projected": T f(x) against f(T x). "interior": before the scales are joined, over matched scales,
    and "unshifted" over equal ones, a control that has to be larger. "floor": the loss of the rescaling itself, there
    and back. "Dice": of the label maps of f(T x) and T f(x). Images are cropped to sizes that the ratio keeps whole.

    Args:
        output: folder for equivariance.json and equivariance.png.
        bundle: bundle whose inference.json has network, weights and preprocessing; by default the hippocampus bundle.
        network: instead of a bundle, a JSON file with a network's _target_ and arguments, or that JSON itself; images
            are then normalised to mean 0 and standard deviation 1.
        input: a folder with NIfTI files, a file, or several of them with commas between; without it, made-up volumes.
        ratios: new size over old size, with commas between; by default 0.7 to 1.4 with a step of the network's scales.
        cases: number of images at most; the first ones count.
        divisor: pad images to multiples of this; by default 16, and 1 for a network with a scale axis.
        seed: of random weights and of made-up volumes.
        overrides: ckpt_path for weights, else the bundle's own or random ones for network; ids of inference.json.
    """
    _check_given("equivariance", output=output)
    if network and bundle:
        raise ValueError("equivariance: expected --network or --bundle, got both; choose one.")
    for name in set(overrides) - {"ckpt_path"} if network else ():
        raise ValueError(f"--{name}: a bundle has overrides; change the definition of --network.")
    _check_files(overrides)
    from monai_scaleequiv.cli import _equivariance  # with plots, as above

    arguments = {"input": input, "ratios": ratios, "cases": cases, "divisor": divisor, "seed": seed}
    source = network or find_bundle(bundle or DEFAULT_BUNDLE)
    say(_equivariance.make_report(Path(absolute(output)), source, overrides, arguments))


def export_bundle(bundle: str, output: str) -> None:
    """Writes a bundle that runs without this package: its modules, the weights also as safetensors, and SHA256SUMS.

    Where MONAI and the packages of its configs/metadata.json are installed, the folder passes the Model Zoo's
    verification, trains, evaluates and segments by ``python -m monai.bundle``, as its docs/README.md shows.
    What its own runs wrote (eval/, tensorboard/, checkpoints, earlier weights) is left out.

    Args:
        bundle: folder of a bundle, or name of one that comes with this package.
        output: new folder.
    """
    _check_given("export_bundle", bundle=bundle, output=output)
    write_bundle(find_bundle(bundle), Path(absolute(output)))
    say(f"{absolute(output)}\n")


COMMANDS = {f.__name__: f for f in (demo, phantom, check, train, evaluate, sweep, infer, equivariance, export_bundle)}


def _run_command(command: str, input: str, output: str, bundle: str, config: str, overrides: dict[str, Any]) -> None:
    _check_given(command, input=input, output=output)
    for id, name in ARGUMENTS.items():
        if id in overrides:
            raise ValueError(f"--{id}: this path has an argument of its own; give it as --{name}=PATH.")
    source = input_paths(input) if command in ("infer", NATIVE) else absolute(input).removesuffix("/dataset.json")
    _check_paths("input", *ensure_tuple(source))
    _check_files(overrides)
    values = {"dataset_dir": source, "output_dir": absolute(output), **overrides}
    run_bundle(command, find_bundle(bundle), values, [name.strip() for name in config.split(",")] if config else [])


def _check_given(command: str, **paths: str) -> None:
    for name, path in paths.items():
        if not path:
            raise ValueError(f"{command}: expected --{name}=PATH, got none; see {command} --help.")


def _check_files(overrides: Mapping[str, Any]) -> None:
    """Of files that overrides name: each is a path that exists, but for ``--resume=auto`` and none to resume."""
    for id in {"ckpt_path", "resume", "weights"} & set(overrides):
        value = overrides[id]
        if id != "resume" and (not isinstance(value, str) or value in ("", NONE)):
            got = None if value == NONE else value
            raise ValueError(f"--{id}: expected a path, got {got!r}; leave it out for what the config names.")
        if value and not is_expression(value) and (id, value) != ("resume", "auto"):
            _check_paths(id, value)


def _check_paths(argument: str, *paths: str) -> None:
    for path in paths:
        if not Path(path).exists():
            raise FileNotFoundError(f"--{argument}: {path} does not exist; give another path.")
