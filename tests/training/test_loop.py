"""The loop: restarting, stopping, placement, files."""

import dataclasses
import json
import os
import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nml_jax import runtime
from nml_jax.errors import NonFinite, Preempted
from nml_jax.training import loop
from tests.training.tiny import host, random_batches, step_batch


def stop_after(batches, step: int):
    """Return the same batches, but send SIGTERM to this process while it reads that of `step`."""

    def stopping(start: int) -> Iterator:
        for k, batch in enumerate(batches(start), start):
            if k == step:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    return stopping


def test_plan():
    class Config:
        class train:
            batch, epochs = 16, 2.5

    plan = loop.Plan.from_config(Config, 40)  # type: ignore[arg-type]
    assert plan == (6, 2.5)  # 2.5 epochs of 2.5 steps, rounded half to even
    assert (plan.to_steps(1.0), plan.to_steps(0.0), plan.to_steps(0.1)) == (2, 6, 1)


def test_n_steps_are_k_steps_and_a_restart_and_n_minus_k_steps(make_run):
    whole = host(make_run("whole").train())
    broken = make_run("broken")
    with pytest.raises(Preempted, match="step 6"):
        broken.train(stop_after(random_batches(16), 3))  # the signal comes with batch 3, step 4, and is read LAG later
    resumed = host(broken.train())
    assert resumed.keys() == whole.keys()
    for name in whole:
        np.testing.assert_array_equal(resumed[name], whole[name], err_msg=name)
    metrics = {}
    for name in ("whole", "broken"):
        lines = [json.loads(x) for x in (broken.folder.parent / name / "metrics.jsonl").read_text().splitlines()]
        metrics[name] = {line["step"]: line.get("train/lr") for line in lines}
    assert metrics["whole"] == metrics["broken"]


def test_a_finished_run_reads_no_batch(make_run):
    run = make_run()
    first = host(run.train())

    def none(start: int) -> Iterator:
        raise AssertionError("a finished run reads no batch")

    again = host(run.train(none))
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])


