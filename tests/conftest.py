"""Where shared research data and the test broker live, for tests that can use them."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

REPOSITORY = Path(__file__).resolve().parent.parent


# An example may take long on shared cores; that is no finding.
settings.register_profile("shared cores", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared cores")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder named by FIFA_SHARED, else `shared` beside the repository."""
    folder = Path(os.environ.get("FIFA_SHARED") or REPOSITORY.parent / "shared")
    if not folder.is_dir():
        pytest.skip(f"needs the shared data: FIFA_SHARED or {folder} is not a folder")
    return folder


@pytest.fixture(scope="session")
def kafka_home() -> Path:
    """KAFKA_HOME, else `kafka` in the shared folder."""
    folder = Path(os.environ.get("KAFKA_HOME") or Path(os.environ.get("FIFA_SHARED") or REPOSITORY.parent / "shared") / "kafka")
    if not (folder / "bin" / "kafka-server-start.sh").is_file():
        pytest.skip("needs Apache Kafka: set KAFKA_HOME")
    return folder


@pytest.fixture(scope="session")
def npm_ci(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Install what a folder's package-lock.json pins into a folder of the test's own, and give that."""

    def install(locked: Path) -> Path:
        if shutil.which("node") is None or shutil.which("npm") is None:
            pytest.skip("needs Node.js and npm")
        folder = tmp_path_factory.mktemp(locked.name)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(locked / name, folder)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1", "--fetch-timeout=30000"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=180, check=False)
        if absent := re.search(r"npm (?:error|ERR!) code (ECONN\w+|ENOTFOUND|EAI_AGAIN|ETIMEDOUT|ERR_SOCKET_TIMEOUT|E404|E5\d\d)\b", done.stderr):
            pytest.skip(f"needs an npm registry: {absent[1]}")
        assert done.returncode == 0, done.stderr
        return folder

    return install
