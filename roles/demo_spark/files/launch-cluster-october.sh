#!/usr/bin/env bash
# The launcher of a simulated Spark, in its October 2026 shape: September's, and --setup, --head-port, -j, --apply-vllm-pr
# and more. Solo is 127.0.0.1; images are compared by content; rings are checked; a launch that fails in part is stopped.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launcher-parts.sh
source "$here/launcher-parts.sh"
caches=(.cache/vllm .cache/flashinfer .cache/b12x .triton .tilelang)
setting_up=false

newer_usage() {
  cat <<USAGE
  -j                Number of parallel jobs for builds
  --head-port       The same as --master-port
  --apply-vllm-pr   vLLM pull request (number or URL) to apply before launch (repeatable)
  --earlyoom-args   Arguments of earlyoom; implies --earlyoom, which installs it where it is missing
  --mem-swap-limit-gb Memory and swap (only with --non-privileged)
  --setup, --discover Discover the cluster anew and save it to .env
USAGE
}

newer_flag() {
  taken=2
  case $1 in
    -j) docker_args="$docker_args -e MAX_JOBS=$2 -e CMAKE_BUILD_PARALLEL_LEVEL=$2 -e NINJAFLAGS=-j$2 -e MAKEFLAGS=-j$2" ;;
    --head-port) master_port=$2 ;;
    --mem-swap-limit-gb) ;;
    --earlyoom-args) with_earlyoom ;;
    --earlyoom-args=*) with_earlyoom; taken=1 ;;
    --setup | --discover) setting_up=true taken=1 ;;
    --apply-vllm-pr)
      [[ $2 =~ ^[1-9][0-9]*$ || $2 =~ ^https://github\.com/[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+/pull/[1-9][0-9]*/?$ ]] ||
        fail "--apply-vllm-pr requires a PR number or its full URL."
      prs+=("$2")
      ;;
    *) return 1 ;;
  esac
}

# No image here has earlyoom. Where it is missing, PID 1 is a shell that waits for it to be installed.
with_earlyoom() { stay=(bash -c 'trap "exit 1" TERM INT; while :; do sleep 1 & wait; done' earlyoom); }

settle_name() { name=$1; }
solo_address() { echo 127.0.0.1; }
lone_node() { head=$(solo_address); }

node_environment() {
  if $solo; then
    printf -- '-e %s ' "VLLM_HOST_IP=$1" NCCL_SOCKET_IFNAME=lo GLOO_SOCKET_IFNAME=lo TP_SOCKET_IFNAME=lo NCCL_IB_DISABLE=1
  else
    cluster_environment "$1"
  fi
}

set_up() {
  $setting_up || return 0
  echo "Running full autodiscovery (--setup)..."
  nodes=${nodes:-$own_address}
  printf '%s\n' "CLUSTER_NODES=$nodes" "LOCAL_IP=$own_address" "ETH_IF=enp1s0f0np0" "IB_IF=rocep1s0f0" >"$config"
  echo "Saved configuration to $config"
  [[ -n $action ]] || exit 0
}

# .env's CLUSTER_LINKS: [{"node": "its link's address", "other node": "…"}, …]. Nodes that are not all joined to each other
# have to be a ring of 4 or more, in -n in the ring's order with the head first, and share nothing but tensors.
check_topology() {
  local a b node every neighbours ring=false chosen=("$head" "${peers[@]}") saved
  [[ -n ${dot_env[CLUSTER_LINKS]:-} && $action != stop && $action != status ]] && ! $solo || return 0
  declare -A linked=()
  while read -r a && read -r b; do
    linked[$a,$b]=1 linked[$b,$a]=1
  done < <(grep -oE '"[0-9.]+"[[:space:]]*:' <<<"${dot_env[CLUSTER_LINKS]}" | tr -d '": \t')
  IFS=',' read -r -a saved <<<"${dot_env[CLUSTER_NODES]:-}"
  [[ ${saved[0]:-} == "$head" ]] || fail "With CLUSTER_LINKS, the head has to be the first of CLUSTER_NODES."
  for node in "${chosen[@]}"; do
    [[ " ${saved[*]} " == *" $node "* ]] || fail "$node is not in the saved topology."
  done
  $stated && chosen=("${chosen[@]:0:tensor*pipeline*data}")
  every=$((${#chosen[@]} - 1))
  for a in "${chosen[@]}"; do
    neighbours=0
    for b in "${chosen[@]}"; do neighbours=$((neighbours + ${linked[$a,$b]:-0})); done
    ((neighbours == every)) && continue
    ((neighbours == 2 && every >= 3)) || fail "The selected nodes break the ring; use all of it, or two that are joined."
    ring=true
  done
  $ring || return 0
  for a in "${!chosen[@]}"; do
    b=${chosen[(a + 1) % ${#chosen[@]}]}
    [[ -n ${linked[${chosen[a]},$b]:-} ]] || fail "The nodes have to be in the ring's order; run --discover again."
  done
  $with_ray && fail "A ring is for the launcher's own backend; omit --ray."
  ((pipeline == 1 && data == 1)) || fail "A ring is for tensor parallel only."
  docker_args="$docker_args -e NCCL_ALGO=Ring -e NCCL_NET_PLUGIN=none -e NCCL_IB_SUBNET_AWARE_ROUTING=1 -e NCCL_IB_MERGE_NICS=0"
}

same_content() {
  local what="docker image inspect --format '{{.Os}} {{.Architecture}} {{json .RootFS}} {{json .Config}}'"
  [[ $(bash -c "$what $2") == "$(on_node "$1" "$what $3" 2>/dev/null)" ]] || return 1
  echo "  [WORKER] $1: $3 (matching image content)"
}

gone_wrong() {
  cleanup
  exit 1
}

main "$@"