def test_sigterm_is_caught_only_while_training(make_run):
    before = signal.getsignal(signal.SIGTERM)
    make_run().train()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(make_run, capsys):
    """Batch 6, step 7 of 12, has a NaN in its mask on one of the eight devices."""
    run, clean = make_run("poisoned"), make_run("clean")
    skip = {6}
    state = run.train(random_batches(16, poison=skip))
    assert state.skipped.tolist() == [1, 0]
    expected = clean.program.init(jax.random.key(0))
    for step in range(12):
        before = jax.tree.map(jnp.copy, expected)
        expected, _ = clean.program.step(expected, *step_batch(clean, step))
        if step in skip:
            after = before.params, before.model_state, before.ema, before.opt_state
            names = "params", "model_state", "ema", "opt_state"
            expected = dataclasses.replace(expected, **dict(zip(names, after, strict=True)))
    ours, theirs = host(state), host(expected)
    for name in ours.keys() - {".skipped"}:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    ids = next(random_batches(16)(6))[0]["id"]
    assert f"step 7 was skipped: its loss or gradient is not finite; ids of its batch: {ids[0]}, {ids[1]}" in (
        capsys.readouterr().err
    )
    lines = [json.loads(x) for x in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert {line["step"]: line["train/skipped"] for line in lines}[8] == 0.5  # one of steps 7 and 8
    assert all(np.isfinite(list(line.values())).all() for line in lines)


def test_too_many_steps_that_are_not_finite_stop_the_run_with_their_ids(make_run):
    run = make_run(**{"runtime.max_skipped": 3})
    ids = next(random_batches(16)(8))[0]["id"]
    with pytest.raises(NonFinite, match=rf"3 steps in a row .*step 9; ids of its batch: {ids[0]}, {ids[1]}"):
        run.train(random_batches(16, poison=range(6, 99)))
    checkpoints = run.checkpoints()
    kept = host(checkpoints.restore(run.program.shapes))
    checkpoints.close()
    assert kept[".step"] == 8
    assert kept[".skipped"].tolist() == [2, 2]
    assert np.isfinite(kept[".params['head']['kernel']"]).all()


def test_the_ids_of_every_step_are_written(make_run):
    run = make_run(**{"runtime.sample_ids": True})
    run.train()
    lines = [json.loads(x) for x in (run.folder / "samples.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))
    batches = random_batches(16)(0)
    for line in lines:
        assert line["ids"] == next(batches)[0]["id"].tolist()


def test_records_that_others_stand_in_for_reach_the_quarantine(make_run):
    run, plain = make_run(), random_batches(16)

    def batches(start: int) -> Iterator:
        for step, (batch, _) in enumerate(plain(start), start):
            yield batch, np.where(np.arange(16) == step, 7 * step, -1).astype(np.int32)

    run.train(batches)
    assert run.quarantined == [7 * step for step in range(12)]


def test_parameters_are_sharded_from_the_start_with_optimiser_state_and_ema(make_run, monkeypatch):
    monkeypatch.setattr(runtime, "SHARD_FROM", 64)
    loop._build.cache_clear()
    run = make_run(fsdp=4)
    state = run.program.init(jax.random.key(0))
    loop._build.cache_clear()
    split = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path((state.params, state.ema, state.opt_state)):
        assert leaf.sharding.spec == runtime.choose_spec(leaf.shape, 4), jax.tree_util.keystr(path)
        split += "fsdp" in leaf.sharding.spec
    assert split > 8


def test_the_state_is_donated(make_run):
    run = make_run()
    state = run.program.init(jax.random.key(0))
    leaf = jax.tree.leaves(state.params)[0]
    run.program.step(state, *step_batch(run))
    assert leaf.is_deleted()


def test_runs_that_differ_only_in_data_and_seed_share_one_program(make_run):
    assert make_run("a", noise=0.3, seed=5).program is make_run("b").program
    assert make_run("c", **{"optimizer.lr": 0.5}).program is not make_run("b").program


def test_evaluators_see_the_state_before_it_is_donated(make_run):
    seen = []

    class Norm:
        def run(self, params, model_state):
            seen.append(sum(float(abs(x).sum()) for x in jax.tree.leaves(params)))
            yield "norm", seen[-1]

    run = make_run(**{"runtime.eval_every": 1.0})
    run.train(evaluators={"validation": Norm()})
    lines = [json.loads(x) for x in (run.folder / "metrics.jsonl").read_text().splitlines()]
    values = [line["validation/norm"] for line in lines if "validation/norm" in line]
    assert len(seen) == 4  # twice, raw and moving average
    assert values == pytest.approx(seen[::2])
    assert [line["validation_ema/norm"] for line in lines if "validation_ema/norm" in line] == pytest.approx(seen[1::2])


def test_the_moving_average_is_one(make_run):
    run = make_run()
    state = run.program.init(jax.random.key(0))
    before = host(state)
    state, _ = run.program.step(state, *step_batch(run))
    after = host(state)
    for name in before:
        if name.startswith(".params"):
            expected = 0.9 * before[name].astype(np.float64) + 0.1 * after[name]
            np.testing.assert_allclose(after[name.replace(".params", ".ema")], expected, rtol=1e-5, atol=1e-7)


def test_a_validation_that_is_not_finite_names_step_and_cure():
    state: Any = SimpleNamespace(params={}, ema=None, model_state={}, step=np.int32(9), skipped=np.array([4, 0]))
    evaluator: Any = SimpleNamespace(run=lambda params, model_state: [("accuracy", 0.5), ("loss", np.inf)])
    values = loop.run_all({"validation": evaluator}, state)
    score = next(values)
    assert (score.name, score.value) == ("validation/accuracy", 0.5)
    with pytest.raises(
        NonFinite,
        match=r"validation/loss is inf at step 9, 4 of which were skipped; lower the learning rate",
    ):
        next(values)
