#!/usr/bin/env bash
# ansible-test sanity over the collection as it is built and installed; arguments go to it (--test import, a path).
# Everything that it makes lies in .venv/sanity: the environments of its tests (pip fetches their packages once) too.
set -eu
project=$(cd "$(dirname "$0")/.." && pwd)
export PATH="$project/.venv/bin:/usr/local/bin:/usr/bin:/bin"
home=$project/.venv/sanity
there=$home/ansible_collections/spark/control
mkdir -p "$home/.ansible/test/cache"

rm -rf "$home/built" "$there"
cd "$project"
ansible-galaxy collection build --force --output-path "$home/built" >/dev/null
ansible-galaxy collection install "$home"/built/*.tar.gz --force --no-deps --collections-path "$home" >/dev/null 2>&1
mkdir "$there/tests"
cp -r tests/sanity "$there/tests/sanity"
cp galaxy.yml "$there/"
# It looks at what git knows of.
git -C "$there" init --quiet
git -C "$there" add --all

# It would fetch pip's installer; Python brings one.
python - "$home/.ansible/test/cache" <<'PYTHON'
import re, sys
from pathlib import Path
from ansible_test._internal import python_requirements
for version in set(re.findall(r"pip='([\d.]+)'", Path(python_requirements.__file__).read_text())):
    Path(sys.argv[1], f"get_pip_{version.replace('.', '_')}.py").write_text("import ensurepip\n\nensurepip.bootstrap()\n")
PYTHON

# Where pip finds packages is told by the caller's own home.
for file in "${XDG_CONFIG_HOME:-$HOME/.config}/pip/pip.conf" "$HOME/.pip/pip.conf"; do
    [ -z "${PIP_CONFIG_FILE:-}" ] && [ -e "$file" ] && export PIP_CONFIG_FILE=$file
done

# The runtimes of PowerShell are on few machines, and there is nothing of it here.
cd "$there"
HOME=$home LC_ALL=C.UTF-8 exec ansible-test sanity --color no --skip-test pslint \
    --python "$(python -c 'import sys; print("%d.%d" % sys.version_info[:2])')" "$@"
