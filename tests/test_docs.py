"""The documentation of the methods says what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from structsam_export.catalogue import catalogue, markdown
from structsam_export.methods import METHODS, make_method, method_class

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGE = (ROOT / "docs" / "methods.md").read_text()


def test_the_readme_carries_the_generated_table():
    """After a change: python scripts/method_docs --table."""
    found = re.search(r"<!-- methods: .*? -->\n(.*?)\n<!-- end of methods -->", README, re.DOTALL)
    assert found
    assert found[1] == markdown(catalogue())


def test_the_catalogue_covers_the_registry():
    rows = {row["name"]: row for row in catalogue()}
    assert list(rows) == list(METHODS)
    for name, row in rows.items():
        assert list(row["macs_saved"]) == list(method_class(name).VARIANTS)
        assert all(0 < share < 1 for share in row["macs_saved"].values()) or name == "none"


def test_the_saved_macs_are_the_papers():
    """ViT-B, all layers, rate .5, from 486.416 G: ToMe 351.05, PiToMe 354.64, GradToMe 350.81, ALGM 350.76."""
    saved = {row["name"]: next(iter(row["macs_saved"].values())) for row in catalogue()}
    for name, published in {"tome": 351.05, "pitome": 354.64, "gradtome": 350.81, "algm": 350.76}.items():
        assert saved[name] == round(1 - published / 486.416, 4)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "none"])
def test_every_method_has_its_section_picture_and_limits(name):
    section = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert section, f"docs/methods.md has no section '{name}'"
    picture = re.search(r"!\[.*?\]\((.*?)\)", section[1])
    assert picture
    with Image.open(ROOT / "docs" / picture[1]) as image:
        assert image.width > 500
    cls = method_class(name)
    for variant, most in cls.VARIANTS.items():
        assert f"{most:g}" in section[1]
        assert len(cls.VARIANTS) == 1 or f"`{variant}`" in section[1]
    assert "Limits:" in section[1]
    assert all(f"--param {parameter}" in section[1].replace("\n", " ") for parameter in cls.PARAMS)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "none"])
def test_a_method_says_that_nobody_verified_it(name):
    """What is ours, and what was not checked against the authors' code, stands where a reader of the code looks."""
    module = __import__(type(make_method(name)).__module__, fromlist=["__doc__"])
    assert "not verified against the author" in module.__doc__.replace("\n", " ")
    assert "Independent implementation" in module.__doc__.replace("\n", " ")
