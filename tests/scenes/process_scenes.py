"""Let a process of a job play a scene, for tests: `python -m tests.scenes.process_scenes SCENE TIMEOUT`."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.scenes import programs

ROOT = Path(__file__).parents[2]
LAST = 2  # of three processes


class Ended(NamedTuple):
    """The end of a process: its exit code and its output."""

    code: int
    out: str

    @property
    def line(self) -> str:
        return self.out.strip().splitlines()[-1] if self.out.strip() else ""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def environment(index: int, count: int, port: int) -> dict[str, str]:
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(index),
    }


def begin(program: Sequence[str], count: int = 2, *, absent: Collection[int] = ()) -> list[subprocess.Popen]:
    """Start the processes of a job, except the absent ones; stderr goes to stdout."""
    port = free_port()
    return [
        programs.Popen(
            [sys.executable, *program], cwd=ROOT, env=environment(i, count, port), stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        ) for i in range(count) if i not in absent
    ]  # fmt: skip


def end(started: Sequence[subprocess.Popen], timeout: float) -> list[Ended]:
    """Wait for the processes to end, and kill those that do not."""
    try:
        outs = [process.communicate(timeout=timeout)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [Ended(process.returncode, out) for process, out in zip(started, outs, strict=True)]


def play(scene: str, *, timeout: int, count: int = 3, absent: Collection[int] = ()) -> list[Ended]:
    """Let `count` processes play a scene, except the absent ones."""
    return end(begin(["-m", "tests.scenes.process_scenes", scene, str(timeout)], count, absent=absent), 120)


# ---- scenes: what a process does once it has joined


def kill(signal_: int = signal.SIGKILL) -> None:
    time.sleep(1)  # the others are waiting by then
    os.kill(os.getpid(), signal_)


def one_has_bad_input(index: int, timeout: int) -> None:
    from nml_jax.errors import UserError

    if index == LAST:
        raise UserError("there is no file 'x'", "give another")
    time.sleep(60)


def all_have_bad_input(index: int, timeout: int) -> None:
    one_has_bad_input(LAST, timeout)


def the_first_has_bad_input(index: int, timeout: int) -> None:
    one_has_bad_input(LAST if index == 0 else 0, timeout)


def one_has_a_bug(index: int, timeout: int) -> None:
    if index == LAST:
        raise KeyError("the bug")
    time.sleep(60)


def one_is_killed(index: int, timeout: int) -> None:
    from nml_jax.processes import peers

    if index == LAST:
        kill()
    peers.agree(index)
    time.sleep(60)


def the_first_is_killed(index: int, timeout: int) -> None:
    from nml_jax.processes import peers

    if index == 0:
        kill()
    peers.agree(index)


def one_hangs(index: int, timeout: int) -> None:
    from nml_jax.processes import peers

    if index == LAST:
        subprocess.Popen(["sh", "-c", f"sleep 40; kill -9 {os.getpid()}"])  # a stopped process cannot end itself
        os.kill(os.getpid(), signal.SIGSTOP)
    peers.agree(index)
    time.sleep(60)


def one_is_killed_in_a_collective(index: int, timeout: int) -> None:
    from nml_jax import runtime

    if index == LAST:
        kill()
    runtime.check_devices(runtime.make_mesh(), 100)
    time.sleep(60)


def one_is_late(index: int, timeout: int) -> None:
    from nml_jax.processes import peers

    if index == LAST:
        time.sleep(6)
    peers.barrier("the gate", 3)


def all_are_preempted(index: int, timeout: int) -> None:
    from nml_jax.errors import Preempted

    time.sleep(0 if index else 3)  # the first takes longer to save
    raise Preempted("asked to stop: saved at step 4")


def the_first_stands_still(index: int, timeout: int) -> None:
    if index == 0:
        subprocess.Popen(["sh", "-c", f"sleep {timeout}; kill -CONT {os.getpid()}"])
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(60)


def one_is_asked_again_and_again(index: int, timeout: int) -> None:
    from nml_jax.errors import Preempted

    if index == 0:  # process 0 ends last: it waits for the reports of the others
        again = f"for i in 1 2 3; do sleep 0.3; kill -TERM {os.getpid()}; kill -INT {os.getpid()}; done"
        subprocess.Popen(["sh", "-c", again], stderr=subprocess.DEVNULL)
    time.sleep(1.8 if index else 0)
    raise Preempted("asked to stop: saved at step 4")


def one_stands_still(index: int, timeout: int) -> None:
    from nml_jax.processes import peers, progress

    progress.STILL = 2.0
    with peers.track("pretrain"), peers.track(lambda: f"step {7 if index == LAST else 9}"):
        time.sleep(7)


def all_gather(index: int, timeout: int) -> None:
    from nml_jax.processes import peers

    for k in range(3):
        time.sleep(0.1 * index)
        assert peers.gather([index, k], "the round") == [[i, k] for i in range(3)]
    if index != LAST:
        peers.gather("I am here", "the last round", slack=1 - timeout)
    time.sleep(60)


def one_reads_other_data(index: int, timeout: int) -> None:
    from nml_jax.processes import peers

    peers.require_same(lambda: {"config.seed": "0", "data": "200 records"}, "copy it")
    peers.require_same(lambda: {"config.seed": "0", "data": f"{180 if index == LAST else 200} records"}, "copy it")


def one_is_stopped_in_a_collective(index: int, timeout: int) -> None:
    """Process 0 waits in compiled code for others that do not come, and is asked to stop."""
    import jax
    import jax.numpy as jnp

    from nml_jax import runtime
    from nml_jax.processes import peers
    from nml_jax.processes.sigterm import Preemption

    Preemption.UNKNOWN = 1.0
    mesh = runtime.make_mesh()
    numbers = runtime.put_batch(mesh)({"x": jnp.ones((1,))})["x"]
    if index > 0:
        time.sleep(60)
    subprocess.Popen(["sh", "-c", f"sleep 2; kill -TERM {os.getpid()}"])
    with peers.track("step 1 (step)"), Preemption(peers.find_position):
        jax.block_until_ready(jax.jit(jnp.sum, out_shardings=runtime.replicated_sharding(mesh))(numbers))


def the_first_cannot_write_for_a_while(index: int, timeout: int, until: int = 7) -> None:
    """Train 12 steps; process 0 cannot write from before the save of step 4 until the batch of step `until` + 1."""
    import resource

    from nml_jax import runtime
    from nml_jax.training import checkpoint
    from tests.training import tiny

    checkpoint.LIMIT, checkpoint.PATIENCE = 20, 1.0
    run = tiny.Run(Path(os.environ["FOLDER"]), tiny.tiny_config(**{"model.blocks": (1,)}), runtime.make_mesh())
    free = resource.getrlimit(resource.RLIMIT_FSIZE)

    def batches(start: int) -> Iterator[tuple[Mapping[str, Any], Any]]:
        for k, (batch, quarantined) in enumerate(tiny.random_batches(16)(start), start):
            if index == 0 and k in (3, until):
                resource.setrlimit(resource.RLIMIT_FSIZE, (4_500, free[1]) if k == 3 else free)
            own = slice(index * 8, index * 8 + 8)
            yield {name: rows[own] for name, rows in batch.items()}, quarantined[own]

    run.train(batches)


def the_first_cannot_write(index: int, timeout: int) -> None:
    the_first_cannot_write_for_a_while(index, timeout, until=99)


def one_is_preempted_while_it_waits(index: int, timeout: int) -> None:
    from nml_jax.processes import peers

    if index == 0:
        time.sleep(60)
    if index == LAST:
        subprocess.Popen(["sh", "-c", f"sleep 1; kill -TERM {os.getpid()}"])
    peers.agree(index)


def list_listening() -> set[str]:
    """Return the addresses, in hexadecimal digits as in /proc/net/tcp, at which this process listens."""
    own = {os.readlink(fd.path) for fd in os.scandir("/proc/self/fd") if os.path.islink(fd.path)}
    fields = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    return {field[1].split(":")[0] for field in fields if field[3] == "0A" and f"socket:[{field[9]}]" in own}


def all_is_well(index: int, timeout: int) -> None:
    import numpy as np

    from nml_jax import runtime
    from nml_jax.processes import peers

    mesh = runtime.make_mesh()
    runtime.check_devices(mesh, timeout)
    rows = np.arange(6.0, dtype=np.float32).reshape(3, 2)
    tree = runtime.to_mesh({"none": None, "list": [{}, np.float32(7), np.arange(3)]}, mesh)
    found = runtime.fetch(tree | runtime.put_batch(mesh)({"rows": rows[index : index + 1]}), mesh)
    assert found["none"] is None
    assert found["list"][0] == {}
    for given, expected in ((found["rows"], rows), (found["list"][1], 7), (found["list"][2], np.arange(3))):
        np.testing.assert_array_equal(given, expected)
    assert list_listening() <= {"0100007F", f"{'0' * 16}{'FFFF0000'}0100007F"}, list_listening()
    if index == 0:
        time.sleep(2)  # the others wait for it, longer than they would at a barrier
        print(runtime.describe(mesh))
    assert peers.agree(["first", index]) == ["first", 0]
    assert [peers.agree(index + k) for k in range(3)] == [0, 1, 2]
    for _ in range(2):
        peers.barrier("twice the same", timeout)
    time.sleep(1 if index == 0 else 0)  # the report


SCENES: dict[str, Callable[[int, int], None]] = {
    scene.__name__: scene
    for scene in (
        all_are_preempted, all_gather, all_have_bad_input, all_is_well, one_hangs, one_has_a_bug,
        one_has_bad_input, one_is_asked_again_and_again, one_is_killed, one_is_killed_in_a_collective, one_is_late,
        one_is_stopped_in_a_collective, one_reads_other_data,
        one_is_preempted_while_it_waits, one_stands_still, the_first_cannot_write,
        the_first_cannot_write_for_a_while, the_first_has_bad_input, the_first_is_killed, the_first_stands_still,
    )
}  # fmt: skip


def main(name: str, timeout: str) -> int:
    from nml_jax import main as program
    from nml_jax.processes import job, peers

    def scene(_: Sequence[str]) -> None:
        peers.start(int(timeout))
        SCENES[name](int(os.environ["JAX_PROCESS_ID"]), int(timeout))

    job.GRACE = 1.0
    program.main, program.parse = scene, list  # the scene in place of an experiment
    return program.run([])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
