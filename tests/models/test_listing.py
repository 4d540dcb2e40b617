"""The list of models: its table in the documentation, and the page about one."""

import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nml_jax.errors import UserError
from nml_jax.models import __main__ as command
from nml_jax.models import listing
from nml_jax.models.variants import CLIPS, MODELS, TOWERS

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "models.md"

# Parameters without a head, and the width of the features, as timm 1.0.31 counts them.
COUNTS = {
    "swin_t": (27_519_354, 768),
    "swin_s": (48_837_258, 768),
    "swin_b": (86_743_224, 1024),
    "swin_l": (194_995_476, 1536),
    "bit_50x1": (23_500_352, 2048),
    "bit_152x2": (232_238_208, 4096),
    "vit_b16_clip": (85_799_424, 768),
    "vit_l14_clip": (303_179_776, 1024),
    "vit_s14_dinov2": (22_056_192, 384),
    "vit_b14_dinov2": (86_579_712, 768),
    "vit_l14_dinov2": (304_367_616, 1024),
    "resnet18": (11_176_512, 512),
    "resnet50": (23_508_032, 2048),
    "resnet101": (42_500_160, 2048),
    "vit_ti": (5_524_416, 192),
    "vit_s": (21_665_664, 384),
    "vit_b": (85_798_656, 768),
    "vit_l": (303_301_632, 1024),
    "convnext_t": (27_820_128, 768),
    "convnext_s": (49_454_688, 768),
    "convnext_b": (87_566_464, 1024),
    "convnext_l": (196_230_336, 1536),
    "efficientnet_b0": (4_007_548, 1280),
    "efficientnet_b1": (6_513_184, 1280),
    "efficientnet_b2": (7_700_994, 1408),
    "efficientnet_b3": (10_696_232, 1536),
    "efficientnet_lite0": (3_371_008, 1280),
}


def read_table() -> list[str]:
    """The first table of the page, line by line."""
    lines = itertools.dropwhile(lambda line: not line.startswith("|"), PAGE.read_text("utf-8").splitlines())
    return list(itertools.takewhile(lambda line: line.startswith("|"), lines))


def read_cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_page_lists_every_model_with_the_counts_of_timm():
    rows = {cells[0]: cells for cells in map(read_cells, read_table()[2:])}
    assert list(rows) == list(MODELS)
    found = {name: tuple(int(cell.replace(",", "")) for cell in rows[name][1:3]) for name in COUNTS}
    assert found == COUNTS


@pytest.mark.parametrize("name", ["swin_t", "bit_50x1", "vit_b16_clip", "vit_s14_dinov2", "clip_rn50"])
def test_the_page_is_what_the_command_prints(name: str):
    (line,) = (line for line in read_table() if line.startswith(f"| {name} "))
    assert read_cells(line) == list(listing._make_row(name))


def test_the_inputs_of_the_page_are_those_of_the_table():
    """No model is built. The test of published names and shapes compares some of them with timm's configs."""
    inputs = {cells[0]: cells[3] for cells in map(read_cells, read_table()[2:])}
    for name in TOWERS | CLIPS:
        assert inputs[name] == listing._describe_input(name)


@pytest.mark.slow
def test_the_whole_page_is_what_the_command_prints():
    done = subprocess.run([sys.executable, "-m", "nml_jax.models"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == read_table()


def test_one_model(capsys):
    assert command.main(["vit_s14_dinov2"]) == 0
    text = capsys.readouterr().out
    assert "features [1, 384]" in text
    assert "published weights that fit: vit_small_patch14_dinov2" in text
    assert re.search(r"^22,056,192 parameters in \d+ arrays$", text, re.M), "all blocks are counted"


def test_unknown_names(capsys):
    assert command.main(["swin_x"]) == 2
    assert "swin_s" in capsys.readouterr().err
    with pytest.raises(UserError) as e:
        listing.describe_model("swin_tiny_patch4_window7_224")
    assert e.value.cure == "give swin_t"
