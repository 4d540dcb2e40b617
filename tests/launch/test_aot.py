"""Test compiling for a pod: reading the compiled program, the arithmetic of the estimate, bad input."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

from configs import clip_vitb16, resnet50_in1k
from launch import aot, chips, hlo
from nml_jax.errors import UserError
from tests.scenes import programs

# A loop of three rounds around an all-reduce and, within it, a loop whose length the compiler does not know.
TEXT = """\
HloModule jit_step, is_scheduled=true, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%inner_body (p.1: (s32[], f32[16])) -> (s32[], f32[16]) {
  %p.1 = (s32[], f32[16]{0}) parameter(0)
  %v.1 = f32[16]{0} get-tuple-element(%p.1), index=1
  %shifted = f32[16]{0} collective-permute(%v.1), channel_id=7, source_target_pairs={{0,1},{1,0}}
  ROOT %t.1 = (s32[], f32[16]{0}) tuple(%i.1, %shifted)
}

%outer_body (p.2: (s32[], f32[16])) -> (s32[], f32[16]) {
  %p.2 = (s32[], f32[16]{0}) parameter(0)
  %v.2 = f32[16]{0} get-tuple-element(%p.2), index=1
  %reduced = f32[16]{0} all-reduce(%v.2), channel_id=5, replica_groups=[2,4]<=[8], to_apply=%add
  %w.2 = (s32[], f32[16]{0}) while(%t.0), condition=%cond, body=%inner_body
  ROOT %t.2 = (s32[], f32[16]{0}) tuple(%i.2, %reduced)
}

