import threading
import time

import pytest
import torch

from twcli.models import runtime


def test_items_are_computed_side_by_side_and_come_in_order():
    here, waiting = [], threading.Barrier(2, timeout=60)

    def call(item):
        waiting.wait()  # passes only where two run at once
        here.append(threading.current_thread())
        assert torch.get_num_threads() == 1
        return item * item

    torch.set_num_threads(2)
    try:
        assert list(runtime.core_by_core(call, range(8), torch.device("cpu"))) == [
            i * i for i in range(8)
        ]
        assert torch.get_num_threads() == 2 and threading.current_thread() not in here
        for device, alone in (("cpu", True), ("meta", False)):
            threads = list(
                runtime.core_by_core(
                    lambda _: threading.current_thread(),
                    range(3),
                    torch.device(device),
                    alone=alone,
                )
            )
            assert threads == 3 * [threading.current_thread()]
        assert list(runtime.core_by_core(call, [], torch.device("cpu"))) == []
    finally:
        torch.set_num_threads(1)


def test_one_that_fails_ends_the_others_and_gives_the_threads_back():
    done = []

    def call(item):
        if item == 1:
            raise ValueError("broken")
        time.sleep(0.01)
        done.append(item)

    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError, match="broken"):
            list(runtime.core_by_core(call, range(1000), torch.device("cpu")))
        assert torch.get_num_threads() == 2 and len(done) < 1000
    finally:
        torch.set_num_threads(1)
