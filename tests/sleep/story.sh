# What happens to the laptop, and what must come of it. Sourced by `run`.

asleep=${WHIMBREL_ASLEEP:-30}

attached() { [[ $(inside "whimbrel status --json") == *'"state": "attached"'* ]]; }

delays_sleep() {
    inside "busctl call org.freedesktop.login1 /org/freedesktop/login1 \
        org.freedesktop.login1.Manager ListInhibitors | grep Whimbrel"
}

parked_flows() { gateway status --json | tr -d ' \n' | sed 's/.*"parked":{[^}]*"flows":\([0-9]*\).*/\1/'; }

# Lines the origin has received on the ssh session so far, each with the time.
lines() { wc -l <"$work/heard"; }

# When the origin heard the first line after a moment.
first_after() { awk -v moment="$1" '$2 > moment { print $2; exit }' "$work/heard"; }

heard_after() { [ -n "$(first_after "$1")" ]; }

since() { echo "$1 $2" | awk '{ printf "%d", ($1 - $2) * 1000 }'; }

# Wakes the laptop up, and says how long everything took.
wake() {
    local woken first
    woken=$EPOCHREALTIME
    monitor system_wakeup
    within 60 "the ssh session does not go on" heard_after "$woken"
    first=$(first_after "$woken")
    step "the first byte arrives $(since "$first" "$woken") ms after the wake-up button"
    within 20 "the client is not attached" attached
    within 10 "the client does not delay the next sleep" delays_sleep
    inside "journalctl -k -b --no-pager -o short-monotonic | grep -E 'PM: suspend (entry|exit)' | tail -n 2"
    inside "whimbrel events | grep -E ' (sleep|wake|attached) ' | tail -n 3"
}

expect_session() {
    inside "kill -0 \$(cat /lab/ssh.pid)" || fail "the ssh session has ended"
    # Every number once, in order, there and back.
    awk '$1 != NR - 1 { exit 1 }' "$work/heard" || fail "the origin heard something else"
    inside "awk '\$1 != NR - 1 { exit 1 }' /lab/back" || fail "the laptop heard something else"
}

make_networks
start_gateway
start_sshd
pack
step "the laptop boots ($(accelerator))"
boot
step "$(inside "uname -rv"), $(inside "systemctl --version | sed 1q")"
inside "cat /sys/power/state /sys/power/mem_sleep"
inside "ip address add 192.0.2.2/24 dev eth0 && ip link set lo up && ip link set eth0 up && \
        ip route add default via 192.0.2.1"
inside "systemd-sysusers && systemd-tmpfiles --create && systemctl daemon-reload"

step "the client starts, and delays sleep"
inside "whimbrel join '$(gateway invite laptop 2>/dev/null)' >/dev/null"
inside "systemctl start whimbrel" || fail "the client does not start"
within 20 "the client is not attached" attached
within 10 "the client does not delay sleep" delays_sleep
inside "ps -o user=,comm= -C whimbrel"

step "an ssh session says numbers without end, and hears them back"
: >"$work/heard"
inside "(for ((i = 0; ; i++)); do echo \$i; sleep 0.02; done | ssh -i /lab/key -o BatchMode=yes \
    -o StrictHostKeyChecking=no root@198.18.0.9 'while read -r line; do \
    echo \"\$line \$EPOCHREALTIME\" >>$work/heard; echo \"\$line\"; done' >/lab/back & \
    echo \$! >/lab/ssh.pid) >/dev/null 2>&1"
within 20 "the ssh session does not begin" heard_after "$EPOCHREALTIME"
[[ $(inside "whimbrel flows --json") == *198.18.0.9:22* ]] ||
    fail "the ssh session does not go through the gateway"

step "logind lets the laptop sleep"
inside "systemctl suspend" || fail "the laptop does not want to sleep"
within 30 "the laptop does not sleep" is_asleep
[ "$(parked_flows)" = 1 ] || fail "the gateway does not hold the session: $(gateway status)"
before=$(lines)
step "asleep for $asleep s, the session parked at the gateway"
sleep "$asleep"
[ "$(lines)" = "$before" ] || fail "it does not sleep"
is_asleep || fail "it is awake already"
wake
expect_session

step "nobody announces that the laptop sleeps"
sleep 2
inside "(sleep 0.2; echo mem >/sys/power/state) >/dev/null 2>&1 &"
within 30 "the laptop does not sleep" is_asleep
[ "$(parked_flows)" = 0 ] || fail "somebody announced it"
before=$(lines)
step "asleep for $asleep s, and the gateway knows nothing of it"
sleep "$asleep"
[ "$(lines)" = "$before" ] || fail "it does not sleep"
wake
expect_session
inside "journalctl --no-pager -o cat -u whimbrel | grep -F 'The machine slept'" ||
    fail "the clocks did not tell"

step "all is well: $(lines) lines there and back, none lost, none twice"
monitor quit
wait "$qemu" || :
