# What a person does with the packages, and what must come of it. Sourced by `packages`.

# Prints the commands of the README's guide among which one is.
guide() {
    awk -v wanted="$1" '
        /^## / { here = $0 == "## Quick start" }
        /^```/ { if (inside && index(block, wanted)) printf "%s", block; inside = !inside; block = ""; next }
        here && inside { block = block $0 "\n" }
    ' README.md
}

# Does in a system what the README says, in the folder where the package is.
follow() {
    [ -n "$2" ] || fail "the README has no such commands for the $1"
    on "$1" bash -e -o pipefail -c "cd /root && $2" || fail "the guide does not work on the $1"
}

# `put_package SYSTEM PACKAGE REVISION`
put_package() {
    rm -f "$work/$1"/root/root/*.deb
    cp "$packages/$2"_[0-9]*-"$3"_*.deb "$work/$1/root/root/"
}

# Installs a package, or another revision of it.
install_package() {
    put_package "$@"
    on "$1" bash -c 'dpkg --install /root/*.deb' 2>&1 || fail "install $2, revision $3"
}

dpkg_state() { on "$1" dpkg-query --show --showformat '${db:Status-Status}' "$2" 2>/dev/null || :; }

# Everything of a system whose name is ours, without what systemd and dpkg keep for themselves.
traces() {
    on "$1" find /etc /run /tmp /usr /var -name '*whimbrel*' \
        -not -path '/run/systemd/*' -not -path '/var/lib/dpkg/*' | sort
    on "$1" getent passwd whimbrel || :
    on "$1" getent group whimbrel || :
    on "$1" dpkg-query --list 'whimbrel*' 2>/dev/null | grep '^[a-z]i' || :
    [ "$1" != laptop ] || [ "$(rules)" = 0 ] || echo "rules of the capture"
}

expect_no_traces() {
    local left
    left=$(comm -13 "$work/$1/before" <(traces "$1"))
    [ -z "$left" ] || fail "left behind on the $1: $left"
}

# When the unit of the port began.
port_since() {
    on vps systemctl show --property ActiveEnterTimestampMonotonic --value whimbrel-gateway.socket
}

make_networks
for system in vps laptop; do
    make_system "$system"
    make_debian "$system"
    echo "nameserver 127.0.0.9" >"$work/$system/root/etc/resolv.conf"
    boot "$system"
    traces "$system" >"$work/$system/before"
done
step "two systems booted, $(on vps sed -n 's/^PRETTY_NAME=//p' /usr/lib/os-release)"
serve_echo
ip netns exec vps tests/systemd/answers 127.0.0.9 198.18.0.9 &

step "the server, as the README has it"
put_package vps whimbrel-gateway 1
commands=$(guide "whimbrel-gateway init")
# Its addresses here are reserved for tests: no gateway takes them for public by itself, nor dials them.
follow vps "${commands/"gateway init "/"gateway init --public 203.0.113.2:443 "}" | tee "$work/said"
on vps sed -i 's|^allow = \[\]|allow = ["198.18.0.0/15"]|' /etc/whimbrel/gateway.toml
on vps systemctl reload whimbrel-gateway
is_active vps whimbrel-gateway.socket || fail "the port is not open"
remarks=$(on vps systemd-analyze verify --man=no whimbrel-gateway.service 2>&1) ||
    fail "verify: $remarks"
[ -z "$remarks" ] || fail "verify: $remarks"

step "the laptop, as the README has it"
invite=$(grep '^whimbrel://' "$work/said") || fail "there is no invite"
put_package laptop whimbrel 1
commands=$(guide "whimbrel join")
follow laptop "${commands/"whimbrel://…"/"$invite"}"
within 10 "the client is not attached" client_is attached
expect_carried "the first byte"

step "every command has a page, and each shell its completions"
for place in vps:whimbrel-gateway:gateway.toml laptop:whimbrel:client.toml; do
    IFS=: read -r system program config <<<"$place"
    files=$(on "$system" dpkg --listfiles "$program")
    commands=$(on "$system" "$program" help | sed -n '/^Commands:/,/^$/s/^  \([a-z-]*\) .*/\1/p')
    [ "$(wc -w <<<"$commands")" -gt 5 ] || fail "the help of $program has no commands"
    for command in ${commands/help/}; do
        grep -qx "/usr/share/man/man1/$program-$command.1.gz" <<<"$files" ||
            fail "no page for $program $command"
    done
    for file in bash-completion/completions/"$program" zsh/vendor-completions/_"$program" \
        fish/vendor_completions.d/"$program".fish man/man5/whimbrel-"$config".5.gz \
        doc/"$program"/examples/"$config" doc/"$program"/copyright doc/"$program"/changelog.gz; do
        grep -qx "/usr/share/$file" <<<"$files" || fail "$program has no $file"
    done
done
on laptop bash -c '. /usr/share/bash-completion/completions/whimbrel' || fail "completions for bash"

step "gateway: an upgrade; the connection that is open goes on"
open_line
say_on_line "before the upgrades"
since=$(port_since) old=$(main_pid vps whimbrel-gateway.service)
install_package vps whimbrel-gateway 2
has_new_pid vps whimbrel-gateway.service "$old" || fail "the upgraded gateway does not run"
[ "$(port_since)" = "$since" ] || fail "the upgrade closed the port"
say_on_line "after the upgrade of the gateway"

step "client: an upgrade leaves the daemon alone while it carries something"
old=$(main_pid laptop whimbrel.service)
install_package laptop whimbrel 2 | grep -F "goes on in its old version" ||
    fail "the upgrade does not say that the daemon is the old one"
[ "$(main_pid laptop whimbrel.service)" = "$old" ] || fail "the upgrade restarted the daemon"
say_on_line "after the upgrade of the client"

step "client: an upgrade restarts it when it carries nothing"
close_line
within 10 "the connection does not end" \
    on laptop bash -c 'whimbrel flows | grep -F "No flows"'
install_package laptop whimbrel 1
has_new_pid laptop whimbrel.service "$old" || fail "the upgrade did not restart the daemon"
within 10 "the client is not attached after its upgrade" client_is attached
expect_carried "after the upgrade of the client"

step "gateway: an upgrade does not stop one whose configuration became wrong"
old=$(main_pid vps whimbrel-gateway.service)
on vps sed -i.good 's|^\[limits\]|[limit]|' /etc/whimbrel/gateway.toml
install_package vps whimbrel-gateway 1 | grep -F "goes on in its old version" ||
    fail "the upgrade does not say that the gateway is the old one"
[ "$(main_pid vps whimbrel-gateway.service)" = "$old" ] || fail "it was restarted all the same"
on vps mv /etc/whimbrel/gateway.toml.good /etc/whimbrel/gateway.toml

step "both on one machine; neither runs before it is set up; purging one leaves the other as it is"
install_package vps whimbrel 1
! on vps systemctl --quiet is-enabled whimbrel || fail "the client is enabled before it has joined"
! is_active vps whimbrel.service || fail "the client runs before it has joined"
install_package laptop whimbrel-gateway 1
! on laptop systemctl --quiet is-enabled whimbrel-gateway || fail "the gateway is enabled"
! is_active laptop whimbrel-gateway.socket || fail "the port is open before init"
on laptop dpkg --purge whimbrel-gateway
client_is attached || fail "the client minds the purge of a gateway beside it"
on vps dpkg --purge whimbrel
[ "$(dpkg_state vps whimbrel)" != installed ] || fail "the client is still there"
for file in /etc/whimbrel/gateway.toml /var/lib/whimbrel/gateway.key /var/lib/whimbrel/clients; do
    on vps test -e "$file" || fail "purging the client took $file of the gateway"
done
on vps id whimbrel >/dev/null || fail "purging the client took the user of the gateway"
on vps systemctl restart whimbrel-gateway || fail "the gateway does not start after that"
within 10 "the client is not attached" client_is attached
expect_carried "after the purge of the client beside the gateway"

step "remove: nothing runs, the configuration stays"
on laptop dpkg --remove whimbrel
! is_active laptop whimbrel.service || fail "the client runs after it was removed"
[ "$(rules)" = 0 ] || fail "rules stay behind: $(on laptop ip rule show)"
on laptop test -e /etc/whimbrel/client.toml || fail "removing took the configuration"
on laptop test -e /var/lib/whimbrel/client.key || fail "removing took the key"
echo_once "direct" || fail "no connection without the client"

step "client: installed again, it is what it was"
install_package laptop whimbrel 2
on laptop sed -i -E 's|^#? ?mode = .*|mode = "all"|' /etc/whimbrel/client.toml
on laptop systemctl start whimbrel
within 10 "the client is not attached" client_is attached
within 10 "names do not lead to the gateway" on laptop grep -F 10.213.52.53 /etc/resolv.conf

step "purge: nothing is left, and names are asked as before"
on laptop dpkg --purge whimbrel
on vps dpkg --purge whimbrel-gateway
for system in vps laptop; do expect_no_traces "$system"; done
[ "$(on laptop cat /etc/resolv.conf)" = "nameserver 127.0.0.9" ] ||
    fail "the settings of names stay changed: $(on laptop cat /etc/resolv.conf)"
step "passed"
