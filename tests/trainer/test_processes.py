"""Several processes train what one trains. The file is also what the two processes of its tests run, under `torchrun`."""

import json
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import cv2
import numpy as np
import pytest
import torch
from accelerate import Accelerator

from engines.prompts import BBOX, Vocabulary
from trainer import train
from trainer.checkpoint import load_model
from trainer.config import LanguageConfig, TrainConfig, tiny
from trainer.faces import Face, Part
from trainer.language_data import InstructedFace, Question
from trainer.model import FiFaMLLM
from trainer.processes import emulates_bf16, join_processes, own_slices
from trainer.tokenizer import train_tokenizer

ANSWER = "The <p> mouth </p> [SEG] is soft and the <p> nose </p> [SEG] is flat."
STEPS, KILLED_AT = 3, 2


class Killed(Exception):
    """The processes ended right after a checkpoint."""


def faces() -> list[Face]:
    """Faces of a real and a synthetic set to train on, a few of both labels to select by."""
    rng = np.random.default_rng(0)

    def face(number: int, *, fake: bool, part: Part) -> Face:
        image = cv2.resize(rng.integers(0, 256, (4, 4, 3), np.uint8), (64, 64), interpolation=cv2.INTER_CUBIC)
        png = cv2.imencode(".png", image)[1].tobytes()
        return Face(f"{number}{fake}.png", "ffhq_stylegan2", png, None, fake, "entire_synthesis" if fake else None, str(number), part)

    return [face(number, fake=fake, part=part) for part in ("train", "select") for number in range(3) for fake in (False, True)]  # type: ignore[arg-type]


def instructed(vocabulary: Vocabulary) -> list[InstructedFace]:
    """Faces whose answers have no, one or two masks, one of them about a box and one with a mask in doubt: the processes' counts differ."""
    rng = np.random.default_rng(1)

    def question(level: str, answer: str, *, known: bool) -> Question:
        count = answer.count("[SEG]")
        prompt = vocabulary.question_ids(f"What is wrong in {BBOX}?" if level == "box" else "What is wrong?")
        masks = rng.integers(0, 256, (2, count, 16, 16), np.uint8)
        return Question(
            "age", cast(Any, level), tuple(prompt), tuple(vocabulary.answer_ids(answer)), (10.0, 14.0, 40.0, 50.0) if level == "box" else None,
            masks[0], masks[1], known, np.ones(count, bool),
        )  # fmt: skip

    def face(number: int) -> InstructedFace:
        asked = [question("image", ANSWER, known=number != 1)]
        if number % 2:
            asked.append(question("box", "It is soft here. [SEG]", known=True))
        if number == 2:
            asked = [question("image", "Nothing is wrong.", known=True)]
        return InstructedFace(f"toy/{number}", rng.integers(0, 256, (56, 56, 3), np.uint8), tuple(asked))

    return [face(number) for number in range(5)]


def train_vision(run: Path) -> None:
    vision = replace(tiny().vision, steps=STEPS, save_every=KILLED_AT, pairs={"stylegan2": 2, "self_blend": 1})
    train.train_vision(replace(tiny(), precision="fp32", vision=vision), faces(), run)


def train_language(run: Path, **changed: Any) -> None:
    language = LanguageConfig(steps=STEPS, batch_faces=5, save_every=KILLED_AT, warmup_steps=1, **changed)
    config: TrainConfig = replace(tiny(), precision="fp32", language=language)
    vocabulary = Vocabulary(train_tokenizer([ANSWER, f"What is wrong in {BBOX}?", "Nothing is wrong."] * 5, config.model.vocab_size))
    torch.manual_seed(5)
    train.train_language(config, FiFaMLLM(config.model), instructed(vocabulary), vocabulary, run)


def interrupted(work: Any) -> None:
    """Run until the first checkpoint."""
    save = train.save_training

    def save_and_end(folder: Path, **state: Any) -> None:
        save(folder, **state)
        raise Killed

    train.save_training = save_and_end
    try:
        work()
    except Killed:
        pass
    finally:
        train.save_training = save


SHARDED = {"shard": True, "recompute": True, "accumulate": 2}


