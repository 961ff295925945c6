# What a person does with the units, and what must come of it. Sourced by `run`.

make_networks
for system in vps laptop; do
    make_system "$system"
    install_whimbrel "$system"
    boot "$system"
    step "$system: $(on "$system" systemctl --version | sed 1q) booted," \
        "$(on "$system" systemctl is-system-running || :)"
done
serve_echo

step "the units as systemd reads them"
for unit in whimbrel-gateway.socket whimbrel-gateway.service whimbrel.service \
    whimbrel-names.socket whimbrel-names.service; do
    remarks=$(on vps systemd-analyze verify --man=no "$unit" 2>&1) || fail "verify $unit: $remarks"
    [ -z "$remarks" ] || fail "verify $unit: $remarks"
done

step "what the units may do, as systemd sees it"
for limit in vps:whimbrel-gateway.service:15 laptop:whimbrel.service:20 \
    laptop:whimbrel-names.service:20; do
    IFS=: read -r system unit most <<<"$limit"
    exposed=$(exposure "$system" "$unit")
    echo "$unit: exposure ${exposed%?}.${exposed: -1}"
    [ "$exposed" -le "$most" ] || fail "$unit is exposed too much"
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

step "gateway: a slot for each core, up to the sockets of the unit"
sockets=$(on vps systemctl show --property Listen whimbrel-gateway.socket | grep -c ':443 ')
cores=$(nproc)
expected=$((cores < sockets ? cores : sockets))
slots=$(on vps whimbrel-gateway status --json | grep -c '"slot":')
[ "$slots" = "$expected" ] || fail "$slots slots for $cores cores and $sockets sockets"
! on vps journalctl --no-pager -o cat -u whimbrel-gateway.service |
    grep -F "does not sort datagrams" || fail "the sandbox forbids to sort datagrams"

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

step "client: it delays sleep, as the user it runs as"
within 10 "the client does not delay sleep" delays_sleep
expect_log laptop whimbrel.service "Sleep of the machine is announced"
on laptop systemctl show --property User whimbrel.service | grep -x User=whimbrel

step "client: it notices that logind is restarted, and that the bus is"
on laptop systemctl restart systemd-logind.service
within 10 "the client does not delay sleep at the next logind" delays_sleep
on laptop systemctl restart dbus.service
within 30 "the client does not delay sleep on the next bus" delays_sleep

step "client: members of the group may restart and reload it, others may not"
on laptop bash -c 'echo "u person - - -
u stranger - - -
m person whimbrel" >/run/people.conf && systemd-sysusers /run/people.conf'
may person restart || fail "a member of the group may not restart the client"
within 10 "the client is not attached after a restart by a member" client_is attached
may person reload || fail "a member of the group may not reload the client"
! may stranger restart || fail "a stranger may restart the client"
! on laptop setpriv --reuid person --regid person --init-groups \
    systemctl --no-ask-password restart systemd-logind.service ||
    fail "a member of the group may restart something else"

step "client: commands go around the capture and through it, in scopes of systemd's"
# There is no PAM, which would tell it where its folder is.
on laptop mkdir -p /etc/systemd/system/user@.service.d
on laptop bash -c 'printf "[Service]\nPAMName=\nEnvironment=XDG_RUNTIME_DIR=/run/user/%%i\n" \
    >/etc/systemd/system/user@.service.d/plain.conf'
on laptop systemctl daemon-reload
on laptop systemctl start "user@$(on laptop id -u person).service" ||
    fail "there is no service manager for a member of the group"
on laptop whimbrel pause
for user in root person; do
    before=$(dialled)
    echo_by "$user" --exclude around || fail "no echo around the capture for $user"
    [ "$(dialled)" = "$before" ] || fail "the gateway dialled for what is excluded, for $user"
    echo_by "$user" --cgroup through || fail "no echo through the capture for $user"
    [ "$(dialled)" = $((before + 1)) ] || fail "the gateway did not dial for a group, for $user"
done
on laptop whimbrel resume
before=$(dialled)
echo_by person --exclude around || fail "no echo around the capture"
[ "$(dialled)" = "$before" ] || fail "the gateway dialled for what is excluded"
! echo_by stranger --exclude around || fail "a stranger may go around the capture"
within 5 "scopes stay behind" no_scopes
! on laptop grep -qE '^Cap(Inh|Prm|Eff|Amb):.*80........$' "/proc/$(main_pid laptop whimbrel.service)/status" ||
    fail "the client keeps CAP_BPF"

