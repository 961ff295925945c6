# Installed as /etc/apparmor.d/whimbrel, where unprivileged user namespaces are restricted (Ubuntu
# 23.10 and newer): lets `whimbrel run` make one. Nothing else is confined or allowed by it.
abi <abi/4.0>,
include <tunables/global>

profile whimbrel /usr/bin/whimbrel flags=(unconfined) {
  userns,

  include if exists <local/whimbrel>
}
