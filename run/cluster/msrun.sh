#!/usr/bin/env bash
# Trains on several hosts: starts the workers of this host, one per device. Call it on every host at about the same time,
# with the same arguments and the host's own NODE_RANK:
#
#   export NODES=2 DEVICES_PER_NODE=8 MASTER_ADDR=10.0.0.1
#   NODE_RANK=0 run/cluster/msrun.sh --config palm_8b parallel.data=16    # on 10.0.0.1
#   NODE_RANK=1 run/cluster/msrun.sh --config palm_8b parallel.data=16    # on the other host
#
# NODES             hosts
# NODE_RANK         number of this host, 0 to NODES - 1; by default, Slurm's
# DEVICES_PER_NODE  devices of each host; NODES * DEVICES_PER_NODE must be the product of the mesh
# MASTER_ADDR       address of host 0, by which all hosts reach it; not 127.0.0.1
# MASTER_PORT       a free port of host 0 (8118)
# PYTHON            Python with MindSpore and this package (python)
# LOGS              folder for the logs of this host's workers (runs/logs)
# STOP_CODE         exit code after a stop (130)
#
# train.output and data.prepared must be folders that all hosts share: every worker writes its own shards there.
#
# SIGTERM on one host asks the workers of all hosts to save and stop. The same command resumes.
#
# Run so far: as two hosts on one machine, each with a network of its own and one CPU worker (tests/cli/test_cluster.py).
# Not run: on several machines, on Ascend or on GPUs. CPU workers share memory, so they cannot be on several machines.
set -euo pipefail

fail() {
  echo "error: $1" >&2
  exit 2
}

is_count() {
  [[ $1 =~ ^[1-9][0-9]{0,6}$ ]]
}

NODES=${NODES:-}
DEVICES_PER_NODE=${DEVICES_PER_NODE:-}
NODE_RANK=${NODE_RANK:-${SLURM_NODEID:-}}
MASTER_ADDR=${MASTER_ADDR:-}
MASTER_PORT=${MASTER_PORT:-8118}
PYTHON=${PYTHON:-python}
LOGS=${LOGS:-runs/logs}
STOP_CODE=${STOP_CODE:-130}

is_count "$NODES" || fail "NODES = $NODES is not a number of hosts; set it, such as NODES=2"
is_count "$DEVICES_PER_NODE" || fail "DEVICES_PER_NODE = $DEVICES_PER_NODE is not a number of devices; set it, such as 8"
is_count "$MASTER_PORT" || fail "MASTER_PORT = $MASTER_PORT is not a port; set it to a free one of host 0, such as 8118"
[[ $NODE_RANK =~ ^(0|[1-9][0-9]{0,6})$ && $NODE_RANK -lt $NODES ]] ||
  fail "NODE_RANK = $NODE_RANK is not the number of a host; set it to 0 ... $((NODES - 1)), on each host another one"
[[ -n $MASTER_ADDR ]] || fail "MASTER_ADDR is not set; set it to the address of host 0"
if ((NODES > 1)) && [[ $MASTER_ADDR =~ ^(127\.|localhost$|::1$) ]]; then
  fail "MASTER_ADDR = $MASTER_ADDR is every host's own address; set it to the one by which all hosts reach host 0"
fi
python=$(command -v "$PYTHON") || fail "PYTHON = $PYTHON is not there; activate the environment of the package, or set it"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
logs=$LOGS/host_$NODE_RANK
mkdir -p "$logs" || fail "LOGS = $LOGS cannot be written"
export PATH="${python%/*}:$PATH" # msrun runs scripts with the first python of PATH
export GLOG_v=${GLOG_v:-3}       # MindSpore logs only errors

first=$((NODE_RANK * DEVICES_PER_NODE))
rm -f "$logs"/worker_*.log # of an earlier start

(
  trap '' TERM # schedulers signal all processes of a job: workers save first, and msrun waits for them
  exec "$python" -c 'from mindspore.parallel.cluster.run import main; main()' \
    --worker_num="$((NODES * DEVICES_PER_NODE))" --local_worker_num="$DEVICES_PER_NODE" \
    --node_rank="$NODE_RANK" --master_addr="$MASTER_ADDR" --master_port="$MASTER_PORT" \
    --log_dir="$logs" --join=True --tail_worker_log="$((NODES * DEVICES_PER_NODE))" \
    "$root/run/train.py" "$@"
) >"$logs/msrun.log" 2>&1 &
msrun=$!
tail -n +1 -F --pid="$msrun" "$logs/worker_$first.log" 2>/dev/null |
  grep --line-buffered -vE '^\[(INFO|WARNING)\] ' & # lines of MindSpore's own log
shown=$!

stopped=false
trap 'stopped=true' TERM INT
while kill -0 "$msrun" 2>/dev/null; do
  if [[ $stopped == true ]]; then # again and again: one that has just started does not listen yet
    children=()
    read -ra children 2>/dev/null <"/proc/$msrun/task/$msrun/children" || true # false, as no newline ends it
    for process in "${children[@]}"; do
      if grep -qzx MS_ROLE=MS_WORKER "/proc/$process/environ" 2>/dev/null; then
        kill -TERM "$process" 2>/dev/null || true
      fi
    done
  fi
  sleep 1 &
  wait $! || true # a signal ends it early
done
wait "$msrun" && code=0 || code=$?
wait "$shown" || true

if [[ $stopped == true ]]; then
  exit "$STOP_CODE"
fi
if ((code)) && error=$(grep -hm 1 '^error: ' "$logs"/worker_*.log); then
  echo "${error%%$'\n'*}" >&2
  exit 2
fi
if ((code)); then
  echo "error: a worker of this host or of another one ended; see $logs" >&2
fi
exit "$code"
