# What the simulated launchers share; laid beside launch-cluster.sh, which sources it. Word splitting, quoting, exit codes
# and order are the real scripts'; interfaces, Ray and extra safety are left out.
# shellcheck shell=bash disable=SC2034

own_address=$(cat "$here/../../address")
image=vllm-node name=vllm_node nodes='' action='' command='' daemon=false check_only=false was_running=false
mods=() peers=()

fail() {
  echo "Error: $1"
  exit 1
}

# --- every shape ------------------------------------------------------------------------------------------------------

check_mods() {
  local mod
  for mod in "${mods[@]}"; do
    [[ -e $mod ]] || fail "Mod path '$mod' does not exist."
    [[ -f $mod/run.sh || $mod == *.zip ]] || fail "Mod directory '$mod' must contain 'run.sh'."
  done
}

# Head and workers out of -n.
split_nodes() {
  local node all
  if [[ -z $nodes ]]; then
    echo "Error: Nodes argument (-n) is mandatory or could not be auto-detected."
    usage
  fi
  head=$own_address
  IFS=',' read -r -a all <<<"${nodes// /}"
  for node in "${all[@]}"; do [[ $node == "$head" ]] || peers+=("$node"); done
  ((${#peers[@]} < ${#all[@]})) || fail "Local IP ($head) is not in the list of nodes ($nodes)."
}

say_what() {
  echo "Head Node: $head"
  echo "Worker Nodes: ${peers[*]}"
  echo "Container Name: $name"
  echo "Image Name: $image"
  echo "Action: $action"
}

check_ssh() {
  local peer
  [[ $action == start || $action == exec ]] || $check_only || return 0
  for peer in "${peers[@]}"; do
    if ! ssh -o BatchMode=yes -o ConnectTimeout=5 -o StrictHostKeyChecking=no "$peer" true 2>/dev/null; then
      echo "Error: Passwordless SSH to $peer failed."
      echo "  Please ensure SSH keys are configured and the host is reachable."
      exit 1
    fi
    echo "  SSH to $peer: OK"
  done
}

cleanup() {
  local peer
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

stop_or_status() {
  local peer state=NOT\ running
  if [[ $action == stop ]]; then
    cleanup
    exit 0
  elif [[ $action == status ]]; then
    echo "Checking status..."
    docker ps | grep -q "$name" && state=RUNNING
    echo "[HEAD] $head: Container '$name' is $state."
    for peer in "${peers[@]}"; do
      state=NOT\ running
      ssh "$peer" "docker ps | grep -q '$name'" && state=RUNNING
      echo "[WORKER] $peer: Container '$name' is $state."
    done
    exit 0
  fi
}

find_running() {
  local peer
  docker ps --format '{{.Names}}' | grep -q "^$name\$" && was_running=true
  for peer in "${peers[@]}"; do
    ssh "$peer" "docker ps --format '{{.Names}}' | grep -q '^$name\$'" && was_running=true
  done
  $was_running && echo "Cluster containers are already running. Skipping launch."
}

# --- the shapes that know --solo, --launch-script, -e, -v, .env and exec -d -------------------------------------------

usage() {
  cat <<USAGE
Usage: $0 [-n <node_ips>] [-t <image_name>] [--name <container_name>] [--eth-if <if_name>] [--ib-if <if_name>] [--nccl-debug <level>] [--check-config] [--solo] [--ray|--no-ray] [-p <host:container>] [-v <local:container>] [-d] [action] [command]
  -n, --nodes       Comma-separated list of node IPs
  -t                Docker image name (default: vllm-node)
  --name            Container name (default: vllm_node)
  --eth-if, --ib-if Network interfaces (auto-detected)
  -e, --env         Environment variable to pass to container (e.g. -e VAR=val)
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
  newer_usage
  exit 1
}

script='' config="$here/.env" master_port=29501
solo=false mount_caches=true no_ray=false with_ray=false privileged=true
volumes=() ports=() caches=(.cache/vllm .cache/flashinfer .triton .tilelang) prs=() stay=(sleep infinity)
docker_args="-e NCCL_IGNORE_CPU_AFFINITY=1 -e PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
docker_args="$docker_args -v ${HF_HOME:-$HOME/.cache/huggingface}:/root/.cache/huggingface"
docker_args="$docker_args ${VLLM_SPARK_EXTRA_DOCKER_ARGS:-}"
ssh_options=(-o BatchMode=yes -o StrictHostKeyChecking=no)
declare -A dot_env=()

# What a newer shape does otherwise.
newer_usage() { :; }
newer_flag() { return 1; } # FLAG VALUE: sets `taken` to how many of its words it took
settle_name() { [[ $name != vllm_node ]] || name=$1; }
set_up() { :; }
solo_address() { echo "${dot_env[LOCAL_IP]:-127.0.0.1}"; }
lone_node() { :; } # -n names nobody but this node
check_topology() { :; }
same_content() { return 1; } # WORKER HEAD-ID WORKER-ID
node_environment() { cluster_environment "$1"; } # ADDRESS
gone_wrong() { return 1; } # a mod or `docker run` failed

parse() {
  local taken
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
      --eth-if | --ib-if | --mem-limit-gb | --pids-limit | --shm-size-gb) shift ;;
      --nccl-debug) if [[ $2 =~ ^(VERSION|WARN|INFO|TRACE)$ ]]; then docker_args="$docker_args -e NCCL_DEBUG=$2"; shift; fi ;;
      --master-port) master_port=$2; shift ;;
      --apply-mod) mods+=("$2"); shift ;;
      --launch-script) script=$2; shift ;;
      --config) config=$2; shift ;;
      --solo) solo=true ;;
      --ray) with_ray=true ;;
      --no-ray) no_ray=true ;;
      --no-cache-dirs) mount_caches=false ;;
      --non-privileged) privileged=false ;;
      --keep-entrypoint | --earlyoom) ;;
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
        if ! newer_flag "$@"; then
          echo "Error: Unknown argument or action: $1"
          usage
        fi
        shift $((taken - 1))
        ;;
    esac
    shift
  done
  $with_ray && $no_ray && fail "--ray and --no-ray are mutually exclusive."
  return 0
}

