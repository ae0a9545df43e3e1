"""Long searches, run on demand: ./run test tests/campaigns/FILE. Nothing here is collected by itself."""
