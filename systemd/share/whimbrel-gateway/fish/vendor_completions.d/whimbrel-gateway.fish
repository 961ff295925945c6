# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_whimbrel_gateway_global_optspecs
    string join \n h/help V/version
end

function __fish_whimbrel_gateway_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_whimbrel_gateway_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_whimbrel_gateway_using_subcommand
    set -l cmd (__fish_whimbrel_gateway_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c whimbrel-gateway -n "__fish_whimbrel_gateway_needs_command" -s h -l help -d 'Print help'
complete -c whimbrel-gateway -n "__fish_whimbrel_gateway_needs_command" -s V -l version -d 'Print version'
complete -c whimbrel-gateway -n "__fish_whimbrel_gateway_needs_command" -f -a "init" -d 'Make a key and a configuration'
complete -c whimbrel-gateway -n "__fish_whimbrel_gateway_needs_command" -f -a "run" -d 'Run the gateway in the foreground (systemd runs this)'
complete -c whimbrel-gateway -n "__fish_whimbrel_gateway_needs_command" -f -a "invite" -d 'Print an invite for a new client: one line, for `whimbrel join`'
complete -c whimbrel-gateway -n "__fish_whimbrel_gateway_needs_command" -f -a "clients" -d 'List clients and open invites'
complete -c whimbrel-gateway -n "__fish_whimbrel_gateway_needs_command" -f -a "revoke" -d 'Cut a client off, its live sessions included'
complete -c whimbrel-gateway -n "__fish_whimbrel_gateway_needs_command" -f -a "status" -d 'Show what the gateway does'
complete -c whimbrel-gateway -n "__fish_whimbrel_gateway_needs_command" -f -a "metrics" -d 'Print figures for a monitoring system, as Prometheus reads them'
complete -c whimbrel-gateway -n "__fish_whimbrel_gateway_needs_command" -f -a "check" -d 'Validate a configuration'
complete -c whimbrel-gateway -n "__fish_whimbrel_gateway_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c whimbrel-gateway -n "__fish_whimbrel_gateway_using_subcommand init" -l config -d 'Use this configuration file, with key, state and control socket beside it' -r -F
complete -c whimbrel-gateway -n "__fish_whimbrel_gateway_using_subcommand init" -l listen -d 'UDP address to listen on, can be repeated [default: [::]:443]' -r
complete -c whimbrel-gateway -n "__fish_whimbrel_gateway_using_subcommand init" -l public -d 'Where clients find this gateway [default: the public address of this machine]' -r
complete -c whimbrel-gateway -n "__fish_whimbrel_gateway_using_subcommand init" -s h -l help -d 'Print help'
complete -c whimbrel-gateway -n "__fish_whimbrel_gateway_using_subcommand run" -l config -d 'Use this configuration file, with key, state and control socket beside it' -r -F
complete -c whimbrel-gateway -n "__fish_whimbrel_gateway_using_subcommand run" -s h -l help -d 'Print help'
complete -c whimbrel-gateway -n "__fish_whimbrel_gateway_using_subcommand invite" -l config -d 'Use this configuration file, with key, state and control socket beside it' -r -F
complete -c whimbrel-gateway -n "__fish_whimbrel_gateway_using_subcommand invite" -l valid -d 'How long the invite can be used: 90s, 24h, 7d' -r
complete -c whimbrel-gateway -n "__fish_whimbrel_gateway_using_subcommand invite" -s h -l help -d 'Print help'
complete -c whimbrel-gateway -n "__fish_whimbrel_gateway_using_subcommand clients" -l config -d 'Use this configuration file, with key, state and control socket beside it' -r -F
complete -c whimbrel-gateway -n "__fish_whimbrel_gateway_using_subcommand clients" -l json -d 'Print a JSON document'
complete -c whimbrel-gateway -n "__fish_whimbrel_gateway_using_subcommand clients" -s h -l help -d 'Print help'
complete -c whimbrel-gateway -n "__fish_whimbrel_gateway_using_subcommand revoke" -l config -d 'Use this configuration file, with key, state and control socket beside it' -r -F
complete -c whimbrel-gateway -n "__fish_whimbrel_gateway_using_subcommand revoke" -s h -l help -d 'Print help'
complete -c whimbrel-gateway -n "__fish_whimbrel_gateway_using_subcommand status" -l config -d 'Use this configuration file, with key, state and control socket beside it' -r -F
complete -c whimbrel-gateway -n "__fish_whimbrel_gateway_using_subcommand status" -l json -d 'Print a JSON document'
complete -c whimbrel-gateway -n "__fish_whimbrel_gateway_using_subcommand status" -s h -l help -d 'Print help'
complete -c whimbrel-gateway -n "__fish_whimbrel_gateway_using_subcommand metrics" -l config -d 'Use this configuration file, with key, state and control socket beside it' -r -F
complete -c whimbrel-gateway -n "__fish_whimbrel_gateway_using_subcommand metrics" -s h -l help -d 'Print help'
complete -c whimbrel-gateway -n "__fish_whimbrel_gateway_using_subcommand check" -l config -d 'Use this configuration file, with key, state and control socket beside it' -r -F
complete -c whimbrel-gateway -n "__fish_whimbrel_gateway_using_subcommand check" -s h -l help -d 'Print help'
complete -c whimbrel-gateway -n "__fish_whimbrel_gateway_using_subcommand help; and not __fish_seen_subcommand_from init run invite clients revoke status metrics check help" -f -a "init" -d 'Make a key and a configuration'
complete -c whimbrel-gateway -n "__fish_whimbrel_gateway_using_subcommand help; and not __fish_seen_subcommand_from init run invite clients revoke status metrics check help" -f -a "run" -d 'Run the gateway in the foreground (systemd runs this)'
complete -c whimbrel-gateway -n "__fish_whimbrel_gateway_using_subcommand help; and not __fish_seen_subcommand_from init run invite clients revoke status metrics check help" -f -a "invite" -d 'Print an invite for a new client: one line, for `whimbrel join`'
complete -c whimbrel-gateway -n "__fish_whimbrel_gateway_using_subcommand help; and not __fish_seen_subcommand_from init run invite clients revoke status metrics check help" -f -a "clients" -d 'List clients and open invites'
complete -c whimbrel-gateway -n "__fish_whimbrel_gateway_using_subcommand help; and not __fish_seen_subcommand_from init run invite clients revoke status metrics check help" -f -a "revoke" -d 'Cut a client off, its live sessions included'
complete -c whimbrel-gateway -n "__fish_whimbrel_gateway_using_subcommand help; and not __fish_seen_subcommand_from init run invite clients revoke status metrics check help" -f -a "status" -d 'Show what the gateway does'
complete -c whimbrel-gateway -n "__fish_whimbrel_gateway_using_subcommand help; and not __fish_seen_subcommand_from init run invite clients revoke status metrics check help" -f -a "metrics" -d 'Print figures for a monitoring system, as Prometheus reads them'
complete -c whimbrel-gateway -n "__fish_whimbrel_gateway_using_subcommand help; and not __fish_seen_subcommand_from init run invite clients revoke status metrics check help" -f -a "check" -d 'Validate a configuration'
complete -c whimbrel-gateway -n "__fish_whimbrel_gateway_using_subcommand help; and not __fish_seen_subcommand_from init run invite clients revoke status metrics check help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
