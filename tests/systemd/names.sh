# Of whom the laptop asks names, whoever decides that. Sourced by `names`.

# What the gateway's own resolver says of every name, and what that of the laptop's networks does.
at_gateway=198.18.0.99 at_home=192.0.2.99
asked=0

# What the laptop's programs find for a name that nobody has asked for yet.
found() {
    asked=$((asked + 1))
    on laptop timeout 10 getent ahostsv4 "n$RANDOM-$asked.example.org" | sed -n '1s/ .*//p'
}

names_lead() { [ "$(found)" = "$1" ]; }

# Names are asked of the gateway, and `status` says who leads them there: `expect_led BY WHEN`.
expect_led() {
    within 15 "names do not lead to the gateway: $2" names_lead "$at_gateway"
    within 5 "$1 does not lead names: $2" led_by "$1"
}

led_by() { on laptop whimbrel status --json | grep -F "\"by\": \"$1\""; }

expect_home() { within "${2-3}" "names are not asked as before: $1" names_lead "$at_home"; }

# The links over which the gateway answers, the one that carries first.
answering_links() { on laptop whimbrel paths | awk '$2 == "warm" || $2 == "active" { print $1 }'; }

both_answer() { [ "$(answering_links | wc -l)" = 2 ]; }

# Breaks the link that carries, and prints how long names are not asked of the gateway.
change_links() {
    local from began
    within 15 "there are no two links" both_answer
    from=$(answering_links | sed 1q)
    ip -n laptop link set "$from" down
    began=$EPOCHREALTIME
    within 15 "names do not lead to the gateway after a change of the links" names_lead "$at_gateway"
    echo "$EPOCHREALTIME $began" |
        awk '{ printf "names were right %d ms after a change of the links\n", ($1 - $2) * 1000 }'
    ip -n laptop link set "$from" up
    ip -n laptop route replace default via "${routers[$from]}" metric "${metrics[$from]}"
}

# A daemon that is killed, with nobody to start it again.
kill_client() {
    on laptop kill -9 "$(main_pid laptop whimbrel.service)"
    expect_home "after kill -9"
    within 10 "the unit does not end" has_state failed
    on laptop systemctl reset-failed whimbrel.service
}

has_state() { [ "$(on laptop systemctl is-active whimbrel.service)" = "$1" ]; }

start_client() {
    on laptop systemctl start whimbrel.service || fail "the client does not start"
    within 10 "the client is not attached" client_is attached
}

stop_client() {
    on laptop systemctl stop whimbrel.service
    # It is done when the command is.
    names_lead "$at_home" || fail "names are not asked as before: after a stop"
}

# Everything that must hold, whoever leads names.
story_of() {
    local by=$1
    expect_home "without the client"
    start_client
    expect_led "$by" "after a start"
    change_links
    expect_led "$by" "after a change of the links"
    kill_client
    start_client
    expect_led "$by" "after a new start"
    stop_client
}

install_other() {
    cp "$others/$1"_*.deb "$work/laptop/root/root/"
    on laptop bash -c "DEBIAN_FRONTEND=noninteractive dpkg --install /root/$1_*.deb" 2>&1 |
        tail -n 1 || fail "install $1"
}

write_settings() {
    on laptop bash -c 'echo "nameserver $0" >/etc/resolv.new && mv /etc/resolv.new /etc/resolv.conf' "$1"
}

make_networks
ip link add to-cell type veth peer name wlan1 netns laptop
ip address add 198.51.100.1/24 dev to-cell
ip link set to-cell up
ip -n laptop address add 198.51.100.2/24 dev wlan1
ip -n laptop link set wlan1 up
ip -n laptop route add default via 198.51.100.1 metric 100
declare -A routers=([wlan0]=192.0.2.1 [wlan1]=198.51.100.1) metrics=([wlan0]=0 [wlan1]=100)
for system in vps laptop; do
    make_system "$system"
    make_debian "$system"
    install_whimbrel "$system"
    echo "hosts: files dns" >"$work/$system/root/etc/nsswitch.conf"
done
echo "nameserver 127.0.0.9" >"$work/vps/root/etc/resolv.conf"
echo "nameserver 198.51.100.1" >"$work/laptop/root/etc/resolv.conf"
ip netns exec vps tests/systemd/answers 127.0.0.9 "$at_gateway" &
tests/systemd/answers 198.51.100.1 "$at_home" &
boot vps
boot laptop
step "two systems booted"

