#!/usr/bin/env bash
# Run a job on a GKE cluster that xpk has made.
#
#   launch/xpk.sh run  --name=clip --cluster=pods --type=v5litepod-64 --image=REGISTRY/nml_jax:tpu --storage=runs \
#       -- --config=configs/clip_vitb16.py --workdir=/runs/clip
#   launch/xpk.sh tail | status | stop --name=clip --cluster=pods
#
# --dry_run prints the exact commands and runs nothing. --workdir must lie on a storage of the cluster (`xpk storage`).
# Options: --project=, --zone=, --slices= (1), --max_restarts= (100), --grace= (seconds for saving when stopped; 120),
# --storage= (repeatable). The job starts again after exit codes 75 and 76, and after those for which xpk itself restarts
# it (42 and 127 to 255, that is, deaths by signal). Every other failure ends it.
set -euo pipefail
# shellcheck source=launch/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

verbs=' run tail status stop '
dry_run='' verb='' name='' cluster='' type='' image='' slices=1 max_restarts=100 grace=120
where=() storage=() flags=()
while (($#)); do
  case $1 in
    -h | --help) usage ;;
    --dry_run) dry_run=1 ;;
    --name=*) name=${1#*=} ;;
    --cluster=*) cluster=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --max_restarts=*) max_restarts=${1#*=} ;;
    --grace=*) grace=${1#*=} ;;
    --project=?* | --zone=?*) where+=("$1") ;;
    --storage=?*) storage+=("$1") ;;
    --) shift && flags=("$@") && break ;;
    -*) fail "launch/xpk.sh has no option '$1'" "its head lists them; flags of nml_jax.main come after --" ;;
    *)
      [[ ! $verb ]] || fail "two commands, '$verb' and '$1'" "give one of:$verbs"
      verb=$1
      ;;
  esac
  shift
done
[[ $verb && $verbs == *" $verb "* ]] || fail "'$verb' is not a command" "give one of:$verbs"
[[ $name =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
  fail "--name='$name' cannot name a workload" "give up to 40 lower-case letters, digits and -, as in --name=clip"
[[ $cluster ]] || fail "no cluster" "give --cluster=NAME"
if [[ $verb == run ]]; then
  [[ $type ]] || fail "no type of TPU" "give --type=TYPE, as in --type=v5litepod-64"
  [[ $image ]] || fail "no image" "build launch/docker/Dockerfile.tpu, push it, and give --image=REGISTRY/nml_jax:tpu"
  ((${#flags[@]})) || fail "run without flags of nml_jax.main" "add -- --config=FILE --workdir=DIR"
fi

case $verb in
  run)
    # With exec, SIGTERM reaches Python itself.
    command=(xpk workload create --workload="$name" --cluster="$cluster" "${where[@]}" --tpu-type="$type" --num-slices="$slices"
      --docker-image="$image" "${storage[@]}" --max-restarts="$max_restarts" '--restart-on-exit-codes=75,76'
      --termination-grace-period-seconds="$grace" --command="exec python -m nml_jax.main $(show "${flags[@]}")")
    ;;
  tail)
    command=(kubectl logs --follow --tail=100 --container=jax-tpu
      --selector="jobset.sigs.k8s.io/jobset-name=$name,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0")
    ;;
  status) command=(xpk workload list --cluster="$cluster" "${where[@]}" --filter-by-job="$name") ;;
  stop) command=(xpk workload delete --workload="$name" --cluster="$cluster" "${where[@]}" --force) ;;
esac
if [[ $dry_run ]]; then
  remote=1 check_config "${flags[@]}"
  show "${command[@]}"
else
  exec "${command[@]}"
fi
