"""The metadata is in setup.cfg; here, the translations are compiled and the recipes added when the package is built."""

import runpy
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class Build(build_py):
    """The package, with its translations compiled, and with the recipes, which lie beside it in the checkout."""

    def run(self) -> None:
        runpy.run_path(str(ROOT / "hfgpt" / "locale" / "compile.py"))["compile_all"]()
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "hfgpt" / "recipes"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(ROOT / "recipes", target)


setup(cmdclass={"build_py": Build})
