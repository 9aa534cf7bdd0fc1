#!/bin/bash
# The dependency script, with dpkg-query, apt-get and id replaced by stubs that say what they are
# told. Prints TAP. Usage: test_deps.sh <source tree>
set -u
tree=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
number=0
failed=0

stub() { # <name> <body>
    printf '#!/bin/bash\n%s\n' "$2" > "$work/bin/$1"
    chmod +x "$work/bin/$1"
}

# Every package is there but those in $ABSENT; apt-get notes what it is asked to do.
mkdir "$work/bin"
stub dpkg-query 'shift 3; code=0
for package; do
    case " $ABSENT " in *" $package "*) code=1 ;; *) echo "ii  $package" ;; esac
done; exit $code'
stub apt-get 'echo "$@" >> "$NOTES"; exit ${APT_CODE:-0}'
stub id 'echo "${TEST_UID:-0}"'

run() { # sets $code and $output
    : > "$work/notes"
    output=$(PATH="$work/bin:$PATH" NOTES="$work/notes" "$tree/scripts/deps.sh" "$@" 2>&1)
    code=$?
}

check() { # <name> <condition...>
    number=$((number + 1))
    local name=$1
    shift
    if "$@"; then
        echo "ok $number - $name"
    else
        echo "not ok $number - $name"
        echo "# code $code, output: $output, apt-get: $(tr '\n' ';' < "$work/notes")"
        failed=1
    fi
}

says() {
    [[ $output == *"$1"* ]]
}

export ABSENT=
run
check test_deps_nothing_missing_is_quiet [ "$code:$output:$(wc -c < "$work/notes")" = "0::0" ]
export ABSENT="libjansson-dev patchelf"
run
check test_deps_root_installs grep -qx "install -y --no-install-recommends libjansson-dev patchelf" \
    "$work/notes"
check test_deps_root_says_so says "deps: installed 2 packages"
check test_deps_root_succeeds [ "$code" = 0 ]
run build
check test_deps_group_only grep -qx "install -y --no-install-recommends libjansson-dev" \
    "$work/notes"
APT_CODE=100 run
check test_deps_failure_of_apt_fails [ "$code" = 1 ]
check test_deps_failure_of_apt_names says "could not install libjansson-dev patchelf"
TEST_UID=1000 run
check test_deps_user_fails [ "$code:$(wc -c < "$work/notes")" = "1:0" ]
check test_deps_user_gets_names says "install --no-install-recommends libjansson-dev patchelf"
run bogus
check test_deps_unknown_group [ "$code" = 2 ]
echo "1..$number"
exit $failed