def work_of_two(out: Path) -> None:
    """What each of the two processes does."""
    train_vision(out / "vision")
    interrupted(lambda: train_vision(out / "vision-resumed"))
    train_vision(out / "vision-resumed")
    train_language(out / "language")
    train_language(out / "sharded", **SHARDED)
    for folder in ("sharded-resumed", "sharded-handed-over"):
        interrupted(lambda folder=folder: train_language(out / folder, **SHARDED))
    train_language(out / "sharded-resumed", **SHARDED)
    join_processes().end_training()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what one process trained (`one`) and of what two did (`two`)."""
    out = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__, str(out / "two")]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False, timeout=900)
    assert ended.returncode == 0, ended.stderr[-4000:]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as torchrun does: more would wait for each other in models as small as these
    train_vision(out / "one" / "vision")
    train_language(out / "one" / "language")
    train_language(out / "two" / "sharded-handed-over")
    torch.set_num_threads(threads)
    return out


def told(run: Path) -> list[dict[str, float]]:
    """The lines of a run without what its clock and memory said."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ("seconds", "faces_per_second", "memory_gib")} for line in lines]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(folder)[0].state_dict()


@pytest.mark.parametrize(
    ("one", "two", "model"),
    [
        pytest.param("vision", "vision", "vision", id="vision"),
        pytest.param("language", "language", "model", id="language"),
        pytest.param("language", "sharded", "model", id="sharded-recomputed-accumulated"),
        pytest.param("language", "sharded-handed-over", "model", id="begun-by-two-sharded-ended-by-one"),
    ],
)
def test_two_processes_train_what_one_trains(runs: Path, one: str, two: str, model: str) -> None:
    expected, found = told(runs / "one" / one), told(runs / "two" / two)
    assert [line["step"] for line in found] == list(range(STEPS))
    for line, other in zip(expected, found, strict=True):
        assert line == pytest.approx(other, abs=1e-4, rel=1e-4)
    theirs = weights(runs / "two" / two / model)
    for name, tensor in weights(runs / "one" / one / model).items():
        if not name.endswith(("k.bias", "key.bias")):  # no loss depends on them (softmax): their gradient is rounding, and Adam's step its sign
            torch.testing.assert_close(theirs[name], tensor, atol=2e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(("straight", "model"), [("vision", "vision"), ("sharded", "model")])
def test_an_interrupted_run_of_two_processes_is_the_same_run(runs: Path, straight: str, model: str) -> None:
    assert told(runs / "two" / f"{straight}-resumed") == told(runs / "two" / straight)
    resumed = weights(runs / "two" / f"{straight}-resumed" / model)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in weights(runs / "two" / straight / model).items())


def test_one_process_writes_for_all(runs: Path) -> None:
    for run in (runs / "one" / "language", runs / "two" / "language"):
        assert len(told(run)) == STEPS and len(list((run / "tensorboard" / "language").iterdir())) == 1


@pytest.mark.parametrize(
    ("has", "emulates"),
    [({}, True), ({"avx512_f": True}, True), ({"avx512_bf16": True}, False), ({"amx_bf16": True}, False), ({"architecture": "aarch64"}, False)],
)
def test_bfloat16_is_emulated_where_an_x86_has_no_instructions_for_it(has: dict[str, object], emulates: bool) -> None:
    lacking = {"architecture": "x86_64", "avx512_f": False, "avx512_bf16": False, "amx_bf16": False}
    assert emulates_bf16(lacking | has) is emulates
    assert {"architecture", "avx512_bf16"} <= torch.cpu.get_capabilities().keys() or platform.machine() not in ("x86_64", "AMD64")


def test_every_pair_of_a_step_is_read_once() -> None:
    for processes, pieces, count in ((1, 1, 16), (2, 1, 5), (3, 2, 16), (2, 8, 16)):
        ranks = [cast(Accelerator, SimpleNamespace(num_processes=processes, process_index=rank)) for rank in range(processes)]
        read = [list(range(count))[piece] for rank in ranks for piece in own_slices(rank, count, pieces)]
        assert [pair for piece in read for pair in piece] == list(range(count)) and all(read)


def test_a_step_too_small_for_its_processes_is_refused() -> None:
    with pytest.raises(ValueError, match="3 pairs or faces does not fill 2 processes x 2 pieces; enlarge it"):
        own_slices(cast(Accelerator, SimpleNamespace(num_processes=2, process_index=0)), 3, 2)


if __name__ == "__main__":
    work_of_two(Path(sys.argv[1]))
