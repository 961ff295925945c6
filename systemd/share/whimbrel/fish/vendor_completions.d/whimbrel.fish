# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_whimbrel_global_optspecs
    string join \n h/help V/version
end

function __fish_whimbrel_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_whimbrel_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_whimbrel_using_subcommand
    set -l cmd (__fish_whimbrel_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c whimbrel -n "__fish_whimbrel_needs_command" -s h -l help -d 'Print help'
complete -c whimbrel -n "__fish_whimbrel_needs_command" -s V -l version -d 'Print version'
complete -c whimbrel -n "__fish_whimbrel_needs_command" -f -a "join" -d 'Become a client of a gateway, with the invite its owner sent'
complete -c whimbrel -n "__fish_whimbrel_needs_command" -f -a "up" -d 'Run the daemon in the foreground (systemd runs this)'
complete -c whimbrel -n "__fish_whimbrel_needs_command" -f -a "run" -d 'Run a command with its TCP carried, or around the capture, without root'
complete -c whimbrel -n "__fish_whimbrel_needs_command" -f -a "status" -d 'Show what the daemon does'
complete -c whimbrel -n "__fish_whimbrel_needs_command" -f -a "paths" -d 'List the paths to the gateway'
complete -c whimbrel -n "__fish_whimbrel_needs_command" -f -a "flows" -d 'List the connections that are carried'
complete -c whimbrel -n "__fish_whimbrel_needs_command" -f -a "events" -d 'List what happened lately'
complete -c whimbrel -n "__fish_whimbrel_needs_command" -f -a "metrics" -d 'Print figures for a monitoring system, as Prometheus reads them'
complete -c whimbrel -n "__fish_whimbrel_needs_command" -f -a "trace" -d 'Write down what paths, moves and connections do, as a qlog, until Ctrl-C'
complete -c whimbrel -n "__fish_whimbrel_needs_command" -f -a "move" -d 'Move to a link by hand'
complete -c whimbrel -n "__fish_whimbrel_needs_command" -f -a "pause" -d 'Let new connections go direct, for a time or until `resume`'
complete -c whimbrel -n "__fish_whimbrel_needs_command" -f -a "resume" -d 'Capture new connections again'
complete -c whimbrel -n "__fish_whimbrel_needs_command" -f -a "check" -d 'Validate a configuration'
complete -c whimbrel -n "__fish_whimbrel_needs_command" -f -a "doctor" -d 'Examine this host: what is wrong, and what to do about it'
complete -c whimbrel -n "__fish_whimbrel_needs_command" -f -a "bugreport" -d 'Gather what somebody who looks for a bug wants to know, in one file'
complete -c whimbrel -n "__fish_whimbrel_needs_command" -f -a "demo" -d 'Show the whole story on one machine: no root, no set-up'
complete -c whimbrel -n "__fish_whimbrel_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand join" -l config -d 'Use this configuration file, with key, state and control socket beside it' -r -F
complete -c whimbrel -n "__fish_whimbrel_using_subcommand join" -s h -l help -d 'Print help'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand up" -l config -d 'Use this configuration file, with key, state and control socket beside it' -r -F
complete -c whimbrel -n "__fish_whimbrel_using_subcommand up" -s h -l help -d 'Print help'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand run" -l config -d 'Use this configuration file, with key, state and control socket beside it' -r -F
complete -c whimbrel -n "__fish_whimbrel_using_subcommand run" -l exclude -d 'Let its new connections go direct, around the daemon of this host'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand run" -l cgroup -d 'Carry its new connections by its control group, where it cannot have a network of its own'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand run" -s h -l help -d 'Print help'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand status" -l config -d 'Use this configuration file, with key, state and control socket beside it' -r -F
complete -c whimbrel -n "__fish_whimbrel_using_subcommand status" -l json -d 'Print a JSON document'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand status" -l watch -d 'Keep showing it, on this terminal, until Ctrl-C'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand status" -s h -l help -d 'Print help'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand paths" -l config -d 'Use this configuration file, with key, state and control socket beside it' -r -F
complete -c whimbrel -n "__fish_whimbrel_using_subcommand paths" -l json -d 'Print a JSON document'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand paths" -s h -l help -d 'Print help'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand flows" -l config -d 'Use this configuration file, with key, state and control socket beside it' -r -F
complete -c whimbrel -n "__fish_whimbrel_using_subcommand flows" -l json -d 'Print a JSON document'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand flows" -s h -l help -d 'Print help'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand events" -l config -d 'Use this configuration file, with key, state and control socket beside it' -r -F
complete -c whimbrel -n "__fish_whimbrel_using_subcommand events" -l json -d 'Print a JSON document; with --follow, one per line'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand events" -l follow -d 'Keep printing what happens'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand events" -s h -l help -d 'Print help'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand metrics" -l config -d 'Use this configuration file, with key, state and control socket beside it' -r -F
complete -c whimbrel -n "__fish_whimbrel_using_subcommand metrics" -s h -l help -d 'Print help'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand trace" -l for -d 'For how long: 90s, 10m, 2h [default: until Ctrl-C]' -r
complete -c whimbrel -n "__fish_whimbrel_using_subcommand trace" -l config -d 'Use this configuration file, with key, state and control socket beside it' -r -F
complete -c whimbrel -n "__fish_whimbrel_using_subcommand trace" -s h -l help -d 'Print help'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand move" -l config -d 'Use this configuration file, with key, state and control socket beside it' -r -F
complete -c whimbrel -n "__fish_whimbrel_using_subcommand move" -l auto -d 'Choose by itself again'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand move" -s h -l help -d 'Print help'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand pause" -l config -d 'Use this configuration file, with key, state and control socket beside it' -r -F
complete -c whimbrel -n "__fish_whimbrel_using_subcommand pause" -s h -l help -d 'Print help'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand resume" -l config -d 'Use this configuration file, with key, state and control socket beside it' -r -F
complete -c whimbrel -n "__fish_whimbrel_using_subcommand resume" -s h -l help -d 'Print help'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand check" -l config -d 'Use this configuration file, with key, state and control socket beside it' -r -F
complete -c whimbrel -n "__fish_whimbrel_using_subcommand check" -s h -l help -d 'Print help'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand doctor" -l config -d 'Use this configuration file, with key, state and control socket beside it' -r -F
complete -c whimbrel -n "__fish_whimbrel_using_subcommand doctor" -l json -d 'Print a JSON document'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand doctor" -s h -l help -d 'Print help'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand bugreport" -l config -d 'Use this configuration file, with key, state and control socket beside it' -r -F
complete -c whimbrel -n "__fish_whimbrel_using_subcommand bugreport" -l output -d 'Write to this file [default: whimbrel-bugreport-TIME.tar in this folder]' -r -F
complete -c whimbrel -n "__fish_whimbrel_using_subcommand bugreport" -l addresses -d 'Keep network addresses as they are'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand bugreport" -s h -l help -d 'Print help'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand demo" -s h -l help -d 'Print help'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand help; and not __fish_seen_subcommand_from join up run status paths flows events metrics trace move pause resume check doctor bugreport demo help" -f -a "join" -d 'Become a client of a gateway, with the invite its owner sent'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand help; and not __fish_seen_subcommand_from join up run status paths flows events metrics trace move pause resume check doctor bugreport demo help" -f -a "up" -d 'Run the daemon in the foreground (systemd runs this)'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand help; and not __fish_seen_subcommand_from join up run status paths flows events metrics trace move pause resume check doctor bugreport demo help" -f -a "run" -d 'Run a command with its TCP carried, or around the capture, without root'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand help; and not __fish_seen_subcommand_from join up run status paths flows events metrics trace move pause resume check doctor bugreport demo help" -f -a "status" -d 'Show what the daemon does'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand help; and not __fish_seen_subcommand_from join up run status paths flows events metrics trace move pause resume check doctor bugreport demo help" -f -a "paths" -d 'List the paths to the gateway'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand help; and not __fish_seen_subcommand_from join up run status paths flows events metrics trace move pause resume check doctor bugreport demo help" -f -a "flows" -d 'List the connections that are carried'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand help; and not __fish_seen_subcommand_from join up run status paths flows events metrics trace move pause resume check doctor bugreport demo help" -f -a "events" -d 'List what happened lately'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand help; and not __fish_seen_subcommand_from join up run status paths flows events metrics trace move pause resume check doctor bugreport demo help" -f -a "metrics" -d 'Print figures for a monitoring system, as Prometheus reads them'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand help; and not __fish_seen_subcommand_from join up run status paths flows events metrics trace move pause resume check doctor bugreport demo help" -f -a "trace" -d 'Write down what paths, moves and connections do, as a qlog, until Ctrl-C'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand help; and not __fish_seen_subcommand_from join up run status paths flows events metrics trace move pause resume check doctor bugreport demo help" -f -a "move" -d 'Move to a link by hand'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand help; and not __fish_seen_subcommand_from join up run status paths flows events metrics trace move pause resume check doctor bugreport demo help" -f -a "pause" -d 'Let new connections go direct, for a time or until `resume`'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand help; and not __fish_seen_subcommand_from join up run status paths flows events metrics trace move pause resume check doctor bugreport demo help" -f -a "resume" -d 'Capture new connections again'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand help; and not __fish_seen_subcommand_from join up run status paths flows events metrics trace move pause resume check doctor bugreport demo help" -f -a "check" -d 'Validate a configuration'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand help; and not __fish_seen_subcommand_from join up run status paths flows events metrics trace move pause resume check doctor bugreport demo help" -f -a "doctor" -d 'Examine this host: what is wrong, and what to do about it'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand help; and not __fish_seen_subcommand_from join up run status paths flows events metrics trace move pause resume check doctor bugreport demo help" -f -a "bugreport" -d 'Gather what somebody who looks for a bug wants to know, in one file'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand help; and not __fish_seen_subcommand_from join up run status paths flows events metrics trace move pause resume check doctor bugreport demo help" -f -a "demo" -d 'Show the whole story on one machine: no root, no set-up'
complete -c whimbrel -n "__fish_whimbrel_using_subcommand help; and not __fish_seen_subcommand_from join up run status paths flows events metrics trace move pause resume check doctor bugreport demo help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
