#!/usr/bin/env bash
# The launcher of a simulated Spark, in its September 2026 shape: --solo, --launch-script, -e, -v, .env, exec -d.
# Word splitting, quoting, exit codes and order are the real script's; interfaces, Ray and extra safety are left out.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
own_address=$(cat "$here/../../address")
image=vllm-node name=vllm_node nodes='' action='' script='' config="$here/.env" master_port=29501
solo=false daemon=false check_only=false mount_caches=true was_running=false no_ray=false with_ray=false privileged=true
mods=() volumes=() ports=() dot_env=()
docker_args="-e NCCL_IGNORE_CPU_AFFINITY=1 -e PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
docker_args="$docker_args -v ${HF_HOME:-$HOME/.cache/huggingface}:/root/.cache/huggingface"
docker_args="$docker_args ${VLLM_SPARK_EXTRA_DOCKER_ARGS:-}"
ssh_options=(-o BatchMode=yes -o StrictHostKeyChecking=no)

usage() {
  cat <<USAGE
Usage: $0 [-n <node_ips>] [-t <image_name>] [--name <container_name>] [--eth-if <if_name>] [--ib-if <if_name>] [--nccl-debug <level>] [--check-config] [--solo] [--ray|--no-ray] [-p <host:container>] [-v <local:container>] [-d] [action] [command]
  -n, --nodes       Comma-separated list of node IPs
  -t                Docker image name (default: vllm-node)
  --name            Container name (default: vllm_node)
  --eth-if, --ib-if Network interfaces (auto-detected)
  -e, --env         Environment variable to pass to container (e.g. -e VAR=val)
  -j                Number of parallel jobs for builds
  --nccl-debug      VERSION, WARN, INFO or TRACE
  --apply-mod       Directory or zip file with a run.sh to apply before launch (repeatable)
  --launch-script   Bash script to execute in the container; the action is omitted then
  --check-config    Check the configuration without launching
  --solo            Launch only on this node
  --master-port     Port for cluster coordination (default: 29501)
  -p, --publish     Publish a container port (solo only)
  -v, --volume      Map a volume (repeatable)
  --ray, --no-ray   Backend of a multi-node launch (default: no Ray)
  --no-cache-dirs   Do not mount the default cache directories
  --keep-entrypoint Keep the image's entrypoint
  --earlyoom        Run earlyoom as the container's foreground process
  --non-privileged  Run without --privileged, with --mem-limit-gb, --pids-limit, --shm-size-gb
  --config          Path to .env configuration file (default: .env beside this script)
  -d                Daemon mode
  action            start | stop | status | exec
  command           Command to run (only for 'exec' action)
USAGE
  exit 1
}

fail() {
  echo "Error: $1"
  exit 1
}

while (($#)); do
  case $1 in
    -n | --nodes) nodes=$2; shift ;;
    -t) image=$2; shift ;;
    --name) name=$2; shift ;;
    -e | --env) docker_args="$docker_args -e $2"; shift ;;
    -v | --volume) volumes+=("$2"); shift ;;
    -v=* | --volume=*) volumes+=("${1#*=}") ;;
    -p | --publish) ports+=("$2"); shift ;;
    -p=* | --publish=*) ports+=("${1#*=}") ;;
    -j | --eth-if | --ib-if | --earlyoom-args | --mem-limit-gb | --mem-swap-limit-gb | --pids-limit | --shm-size-gb) shift ;;
    --nccl-debug) if [[ $2 =~ ^(VERSION|WARN|INFO|TRACE)$ ]]; then docker_args="$docker_args -e NCCL_DEBUG=$2"; shift; fi ;;
    --master-port | --head-port) master_port=$2; shift ;;
    --apply-mod) mods+=("$2"); shift ;;
    --launch-script) script=$2; shift ;;
    --config) config=$2; shift ;;
    --solo) solo=true ;;
    --ray) with_ray=true ;;
    --no-ray) no_ray=true ;;
    --no-cache-dirs) mount_caches=false ;;
    --non-privileged) privileged=false ;;
    --keep-entrypoint | --earlyoom | --setup | --discover) ;;
    --check-config) check_only=true ;;
    -d) daemon=true ;;
    -h | --help) usage ;;
    start | stop | status | exec)
      [[ -z $script ]] || fail "Action '$1' is not compatible with --launch-script. Please omit the action or not use --launch-script."
      action=$1
      if [[ $action == exec ]]; then
        shift
        command=$(printf '%q ' "$@")
        break
      fi
      ;;
    *)
      echo "Error: Unknown argument or action: $1"
      usage
      ;;
  esac
  shift
