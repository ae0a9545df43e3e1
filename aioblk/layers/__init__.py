"""What a block device is, and what lies over any: any bytes, zones."""
