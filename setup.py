# SPDX-License-Identifier: GPL-2.0-or-later
"""The one compiled module; everything else stands in pyproject.toml. Without a compiler it is left out."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "dmsoft.era._marks",
            ["dmsoft/era/_marks.c"],
            extra_compile_args=["-O3"],
            py_limited_api=True,
            optional=True,
        )
    ]
)
