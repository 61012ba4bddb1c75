"""What pyproject.toml cannot say: files that stay at the root of the project are part of the package, too.

`dataflex.shipped` finds them: in a wheel below `dataflex/shipped_files`, in a checkout where they are.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("examples", "constraints.txt")
LEFT_OUT = ("__pycache__", "*.pyc", "*.egg-info")


class BuildWithShippedFiles(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:  # the checkout is what is imported
            return
        target = Path(self.build_lib) / "dataflex" / "shipped_files"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in SHIPPED:
            if Path(name).is_dir():
                shutil.copytree(name, target / name, ignore=shutil.ignore_patterns(*LEFT_OUT))
            else:
                shutil.copyfile(name, target / name)

    def get_source_files(self) -> list[str]:
        """For the source distribution, from which a wheel may be built."""
        found = [path for name in SHIPPED for path in (Path(name), *Path(name).rglob("*")) if path.is_file()]
        return [*super().get_source_files(), *(str(path) for path in found if path.suffix != ".pyc")]


setup(cmdclass={"build_py": BuildWithShippedFiles})
