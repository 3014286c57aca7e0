"""The chart as a .tgz that is the same, byte for byte, from every checkout: `python -m deploy.helm.package [FOLDER]`.

Helm writes the times and rights of files into the archive; here they are those of SOURCE_DATE_EPOCH and 0644.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import helm_python

from deploy.helm.generate import CHART

DEFAULT_EPOCH = 1580601600
"""What hatchling takes for wheels where SOURCE_DATE_EPOCH is not set."""


def package(destination: Path, *, chart: Path = CHART) -> Path:
    """Write NAME-VERSION.tgz into the folder; return its path. Raises helm_python.HelmError."""
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or DEFAULT_EPOCH)
    destination.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(shutil.copytree(chart, Path(scratch) / chart.name))
        for path in sorted(copy.rglob("*"), reverse=True):
            path.chmod(0o755 if path.is_dir() else 0o644)
            os.utime(path, (epoch, epoch))
        return Path(helm_python.package(str(copy), destination=str(destination)))


if __name__ == "__main__":
    archive = package(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("dist"))
    print(archive, helm_python.digest(str(archive)))
