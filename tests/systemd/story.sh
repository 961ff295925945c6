# What a person does with the units, and what must come of it. Sourced by `run`.

client_is() { on laptop whimbrel status --json | grep -q "\"state\": \"$1\""; }

# One line to the origin and back, from the laptop.
echo_once() {
    on laptop timeout 10 bash -c '
        exec 3<>/dev/tcp/198.18.0.9/7 && echo "$0" >&3 && read -r line <&3 && [ "$line" = "$0" ]
    ' "$1"
}

# How many connections the gateway has dialled.
dialled() { on vps whimbrel-gateway status | sed -n 's/.*dials: \([0-9]*\) connected.*/\1/p'; }

expect_carried() {
    local before
    before=$(dialled)
    echo_once "$1" || fail "no echo: $1"
    [ "$(dialled)" = $((before + 1)) ] || fail "the connection did not go through the gateway: $1"
}

# Whether a connection goes through the gateway, which may be starting.
echo_carried() {
    local before
    before=$(dialled) && echo_once "again" && [ "$(dialled)" -gt "$before" ]
}

has_new_pid() {
    is_active "$1" "$2" && [ "$(main_pid "$1" "$2")" != "$3" ]
}

main_pid() { on "$1" systemctl show --property MainPID --value "$2"; }

is_active() { on "$1" systemctl is-active --quiet "$2"; }

expect_status_text() {
    on "$1" systemctl status --no-pager "$2" | grep -F 'Status: ' | grep -F "$3" ||
        fail "systemctl status $2 has no status text \"$3\""
}

expect_log() {
    on "$1" journalctl --no-pager -o cat -u "$2" | grep -qF "$3" ||
        fail "the journal of $2 has no line \"$3\""
}

rules() { on laptop ip rule show | grep -cE '^54[0-9][0-9]:' || :; }

make_networks
for system in vps laptop; do
    make_system "$system"
    install_whimbrel "$system"
    boot "$system"
    step "$system: $(on "$system" systemctl --version | sed 1q) booted," \
        "$(on "$system" systemctl is-system-running || :)"
done
ip netns exec origin systemd-socket-activate --accept --inetd --listen 198.18.0.9:7 cat \
    >/dev/null 2>&1 &

step "the units as systemd reads them"
for unit in whimbrel-gateway.socket whimbrel-gateway.service whimbrel.service; do
    remarks=$(on vps systemd-analyze verify "$unit" 2>&1) || fail "verify $unit: $remarks"
    [ -z "$remarks" ] || fail "verify $unit: $remarks"
done

step "gateway: init, enable, start"
on vps whimbrel-gateway init --public 203.0.113.2:443
# The origin lives in a range that is reserved for tests, which a gateway denies by default.
on vps sed -i 's|^allow = \[\]|allow = ["198.18.0.0/15"]|' /etc/whimbrel/gateway.toml
on vps systemctl enable --now whimbrel-gateway.socket whimbrel-gateway.service ||
    fail "the gateway does not start"
is_active vps whimbrel-gateway.service || fail "the gateway is not active"
on vps whimbrel-gateway status
expect_status_text vps whimbrel-gateway.service listening

step "client: join, enable, start"
invite=$(on vps whimbrel-gateway invite laptop)
on laptop whimbrel join "$invite"
on laptop systemctl enable --now whimbrel.service || fail "the client does not start"
is_active laptop whimbrel.service || fail "the client is not active"
within 10 "the client is not attached" client_is attached
expect_status_text laptop whimbrel.service attached
on laptop whimbrel status
expect_carried "first"
[ "$(rules)" -gt 0 ] || fail "there are no capture rules"

step "client: restart"
on laptop systemctl restart whimbrel.service
within 10 "the client is not attached after a restart" client_is attached
expect_carried "after a restart of the client"

step "gateway: restart; the client finds it again"
on vps systemctl restart whimbrel-gateway.service
is_active vps whimbrel-gateway.service || fail "the gateway is not active after a restart"
within 30 "the client does not find the restarted gateway" echo_carried
expect_carried "after a restart of the gateway"

step "gateway: kill -9; systemd starts it again"
killed=$(main_pid vps whimbrel-gateway.service)
on vps kill -9 "$killed"
within 10 "systemd does not start the killed gateway" has_new_pid vps whimbrel-gateway.service "$killed"
within 30 "the client does not find the gateway after kill -9" echo_carried

step "client: kill -9; systemd cleans up and starts it again"
killed=$(main_pid laptop whimbrel.service)
on laptop kill -9 "$killed"
within 10 "systemd does not start the killed client" has_new_pid laptop whimbrel.service "$killed"
within 10 "the client is not attached after kill -9" client_is attached
expect_carried "after kill -9 of the client"

step "client: stop; nothing stays behind"
on laptop systemctl stop whimbrel.service
[ "$(rules)" = 0 ] || fail "rules stay behind: $(on laptop ip rule show)"
! on laptop ip link show whimbrel0 >/dev/null 2>&1 || fail "the TUN stays behind"
echo_once "direct" || fail "no connection without the client"
[ "$(on laptop systemctl show --property Result --value whimbrel.service)" = success ] ||
    fail "the client did not end well"
expect_log laptop whimbrel.service "Client stops"

step "gateway: stop, and start by its socket"
on vps systemctl stop whimbrel-gateway.service
expect_log vps whimbrel-gateway.service "Gateway stops"
[ "$(on vps systemctl show --property Result --value whimbrel-gateway.service)" = success ] ||
    fail "the gateway did not end well"
on laptop systemctl start whimbrel.service
within 10 "the first datagram does not start the gateway" is_active vps whimbrel-gateway.service
within 30 "the client is not attached" client_is attached
expect_carried "after a start by the socket"

step "what the journals say"
for unit in vps:whimbrel-gateway.service laptop:whimbrel.service; do
    echo "---- ${unit#*:}"
    on "${unit%:*}" journalctl --no-pager -o cat -u "${unit#*:}" | tail -n 12
done
step "passed"
