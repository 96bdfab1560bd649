"""Runs `twcli train ...` and stores the gradients of its first step, for `torture.py` to compare one process with two.

    python tests/dump_gradients.py FILE.safetensors train ...            one process, on the batches of two
    torchrun --nproc_per_node 2 tests/dump_gradients.py FILE.safetensors train ...
"""

import os
import sys

import numpy as np
from accelerate import Accelerator
from safetensors.torch import save_file

from twcli import trainer
from twcli.cli import main

batches, clip = trainer.batches, Accelerator.clip_grad_norm_


def joined(*arguments, rank, processes):
    pairs = zip(*(batches(*arguments, rank=r, processes=2) for r in (0, 1)), strict=True)
    return ((stage, np.concatenate([one, two])) for (stage, one), (_, two) in pairs)


def dumping(accelerator, parameters, limit):
    parameters = list(parameters)
    if accelerator.is_main_process and not os.path.exists(sys.argv[1]):
        save_file({str(i): p.grad.clone() for i, p in enumerate(parameters) if p.grad is not None}, sys.argv[1])
    return clip(accelerator, parameters, limit)


Accelerator.clip_grad_norm_ = dumping
if "RANK" not in os.environ:
    trainer.batches = joined
main(sys.argv[2:])
