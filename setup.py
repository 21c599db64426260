"""Puts `plugins/`, which stands beside the package in a checkout, inside of it: an installed one has its sources.

Everything else is in pyproject.toml, which has no way to say this.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["structsam_export*"]), "structsam_export.plugins"],
    package_dir={"structsam_export.plugins": "plugins"},
)
