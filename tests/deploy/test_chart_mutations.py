"""The checks of the chart are checked: each sown mistake is noticed by a layer of them."""

from pathlib import Path

import pytest

from tests.deploy import object_schemas
from tests.deploy.chart import require_helm
from tests.deploy.mutations import COMMAND, MUTATIONS, TABLE, Mutation, notices, promtool

require_helm()


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.mistake)
def test_a_mistake_in_the_chart_is_noticed(mutation: Mutation, tmp_path: Path) -> None:
    if next(notices(mutation, tmp_path), None) is not None:
        return
    needed = {"promtool": promtool(), "kubernetes-validate": object_schemas.schema_folder(), "FIFA_SHARED/crd-schemas": object_schemas.crd_folder()}
    if missing := [name for name, found in needed.items() if not found]:
        pytest.skip(f"nobody notices, and {', '.join(missing)} is not there")
    pytest.fail(f"nobody notices {mutation.mistake}")


def test_the_committed_table_is_of_these_mistakes() -> None:
    rows = [line.split(" | ")[0].removeprefix("| ") for line in TABLE.read_text("utf-8").splitlines() if line.startswith("| ")]
    assert rows[1:-1] == [mutation.mistake for mutation in MUTATIONS], f"run: {COMMAND}"
    assert "nobody notices" not in TABLE.read_text("utf-8")
