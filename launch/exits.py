"""Decide what to do after a job from the exit codes of its processes. Every launcher uses this.

python launch/exits.py 75 75 prints "resume 75: pre-empted and saved; the same command continues".
"""

import signal
import sys
from collections.abc import Sequence

PREEMPTED, PEER_LOST = 75, 76  # see nml_jax/errors.py
KEYBOARD = 128 + signal.SIGINT
GONE = 255  # a container whose host went down

# A job is started again after these: our own two codes, and deaths by any signal except the keyboard's. gke_jobset.yaml
# repeats the list for Kubernetes.
AGAIN = frozenset({PREEMPTED, PEER_LOST, *range(129, 160), GONE} - {KEYBOARD})

STOPS = {
    2: "bad input; the two lines above give the cause and the cure",
    77: "a loss or a metric is not finite; the message above names the place and the examples",
    KEYBOARD: "interrupted from the keyboard; the same command continues",
}


def decide(codes: Sequence[int]) -> tuple[str, int, str]:
    """Return (word, exit code, line for the operator) of a job whose processes ended with `codes`.

    The word is one of:
        done: the job is finished.
        resume: all processes saved; run the same command again.
        restart: a process was lost or killed; run the same command again from the last checkpoint.
        stop: trying again would end the same way; a person must look.

    A death by signal n is 128 + n (shells) or -n (Python).
    """
    codes = [128 - code if code < 0 else code for code in codes]
    own = [code for code in codes if code and code not in AGAIN]
    if own:
        code = next((code for code in STOPS if code in own), own[0])
        return "stop", code, STOPS.get(code, "an error in the program; the traceback is above")
    if not codes or any(code not in (0, PREEMPTED) for code in codes):
        return "restart", PEER_LOST, "a process was lost; the same command continues from the last checkpoint"
    if any(codes):
        return "resume", PREEMPTED, "pre-empted and saved; the same command continues"
    return "done", 0, "done"


if __name__ == "__main__":
    try:
        word, code, line = decide([int(argument) for argument in sys.argv[1:]])
    except ValueError as e:
        print(f"error: {e}\n  cure: give the exit codes of a job's processes, as in: exits.py 75 76", file=sys.stderr)
        sys.exit(2)
    print(f"{word} {code}: {line}")
