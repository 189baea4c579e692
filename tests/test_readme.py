"""What the README shows runs as shown."""

import re
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from tests.conftest import BUNDLES, ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
TEXTS = [ROOT / "README.md", *BUNDLES.glob("*/docs/README.md")]


def test_python_example_runs():
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    assert len(example.splitlines()) <= 12
    small, scope = example.replace("channels=(16, 32, 64)", "channels=(2, 4, 8)"), {}  # a tenth of the time
    assert small != example
    exec(compile(small, "README.md", "exec"), scope)
    assert scope["logits"].shape == (1, 3, 50, 61, 37)


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.parts[-3])
def test_links_to_files_lead_somewhere(text):
    links = re.findall(r"\]\(((?!http)[^)]+)\)", text.read_text(encoding="utf-8"))
    assert [link for link in links if not (text.parent / link.split("#")[0]).exists()] == []


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.parts[-3])
def test_commands_name_options_that_exist(text):
    """Options after ``monai.bundle run`` are ids of the configs that the command names."""
    bundle = BUNDLES / "seunet_hippocampus_segmentation" if text.parent == ROOT else text.parents[1]
    folder = bundle / "configs"
    for command in re.findall(r"monai\.bundle run (.*)", text.read_text(encoding="utf-8")):
        parser = ConfigParser()
        parser.read_config([folder / name for name in re.findall(r"configs/(\w+\.json)", command)])
        options = set(re.findall(r"--(\w+)", command)) - {"config_file"}
        assert options <= set(parser.config), command


def test_tests_that_texts_name_exist():
    sources = {f"tests/{path.name}": path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("*.py")}
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8"))
    assert len(named) > 40
    assert [name for file, name in named if f"def {name}(" not in sources[file]] == []
    known = {Path(file).stem for file in sources} | set(re.findall(r"def (test_\w+)", "".join(sources.values())))
    for text in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *BUNDLES.glob("*/docs/README.md")):
        assert set(re.findall(r"\b(test_\w+)", text.read_text(encoding="utf-8"))) <= known, text
