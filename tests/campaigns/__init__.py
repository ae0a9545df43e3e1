"""Long searches, run by ./run campaign, which lists them. Nothing here is collected by itself."""
