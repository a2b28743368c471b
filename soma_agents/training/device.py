"""What a training run computes on."""

import torch

CPU = torch.device("cpu")


def best_device() -> torch.device:
    """A GPU where torch finds one, else the CPU; `CUDA_VISIBLE_DEVICES=` hides those there are."""
    return torch.device("cuda") if torch.cuda.is_available() else CPU
