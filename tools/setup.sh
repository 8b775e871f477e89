# Sourced by quickstart.sh and test.sh: makes .venv and installs the package into it, once for each setup.cfg.
# usage: install "<extras>"      PYTHON=python3.12 chooses another Python; EBM_FFCV=0 leaves FFCV out; EBM_LOWEST=1 takes the
# oldest releases that setup.cfg allows, through uv
packages="g++ pkg-config libopencv-dev libturbojpeg0-dev" # what FFCV is built with
ffcv=$(grep -m 1 -o 'ffcv>=[0-9.]*' setup.cfg)
with_uv=yes
unset PYTHONDONTWRITEBYTECODE # a module is compiled when it is first imported, not all 14,000 of them at installing: a minute less

say() { printf '\033[1m== %s\033[0m\n' "$*" >&2; }

as_root() { # runs a command as root where that needs no password
    if [ "$(id -u)" = 0 ]; then "$@"; elif sudo -n true 2>/dev/null; then sudo -n "$@"; else return 1; fi
}

apt_install() {
    command -v apt-get >/dev/null || return 1
    as_root true 2>/dev/null || return 1
    local options="-o Acquire::http::Timeout=20 -o Acquire::Retries=1 -o DPkg::Lock::Timeout=300" # where nothing answers
    # shellcheck disable=SC2086
    as_root apt-get update -q $options >>"$log" 2>&1
    # shellcheck disable=SC2086
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $options "$@" >>"$log" 2>&1
}

choose_python() {
    python=${PYTHON:-python3}
    series=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2]); sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null) || {
        echo "error: PYTHON=$python is not Python 3.10 to 3.13; name one that is: PYTHON=python3.12 bash $0" >&2; exit 2; }
}

version() { "$1" -c 'import sys; print(sys.version)'; }

make_venv() {
    [ "$(version .venv/bin/python 2>/dev/null)" = "$(version "$python")" ] && .venv/bin/python -m pip --version >/dev/null 2>&1 && return
    [ ! -e .venv ] || [ -e .venv/made-by-setup ] || [ -e .venv/installed ] || {
        echo "error: .venv is there and was not made by this script; move it away" >&2
        exit 2
    }
    rm -rf .venv
    mkdir .venv
    touch .venv/made-by-setup
    "$python" -m venv .venv >>"$log" 2>&1 && return
    # Debian keeps Python's own pip in another package; any other pip can put one there.
    "$python" -m venv --without-pip .venv >>"$log" 2>&1 && pip --python .venv/bin/python install -q pip >>"$log" 2>&1 && return
    say "Python's venv is incomplete here; installing the package python$series-venv"
    apt_install "python$series-venv" && "$python" -m venv .venv >>"$log" 2>&1 && return
    echo "error: $python cannot make a virtual environment; ask for the package python$series-venv (log: $log)" >&2; exit 2
}

ffcv_can_build() {
    command -v g++ >/dev/null && pkg-config --exists opencv4 libturbojpeg 2>/dev/null &&
        [ -f "$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["include"])')/Python.h" ]
}

build_ffcv() { # as a wheel, for `install_ffcv` to take; where this fails, that tries again and says so
    ffcv_can_build && .venv/bin/python -m pip wheel -q --disable-pip-version-check --no-deps -w build/ffcv "$ffcv" >>"$log" 2>&1
}

ffcv_packages() {
    ffcv_can_build && return
    say "FFCV needs system packages ($packages); installing them"
    # shellcheck disable=SC2086
    apt_install $packages
}

wheel() { compgen -G "wheels/ffcv-*.whl" >/dev/null; }

install_ffcv() { # returns 1 where it can't be had; training then reads the same files with a plain loader
    [ "${EBM_FFCV:-1}" = 0 ] && return 1
    if wheel; then
        pip_install --find-links wheels --only-binary ffcv "$ffcv" && return
        ffcv_packages # another Python's wheel
    fi
    ffcv_can_build && pip_install --find-links build/ffcv -e ".[ffcv]" && .venv/bin/python -W ignore -c 'import ffcv' >>"$log" 2>&1
}

by_pip() { .venv/bin/python -m pip install -q --disable-pip-version-check --no-compile "$@" >>"$log" 2>&1; }

