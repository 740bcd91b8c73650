"""What pyproject.toml has no words for: configs/ and zoo/, which lie at the top of the project for
people to see, go into the package (decision_seq/shipped.py looks for them there)."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("configs/*.yaml", "zoo/*/*.*")


class BuildWithShipped(build_py):
    """As setuptools builds, and the shipped files with it; an editable install finds them here."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for file in (file for pattern in SHIPPED for file in sorted(Path().glob(pattern))):
            if file.is_file() and not file.name.startswith("."):
                target = Path(self.build_lib, "decision_seq", file)
                self.mkpath(str(target.parent))
                self.copy_file(str(file), str(target))


setup(cmdclass={"build_py": BuildWithShipped})