done
$with_ray && $no_ray && fail "--ray and --no-ray are mutually exclusive."

if [[ -f $config ]]; then
  echo "Loading configuration from .env file..."
  while IFS='=' read -r key value || [[ -n $key ]]; do
    [[ -z ${key// /} || $key == \#* ]] && continue
    [[ $key =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] || fail "Invalid .env file syntax. Aborting."
    value=${value#[\"\']} value=${value%[\"\']}
    case $key in
      CLUSTER_NODES) nodes=${nodes:-$value} ;;
      LOCAL_IP) solo_address=$value ;;
      MASTER_PORT) [[ $master_port != 29501 ]] || master_port=$value ;;
      CONTAINER_NAME) [[ $name != vllm_node ]] || name=$value ;;
      CONTAINER_*) docker_args="$docker_args -e ${key#CONTAINER_}=$(printf %q "$value")"; dot_env+=("${key#CONTAINER_}") ;;
    esac
  done <"$config"
  for key in "${dot_env[@]}"; do echo "Adding container env: $key"; done
fi

caches=()
if $mount_caches; then
  caches=("$HOME/.cache/vllm" "$HOME/.cache/flashinfer" "$HOME/.triton" "$HOME/.tilelang")
  docker_args="$docker_args -v ${caches[0]}:/root/.cache/vllm -v ${caches[1]}:/root/.cache/flashinfer"
  docker_args="$docker_args -v ${caches[2]}:/root/.triton -v ${caches[3]}:/root/.tilelang"
fi
for volume in "${volumes[@]}"; do docker_args="$docker_args -v $volume"; done

if [[ -n $script ]]; then
  for candidate in "$script" "$here/examples/$script" "$here/examples/$script.sh"; do
    [[ -f $candidate ]] && found=$candidate && break
  done
  [[ -n ${found:-} ]] || fail "Launch script '$script' not found."
  script=$(realpath "$found")
  echo "Using launch script: $script"
  command=/workspace/exec-script.sh
  action=exec
fi
for mod in "${mods[@]}"; do
  [[ -e $mod ]] || fail "Mod path '$mod' does not exist."
  [[ -f $mod/run.sh || $mod == *.zip ]] || fail "Mod directory '$mod' must contain 'run.sh'."
done

peers=()
if $solo; then
  head=${solo_address:-127.0.0.1} nodes=$head
  echo "Solo mode enabled. Skipping node detection."
