#!/usr/bin/env bash
# Run a job under Open MPI. mpirun starts the processes; JAX joins them. From the root of the checkout:
#
#   launch/mpi.sh -n 2 --hostfile hosts -- --config=configs/resnet50_in1k.py
#   launch/mpi.sh --dry_run -n 2 -- --config=...              print the command, run nothing
#
# Options before -- are for mpirun. On SIGTERM and Ctrl-C all processes save, and the same command continues. (mpirun
# would kill them after a second; it gets SIGUSR1 instead, which it forwards.) All hosts must share the folder.
set -euo pipefail
# shellcheck source=launch/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

dry_run='' options=() found=''
while (($#)); do
  case $1 in
    -h | --help) usage ;;
    --dry_run) dry_run=1 ;;
    --) found=1 && shift && break ;;
    *) options+=("$1") ;;
  esac
  shift
done
[[ $found ]] || fail "no -- before the flags of nml_jax.main" "launch/mpi.sh [--dry_run] [OPTIONS OF mpirun] -- FLAGS OF nml_jax.main"

codes=$PWD/.nml_jax-mpi-$$
[[ $dry_run ]] || codes=$(mktemp -d "$codes.XXXXXXXXXX") # another user may write here, too
# JAX gives each process only the GPU of its local number; a single process per node needs all of them.
# Each process writes its exit code to a file, and before it starts 137, in case it is killed. SIGUSR1 reaches its group.
# shellcheck disable=SC2016  # the shell of the process expands these
task='gpus=${CUDA_VISIBLE_DEVICES-$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null | paste -sd,)}
if [[ ${OMPI_COMM_WORLD_LOCAL_SIZE:-} == 1 && $gpus == *,* && ! ${JAX_LOCAL_DEVICE_IDS:-} ]]; then
  JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 "$(tr -cd , <<<"$gpus" | wc -c)"); export JAX_LOCAL_DEVICE_IDS
fi
echo 137 >"$0/$OMPI_COMM_WORLD_RANK"; trap "" USR1; "$@" & child=$!; trap "kill -TERM $child" USR1 TERM
while kill -0 $child 2>/dev/null; do wait $child; done; wait $child; code=$?
echo $code >"$0/$OMPI_COMM_WORLD_RANK"; exit $code'
# mpirun must not kill the others when one process ends: they notice it and say so.
command=(mpirun --mca orte_abort_on_non_zero_status 0 "${options[@]}" bash -c "$task" "$codes"
  "${NML_PYTHON:-python}" -m nml_jax.main "$@")
if [[ $dry_run ]]; then
  check_config "$@"
  show "${command[@]}"
  exit
fi
{ # bash reads a block as a whole, so the script may change while it runs
  trap 'rm -rf "$codes"' EXIT
  "${command[@]}" &
  job=$!
  trap 'kill -USR1 "$job"' TERM INT
  while kill -0 "$job" 2>/dev/null; do wait "$job" || true; done
  [[ -e $codes/0 ]] || fail "mpirun started no process" "its own message is above"
  mapfile -t ended < <(cat "$codes"/*)
  answer=$("${NML_PYTHON:-python}" "$(dirname "${BASH_SOURCE[0]}")/exits.py" "${ended[@]}")
  say "$answer (exit codes: ${ended[*]})"
  answer=${answer#* }
  exit "${answer%%:*}"
}
