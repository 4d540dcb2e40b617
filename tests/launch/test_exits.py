"""Test the decision about a job from the exit codes of its processes."""

import signal

import pytest
import yaml

from nml_jax import errors
from tests.launch.shell import LAUNCH, load, refused, run


@pytest.mark.parametrize(
    ("codes", "word", "code"),
    [
        ((0,), "done", 0),
        ((0, 0), "done", 0),
        ((75, 75), "resume", 75),
        ((0, 75), "resume", 75),
        ((76, 75), "restart", 76),
        ((76, 0), "restart", 76),
        ((137, 76), "restart", 76),
        ((-9, 76), "restart", 76),
        ((134, 134), "restart", 76),
        ((143, 75), "restart", 76),
        ((), "restart", 76),
        ((77, 77), "stop", 77),
        ((76, 77), "stop", 77),
        ((2, 76), "stop", 2),
        ((76, 2, 137), "stop", 2),
        ((77, 2), "stop", 2),
        ((1, 76), "stop", 1),
        ((1, 77), "stop", 77),
        ((132, 136), "restart", 76),
        ((255,), "restart", 76),
        ((127,), "stop", 127),
        ((130, 130), "stop", 130),
        ((-2, 75), "stop", 130),
    ],
)
def test_decide(codes: tuple[int, ...], word: str, code: int):
    assert load("exits").decide(codes)[:2] == (word, code)


def test_the_command():
    done = run("exits.py", "75", "76")
    assert done.returncode == 0
    assert done.stdout == "restart 76: a process was lost; the same command continues from the last checkpoint\n"


def test_the_codes_are_those_of_the_package():
    raised = (errors.UserError, errors.Preempted, errors.PeerLost, errors.NonFinite)
    words = [load("exits").decide([error.exit_code])[0] for error in raised]
    assert words == ["stop", "resume", "restart", "stop"]


def test_kubernetes_starts_again_after_the_same_codes():
    template = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text("utf-8"))
    ((rule,),) = (
        job["template"]["spec"]["podFailurePolicy"]["rules"] for job in template["spec"]["replicatedJobs"]
    )  # fmt: skip
    assert rule["onExitCodes"]["operator"] == "NotIn"
    again = rule["onExitCodes"]["values"]
    assert again == sorted(set(again)), "Kubernetes requires sorted codes"
    assert set(again) == {code for code in range(1, 256) if load("exits").decide([code])[0] in ("resume", "restart")}
    deaths = {128 + number for number in signal.Signals if number < signal.SIGRTMIN and number != signal.SIGINT}
    assert deaths <= set(again)


def test_a_word_is_refused():
    assert "'x'" in refused("exits.py", "75", "x")
