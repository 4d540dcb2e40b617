"""Run the cells of a sweep in parallel on a cluster: as commands, as a Slurm array job, or as JobSets.

    python launch/sweep.py -- --config=configs/digits.py                                            commands
    python launch/sweep.py --as=slurm --sbatch=--nodes=4 --submit -- --config=configs/digits.py     an array job
    python launch/sweep.py --as=jobset --image=REGISTRY/nml_jax:tpu --topology=8x8 -- --config=...  JobSets

It only prints unless --submit is given. The cells are those of nml_jax.main with the same flags, in the same folder. A
single run is a sweep of one cell. The last command is the report over all cells. No device is used here.
"""

import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

import options
from options import ROOT, UserError

# Chips of a v5e, v5p or v6e host in a larger slice.
CHIPS_PER_HOST = 4
RUNS = "/runs"  # gke_jobset.yaml mounts the runs here


def expand_cells(flags: Sequence[str]) -> tuple[Any, dict[str, list[str]]]:
    """Return the config of these flags of nml_jax.main and its cells: name -> the flags that select the cell.

    Raises:
        UserError: main would refuse these flags, or the report is the only stage.
    """
    from absl import flags as absl_flags
    from ml_collections import config_flags

    from nml_jax import main, settings
    from nml_jax.assembly import sections

    main.parse(["sweep.py", *flags])
    config = main.CONFIG.value
    if set(config.stages) == {"report"}:
        raise UserError("stages=('report',) has nothing to run in parallel", "run it with nml_jax.main")
    pinned = config_flags.get_override_values(absl_flags.FLAGS["config"])
    axes = [key for key in settings.swept_axes(config) if key not in pinned]
    cells = settings.expand_sweep(config, pinned)
    for cell in cells.values():
        sections.check(cell)
    return config, {name: [pin(key, cell) for key in axes] for name, cell in cells.items()}


def pin(key: str, cell: Any) -> str:
    """Return the flag that sets a dotted key to its value in a cell."""
    value = cell
    for part in key.split("."):
        value = value[part]
    return f"--config.{key}={value}"


def split_report(flags: Sequence[str], config: Any) -> tuple[list[str], list[str]]:
    """Return the flags of the cells, which run in parallel, and those of the report; [] if there is no report.

    A tuple flag that is given twice is appended to, so the stages in `flags` are replaced.
    """
    if "report" not in config.stages:
        return [*flags], []
    kept, key = [], "--config.stages"
    for i, flag in enumerate(flags):
        if flag.split("=")[0] != key and (i == 0 or flags[i - 1] != key):
            kept.append(flag)
    names = [f'"{stage}"' for stage in config.stages if stage != "report"]
    return [*kept, f"{key}=({', '.join(names)},)"], [*kept, f'{key}=("report",)']


def make_commands(flags: list[str], config: Any, pins: Mapping[str, list[str]]) -> list[list[str]]:
    """Make one command per cell, then that of the report."""
    runs, report = split_report(flags, config)
    python = ["python", "-m", "nml_jax.main"]
    return [*([*python, *runs, *pin] for pin in pins.values()), *([[*python, *report]] if report else [])]


def make_slurm_jobs(
    flags: list[str], config: Any, pins: Mapping[str, list[str]], sbatch: Sequence[str], at_once: int
) -> list[list[str]]:
    """Make the array job over all cells, then the job of the report, which needs --dependency on the first."""
    runs, report = split_report(flags, config)
    array = f"--array=0-{len(pins) - 1}" + (f"%{at_once}" if at_once else "")
    each = [word for pin in pins.values() for word in ("--cell", *pin)]
    script = ["launch/slurm.sbatch", "--"]
    jobs = [["sbatch", "--parsable", f"--job-name={config.name}", array, *sbatch, *script, *runs, *each]]
    if report:
        one = [f"--job-name={config.name}-report", *sbatch, "--nodes=1", "--ntasks=1"]
        jobs.append(["sbatch", "--parsable", *one, *script, *report])
    return jobs


