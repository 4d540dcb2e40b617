"""SIGTERM ends a process outside of the training loop, even where an exception would be lost or do harm."""

import os
import signal
import subprocess
import sys
import time

import pytest

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
    assert (ended.returncode, ended.stderr) == (75, b"")


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
