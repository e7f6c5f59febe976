"""Hands CMakeLists.txt to setuptools; everything declarative is in pyproject.toml."""

from setuptools import setup

setup(cmake_source_dir=".")