def make_jobsets(flags: list[str], config: Any, pins: Mapping[str, list[str]], args: Any) -> Iterator[dict[str, Any]]:
    """Fill in gke_jobset.yaml for each cell."""
    import yaml

    runs, _ = split_report(flags, config)
    chips = prod(int(side) for side in args.topology.split("x"))
    hosts, rest = divmod(chips, args.chips_per_host)
    if chips >= args.chips_per_host and rest:
        cure = f"choose a topology of a multiple of {args.chips_per_host} chips, or --chips_per_host"
        raise UserError(f"--topology={args.topology} has {chips} chips, not a whole number of hosts", cure)
    base = re.sub(r"[^a-z0-9]+", "-", config.name.lower()).strip("-")[:24].strip("-") or "nml-jax"
    for index, (name, pin) in enumerate(pins.items()):
        out = yaml.safe_load((ROOT / "launch" / "gke_jobset.yaml").read_text("utf-8"))
        out["metadata"]["name"] = base if len(pins) == 1 else f"{base}-{index}"
        out["metadata"]["annotations"]["nml-jax/cell"] = name
        if args.queue:
            out["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": args.queue}
        (job,) = out["spec"]["replicatedJobs"]
        job["replicas"] = args.slices
        spec = job["template"]["spec"]
        spec["parallelism"] = spec["completions"] = max(hosts, 1)
        pod = spec["template"]["spec"]
        pod["nodeSelector"] = {
            "cloud.google.com/gke-tpu-accelerator": args.accelerator,
            "cloud.google.com/gke-tpu-topology": args.topology,
        }
        (container,) = pod["containers"]
        container["image"] = args.image
        container["args"] = [*runs, *pin]
        container["resources"]["limits"]["google.com/tpu"] = min(chips, args.chips_per_host)
        yield out


def parse(own: list[str]) -> Any:
    parser = options.make_parser(__doc__, "sweep.py")
    parser.add_argument("--as", dest="form", choices=("commands", "slurm", "jobset"), default="commands")
    parser.add_argument("--submit", action="store_true", help="submit instead of printing")
    parser.add_argument("--sbatch", action="append", default=[], metavar="OPTION", help="slurm: option, repeatable")
    parser.add_argument("--at_once", type=int, default=0, help="slurm: most cells at the same time; 0: all")
    parser.add_argument("--image", default="", help="jobset: image with its registry")
    parser.add_argument("--accelerator", default="tpu-v5-lite-podslice", help="jobset: GKE's name, such as %(default)s")
    parser.add_argument("--topology", default="", help="jobset: topology of a slice, such as 8x8")
    parser.add_argument("--slices", type=int, default=1, help="jobset: slices of each run")
    parser.add_argument("--chips_per_host", type=int, default=CHIPS_PER_HOST, help="jobset: default %(default)s")
    parser.add_argument("--queue", default="", help="jobset: Kueue's local queue")
    args = parser.parse_args(own)
    if args.form == "jobset" and not args.image:
        raise UserError(
            "no image", "build launch/docker/Dockerfile.tpu, push it, and give --image=REGISTRY/nml_jax:tpu"
        )
    if args.form == "jobset" and not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", args.topology):
        raise UserError(f"--topology={args.topology!r} is not the topology of a slice", "as in --topology=8x8")
    if min(args.slices, args.chips_per_host) < 1 or args.at_once < 0:
        raise UserError("--slices, --chips_per_host or --at_once is too small", "give 1 or more")
    if args.form == "commands" and args.submit and not args.dry_run:
        raise UserError("commands cannot be submitted", "use --as=slurm or --as=jobset, or pipe the commands to sh")
    return args


def main(argv: list[str]) -> int:
    own, flags = options.split(argv)
    args = parse(own)
    config, pins = expand_cells(flags)
    submit = args.submit and not args.dry_run
    if args.form == "commands":
        print("\n".join(map(shlex.join, make_commands(flags, config, pins))))
    elif args.form == "slurm":
        first, *rest = make_slurm_jobs(flags, config, pins, args.sbatch, args.at_once)
        if submit:
            job = _run(first).split(";")[0].strip()
            print(f"{len(pins)} cells: job {job}")
            for command in rest:
                print(f"report: job {_run([*command[:2], f'--dependency=afterany:{job}', *command[2:]]).strip()}")
        elif rest:
            print(f"job=$({shlex.join(first)})")
            for command in rest:
                print(shlex.join(command[:2]), '--dependency="afterany:$job"', shlex.join(command[2:]))
        else:
            print(shlex.join(first))
    else:
        import yaml

        if not any(flag.split("=")[0] == "--workdir" for flag in flags):
            flags = [*flags, f"--workdir={RUNS}/{config.name}"]
        documents = yaml.safe_dump_all(make_jobsets(flags, config, pins, args), sort_keys=False, width=1000)
        if submit:
            print(_run(["kubectl", "apply", "-f", "-"], documents), end="")
        else:
            print(documents, end="")
        if report := split_report(flags, config)[1]:
            last = shlex.join(["python", "-m", "nml_jax.main", *report])
            print(f"# when all have finished, on a machine that mounts {RUNS}: {last}")
    return 0


def _run(command: list[str], text: str | None = None) -> str:
    """Run a scheduler's command in the checkout and return its output.

    Raises:
        UserError: the command is not installed, or failed.
    """
    try:
        done = subprocess.run(command, input=text, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    except FileNotFoundError as e:
        raise UserError(
            f"there is no {command[0]} on this machine", "submit on a machine that has it, or leave out --submit"
        ) from e
    if done.returncode:
        raise UserError(f"{command[0]} failed with exit code {done.returncode}", "see its message above")
    return done.stdout


if __name__ == "__main__":
    options.run(main)
