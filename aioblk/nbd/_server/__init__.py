"""The rooms of the server, from the wire inwards.

handshake.py     the options a client haggles about before it chooses an export
transmission.py  the commands it sends then: many at a time, answered in the order of their completion
dialects.py      how commands and replies look, which the handshake has settled
command.py       one that is under way
zeroes.py        holes, found in what was read
contexts.py      what is told of ranges: holes, what was changed
exports.py       what there is to choose from, by name
export.py        what is served: a device, its size, its rules
backend.py       the device behind exports: whether it is lost, and whether it is back
policy.py        what clients are granted, and who is let in
tls.py           certificates, and keys that are shared
statistics.py    what is counted
listening.py     sockets that are listened at, and connections before they are clients
clients.py       admitting, limiting, watching and dismissing clients
server.py        all of it: exports, sockets, the end
"""
