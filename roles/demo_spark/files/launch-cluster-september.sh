#!/usr/bin/env bash
# The launcher of a simulated Spark, in its September 2026 shape: --solo, --launch-script, -e, -v, .env, exec -d.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launcher-parts.sh
source "$here/launcher-parts.sh"

main "$@"
