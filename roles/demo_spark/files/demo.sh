#!/usr/bin/env bash
# Show Spark Control on simulated Sparks: lay them, serve the page, and take everything down again on Ctrl-C or TERM.
# Environment: PORT (9999), DEMO_LOAD_SECONDS (6), and the inventory's SPARK_DEMO_ROOT, SPARK_DEMO_NETWORK.

cd "$(dirname "${BASH_SOURCE[0]}")/../../.." || exit 1
port=${PORT:-9999}
export DEMO_LOAD_SECONDS=${DEMO_LOAD_SECONDS:-6}
export ANSIBLE_INVENTORY=inventory/demo ANSIBLE_CONFIG=$PWD/ansible.cfg
# Every process of this run carries it: the server, the jobs that it starts and that outlive it, their playbooks.
export SPARK_DEMO_RUN=$$-$RANDOM
page="http://127.0.0.1:$port/"
server=''

playbook() {
  .venv/bin/ansible-playbook playbooks/demo.yml "$@" 2>&1
}

# Quiet when it goes well; everything when it does not.
quietly() {
  local said
  said=$("$@") && return
  echo "$said" >&2
  return 1
}

# Pids of this run besides this script and its own helpers.
run_processes() {
  local environment pid
  for environment in /proc/[0-9]*/environ; do
    pid=${environment#/proc/} pid=${pid%/environ}
    [[ $pid == "$$" || $pid == "$BASHPID" ]] && continue
    tr '\0' '\n' 2>/dev/null <"$environment" | grep -qx "SPARK_DEMO_RUN=$SPARK_DEMO_RUN" && echo "$pid"
  done 2>/dev/null
}

take_down() {
  trap '' INT TERM HUP
  trap - EXIT
  echo "Taking the demo down …"
  [[ -z $server ]] || kill -TERM "$server" 2>/dev/null
  # A job's supervisor cancels its playbook when it gets TERM; the rest goes with it.
  local deadline=$((SECONDS + 15)) signal=TERM pids
  while pids=$(run_processes); [[ -n $pids ]]; do
    # shellcheck disable=SC2086
    kill -"$signal" $pids 2>/dev/null
    ((SECONDS < deadline)) || signal=KILL
    sleep 0.5
  done
  if quietly playbook -e demo_spark_state=stopped; then
    echo "The demo is down. What was swapped is still there for the next run."
  else
    echo "The simulated Sparks could not be stopped; the reason is above." >&2
    exit 1
  fi
}

can_listen() {
  .venv/bin/python - "$port" <<'PYTHON'
import socket, sys
try:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", int(sys.argv[1])))
except (OSError, OverflowError, ValueError) as error:
    sys.exit(1)
PYTHON
}

answers() {
  .venv/bin/python - "${page}healthz" 2>/dev/null <<'PYTHON'
import sys, urllib.request
urllib.request.build_opener(urllib.request.ProxyHandler({})).open(sys.argv[1], timeout=2)
PYTHON
}

if [[ ! -x .venv/bin/ansible-playbook ]]; then
  echo "There is no .venv here yet: run make demo." >&2
  exit 1
fi
if ! can_listen; then
  echo "Port $port is in use. Choose another one: make demo PORT=10099" >&2
  exit 1
fi

status=0
trap 'take_down; exit $status' EXIT
trap 'status=130; exit' INT
trap 'status=143; exit' TERM HUP

echo "Laying two simulated Sparks …"
if ! quietly playbook; then
  echo "The simulated Sparks could not be laid; the reason is above." >&2
  status=1
  exit
fi

mkdir -p var
.venv/bin/spark-control serve --host 127.0.0.1 --port "$port" >>var/demo-serve.log 2>&1 &
server=$!
deadline=$((SECONDS + 30))
until answers; do
  if ! kill -0 "$server" 2>/dev/null || ((SECONDS > deadline)); then
    tail -n 30 var/demo-serve.log >&2
    echo "The page does not answer on port $port; the last lines of var/demo-serve.log are above." >&2
    status=1
    exit
  fi
  sleep 0.2
done

cat <<TEXT

  Spark Control   $page
  Two simulated Sparks; a model takes $DEMO_LOAD_SECONDS seconds to load. Swap one and watch.
  The same from a shell:  .venv/bin/ansible-playbook -i $ANSIBLE_INVENTORY playbooks/swap.yml -e model=demo-small
  Ctrl-C takes everything down.

TEXT
wait "$server"
status=$?
echo "The server ended by itself (exit code $status); see var/demo-serve.log." >&2
((status != 0)) || status=1
exit
