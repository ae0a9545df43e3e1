"""The rooms of the client, from what a user names to the wire.

device.py       Nbd: a block device of what a server exports
life.py         its connections as one: opening, breaking, coming back, lost, closed
dispatch.py     which command goes to which connection, and which has to wait
requests.py     what a user awaits: one command or several
block_status.py where a device has holes, or what else a server tells of its blocks
connection.py   one connection: commands out, replies in, any number at a time
replies.py      what is in a reply, and what must not be
commands.py     a command, and what is known of its reply
silence.py      a server that answers no more
reach.py        a machine that the network does not reach any more
handshake.py    the options that are haggled about before there are commands
listing.py      what a server exports
export.py       what came of it
channel.py      a socket, with TLS or without
tls.py          who is trusted, and by what
uri.py          nbd://host:port/export and the like
"""
