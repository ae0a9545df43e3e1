"""The rooms of the log store, from the medium upwards.

layout.py        what is on the device: two headers, and groups of records
signatures.py    what may be there instead, and should not be overwritten unasked
lock.py          one writer at a time
recovery.py      following the records to their end, and telling a torn end from damage
store.py         the log itself: opening, appending, reading
"""