else
  if [[ -z $nodes ]]; then
    echo "Error: Nodes argument (-n) is mandatory or could not be auto-detected."
    usage
  fi
  head=$own_address
  IFS=',' read -r -a all_nodes <<<"${nodes// /}"
  for node in "${all_nodes[@]}"; do [[ $node == "$head" ]] || peers+=("$node"); done
  ((${#peers[@]} < ${#all_nodes[@]})) || fail "Local IP ($head) is not in the list of nodes ($nodes)."
  if ((${#peers[@]} == 0)); then
    echo "Only local node detected/configured. Activating solo mode (no Ray cluster)."
    solo=true
  fi
fi
$solo && $with_ray && fail "--ray is incompatible with --solo or a single-node configuration."
$solo && $no_ray && fail "--no-ray is incompatible with --solo or a single-node configuration."
((${#ports[@]} == 0)) || $solo || fail "-p/--publish port forwarding is only supported in solo mode. Use --solo or remove port mappings for cluster mode."

echo "Head Node: $head"
echo "Worker Nodes: ${peers[*]}"
echo "Container Name: $name"
echo "Image Name: $image"
echo "Action: $action"

if [[ $action == start || $action == exec ]] || $check_only; then
  for peer in "${peers[@]}"; do
    if ! ssh "${ssh_options[@]}" -o ConnectTimeout=5 "$peer" true 2>/dev/null; then
      echo "Error: Passwordless SSH to $peer failed."
      echo "  Please ensure SSH keys are configured and the host is reachable."
      exit 1
    fi
    echo "  SSH to $peer: OK"
  done
fi
if $check_only; then
  echo "Configuration Check Complete."
  echo "  Image Name: $image"
  echo "  Docker Args: $docker_args"
  exit 0
fi
if [[ -z $action ]]; then
  echo "Error: No action specified. Use: start | stop | status | exec"
  usage
fi

cleanup() {
  trap - EXIT INT TERM HUP
  if $was_running; then
    echo "Cluster was already running when script started. Skipping cleanup."
    return
  fi
  echo "Stopping cluster..."
  echo "Stopping head node ($head)..."
  docker stop "$name" >/dev/null 2>&1 || true
  for peer in "${peers[@]}"; do
    echo "Stopping worker node ($peer)..."
    ssh "$peer" "docker stop $name" >/dev/null 2>&1 || true
  done
  echo "Cluster stopped."
}

if [[ $action == stop ]]; then
  cleanup
  exit 0
fi

if [[ $action == status ]]; then
  echo "Checking status..."
  state=NOT\ running
  docker ps | grep -q "$name" && state=RUNNING
  echo "[HEAD] $head: Container '$name' is $state."
  for peer in "${peers[@]}"; do
    state=NOT\ running
    ssh "$peer" "docker ps | grep -q '$name'" && state=RUNNING
    echo "[WORKER] $peer: Container '$name' is $state."
  done
  exit 0
fi

$daemon || trap cleanup EXIT INT TERM HUP

# On a node: on_node ADDRESS COMMAND-LINE (one string for a shell, as ssh takes it).
on_node() {
  if [[ $1 == "$head" ]]; then bash -c "$2"; else ssh "${ssh_options[@]}" "$1" "$2"; fi
}

find_running() {
  docker ps --format '{{.Names}}' | grep -q "^$name\$" && was_running=true
  for peer in "${peers[@]}"; do
    ssh "$peer" "docker ps --format '{{.Names}}' | grep -q '^$name\$'" && was_running=true
  done
  $was_running && echo "Cluster containers are already running. Skipping launch."
}

check_images() {
  ((${#peers[@]})) || return 0
  echo "Verifying Docker image consistency across cluster nodes..."
  local wanted other broken=false
  wanted=$(docker image inspect --format '{{.Id}}' "$image" 2>/dev/null) || fail "Could not inspect image '$image' on head node ($head)."
  for peer in "${peers[@]}"; do
    other=$(on_node "$peer" "docker image inspect --format '{{.Id}}' $(printf %q "$image")" 2>/dev/null)
    if [[ -z $other ]]; then
      echo "Error: Could not inspect image '$image' on worker node ($peer)."
      broken=true
    elif [[ $other != "$wanted" ]]; then
      printf 'Error: Docker image mismatch on worker node (%s):\n       Head:   %s\n       Worker: %s\n' "$peer" "$wanted" "$other"
      broken=true
    fi
  done
  ! $broken || fail "Cluster launch aborted because image '$image' is not in sync."
  echo "Docker image consistency check passed."
}

node_environment() {
  printf -- '-e %s ' "VLLM_HOST_IP=$1" "RAY_NODE_IP_ADDRESS=$1" "RAY_OVERRIDE_NODE_IP_ADDRESS=$1" "MN_IF_NAME=enp1s0f0np0" \
    "NCCL_SOCKET_IFNAME=enp1s0f0np0" "NCCL_IB_HCA=rocep1s0f0" "NCCL_IB_DISABLE=0" "GLOO_SOCKET_IFNAME=enp1s0f0np0"
}

node_arguments() { # RANK
  local words="--nnodes $((1 + ${#peers[@]})) --node-rank $1 --master-addr $head --master-port $master_port"
  (($1 == 0)) || words="$words --headless"
  echo "$words"
}

without_backend() { sed -E 's/--distributed-executor-backend(=|[[:space:]]+)[^[:space:]]+//g'; }

copy_script() { # ADDRESS RANK
  local copy on_host="/tmp/vllm_script_$$_$RANDOM.sh"
  copy=$(mktemp /tmp/vllm_node_script_XXXXXX.sh)
  if $solo; then
    cp "$script" "$copy"
  else
    without_backend <"$script" | grep -Ev '^[[:space:]\\]*$' >"$copy"
    sed -i -E '$ s/[[:space:]]*\\[[:space:]]*$//' "$copy"
    sed -i "$ s/\$/ $(node_arguments "$2")/" "$copy"
  fi
  echo "Copying launch script to $1..."
  if [[ $1 == "$head" ]]; then mv "$copy" "$on_host"; else scp "${ssh_options[@]}" "$copy" "$1:$on_host" && rm -f "$copy"; fi
  on_node "$1" "docker exec -w / $name mkdir -p /workspace && docker cp $on_host $name:/workspace/exec-script.sh && docker exec -w / $name chmod +x /workspace/exec-script.sh && rm -f $on_host" ||
    fail "docker cp to $1 failed"
}

apply_mod() { # ADDRESS MOD
  local mod_name target=$2
  mod_name=$(basename "${2%.zip}")
  echo "Applying mod '$mod_name' to $1..."
  if [[ $1 != "$head" ]]; then
    target="/tmp/vllm_mod_pkg_$$_$RANDOM"
    ssh "${ssh_options[@]}" "$1" "mkdir -p $target"
    scp -r "${ssh_options[@]}" "$2"/* "$1:$target/" || fail "Failed to copy mod to $1"
  fi
  on_node "$1" "docker exec -w / $name mkdir -p /workspace/mods/$mod_name && docker cp $(printf %q "$target")/. $name:/workspace/mods/$mod_name/" || fail "Failed to copy mod to $1"
  on_node "$1" "docker exec $name bash -c 'export WORKSPACE_DIR=\$PWD && cd /workspace/mods/$mod_name && chmod +x run.sh && ./run.sh'" || fail "Patch script failed on $1"
  [[ $1 == "$head" ]] || ssh "${ssh_options[@]}" "$1" "rm -rf $target"
}

start_cluster() {
  find_running && return
  check_images
  local flags="--privileged --ulimit nofile=1048576:1048576 --ipc=host" rank=0 network="--network host"
  $privileged || flags="--cap-add=IPC_LOCK --ulimit nofile=1048576:1048576 --shm-size=64g --memory 110g --pids-limit 4096"
  ((${#ports[@]} == 0)) || network=$(printf -- '-p %s ' "${ports[@]}")
  local common="--gpus all -d --rm $network --name $name --entrypoint= $docker_args $image"
  echo "Starting Head Node on $head..."
  ((${#caches[@]} == 0)) || mkdir -p "${caches[@]}"
  # Unquoted on purpose: what comes from the environment is split into words here, as in the real launcher.
  # shellcheck disable=SC2046,SC2086
  docker run $flags $(node_environment "$head") $common sleep infinity
  for peer in "${peers[@]}"; do
    echo "Starting Worker Node on $peer..."
    ((${#caches[@]} == 0)) || ssh "$peer" "mkdir -p ${caches[*]}"
    ssh "$peer" "docker run $flags $(node_environment "$peer") $common sleep infinity"
  done
  for peer in "$head" "${peers[@]}"; do
    for mod in "${mods[@]}"; do apply_mod "$peer" "$(realpath "$mod")"; done
  done
  if [[ -n $script ]]; then
    for peer in "$head" "${peers[@]}"; do copy_script "$peer" $((rank++)); done
  fi
}

exec_on_head() {
  if $daemon; then
    docker exec -d "$name" bash -c "$1 >> /proc/1/fd/1 2>&1"
    echo "Command dispatched in background (Daemon mode). Container: $name"
  else
    docker exec -i "$name" bash -c "$1"
  fi
}

# Trim the nodes to what -tp/-pp/-dp ask for; more than there are is an error.
trim_nodes() {
  local text previous='' needed=1 stated=false
  text=$command
  [[ -z $script ]] || text=$(cat "$script")
  set -f
  for word in $(sed 's/\(--[a-z-]*\)=/\1 /g' <<<"$text"); do
    case $previous in
      -tp | -pp | -dp | --tensor-parallel-size | --pipeline-parallel-size | --data-parallel-size)
        [[ $word =~ ^[0-9]+$ ]] && needed=$((needed * word)) && stated=true
        ;;
    esac
    previous=$word
  done
  set +f
  $stated || return 0
  local have=$((1 + ${#peers[@]}))
  ((needed <= have)) || fail "Command requires $needed nodes but only $have node(s) are configured."
  peers=("${peers[@]:0:needed-1}")
}

if [[ $action == start ]]; then
  start_cluster
  $daemon && echo "Cluster started in background (Daemon mode)." && exit 0
  docker logs -f "$name" &
  wait $!
  exit
fi

((${#peers[@]} == 0)) || trim_nodes
start_cluster
echo "Executing command: $command"
if ((${#peers[@]} == 0)) || [[ -z $script && $command != *"vllm serve"* ]]; then
  exec_on_head "$command"
  exit
fi
rank=1
for peer in "${peers[@]}"; do
  worker_command=$command
  [[ -n $script ]] || worker_command="$(without_backend <<<"$command") $(node_arguments $rank)"
  echo "Launching worker (rank $rank) on $peer..."
  ssh "${ssh_options[@]}" "$peer" "$(printf 'docker exec -d %q bash -c %q' "$name" "$worker_command >> /proc/1/fd/1 2>&1")"
  rank=$((rank + 1))
done
[[ -n $script ]] || command="$(without_backend <<<"$command") $(node_arguments 0)"
echo "Executing command on head node (rank 0): $command"
exec_on_head "$command"
