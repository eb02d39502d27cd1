"""Commented examples of the files that ``serve`` needs. Every setting is in them; a test compares."""

from __future__ import annotations

from typing import Final

SETTINGS: Final = """\
# Settings of `fedlearn-device serve`. Every path is absolute. What begins with "# " and a name has its default.

# The encrypted store. Made with mode 0700; must belong to the daemon's user.
directory = "/var/lib/fedlearn/store"
# Apps connect here. Its folder must exist, callers must be able to enter it (0755), and only the daemon's user or root
# may write in it. The whole path may have some 70 characters.
socket = "/run/fedlearn/device.sock"
# uid -> app and role; `fedlearn-device serve --example callers` prints one. Must belong to root or the daemon's user,
# and others must not be able to write it.
callers = "/etc/fedlearn/callers.toml"
# The public halves of your root keys: what `fedlearn ledger keygen root.key` wrote to root.key.pub. A task bundle is
# accepted only if one of them signed its roster.
root_keys = ["PUT THE 64 HEXADECIMAL DIGITS OF root.key.pub HERE"]

# Where the Linux KeyStore keeps its keys. Keep it out of backups: who has it and the store can read the store.
keys = "/var/lib/fedlearn/keys"
# Your log: kinds, sizes and codes, nothing of the owner. Default: log.jsonl in `directory`.
# log = "/var/lib/fedlearn/store/log.jsonl"
# Where this phone brings its contributions, tried in turn; and the only certificates that vouch for them (PEM). Without
# these two nothing leaves the phone.
# gateway = ["gateway.example.org:443"]
# gateway_ca = "/etc/fedlearn/gateway-ca.pem"
# What the phone maker issued to this phone (`fedlearn credentials issue`), to become known to the gateway with, once.
# credential = "/etc/fedlearn/credential.json"
# Network interfaces that cost nothing; a wired one need not be named. On any other no round runs.
unmetered = ["wlan0"]
# Rounds run by themselves when everything allows it. false: by `fedlearn-device train-now` alone.
# train = true
# Seconds that a prepared upload waits before it leaves, for the owner to read it; 0..86400.
# egress_hold_s = 0.0

# Rankings and feedback of one app: a second on average, and at once.
# recommend_rate = 10.0
# recommend_burst = 20
# control_rate = 1.0
# control_burst = 120
# Connections at a time, in all and of one uid.
# connections = 64
# connections_per_uid = 4
# Bytes that the store may grow to.
# store_max_bytes = 268435456

# For development only: go on where the kernel cannot confine the worker.
# allow_weak_sandbox = false
# For test builds only: answer the conformance kit's numbers.
# conformance = false
"""

CALLERS: Final = """\
# Who is calling: the uid of a process -> its app, as the policy names it, and its role. Who is not listed may call
# nothing. Several uids may be one app. Read once, at the start: restart `fedlearn-device serve` after a change.
#   app       hands over its own signals, asks for rankings
#   surface   asks for rankings, and alone hears which sources were used
#   settings  consent and the log: the settings screen
#   system    installs, pauses, asks how things are

[10001]
app = "org.example.chat"
role = "app"

[10002]
app = "org.example.maps"
role = "app"

[10003]
app = "org.example.search"
role = "surface"

[1000]
app = "org.example.settings"
role = "settings"

[0]
app = "org.example.system"
role = "system"
"""

EXAMPLES: Final = {"settings": SETTINGS, "callers": CALLERS}
