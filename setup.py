"""Hands CMakeLists.txt to setuptools; everything declarative is in pyproject.toml."""

import os

from setuptools import setup

# cmake remembers there what it was told, so what is built in another way, as with
# sanitizers, is built elsewhere.
build_base = os.environ.get("FOREBAY_BUILD_BASE", "build")
setup(cmake_source_dir=".", options={"build": {"build_base": build_base}})
