"""Long searches, run on demand by ./run campaign, which lists them. Nothing here is collected by itself."""
