"""The same instruction data through Ray Data, on a Ray of this machine with two workers."""

from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.faces import Face
from trainer.instruct import Recipe, Subject
from trainer.shards import write_instructions


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")  # Ray 2.60 sets options of its own that it calls deprecated
def test_two_ray_workers_write_the_bytes_of_one_core(make_face: Callable[..., Face], tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="needs the ray extra")
    from trainer.ray_instruct import on_ray

    asked = [Subject(make_face(number, dataset=dataset), None, None) for number in range(10) for dataset in ("dfdc", "stargan")]
    one = write_instructions(asked, tmp_path / "one", Recipe(), faces_per_shard=8)
    two = write_instructions(asked, tmp_path / "ray", Recipe(), faces_per_shard=8, mapper=on_ray(workers=2))
    assert one == two and len(one.shards) == 3
    assert all((tmp_path / "one" / path.name).read_bytes() == path.read_bytes() for path in (tmp_path / "ray").iterdir())
    assert not ray.is_initialized()