%fused_computation.1 (p.3: bf16[4,16]) -> (bf16[4,16], bf16[32,16]) {
  %p.3 = bf16[4,16]{1,0} parameter(0)
  %ag.1 = bf16[32,16]{1,0:T(8,128)(2,1)} all-gather(%p.3), channel_id=9, replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %c.1 = (bf16[4,16], bf16[32,16]) custom-call(%ag.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.2 (p.4: bf16[4,16]) -> bf16[32,16] {
  %p.4 = bf16[4,16]{1,0} parameter(0)
  ROOT %ag.2 = bf16[32,16]{1,0:T(8,128)(2,1)S(1)} all-gather(%p.4), channel_id=9, replica_groups=[1,8]<=[8]
}

%all-reduce-scatter.3 (p.5: f32[32,256]) -> f32[16,256] {
  %p.5 = f32[32,256]{1,0} parameter(0)
  %ar.5 = f32[32,256]{1,0} all-reduce(%p.5), channel_id=11, replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
  ROOT %ds.5 = f32[16,256]{1,0} dynamic-slice(%ar.5, %i, %zero), dynamic_slice_sizes={16,256}
}

ENTRY %main.0_spmd (param: f32[16], param.1: f32[64,8]) -> f32[16] {
  %param = f32[16]{0} parameter(0), sharding={replicated}
  %ar-start = (f32[768]{0:T(256)S(1)}, bf16[768,3072]{1,0:T(8,128)(2,1)}) all-reduce-start(%a, /*index=1*/%b), \
channel_id=1, replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_0'}, to_apply=%add
  %ar-done = (f32[768]{0}, bf16[768,3072]{1,0}) all-reduce-done(%ar-start)
  %ag-start = (f32[64,8]{1,0}, f32[512,8]{1,0}) all-gather-start(%param.1), channel_id=2, replica_groups={}
  %ag-done = f32[512,8]{1,0} all-gather-done(%ag-start)
  %rs = f32[8,8]{1,0} reduce-scatter(%param.1), channel_id=3, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %a2a = (s32[1,16]{1,0}, s32[1,16]{1,0}) all-to-all(%q, %r), channel_id=4, replica_groups={{0,1},{2,3},{4,5},{6,7}}
  %f.1 = (bf16[4,16], bf16[32,16]) fusion(%g), kind=kCustom, calls=%fused_computation.1
  %f.2 = bf16[32,16] fusion(%f.1), kind=kCustom, calls=%async_collective_fusion.2
  %f.3 = f32[16,256]{1,0} fusion(%h), kind=kCustom, calls=%all-reduce-scatter.3
  %w = (s32[], f32[16]{0}) while(%t), condition=%cond, body=%outer_body, \
backend_config={"known_trip_count":{"n":"3"},"known_init_step":{"init":"0","step":"1"}}
  ROOT %gte = f32[16]{0} get-tuple-element(%w), index=1
}
"""


def test_every_collective_is_found_once_with_its_bytes_group_and_rounds():
    found = hlo.find_collectives(TEXT, devices=8)
    assert [(c.kind, c.bytes, c.group, c.times) for c in found] == [
        ("all-reduce", 768 * 4 + 768 * 3072 * 2, 4, 1),  # both of its arrays, among axis_0 of 4 × 2
        ("all-gather", 512 * 8 * 4, 8, 1),  # the result, not the operand beside it; no groups means all devices
        ("reduce-scatter", 64 * 8 * 4, 8, 1),  # the input, 8 times what each device gets
        ("all-to-all", 2 * 16 * 4, 2, 1),
        ("all-gather", 32 * 16 * 2, 8, 1),  # in two fusions with one channel
        ("reduce-scatter", 32 * 256 * 4, 2, 1),  # an all-reduce of which each device keeps its slice
        ("all-reduce", 16 * 4, 4, 3),
        ("collective-permute", 16 * 4, 2, None),
    ]
    assert found[0].shapes == ("f32[768]", "bf16[768,3072]")
    assert found[0].groups.startswith("mesh[")
    assert found[7].groups == "{{0,1},{1,0}}"


def test_bytes_that_a_device_sends():
    sent = [c.sent for c in hlo.find_collectives(TEXT, devices=8)]
    assert sent[0] == 2 * (3072 + 768 * 3072 * 2) * 3 / 4
    assert sent[1] == 16384 * 7 / 8
    assert sent[2] == 2048 * 7 / 8
    assert sent[3] == 128 / 2
    assert sent[7] == 64


def test_the_sum_counts_rounds_and_an_unknown_number_as_one():
    total = hlo.sum_collectives(hlo.find_collectives(TEXT, devices=8))
    assert total["all-reduce", 4] == {
        "count": 4,
        "bytes": 768 * 4 + 768 * 3072 * 2 + 3 * 64,
        "sent": 1.5 * (768 * 4 + 768 * 3072 * 2 + 3 * 64),
    }
    assert total["collective-permute", 2] == {"count": 1, "bytes": 64, "sent": 64}
    assert total["all-gather", 8]["count"] == 2


def test_groups_in_every_notation():
    for written, size in {
        "{{0,1,2},{3,4,5}}": 3,
        "[16,4]<=[8,8]T(1,0)": 4,
        "mesh['a'=4,'b'=2,'c'=8] {'a','c'}": 32,
        "mesh['a'=16,'b'=2], device_ids=([2,16]T(1,0)) {'a':(2)4}": 4,
        "{}": 64,
    }.items():
        line = f"%x = f32[2]{{0}} all-reduce(%y), channel_id=1, replica_groups={written}, use_global_device_ids=true"
        (found,) = hlo.find_collectives(f"ENTRY %main (y: f32[2]) -> f32[2] {{\n  {line}\n}}\n", devices=64)
        assert (found.group, found.groups) == (size, written)


def test_arrays_and_element_sizes():
    assert hlo.find_shapes("%a = (pred[3], bf16[4,5]{1,0:T(8,128)(2,1)}) fusion(u8[] %b, token[] %c)") == {
        (3,),
        (4, 5),
        (),
    }
    line = "%x = (pred[3], s4[4], bf16[5], f8e4m3fn[6], f64[7], c64[8], u32[]) all-reduce(%y), replica_groups={}"
    (found,) = hlo.find_collectives(f"ENTRY %main (y: s4[]) -> s4[] {{\n  {line}\n}}\n", devices=2)
    assert found.bytes == 3 + 2 + 10 + 6 + 56 + 64 + 4


def test_other_text_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.find_collectives("module @jit_step {}", devices=8)


def test_a_program_of_this_machine(mesh):
    def loss(w, x):
        return jax.numpy.tanh(x @ w).sum()

    placed = jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
    x = jax.ShapeDtypeStruct((16, 32), "float32", sharding=placed)
    w = jax.ShapeDtypeStruct((32, 8), "float32", sharding=jax.NamedSharding(mesh, jax.P()))
    (found,) = hlo.find_collectives(jax.jit(jax.grad(loss)).lower(w, x).compile().as_text(), mesh.size)
    assert (found.kind, found.bytes, found.group) == ("all-reduce", 32 * 8 * 4, 8)
    assert found.times == 1


def test_a_step_takes_as_long_as_the_slowest_of_three():
    chip = chips.Chip(peak=100e12, hbm=0, bandwidth=1e12, ici=100e9, pod=1, shapes="")
    times = aot.estimate(chip, flop=5e12, hbm_bytes=50e9, sent=2e9, mfu=0.5)
    assert times.pop("bound") == "compute"
    assert times == pytest.approx({"compute": 0.1, "memory": 0.05, "network": 0.02, "step": 0.1}, rel=1e-12)
    assert aot.estimate(chip, flop=5e12, hbm_bytes=300e9, sent=2e9, mfu=0.5)["bound"] == "memory"
    assert aot.estimate(chip, flop=5e12, hbm_bytes=3e9, sent=20e9, mfu=0.5)["step"] == pytest.approx(0.2)


def test_topologies():
    assert chips.Slice.parse("v5e:8x8") == (chips.CHIPS["v5e"], (8, 8))
    assert chips.Slice.parse("v4:4x4x16").shape == (4, 4, 16)
    for chip in chips.CHIPS.values():
        assert all(math.prod(map(int, shape.split("x"))) <= chip.pod for shape in chip.shapes.split())


@pytest.mark.parametrize("name", ["v9:8x8", "v5e", "v5e:", "v5e-64", "v5e:8x8x8", "v5p:8x8", "v6e:32x32", "v5e:0x8"])
def test_an_unknown_topology_lists_the_known_ones(name: str):
    with pytest.raises(UserError) as e:
        chips.Slice.parse(name)
    assert repr(name) in e.value.cause
    assert "v5e:8x8" in e.value.cure
    assert "v4, v5p: 2x2x1" in e.value.cure
    assert "\n" not in e.value.cause + e.value.cure


def test_gpus_of_several_hosts_are_as_quick_as_their_network():
    assert chips.Slice.parse("h200:1x8").link == 450e9
    assert chips.Slice.parse("h100:4x8").link == 50e9
    assert chips.Slice.parse("v5e:4x8").link == chips.CHIPS["v5e"].ici
    with pytest.raises(UserError, match="h200:8"):
        chips.Slice.parse("h200:8")
    for kind, peak in (("NVIDIA H200", 989e12), ("TPU v5 lite", 197e12), ("TPU v5p", 459e12), ("cpu", None)):
        assert chips.find_peak(kind) == peak


def test_without_the_compiler_the_cure_is_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as e:
        aot.list_devices("v5e:8x8")
    assert "libtpu" in e.value.cause
    assert "[tpu]" in e.value.cure
    with pytest.raises(UserError, match="jax-cuda12-plugin, is not installed"):
        aot.list_devices("h200:1x8")


class Lowered:
    """A fake of a lowered step that does not compile."""

    def __init__(self, message: str):
        self.message = message

    def compile(self, options=None):
        raise RuntimeError(self.message)


@pytest.mark.parametrize(
    ("message", "need"),
    [
        (
            "XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 23.56G of 15.75G hbm. "
            "Exceeded hbm capacity by 7.81G.",
            "23.56 GiB",
        ),
        (  # libtpu 0.0.42.1 with this config on v5e:4x4
            "Ran out of memory on HBM, the total memory required for HLO temporaries (20.44G) exceeds available HBM "
            "(15.75G).",
            "20.44 GiB",
        ),
        ("Ran out of memory.", "more than all"),
    ],
)
def test_a_step_that_does_not_fit_says_by_how_much_and_what_to_do(message: str, need: str):
    with pytest.raises(UserError) as e:
        aot.compile_step(clip_vitb16.get_config(), "v5e:8x8", Lowered(f"RESOURCE_EXHAUSTED: {message}"))
    assert e.value.cause == f"a step of clip_vitb16 does not fit v5e:8x8: it needs {need} of a chip's 16 GiB of HBM"
    assert "--config.model.remat=True, --config.train.micro_batches=2" in e.value.cure
    assert "chunk" not in e.value.cure  # the config sets it already
    with pytest.raises(RuntimeError, match="INTERNAL"):
        aot.compile_step(resnet50_in1k.get_config(), "v5e:8x8", Lowered("INTERNAL: a fault of its own"))


def run(*args: str, call: Callable = programs.run, **env: str) -> subprocess.CompletedProcess:
    root = Path(aot.__file__).parent.parent
    command, env = [sys.executable, str(root / "launch" / "aot.py"), *args], os.environ | {"JAX_PLATFORMS": "cpu"} | env
    return call(command, capture_output=True, text=True, env=env, cwd=root, timeout=500)


@pytest.mark.parametrize(
    ("flags", "cause"),
    [
        ([], "--topology"),
        (["--topology=v5e:9"], "there is no topology 'v5e:9'"),
        (["--topology=v5e:8x8", "--mfu=0"], "--mfu must be above 0 and at most 1, got 0.0"),
        (["--topology=v5e:8x8", "--effort=2"], "--effort must be from -1 to 1, got 2.0"),
        (["--topology=v5e:8x8", "--config=configs/none.py"], "'configs/none.py'"),
        (["--topology=v5e:8x8", "--config.train.btch=1"], "btch"),
        (["--topology=v5e:8x8", "--dry_run"], "--dry_run"),
        (["--topology=v5e:8x8", "more"], "more"),
        (["--topology=v5e:8x8", "--json=/none/x.json"], "/none"),
    ],
)
def test_bad_input_is_a_line_of_cause_and_a_line_of_cure(flags: list[str], cause: str):
    done = run(*flags)
    assert done.returncode == 2, done.stderr
    first, second = done.stderr.splitlines()
    assert first.startswith("error: ")
    assert cause in first
    assert second.startswith("  cure: ")


@pytest.mark.slow
def test_a_tiny_step_for_four_chips(tmp_path: Path):
    pytest.importorskip("libtpu", reason="the extra `tpu` is not installed: no compiler for TPUs")
    alone = {"call": subprocess.run, "JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    small = {
        "model.dim": 256, "model.heads": 2, "model.depth": 1, "data.image_size": 32, "train.batch": 64,
    }  # fmt: skip
    flags = ["--config=configs/vitb16_in1k.py", *(f"--config.{k}={v}" for k, v in small.items())]
    done = run("--topology=v5e:2x2", "--fsdp=2", f"--json={tmp_path / 'x.json'}", *flags, **alone)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "x.json").read_text())
    assert result["mesh"] == {"data": 2, "fsdp": 2}
    assert {row["kind"] for row in result["collectives"]} >= {"all-reduce", "all-gather"}
    assert 0 < result["memory"]["total"] < 2**30
    assert "whole run" in done.stdout
    done = run("--topology=v5e:2x2", "--config.train.batch=63", *flags[:-1], **alone)
    assert done.returncode == 2
    assert "train.batch=63" in done.stderr
    done = run("--topology=v5e:2x2", "--config=configs/vitb16_in1k.py", "--config.train.batch=8192", **alone)
    assert done.returncode == 2
    assert "does not fit v5e:2x2" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("config", ["vitb16_in1k", "resnet50_in1k"])
def test_a_tiny_step_for_two_hosts_of_gpus(config: str, tmp_path: Path):
    pytest.importorskip("jax_cuda12_plugin", reason="jax-cuda12-plugin is not installed: no compiler for GPUs")
    small = {"model.dim": 256, "model.heads": 2, "model.depth": 1} if "vit" in config else {"model.blocks": "(1,1)"}
    small |= {"data.image_size": 32, "train.batch": 64, "model.bn_group": 0}
    flags = [f"--config=configs/{config}.py", *(f"--config.{k}={v}" for k, v in small.items())]
    done = run("--topology=h200:2x2", f"--json={tmp_path / 'x.json'}", *flags, path=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "x.json").read_text())
    assert result["chips"] == 4
    assert result["hbm_bytes"] > 4 * result["parameters"]
    assert "all-reduce" in {row["kind"] for row in result["collectives"]}
    assert 0 < result["memory"]["total"] < 2**30


@pytest.mark.slow
def test_heads_spectra_and_fine_tuning_compile_for_a_v5e(tmp_path: Path):
    """Small ones. Of full size: benchmarks/compile_times.py --write, and docs/benchmarks.md for the times."""
    pytest.importorskip("libtpu", reason="the extra `tpu` is not installed: no compiler for TPUs")
    root = Path(aot.__file__).parent.parent
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, str(root / "benchmarks" / "compile_times.py"), "--tiny"], capture_output=True, text=True,
        env=environment, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in ("head: linear", "head: nmtune/code", "head: lgm", "spectrum: code", "fine-tuning step"):
        assert f"| {name}" in done.stdout
