#!/bin/sh
# What the suite needs from the system: Chromium. Installs it where it may, and says so where it may not.

has_chromium() {
    for name in chromium chromium-browser google-chrome; do
        "$name" --version >/dev/null 2>&1 && return 0
    done
    return 1
}

has_chromium && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes chromium fonts-liberation
    has_chromium && exit 0
fi
cat >&2 <<'END'
Chromium is missing, and installing it takes root on Debian: the tests that drive a browser will fail.
Install it with the system's package manager, or leave those tests out: make test ARGS='-m "not browser"'
END
