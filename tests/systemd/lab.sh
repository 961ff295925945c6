# Two systems and the network between them. Sourced by `run` and `packages`, in namespaces of their
# own.
#
#     laptop wlan0 192.0.2.2 ── 192.0.2.1 router 203.0.113.1 ── 203.0.113.2 wan0 vps
#                                        │
#                                  198.18.0.9 origin

fail() {
    echo "FAILED: $*"
    for system in vps laptop; do
        if [ ! -s "$work/$system/leader" ]; then
            [ ! -e "$work/$system/console" ] || tail -n 30 "$work/$system/console"
            continue
        fi
        echo "---- $system: journal"
        on "$system" journalctl --no-pager -o short-precise -u 'whimbrel*' || :
        on "$system" systemctl --no-pager --failed || :
    done
    exit 1
} >&3 2>&3

step() { echo "[$(printf %5.1f "$(elapsed)")s] $*"; }

elapsed() { echo "$EPOCHREALTIME $began" | awk '{ print $1 - $2 }'; }
began=$EPOCHREALTIME

# Where the systems' programs come from, if not from the machine.
tree=${tree-}

# The control groups of this run.
groups=whimbrel-$(</proc/sys/kernel/random/uuid)

# Runs a command in a system, as its root.
on() {
    local system=$1
    shift
    nsenter --target "$(<"$work/$system/leader")" --all -- \
        env -i PATH=/usr/sbin:/usr/bin TERM=dumb HOME=/root "$@"
}

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

make_networks() {
    # The script's own network is the router.
    ip link set lo up
    echo 1 >/proc/sys/net/ipv4/ip_forward
    for system in laptop vps origin; do ip netns add "$system"; done
    cable laptop wlan0 192.0.2.1 192.0.2.2
    cable vps wan0 203.0.113.1 203.0.113.2
    cable origin eth0 198.18.0.1 198.18.0.9
}

# Connects a network to the router: `cable NETWORK INTERFACE ROUTER-ADDRESS ADDRESS`.
cable() {
    ip link add "to-$1" type veth peer name "$2" netns "$1"
    ip address add "$3/24" dev "to-$1"
    ip link set "to-$1" up
    ip -n "$1" address add "$4/24" dev "$2"
    ip -n "$1" link set lo up
    ip -n "$1" link set "$2" up
    ip -n "$1" route add default via "$3"
}

# Makes the tree of a system: the machine's /usr, or that of another tree, and nothing else of it.
make_system() {
    local root=$work/$1/root usr=$work/$1/usr
    mkdir -p "$root"/{usr,etc/systemd/system,var,run,tmp,proc,sys,dev,root} "$usr"/{upper,work}
    mount -t overlay overlay -o "lowerdir=$tree/usr,upperdir=$usr/upper,workdir=$usr/work" "$root/usr"
    for folder in bin sbin lib lib64; do
        if [ -e "$tree/usr/$folder" ]; then ln -s "usr/$folder" "$root/$folder"; fi
    done
    # A system that knows its id does not enable every service it finds.
    printf '%032x\n' "$((RANDOM * 32768 + RANDOM + 1))" >"$root/etc/machine-id"
    echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
    echo 'root:x:0:' >"$root/etc/group"
    for unit in console-getty.service getty@.service systemd-udevd.service; do
        ln -s /dev/null "$root/etc/systemd/system/$unit"
    done
}

