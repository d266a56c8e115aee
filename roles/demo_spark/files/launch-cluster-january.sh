#!/usr/bin/env bash
# The launcher of a simulated Spark, in its January 2026 shape: no --solo, no .env, no --launch-script, no -e or -v. `exec`
# joins its words with spaces, stays in the foreground and stops the containers when it ends. Solo is -n with one address.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launcher-parts.sh
source "$here/launcher-parts.sh"
action=start
docker_args="-e NCCL_IGNORE_CPU_AFFINITY=1 -v $HOME/.cache/huggingface:/root/.cache/huggingface ${VLLM_SPARK_EXTRA_DOCKER_ARGS:-}"

usage() {
  cat <<USAGE
Usage: $0 [-n <node_ips>] [-t <image_name>] [--name <container_name>] [--eth-if <if_name>] [--ib-if <if_name>] [--nccl-debug <level>] [--check-config] [-d] [action] [command]
  -n, --nodes     Comma-separated list of node IPs (Optional, auto-detected if omitted)
  -t              Docker image name (Optional, default: vllm-node)
  --name          Container name (Optional, default: vllm_node)
  --eth-if        Ethernet interface (Optional, auto-detected)
  --ib-if         InfiniBand interface (Optional, auto-detected)
  --nccl-debug    NCCL debug level (Optional, one of: VERSION, WARN, INFO, TRACE)
  --apply-mod     Path to directory or zip file containing run.sh to apply before launch (Can be specified multiple times)
  --check-config  Check configuration and auto-detection without launching
  -d              Daemon mode (only for 'start' action)
  action          start | stop | status | exec (Default: start)
  command         Command to run (only for 'exec' action)
USAGE
  exit 1
}

while (($#)); do
  case $1 in
    -n | --nodes) nodes=$2; shift ;;
    -t) image=$2; shift ;;
    --name) name=$2; shift ;;
    --eth-if | --ib-if) shift ;;
    --nccl-debug) docker_args="$docker_args -e NCCL_DEBUG=$2"; shift ;;
    --apply-mod) mods+=("$2"); shift ;;
    --check-config) check_only=true ;;
    -d) daemon=true ;;
    -h | --help) usage ;;
    start | stop | status) action=$1 ;;
    exec) action=exec; shift; command="$*"; break ;;
    *) action=exec; command="$*"; break ;;
  esac
  shift
done
check_mods
split_nodes
say_what
check_ssh
if $check_only; then
  echo "Configuration Check Complete."
  exit 0
fi
stop_or_status

# Also after exec -d: what exec started goes with it.
if ! $daemon || [[ $action == exec ]]; then trap cleanup EXIT INT TERM HUP; fi

if ! find_running; then
  echo "Starting Head Node on $head..."
  # Unquoted on purpose: what comes from the environment is split into words here, as in the real launcher.
  # shellcheck disable=SC2086
  docker run -d --privileged --gpus all --rm --ipc=host --network host --name "$name" $docker_args "$image" \
    ./run-cluster-node.sh --role head --host-ip "$head" --eth-if enp1s0f0np0 --ib-if rocep1s0f0
  for peer in "${peers[@]}"; do
    echo "Starting Worker Node on $peer..."
    ssh "$peer" "docker run -d --privileged --gpus all --rm --ipc=host --network host --name $name $docker_args $image ./run-cluster-node.sh --role node --host-ip $peer --eth-if enp1s0f0np0 --ib-if rocep1s0f0 --head-ip $head"
  done
  for mod in "${mods[@]}"; do
    echo "Applying mod '$(basename "$mod")' to $head..."
    docker exec "$name" mkdir -p "/workspace/mods/$(basename "$mod")"
    docker cp "$mod/." "$name:/workspace/mods/$(basename "$mod")/"
    docker exec "$name" bash -c "cd /workspace/mods/$(basename "$mod") && chmod +x run.sh && ./run.sh" || fail "Patch script failed on $head"
  done
  docker exec "$name" ray status >/dev/null 2>&1 && echo "Cluster head is responsive."
fi

if [[ $action == exec ]]; then
  echo "Executing command on head node: $command"
  docker exec -i "$name" bash -i -c "$command"
elif $daemon; then
  echo "Cluster started in background (Daemon mode)."
else
  docker logs -f "$name" &
  wait $!
fi
