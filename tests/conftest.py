"""Where shared research data and the test broker live, for tests that can use them."""

import os
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
