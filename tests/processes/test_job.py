"""Three processes on this machine play scenes, and end as the README says."""

import os
import re
import socket
import subprocess
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import pytest

from nml_jax.errors import PeerLost
from nml_jax.processes import job, peers
from nml_jax.processes.stderr import HeldStderr
from tests.launch.shell import ROOT, clean
from tests.scenes import process_scenes
from tests.scenes.process_scenes import LAST


def test_a_process_that_is_alone_waits_for_nobody():
    peers.barrier("anywhere", 0.001)
    assert peers.agree({"a": 1}) == {"a": 1}
    assert peers.gather({"a": 1}, "anywhere") == [{"a": 1}]
    with peers.track(lambda: "step 1"):
        pass
    assert peers.find_lost() is None
    assert len(peers.list_hosts()) == 1
    peers.finish()
    peers.leave(3, "it goes on", "")


def test_a_call_in_a_thread_returns_raises_or_times_out():
    assert job.in_thread(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        job.in_thread(lambda: 1 // 0)
    with pytest.raises(TimeoutError):
        job.in_thread(lambda: time.sleep(0.5), 0.01)


@pytest.mark.parametrize(
    ("greeting", "fault"),
    [
        (bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]), ""),
        (b"HTTP/1.1 400 Bad Request", "does not answer"),
        (b"", "does not answer"),
    ],
)
def test_whether_the_coordinator_answers(monkeypatch, greeting: bytes, fault: str):
    """An empty greeting is a stopped process, whose system still accepts the connection."""
    monkeypatch.setattr(job, "GRACE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def greet() -> None:
            with server.accept()[0] as connection:
                connection.sendall(greeting)
                connection.recv(64)

        with ThreadPoolExecutor() as pool:
            if greeting:
                pool.submit(greet)
            assert job._check_coordinator(f"127.0.0.1:{port}") == fault
    assert job._check_coordinator(f"127.0.0.1:{port}") == "is gone without a word"


def test_what_cpp_writes_is_held_and_pythons_stderr_is_not(capfd):
    held = HeldStderr()
    try:
        os.write(2, b"W one\nW recoverable task 2\n")
        print("ours", file=sys.stderr)
        assert held.read().startswith("W one")
        held.release()
        os.write(2, b"W two\nF lost the coordination service\n*** Check failure stack trace: ***\n")
        held.release(before=job.LOST)
        print("end", file=sys.stderr)
    finally:
        held.close()
    os.write(2, b"after\n")
    lost = "F lost the coordination service\n*** Check failure stack trace: ***\n"
    assert capfd.readouterr().err == f"ours\nW one\nW two\nend\n{lost}after\n"


def test_a_second_process_of_the_same_number_does_not_stop_the_job():
    class Client:
        def key_value_set(self, key: str, value: str) -> None:
            raise jax.errors.JaxRuntimeError(f"ALREADY_EXISTS: Config key {key} already exists.")

    peer: Any = types.SimpleNamespace(client=Client(), index=1, count=2, address="host0:1234")
    with pytest.raises(PeerLost, match="there is a process 1 of 2 at host0:1234 already"):
        job.Membership.register(peer)


def test_all_is_well():
    ended = process_scenes.play("all_is_well", timeout=20)
    assert [e.code for e in ended] == [0, 0, 0], ended
    assert "1 host(s), 3 process(es), 3 × cpu" in ended[0].out
    assert "mesh data=3 × fsdp=1" in ended[0].out
    assert "Traceback" not in "".join(e.out for e in ended)


def test_one_that_does_not_come_is_named():
    ended = process_scenes.play("all_is_well", timeout=6, absent={LAST})
    for e in ended:
        assert e.code == PeerLost.exit_code, e.out
        assert e.out.count("\n") == 1, e.out
        assert e.line.startswith("stopped: process 2 of 3 did not come within 6 s"), e.out


def test_bad_input_of_one_ends_all():
    *others, last = process_scenes.play("one_has_bad_input", timeout=20)
    assert last.code == 2
    assert last.out.endswith("error: there is no file 'x'\n  cure: give another\n")
    for other in others:
        assert other.code == PeerLost.exit_code
        assert re.fullmatch(r"stopped: process 2 \(.+\) of 3 ended with exit code 2: there is no file 'x'", other.line)
        assert "Traceback" not in other.out


@pytest.mark.slow
def test_a_lone_process_in_a_slurm_allocation_hears_how_to_run_alone():
    slurm = {"JOB_ID": "7", "STEP_NODELIST": "127.0.0.1", "NTASKS": "2", "PROCID": "0", "LOCALID": "0"}
    env = clean() | {f"SLURM_{key}": value for key, value in slurm.items()} | {"JAX_PLATFORMS": "cpu"}
    program = [sys.executable, "-m", "tests.scenes.process_scenes", "all_is_well", "8"]
    ended = subprocess.run(program, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert ended.returncode == PeerLost.exit_code, ended.stderr
    assert "run alone with SLURM_NTASKS=1 before the command" in ended.stderr.splitlines()[-1]
    assert "process 1 of 2 did not come within 8 s; SLURM_NTASKS=2 says" in ended.stderr


@pytest.mark.slow
def test_without_process_0_the_others_give_up():
    for e in process_scenes.play("all_is_well", timeout=8, absent={0}):
        assert e.code == PeerLost.exit_code, e.out
        assert re.match(r"stopped: process 0 of 3 did not answer at 127.0.0.1:\d+ \(which every host has", e.line), (
            e.out
        )


@pytest.mark.slow
def test_bad_input_of_all_is_reported_by_each():
    for e in process_scenes.play("all_have_bad_input", timeout=20):
        assert e.code == 2, e.out
        assert "error: there is no file 'x'" in e.out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scene", "culprit", "code", "cause"),
    [
        ("the_first_has_bad_input", 0, 2, r"process 0 \(.+\) of 3 ended with exit code 2: there is no file 'x'"),
        ("one_has_a_bug", LAST, 1, r"process 2 \(.+\) of 3 ended with exit code 1: KeyError: the bug"),
        ("one_is_killed", LAST, -9, r"process 2 \(.+\) of 3 is gone without a word"),
        ("one_is_killed_in_a_collective", LAST, -9, r"process 2 \(.+\) of 3 is gone without a word"),
        ("the_first_is_killed", 0, -9, r"process 0 \(.+\) of 3, the coordinator, is gone without a word"),
        ("the_first_stands_still", 0, 76, r"process 0 (\(.+\) )?of 3, the coordinator, does not answer"),
        ("one_hangs", LAST, -9, r"process 2 \(.+\) of 3 is gone without a word"),
        ("one_is_preempted_while_it_waits", LAST, 75, r"process 2 \(.+\) of 3 ended with exit code 75: asked to stop"),
    ],
)
def test_the_end_of_one_is_the_end_of_all(scene: str, culprit: int, code: int, cause: str):
    ended = process_scenes.play(scene, timeout=20)
    assert ended[culprit].code == code, ended[culprit].out
    for i, e in enumerate(ended):
        if i != culprit:
            assert e.code == PeerLost.exit_code, e.out
            assert re.match(f"stopped: {cause}", e.line), e.out
            assert "Traceback" not in e.out
            assert "stack trace" not in e.out


@pytest.mark.slow
def test_other_data_of_one_end_all_with_a_line_that_names_both():
    for e in process_scenes.play("one_reads_other_data", timeout=20):
        assert e.code == 2, e.out
        told = (
            r"error: process 2 \(.+\) of 3 has another data than most others: 180 records, not 200 records\n  cure: c"
        )
        assert re.search(told, e.out), e.out


@pytest.mark.slow
def test_sigterm_ends_a_process_that_is_blocked_in_a_collective():
    begun = time.monotonic()
    first, *others = process_scenes.play("one_is_stopped_in_a_collective", timeout=60)
    assert time.monotonic() - begun < 40  # not half of the timeout, in which the others could save
    assert first.code == 75, first.out
    assert "asked to stop, but still in step 1 (step) after 1 s" in first.out
    for e in others:
        assert e.code == PeerLost.exit_code, e.out
        assert re.match(r"stopped: process 0 \(.+\) of 3 ended with exit code 75: asked to stop", e.line), e.out


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (["200", "180"], "process 1 has another data than process 0: 180, not 200"),
        (["180", "200", "200"], "process 0 has another data than most others: 180, not 200"),
        (["200", None, "200"], "process 1 has another data than most others: nothing, not 200"),
        ([None, "5"], "process 1 has another data than process 0: 5, not nothing"),
        (["1", "2", "1", "3"], "process 1 and 3 has another data than most others: 2, not 1"),
    ],
)
def test_what_differs_between_processes_is_named(values: list[str | None], told: str):
    facts = [{"seed": "0"} | ({} if value is None else {"data": value}) for value in values]
    names = lambda numbers: f"process {' and '.join(map(str, numbers))}"  # noqa: E731
    assert peers.describe_difference(facts, names) == told


