# A laptop in QEMU, a VPS, an origin, and the network between them. Sourced by `run`, in namespaces
# of its own.
#
#     laptop eth0 192.0.2.2 ── 192.0.2.1 router 203.0.113.1 ── 203.0.113.2 wan0 vps
#                                       │
#                                 198.18.0.9 origin

fail() {
    echo "FAILED: $*"
    echo "---- gateway:"
    tail -n 30 "$work/gateway.log" || :
    echo "---- laptop:"
    inside "journalctl --no-pager -o short-precise -u whimbrel -u systemd-logind -n 60" || :
    tail -n 30 "$work/console" || :
    exit 1
} >&3 2>&3
exec 3>&2

began=$EPOCHREALTIME
elapsed() { echo "$EPOCHREALTIME $began" | awk '{ print $1 - $2 }'; }
step() { echo "[$(printf %5.1f "$(elapsed)")s] $*"; }

# Tries a command until it succeeds: `within SECONDS WHAT COMMAND…`.
within() {
    local tries=$(($1 * 20)) what=$2
    shift 2
    for ((; tries > 0; tries--)); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.05
    done
    fail "$what"
}

cable() {
    ip link add "to-$1" type veth peer name "$2" netns "$1"
    ip address add "$3/24" dev "to-$1"
    ip link set "to-$1" up
    ip -n "$1" address add "$4/24" dev "$2"
    ip -n "$1" link set lo up
    ip -n "$1" link set "$2" up
    ip -n "$1" route add default via "$3"
}

make_networks() {
    ip link set lo up
    echo 1 >/proc/sys/net/ipv4/ip_forward
    for network in vps origin; do ip netns add "$network"; done
    cable vps wan0 203.0.113.1 203.0.113.2
    cable origin eth0 198.18.0.1 198.18.0.9
    ip tuntap add to-laptop mode tap
    ip address add 192.0.2.1/24 dev to-laptop
    ip link set to-laptop up
}

gateway() { ip netns exec vps "$programs/whimbrel-gateway" "$@" --config "$work/gateway.toml"; }

start_gateway() {
    gateway init --listen '[::]:443' --public 203.0.113.2:443 >/dev/null
    # The origin lives in a range that is reserved for tests, which a gateway denies by default.
    sed -i 's|^allow = \[\]|allow = ["198.18.0.0/15"]|' "$work/gateway.toml"
    gateway run >"$work/gateway.log" 2>&1 &
    within 10 "the gateway does not start" gateway status
}

# An ssh server at the origin that lets the laptop's key in.
start_sshd() {
    for key in host_key laptop_key; do
        ssh-keygen -q -t ed25519 -N '' -f "$work/$key"
    done
    ip netns exec origin /usr/sbin/sshd -D -f /dev/null -h "$work/host_key" -o UsePAM=no \
        -o StrictModes=no -o PidFile=none -o PermitRootLogin=yes \
        -o AuthorizedKeysFile="$work/laptop_key.pub" 2>"$work/sshd.log" &
}

# What the laptop gets beside its own system, as an archive on its second disk.
pack() {
    local tree=$work/pack
    install -D -t "$tree/usr/bin" "$programs/whimbrel"
    install -D -m 644 -t "$tree/usr/lib/systemd/system" systemd/whimbrel.service
    install -D -m 644 systemd/sysusers.conf "$tree/usr/lib/sysusers.d/whimbrel.conf"
    install -D -m 644 systemd/tmpfiles.conf "$tree/usr/lib/tmpfiles.d/whimbrel.conf"
    install -D -m 644 systemd/polkit.rules "$tree/usr/share/polkit-1/rules.d/whimbrel.rules"
    install -D -m 600 "$work/laptop_key" "$tree/lab/key"
    # Lines from outside are commands; what they print comes back, and how they ended.
    cat >"$tree/lab/agent" <<'AGENT'
#!/bin/bash
stty -F /dev/ttyS1 raw -echo
exec <>/dev/ttyS1 >&0 2>/dev/null
echo "= 0"
while read -r line; do
    bash -c "$line" </dev/null 2>&1 | sed 's/^/| /'
    echo "= ${PIPESTATUS[0]}"
done
AGENT
    chmod 755 "$tree/lab/agent"
    tar --create --owner=0 --group=0 --file "$work/pack.tar" --directory "$tree" .
    # Disks come in whole sectors.
    truncate -s %1M "$work/pack.tar"
}

accelerator() {
    if [ "${WHIMBREL_KVM-}" = 1 ]; then
        echo "-accel kvm -cpu host"
    else
        echo "-accel tcg,thread=multi -cpu max"
    fi
}

boot() {
    mkfifo "$work/agent.in" "$work/agent.out" "$work/monitor.in" "$work/monitor.out"
    # shellcheck disable=SC2046
    qemu-system-x86_64 $(accelerator) -machine pc -smp 2 -m 1024 -display none -no-reboot \
        -kernel "$cache/vmlinuz" -initrd "$cache/initrd.img" -rtc base=utc,clock=host \
        -append "root=/dev/vda rw console=ttyS0 quiet net.ifnames=0" \
        -drive "file=$cache/disk.img,if=virtio,format=raw,snapshot=on" \
        -drive "file=$work/pack.tar,if=virtio,format=raw,readonly=on" \
        -netdev tap,id=net,ifname=to-laptop,script=no,downscript=no \
        -device virtio-net-pci,netdev=net \
        -serial "file:$work/console" -serial "pipe:$work/agent" \
        -chardev "pipe,id=monitor,path=$work/monitor" -mon monitor >"$work/qemu.log" 2>&1 </dev/null &
    qemu=$!
    exec 4<>"$work/agent.in" 5<>"$work/agent.out" 6<>"$work/monitor.in" 7<>"$work/monitor.out"
    answered 240 || fail "the laptop does not boot: $(cat "$work/qemu.log")"
}

# Runs a command in the laptop; it prints and ends as that does.
inside() {
    printf '%s\n' "$1" >&4
    answered 60
}

answered() {
    local line code
    while read -r -t "$1" line <&5; do
        line=${line%$'\r'}
        case $line in
        '| '*) echo "${line#| }" ;;
        '= '*) code=${line#= }; return "$code" ;;
        esac
    done
    return 124
}

# Says something to QEMU's monitor.
monitor() { printf '%s\n' "$1" >&6; }

is_asleep() {
    local line
    while read -r -t 0.01 line <&7; do :; done
    monitor "info status"
    while read -r -t 1 line <&7; do
        case $line in
        *'(suspended)'*) return 0 ;;
        *'VM status'*) return 1 ;;
        esac
    done
    return 1
}
