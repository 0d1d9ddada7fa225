"""Finds the packages; everything else about the distribution is in pyproject.toml.

The folders at the root are imported as `verst.<folder>`.
"""

from setuptools import find_packages, setup

FOLDERS = ("launcher", "runtime", "slurm", "sync", "recipes")

setup(
    packages=[
        f"verst.{package}"
        for folder in FOLDERS
        for package in (folder, *(f"{folder}.{inner}" for inner in find_packages(folder)))
    ],
    package_dir={f"verst.{folder}": folder for folder in FOLDERS},
)
