"""The rooms of the object gateway, from the wire inwards.

connection.py    what the server leaves to whoever uses it: slow headers, long ones, clients that do not go
app.py           the methods, and what each answers
problems.py      what went wrong, for clients
ranges.py        ranges of bytes, as headers have them
conditions.py    If-Match and its like
versions.py      entity tags that never lie, for a device that changes
clients.py       who is here, and how much of memory and device each may have
transfers.py     pieces between clients and the device
"""