on vps whimbrel-gateway init --public 203.0.113.2:443 >/dev/null
on vps systemctl enable --quiet --now whimbrel-gateway.socket whimbrel-gateway.service
on laptop whimbrel join "$(on vps whimbrel-gateway invite laptop)" >/dev/null
on laptop sed -i -E 's|^#? ?mode = .*|mode = "all"|' /etc/whimbrel/client.toml
on laptop grep -qx 'mode = "all"' /etc/whimbrel/client.toml || fail "there is no mode to change"
# A kill is the end, to see what it leaves.
on laptop mkdir -p /etc/systemd/system/whimbrel.service.d
on laptop bash -c 'printf "[Service]\nRestart=no\n" >/etc/systemd/system/whimbrel.service.d/once.conf'
on laptop systemctl daemon-reload

step "a plain /etc/resolv.conf, which the client may not write"
story_of /etc/resolv.conf
[ "$(on laptop stat -c '%U %a' /etc/resolv.conf)" = "root 644" ] || fail "it is not root's any more"
start_client
expect_led /etc/resolv.conf "once more"
for round in 1 2 3; do
    write_settings 192.0.2.77
    expect_led /etc/resolv.conf "after somebody else wrote it, round $round"
done
on laptop systemctl kill --signal KILL whimbrel-names.service
expect_led /etc/resolv.conf "after kill -9 of whoever writes it"
write_settings 198.51.100.1
expect_led /etc/resolv.conf "after the last of them"
stop_client
[ "$(on laptop cat /etc/resolv.conf)" = "nameserver 198.51.100.1" ] || fail "not what was written last"

start_client
expect_led /etc/resolv.conf "before a power cut"
on laptop cp -a /etc/resolv.conf /var/lib/whimbrel-names/resolv.conf.before /root/
stop_client
on laptop mv /root/resolv.conf /etc/
on laptop mv /root/resolv.conf.before /var/lib/whimbrel-names/
start_client
expect_log laptop whimbrel.service "Settings that were left behind are as before"
expect_led /etc/resolv.conf "after a power cut"
stop_client
[ "$(on laptop cat /etc/resolv.conf)" = "nameserver 198.51.100.1" ] || fail "not what was there before"

step "systemd-resolved"
install_other systemd-resolved
# The bus did not know its user yet when it was started.
on laptop systemctl restart systemd-resolved.service
on laptop resolvectl dns wlan1 198.51.100.1 || fail "resolved takes no servers"
story_of systemd-resolved
start_client
expect_led systemd-resolved "once more"
on laptop resolvectl status whimbrel0 | tee "$work/said"
grep -qF 'DNS Servers: 10.213.52.53' "$work/said" && grep -qE 'DNS Domain: ~\.' "$work/said" ||
    fail "resolved does not say so"
[ "$(on laptop ps -o user= -p "$(main_pid laptop whimbrel.service)")" = whimbrel ] ||
    fail "the client is somebody else"
on laptop resolvectl query --type=A once.example.org | grep -F "$at_gateway" ||
    fail "resolvectl does not ask the gateway"
on laptop systemctl restart systemd-resolved.service
on laptop resolvectl dns wlan1 198.51.100.1
expect_led systemd-resolved "after a restart of resolved"
on laptop systemctl kill --signal KILL systemd-resolved.service
within 10 "resolved does not come back" on laptop resolvectl dns wlan1 198.51.100.1
expect_led systemd-resolved "after kill -9 of resolved"
stop_client
on laptop dpkg --purge systemd-resolved >/dev/null 2>&1
on laptop rm -f /etc/resolv.conf
write_settings 198.51.100.1

step "resolvconf, as Debian has it"
install_other resolvconf
on laptop bash -c 'echo "nameserver 198.51.100.1" | resolvconf -a wlan1.dhclient'
story_of resolvconf
on laptop dpkg --purge resolvconf >/dev/null 2>&1
on laptop rm -f /etc/resolv.conf
write_settings 198.51.100.1

step "openresolv"
install_other openresolv
on laptop bash -c 'echo "nameserver 198.51.100.1" | resolvconf -a wlan1'
story_of openresolv
start_client
expect_led openresolv "once more"
on laptop bash -c 'echo "nameserver 192.0.2.78" | resolvconf -a wlan0'
expect_led openresolv "after another network"
on laptop resolvconf -d wlan0
stop_client

step "nothing stays behind"
left=$(on laptop find /etc /run /var/lib/whimbrel-names -name '*.before' -o -name '*conf.whimbrel')
[ -z "$left" ] || fail "left behind: $left"
step "passed"
