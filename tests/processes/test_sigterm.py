"""SIGTERM ends a process outside of the training loop, even where an exception would be lost or do harm."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from nml_jax.processes import sigterm
from nml_jax.processes.sigterm import on_sigterm
from tests.launch.shell import ROOT, clean

SCENES = {
    "in a destructor, which drops exceptions": """
        class Dropped:
            def __del__(self):
                os.kill(os.getpid(), signal.SIGTERM)
        Dropped()
        time.sleep(60)
    """,
    "while compiled code keeps the main thread": """
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
    """,
    "in the loop, blocked in compiled code for ever": """
        from nml_jax.processes.sigterm import Preemption
        Preemption.UNKNOWN = 0.5
        with Preemption(lambda: "step 7 (step)"):
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
    """,
    "twice": """
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    """,
    "in the loop, after its last look": """
        from nml_jax.processes.sigterm import Preemption
        with Preemption() as preemption:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)
            assert preemption.asked
        time.sleep(60)
    """,
}


@pytest.mark.parametrize("scene", SCENES)
def test_the_process_ends(scene: str):
    lines = ["import hashlib, os, signal, threading, time", "from nml_jax.processes import sigterm",
             "with sigterm.on_sigterm(lambda: os._exit(75)):", *SCENES[scene].splitlines()]  # fmt: skip
    program = "\n".join(lines)
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=clean(), timeout=30, capture_output=True)
    stuck = b"asked to stop, but still in step 7 (step) after 0 s: another process does not come\n"
    assert (ended.returncode, ended.stderr) == (75, stuck if "for ever" in scene else b"")


def test_a_loop_that_goes_on_is_not_ended(monkeypatch):
    """A step may take as long as the ones before; where a process saves, or is alone, it may take for ever."""
    monkeypatch.setattr(sigterm.Preemption, "PATIENCE", 0.0)
    ended = []

    def wait(place: str, *seconds: float, alone: bool = False) -> bool:
        loop = sigterm.Preemption(None if alone else lambda: place)
        loop.seconds.extend((9.0, *seconds))  # the first is compiled
        threading.Timer(0.5, loop.left.set).start()
        loop.end_if_stuck(lambda: ended.append(place))
        return bool(ended) and ended.pop() == place

    assert wait("step 7 (step)", 0.01)
    assert not wait("step 7 (step)", 5.0)
    assert not wait("step 7 (step)")
    assert not wait("step 7 (save)", 0.01)
    assert not wait("step 7 (step)", 0.01, alone=True)


def test_other_signals_and_other_handlers_are_left_alone():
    calls = []
    before = signal.getsignal(signal.SIGTERM)
    with on_sigterm(lambda: calls.append("end")):
        usual = signal.signal(signal.SIGUSR1, lambda *_: calls.append("usr1"))
        os.kill(os.getpid(), signal.SIGUSR1)
        signal.signal(signal.SIGUSR1, usual)
        within = signal.signal(signal.SIGTERM, lambda *_: calls.append("own"))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)  # the watching thread must see the other handler
        signal.signal(signal.SIGTERM, within)
    assert calls == ["usr1", "own"]
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.set_wakeup_fd(-1) == -1
