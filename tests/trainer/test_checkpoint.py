"""What a checkpoint holds: everything to go on, and nothing that runs when read."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from trainer import checkpoint
from trainer.checkpoint import Ema, load_model, resume_training, save_model, save_training
from trainer.config import tiny
from trainer.model import FiFaMLLM


def trained(steps: int) -> tuple[FiFaMLLM, Ema, torch.optim.Optimizer]:
    torch.manual_seed(steps)
    model = FiFaMLLM(tiny().model)
    ema = Ema(model.encoder, 0.9)
    optimizer = torch.optim.AdamW(model.encoder.parameters(), lr=1e-2)
    for step in range(steps):
        optimizer.zero_grad()
        model.encoder(torch.randn(2, 3, 56, 56)).det_logit_B.sum().backward()
        optimizer.step()
        ema.update(model.encoder, step)
    return model, ema, optimizer


def test_resuming_restores_weights_average_and_moments(tmp_path: Path) -> None:
    model, ema, optimizer = trained(2)
    save_training(tmp_path, model=model, ema=ema, optimizer=optimizer, step=2, config=tiny())
    other, other_ema, other_optimizer = trained(0)
    assert resume_training(tmp_path, model=other, ema=other_ema, optimizer=other_optimizer) == 2
    for (name, one), two in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two), name
    assert all(torch.equal(ema.shadow[name], other_ema.shadow[name]) for name in ema.shadow)
    one_state, other_state = optimizer.state_dict()["state"], other_optimizer.state_dict()["state"]
    assert one_state.keys() == other_state.keys()
    assert all(torch.equal(value, other_state[index][key]) for index, entry in one_state.items() for key, value in entry.items())


@pytest.mark.parametrize("operation", range(6))
def test_a_crash_while_saving_leaves_the_old_or_the_new_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: int) -> None:
    folder, states = tmp_path / "checkpoint", {step: trained(step) for step in (1, 2)}
    model, ema, optimizer = states[1]
    save_training(folder, model=model, ema=ema, optimizer=optimizer, step=1, config=tiny())
    left = iter(range(operation))

    def or_crash(work: Callable[..., object]) -> Callable[..., object]:
        def step(*arguments: object, **options: object) -> object:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return work(*arguments, **options)

        return step

    monkeypatch.setattr(checkpoint, "save_file", or_crash(save_file))  # three of them, then two renames
    monkeypatch.setattr(Path, "rename", or_crash(Path.rename))
    model, ema, optimizer = states[2]
    with pytest.raises(KeyboardInterrupt) if operation < 5 else nullcontext():
        save_training(folder, model=model, ema=ema, optimizer=optimizer, step=2, config=tiny())
    monkeypatch.undo()
    other, other_ema, other_optimizer = trained(0)
    found = resume_training(folder, model=other, ema=other_ema, optimizer=other_optimizer)
    assert found == (2 if operation == 5 else 1)
    model, ema, optimizer = states[found]
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(ema.shadow[name], other_ema.shadow[name]) for name in ema.shadow)
    assert other_optimizer.state_dict()["state"][0]["step"] == found


def test_without_a_checkpoint_a_run_starts_at_zero(tmp_path: Path) -> None:
    model, ema, optimizer = trained(0)
    assert resume_training(tmp_path, model=model, ema=ema, optimizer=optimizer) == 0


def test_a_checkpoint_is_tensors_and_json_only(tmp_path: Path) -> None:
    model, ema, optimizer = trained(1)
    save_training(tmp_path / "training", model=model, ema=ema, optimizer=optimizer, step=1, config=tiny())
    save_model(tmp_path / "model", model, tiny(), {"stage": "test"})
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json"}
    for path in files:
        assert not path.read_bytes().startswith((b"\x80", b"PK")), f"{path.name} is a pickle or a zip archive"
        if path.suffix == ".safetensors":
            load_file(path)


def test_a_saved_model_comes_back_whole(tmp_path: Path) -> None:
    model, _, _ = trained(1)
    save_model(tmp_path, model, tiny(), {})
    loaded, config = load_model(tmp_path)
    assert config == tiny() and not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert loaded.language.lm_head.weight.data_ptr() == loaded.language.model.embed_tokens.weight.data_ptr()


def test_a_checkpoint_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    model, _, _ = trained(0)
    save_model(tmp_path, model, tiny(), {})
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("encoder.det_head.0.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match=r"encoder\.det_head\.0\.weight"):
        load_model(tmp_path)


def test_a_head_that_is_not_the_embeddings_is_kept(tmp_path: Path) -> None:
    config = tiny().model
    untied = LlamaConfig(
        vocab_size=config.vocab_size, hidden_size=config.lm_width, intermediate_size=config.lm_mlp, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    models = [FiFaMLLM(config, LlamaForCausalLM(untied)) for _ in range(2)]
    optimizers = [torch.optim.AdamW(model.projector.parameters()) for model in models]
    averages = [Ema(model.projector, 0.9) for model in models]
    save_training(tmp_path, model=models[0], ema=averages[0], optimizer=optimizers[0], step=1, config=tiny())
    assert resume_training(tmp_path, model=models[1], ema=averages[1], optimizer=optimizers[1]) == 1
    assert torch.equal(models[0].language.lm_head.weight, models[1].language.lm_head.weight)


def test_what_is_not_trained_has_no_average() -> None:
    module = nn.Linear(2, 1)
    module.bias.requires_grad_(False)
    ema = Ema(module, 0.9)
    ema.update(module, 0)
    ema.copy_to(module)
    assert list(ema.shadow) == ["weight"]


def test_a_young_average_moves_faster_than_an_old_one() -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    ema = Ema(module, 0.99)
    nn.init.ones_(module.weight)
    ema.update(module, 0)
    assert ema.shadow["weight"].item() == pytest.approx(1 - 1 / 10)
    nn.init.zeros_(module.weight)
    ema.update(module, 10_000)
    assert ema.shadow["weight"].item() == pytest.approx(0.9 * 0.99)
    ema.copy_to(module)
    assert module.weight.item() == pytest.approx(0.9 * 0.99)


def test_a_folder_without_a_model_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no model; finish its stage first with: fifa-train train"):
        load_model(tmp_path / "vision")
