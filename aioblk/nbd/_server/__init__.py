"""The rooms of the server, from the wire inwards.

handshake.py     the options a client haggles about before it chooses the export
transmission.py  the commands it sends then: many at a time, answered in the order of their completion
exports.py       what there is to choose from, by name
export.py        what is served: a device, its size, its rules
memory.py        what clients' data travel through, and who may have how much of it
clients.py       accepting, limiting, watching and dismissing clients
backend.py       what becomes of the server when the device is lost
unix_socket.py   the file of a Unix socket: made, found left behind, taken away by others, removed
"""
