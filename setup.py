"""The metadata is in setup.cfg; here, the translations are compiled when the package is built or installed."""

import runpy
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithTranslations(build_py):
    def run(self) -> None:
        runpy.run_path(str(Path(__file__).parent / "hfgpt" / "locale" / "compile.py"))["compile_all"]()
        super().run()


setup(cmdclass={"build_py": BuildWithTranslations})
