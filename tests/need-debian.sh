#!/usr/bin/env bash
# Debian packages that the tests need: installed where the caller may, named where it may not.
set -eu
missing=()
for package; do
    dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing ${missing[*]} for the tests …"
    apt-get update -qq >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends "${missing[@]}" >/dev/null
    exit 0
fi
echo "Missing for the tests, and only root can install it: apt-get install ${missing[*]}" >&2
# Without it the tests that need it are skipped and say so; where nothing may be skipped, that is the end.
[ "${CI:-}" != true ]
