# Sourced by the commands beside it: makes .venv, or brings it up to date, and sets $root and $venv.
# When nothing has changed it only compares a checksum, so that a command starts at once.

root=$(CDPATH= cd -- "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv

fail() {
    echo "error: $*" >&2
    exit 2
}

# What .venv depends on: where it lies, since its programs hold that path, and what is to be installed.
wanted_environment() {
    { echo "$root"; cat "$root"/{setup.cfg,pyproject.toml,scripts/constraints.txt}; } | cksum
}

is_current() {
    [[ -x $venv/bin/python && $(cat "$venv/current" 2>/dev/null) == "$(wanted_environment)" ]]
}

# Prints a Python that the framework runs on: $PYTHON if that is set, else the first good one of the usual names.
find_python() {
    local name version found= names=(python3 python3.13 python3.12 python3.11 python)
    if [[ -n ${PYTHON:-} ]]; then names=("$PYTHON"); fi
    for name in "${names[@]}"; do
        version=$("$name" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
        case $version in
            3.11 | 3.12 | 3.13) echo "$name"; return ;;
        esac
        found=${found:-, and $name is $version}
    done
    fail "Python 3.11, 3.12 or 3.13 is needed${found:-, and none was found};" \
        "install one, or give its path: PYTHON=/path/to/python3.12 $0"
}

make_environment() {
    local python
    python=$(find_python) || exit
    # One at a time, where the system and the disk have flock; for writing, as NFS wants it.
    exec 9>>"$root/.venv.lock"
    flock 9 2>/dev/null || true
    if ! is_current; then
        echo "Installing what setup.cfg lists into $venv; this takes a minute or two, once." >&2
        # By editable_mode=compat the package is found from the folder above the clone, too, and not the clone's folder.
        if ! (PYTHON=$venv/bin/python find_python && "$venv/bin/python" -m pip --version) >/dev/null 2>&1; then
            "$python" -m venv --clear "$venv" || fail "$python could not make $venv; its message is above"
        fi
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
            --require-hashes -r "$root/scripts/constraints.txt" &&
            "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
                --no-deps --no-build-isolation --config-settings editable_mode=compat --editable "$root" ||
            fail "pip could not install into $venv; its message is above; run the command again to continue"
        wanted_environment >"$venv/current"
    fi
    exec 9<&-
}

is_current || make_environment