uv_as_pip() { # gives uv what pip is set to, of which it reads nothing; returns 1 where that has a setting that isn't known here
    local key value
    # Its cache beside .venv, so that files are linked and lie there once; the newest release of all indexes, as pip takes it.
    local -A found=([UV_CACHE_DIR]=$PWD/build/uv [UV_INDEX_STRATEGY]=unsafe-best-match)
    while IFS== read -r key value; do
        value=${value:1:-1} # without its quotes
        value=${value//\\n/ }
        case ${key##*.} in
            index-url) found[UV_DEFAULT_INDEX]=$value ;;
            extra-index-url) found[UV_INDEX]=$value ;;
            find-links) found[UV_FIND_LINKS]=${value// /,} ;;
            constraint) found[UV_CONSTRAINT]=$value ;;
            trusted-host) found[UV_INSECURE_HOST]=$value ;;
            cert) found[SSL_CERT_FILE]=$value ;;
            timeout | default-timeout | retries | *cache-dir | disable-pip-version-check | no-input | quiet | progress-bar | user) ;;
            *) return 1 ;;
        esac
    done < <(.venv/bin/python -m pip config list 2>>"$log")
    for key in "${!found[@]}"; do [ -n "${!key:-}" ] || export "$key=${found[$key]}"; done
}

by_uv() {
    local resolution=highest
    [ "${EBM_LOWEST:-0}" = 0 ] || resolution=lowest-direct
    (uv_as_pip && .venv/bin/uv pip install -q --python .venv/bin/python --resolution $resolution "$@") >>"$log" 2>&1
}

pip_install() { # by uv, which takes half of pip's time; by pip where uv can't be had or doesn't get there
    if [ "$with_uv" = yes ] && [ -x .venv/bin/uv ] && by_uv "$@"; then return; fi
    with_uv=no # it would fail again, after as long
    [ "${EBM_LOWEST:-0}" = 0 ] && by_pip "$@"
}

stamp() { # of all that decides what is installed: where a compiler, OpenCV or a wheel has come since, it is tried again
    { cat setup.cfg tools/setup.sh tools/build_kernels.py ebm/nets/group_norm.py ebm/nets/group_norm.cpp
      echo "$1 ${PYTHON:-} ${EBM_FFCV:-1} ${EBM_LOWEST:-0}"
      command -v g++ || :; pkg-config --modversion opencv4 libturbojpeg || :; compgen -G "wheels/ffcv-*.whl" || :
    } 2>/dev/null | sha256sum | cut -c1-16
}

install() { # install "<extras>" [system packages that the caller can do without …]
    local extras=$1; shift
    mkdir -p build/ffcv
    log=build/setup.log
    if [ -x .venv/bin/python ] && grep -qsx "$(stamp "$extras")" .venv/installed; then return; fi
    : >"$log"
    choose_python
    make_venv
    say "installing the package and PyTorch into .venv (some GB, a few minutes the first time; log: $log)"
    by_pip --upgrade pip wheel || :
    by_pip uv || :
    case $(readlink -f "$(command -v "$python")") in /usr/bin/python3.*) packages="$packages python$series-dev" ;; esac
    { # while pip works
        [ "${EBM_FFCV:-1}" = 0 ] || wheel || ffcv_packages || :
        [ $# = 0 ] || apt_install "$@" || :
        [ "${EBM_FFCV:-1}" = 0 ] || wheel || build_ffcv
    } &
    pip_install -e ".[$extras]" || { tail -n 5 "$log" >&2; echo "error: the packages cannot be installed (log: $log)" >&2; exit 1; }
    # Where uv's files can't be linked, all would lie there twice.
    [ "$(stat -c %h .venv/lib/python3*/site-packages/torch/__init__.py)" -gt 1 ] || rm -rf build/uv
    wait
    # While FFCV is installed:
    .venv/bin/python tools/build_kernels.py >build/kernels.txt 2>&1 &
    .venv/bin/python -c 'import torch._dynamo' >>"$log" 2>&1 & # compiles what every start imports
    if install_ffcv; then
        say "FFCV is installed"
    else
        say "FFCV is not installed; the plain loader reads the same files. To have it, ask for: $packages, then run this again"
    fi
    wait
    say "$(tail -n 1 build/kernels.txt)"
    stamp "$extras" >>.venv/installed
}
