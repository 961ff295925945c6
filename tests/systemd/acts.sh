# What stories do and look at. Sourced by `run` and `packages`.

client_is() { on laptop whimbrel status --json | grep -q "\"state\": \"$1\""; }

# One line to the origin and back, from the laptop.
echo_once() {
    on laptop timeout 10 bash -c '
        exec 3<>/dev/tcp/198.18.0.9/7 && echo "$0" >&3 && read -r line <&3 && [ "$line" = "$0" ]
    ' "$1"
}

# The same by `whimbrel run`, as a user in a group that belongs to root, as a login session does:
# `echo_by USER OPTION WORD`.
echo_by() {
    on laptop bash -c 'cat >/run/echo' <<<'
        exec 3<>/dev/tcp/198.18.0.9/7 && echo "$1" >&3 && read -r line <&3 && [ "$line" = "$1" ]'
    on laptop systemd-run --quiet --wait --pipe --collect \
        setpriv --reuid "$1" --regid "$1" --init-groups \
        timeout 10 whimbrel run "$2" -- bash /run/echo "$3"
}

no_scopes() { [ -z "$(on laptop find /sys/fs/cgroup -name 'whimbrel-run-*')" ]; }

# The origin says again what it is told.
serve_echo() {
    ip netns exec origin systemd-socket-activate --accept --inetd --listen 198.18.0.9:7 cat \
        >/dev/null 2>&1 &
}

# How many connections the gateway has dialled.
dialled() { on vps whimbrel-gateway status | sed -n 's/^Dials *\([0-9]*\) connected.*/\1/p'; }

# Opens a connection from the laptop that stays open: what is written to its one end, a line at a
# time, must come back from the origin.
open_line() {
    on laptop bash -c '
        mkfifo /run/line.in /run/line.out
        exec 3<>/dev/tcp/198.18.0.9/7 4<>/run/line.in 5<>/run/line.out
        cat <&4 >&3 & cat <&3 >&5 & echo $$ >/run/line.pid; wait -n
        echo gone >/run/line.gone
    ' >/dev/null 2>&1 &
    within 5 "a connection that stays" on laptop test -e /run/line.pid
}

# Says something on the connection that stays open, and waits for the echo.
say_on_line() {
    on laptop timeout 20 bash -c '
        exec 4<>/run/line.in 5<>/run/line.out
        echo "$0" >&4 && read -r line <&5 && [ "$line" = "$0" ]
    ' "$1" || fail "the connection that was open did not survive: $1"
}

close_line() {
    on laptop bash -c 'pid=$(</run/line.pid) && kill $(</proc/$pid/task/$pid/children)'
    within 5 "the connection that was open does not end" on laptop test -e /run/line.gone
    on laptop bash -c 'rm /run/line.*'
}

# The exposure systemd-analyze sees, in tenths.
exposure() {
    on "$1" systemd-analyze security --no-pager "$2" |
        sed -n 's/.*Overall exposure level for .*: \([0-9]*\)\.\([0-9]\).*/\1\2/p'
}

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
    on "$1" journalctl --no-pager -o cat -u "$2" | grep -F "$3" >/dev/null ||
        fail "the journal of $2 has no line \"$3\""
}

# Whether the client makes the laptop wait before it sleeps.
delays_sleep() {
    on laptop busctl call org.freedesktop.login1 /org/freedesktop/login1 \
        org.freedesktop.login1.Manager ListInhibitors |
        grep -F '"sleep" "Whimbrel"' | grep -F '"delay"'
}

# What somebody may do to the client, asked by `person`, a member of the group, or by `stranger`.
may() { on laptop setpriv --reuid "$1" --regid "$1" --init-groups systemctl --no-ask-password "$2" whimbrel.service; }

rules() { on laptop ip rule show | grep -cE '^54[0-9][0-9]:' || :; }