def test_a_second_signal_does_not_change_how_a_process_ends():
    for e in process_scenes.play("one_is_asked_again_and_again", timeout=20):
        assert e.code == 75, e.out
        assert e.line == "stopped: asked to stop: saved at step 4"
        assert "Traceback" not in e.out


@pytest.mark.slow
def test_a_process_that_holds_up_the_others_is_named():
    first, *others = process_scenes.play("one_stands_still", timeout=20)
    assert [e.code for e in (first, *others)] == [0, 0, 0], first.out
    lines = [line for line in first.out.splitlines() if line.startswith("no step for")]
    held, others_in = r"process 2 \(.+\) of 3 in pretrain: step 7", "the others in pretrain: step 9"
    assert re.fullmatch(rf"no step for \d s: {held}; {others_in}", lines[0])
    assert 1 <= len(lines) <= 3
    assert not any("no step" in e.out for e in others)


@pytest.mark.slow
def test_gather_returns_all_values_or_names_who_is_missing():
    for e in process_scenes.play("all_gather", timeout=20):
        assert e.code == PeerLost.exit_code, e.out
        assert "process 2" in e.line or "ended with exit code 76" in e.line, e.out
        assert "Traceback" not in e.out
        assert "AssertionError" not in e.out


@pytest.mark.slow
def test_a_process_late_at_a_barrier_is_named():
    *others, last = process_scenes.play("one_is_late", timeout=20)
    for e in others:
        assert e.code == PeerLost.exit_code, e.out
        assert re.match(r"stopped: process 2 \(.+\) of 3 did not reach 'the gate' within 3 s", e.line), e.out
    assert last.code == PeerLost.exit_code
    assert "did not reach 'the gate'" in last.line


@pytest.mark.slow
def test_all_preempted_processes_report_it_however_long_they_save():
    for e in process_scenes.play("all_are_preempted", timeout=20):
        assert (e.code, e.line) == (75, "stopped: asked to stop: saved at step 4"), e.out
