"""Runs `twcli train ...` and stores the gradients of its first step, for `torture.py` to
compare one process with two.

python -m tests.dump_gradients FILE.safetensors train ... --accumulate 2
accelerate launch --multi_gpu --num_processes 2 -m tests.dump_gradients FILE.safetensors train ...
"""

import os
import sys

from accelerate import Accelerator
from safetensors.torch import save_file

from twcli.cli.main import main

clip = Accelerator.clip_grad_norm_


def dumping(accelerator, parameters, limit):
    parameters = list(parameters)
    if accelerator.is_main_process and not os.path.exists(sys.argv[1]):
        save_file(
            {str(i): p.grad.clone() for i, p in enumerate(parameters) if p.grad is not None},
            sys.argv[1],
        )
    return clip(accelerator, parameters, limit)


Accelerator.clip_grad_norm_ = dumping
main(sys.argv[2:])
