"""One step over several processes: who reads what, what its losses weigh, and how the weights are held.

A step is the same whoever shares it: its batch is a function of (seed, step), each process takes its part of that batch, in one or several pieces,
and a loss counts by the faces, tokens or masks it stands on, never as a mean of means. One process and many descend the same loss, up to rounding.
"""

import sys
from collections.abc import Collection, Mapping

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import reduce
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers.modeling_layers import GradientCheckpointingLayer

from trainer.config import Precision


def join_processes() -> Accelerator:
    """This process and its device: alone, or one of those that `torchrun` or `accelerate launch` started."""
    # Without `cpu`, accelerate 1.15 takes the processes of torchrun on a machine without accelerator for as many runs of one process each.
    # Precision is ours to say (autocast in the steps), whatever `accelerate config` holds.
    return Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision="no")


def emulates_bf16(capabilities: Mapping[str, object]) -> bool:
    """Whether a CPU (`torch.cpu.get_capabilities()`) computes bfloat16 by way of other types: x86 without AVX-512 BF16 and AMX.

    Of other makes nothing is said.
    """
    return capabilities.get("architecture") == "x86_64" and not any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))


def tell_of_emulation(accelerator: Accelerator, precision: Precision) -> None:
    """Say on stderr, once for all processes, that this CPU had better train in the other precision."""
    if accelerator.device.type == "cpu" and precision == "bf16" and emulates_bf16(torch.cpu.get_capabilities()):
        told = "this CPU emulates bfloat16: a vision step takes about three times as long as in float32; end this run and add --precision fp32"
        accelerator.print(f"note: {told}", file=sys.stderr)


def own_slices(accelerator: Accelerator, count: int, pieces: int) -> list[slice]:
    """Which of the `count` pairs or faces of a step this process reads, in `pieces` pieces one after the other."""
    of = accelerator.num_processes * pieces
    if of > count:
        raise ValueError(f"a step of {count} pairs or faces does not fill {accelerator.num_processes} processes x {pieces} pieces; enlarge it")
    bounds = [count * number // of for number in range(of + 1)]
    first = accelerator.process_index * pieces
    return [slice(bounds[number], bounds[number + 1]) for number in range(first, first + pieces)]


def loss_shares(counts_AN: Tensor) -> Tensor:
    """What the losses of this process's pieces weigh in the whole step, (A, N): A pieces, N losses, each a mean over its count (at least 1)."""
    return counts_AN.clamp(min=1) / reduce(counts_AN.sum(0), "sum").clamp(min=1)


def seed_step(accelerator: Accelerator, seed: int, step: int) -> None:
    """Whatever torch draws in a step (dropout) is a function of (seed, step, process), so that a checkpoint holds no generator."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, accelerator.process_index]).generate_state(1)[0]))


def hold(accelerator: Accelerator, step: nn.Module, *, shard: bool = False, apart: Collection[nn.Parameter] = ()) -> nn.Module:
    """A step on its device, with gradients averaged over the processes: as it is, under DDP, or with its weights cut over the processes (FSDP2).

    Where weights are cut, those `apart` stay whole in every process: what is not trained and called outside the step.
    """
    if not shard or accelerator.num_processes == 1:
        held: nn.Module = accelerator.prepare_model(step)
        return held
    # `fully_shard` itself, not accelerate's plugin around it: accelerate 1.15 leaves the plugin aside on CPUs, and takes one per process for good,
    # where the vision stage has none.
    mesh, kept = init_device_mesh(accelerator.device.type, (accelerator.num_processes,)), set(apart)
    for layer in step.modules():
        if isinstance(layer, GradientCheckpointingLayer) and not kept.issuperset(layer.parameters()):  # a transformer layer, whatever model it is of
            fully_shard(layer, mesh=mesh)
    fully_shard(step, mesh=mesh, ignored_params=kept)
    return step
