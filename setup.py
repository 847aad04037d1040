"""Puts `components/` and `pipelines/` into the wheel beside the library, as packages of their own."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages("src"), "stageline_components", "stageline_pipelines"],
    package_dir={"": "src", "stageline_components": "components", "stageline_pipelines": "pipelines"},
)