# Gives a system the packages that the machine has, and the tools to install more.
make_debian() {
    local root=$work/$1/root dpkg=$work/$1/dpkg
    mkdir -p "$root/var/lib/dpkg" "$dpkg"/{upper,work}
    mount -t overlay overlay \
        -o "lowerdir=$tree/var/lib/dpkg,upperdir=$dpkg/upper,workdir=$dpkg/work" "$root/var/lib/dpkg"
    # What the machine is about to install, and users that only it has.
    rm -f "$root"/var/lib/dpkg/updates/*
    : >"$root/var/lib/dpkg/statoverride"
    mkdir -p "$root"/etc/apt "$root"/var/lib/apt/lists/partial "$root"/var/cache/apt/archives/partial
    # The stories are root already, and the machine may have none.
    rm -f "$root/usr/bin/sudo"
    printf '#!/bin/sh\nexec "$@"\n' >"$root/usr/bin/sudo"
    chmod 755 "$root/usr/bin/sudo"
    # Images for containers forbid their packages to start anything.
    rm -f "$root/usr/sbin/policy-rc.d"
}

# Puts Whimbrel where a package puts it.
install_whimbrel() {
    local usr=$work/$1/root/usr
    install -D -t "$usr/bin" "$programs/whimbrel" "$programs/whimbrel-gateway"
    install -D -m 644 -t "$usr/lib/systemd/system" systemd/*.service systemd/*.socket
    install -D -m 644 systemd/sysusers.conf "$usr/lib/sysusers.d/whimbrel.conf"
    install -D -m 644 systemd/tmpfiles.conf "$usr/lib/tmpfiles.d/whimbrel.conf"
    install -D -m 644 systemd/sysctl.conf "$usr/lib/sysctl.d/50-whimbrel-gateway.conf"
    install -D -m 644 systemd/polkit.rules "$usr/share/polkit-1/rules.d/whimbrel.rules"
    # It belongs to the machine's polkitd, whose number is another one here.
    chmod 755 "$usr/share/polkit-1/rules.d"
}

boot() {
    local system=$1 home=$work/$1 group=$work/cgroup/$groups-$1
    mkdir "$group"
    # The device with the mode that udev gives it.
    mknod --mode=666 "$home/tun" c 10 200
    (
        echo "$BASHPID" >"$group/cgroup.procs"
        exec setsid unshare --mount --propagation private bash -c '
            umount --recursive --lazy /sys/fs/cgroup 2>/dev/null || :
            mount -t cgroup2 cgroup2 /sys/fs/cgroup
            exec systemd-nspawn --quiet --directory="$1/root" --machine="$0" --register=no \
                --keep-unit --boot --console=read-only --resolv-conf=off --timezone=off \
                --link-journal=no --network-namespace-path="/run/netns/$0" \
                --bind="$1/tun:/dev/net/tun" --capability=CAP_NET_ADMIN,CAP_NET_RAW,CAP_BPF \
                --system-call-filter=bpf
        ' "$system" "$home"
    ) >"$home/console" 2>&1 </dev/null &
    echo $! >"$home/nspawn"
    within 60 "$system did not boot" is_up "$system"
}

# The leader is the child of nspawn that is PID 1 in a namespace of its own.
is_up() {
    local nspawn leader
    nspawn=$(<"$work/$1/nspawn")
    [ -d "/proc/$nspawn" ] || fail "$1 ended while it booted"
    for leader in $(cat "/proc/$nspawn/task/$nspawn/children"); do
        if grep -qE '^NSpid:.*[[:space:]]1$' "/proc/$leader/status"; then
            echo "$leader" >"$work/$1/leader"
            on "$1" systemctl is-system-running | grep -qE 'running|degraded'
            return
        fi
    done
    return 1
}

# Asks the systems to power off, and leaves no control group behind.
power_off() {
    local system tries pid
    for system in vps laptop; do
        [ ! -s "$work/$system/leader" ] || kill -s RTMIN+4 "$(<"$work/$system/leader")" || :
    done
    for system in vps laptop; do
        [ -s "$work/$system/nspawn" ] || continue
        pid=$(<"$work/$system/nspawn")
        for ((tries = 200; tries > 0; tries--)); do
            [ -d "/proc/$pid/root" ] && kill -0 "$pid" 2>/dev/null || break
            sleep 0.05
        done
        kill -9 "$pid" 2>/dev/null || :
        remove_group "$work/cgroup/$groups-$system"
    done
}

remove_group() {
    local tries
    [ ! -e "$1/cgroup.kill" ] || echo 1 >"$1/cgroup.kill"
    for ((tries = 40; tries > 0; tries--)); do
        find "$1" -depth -type d -exec rmdir {} + 2>/dev/null || :
        [ -d "$1" ] || return 0
        sleep 0.05
    done
}

# For a failure inside a command whose own words do not matter.
exec 3>&2

mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p "$work/cgroup" "$work/vps" "$work/laptop"
mount -t cgroup2 cgroup2 "$work/cgroup"
trap power_off EXIT
