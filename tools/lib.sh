# shellcheck shell=bash
# Functions that the tools share, to be sourced. Three environment variables change how tools run:
#
#   PYTHON   the interpreter to make the virtual environment with
#            (default: python3, or the newest python3.x on the PATH)
#   VENV     the directory of that environment (default: .venv in the checkout)
#   OLDEST   if set, a new environment gets the oldest versions of the dependencies that
#            pyproject.toml allows, instead of the newest

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$(realpath -m "${VENV:-$root/.venv}")

say() {
    echo "${0##*/}: $*" >&2
}

die() {
    say "$@"
    exit 1
}

# Succeed if this interpreter runs and is Python 3.11 or later. A version manager may have a shim on
# the PATH for a version that it refuses to run.
is_suitable() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    local candidate candidates=(python3 python3.14 python3.13 python3.12 python3.11)
    if [[ -n ${PYTHON:-} ]]; then
        candidates=("$PYTHON")
    fi
    for candidate in "${candidates[@]}"; do
        if is_suitable "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    die "needs Python 3.11 or later, which ${candidates[0]} is not: name one in PYTHON"
}

# Print a hash of everything that an environment depends on. A new hash means a new environment.
fingerprint() {
    {
        "$1" -c 'import sys; print(sys.version, sys.base_prefix)'
        echo "$root"
        cat "$root/pyproject.toml"
    } | sha256sum | cut -d ' ' -f 1
}

# ensure_venv EXTRA: make the virtual environment if necessary, and install the checkout (editable)
# and the dependencies of this extra; the extra "run" has none.
#
# The stamp holds the fingerprint and the installed extras. It is removed before any change and
# written when all is done, so an installation that was killed starts again.
ensure_venv() {
    local extra=$1 python wanted stamp=$venv/scache.stamp installed=()
    python=$(find_python)
    wanted=$(fingerprint "$python")
    (
        flock 9 # the second of two tools waits, and finds the environment ready
        if [[ -f $stamp ]]; then
            read -r -a installed <"$stamp"
        fi
        if [[ ${installed[0]:-} != "$wanted" ]]; then
            make_venv "$python"
            installed=("$wanted")
        fi
        if [[ " ${installed[*]:1} " != *" $extra "* ]]; then
            rm -f "$stamp"
            install_checkout "$python" "$extra"
            echo "${installed[*]} $extra" >"$stamp"
        fi
    ) 9<"$root/pyproject.toml"
}

make_venv() {
    say "making $venv with $("$1" --version)"
    rm -rf "$venv"
    # Debian's python3 has no ensurepip, but its pip can install into another environment.
    if "$1" -c 'import ensurepip' 2>/dev/null; then
        "$1" -m venv "$venv"
    else
        "$1" -m venv --without-pip "$venv"
    fi
}

install_checkout() {
    local python=$1 extra=$2 package=$root pip
    if [[ $extra != run ]]; then
        package+="[$extra]"
    fi
    pip=("$python" -m pip --python "$venv/bin/python")
    if [[ -x $venv/bin/pip ]]; then
        pip=("$venv/bin/python" -m pip)
    fi
    pip+=(--disable-pip-version-check install -qq)
    say "installing scache and the ${OLDEST:+oldest }dependencies of \"$extra\" into $venv"
    if [[ -n ${OLDEST:-} ]]; then
        "${pip[@]}" uv # pip cannot choose the oldest versions
        "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" \
            --resolution lowest-direct --editable "$package"
    else
        "${pip[@]}" --editable "$package"
    fi
}

# tool EXTRA MODULE [ARGUMENTS]: run a module of tools/, with the dependencies of this extra.
tool() {
    ensure_venv "$1"
    PYTHONPATH=$root/tools:$root exec "$venv/bin/python" -P -m "${@:2}"
}
