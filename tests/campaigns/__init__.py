"""Long searches, run by ./run campaign, which lists them. Nothing here is collected by itself.

Each file is named after the room that it attacks, and then how: the house is all that is public.
"""