step "client: a wrapped command has a network after a restart of the daemon"
on laptop bash -c 'mkfifo /run/wrapped.go; whimbrel run -- bash -c "
    echo >/run/wrapped.up; read -r word </run/wrapped.go
    exec 3<>/dev/tcp/198.18.0.9/7; echo \$word >&3; read -r line <&3; echo \$line >/run/wrapped.said"
' >/dev/null 2>&1 &
within 10 "no wrapped command" on laptop test -e /run/wrapped.up
on laptop systemctl restart whimbrel.service
within 10 "the client is not attached after a restart" client_is attached
on laptop bash -c 'echo again >/run/wrapped.go'
within 10 "the command has no network after a restart" on laptop grep -qx again /run/wrapped.said

step "client: restart"
on laptop systemctl restart whimbrel.service
within 10 "the client is not attached after a restart" client_is attached
expect_carried "after a restart of the client"

step "gateway: a connection outlives a restart"
open_line
say_on_line "before"
on vps systemctl restart whimbrel-gateway.service
is_active vps whimbrel-gateway.service || fail "the gateway is not active after a restart"
say_on_line "after a restart"
within 30 "the client does not find the restarted gateway" echo_carried
expect_carried "after a restart of the gateway"

step "gateway: a connection outlives kill -9"
for round in 1 2 3; do
    killed=$(main_pid vps whimbrel-gateway.service)
    on vps kill -9 "$killed"
    say_on_line "after kill -9, round $round"
    within 10 "systemd does not start the killed gateway" \
        has_new_pid vps whimbrel-gateway.service "$killed"
done
within 30 "the client does not find the gateway after kill -9" echo_carried

step "gateway: a process that hangs is replaced, and a connection outlives it"
hung=$(main_pid vps whimbrel-gateway.service)
on vps kill -STOP "$hung"
within 30 "the watchdog does not end a hanging gateway" \
    has_new_pid vps whimbrel-gateway.service "$hung"
say_on_line "after a hang"

step "gateway: an upgrade by another binary; a connection outlives it"
on vps cp /usr/bin/whimbrel-gateway /run/whimbrel-gateway.new
on vps mv /run/whimbrel-gateway.new /usr/local/bin/whimbrel-gateway
on vps mkdir -p /etc/systemd/system/whimbrel-gateway.service.d
on vps bash -c 'printf "[Service]\nExecStart=\nExecStart=/usr/local/bin/whimbrel-gateway run\n" \
    >/etc/systemd/system/whimbrel-gateway.service.d/upgrade.conf'
on vps systemctl daemon-reload
on vps systemctl restart whimbrel-gateway.service || fail "the other binary does not start"
say_on_line "after an upgrade"

step "gateway: reload; no connection notices"
kept=$(main_pid vps whimbrel-gateway.service)
on vps sed -i 's|^allow = .*|allow = ["198.18.0.0/15", "192.0.2.0/24"]|' /etc/whimbrel/gateway.toml
on vps systemctl reload whimbrel-gateway.service || fail "the gateway does not reload"
expect_log vps whimbrel-gateway.service "The configuration was read again"
on vps bash -c 'echo "nonsense" >>/etc/whimbrel/gateway.toml'
on vps systemctl reload whimbrel-gateway.service || fail "a wrong configuration fails the reload"
within 5 "nobody says that the configuration is wrong" \
    expect_log vps whimbrel-gateway.service "The configuration stays as it was"
on vps sed -i '/^nonsense$/d' /etc/whimbrel/gateway.toml
[ "$(main_pid vps whimbrel-gateway.service)" = "$kept" ] || fail "a reload is no restart"
say_on_line "after a reload"

step "client: reload; no connection notices"
kept=$(main_pid laptop whimbrel.service)
on laptop systemctl reload whimbrel.service || fail "the client does not reload"
within 5 "the client did not reload" \
    expect_log laptop whimbrel.service "The configuration was read again"
[ "$(main_pid laptop whimbrel.service)" = "$kept" ] || fail "a reload is no restart"
say_on_line "after a reload of the client"

step "client: a process that hangs is replaced"
hung=$(main_pid laptop whimbrel.service)
on laptop kill -STOP "$hung"
within 60 "the watchdog does not end a hanging client" \
    has_new_pid laptop whimbrel.service "$hung"
within 10 "the client is not attached after a hang" client_is attached

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
