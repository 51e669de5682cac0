# What the tools share; to be sourced. Everything here is silent unless there is news.
# shellcheck shell=bash
#
#   PYTHON   the interpreter to make the virtual environment with (default: python3,
#            or the newest python3.x on the PATH that will do)
#   VENV     where that environment is (default: .venv in the checkout)

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${VENV:-$root/.venv}

die() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# Whether this interpreter runs and is Python 3.11 or later. (The shims of version managers
# are on the PATH for versions that they then refuse to run.)
will_do() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if will_do "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    die "needs Python 3.11 or later, and ${PYTHON:-python3} is not that: set PYTHON"
}

# What an installation depends on: when it changes, the environment is made anew.
fingerprint() {
    "$1" -c 'import sys; print(sys.version, sys.base_prefix)'
    echo "$root"
    sha256sum <"$root/pyproject.toml"
}

# ensure_venv EXTRA: make the virtual environment, with the checkout installed in it (editable)
# together with that extra; the extra "run" is none at all. The stamp is written last and
# removed first, so whatever was killed half-way is done again, from nothing.
ensure_venv() {
    local extra=$1 python wanted installed
    local stamp=$venv/scache-stamp
    python=$(find_python)
    wanted=$(fingerprint "$python" | sha256sum | cut -d' ' -f1)
    (
        flock 9 # two tools at once: the second finds the work done
        read -r -a installed <"$stamp" || installed=()
        if [[ ${installed[0]:-} != "$wanted" ]]; then
            rm -rf "$venv"
            make_venv "$python"
            installed=("$wanted")
        fi
        if [[ " ${installed[*]:1} " != *" $extra "* ]]; then
            rm -f "$stamp"
            install_into_venv "$python" "$extra"
            echo "${installed[*]} $extra" >"$stamp"
        fi
    ) 9<"$root/pyproject.toml" 2> >(grep -v "$stamp: No such file" >&2)
}
