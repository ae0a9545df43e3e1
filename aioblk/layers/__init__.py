"""What lies over any block device: any bytes, zones."""
