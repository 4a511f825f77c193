"""Puts the files of configs/ into the wheel, as mch_jax/configs/; setup.cfg has everything else."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Copies the configs, except into an editable installation, which finds them itself."""

    def run(self):
        """Builds the package."""
        super().run()
        if not self.editable_mode:
            folder = Path(self.build_lib, "mch_jax", "configs")
            self.mkpath(str(folder))
            for path in sorted(Path("configs").glob("*.py")):
                self.copy_file(str(path), str(folder / path.name))


setup(cmdclass={"build_py": BuildWithConfigs})