read_dot_env() {
  local line key value
  [[ -f $config ]] || return 0
  echo "Loading configuration from .env file..."
  while read -r line || [[ -n $line ]]; do
    [[ -z $line || $line == \#* ]] && continue
    read -r key <<<"${line%%=*}"
    read -r value <<<"${line#*=}"
    [[ $line == *=* && $key =~ ^[A-Za-z_][A-Za-z0-9_]*$ && -z ${dot_env[$key]+set} ]] ||
      fail "Invalid .env file syntax. Aborting."
    value=${value#[\"\']}
    dot_env[$key]=${value%[\"\']}
  done <"$config"
  nodes=${nodes:-${dot_env[CLUSTER_NODES]:-}}
  [[ $master_port != 29501 ]] || master_port=${dot_env[MASTER_PORT]:-29501}
  [[ -z ${dot_env[CONTAINER_NAME]:-} ]] || settle_name "${dot_env[CONTAINER_NAME]}"
  for key in "${!dot_env[@]}"; do
    [[ $key == CONTAINER_* && $key != CONTAINER_NAME ]] || continue
    docker_args="$docker_args -e ${key#CONTAINER_}=$(printf %q "${dot_env[$key]}")"
    echo "Adding container env: ${key#CONTAINER_}"
  done
}

choose_mounts() {
  local cache volume
  $mount_caches || caches=()
  for cache in "${caches[@]}"; do docker_args="$docker_args -v $HOME/$cache:/root/$cache"; done
  caches=("${caches[@]/#/$HOME/}")
  for volume in "${volumes[@]}"; do docker_args="$docker_args -v $volume"; done
}

find_script() {
  local candidate found=''
  [[ -n $script ]] || return 0
  for candidate in "$script" "$here/examples/$script" "$here/examples/$script.sh"; do
    [[ -f $candidate ]] && found=$candidate && break
  done
  [[ -n $found ]] || fail "Launch script '$script' not found."
  script=$(realpath "$found")
  echo "Using launch script: $script"
  command=/workspace/exec-script.sh
  action=exec
}

choose_nodes() {
  if $solo; then
    head=$(solo_address) nodes=$head
    echo "Solo mode enabled. Skipping node detection."
  else
    split_nodes
    if ((${#peers[@]} == 0)); then
      echo "Only local node detected/configured. Activating solo mode (no Ray cluster)."
      solo=true
      lone_node
    fi
  fi
  $solo && $with_ray && fail "--ray is incompatible with --solo or a single-node configuration."
  $solo && $no_ray && fail "--no-ray is incompatible with --solo or a single-node configuration."
  ((${#ports[@]} == 0)) || $solo || fail "-p/--publish port forwarding is only supported in solo mode. Use --solo or remove port mappings for cluster mode."
}

# On a node: on_node ADDRESS COMMAND-LINE (one string for a shell, as ssh takes it).
on_node() {
  if [[ $1 == "$head" ]]; then bash -c "$2"; else ssh "${ssh_options[@]}" "$1" "$2"; fi
}

check_images() {
  local wanted other peer broken=false
  ((${#peers[@]})) || return 0
  echo "Verifying Docker image consistency across cluster nodes..."
  wanted=$(docker image inspect --format '{{.Id}}' "$image" 2>/dev/null) || fail "Could not inspect image '$image' on head node ($head)."
  for peer in "${peers[@]}"; do
    other=$(on_node "$peer" "docker image inspect --format '{{.Id}}' $(printf %q "$image")" 2>/dev/null)
    if [[ -z $other ]]; then
      echo "Error: Could not inspect image '$image' on worker node ($peer)."
      broken=true
    elif [[ $other != "$wanted" ]] && ! same_content "$peer" "$wanted" "$other"; then
      printf 'Error: Docker image mismatch on worker node (%s):\n       Head:   %s\n       Worker: %s\n' "$peer" "$wanted" "$other"
      broken=true
    fi
  done
  ! $broken || fail "Cluster launch aborted because image '$image' is not in sync."
  echo "Docker image consistency check passed."
}

cluster_environment() { # ADDRESS
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
    scp -r "${ssh_options[@]}" "$2"/* "$1:$target/" || { echo "Error: Failed to copy mod to $1"; return 1; }
  fi
  on_node "$1" "docker exec -w / $name mkdir -p /workspace/mods/$mod_name && docker cp $(printf %q "$target")/. $name:/workspace/mods/$mod_name/" ||
    { echo "Error: Failed to copy mod to $1"; return 1; }
  on_node "$1" "docker exec $name bash -c 'export WORKSPACE_DIR=\$PWD && cd /workspace/mods/$mod_name && chmod +x run.sh && ./run.sh'" ||
    { echo "Error: Patch script failed on $1"; return 1; }
  [[ $1 == "$head" ]] || ssh "${ssh_options[@]}" "$1" "rm -rf $target"
}

start_cluster() {
  local flags="--privileged --ulimit nofile=1048576:1048576 --ipc=host" rank=0 network="--network host" peer mod
  if find_running; then
    ((${#prs[@]} == 0)) || fail "--apply-vllm-pr cannot be applied to a cluster that is already running. Stop it first."
    return
  fi
  check_images
  $privileged || flags="--cap-add=IPC_LOCK --ulimit nofile=1048576:1048576 --shm-size=64g --memory 110g --pids-limit 4096"
  ((${#ports[@]} == 0)) || network=$(printf -- '-p %s ' "${ports[@]}")
  local common="--gpus all -d --rm $network --name $name --entrypoint= $docker_args $image"
  echo "Starting Head Node on $head..."
  ((${#caches[@]} == 0)) || mkdir -p "${caches[@]}"
  # Unquoted on purpose: what comes from the environment is split into words here, as in the real launcher.
  # shellcheck disable=SC2046,SC2086
  docker run $flags $(node_environment "$head") $common "${stay[@]}" || gone_wrong
  for peer in "${peers[@]}"; do
    echo "Starting Worker Node on $peer..."
    ((${#caches[@]} == 0)) || ssh "$peer" "mkdir -p ${caches[*]}"
    ssh "$peer" "docker run $flags $(node_environment "$peer") $common $(printf '%q ' "${stay[@]}")" || gone_wrong
  done
  for peer in "$head" "${peers[@]}"; do
    for mod in "${mods[@]}"; do apply_mod "$peer" "$(realpath "$mod")" || gone_wrong || exit 1; done
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

# What the command asks for: -tp, -pp and -dp into `tensor`, `pipeline`, `data`; `stated` where it names one of them.
read_sizes() {
  local text previous='' word
  tensor=1 pipeline=1 data=1 stated=false
  text=$command
  [[ -z $script ]] || text=$(cat "$script")
  set -f
  for word in $(sed 's/\(--[a-z-]*\)=/\1 /g' <<<"$text"); do
    if [[ $word =~ ^[0-9]+$ ]]; then
      case $previous in
        -tp | --tensor-parallel-size) tensor=$word stated=true ;;
        -pp | --pipeline-parallel-size) pipeline=$word stated=true ;;
        -dp | --data-parallel-size) data=$word stated=true ;;
      esac
    fi
    previous=$word
  done
  set +f
}

# Trim the nodes to what that makes; more than there are is an error.
trim_nodes() {
  local have=$((1 + ${#peers[@]})) needed=$((tensor * pipeline * data))
  $stated || return 0
  ((needed <= have)) || fail "Command requires $needed nodes but only $have node(s) are configured."
  peers=("${peers[@]:0:needed-1}")
}

launch() {
  local rank=1 peer worker_command
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
}

main() {
  parse "$@"
  read_dot_env
  choose_mounts
  find_script
  check_mods
  set_up
  choose_nodes
  read_sizes
  check_topology
  say_what
  check_ssh
  if $check_only; then
    echo "Configuration Check Complete."
    echo "  Image Name: $image"
    echo "  Docker Args: $docker_args"
    ((${#prs[@]} == 0)) || echo "  Runtime vLLM PRs: ${prs[*]}"
    exit 0
  fi
  if [[ -z $action ]]; then
    echo "Error: No action specified. Use: start | stop | status | exec"
    usage
  fi
  stop_or_status
  $daemon || trap cleanup EXIT INT TERM HUP
  launch
}
